"""Federated training on Flower: the same experiment, and each person's recordings stay in place."""

import os

# Flower and Ray report their use and ask for updates unless told otherwise before the import.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
