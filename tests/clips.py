"""Clips that tests draw themselves, so that every pixel of a decoded frame is known beforehand."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd

TICKS_HZ = 1000
RED, GREEN, BLUE, WHITE = (0, 0, 255), (0, 255, 0), (255, 0, 0), (255, 255, 255)


def shade(index: int) -> int:
    """The grey of a frame by which a test knows it again: 2 a frame, from 16."""
    return 16 + 2 * (index % 100)


def grey(count: int, height: int = 32, width: int = 48) -> list[np.ndarray]:
    """Frames of one shade each, BGR."""
    return [np.full((height, width, 3), shade(index), np.uint8) for index in range(count)]


def corners(height: int, width: int) -> np.ndarray:
    """A BGR picture whose quarters are red and green above blue and white."""
    picture = np.empty((height, width, 3), np.uint8)
    top, left = height // 2, width // 2
    picture[:top, :left], picture[:top, left:] = RED, GREEN
    picture[top:, :left], picture[top:, left:] = BLUE, WHITE
    return picture


def noise(count: int, height: int, width: int, seed: int = 0) -> list[np.ndarray]:
    """Frames that do not compress, BGR."""
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, (count, height, width, 3), np.uint8))


def sliding(count: int, height: int, width: int) -> list[np.ndarray]:
    """Frames each of which an encoder makes of the one before, BGR."""
    (picture,) = noise(1, height, width)
    return [np.roll(picture, index, axis=1) for index in range(count)]


def write(
    path: Path,
    frames: list[np.ndarray],
    *,
    codec: str = "ffv1",
    pixel_format: str = "bgr0",
    rate: int | Fraction = 25,
    times_ms: list[int] | None = None,
    rotation: float = 0,
    mirrored: bool = False,
    full_range: bool | None = None,
    matrix: int | None = None,
    sound_s: float = 0,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    """A clip of BGR frames; lossless as it stands."""
    color_range = {None: 0, False: 1, True: 2}[full_range]
    with av.open(str(path), "w", container_options=container or {}) as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.codec_context.color_range = color_range
        if matrix is not None:
            stream.codec_context.colorspace = matrix
        stream.codec_context.thread_count = 1
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, TICKS_HZ)
        if rotation or mirrored:
            stream.set_display_rotation(rotation, hflip=mirrored)
        sound = output.add_stream("aac", rate=48000) if sound_s else None
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, "bgr24")
            frame = frame.reformat(format=pixel_format, dst_color_range=color_range or 1)
            frame.pts = index if times_ms is None else times_ms[index]
            frame.time_base = Fraction(1, TICKS_HZ) if times_ms is not None else 1 / Fraction(rate)
            frame.color_range = color_range
            if matrix is not None:
                frame.colorspace = matrix
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if sound is not None:
            _hum(output, sound, sound_s)
    return path


def write_planes(path: Path, planes: np.ndarray, pixel_format: str) -> Path:
    """A lossless clip of frames as a codec stores them: [N, rows, columns] of `pixel_format`."""
    with av.open(str(path), "w") as output:
        frames = [av.VideoFrame.from_ndarray(plane, pixel_format) for plane in planes]
        stream = output.add_stream("ffv1", rate=25)
        stream.width, stream.height = frames[0].width, frames[0].height
        stream.pix_fmt = pixel_format
        for index, frame in enumerate(frames):
            frame.pts = index
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def write_sound(path: Path, seconds: float = 0.2) -> Path:
    """A file with sound alone."""
    with av.open(str(path), "w") as output:
        _hum(output, output.add_stream("aac", rate=48000), seconds)
    return path


def write_picture(path: Path, pixels: np.ndarray, codec: str = "png") -> Path:
    """A still image: BGR pixels as the codec stores them, whatever the path's suffix."""
    context = av.CodecContext.create(codec, "w")
    context.height, context.width = pixels.shape[:2]
    formats = {"mjpeg": "yuvj420p", "bmp": "bgr24", "pgm": "gray", "libwebp": "bgra"}
    context.pix_fmt = formats.get(codec, "rgb24")
    context.time_base = Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(pixels, "bgr24").reformat(format=context.pix_fmt)
    packets = [*context.encode(frame), *context.encode()]
    path.write_bytes(b"".join(bytes(packet) for packet in packets))
    return path


def lay_landmarks(video: Path, points: np.ndarray, success: np.ndarray | None = None) -> Path:
    """OpenFace's CSV of a face's landmarks [T, 68, 2] beside its video; gives the video's path."""
    seen = np.ones(len(points), bool) if success is None else success
    names = [f"{axis}_{point}" for axis in "xy" for point in range(68)]
    table = pd.DataFrame(np.concatenate([points[..., 0], points[..., 1]], axis=1), columns=names)
    table.insert(0, "frame", np.arange(1, len(points) + 1))
    table.insert(1, "confidence", 0.98 * seen)
    table.insert(2, "success", seen.astype(int))
    table.round(3).to_csv(video.with_suffix(".csv"), index=False)
    return video


def face(path: Path, frames: list[np.ndarray], rows: int | None = None, **options) -> Path:
    """A clip as `write` makes it, and landmarks of a face for so many rows beside it."""
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 32, (68, 2)) + rng.normal(size=(rows or len(frames), 68, 2))
    return lay_landmarks(write(path, frames, **options), points)


def packet_places(path: Path) -> list[tuple[int, int]]:
    """Where a clip's packets stand in the file: offset and size."""
    with av.open(str(path)) as clip:
        return [(packet.pos, packet.size) for packet in clip.demux(video=0) if packet.size]


def damage(path: Path, packets: range, share: float = 1) -> Path:
    """Overwrite the content of some packets, from their middle on where `share` is a half."""
    content = bytearray(path.read_bytes())
    for offset, size in (packet_places(path)[index] for index in packets):
        start = offset + round(size * (1 - share))
        content[start : offset + size] = b"\xff" * (offset + size - start)
    path.write_bytes(content)
    return path


def cut(path: Path, share: float) -> Path:
    """Keep only the start of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: round(len(content) * share)])
    return path


def _hum(output, stream, seconds):
    for start in range(0, round(seconds * 48000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
        frame.sample_rate, frame.pts = 48000, start
        output.mux(stream.encode(frame))
    output.mux(stream.encode())
