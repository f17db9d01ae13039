"""Level 1: frames a second by step and as a whole, memory by length, agreement with OpenFace."""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from measuring import Outcome, apart, peak_memory_mib, seconds_of, timed

if TYPE_CHECKING:
    import pandas as pd

    from affect.extraction.backends.choice import Options

GOAL_FRAMES_PER_S = 200
GOAL_MIB = 1536
BATCH_FRAMES = 32
LENGTHS = (2, 6)
"""How often the clip is repeated in the shorter and the longer videos."""
MOST_ERROR, LEAST_AGREEMENT = 0.001, 0.999
"""From full-precision landmarks: of intensities, 0 to 5, and of presences."""


@dataclass(frozen=True)
class Given:
    """What a benchmark of level 1 needs and the project does not hold.

    Attributes:
        video: a clip of one face; best of 640 x 360.
        reference: OpenFace's CSV of it, with landmarks at full precision.
        openface: OpenFace's folder.
    """

    video: Path
    reference: Path
    openface: Path


def measure_steps(_folder: Path, quick: bool, given: Given) -> Outcome:
    """Frames a second of each step on one core, beside pyfhog where it is installed."""
    repeats = 1 if quick else 5
    samples = {
        name: [BATCH_FRAMES / s for s in seconds_of(step, repeats)]
        for name, step in _steps(given).items()
    }
    median = {name: round(statistics.median(values), 1) for name, values in samples.items()}
    return Outcome(
        goal="frames a second of each step on one core",
        met=True,
        summary=", ".join(f"{name} {value:.0f}" for name, value in median.items()),
        repeats=repeats,
        settings={"video": given.video.name, "batch_frames": BATCH_FRAMES},
        median=median,
        samples=samples,
    )


def measure_whole(folder: Path, quick: bool, given: Given) -> Outcome:
    """Frames a second from files to recordings, a process a core; what starting costs is left out.

    A file a process, short ones and long ones; the difference in frames over that in seconds.
    """
    cores = len(os.sched_getaffinity(0))
    lengths, repeats = ((1, 2), 1) if quick else (LENGTHS, 3)
    files = {
        length: [
            looped(given.video, folder / str(length) / f"{core}.mkv", length)
            for core in range(cores)
        ]
        for length in lengths
    }
    samples: dict[str, list[float]] = {"frames_per_s": [], "short_s": [], "long_s": []}
    frames = [0, 0]
    for _ in range(repeats):
        seconds = []
        for index, length in enumerate(lengths):
            frames[index], taken_s = _extracted(
                files[length], folder / "cache", _options(given), jobs=cores
            )
            seconds.append(taken_s)
        samples["frames_per_s"].append((frames[1] - frames[0]) / (seconds[1] - seconds[0]))
        samples["short_s"].append(seconds[0])
        samples["long_s"].append(seconds[1])
    samples |= _peer(given, repeats)
    median = {name: round(statistics.median(values), 2) for name, values in samples.items()}
    itself = median.get("openface_frames_per_s", "not installed")
    return Outcome(
        goal=f"at least {GOAL_FRAMES_PER_S} frames a second on two cores, pixels to action units",
        met=median["frames_per_s"] >= GOAL_FRAMES_PER_S,
        summary=f"{median['frames_per_s']:.0f} frames a second in {cores} processes; "
        f"OpenFace's own program: {itself}",
        repeats=repeats,
        settings={"video": given.video.name, "processes": cores, "frames": frames},
        median=median,
        samples=samples,
    )


def measure_length(folder: Path, quick: bool, given: Given) -> Outcome:
    """Peak memory of the extraction of a short and a long video."""
    lengths = (1, 2) if quick else (8, 24)
    files = {n: looped(given.video, folder / f"{n}.mkv", n) for n in lengths}
    runs = {
        n: apart("extracting:peak_of", file, folder / "cache", _options(given))
        for n, file in files.items()
    }
    frames, peaks = zip(*runs.values(), strict=True)
    bytes_a_frame = (peaks[1] - peaks[0]) * 2**20 / (frames[1] - frames[0])
    two_hours_mib = peaks[1] + bytes_a_frame * (2 * 3600 * 25 - frames[1]) / 2**20
    return Outcome(
        goal=f"two hours of video in less than {GOAL_MIB} MiB",
        met=max(two_hours_mib, *peaks) < GOAL_MIB,
        summary=f"{peaks[0]:.0f} MiB for {frames[0]} frames, {peaks[1]:.0f} MiB for {frames[1]}; "
        f"so two hours at 25 frames/s take {two_hours_mib:.0f} MiB",
        repeats=1,
        settings={"video": given.video.name, "frames": frames},
        median={"short_mib": peaks[0], "long_mib": peaks[1], "two_hours_mib": two_hours_mib},
        samples={str(n): run for n, run in runs.items()},
    )


def measure_exactness(folder: Path, _quick: bool, given: Given) -> Outcome:
    """Action units from OpenFace's own landmarks, against OpenFace's own action units."""
    import pandas as pd

    table = pd.read_csv(given.reference, skipinitialspace=True)
    points = [name for name in table if name[:2] in {"x_", "y_"}]
    rounded = table.assign(**{name: table[name].round(1) for name in points})
    samples = {
        name: _agreement(folder / name, given, landmarks)
        for name, landmarks in (("full", table), ("one_decimal", rounded))
    }
    error, agreement = samples["full"]
    return Outcome(
        goal=f"from full-precision landmarks, intensities within {MOST_ERROR} on average and "
        f"{LEAST_AGREEMENT:.1%} of presences equal",
        met=error <= MOST_ERROR and agreement >= LEAST_AGREEMENT,
        summary="; ".join(
            f"{name}: {error:.4f}, {agreement:.2%}" for name, (error, agreement) in samples.items()
        ),
        repeats=1,
        settings={"video": given.video.name, "frames": len(table)},
        median={
            f"{name}_{what}": value
            for name, pair in samples.items()
            for what, value in zip(("mean_error", "agreement"), pair, strict=True)
        },
        samples=samples,
    )


