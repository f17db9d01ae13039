"""The typed experiment: its sections and their keys; imports no torch.

Every field below is a key of the experiment file and a flag: `model.hidden_size` in the file is
`--model.hidden_size` on the command line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

GoldStandard = Literal["avec", "mean"]
Standardisation = Literal["none", "subject", "train", "centred"]


@dataclass
class SourceConfig:
    """Where the corpus comes from, if `fit` shall import it into the cache by itself.

    Attributes:
        format: `recola`, `avec`, `openface-csv`, `table` or `synthetic`; empty for a cache that
            is there already.
        path: file or folder; `${NAME}` is an environment variable.
        options: the importer's own options.
    """

    format: str = ""
    path: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class SplitConfig:
    """Which subjects train, validate and test; always disjoint by subject.

    Attributes:
        kind: `ratio`, `kfold`, `leave_one_subject_out`, `listed` (by patterns) or `file`.
        folds: number of folds of `kfold`.
        fold: run this fold alone; null for all.
        val_fraction: share of subjects for validation; in folds, of the training subjects.
        test_fraction: share of subjects for the test of `ratio`.
        train: patterns of subjects, such as `train_*`, for `listed`.
        val: likewise.
        test: likewise.
        file: YAML for `file`: `folds`, a list of lists of test subjects.
        seed: of the split alone; the same seed gives the same split on every machine.
        calibration_fraction: share of each validation and test subject's labelled frames (windows
            of `window_mean`), the first ones, that a personalised run adapts to and that no run
            is scored on; 0 for none.
    """

    kind: Literal["ratio", "kfold", "leave_one_subject_out", "listed", "file"] = "ratio"
    folds: int = 5
    fold: int | None = None
    val_fraction: float = 0.2
    test_fraction: float = 0.2
    train: list[str] = field(default_factory=list)
    val: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    file: str = ""
    seed: int = 0
    calibration_fraction: float = 0.0


@dataclass
class DataConfig:
    """From recordings to batches.

    Attributes:
        cache: folder of recordings; `${NAME}` is an environment variable.
        source: what to import into the cache first.
        corpus: use this corpus of the cache alone; empty for all.
        features: names or patterns of action units, such as `AU*_r`.
        dimensions: what is predicted.
        gold_standard: from raters to one trace: `avec` or `mean`.
        standardise: forms of the features, side by side: `none`; by the moments of the `subject`
            or of the `train` subjects; or `centred`, without the recording's own median and
            divided by the deviation that is left in the training subjects.
        delay_s: annotation delay in seconds, for all dimensions or a mapping of each; `auto`
            estimates it on the training subjects.
        window_frames: length of a training window; null for whole recordings.
        hop_frames: from one window's start to the next; null for `window_frames`.
        target: `frame`, or `window_mean` for one prediction a window (the paper's protocol).
        batch_size: windows a batch.
        eval_batch_size: recordings (or windows of `window_mean`) a batch in evaluation.
        workers: processes that load data; 0 loads in the main process.
        memory_mb: recordings that each worker keeps in memory, in MiB.
        split: which subjects train, validate and test.
    """

    cache: str = "cache"
    source: SourceConfig = field(default_factory=SourceConfig)
    corpus: str = ""
    features: list[str] = field(default_factory=lambda: ["*"])
    dimensions: list[str] = field(default_factory=lambda: ["valence", "arousal"])
    gold_standard: GoldStandard = "avec"
    standardise: list[Standardisation] = field(default_factory=lambda: ["subject"])
    delay_s: float | Literal["auto"] | dict[str, float] = 0.0
    window_frames: int | None = None
    hop_frames: int | None = None
    target: Literal["frame", "window_mean"] = "frame"
    batch_size: int = 16
    eval_batch_size: int = 8
    workers: int = 0
    memory_mb: int = 2048
    split: SplitConfig = field(default_factory=SplitConfig)


@dataclass
class ModelConfig:
    """The network.

    Attributes:
        name: `rnn`, `lstm`, `gru`, `birnn`, `bilstm`, `bigru`, `conv_bilstm`, `conv_bigru`, `tcn`
            or `attention`.
        hidden_size: width.
        layers: depth.
        dropout: between layers and before the head, 0 to 1.
        input_dropout: of the features, 0 to 1.
        options: what this network alone knows, such as `kernel_size`.
    """

    name: str = "bilstm"
    hidden_size: int = 64
    layers: int = 2
    dropout: float = 0.0
    input_dropout: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class LossConfig:
    """What training minimises.

    Attributes:
        name: `ccc` for 1 - CCC, `mse`, or `ccc_mse` for their mix.
        per: the CCC of the pooled batch, or the mean over its sequences.
        mix: share of 1 - CCC in `ccc_mse`, 0 to 1.
    """

    name: Literal["ccc", "mse", "ccc_mse"] = "ccc"
    per: Literal["batch", "sequence"] = "batch"
    mix: float = 0.5


@dataclass
class OptimizerConfig:
    """The optimiser.

    Attributes:
        name: `adam`, `adamw`, `nadam`, `radam`, `rmsprop` or `sgd`.
        lr: learning rate (the highest, under a schedule).
        weight_decay: as the optimiser defines it.
        options: its other arguments, such as `momentum`.
    """

    name: Literal["adam", "adamw", "nadam", "radam", "rmsprop", "sgd"] = "adamw"
    lr: float = 3e-3
    weight_decay: float = 0.01
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class SchedulerConfig:
    """The learning rate over time.

    Attributes:
        name: `constant`, `cosine` (to zero at the last step), `one_cycle`, `step` (per epoch) or
            `plateau` (on the validation CCC, per epoch).
        warmup: share of all steps in which `cosine` rises linearly, or `one_cycle` rises.
        step_epochs: epochs between two drops of `step`, or patience of `plateau`.
        gamma: factor of a drop.
    """

    name: Literal["constant", "cosine", "one_cycle", "step", "plateau"] = "constant"
    warmup: float = 0.1
    step_epochs: int = 10
    gamma: float = 0.1


@dataclass
class TrainerConfig:
    """Lightning's trainer.

    Attributes:
        max_epochs: passes over the training windows.
        patience: stop after so many validations, of which each epoch ends with one, without a
            better CCC; null for never.
        keep: weights that are evaluated: of the `best` validation CCC, or the `last`.
        gradient_clip_val: largest gradient norm; null for no limit.
        accumulate_grad_batches: batches an optimiser step.
        precision: `32-true`, `bf16-mixed` or `16-mixed`.
        accelerator: `auto`, `cpu` or `gpu`.
        devices: number of devices, or `auto`.
        num_nodes: number of machines.
        strategy: `auto`, `ddp` and others of Lightning.
        deterministic: refuse operations whose result can vary.
        threads: of one process on the CPU; more pay for wide networks alone and change last bits.
        progress: show a progress bar on standard error.
    """

    max_epochs: int = 40
    patience: int | None = None
    keep: Literal["best", "last"] = "best"
    gradient_clip_val: float | None = 1.0
    accumulate_grad_batches: int = 1
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    deterministic: bool = True
    threads: int = 1
    progress: bool = True


@dataclass
class EvaluationConfig:
    """From the network's output to scores.

    Attributes:
        postprocess: steps of AVEC's post-processing, fitted on validation subjects and kept only
            where they raise their CCC: `median`, `bias`, `scale`.
        importance_repeats: permutations of each action unit on validation; 0 for none.
        test: score the test subjects; false leaves them to `affect test`, as a sweep's trials do.
    """

    postprocess: list[Literal["median", "bias", "scale"]] = field(default_factory=list)
    importance_repeats: int = 0
    test: bool = True


@dataclass
class TrackingConfig:
    """Weights & Biases; `metrics.csv` is written in every mode.

    Attributes:
        mode: `auto` is online with a key and offline without.
        project: W&B project.
        entity: W&B user or team; empty for the default.
        group: runs that belong together; empty for the experiment's name.
        tags: of the run.
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "affect"
    entity: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)


