"""Three sites with two people in each part that they have, and the same people in one cache."""

import dataclasses
from pathlib import Path

from affect import config, store
from affect.config import DataConfig, FederationConfig, SplitConfig
from affect.config import TrainerConfig as Trainer
from tests import builders

PEOPLE = {"east": "E1 E2 E3 E4", "north": "N1 N2 N5 N6", "west": "W1 W2 W5 W6"}
SPLIT = SplitConfig("listed", train=["?1", "?2"], val=["?3", "?4"], test=["?5", "?6"])
CPU = Trainer(accelerator="cpu", devices=1, progress=False)


def caches(folder: Path) -> dict[str, Path]:
    """Each site's cache, and all of them in `folder / "cache"`."""
    for site, people in PEOPLE.items():
        for subject in people.split():
            recording = builders.recording(subject)
            store.write(recording, folder / site)
            store.write(recording, folder / "cache")
    return {site: folder / site for site in PEOPLE}


def experiment(folder: Path, **federation) -> config.Experiment:
    """An experiment for which each site's part is a client, in a deployment and in process."""
    data = DataConfig(
        cache=str(folder / "cache"),
        standardise=["train", "subject"],
        window_frames=20,
        hop_frames=10,
        batch_size=4,
        split=SPLIT,
    )
    made = builders.experiment(folder, data=data, trainer=CPU)
    chosen = FederationConfig(**{"rounds": 2, "subjects_per_client": 2, **federation})
    return dataclasses.replace(made, federation=chosen)