def _agreement(folder: Path, given: Given, landmarks: pd.DataFrame) -> tuple[float, float]:
    """The mean error of intensities, and the share of equal presences, over frames with a face."""
    import numpy as np

    from affect.data.timeline import Place
    from affect.extraction.backends import choice
    from affect.extraction.backends.protocol import Listener

    folder.mkdir()
    video = folder / given.video.name
    video.symlink_to(given.video.resolve())
    landmarks.to_csv(video.with_suffix(".csv"), index=False)
    backend = choice.make(_options(given))
    (recording,) = backend.recordings(
        video, Place("bench", "a", "a"), backend.provenance(video), Listener()
    )
    seen = recording.success
    intensity = landmarks.loc[seen, list(recording.intensity_names)].to_numpy()
    presence = landmarks.loc[seen, list(recording.presence_names)].to_numpy()
    return (
        float(abs(recording.intensity[seen] - intensity).mean()),
        float((np.asarray(recording.presence)[seen] == presence).mean()),
    )


def peak_of(video: Path, cache: Path, options: Options) -> tuple[int, float]:
    """Frames of a video, and this process's peak of memory after its extraction, in MiB."""
    frames, _ = _extracted([video], cache, options, jobs=1)
    return frames, peak_memory_mib()


def looped(video: Path, path: Path, rounds: int) -> Path:
    """A video's packets, several rounds of them, not encoded again."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(video)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        times = [(packet.pts or 0, packet.dts or 0, packet.duration or 0) for packet in packets]
        time_base = stream.time_base or Fraction(1)
        whole = sum(duration for _, _, duration in times)
        for round_ in range(rounds):
            for packet, (pts, dts, duration) in zip(packets, times, strict=True):
                packet.stream, packet.time_base = copy, time_base
                packet.pts, packet.dts = pts + round_ * whole, dts + round_ * whole
                packet.duration = duration
                target.mux(packet)
    return path


def _peer(given: Given, repeats: int) -> dict[str, list[float]]:
    """Frames a second of OpenFace's own program, where it is installed."""
    from affect.errors import UserError
    from affect.extraction.openface import program
    from affect.extraction.ticks import ticks_of

    try:
        itself = program.find(None, given.openface)
    except UserError:
        return {}
    frames = ticks_of(given.video).frames

    def work() -> None:
        with TemporaryDirectory() as folder:
            program.run(itself, given.video, Path(folder), program.patience_s(frames))

    return {"openface_frames_per_s": [frames / s for s in seconds_of(work, repeats)]}


def _steps(given: Given) -> dict[str, Callable[[], object]]:
    """What each step does with one batch of the clip."""
    import torch

    from affect.extraction.faces.detector import load_detector
    from affect.extraction.faces.landmarks import load_landmarks
    from affect.extraction.faces.tracker import FaceTracker
    from affect.extraction.openface import fhog, weights
    from affect.extraction.openface.stage import Stage
    from affect.extraction.processor import settle
    from affect.extraction.video import Video

    settle()
    torch.set_grad_enabled(False)
    stage = Stage(weights.load(given.openface))

    def decode() -> Any:
        with Video(given.video, batch_frames=BATCH_FRAMES, threads=1) as opened:
            return next(iter(opened))

    batch = decode()
    detector, network = load_detector(), load_landmarks()
    landmarks = FaceTracker(detector, network, "largest").track(batch)[0].landmarks
    pose = stage.fit(landmarks)
    faces = stage.align(batch.pixels, landmarks, pose.translation)
    descriptors = stage(batch.pixels, landmarks)
    steps: dict[str, Callable[[], object]] = {
        "decoding": decode,
        "tracking": lambda: FaceTracker(detector, network, "largest").track(batch),
        "shape fit": lambda: stage.fit(landmarks),
        "alignment": lambda: stage.align(batch.pixels, landmarks, pose.translation),
        "FHOG": lambda: stage.fhog.batched(faces),
        "regressors": lambda: stage.scores(descriptors),
        "action units": lambda: stage(batch.pixels, landmarks),
    }
    if fhog.INSTALLED:
        steps["FHOG by pyfhog"] = lambda: fhog.compiled(faces)
    return steps


def _extracted(files: list[Path], cache: Path, options: Options, jobs: int) -> tuple[int, float]:
    """Frames of some videos, and the seconds that their extraction took."""
    from affect.data.timeline import Place
    from affect.extraction import pipeline
    from affect.extraction.backends import choice
    from affect.extraction.backends.protocol import Listener
    from affect.extraction.workers import Task, extract_in_processes

    videos = {Place("bench", path.stem, path.stem): path for path in files}
    outcomes: list[pipeline.Extracted] = []

    def work() -> None:
        if jobs == 1:
            outcomes.extend(pipeline.extract(videos, cache, choice.make(options)))
        else:
            task = Task(cache, options, force=False)
            outcomes.extend(extract_in_processes(videos, task, jobs, Listener()))

    seconds = timed(work)
    shutil.rmtree(cache)
    return sum(outcome.frames for outcome in outcomes), seconds


def _options(given: Given) -> Options:
    from affect.extraction.backends.choice import Options

    return Options("openface", "cpu", given.openface)
