"""How much each action unit matters: permutation importance on validation recordings.

Breiman, "Random Forests", Machine Learning 45, 2001: the drop of the score when a feature's
values are shuffled. Here an action unit's frames are shuffled within each recording.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.utils.data import DataLoader

from affect import metrics
from affect.data.windows import Batch, WindowDataset, collate
from affect.training.module import AffectModule


def permutation_importance(
    module: AffectModule,
    dataset: WindowDataset,
    names: tuple[str, ...],
    *,
    repeats: int,
    seed: int,
    batch_size: int,
) -> Float64[Tensor, "F D"]:
    """Drop of the pooled CCC per action unit and dimension, averaged over repeats.

    Args:
        module: the trained network.
        dataset: validation recordings.
        names: action units; every form of one (raw, standardised) is shuffled alike.
        repeats: shuffles of each action unit, at least 1.
        seed: of the shuffles.
        batch_size: recordings a batch.
    """
    batches = list(DataLoader(dataset, batch_size=batch_size, collate_fn=collate))
    generator = torch.Generator().manual_seed(seed)
    base = _ccc(module, batches)
    drops = []
    for column in range(len(names)):
        shuffled = [
            _ccc(module, [_shuffled(b, column, len(names), generator) for b in batches])
            for _ in range(repeats)
        ]
        drops.append(base - torch.stack(shuffled).mean(dim=0))
    return torch.stack(drops)


def _shuffled(batch: Batch, column: int, units: int, generator: torch.Generator) -> Batch:
    """The batch with one action unit's real frames in another order, alike in all its forms."""
    features = batch.features.clone()
    for row, length in enumerate(batch.mask.sum(dim=1).tolist()):
        order = torch.randperm(length, generator=generator)
        features[row, :length, column::units] = batch.features[row, order, column::units]
    return Batch(features, batch.labels, batch.mask, batch.recording, batch.start)


def _ccc(module: AffectModule, batches: list[Batch]) -> Float64[Tensor, " D"]:
    module.eval()
    parts = []
    with torch.inference_mode():
        for batch in batches:
            prediction = module.predict_step(batch.to(module.device)).cpu()  # N S D
            parts.append(metrics.moments(prediction, *module.targets(batch)))
    return metrics.ccc(metrics.merge(torch.stack(parts)))
