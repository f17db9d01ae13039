"""A figure as an SVG element that stands in a page: its colours are the page's, its ids its own."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure

_NAMESPACE = re.compile(r"^\{.*\}")
_HEX = re.compile(r"#[0-9a-f]{6}\b")
_UNTOLD = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_LEFT_OUT = {"metadata", "style"}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "affect",
    "path.simplify_threshold": 0.3,
}
"""Letters as paths look alike everywhere; the salt makes the same figure the same text."""


def element(figure: Figure, name: str, alt: str, colours: Mapping[str, str]) -> str:
    """The figure as an `svg` element without namespaces, which HTML does not need.

    Args:
        figure: what to draw.
        name: starts every id, and must be another for each figure of a page.
        alt: what a person who does not see it is told.
        colours: by a colour of the figure, in lower-case hexadecimal, the page's CSS value.
    """
    root = ElementTree.fromstring(_drawn(figure))
    for node in root.iter():
        node.tag = _NAMESPACE.sub("", node.tag)
        node.attrib = {
            _NAMESPACE.sub("", key): _adapted(_NAMESPACE.sub("", key), value, name, colours)
            for key, value in node.attrib.items()
        }
    for node in list(root.iter()):
        for child in [child for child in node if child.tag in _LEFT_OUT]:
            node.remove(child)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": alt}
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _drawn(figure: Figure) -> bytes:
    image = io.BytesIO()
    with mpl.rc_context(_SETTINGS):
        figure.savefig(image, format="svg", transparent=True, metadata=_UNTOLD)
    return image.getvalue()


def _adapted(key: str, value: str, name: str, colours: Mapping[str, str]) -> str:
    """An attribute's value with the page's colours, and with ids that begin with the name."""
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-", 1)
    value = value.replace("url(#", f"url(#{name}-")
    return _HEX.sub(lambda found: colours.get(found[0], found[0]), value)
