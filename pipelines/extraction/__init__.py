"""Stage one of a pipeline: checked, then run in one rank or several, on this host or as a SLURM job."""