@dataclass
class StrategyConfig:
    """How the server makes one model of the clients' models.

    Attributes:
        name: `fedavg`, `fedavgm`, `fedprox`, `fedadam`, `fedyogi`, `scaffold`, `fedmedian`,
            `trimmed_mean` or `krum`.
        weighting: of the clients in a mean: by their `frames`, or `uniform`.
        server_lr: step along the mean update; 1 takes the clients' mean itself.
        momentum: of `fedavgm`, 0 to 1.
        betas: decay of both moments of `fedadam` and `fedyogi`.
        tau: keeps their step finite where an update is small.
        mu: weight of the proximal term of `fedprox`.
        trim: share of the clients that `trimmed_mean` leaves out at either end, below .5.
        malicious: clients that `krum` must withstand.
    """

    name: Literal[
        "fedavg",
        "fedavgm",
        "fedprox",
        "fedadam",
        "fedyogi",
        "scaffold",
        "fedmedian",
        "trimmed_mean",
        "krum",
    ] = "fedavg"
    weighting: Literal["frames", "uniform"] = "frames"
    server_lr: float = 1.0
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.99)
    tau: float = 1e-3
    mu: float = 0.01
    trim: float = 0.1
    malicious: int = 0


@dataclass
class SecureAggregationConfig:
    """Secure aggregation: the server learns what the clients' updates add up to, and no single one.

    Attributes:
        enabled: whether updates are masked.
        shares: pieces of a client's secrets, one for itself and each neighbour; odd, or null for
            one for every client of the round.
        threshold: more than this share of the pieces, and never fewer than three, give a secret
            back; .5 or more.
        range: largest change of a parameter in a round; a client beyond it fails.
        bits: of a change in that range; the step is `range` / 2 ** (`bits` - 1).
    """

    enabled: bool = False
    shares: int | None = None
    threshold: float = 0.5
    range: float = 8.0
    bits: int = 24


