"""The file of a selection: one safetensors file that anything able to read safetensors opens.

The format, version 1. All numbers are little-endian.

    8 bytes   length of the header
    header    JSON, padded with spaces to a multiple of 8 bytes
    data      one tensor of shape (m,) after the other, m being the number of picks

The tensors are those of `SERIES`, in that order and without gaps; a run that has not ended has no `log_dets`. The
header's `__metadata__` has, in this order, the keys

    checksum        "sha256:" and 64 hex digits: of the whole file, with zeros in place of these digits
    format          "spice-rs selection"
    format_version  "1"
    run             JSON: {"settings", "stop_reason", "log_det", "signal"}; the last three are null in a run that
                    has not ended

So m and the text of `run` determine every byte of the header, and a reader demands just that header. No length that
a file states is believed before it agrees with the size of the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from spice_rs.atomic import replacing
from spice_rs.errors import CorruptStoreError, InvalidInputError, StoreError

SERIES = {
    "indices": "I64",
    "gains": "F64",
    "base": "F64",
    "conflict": "F64",
    "scores": "F64",
    "rows_read": "I64",
    "log_dets": "F64",
    "overruled": "BOOL",
}
"""The tensors in the order of the file, and their element types; see `spice_rs.Selection` for what they are."""

LAST = "log_dets"
"""The series that is there only when the run has ended."""

_NUMPY: dict[str, np.dtype[Any]] = {"I64": np.dtype("<i8"), "F64": np.dtype("<f8"), "BOOL": np.dtype("u1")}
_FORMAT = "spice-rs selection"
_VERSION = "1"
_MAX_HEADER = 1 << 20
_LENGTH = 8
_START = b'{"__metadata__":{"checksum":"sha256:'
_DIGITS = 64
_SEAL = slice(_LENGTH + len(_START), _LENGTH + len(_START) + _DIGITS)
"""Where in the file the digits of the checksum are."""


@dataclass(frozen=True)
class SavedRun:
    """What a file holds.

    Attributes:
        series: name → (m,) array, the names of `SERIES`.
        settings: `Selection.settings`.
        stop_reason: why the run ended; None if it has not.
        log_det: U of all picks; None if the run has not ended.
        signal: median of α‖g‖² over the source; None if the run has not ended.
    """

    series: dict[str, npt.NDArray[Any]]
    settings: dict[str, Any]
    stop_reason: str | None
    log_det: float | None
    signal: float | None

    def __len__(self) -> int:
        return len(self.series["indices"])


def write_run(path: str | os.PathLike[str], run: SavedRun) -> None:
    """Write a run to a file, whole or not at all; it is on disk when this returns.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(
        {
            "settings": run.settings,
            "stop_reason": run.stop_reason,
            "log_det": run.log_det,
            "signal": run.signal,
        },
        allow_nan=False,
    )
    names = _names(run.stop_reason is not None)
    parts = [run.series[name].astype(_NUMPY[SERIES[name]]).tobytes() for name in names]
    header = _header(len(run), text, names, "0" * _DIGITS)
    contents = bytearray(len(header).to_bytes(_LENGTH, "little") + header + b"".join(parts))
    contents[_SEAL] = hashlib.sha256(contents).hexdigest().encode()
    with replacing(path) as file:
        file.write(contents)


