"""Recordings and predictions in HDF5: the only file that imports h5py.

A recording's file is `<cache>/<corpus>/<subject>/<name>.h5`. It is built in memory, written to a
temporary file beside its place and renamed, so that a reader sees a whole file or none, and many
processes may write different recordings at once. Its first 512 bytes (HDF5's user block) repeat a
summary as one JSON line, so that a cache of ten thousand files is listed without opening HDF5.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, unquote

import h5py
import numpy as np

from affect.errors import RecordingError, UnwritableError, UserError
from affect.files import write_whole
from affect.prediction import Prediction
from affect.recording import SCHEMA_VERSION, Kind, Provenance, Recording, check, check_names

SUFFIX = ".h5"
_HEADER_BYTES = 512
_HEADER_KEYS = {"bytes", "frames", "rate_hz", "faces", "identity"}
_AGAIN = "remove it and import it again"
_LONGEST_NAME_BYTES = 255
"""What file systems take for a file's or a folder's name."""
_RESERVED = '/\\:*?"<>|%'
_COMPRESSION: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": True}


@dataclass(frozen=True)
class Entry:
    """A recording as a cache lists it: read from the file's header alone.

    `identifying` names what it holds that identifies people, `kind` is the digest of its kind;
    empty in files that were written before headers told it.
    """

    path: Path
    corpus: str
    subject: str
    name: str
    frames: int
    rate_hz: float
    faces: float
    identity: str
    identifying: tuple[str, ...]
    kind: str = ""

    @property
    def key(self) -> str:
        """`corpus/subject/name`, unique in a cache."""
        return f"{self.corpus}/{self.subject}/{self.name}"


def path_of(cache: Path, corpus: str, subject: str, name: str) -> Path:
    """Where a cache keeps a recording; characters that a file name cannot hold are %-encoded."""
    return cache / _encode(corpus) / _encode(subject) / (_encode(name) + SUFFIX)


def require_names(corpus: str, subject: str, name: str) -> None:
    """Refuse what no cache can call a recording, before there is one.

    Raises:
        RecordingError: a name is empty, not printable, or too long for a disk.
    """
    check_names(corpus, subject, name)
    for part in path_of(Path(), corpus, subject, name).parts:
        if len(part.encode()) > _LONGEST_NAME_BYTES:
            raise RecordingError(f"{part!r} is longer than {_LONGEST_NAME_BYTES} bytes")


def write(recording: Recording, cache: Path) -> Path:
    """Check a recording and put it into a cache, whole or not at all.

    Returns:
        The file's path; a file that was there is replaced in one step.

    Raises:
        RecordingError: the recording breaks the format.
        UserError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    check(recording)
    path = path_of(cache, recording.corpus, recording.subject, recording.name)
    write_whole(path, _to_bytes(recording))
    return path


def read(path: Path, *, identifying: bool = False) -> Recording:
    """The recording in a file.

    Args:
        path: the file.
        identifying: read what identifies people too: nothing that trains on action units needs it.

    Raises:
        RecordingError: the file is missing, truncated, foreign or of another schema version.
    """
    with _open(path) as file:
        return _from_file(file, identifying)


def provenance(path: Path) -> Provenance:
    """Where the numbers of the recording in a file come from.

    Raises:
        RecordingError: as `read`.
    """
    with _open(path) as file:
        return _provenance(_attributes_of(file))


