"""Makes affect/extraction/faces/weights/ anew from the npm package @vladmandic/face-api.

`npm pack @vladmandic/face-api@1.7.15 && tar xf vladmandic-face-api-1.7.15.tgz`, then
`python experiments/extraction/convert_face_api.py package/model affect/extraction/faces/weights`.
The same package gives the same bytes; nothing is downloaded here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save

MODELS = {
    "tiny_face_detector_model": "face_detector",
    "face_landmark_68_model": "face_landmarks",
}
_METADATA = {"origin": "@vladmandic/face-api 1.7.15 on npm, MIT"}

# TensorFlow's name and axes of each kind of weight to torch's; biases are read beside these.
_KINDS = {
    "filters": ("weight", (3, 2, 0, 1)),
    "depthwise_filter": ("depthwise.weight", (2, 3, 0, 1)),
    "pointwise_filter": ("pointwise.weight", (3, 2, 0, 1)),
    "weights": ("weight", (1, 0)),
}


def tensors_of(folder: Path, model: str) -> dict[str, np.ndarray]:
    """A model's weights by torch's names and in torch's layout, quantised as they come.

    Beside each weight (uint8) stand its `.scale` and `.minimum` (float64): the value is number x
    scale + minimum, as TensorFlow.js reads it.

    Args:
        folder: the package's `model` folder.
        model: the manifest's name up to `-weights_manifest.json`.

    Raises:
        ValueError: weights and manifest are of different sizes, or a weight is not uint8.
    """
    (group,) = json.loads((folder / f"{model}-weights_manifest.json").read_text())
    content = b"".join((folder / path).read_bytes() for path in group["paths"])
    separable = {
        block for block, _, kind in map(_parts, group["weights"]) if kind == "pointwise_filter"
    }
    tensors, offset = {}, 0
    for entry in group["weights"]:
        if entry["quantization"]["dtype"] != "uint8":
            raise ValueError(f"{model}: {entry['name']} is not quantised to uint8")
        count = math.prod(entry["shape"])
        values = np.frombuffer(content, np.uint8, count, offset).reshape(entry["shape"])
        offset += count
        tensors.update(_torch_tensors(entry, values, separable))
    if offset != len(content):
        raise ValueError(f"{model}: {len(content)} bytes, but its manifest says {offset}")
    return tensors


def _parts(entry: dict) -> tuple[str, str, str]:
    return entry["name"].rpartition("/")


def _torch_tensors(
    entry: dict, values: np.ndarray, separable: set[str]
) -> Iterator[tuple[str, np.ndarray]]:
    block, _, kind = _parts(entry)
    # A separable convolution has one bias, after its pointwise half.
    bias = "pointwise.bias" if block in separable else "bias"
    ending, axes = _KINDS.get(kind, (bias, (0,)))
    name = f"{block.replace('/', '.')}.{ending}"
    yield name, np.ascontiguousarray(values.transpose(axes))
    yield f"{name}.scale", np.array(entry["quantization"]["scale"], np.float64)
    yield f"{name}.minimum", np.array(entry["quantization"]["min"], np.float64)


def main() -> None:
    """Write both files and print their SHA-256."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", type=Path, help="the npm package's folder `model`")
    parser.add_argument("destination", type=Path, help="where the safetensors files go")
    given = parser.parse_args()
    given.destination.mkdir(parents=True, exist_ok=True)
    for model, name in MODELS.items():
        path = given.destination / f"{name}.safetensors"
        path.write_bytes(save(tensors_of(given.source, model), metadata=_METADATA))
        sys.stdout.write(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")


if __name__ == "__main__":
    main()
