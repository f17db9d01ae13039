"""Small recordings whose labels follow from their action units, for tests that need any corpus."""

import dataclasses

import numpy as np

from affect import store
from affect.config import DataConfig, Experiment, ModelConfig, SplitConfig, TrackingConfig
from affect.config import TrainerConfig as Trainer
from affect.recording import Provenance, Recording

NAMES = ("AU01_r", "AU04_r", "AU12_r")


def recording(subject="P1", name="1", frames=60, corpus="toy", seed=0, lag=0, **changes):
    """A recording whose valence is AU12 - AU04 and whose arousal is AU01, `lag` frames ago."""
    rng = np.random.default_rng([seed, *subject.encode(), *name.encode()])
    smooth = np.cumsum(rng.normal(size=(frames, len(NAMES))), axis=0) / np.sqrt(frames)
    felt = smooth[np.maximum(np.arange(frames) - lag, 0)]
    valence = np.tanh(felt[:, 2] - felt[:, 1])
    built = Recording(
        corpus=corpus,
        subject=subject,
        name=name,
        rate_hz=5.0,
        time_s=np.arange(frames) / 5.0,
        intensity=(smooth + 0.1 * rng.normal(size=smooth.shape)).astype(np.float32),
        intensity_names=NAMES,
        confidence=np.ones(frames, np.float32),
        success=np.ones(frames, bool),
        annotations={
            "valence": valence.astype(np.float32),
            "arousal": np.tanh(felt[:, 0]).astype(np.float32),
        },
        provenance=Provenance("test", "1", f"{seed}/{subject}/{name}"),
    )
    return dataclasses.replace(built, **changes)


def cache(folder, subjects=6, **settings):
    """A cache of one recording a subject."""
    for index in range(subjects):
        store.write(recording(f"P{index}", **settings), folder)
    return folder


def experiment(folder, **sections):
    """A tiny experiment on a cache in `folder / "cache"`, its runs in `folder / "runs"`."""
    chosen = {
        "data": DataConfig(
            cache=str(folder / "cache"),
            window_frames=30,
            hop_frames=15,
            batch_size=4,
            split=SplitConfig(val_fraction=0.34, test_fraction=0.34),
        ),
        "model": ModelConfig(name="gru", hidden_size=8, layers=1),
        "trainer": Trainer(max_epochs=2, accelerator="cpu", devices=1, progress=False),
        "tracking": TrackingConfig(mode="disabled"),
        **sections,
    }
    return Experiment(name="toy", runs=str(folder / "runs"), **chosen)