def remove(path: Path) -> None:
    """Take a recording out of its cache; one that is not there is no mistake.

    Raises:
        UserError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UnwritableError(f"cannot remove {path}: {error.strerror or error}") from error


def stored_checksum(path: Path) -> str:
    """The checksum that was written with the recording in a file; see `checksum`.

    Raises:
        RecordingError: as `read`.
    """
    with _open(path) as file:
        return str(file.attrs["checksum"])


def kind_of(path: Path) -> Kind:
    """What the recording in a file has columns of; no column is read.

    Raises:
        RecordingError: as for `read`.
    """
    with _open(path) as file:
        return Kind(
            str(_attributes_of(file)["backend"]),
            _names(file["au/intensity"]),
            _names(file["au/presence"]),
            tuple(sorted(map(unquote, cast("h5py.Group", file.get("annotation", {}))))),
        )


def verify(path: Path) -> None:
    """Check a file's checksum, header and place, and every invariant of the format.

    Raises:
        RecordingError: naming the file and what is wrong with it.
    """
    recording = read(path, identifying=True)
    try:
        check(recording)
    except RecordingError as error:
        raise RecordingError(f"{path}: {error}") from None
    if stored_checksum(path) != checksum(recording):
        raise RecordingError(f"{path}: its content does not match its checksum: {_AGAIN}")
    cache = path.parent.parent.parent
    if path != path_of(cache, recording.corpus, recording.subject, recording.name):
        raise RecordingError(f"{path}: it holds {recording.key}; move it back or import it again")
    summary = _summary(recording, path.stat().st_size)
    if {"kind": summary["kind"], **_header(path)} != summary:
        raise RecordingError(f"{path}: its header does not match its content: {_AGAIN}")


def recording_paths(cache: Path, corpus: str = "") -> list[Path]:
    """Every recording's file in a cache, or in one corpus of it, by corpus, subject and name.

    Raises:
        UserError: the cache is missing or empty.
    """
    if not cache.is_dir():
        raise UserError(f"no cache at {cache}: make one with `affect extract`, `import` or `synth`")
    found = (
        Path(recording.path)
        for folder in _folders(cache)
        if corpus in ("", unquote(folder.name))
        for subject in _folders(folder)
        for recording in os.scandir(subject)
        if recording.name.endswith(SUFFIX) and not recording.name.startswith(".")
    )
    paths = sorted(found, key=lambda path: path.parts)
    if not paths:
        missing = f"recordings of corpus {corpus!r}" if corpus else "recordings"
        raise UserError(
            f"no {missing} in {cache}: fill it with `affect extract`, `import` or `synth`"
        )
    return paths


def entries(cache: Path, corpus: str = "") -> list[Entry]:
    """Every recording of a cache, or of one corpus of it, from the headers alone.

    Raises:
        UserError: the cache is missing or empty.
        RecordingError: a file is foreign, truncated or of another schema version.
    """
    return [entry(path) for path in recording_paths(cache, corpus)]


def entry(path: Path) -> Entry:
    """One recording as a cache lists it.

    Raises:
        RecordingError: the file is missing, foreign, truncated or of another schema version.
    """
    header = _header(path)
    corpus, subject, name = ("", "", *path.parts)[-3:]
    return Entry(
        path=path,
        corpus=unquote(corpus),
        subject=unquote(subject),
        name=unquote(name.removesuffix(SUFFIX)),
        frames=header["frames"],
        rate_hz=header["rate_hz"],
        faces=header["faces"],
        identity=header["identity"],
        identifying=tuple(header.get("identifying", ())),
        kind=header.get("kind", ""),
    )


def find(cache: Path, corpus: str, subject: str, name: str) -> Entry | None:
    """A cache's entry for one recording, or None where it holds none that can be read."""
    try:
        return entry(path_of(cache, corpus, subject, name))
    except RecordingError:
        return None


def names(cache: Path, corpus: str, subject: str) -> list[str]:
    """What the recordings of a subject are called, in order: the folder's list, no file is read."""
    folder = path_of(cache, corpus, subject, "").parent
    found = folder.glob(f"[!.]*{SUFFIX}") if folder.is_dir() else []
    return sorted(unquote(path.name.removesuffix(SUFFIX)) for path in found)


