"""How much the raters of the Haines clips disagree at least: `label_noise.py haines_segments.csv`.

The table holds the mean of three raters, each on the integers 1 to 7. A mean that is no integer
proves that they differed: the least sample variance of three integers with such a mean is 1/3.
Means that are integers prove nothing, so what follows is a lower bound of the noise and an upper
bound of what any model can reach, for valence = (pos - neg) / 6 with independent errors.
"""

from __future__ import annotations

import json
import sys

import pandas as pd

RATERS = 3
LEAST_VARIANCE = 1 / 3


def bounds(clips: pd.DataFrame) -> dict[str, float]:
    """Bounds from one row a clip with `pos`, `neg` and `valence`."""
    result, noise = {}, 0.0
    for name in ("pos", "neg"):
        uneven = float(((clips[name] * RATERS).round() % RATERS != 0).mean())
        error = uneven * LEAST_VARIANCE / RATERS  # variance of the mean's error
        result[f"{name}_uneven_share"] = uneven
        result[f"{name}_highest_reliability"] = 1 - error / float(clips[name].var(ddof=0))
        noise += error / 36
    variance = float(clips["valence"].var(ddof=0))
    result["valence_least_noise_variance"] = noise
    result["valence_variance"] = variance
    # The best predictor is the raters' expected value, of variance v - noise: its CCC with the
    # label is 2 (v - noise) / (2 v - noise).
    result["valence_highest_ccc"] = 2 * (variance - noise) / (2 * variance - noise)
    return result


def main(path: str) -> None:
    """Print the bounds of a table as JSON."""
    rows = pd.read_csv(path, dtype={"subjNum": str, "clipNum": str})
    clips = rows.drop_duplicates(["subjNum", "clipNum"])
    sys.stdout.write(json.dumps(bounds(clips), indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
