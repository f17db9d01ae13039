"""What values an experiment may hold."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from affect.config.experiment import (
    DataConfig,
    Experiment,
    FederationConfig,
    ModelConfig,
    OptimizerConfig,
    PrivacyConfig,
    RayConfig,
    SchedulerConfig,
    SecureAggregationConfig,
    StrategyConfig,
    field_names,
)
from affect.errors import UserError

_WEEK_S = 7 * 24 * 3600


def validate(experiment: Experiment) -> None:
    """Refuse values that no run could use.

    Raises:
        UserError: naming the first key that is out of range.
    """
    for key, broken, wanted in _ranges(experiment):
        if broken:
            raise UserError(f"{key} must be {wanted}")


def _ranges(experiment: Experiment) -> Iterator[tuple[str, bool, str]]:
    """Triples of key, whether it is out of range, and what it must be."""
    odd_name = not experiment.name or "/" in experiment.name or experiment.name.startswith(".")
    yield "name", odd_name, "a folder's name"
    yield "seed", not 0 <= experiment.seed < 2**32, "from 0 to 4294967295"
    yield "runs", not experiment.runs, "a folder's path, not empty"
    yield from _data_ranges(experiment.data)
    yield from _training_ranges(experiment)
    yield from _federation_ranges(experiment.federation)


def _data_ranges(data: DataConfig) -> Iterator[tuple[str, bool, str]]:
    split = data.split
    yield "data.cache", not data.cache, "a folder's path, not empty"
    yield "data.dimensions", not data.dimensions, "at least one dimension"
    twice = len(set(data.dimensions)) < len(data.dimensions)
    yield "data.dimensions", twice, "different from one another"
    yield "data.standardise", not data.standardise, "at least one of none, subject, train, centred"
    yield "data.batch_size", data.batch_size < 1, "at least 1"
    yield "data.eval_batch_size", data.eval_batch_size < 1, "at least 1"
    yield "data.window_frames", (data.window_frames or 2) < 2, "at least 2, or null"  # noqa: PLR2004
    hop, window = data.hop_frames, data.window_frames
    skips = hop is not None and not 1 <= hop <= (window or hop)
    yield "data.hop_frames", skips, "at least 1 and at most data.window_frames, or null"
    yield "data.workers", data.workers < 0, "0 or more"
    yield "data.memory_mb", data.memory_mb < 1, "at least 1"
    pooled = data.target == "window_mean"
    yield "data.window_frames", pooled and not data.window_frames, "given for target window_mean"
    delays = data.delay_s.values() if isinstance(data.delay_s, dict) else [data.delay_s]
    refused = any(isinstance(delay, float | int) and not 0 <= delay < math.inf for delay in delays)
    yield "data.delay_s", refused, "0 or more seconds"
    if isinstance(data.delay_s, dict):
        yield "data.delay_s", set(data.delay_s) != set(data.dimensions), "given for each dimension"
    yield "data.split.file", split.kind == "file" and not split.file, "given for kind file"
    yield "data.split.folds", split.folds < 2, "at least 2"  # noqa: PLR2004
    yield "data.split.val_fraction", not 0 < split.val_fraction < 1, "between 0 and 1"
    yield "data.split.test_fraction", not 0 < split.test_fraction < 1, "between 0 and 1"
    refused = not 0 <= split.calibration_fraction < 1
    yield "data.split.calibration_fraction", refused, "at least 0 and below 1"


def _training_ranges(experiment: Experiment) -> Iterator[tuple[str, bool, str]]:
    model, trainer = experiment.model, experiment.trainer
    yield "model.hidden_size", model.hidden_size < 1, "at least 1"
    yield "model.layers", model.layers < 1, "at least 1"
    yield "model.dropout", not 0 <= model.dropout < 1, "at least 0 and below 1"
    shared = set(model.options) & set(field_names(ModelConfig))
    yield "model.options", bool(shared), f"without {', '.join(sorted(shared))}: a key of model"
    refused = not 0 <= model.input_dropout < 1
    yield "model.input_dropout", refused, "at least 0 and below 1"
    yield "loss.mix", not 0 <= experiment.loss.mix <= 1, "between 0 and 1"
    yield from _optimizer_ranges("optimizer", experiment.optimizer)
    yield from _scheduler_ranges("scheduler", experiment.scheduler)
    yield "trainer.max_epochs", trainer.max_epochs < 1, "at least 1"
    refused = trainer.patience is not None and trainer.patience < 1
    yield "trainer.patience", refused, "at least 1, or null"
    yield "trainer.accumulate_grad_batches", trainer.accumulate_grad_batches < 1, "at least 1"
    yield "trainer.threads", trainer.threads < 1, "at least 1"
    clip = trainer.gradient_clip_val
    yield "trainer.gradient_clip_val", clip is not None and not clip > 0, "above 0, or null"
    yield "evaluation.importance_repeats", experiment.evaluation.importance_repeats < 0, "0 or more"


def _optimizer_ranges(key: str, optimizer: OptimizerConfig) -> Iterator[tuple[str, bool, str]]:
    yield f"{key}.lr", not 0 < optimizer.lr < math.inf, "above 0 and finite"
    refused = not 0 <= optimizer.weight_decay < math.inf
    yield f"{key}.weight_decay", refused, "0 or more and finite"


def _scheduler_ranges(key: str, scheduler: SchedulerConfig) -> Iterator[tuple[str, bool, str]]:
    yield f"{key}.step_epochs", scheduler.step_epochs < 1, "at least 1"
    yield f"{key}.gamma", not 0 < scheduler.gamma <= 1, "above 0 and at most 1"
    yield f"{key}.warmup", not 0 <= scheduler.warmup < 1, "at least 0 and below 1"


def _federation_ranges(federation: FederationConfig) -> Iterator[tuple[str, bool, str]]:
    counts = {"rounds": 1, "local_epochs": 1, "workers": 1, "evaluate_every": 1}
    counts |= {"local_steps": 1, "clients_per_round": 1, "subjects_per_client": 1}
    counts |= {"cohort_clients": 1}
    for name, least in counts.items():
        value = getattr(federation, name)
        yield f"federation.{name}", value is not None and value < least, f"at least {least}"
    fraction = federation.client_fraction
    yield "federation.client_fraction", not 0 < fraction <= 1, "above 0 and at most 1"
    timeout_s = federation.timeout_s
    refused = timeout_s is not None and not 0 < timeout_s <= _WEEK_S
    yield "federation.timeout_s", refused, f"above 0 and at most {_WEEK_S} (a week), or null"
    refused = not 0 <= federation.failure_fraction < 1
    yield "federation.failure_fraction", refused, "at least 0 and below 1"
    seed = federation.seed
    yield "federation.seed", seed is not None and not 0 <= seed < 2**32, "from 0 to 4294967295"
    if federation.optimizer is not None:
        yield from _optimizer_ranges("federation.optimizer", federation.optimizer)
    if federation.scheduler is not None:
        yield from _scheduler_ranges("federation.scheduler", federation.scheduler)
    yield from _ray_ranges(federation.ray)
    yield from _strategy_ranges(federation.strategy)
    yield from _privacy_ranges(federation.privacy)
    lr = federation.personalisation.lr
    refused = lr is not None and not 0 < lr < math.inf
    yield "federation.personalisation.lr", refused, "above 0 and finite, or null"
    yield "federation.personalisation.steps", federation.personalisation.steps < 0, "0 or more"


def _ray_ranges(ray: RayConfig) -> Iterator[tuple[str, bool, str]]:
    key, gpus, cohorts = "federation.ray", ray.num_gpus, ray.cohorts
    refused = ray.address is not None and not re.fullmatch(r"auto|[\w.-]+:\d+", ray.address)
    yield f"{key}.address", refused, "host:port, auto, or null"
    yield f"{key}.num_gpus", gpus is not None and not 0 <= gpus <= 1, "from 0 to 1, or null"
    yield f"{key}.cohorts", cohorts is not None and cohorts < 1, "at least 1, or null"


def _strategy_ranges(strategy: StrategyConfig) -> Iterator[tuple[str, bool, str]]:
    key = "federation.strategy"
    yield f"{key}.server_lr", not 0 < strategy.server_lr <= 1000, "above 0 and at most 1000"  # noqa: PLR2004
    yield f"{key}.momentum", not 0 <= strategy.momentum < 1, "at least 0 and below 1"
    yield f"{key}.betas", not all(0 <= beta < 1 for beta in strategy.betas), "at least 0, below 1"
    yield f"{key}.tau", not 0 < strategy.tau < math.inf, "above 0 and finite"
    yield f"{key}.mu", not 0 <= strategy.mu < math.inf, "0 or more and finite"
    yield f"{key}.trim", not 0 <= strategy.trim < 0.5, "at least 0 and below 0.5"  # noqa: PLR2004
    yield f"{key}.malicious", strategy.malicious < 0, "0 or more"


def _privacy_ranges(privacy: PrivacyConfig) -> Iterator[tuple[str, bool, str]]:
    key = "federation.privacy"
    for name, least, most in (
        ("noise_multiplier", 1e-3, 1e3),
        ("clipping_norm", 1e-6, 1e6),
        ("clipping_lr", 1e-6, 10),
    ):
        refused = not least <= getattr(privacy, name) <= most
        yield f"{key}.{name}", refused, f"from {least:g} to {most:g}"
    epsilon = privacy.epsilon
    yield f"{key}.epsilon", epsilon is not None and not epsilon > 0, "above 0, or null"
    adaptive = privacy.clipping == "adaptive" and privacy.mode == "local"
    yield f"{key}.clipping", adaptive, "fixed in mode local"
    yield f"{key}.quantile", not 0 < privacy.quantile < 1, "between 0 and 1"
    delta, limit = privacy.delta, privacy.max_epsilon
    limited = epsilon is not None or limit is not None
    wanted = "central or local, where epsilon or max_epsilon is given"
    yield f"{key}.mode", limited and privacy.mode == "none", wanted
    yield f"{key}.delta", delta is not None and not 0 < delta < 1, "between 0 and 1, or null"
    yield f"{key}.max_epsilon", limit is not None and not limit > 0, "above 0, or null"
    yield from _secure_ranges(f"{key}.secure_aggregation", privacy.secure_aggregation)


def _secure_ranges(key: str, secure: SecureAggregationConfig) -> Iterator[tuple[str, bool, str]]:
    shares = secure.shares
    refused = shares is not None and (shares < 3 or shares % 2 == 0)  # noqa: PLR2004
    yield f"{key}.shares", refused, "odd and at least 3, or null"
    yield f"{key}.threshold", not 0.5 <= secure.threshold < 1, "at least 0.5 and below 1"  # noqa: PLR2004
    yield f"{key}.range", not 0 < secure.range < math.inf, "above 0"
    yield f"{key}.bits", not 8 <= secure.bits <= 32, "from 8 to 32"  # noqa: PLR2004
