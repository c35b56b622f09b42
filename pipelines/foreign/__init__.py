"""Imports from other projects: arrays and shards of features, VISSL's configurations."""
