"""A finished run on videos: what the command writes, and Lightning's `predict`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import torch

from affect import store
from affect.data.naming import places_of
from affect.data.timeline import Place
from affect.errors import UserError
from affect.extraction.backends.choice import Options
from affect.extraction.backends.protocol import Backend
from affect.extraction.pipeline import Extracted, Noting, failing_alone
from affect.extraction.processor import settle
from affect.extraction.progress import Progress
from affect.extraction.video import SUFFIXES, find_files
from affect.files import require_writable
from affect.models.two_level import CORPUS, TwoLevel, backend_for
from affect.prediction import Prediction
from affect.recording import Recording
from affect.stopping import stopping
from affect.training.inference import TrainedLevelTwo, table_of, write_csv
from affect.training.run import Run


def shows_videos(source: Path) -> bool:
    """Whether a path means videos: a file, or a folder of videos and no recordings.

    Where nothing is there, its suffix tells what was meant.
    """
    if not source.is_dir():
        return source.is_file() or source.suffix.lower() in SUFFIXES
    if any(source.glob(f"*/*/*{store.SUFFIX}")):
        return False
    return any(path.suffix.lower() in SUFFIXES for path in source.rglob("*"))


def predict_videos(
    run: Run, source: Path, out: Path, *, fold: int | None, options: Options
) -> tuple[dict[str, int], list[Extracted]]:
    """Write the predictions of videos as `affect extract` and `predict_cache` would.

    One video's action units are held at a time, or those of one person's videos where features are
    standardised by subject; nothing but the CSV is written. A broken video does not stop the rest.

    Args:
        run: a finished run.
        source: a video, or a folder of them.
        out: the CSV, see `write_csv`.
        fold: which fold's network; needed where the run has several.
        options: of extraction, and the device of both levels.

    Returns:
        How many `recordings` and `frames` were predicted, and what became of each video.

    Raises:
        UserError: the run is not finished, no backend makes what it was trained on, there is no
            video, or the CSV cannot be written.
    """
    level_two = TrainedLevelTwo(run, fold, options.device)
    model = TwoLevel(backend_for(level_two.preparation.feature_names, options), level_two)
    files = places_of(find_files([source], model.backend.suffixes), source, CORPUS)
    if out.is_dir():
        raise UserError(f"{out} is a folder: give --out a file such as out.csv")
    require_writable(out.parent)
    settle()
    outcomes: list[Extracted] = []
    with stopping(f"stopped: {out} is not written"), Progress(files.values()) as progress:
        counts = write_csv(out, _predictions(model, files, outcomes, progress))
    return counts, outcomes


class TwoLevelModule(lightning.LightningModule):
    """A finished run as Lightning takes it: batches of videos' paths to tables.

        module = TwoLevelModule(open_run(Path("runs/toy/20250101-120000-abcd")))
        paths = DataLoader(["a.mp4", "b.mp4"], collate_fn=list)
        for tables in lightning.Trainer(logger=False).predict(module, paths):
            ...  # tables[0]: corpus, subject, recording, time_s, valence, arousal

    Both levels work on the device that Lightning chooses. Each video is taken as all that there is
    of its person.

    Args:
        run: a finished run.
        fold: which fold's network; needed where the run has several.
        options: of extraction; its device is not looked at.

    Raises:
        UserError: the run is not finished, or the fold is not there.
    """

    def __init__(self, run: Run, fold: int | None = None, options: Options | None = None) -> None:
        super().__init__()
        self._level_two = TrainedLevelTwo(run, fold, "cpu")
        self._options = options or Options()
        self._backends: dict[torch.device, Backend] = {}
        self.network = self._level_two.network

    def predict_step(self, batch: Sequence[str | Path], batch_idx: int = 0) -> list[pd.DataFrame]:
        """The predictions of a batch of videos, in their order: one table a face.

        Args:
            batch: paths of videos.
            batch_idx: not looked at.

        Returns:
            Tables with the columns of the CSV, see `write_csv`.

        Raises:
            UserError: a video cannot be predicted, as for `TwoLevel`, or the backend not be made.
        """
        model = TwoLevel(self._backend(), self._level_two)
        return [table_of(prediction) for path in batch for prediction in model(Path(path))]

    def _backend(self) -> Backend:
        """Level 1 on this module's device."""
        if self.device not in self._backends:
            options = replace(self._options, device=str(self.device))
            features = self._level_two.preparation.feature_names
            self._backends[self.device] = backend_for(features, options)
        return self._backends[self.device]


def _predictions(
    model: TwoLevel,
    files: Mapping[Place, Path],
    outcomes: list[Extracted],
    progress: Progress,
) -> Iterator[Prediction]:
    """Predictions of all files, group by group; `outcomes` grows by what became of each."""
    for group in _groups(files, model.level_two.preparation.by_subject):
        held: list[Recording] = []
        for place, path in group:
            done = Extracted(path)
            with failing_alone(done):
                held += model.recordings(path, place, Noting(done.notes, progress))
            outcomes.append(done)
            progress.finished(done)
        yield from model.level_two(held)


def _groups(files: Mapping[Place, Path], by_subject: bool) -> Iterator[list[tuple[Place, Path]]]:
    """The videos that must be seen together: one, or all of a subject; in the order of a cache."""

    def place_in_cache(item: tuple[Place, Path]) -> Path:
        return store.path_of(Path(), *item[0])

    def together(item: tuple[Place, Path]) -> Any:
        return item[0].subject if by_subject else item[0]

    for _, group in groupby(sorted(files.items(), key=place_in_cache), key=together):
        yield list(group)
