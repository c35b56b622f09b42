"""No command line, however wrong, ends in a traceback, acts on the terminal, or goes on for ever."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pipelines.fuzzing import fuzz, make_workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_workspace(folder)
        yield


def check(seed: int, count: int) -> None:
    faulty, ended = fuzz(seed, count)
    shown = [f"{[word[:200] for word in each.argv]}\n" + "\n".join(each.faults) + each.err[-500:] for each in faulty]
    assert not faulty, "\n\n".join(shown)
    assert sum(number for how, number in ended.items() if how.endswith(" 0")) > count // 10, "hardly any could run"


def test_random_command_lines_end_with_an_answer_or_one_message(workspace: None) -> None:
    check(seed=1, count=60)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 105))
def test_a_thousand_random_command_lines_end_with_an_answer_or_one_message(workspace: None, seed: int) -> None:
    check(seed, 200)
