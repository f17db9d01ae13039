"""Hyperparameter sweeps without a server: W&B's sweep files, run on this machine or a cluster."""
