"""An image that is not the one that was listed stops the run by name, whatever process reads it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featbench.extract.data import listing_cache
from tests.conftest import Bench, save_image


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("change", ["vanished", "changed"])
def test_an_image_that_changed_after_it_was_listed_stops_the_run_by_name(
    bench: Bench, photographs: Path, monkeypatch: pytest.MonkeyPatch, workers: int, change: str
) -> None:
    monkeypatch.setattr(listing_cache, "MANY", 1)
    monkeypatch.setattr(
        listing_cache, "SAMPLE", 1
    )  # only the first file is looked up before the cached listing is used
    for path in (photographs, *photographs.rglob("*")):
        os.utime(path, (1, 1))
    words = [
        "folder", "--data", photographs, "--random-weights", "0", "model.trunk=squeezenet1_0", "--layers", "features.5",
        "transform.resize=32", "transform.crop=32", "--on-error", "skip", "--workers", workers, "--quiet",
    ]  # fmt: skip
    assert bench("plan", *words[:-5], "--probe", "0").returncode == 0  # lists, and keeps the listing
    image = photographs / "val" / "cat" / "001.jpg"
    if change == "vanished":
        image.unlink()
        os.utime(image.parent, (1, 1))
    else:
        save_image(image, seed=99, size=(90, 80))
    stopped = bench("extract", *words)
    assert stopped.returncode == 2
    assert "val/cat/001.jpg: it was listed with" in stopped.stderr
    assert ("is gone" if change == "vanished" else "was changed since") in stopped.stderr
    assert "Traceback" not in stopped.stderr
    refused = bench("extract", *words)
    assert refused.returncode == 2
    assert "made with other settings" in refused.stderr, "what was committed are features of the listed images"
    assert bench("extract", *words, "--overwrite").returncode == 0
