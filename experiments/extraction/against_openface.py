"""How far recordings of `affect extract` go with OpenFace's own output for the same video.

`against_openface.py RECORDING.h5 OPENFACE.csv` prints one JSON object: the correlation of each
intensity, or of each proxy with its unit's intensity, over the frames that both tracked; units that
hardly move for OpenFace are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from affect import store

_MOVES = 0.05
"""Least standard deviation of an intensity, 0 to 5, that a correlation says something about."""


def main() -> None:
    """Compare one recording with one CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recording", type=Path)
    parser.add_argument("csv", type=Path)
    options = parser.parse_args()
    recording = store.read(options.recording)
    table = pd.read_csv(options.csv, skipinitialspace=True)
    both = recording.success & (table["success"].to_numpy() > 0)
    correlation = {}
    for name, values in zip(recording.intensity_names, recording.intensity.T, strict=True):
        reference = table[f"{name[:4]}_r"].to_numpy()[both]
        if reference.std() > _MOVES:
            correlation[name] = round(float(np.corrcoef(values[both], reference)[0, 1]), 3)
    mean = round(float(np.mean(list(correlation.values()))), 3)
    found = {"frames": int(both.sum()), "mean": mean, "correlation": correlation}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
