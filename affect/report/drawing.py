"""How every figure looks, and how it becomes a file.

Colours are those of Okabe and Ito, "Color Universal Design", 2008, which colour-blind people can
tell apart.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from affect.files import whole_file

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
)
INK, GREY = "#222222", "#999999"
_STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.formatter.useoffset": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.0,
    "image.cmap": "cividis",
    "figure.constrained_layout.w_pad": 0.08,
    "savefig.dpi": 150,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
}
_FEW_POINTS = 60
LONG_S = 180.0
"""From here on time is shown in minutes."""


def house_style() -> AbstractContextManager[None]:
    """Figures made and saved within it look alike, whatever the user's own style."""
    return style.context(["default", _STYLE])


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG.

    Raises:
        UserError: the file cannot be written.
    """
    with whole_file(path) as file:
        figure.savefig(file, format="png")
    return path


def legend_below(figure: Figure) -> None:
    """One legend for all panels, which share their lines."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def marker(points: int) -> str:
    """What marks each point of a line, so that a short one is seen to have few; nothing if long."""
    return "o" if points <= _FEW_POINTS else ""


def scored(name: str, value: float) -> str:
    """`CCC 0.83`, or that there is none."""
    return f"no {name}" if np.isnan(value) else f"{name} {value:z.2f}"


def shortened(name: str, length: int) -> str:
    """The name, or its start and an ellipsis where it is longer."""
    return name if len(name) <= length else f"{name[: length - 1]}…"
