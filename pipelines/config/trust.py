"""Refuse to run code on behalf of a file that the user did not name.

`bench.yaml` and `datasets.yaml` of the working folder are read without being named. In a folder that came from
someone else, they must not decide which code runs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from featbench.pipelines.config.pipeline import LOCAL, Pipeline, PipelineError

BENCH = str(LOCAL)


def code_settings(pipeline: Pipeline) -> dict[str, str]:
    """Find the settings of a pipeline that run code from outside this project.

    Returns
    -------
    dict of str to str
        By dotted key, what each setting runs.
    """
    found = {}
    trunk = pipeline.model.trunk
    if ":" in trunk and not trunk.startswith("timm:"):
        found["model.trunk"] = f"{trunk}, whose code is run"
    if pipeline.weights.trust:
        found["weights.trust"] = f"true, which executes code in {pipeline.weights.file}"
    if pipeline.extract.slurm:
        found["extract.slurm"] = "parameters of a job, such as setup, can be shell commands"
    if pipeline.data.options.get("trust_remote_code"):
        found["data.options.trust_remote_code"] = "true, which runs the data set's own script"
    return found


def refuse_unnamed_code(pipeline: Pipeline, *, files: Sequence[str], named: Collection[str]) -> None:
    """Refuse a pipeline that runs code because of a file that was not named.

    Parameters
    ----------
    pipeline : Pipeline
        With all overrides.
    files : sequence of str
        Files read without being named: `bench.yaml`, or `datasets.yaml`, which has only settings of `data`.
    named : collection of str
        Settings that the command line gives, by dotted key; these may run code.

    Raises
    ------
    PipelineError
        With the settings that run code.
    """
    found = {
        key: what
        for key, what in code_settings(pipeline).items()
        if (BENCH in files or key.startswith("data."))
        and not any(key == given or key.startswith(f"{given}.") for given in named)
    }
    refuse_code(
        found, why=f"{' and '.join(files)} of this folder would run code, and nobody named it",
        cure=f"Read it; then add --trust-code, or name the pipeline (`bench extract {BENCH} ...`).",
    )  # fmt: skip


def refuse_code(found: Mapping[str, str], *, why: str, cure: str) -> None:
    """Refuse settings that run code, if there are any.

    Parameters
    ----------
    found : mapping of str to str
        Part of what `code_settings` returns.
    why, cure : str
        What is said before the settings, and after them.

    Raises
    ------
    PipelineError
        With the settings.
    """
    if found:
        listed = "\n  ".join(f"{key}: {what}" for key, what in found.items())
        raise PipelineError(f"{why}:\n  {listed}\n{cure}")
