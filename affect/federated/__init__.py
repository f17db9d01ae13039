"""Federated training on Flower: the same experiment, and each person's recordings stay in place."""

import os

# Flower reports its use and asks for updates unless told otherwise before it is imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
