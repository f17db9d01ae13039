"""Every message between server and clients: what it may carry, declared, typed and checked.

Down to a client go the experiment, how to prepare its recordings, and parameters. Up come
parameters, moments and counts; under secure aggregation, in place of what a client has learned,
public keys, sealed pieces of secrets and masked numbers. A message with anything else, or with a
field of another type or shape, is refused by whoever receives it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, ClassVar, TypeVar, get_origin, get_type_hints

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.constant import SType
from jaxtyping import Float32, Float64, UInt64
from numpy.lib.format import (
    dtype_to_descr,
    read_array_header_1_0,
    read_magic,
    write_array_header_1_0,
)

from affect.federated.fields import axes_of, check_of, finite

_ARRAYS, _NUMBERS, _WORDS = "arrays", "numbers", "words"
_UNCOUNTABLE = 2**53
"""From here on a float64 cannot tell whole numbers apart."""

_Content = TypeVar("_Content", bound="Content")


class MessageError(Exception):
    """A message does not hold what it is declared to hold."""


@dataclass(frozen=True)
class Content:
    """What a message carries: a frozen dataclass whose fields are the whole of it.

    A field is an array of a declared type and number of dimensions, a number, a text, or a list of
    texts or of whole numbers; `None` where it may be left out.
    """

    action: ClassVar[str]
    """Flower's message type."""

    least: ClassVar[Mapping[str, float]] = {}
    """What numbers are at least, by the name of the field."""

    def encode(self) -> RecordDict:
        """The content as Flower's records."""
        arrays, numbers, words = ArrayRecord(), MetricRecord(), ConfigRecord()
        for name in _declared(type(self)):
            value = getattr(self, name)
            if isinstance(value, np.ndarray):
                arrays[name] = _packed(value)
            elif isinstance(value, str | list):
                if value != []:  # Flower cannot count the bytes of an empty list
                    words[name] = value
            elif value is not None:
                numbers[name] = value
        return RecordDict({_ARRAYS: arrays, _NUMBERS: numbers, _WORDS: words})

    def refuse_unfit(self, request: Content, sizes: Mapping[str, int]) -> None:
        """Refuse numbers and arrays that answer no such request.

        Args:
            request: that was asked. A field that it has too is as long here.
            sizes: of the axes of arrays that are known, by their letters.

        Raises:
            MessageError: naming the field.
        """
        known = dict(sizes)
        for name, declared in _declared(type(self)).items():
            value, asked = getattr(self, name), getattr(request, name, None)
            if hasattr(request, name) and (value is None) != (asked is None):
                raise MessageError(f"its {name} {'is missing' if value is None else 'is unasked'}")
            if isinstance(value, np.ndarray):
                wanted = asked.shape if isinstance(asked, np.ndarray) else None
                _refuse_unfit_array(name, value, wanted or _sized(axes_of(declared), value, known))
        for name, least in self.least.items():
            if not least <= getattr(self, name) < _UNCOUNTABLE:
                raise MessageError(f"its {name} is {getattr(self, name)}")

    @classmethod
    def decode(cls: type[_Content], records: RecordDict) -> _Content:
        """The content that `encode` wrote.

        Raises:
            MessageError: a record or field is missing, unknown or of another type.
        """
        if set(records) != {_ARRAYS, _NUMBERS, _WORDS}:
            raise MessageError(f"{cls.__name__} has the records {', '.join(sorted(records))}")
        arrays = records.array_records[_ARRAYS]
        found: dict[str, Any] = {name: _unpacked(array) for name, array in arrays.items()}
        found |= {**records.metric_records[_NUMBERS], **records.config_records[_WORDS]}
        declared = _declared(cls)
        unknown = found.keys() - declared.keys()
        if unknown:
            raise MessageError(f"{cls.__name__} has an undeclared field {min(unknown)!r}")
        none: dict[str, Any] = {n: [] for n, kind in declared.items() if get_origin(kind) is list}
        values = {name: found.get(name, none.get(name)) for name in declared}
        for name, kind in declared.items():
            if not check_of(kind)(values[name]):
                raise MessageError(f"{cls.__name__}.{name} is {_kind(values[name])}")
        return cls(**values)


@dataclass(frozen=True)
class Enrol(Content):
    """Asks a site which clients it holds.

    Attributes:
        experiment: the experiment file's text, with the rules that divide people into parts.
    """

    action: ClassVar[str] = "query.enrol"
    experiment: str


@dataclass(frozen=True)
class Enrolled(Content):
    """Which clients a site holds: one of each part in which it has people.

    Attributes:
        site: its name.
        train, val, test: how many people it has in each part.
    """

    site: str
    train: int
    val: int
    test: int


@dataclass(frozen=True)
class Request(Content):
    """What is asked of a client.

    Attributes:
        experiment: the experiment file's text.
        run: which federation; what a client keeps between rounds belongs to one.
        client: which client of the population.
        part: what its people are there for: `train`, `val` or `test`.
    """

    experiment: str
    run: str
    client: int
    part: str


@dataclass(frozen=True)
class Survey(Request):
    """Asks a client what it has."""

    action: ClassVar[str] = "query.survey"


