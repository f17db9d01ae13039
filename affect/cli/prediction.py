"""`validate`, `test` and `predict`: a finished run put to use."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from affect.cli.command import Command, Result, path_of
from affect.cli.output import complain, scores_of
from affect.cli.videos import add_reading, reading_of, tell_of
from affect.errors import UserError


def _configure_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path_of, help="a run's folder")
    parser.add_argument("--cache", type=path_of, help="where the recordings are now")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")


def _scorer(split: str) -> Callable[[argparse.Namespace], Result]:
    def score(options: argparse.Namespace) -> Result:
        from affect.training import run as runs
        from affect.training.inference import score_run

        run = runs.open_run(options.run)
        return scores_of(
            score_run(run, split, cache=options.cache, device=options.device), run.folder
        )

    return score


def _configure_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=path_of, help="a run's folder")
    parser.add_argument(
        "source",
        type=path_of,
        metavar="VIDEO_OR_CACHE",
        help="a video, a folder of videos, or a folder of recordings",
    )
    parser.add_argument("--out", type=path_of, required=True, help="CSV to write")
    parser.add_argument("--corpus", help="predict this corpus of a cache alone")
    parser.add_argument("--fold", type=int, help="which fold's network, where there are several")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    videos = parser.add_argument_group("of videos")
    videos.add_argument(
        "--backend",
        help="openface, geometry or openface-bin (default: what makes the features that the run "
        "was trained on)",
    )
    add_reading(videos)


def _predict(options: argparse.Namespace) -> Result:
    from affect.training import run as runs
    from affect.training.inference import adapts
    from affect.training.videos import shows_videos

    run = runs.open_run(options.run)
    if adapts(run) and run.experiment.federation.personalisation.local == "none":
        complain("the run adapted to each person before it was scored; this is its network before")
    if shows_videos(options.source):
        _refuse_flags(options, ["corpus"], f"a cache, {options.source} holds videos")
        return _predict_videos(run, options)
    of_videos = ["backend", "openface_home", "openface_bin", "timeout", "faces", "gpu_decoding"]
    _refuse_flags(options, of_videos, f"videos, {options.source} holds none")
    return _predict_cache(run, options)


def _refuse_flags(options: argparse.Namespace, names: Iterable[str], purpose: str) -> None:
    for name in names:
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is for {purpose}: leave it out")


def _predict_cache(run: Any, options: argparse.Namespace) -> Result:
    from affect.training.inference import predict_cache

    written, left_out = predict_cache(
        run,
        options.source,
        options.out,
        fold=options.fold,
        device=options.device,
        corpus=options.corpus or "",
    )
    if not written["recordings"]:
        others = f"; nor do {len(left_out) - 1} others fit" if len(left_out) > 1 else ""
        raise UserError(f"{left_out[0]}{others}")
    for line in left_out:
        complain(line)
    total = written["recordings"] + len(left_out)
    failed = f"{len(left_out)} of {total} recordings were left out" if left_out else ""
    return _predicted(options.out, {**written, "left_out": len(left_out)}, failed)


def _predict_videos(run: Any, options: argparse.Namespace) -> Result:
    from affect.extraction.backends.choice import Options
    from affect.training.videos import predict_videos

    extraction = Options(**reading_of(options))
    written, outcomes = predict_videos(
        run, options.source, options.out, fold=options.fold, options=extraction
    )
    tell_of(outcomes)
    errors = [outcome.error for outcome in outcomes if outcome.error]
    failed = f"{len(errors)} of {len(outcomes)} videos failed" if errors else ""
    if not written["recordings"]:
        raise UserError(f"{failed}: {options.out} is not written")
    counts = {**written, "videos": len(outcomes), "failed": len(errors)}
    return _predicted(options.out, counts, failed)


def _predicted(out: Path, counts: Mapping[str, int], failed: str = "") -> Result:
    text = f"{out}: {counts['frames']:,} frames of {counts['recordings']} recordings"
    return Result(text, {"out": str(out), **counts}, failed)


COMMANDS: Mapping[str, Command] = {
    "validate": Command("a run's validation scores again", _configure_score, _scorer("val")),
    "test": Command("a run's test scores again", _configure_score, _scorer("test")),
    "predict": Command("videos or recordings to valence and arousal", _configure_predict, _predict),
}
