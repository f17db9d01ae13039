"""Frames that a GPU has decoded: to blue, green, red where they are.

The conversion is that of swscale's unscaled converters in whole numbers, so that pixels are to the
bit those of frames that the CPU decodes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from av.codec.hwaccel import HWAccel
from av.video.frame import VideoFrame
from jaxtyping import UInt8
from torch import Tensor

_FORMAT = "cuda"
_FULL_RANGE = 2
_MATRICES: Mapping[int, tuple[int, int, int, int]] = {
    1: (117489, 138438, 13975, 34925),  # BT.709
    4: (104448, 132798, 24759, 53109),  # FCC
    7: (117579, 136230, 16907, 35559),  # SMPTE 240M
    9: (110013, 140363, 12277, 42626),  # BT.2020
}
"""By the file's matrix: red of V, blue of U, green of U and of V, in 1/65536."""
_BT601 = (104597, 132201, 25675, 53279)
"""What all others mean, and what is meant where the file does not say."""
CONVERTED = frozenset({0, 1, 2, 4, 5, 6, 7, 9})
"""Matrices that swscale takes; BT.2020 with constant luminance, 10, is none in truth."""
_LUMA, _DARK = 65536 * 255 // 219, 16
"""The weight and the zero of luma in limited range."""


def accelerator(gpu: torch.device) -> HWAccel:
    """What has FFmpeg decode on a GPU and keep the frames there; the CPU does what it cannot."""
    return HWAccel("cuda", device=str(gpu.index or 0), is_hw_owned=True)


def is_surface(frame: VideoFrame) -> bool:
    """Whether a frame is in a GPU's memory."""
    return frame.format.name == _FORMAT


def is_convertible(frame: VideoFrame) -> bool:
    """Whether `bgr` takes a frame that is in a GPU's memory: one of 8 bits and of even size."""
    odd = frame.height % 2 or frame.width % 2 or frame.colorspace not in CONVERTED
    return frame.sw_format is not None and frame.sw_format.name == "nv12" and not odd


def bgr(frame: VideoFrame) -> UInt8[Tensor, "H W 3"]:
    """A frame's pixels, on the device that holds them.

    Args:
        frame: NV12, with even height and width.
    """
    luma, chroma = (torch.from_dlpack(plane) for plane in frame.planes)
    red, blue, green_u, green_v = _MATRICES.get(frame.colorspace, _BT601)
    weight, dark = _LUMA, _DARK
    if frame.color_range == _FULL_RANGE:
        weight, dark = 65536, 0
        red, blue, green_u, green_v = (c * 224 // 255 for c in (red, blue, green_u, green_v))
    brightness = _scaled(luma, dark, weight)  # H W
    u, v = chroma.repeat_interleave(2, 0).repeat_interleave(2, 1).unbind(-1)
    channels = (
        brightness + _scaled(u, 128, blue),
        brightness + _scaled(u, 128, -green_u) + _scaled(v, 128, -green_v),
        brightness + _scaled(v, 128, red),
    )
    return torch.stack(channels, -1).clamp(0, 255).to(torch.uint8)


def _scaled(values: UInt8[Tensor, "H W"], zero: int, weight: int) -> Tensor:
    """Weighted distances from a zero, in the 16 bits and with the rounding of swscale."""
    eighths = (values.int() - zero) << 3
    return (eighths * ((weight * 8192 + 32768) >> 16)) >> 16
