"""Tiny corpora in the documented formats, written to a folder; numbers come from a fixed seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

RATERS = ("FM1", "FM2", "FM3", "FF1", "FF2", "FF3")
UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 45)
DIMENSIONS = ("arousal", "valence")
PERIOD_S = 0.04


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_arff(path: Path, attributes: Mapping[str, Sequence[object]], comment: str = "") -> Path:
    """Attributes are numeric unless their first value is a string; NaN is written as `?`."""
    kinds = {n: "string" if isinstance(v[0], str) else "numeric" for n, v in attributes.items()}
    lines = ["@relation X", "", *(f"@attribute {name} {kind}" for name, kind in kinds.items())]
    rows = zip(*attributes.values(), strict=True)
    cells = (",".join("?" if v != v else str(v) for v in row) for row in rows)  # noqa: PLR0124
    return write(path, "\n".join([comment, *lines, "", "@data", "", *cells]) + "\n")


def clock(rows: int, period_s: float = PERIOD_S) -> list[float]:
    return [round(index * period_s, 6) for index in range(rows)]


def ratings(rows: int, raters: Sequence[str] = RATERS, seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).uniform(-1, 1, (rows, len(raters))).round(3)
    return pd.DataFrame(values, columns=list(raters)).assign(time=clock(rows))


def write_ratings(path: Path, frame: pd.DataFrame) -> Path:
    """RECOLA's layout: `;`, and blanks behind all names but the first and the last."""
    raters = [name for name in frame.columns if name != "time"]
    header = "time;" + ";".join(f"{name} " for name in raters).rstrip()
    rows = (";".join(map(str, row)) for row in frame[["time", *raters]].itertuples(index=False))
    return write(path, "\n".join([header, *rows]) + "\n")


def recola(
    root: Path, subjects: Sequence[str] = ("P16", "P17"), rows: int = 20, labels: int = 21
) -> Path:
    """RECOLA's native release, one feature row less than labels, as in the corpus."""
    for seed, subject in enumerate(subjects):
        for offset, dimension in enumerate(DIMENSIONS):
            path = root / "RECOLA-Annotation/emotional_behaviour" / dimension / f"{subject}.csv"
            write_ratings(path, ratings(labels, seed=2 * seed + offset))
        random = np.random.default_rng(100 + seed)
        features = {
            name: random.uniform(0, 1, rows).round(4).tolist()
            for name in ("AU1", "AU12", "AU12_delta", "Yaw", "Opt_mean")
        }
        attributes = {
            "name": ["unknown"] * rows,
            "frameTime": clock(rows),
            "Face_detection_probability": [0.0, *[0.9] * (rows - 1)],
            **{f"VIDEO_40_LLD_{name}": values for name, values in features.items()},
        }
        write_arff(root / "RECOLA-Video-features" / f"{subject}.arff", attributes)
    return root


def gold_standard(path: Path, rows: int, seed: int = 0) -> Path:
    values = np.random.default_rng(seed).uniform(-1, 1, rows).round(6).tolist()
    name = [path.stem] * rows
    attributes = {"Instance_name": name, "frameTime": clock(rows), "GoldStandard": values}
    return write_arff(path, attributes, comment="% a comment" if seed % 2 else "")


def video_arff(path: Path, rows: int, period_s: float = PERIOD_S, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    attributes = {
        "name": [f"'{path.stem}'"] * rows,
        "frameTime": clock(rows, period_s),
        "feat_0": random.normal(size=rows).tolist(),
        "feat_1": random.normal(size=rows).tolist(),
    }
    return write_arff(path, attributes)


def avec2016(root: Path, rows: int = 20) -> Path:
    """Two labelled partitions and a test partition; features once a dimension."""
    for seed, subject in enumerate(("train_1", "dev_1", "test_1")):
        for offset, dimension in enumerate(DIMENSIONS):
            folder = root / "features_video_geometric" / dimension
            video_arff(folder / f"{subject}.arff", rows, seed=10 * seed + offset)
            if subject != "test_1":
                gold = root / "ratings_gold_standard" / dimension / f"{subject}.arff"
                gold_standard(gold, rows + 1, seed=10 * seed + offset)
                individual = root / "ratings_individual" / dimension / f"{subject}.csv"
                write_ratings(individual, ratings(rows + 1, seed=10 * seed + offset))
    return root


def avec2018(root: Path, windows: Sequence[str] = ("3.0",)) -> Path:
    """Features every .4 s in one or more windows, labels every .04 s."""
    for seed, subject in enumerate(("train_1", "dev_1", "test_1")):
        for window in windows:
            path = root / "features/video/AU" / f"{subject}_{window}_0.4.arff"
            video_arff(path, 6, period_s=0.4, seed=seed + int(float(window)))
        if subject != "test_1":
            for dimension in DIMENSIONS:
                path = root / "labels/gold_standard_1" / dimension / f"{subject}.arff"
                gold_standard(path, 52, seed=seed)
    return root


def faces(rows: int, seed: int = 0) -> pd.DataFrame:
    """What FeatureExtraction writes, without landmarks: the third row has lost the face."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame({"frame": range(1, rows + 1), "face_id": 0, "timestamp": clock(rows)})
    frame["confidence"], frame["success"] = 0.98, 1
    frame.loc[2, ["confidence", "success"]] = [0.02, 0]
    for unit in UNITS:
        frame[f"AU{unit:02d}_r"] = random.uniform(0, 5, rows).round(2)
    for unit in sorted({*UNITS, 28}):
        frame[f"AU{unit:02d}_c"] = random.integers(0, 2, rows).astype(float)
    return frame


def write_openface(path: Path, frame: pd.DataFrame, separator: str = ", ") -> Path:
    """OpenFace's own layout; before version 2.1 the separator is a comma and a blank."""
    rows = [frame.columns, *frame.astype(object).itertuples(index=False)]
    return write(path, "\n".join(separator.join(map(str, row)) for row in rows) + "\n")


def write_avec_openface(path: Path, frame: pd.DataFrame) -> Path:
    """AVEC's layout of OpenFace's output."""
    intensities = [name for name in frame.columns if name.endswith("_r")]
    kept = frame[["timestamp", "confidence", *intensities]].rename(
        columns={"timestamp": "frameTime"}
    )
    kept.insert(0, "name", f"'{path.stem}'")
    return write_openface(path, kept, ";")
