"""The configuration of a pipeline: YAML files and overrides, the catalogue of data sets, protocols."""
