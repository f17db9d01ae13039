"""The action units of a recording of `affect extract` over its video's time, as a figure.

`draw_traces.py RECORDING.h5 --out FIGURE.png` draws one row a unit, those that move most, shaded
where the unit is present; the time line below shows where a face was tracked, and how surely. With
`--openface CSV`, what OpenFace itself says of the video is drawn behind it, dashed. Nothing of the
video is shown.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from affect import store
from affect.recording import Recording

ROWS = 8
NAMES = {
    "AU01": "inner brow raiser",
    "AU02": "outer brow raiser",
    "AU04": "brow lowerer",
    "AU05": "upper lid raiser",
    "AU06": "cheek raiser",
    "AU07": "lid tightener",
    "AU09": "nose wrinkler",
    "AU10": "upper lip raiser",
    "AU12": "lip corner puller",
    "AU14": "dimpler",
    "AU15": "lip corner depressor",
    "AU17": "chin raiser",
    "AU20": "lip stretcher",
    "AU23": "lip tightener",
    "AU25": "lips part",
    "AU26": "jaw drop",
    "AU45": "blink",
}
BLUE, VERMILION, GREY, BLACK = "#0072B2", "#D55E00", "#999999", "#222222"


def main() -> None:
    """Draw one recording."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--openface", type=Path, help="OpenFace's CSV of the video")
    options = parser.parse_args()
    table = options.openface and pd.read_csv(options.openface, skipinitialspace=True)
    draw(store.read(options.recording), table).savefig(options.out, dpi=150)


def draw(recording: Recording, openface: pd.DataFrame | None = None) -> Figure:
    """The figure of a recording, and of OpenFace's own output for its video."""
    moving = np.argsort(np.nanstd(recording.intensity, axis=0))[::-1][:ROWS]
    figure = Figure(figsize=(7.5, 0.55 * len(moving) + 0.9), layout="constrained")
    rows = figure.subplots(
        len(moving) + 1, 1, sharex=True, height_ratios=[1.0] * len(moving) + [0.5]
    )
    for axes, column in zip(rows, sorted(moving), strict=False):
        _draw_unit(axes, recording, int(column), openface)
    _draw_timeline(rows[-1], recording)
    _add_legend(figure)
    return figure


def _draw_unit(
    axes: Axes, recording: Recording, column: int, openface: pd.DataFrame | None
) -> None:
    name = recording.intensity_names[column]
    if openface is not None and name in openface:
        dashes = {"linestyle": "--", "linewidth": 0.9}
        axes.plot(
            openface["timestamp"], openface[name], color=BLACK, label="OpenFace itself", **dashes
        )
    values = recording.intensity[:, column]
    label = "intensity" if name.endswith("_r") else "landmark proxy"
    axes.plot(recording.time_s, values, color=BLUE, linewidth=1.0, label=label)
    top = 5.0 if name.endswith("_r") else float(np.nanmax(values))
    axes.set_ylim(0 if name.endswith("_r") else float(np.nanmin(values)), top)
    presence = f"{name[:4]}_c"
    if recording.presence is not None and presence in recording.presence_names:
        present = recording.presence[:, recording.presence_names.index(presence)] > 0
        shade = {"color": VERMILION, "alpha": 0.15, "lw": 0}
        axes.fill_between(recording.time_s, 0, top, where=present, label="present", **shade)
    title = f"{name[:4]} {NAMES.get(name[:4], '')}"
    axes.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_timeline(axes: Axes, recording: Recording) -> None:
    time_s, lost = recording.time_s, ~recording.success
    axes.fill_between(time_s, 0, 1, where=lost, color=GREY, lw=0, label="no face")
    axes.plot(time_s, recording.confidence, color=BLACK, linewidth=0.8, label="confidence")
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("face (confidence)", rotation=0, ha="right", va="center", fontsize=8)
    axes.set_xlabel("time (s)", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _add_legend(figure: Figure) -> None:
    """Say once what each line and shade is, above all rows."""
    drawn = [axes.get_legend_handles_labels() for axes in figure.axes]
    handles = {label: handle for pair in drawn for handle, label in zip(*pair, strict=True)}
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=len(handles),
        fontsize=7,
        frameon=False,
    )


if __name__ == "__main__":
    main()