def checksum(recording: Recording) -> str:
    """SHA-256 over every array and attribute of a recording, hexadecimal."""
    digest = hashlib.sha256(json.dumps(_attributes(recording), sort_keys=True).encode())
    for name, values in sorted(_arrays(recording).items()):
        digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write one group a prediction, `<index>`, in order; whole or not at all.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file.attrs["schema_version"] = SCHEMA_VERSION
        for index, item in enumerate(predictions):
            group = file.create_group(f"{index:06d}")
            for name in ("corpus", "subject", "name", "split", "fold"):
                group.attrs[name] = getattr(item, name)
            group.attrs["dimensions"] = json.dumps(item.dimensions)
            for name in ("time_s", "prediction", "reference"):
                group.create_dataset(name, data=getattr(item, name), **_COMPRESSION)
    write_whole(path, image.getvalue())


def read_predictions(path: Path) -> list[Prediction]:
    """The predictions in a file, in the order in which they were written.

    Raises:
        RecordingError: the file is missing or does not hold predictions.
    """
    with _open(path, headed=False) as file:
        version = file.attrs["schema_version"]
        if version != SCHEMA_VERSION:
            raise RecordingError(f"{path} has schema version {version}, not {SCHEMA_VERSION}")
        return [_prediction(file, name) for name in sorted(file)]


def _encode(name: str) -> str:
    """A file name for any printable text, reversible with `unquote`."""
    kept = "".join(quote(c, safe="") if c in _RESERVED else c for c in name)
    return kept if not kept.startswith(".") else "%2E" + kept[1:]


def _folders(parent: Path) -> Iterator[Path]:
    return (Path(item.path) for item in os.scandir(parent) if item.is_dir())


def _summary(recording: Recording, file_bytes: int) -> dict[str, Any]:
    return {
        "affect": SCHEMA_VERSION,
        "bytes": file_bytes,
        "frames": recording.frames,
        "rate_hz": recording.rate_hz,
        "faces": round(float(recording.success.mean()), 6),
        "identity": recording.provenance.identity,
        "kind": recording.kind.digest,
        **({"identifying": sorted(recording.identifying)} if recording.identifying else {}),
    }


def _header(path: Path) -> dict[str, Any]:
    """The file's summary; its stated length finds a file that was cut without reading it whole."""
    try:
        with path.open("rb", buffering=0) as file:
            first = file.read(_HEADER_BYTES)
            file_bytes = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise RecordingError(f"no recording at {path}") from None
    except OSError as error:
        raise RecordingError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        header = json.loads(first.rstrip(b"\0").decode())
        version = header["affect"]
    except (ValueError, TypeError, KeyError):
        raise RecordingError(
            f"{path} is not a recording of affect (truncated, or another kind of file): "
            "name a cache, or take the file out of it"
        ) from None
    if version != SCHEMA_VERSION:
        raise RecordingError(f"{path} has schema version {version}, not {SCHEMA_VERSION}: {_AGAIN}")
    if not header.keys() >= _HEADER_KEYS or header["bytes"] != file_bytes:
        raise RecordingError(f"{path} is truncated or damaged: {_AGAIN}")
    return header


def _attributes(recording: Recording) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "corpus": recording.corpus,
        "subject": recording.subject,
        "name": recording.name,
        "rate_hz": recording.rate_hz,
        "raters": list(recording.raters),
        "intensity_names": list(recording.intensity_names),
        "presence_names": list(recording.presence_names),
        **asdict(recording.provenance),
        "parameters": dict(recording.provenance.parameters),
    }


def _arrays(recording: Recording) -> dict[str, np.ndarray]:
    presence = recording.presence
    if presence is None:
        presence = np.zeros((recording.frames, 0), np.uint8)
    return {
        "au/intensity": recording.intensity,
        "au/presence": presence,
        "time_s": recording.time_s,
        "confidence": recording.confidence,
        "success": recording.success,
        **{f"annotation/{_encode(k)}": v for k, v in recording.annotations.items()},
        **{f"truth/{_encode(k)}": v for k, v in recording.truth.items()},
        **{f"identifying/{_encode(k)}": v for k, v in recording.identifying.items()},
    }


