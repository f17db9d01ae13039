"""Federated training on Flower: the same experiment, and each person's recordings stay in place."""