@dataclass
class PrivacyConfig:
    """Differential privacy of clients; see the README for what it protects.

    Attributes:
        mode: `none`; `central`, where the server clips each update and adds noise to their mean;
            or `local`, where each client adds noise to its own.
        noise_multiplier: standard deviation of the noise as a multiple of the clipping norm.
        epsilon: choose the `noise_multiplier` with which all rounds together spend so much; null
            for the one that is given.
        clipping_norm: largest L2 norm of a client's update.
        clipping: `fixed`, or `adaptive` towards `quantile` (of `central` alone).
        quantile: share of the updates that an adaptive norm leaves as they are.
        clipping_lr: how fast an adaptive norm follows.
        delta: of (epsilon, delta); null for 1 / number of training clients ** 1.1.
        max_epsilon: end before a round that would spend more; null for no limit.
        secure_aggregation: hides each client's update from the server, in every mode.
    """

    mode: Literal["none", "central", "local"] = "none"
    noise_multiplier: float = 1.0
    epsilon: float | None = None
    clipping_norm: float = 1.0
    clipping: Literal["fixed", "adaptive"] = "fixed"
    quantile: float = 0.5
    clipping_lr: float = 0.2
    delta: float | None = None
    max_epsilon: float | None = None
    secure_aggregation: SecureAggregationConfig = field(default_factory=SecureAggregationConfig)


@dataclass
class PersonalisationConfig:
    """What of a network is a client's own; it takes `data.split.calibration_fraction`.

    Attributes:
        local: parameters that never leave a client: `none`, or those of the `head` (FedPer).
        steps: optimiser steps on its calibration part with which a client of validation or test
            adapts the network that it is sent, before it is scored; 0 for none.
        tune: what they adapt: `all` of the network, or its `head` alone.
        lr: their learning rate; null for that of the clients' optimiser.
    """

    local: Literal["none", "head"] = "none"
    steps: int = 0
    tune: Literal["all", "head"] = "all"
    lr: float | None = None