@dataclass(frozen=True)
class Surveyed(Content):
    """What a client has; nothing of a single frame, and no feature's moments unless needed.

    Attributes:
        names: its action units that the experiment asks for.
        rate_hz: frames a second.
        frames, longest: of all its recordings, and of the longest one.
        features: count, mean and squared deviations of its action units, where the experiment
            standardises by those of the training clients.
        centred: the same of its centred action units.
        labels: the same of its labels.
    """

    least: ClassVar[Mapping[str, float]] = {"rate_hz": 1e-3, "frames": 1, "longest": 1}
    names: list[str]
    rate_hz: float
    frames: int
    longest: int
    features: Float64[np.ndarray, "3 F"] | None
    centred: Float64[np.ndarray, "3 F"] | None
    labels: Float64[np.ndarray, "3 D"]

    def refuse_unfit(self, request: Content, sizes: Mapping[str, int]) -> None:
        """Refuse also moments of more or fewer action units than it names."""
        super().refuse_unfit(request, {**sizes, "F": len(self.names)})


@dataclass(frozen=True)
class Delays(Request):
    """Asks a client for what an estimate of the annotation delay takes.

    Attributes:
        preparation: how to prepare recordings, as JSON.
    """

    action: ClassVar[str] = "query.delays"
    preparation: str


@dataclass(frozen=True)
class Delayed(Content):
    """Second moments of features and labels at each candidate delay, summed over recordings.

    All are None where no recording is long enough for them.
    """

    features: Float64[np.ndarray, "F F"] | None = None
    products: Float64[np.ndarray, "D F L"] | None = None
    labels: Float64[np.ndarray, "D L"] | None = None

    def refuse_unfit(self, request: Content, sizes: Mapping[str, int]) -> None:
        """Refuse also some moments without the others.

        Raises:
            MessageError: there are some only.
        """
        super().refuse_unfit(request, sizes)
        given = {array is not None for array in (self.features, self.products, self.labels)}
        if len(given) > 1:
            raise MessageError("it sent some moments without the others")


@dataclass(frozen=True)
class Train(Request):
    """Asks a client to train.

    Attributes:
        preparation: as in `Delays`.
        round: 1 for the first.
        parameters: of the network.
        control: the server's control variate, of SCAFFOLD alone.
        memory: the last round in which the client's answer was taken in, where it keeps something
            between rounds: what it kept then is what it starts from.
    """

    action: ClassVar[str] = "train"
    preparation: str
    round: int
    parameters: Float32[np.ndarray, " P"]
    control: Float32[np.ndarray, " P"] | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Trained(Content):
    """What a client has learned.

    Attributes:
        parameters: of its network after training.
        control: how its control variate has changed, of SCAFFOLD alone.
        moments: of predictions against labels while it trained.
        losses: mean over batches of the loss in each dimension.
        batches, steps, frames: of its training; frames are those of one pass.
        seconds: that training took.
    """

    least: ClassVar[Mapping[str, float]] = {"batches": 1, "steps": 1, "frames": 1, "seconds": 0}
    parameters: Float32[np.ndarray, " P"]
    control: Float32[np.ndarray, " P"] | None
    moments: Float64[np.ndarray, "D 6"]
    losses: Float64[np.ndarray, " D"]
    batches: int
    steps: int
    frames: int
    seconds: float


@dataclass(frozen=True)
class MakeKeys(Request):
    """Asks a client for the public keys of a round of secure aggregation."""

    action: ClassVar[str] = "query.keys"
    round: int


@dataclass(frozen=True)
class PublicKeys(Content):
    """A client's public keys of one round, as PEM.

    Attributes:
        masking: makes masks with each neighbour.
        sealing: lets a neighbour seal what the server passes on.
    """

    masking: str
    sealing: str


@dataclass(frozen=True)
class ShareSecrets(Request):
    """Asks a client to share the round's secrets among its neighbours.

    Attributes:
        neighbours: the other clients with which it makes masks.
        masking, sealing: their public keys.
    """

    action: ClassVar[str] = "query.shares"
    round: int
    neighbours: list[int]
    masking: list[str]
    sealing: list[str]


@dataclass(frozen=True)
class SealedShares(Content):
    """A piece of a client's secrets for each neighbour, which that neighbour alone can open."""

    sealed: list[str]

    def refuse_unfit(self, request: Content, sizes: Mapping[str, int]) -> None:
        """Refuse another number of pieces than there are neighbours.

        Raises:
            MessageError: the numbers differ.
        """
        _refuse_other_lengths(self.sealed, getattr(request, "neighbours", []))


@dataclass(frozen=True)
class TrainMasked(Request):
    """Asks a client to train and to send what it has learned under masks; see `Train`.

    Attributes:
        sealed: the piece that each neighbour sealed for the client; empty of one that is gone.
    """

    action: ClassVar[str] = "train.masked"
    preparation: str
    round: int
    parameters: Float32[np.ndarray, " P"]
    sealed: list[str]
    memory: int | None = None


