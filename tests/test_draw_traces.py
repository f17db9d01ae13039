"""The figure of a recording's traces: what its legend says is what is drawn."""

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from tests import builders

SCRIPT = Path(__file__).parents[1] / "experiments" / "extraction" / "draw_traces.py"
UNITS = {"presence": np.ones((60, 1), np.uint8), "presence_names": ("AU12_c",)}
TABLE = pd.DataFrame({"timestamp": np.arange(60) / 5, "AU12_r": 1.0})
BLUE, VERMILION, GREY, BLACK = "#0072B2", "#D55E00", "#999999", "#222222"


@pytest.mark.parametrize(
    ("changes", "table", "meanings"),
    [
        ({}, None, {"intensity": BLUE}),
        ({"intensity_names": ("A_proxy", "B_proxy", "C_proxy")}, None, {"landmark proxy": BLUE}),
        (UNITS, TABLE, {"intensity": BLUE, "OpenFace itself": BLACK, "present": VERMILION}),
    ],
)
def test_the_legend_says_once_what_each_colour_is(changes, table, meanings):
    figure = runpy.run_path(str(SCRIPT))["draw"](builders.recording(**changes), table)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    found = [text.get_text() for text in legend.get_texts()]
    colours = {}
    for name, handle in zip(found, legend.legend_handles, strict=True):
        line = hasattr(handle, "get_linestyle") and not hasattr(handle, "get_facecolor")
        colours[name] = to_rgb(handle.get_color() if line else handle.get_facecolor())
    expected = {**meanings, "no face": GREY, "confidence": BLACK}
    assert colours == {name: to_rgb(colour) for name, colour in expected.items()}
    assert len(found) == len(set(found))