@dataclass
class RayConfig:
    """Where clients run under `federation.engine: ray`.

    Attributes:
        address: `host:port` of a Ray cluster, `auto` for the one that this machine is in; null to
            start Ray on this machine for the run.
        num_gpus: of each worker, 0 to 1, a part of one being shared; null divides all among them.
        cohorts: into how many messages the clients of a round are put together, each for one
            worker, such as `workers`; null for a message a client.
    """

    address: str | None = None
    num_gpus: float | None = None
    cohorts: int | None = None


@dataclass
class FederationConfig:
    """The federated run; `affect federate` alone reads it.

    Attributes:
        rounds: exchanges between server and clients.
        local_epochs: passes of a client over its windows in a round.
        local_steps: optimiser steps of a client in a round, instead of passes; null for passes.
        clients_per_round: training clients in a round; null for `client_fraction` of them.
        client_fraction: share of the training clients in a round, above 0 to 1.
        subjects_per_client: people at one place; null for all of them at one.
        strategy: how the server makes one model of the clients' models.
        optimizer: of the clients; null for the experiment's.
        scheduler: of the clients, over all rounds; null for the experiment's.
        privacy: differential privacy of clients.
        personalisation: what of a network is a client's own.
        engine: what runs the clients: `inprocess`, on this machine, or `ray`.
        ray: what the engine `ray` takes.
        workers: processes that run clients at the same time; 1 runs them in this one, unless
            `timeout_s` is given.
        cohort_clients: clients that a worker trains together, as one batched computation, which
            is meant for a GPU; null for one after another.
        timeout_s: what a client gets for a message; null for ever.
        failure_fraction: share of a round's clients that may fail without ending the run.
        evaluate_every: rounds between two validations; the last round is always validated, which
            one it turns out to be.
        seed: of the choice of clients and of the server's noise; null for the experiment's seed.
    """

    rounds: int = 40
    local_epochs: int = 1
    local_steps: int | None = None
    clients_per_round: int | None = None
    client_fraction: float = 1.0
    subjects_per_client: int | None = 1
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    optimizer: OptimizerConfig | None = None
    scheduler: SchedulerConfig | None = None
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    personalisation: PersonalisationConfig = field(default_factory=PersonalisationConfig)
    engine: Literal["inprocess", "ray"] = "inprocess"
    ray: RayConfig = field(default_factory=RayConfig)
    workers: int = 1
    cohort_clients: int | None = None
    timeout_s: float | None = None
    failure_fraction: float = 0.0
    evaluate_every: int = 1
    seed: int | None = None


@dataclass
class Experiment:
    """Everything that defines a run.

    Attributes:
        name: the experiment's folder below `runs`.
        seed: of weights, batches and dropout.
        runs: folder of all runs.
        data: from recordings to batches.
        model: the network.
        loss: what training minimises.
        optimizer: the optimiser.
        scheduler: the learning rate over time.
        trainer: Lightning's trainer.
        evaluation: from the network's output to scores.
        tracking: Weights & Biases.
        federation: what `affect federate` adds.
    """

    name: str = "experiment"
    seed: int = 0
    runs: str = "runs"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)


def keys(kind: type = Experiment, prefix: str = "") -> Iterator[str]:
    """Every dotted key of an experiment file, sections included."""
    for name, hint in get_type_hints(kind).items():
        yield prefix + name
        for part in (hint, *get_args(hint)):  # a section, or one that may be null
            if dataclasses.is_dataclass(part) and isinstance(part, type):
                yield from keys(part, f"{prefix}{name}.")


def flat(section: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a section, such as a whole experiment, by their dotted keys."""
    values: dict[str, Any] = {}
    for name in field_names(type(section)):
        value = getattr(section, name)
        if dataclasses.is_dataclass(value):
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[prefix + name] = value
    return values


def field_names(kind: type) -> list[str]:
    """The keys of a section, in their order."""
    return [item.name for item in dataclasses.fields(kind)]
