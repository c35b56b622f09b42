"""A file that nobody named must not run code: `bench.yaml` and `datasets.yaml` of the working folder are such files.

Whoever works in a folder that came from elsewhere would otherwise run what its author wrote.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from featbench.pipelines.config.pipeline import LOCAL, Pipeline, PipelineError

BENCH = str(LOCAL)


def code_settings(pipeline: Pipeline) -> dict[str, str]:
    """Settings of a pipeline that run code which does not come with this project, by dotted key.

    Returns
    -------
    dict of str to str
        What each runs, in words.
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
    """Refuse a pipeline that runs code which a file says that nobody named.

    Parameters
    ----------
    pipeline : Pipeline
        With all overrides.
    files : sequence of str
        What was taken without being named: `bench.yaml`, or `datasets.yaml`, which says nothing but `data`.
    named : collection of str
        Settings that the command line gives, by dotted key; code that these name is run.

    Raises
    ------
    PipelineError
        Listing the settings that run code.
    """
    found = {
        key: what
        for key, what in code_settings(pipeline).items()
        if (BENCH in files or key.startswith("data."))
        and not any(key == given or key.startswith(f"{given}.") for given in named)
    }
    if found:
        listed = "\n  ".join(f"{key}: {what}" for key, what in found.items())
        raise PipelineError(
            f"{' and '.join(files)} of this folder would run code, and nobody named it:\n  {listed}\n"
            f"Read it; then add --trust-code, or name the pipeline (`bench extract {BENCH} ...`)."
        )