def _to_bytes(recording: Recording) -> bytes:
    """The whole HDF5 file: built in memory, so that only plain writes can fail."""
    image = io.BytesIO()
    with h5py.File(image, "w", userblock_size=_HEADER_BYTES) as file:
        for name, values in _arrays(recording).items():
            compression = _COMPRESSION if values.size else {}
            file.create_dataset(name, data=values, **compression)
        attributes = _attributes(recording)
        file["au/intensity"].attrs["names"] = attributes.pop("intensity_names")
        file["au/presence"].attrs["names"] = np.array(
            attributes.pop("presence_names"), dtype=h5py.string_dtype()
        )
        for name in ("raters", "parameters"):
            attributes[name] = json.dumps(attributes[name], sort_keys=True)
        file.attrs.update(attributes)
        file.attrs["checksum"] = checksum(recording)
    content = bytearray(image.getvalue())
    header = json.dumps(_summary(recording, len(content))).encode()
    content[: len(header)] = header
    return bytes(content)


@contextmanager
def _open(path: Path, *, headed: bool = True) -> Iterator[h5py.File]:
    """An open file; what breaks while it is read is told as a broken file.

    Locks are off: files are never modified, and network file systems refuse locks.
    """
    if headed:
        _header(path)
    elif not path.is_file():
        raise RecordingError(f"no predictions at {path}")
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        detail = " ".join(str(error).split())
        raise RecordingError(
            f"{path} cannot be read as HDF5 of affect (truncated or foreign: {detail}): "
            "remove it and make it again"
        ) from error


def _from_file(file: h5py.File, identifying: bool) -> Recording:
    attributes = _attributes_of(file)
    return Recording(
        corpus=str(attributes["corpus"]),
        subject=str(attributes["subject"]),
        name=str(attributes["name"]),
        rate_hz=float(attributes["rate_hz"]),
        time_s=_values(file, "time_s"),
        intensity=_values(file, "au/intensity"),
        intensity_names=_names(file["au/intensity"]),
        presence=_values(file, "au/presence"),
        presence_names=_names(file["au/presence"]),
        confidence=_values(file, "confidence"),
        success=_values(file, "success"),
        annotations=_group(file, "annotation"),
        raters=tuple(json.loads(attributes["raters"])),
        truth=_group(file, "truth"),
        identifying=_group(file, "identifying") if identifying else {},
        provenance=_provenance(attributes),
    )


def _provenance(attributes: Mapping[str, Any]) -> Provenance:
    return Provenance(
        backend=str(attributes["backend"]),
        backend_version=str(attributes["backend_version"]),
        source_sha256=str(attributes["source_sha256"]),
        weights_sha256=str(attributes["weights_sha256"]),
        parameters=json.loads(attributes["parameters"]),
    )


def _prediction(file: h5py.File, name: str) -> Prediction:
    attributes = _attributes_of(file[name])
    text = {key: str(attributes[key]) for key in ("corpus", "subject", "name", "split")}
    return Prediction(
        **text,
        fold=int(attributes["fold"]),
        dimensions=tuple(json.loads(attributes["dimensions"])),
        time_s=_values(file, f"{name}/time_s"),
        prediction=_values(file, f"{name}/prediction"),
        reference=_values(file, f"{name}/reference"),
    )


def _names(item: h5py.HLObject) -> tuple[str, ...]:
    return tuple(str(name) for name in _attributes_of(item)["names"])


def _group(file: h5py.File, name: str) -> dict[str, np.ndarray]:
    held = cast("Mapping[str, h5py.Dataset]", file.get(name, {}))
    return {unquote(key): dataset[()] for key, dataset in held.items()}


def _values(file: h5py.File, name: str) -> np.ndarray:
    return cast("h5py.Dataset", file[name])[()]


def _attributes_of(item: h5py.HLObject) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", item.attrs)