@dataclass(frozen=True)
class Masked(Content):
    """A client's update, weight and training scores as whole numbers under masks.

    Attributes:
        parameters: weighted changes of its network's parameters.
        tallies: weight, batches, losses and power sums.
    """

    parameters: UInt64[np.ndarray, " P"]
    tallies: UInt64[np.ndarray, " M"]


@dataclass(frozen=True)
class Unmask(Request):
    """Asks a client for pieces of its neighbours' secrets: of each one kind or the other.

    Attributes:
        survivors: whose masked updates have come; of these the pieces of their own masks.
        dropped: whose have not; of these the pieces of the keys of their masks with neighbours.
    """

    action: ClassVar[str] = "query.unmask"
    round: int
    survivors: list[int]
    dropped: list[int]


@dataclass(frozen=True)
class Pieces(Content):
    """Pieces of clients' secrets in the order of the request, as hexadecimal digits."""

    survivors: list[str]
    dropped: list[str]

    def refuse_unfit(self, request: Content, sizes: Mapping[str, int]) -> None:
        """Refuse other numbers of pieces than were asked for.

        Raises:
            MessageError: the numbers differ.
        """
        _refuse_other_lengths(self.survivors, getattr(request, "survivors", []))
        _refuse_other_lengths(self.dropped, getattr(request, "dropped", []))


@dataclass(frozen=True)
class Evaluate(Request):
    """Asks a client to evaluate a network on its recordings; see `Train`."""

    action: ClassVar[str] = "evaluate"
    preparation: str
    round: int
    parameters: Float32[np.ndarray, " P"]


@dataclass(frozen=True)
class Evaluated(Content):
    """How a network did on a client's recordings; see `Trained`."""

    least: ClassVar[Mapping[str, float]] = {"batches": 1}
    moments: Float64[np.ndarray, "D 6"]
    losses: Float64[np.ndarray, " D"]
    batches: int


def addressed(
    records: RecordDict, client: int, part: str, own: Mapping[str, Any] | None = None
) -> RecordDict:
    """The same request to another client; arrays, which they share, are not copied.

    Args:
        records: the request.
        client: whom it goes to.
        part: that client's.
        own: lists and whole numbers that this client alone is sent.
    """
    own = own or {}
    whole = {name: value for name, value in own.items() if isinstance(value, int)}
    lists = {name: value for name, value in own.items() if name not in whole and value}
    numbers = MetricRecord({**records.metric_records[_NUMBERS], "client": client, **whole})
    words = ConfigRecord({**records.config_records[_WORDS], "part": part, **lists})
    return RecordDict({**records, _NUMBERS: numbers, _WORDS: words})


def size_of(records: RecordDict) -> int:
    """Bytes of a message's content."""
    return sum(record.count_bytes() for record in records.values())


def _packed(array: np.ndarray) -> Array:
    """The array as Flower packs it, in NumPy's format, with one copy instead of three."""
    whole = np.ascontiguousarray(array)
    data = b"".join((_header(whole.shape, whole.dtype), whole.data.cast("B")))
    return Array(str(whole.dtype), whole.shape, SType.NUMPY, data)


@lru_cache
def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """What stands before the values of such an array in NumPy's format, version 1.0."""
    header = io.BytesIO()
    described = {"descr": dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    write_array_header_1_0(header, described)
    return header.getvalue()


def _unpacked(array: Array) -> np.ndarray:
    """The array, read-only and without a copy.

    Raises:
        MessageError: it is none.
    """
    data_start = 10 + int.from_bytes(array.data[8:10], "little")  # after magic, version, length
    try:
        shape, fortran, dtype = _described(array.data[:data_start])
        order = "F" if fortran else "C"
        return np.frombuffer(array.data, dtype, offset=data_start).reshape(shape, order=order)
    except ValueError as error:
        raise MessageError(f"an array cannot be read: {error}") from error


@lru_cache
def _described(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of an array in NumPy's format, version 1.0."""
    file = io.BytesIO(header)
    if read_magic(file) != (1, 0):
        raise ValueError("it is of another version of NumPy's format")
    return read_array_header_1_0(file)


@cache
def _declared(content: type[Content]) -> dict[str, Any]:
    """The type of each field of a message."""
    hints = get_type_hints(content)
    return {name: hint for name, hint in hints.items() if get_origin(hint) is not ClassVar}


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} and {value.ndim} dimensions"
    return f"of type {type(value).__name__}"


def _sized(axes: Sequence[str], value: np.ndarray, known: dict[str, int]) -> tuple[int, ...]:
    """The shape with these axes; a letter that is not known yet is as long as it is here."""
    for axis, length in zip(axes, value.shape, strict=True):
        known.setdefault(axis, int(axis) if axis.isdigit() else length)
    return tuple(known[axis] for axis in axes)


def _refuse_unfit_array(name: str, value: np.ndarray, shape: tuple[int, ...]) -> None:
    if value.shape != shape:
        raise MessageError(f"its {name} have shape {value.shape}, not {shape}")
    if not finite(value):
        raise MessageError(f"its {name} are not finite: training diverged there")


def _refuse_other_lengths(found: list[str], asked: list[Any]) -> None:
    if len(found) != len(asked):
        raise MessageError(f"it sent {len(found)} pieces of secrets, not {len(asked)}")
