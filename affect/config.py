"""The typed experiment, read from YAML and the command line; imports no torch.

Every field below is a key of the experiment file and a flag: `model.hidden_size` in the file is
`--model.hidden_size` on the command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any, Literal, get_args, get_type_hints

import yaml

from affect.errors import UserError, nearest

_WEEK_S = 7 * 24 * 3600

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


def parse(arguments: Sequence[str]) -> Experiment:
    """The experiment that command-line arguments describe, such as `-c FILE --seed 1`.

    Raises:
        UserError: a file is missing or no YAML, a key is unknown (the nearest valid one is
            named), a value is of the wrong type or out of range, a variable is not set.
    """
    _refuse_broken_files(arguments)
    parser = argument_parser()
    try:
        namespace = parser.parse_args(list(arguments))
        files = namespace.pop("config") or []
        values = vars(parser.instantiate(namespace))
    except Exception as error:  # jsonargparse raises many kinds, all about what the user wrote
        raise UserError(_explained(error)) from error
    experiment = Experiment(**{name: values[name] for name in _fields(Experiment)})
    folder = Path(str(files[-1])).parent if files else Path()
    experiment = _expand(experiment, {**os.environ, "EXPERIMENT_DIR": str(folder)})
    validate(experiment)
    return experiment


def explained_keys() -> str:
    """Every key with its type, its default and what it means."""
    text = io.StringIO()
    argument_parser().print_help(text)
    return text.getvalue().rstrip("\n")


def argument_parser() -> Any:
    """The parser of `affect fit`: one flag a key, and `-c FILE` for experiment files."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="affect fit",
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
        description="Train, validate and test one experiment on pooled data.",
    )
    parser.add_argument("-c", "--config", action="config", help="experiment file (YAML)")
    parser.add_class_arguments(Experiment)
    return parser


def load(path: Path) -> Experiment:
    """The experiment in a file, such as a run's `config.yaml`.

    Raises:
        UserError: as `parse`.
    """
    return parse(["-c", str(path)])


def from_yaml(text: str) -> Experiment:
    """The experiment whose every key `to_yaml` wrote out.

    Raises:
        UserError: as `parse`.
    """
    parser = argument_parser()
    try:
        values = vars(parser.instantiate(parser.parse_string(text)))
    except Exception as error:  # as in `parse`
        raise UserError(_explained(error)) from error
    experiment = Experiment(**{name: values[name] for name in _fields(Experiment)})
    validate(experiment)
    return experiment


def to_yaml(experiment: Experiment) -> str:
    """The experiment as the text of an experiment file, every key written out."""
    return yaml.safe_dump(dataclasses.asdict(experiment), sort_keys=False)


def validate(experiment: Experiment) -> None:
    """Refuse values that no run could use.

    Raises:
        UserError: naming the first key that is out of range.
    """
    for key, broken, wanted in _ranges(experiment):
        if broken:
            raise UserError(f"{key} must be {wanted}")


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
    for name in _fields(type(section)):
        value = getattr(section, name)
        if dataclasses.is_dataclass(value):
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[prefix + name] = value
    return values


def _refuse_broken_files(arguments: Sequence[str]) -> None:
    """Tell what is wrong with an experiment file by its name, which the parser would not."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("-c", "--config", action="append", default=[])
    try:
        paths = finder.parse_known_args(list(arguments))[0].config
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    for path in paths:
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"experiment file {path} does not exist") from None
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error
        _refuse_scalars(content, Experiment, path)


def _refuse_scalars(content: Any, kind: type, where: str) -> None:
    """Refuse a section that is no mapping, down to the innermost one."""
    if not isinstance(content, dict):
        raise UserError(f"{where} must hold keys and values, not {content!r}")
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type) and name in content:
            _refuse_scalars(content[name], hint, f"{where}: {name}")


def _fields(kind: type) -> list[str]:
    return [item.name for item in dataclasses.fields(kind)]


def _explained(error: Exception) -> str:
    """One line of jsonargparse's message, with the nearest valid key where one is unknown."""
    text = " ".join(str(error).replace("Parser key", "key").split())
    unknown = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text)
    if unknown:
        return _nearest(f"{unknown[1]}.{unknown[2]}")
    if '"federation.engine"' in text and "deployment" in text:
        return (
            "federation.engine is inprocess or ray; sites that hold their own data train the same "
            "experiment by deployment/run.sh, as deployment/README.md shows"
        )
    text = re.sub(r"a typing\.Literal\[(.*?)\]", r"one of \1", text)
    unknown = re.search(r"(?:unrecognized arguments: --|Key '|Option ')([\w.]+)", text)
    return _nearest(unknown[1]) if unknown else text


def _nearest(key: str) -> str:
    near = nearest(key, keys(), cutoff=0.5)
    advice = f"did you mean {near!r}?" if near else "`affect fit --keys` lists them all"
    return f"unknown key {key!r}: {advice}"


def _expand(value: Any, variables: Mapping[str, str]) -> Any:
    """The same values with `${NAME}` replaced in every text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        expanded = {name: _expand(getattr(value, name), variables) for name in _fields(type(value))}
        return dataclasses.replace(value, **expanded)
    if isinstance(value, dict):
        return {name: _expand(item, variables) for name, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, variables) for item in value]
    return _substituted(value, variables) if isinstance(value, str) else value


def _substituted(text: str, variables: Mapping[str, str]) -> str:
    try:
        return Template(text).substitute(variables) if "${" in text else text
    except KeyError as error:
        name = error.args[0]
        raise UserError(
            f"{text!r} needs the environment variable {name}: export {name}=... "
            "or give the path as a flag (such as --data.source.path)"
        ) from None
    except ValueError as error:
        raise UserError(f"{text!r} is not a valid use of ${{NAME}}: {error}") from None


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
    shared = set(model.options) & set(_fields(ModelConfig))
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
