"""Many runs of pipelines: suites of models, checkpoints and data sets, and the checkpoints of a training run."""
