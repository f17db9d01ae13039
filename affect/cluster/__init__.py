"""SLURM: submission of the batch scripts in `slurm/`, what became of jobs, what a machine has."""