def read_run(path: str | os.PathLike[str]) -> SavedRun:
    """Read what `write_run` wrote; everything is checked.

    Raises:
        InvalidInputError: there is no such file.
        StoreError: the file is something else, or of another version of the format.
        CorruptStoreError: the file was cut short or altered.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(_LENGTH), "little")
            if size < _LENGTH + len(_START) or length > _MAX_HEADER:
                _foreign(name, f"{size} bytes that start with no header of one")
            header = file.read(length)
            metadata, tensors = _parse(name, header)
            count, names = _count(name, tensors)
            if header != _header(count, metadata["run"], names, metadata["checksum"].removeprefix("sha256:")):
                _corrupt(name, "header", "other tensors or metadata", f"those of {count} picks, in order")
            expected = _LENGTH + length + sum(count * _NUMPY[SERIES[series]].itemsize for series in names)
            if size != expected:
                _corrupt(name, "file size", f"{size} bytes", f"{expected}")
            data = file.read(expected - _LENGTH - length)
    except (FileNotFoundError, IsADirectoryError) as error:
        found = "a folder" if isinstance(error, IsADirectoryError) else "no such file"
        raise InvalidInputError(
            f"{name}: found {found}, expected a saved selection. Check the path, or save one with Selection.save."
        ) from error
    whole = bytearray(length.to_bytes(_LENGTH, "little") + header + data)
    whole[_SEAL] = b"0" * _DIGITS
    checksum = f"sha256:{hashlib.sha256(whole).hexdigest()}"
    if checksum != metadata["checksum"]:
        _corrupt(name, "checksum", metadata["checksum"], checksum)
    series, start = {}, 0
    for each in names:
        dtype = _NUMPY[SERIES[each]]
        array = np.frombuffer(data, dtype, count, start)
        series[each] = array.astype(bool if SERIES[each] == "BOOL" else dtype.newbyteorder("="))
        start += array.nbytes
    run = _run(name, metadata["run"], series)
    _check(name, run, ended=LAST in names)
    return run


def check_same(
    path: str | os.PathLike[str],
    found: Mapping[str, Any],
    expected: Mapping[str, Any],
    error: type[StoreError],
    remedy: str,
) -> None:
    """Raise `error` for the first field of `expected` that `found`, from the file at `path`, has otherwise."""
    for field, value in expected.items():
        if found.get(field) != value:
            raise error(
                f"{os.fspath(path)}: {field}: found {found.get(field)!r}, expected {value!r}. {remedy}"
            )


# --- the header ---------------------------------------------------------------------------------------------------


def _names(ended: bool) -> list[str]:
    return [name for name in SERIES if ended or name != LAST]


def _header(count: int, run: str, names: list[str], digits: str) -> bytes:
    """Return the one header that a file with these contents has."""
    header: dict[str, Any] = {
        "__metadata__": {
            "checksum": f"sha256:{digits}",
            "format": _FORMAT,
            "format_version": _VERSION,
            "run": run,
        }
    }
    start = 0
    for name in names:
        end = start + count * _NUMPY[SERIES[name]].itemsize
        header[name] = {"dtype": SERIES[name], "shape": [count], "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def _parse(name: str, header: bytes) -> tuple[dict[str, str], dict[str, Any]]:
    """Return metadata with the keys of the format, all strings, and what the header says of tensors."""
    if not header.startswith(_START):
        _foreign(name, "no header of one")
    try:
        parsed = json.loads(header)
    except (ValueError, RecursionError) as error:
        _corrupt(name, "header", error, "JSON")
    metadata = parsed.pop("__metadata__")
    if not isinstance(metadata, dict):  # a second key of that name
        _corrupt(name, "header", repr(metadata), "one __metadata__")
    if metadata.get("format") != _FORMAT:
        _foreign(name, f"the format {metadata.get('format')!r}")
    if metadata.get("format_version") != _VERSION:
        raise StoreError(
            f"{name}: format_version: found {metadata.get('format_version')!r}, expected {_VERSION!r}."
            " Read it with the version of spice-rs that wrote it."
        )
    for key in ("checksum", "run"):
        if not isinstance(metadata.get(key), str):
            _corrupt(name, key, repr(metadata.get(key)), "a text")
    return metadata, parsed


def _count(name: str, tensors: dict[str, Any]) -> tuple[int, list[str]]:
    """Return the number of picks and the names of the series, still to be compared with the header."""
    match tensors.get("indices"):
        case {"shape": [int(count)]} if 0 <= count < 1 << 40:
            return int(count), _names(LAST in tensors)  # true is 1, and spelled differently
    _corrupt(name, "indices", repr(tensors.get("indices")), "the shape of a list of rows")


# --- what the file says -------------------------------------------------------------------------------------------


def _run(name: str, text: str, series: dict[str, npt.NDArray[Any]]) -> SavedRun:
    """Return the run, its values of the right types but not yet checked."""
    try:
        run = json.loads(text, parse_constant=float)
    except (ValueError, RecursionError) as error:
        _corrupt(name, "run", error, "JSON")
    match run:
        case {
            "settings": {
                "k": int() | None,
                "conflict_penalty": float(),
                "method": str(),
                "pool_size": int() | None,
                "source": {"name": str(), "rows": int(), "dim": int(), "fingerprint": str()},
            } as settings,
            "stop_reason": str() | None as stop_reason,
            "log_det": float() | None as log_det,
            "signal": float() | None as signal,
        }:
            return SavedRun(series, settings, stop_reason, log_det, signal)
    _corrupt(name, "run", text[:200], "settings, stop_reason, log_det and signal of a selection")


def _check(name: str, run: SavedRun, *, ended: bool) -> None:
    """Check what every run has in common."""
    series, rows = run.series, run.settings["source"]["rows"]
    ends = [value is not None for value in (run.stop_reason, run.log_det, run.signal)]
    if ends != [ended] * 3:
        expected = f"one, with log_det and signal, beside {LAST} and nowhere else"
        _corrupt(name, "stop_reason", repr(run.stop_reason), expected)
    if len(run) > rows or len(np.unique(series["indices"])) < len(run):
        _corrupt(name, "indices", f"{len(run)} rows of {rows}", "different rows of the source")
    for field, values in series.items():
        if field == LAST and run.settings["pool_size"] is not None:
            values = values[-1:]  # of windows, only the last says something
        if SERIES[field] == "F64" and not np.isfinite(values).all():
            _corrupt(name, field, "NaN or infinity", "finite numbers")
    if (series["rows_read"] < 0).any():
        _corrupt(name, "rows_read", int(series["rows_read"].min()), "counts")
    last = float(series[LAST][-1]) if ended and len(run) else 0.0
    if ended and (run.log_det != last or not np.isfinite(run.signal or 0.0)):
        _corrupt(name, "log_det", run.log_det, f"{last}, the last of {LAST}, and a finite signal")


def _foreign(name: str, found: str) -> NoReturn:
    raise StoreError(
        f"{name}: file: found {found}, expected a selection in safetensors format. Name a file that Selection.save or"
        " a checkpoint wrote."
    )


def _corrupt(name: str, field: str, found: object, expected: str) -> NoReturn:
    raise CorruptStoreError(
        f"{name}: {field}: found {found}, expected {expected}. The file was cut short or altered: restore it, or"
        " delete it and select again."
    )
