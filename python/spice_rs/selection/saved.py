"""The file of a selection: one safetensors file that anything able to read safetensors opens.

The format, version 1. All numbers are little-endian.

    8 bytes   length of the header
    header    JSON, padded with spaces to a multiple of 8 bytes
    data      one tensor after the other: of shape (m,), m being the number of picks, and four of shape (s,), s
              being the number of near-duplicates

The tensors are those of `TENSORS`, in that order and without gaps. Seven are there only for some settings; three of them
and `log_dets` only in a run that has ended:

    costs           if settings["budget"] is not null: the cost of each pick
    groups          if settings["groups"] is not null: the group of each pick, as its place in
                    settings["groups"]["quotas"], a list of [label, minimum, maximum]
    record_hashes   if settings["source"]["hashed"] is true: the hash of the record of each pick
    duplicate_rows, duplicate_of, duplicate_cosines, duplicate_ranks
                    (s,), if settings["max_similarity"] is not null, in a run that has not ended too: the rows that
                    were skipped, what each is too similar to, their cosine, and how many picks there were by then

The header's `__metadata__` has, in this order, the keys

    checksum        "sha256:" and 64 hex digits: of the whole file, with zeros in place of these digits
    format          "spice-rs selection"
    format_version  "1"
    run             JSON: {"settings", "stop_reason", "log_det", "signal", "compared"}; all but the settings are null
                    in a run that has not ended, and "compared" is null without a budget

In the settings, `source` has "hashed", and "data" with what is known of the data that were extracted from
(`Belonging.about`), so that records can be checked without the source. Files of before have neither.

So m, s and the text of `run` determine every byte of the header, and a reader demands just that header. No length
that a file states is believed before it agrees with the size of the file.
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
from spice_rs.data.matching import Belonging
from spice_rs.errors import CorruptStoreError, InvalidInputError, StoreError
from spice_rs.paths import local

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
"""The numbers of each pick and their element types; see `spice_rs.Selection` for what they are."""

LAST = "log_dets"
"""The series that is there only when the run has ended."""

DUPLICATES = ("duplicate_rows", "duplicate_of", "duplicate_cosines", "duplicate_ranks")
"""The tensors that have an element for each near-duplicate."""

OPTIONAL = {
    "costs": ("F64", "budget"),
    "groups": ("I64", "groups"),
    "record_hashes": ("I64", "hashed"),
    "duplicate_rows": ("I64", "max_similarity"),
    "duplicate_of": ("I64", "max_similarity"),
    "duplicate_cosines": ("F64", "max_similarity"),
    "duplicate_ranks": ("I64", "max_similarity"),
}
"""What a run has for some settings alone: element type, and the setting ("hashed" is one of its source). Only of
duplicates it need not have ended."""

TENSORS = {
    **{name: kind for name, kind in SERIES.items() if name != "overruled"},
    **{name: kind for name, (kind, _) in OPTIONAL.items()},
    "overruled": "BOOL",  # last, so that all others lie at multiples of 8 bytes
}
"""All tensors that there can be, in the order of the file, and their element types."""

_NUMPY: dict[str, np.dtype[Any]] = {"I64": np.dtype("<i8"), "F64": np.dtype("<f8"), "BOOL": np.dtype("u1")}
_FORMAT = "spice-rs selection"
_VERSION = "1"
_MAX_HEADER = 100_000_000  # as safetensors has it
_LENGTH = 8
_START = b'{"__metadata__":{"checksum":"sha256:'
_DIGITS = 64
_SEAL = slice(_LENGTH + len(_START), _LENGTH + len(_START) + _DIGITS)
"""Where in the file the digits of the checksum are."""


@dataclass(frozen=True)
class SavedRun:
    """What a file holds.

    Attributes:
        series: name → (m,) or (s,) array, of the names in `TENSORS`, those that the run has.
        settings: `Selection.settings`.
        stop_reason: why the run ended; None if it has not.
        log_det: U of all picks; None if the run has not ended.
        signal: median of α‖g‖² over the source; None if the run has not ended.
        compared: `Selection.compared`.
    """

    series: dict[str, npt.NDArray[Any]]
    settings: dict[str, Any]
    stop_reason: str | None
    log_det: float | None
    signal: float | None
    compared: dict[str, Any] | None = None

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
            "compared": run.compared,
        },
        allow_nan=False,
    )
    names = _names(run.settings, ended=run.stop_reason is not None)
    parts = [run.series[name].astype(_NUMPY[TENSORS[name]]).tobytes() for name in names]
    header = _header({name: len(run.series[name]) for name in names}, text, "0" * _DIGITS)
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
    name = local(path)
    try:
        with open(name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            first = file.read(_LENGTH)
            if first.lstrip()[:1] in (b"{", b"[") and b"\0" not in first:  # a length has zeros
                _foreign(name, "JSON, as `spice-rs select --out` writes picks")
            length = int.from_bytes(first, "little")
            if size < _LENGTH + len(_START) or length > _MAX_HEADER:
                _foreign(name, f"{size} bytes that start with no header of one")
            header = file.read(length)
            metadata, tensors = _parse(name, header)
            lengths = _lengths(name, tensors)
            if header != _header(lengths, metadata["run"], metadata["checksum"].removeprefix("sha256:")):
                expected_tensors = f"those of {lengths['indices']} picks, in order"
                _corrupt(name, "header", "other tensors or metadata", expected_tensors)
            expected = _LENGTH + length + sum(_bytes(series, count) for series, count in lengths.items())
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
    for each, count in lengths.items():
        dtype = _NUMPY[TENSORS[each]]
        array = np.frombuffer(data, dtype, count, start)
        series[each] = array.astype(bool if TENSORS[each] == "BOOL" else dtype.newbyteorder("="))
        start += array.nbytes
    run = _run(name, metadata["run"], series)
    _check(name, run, ended=LAST in lengths)
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


def _names(settings: Mapping[str, Any], *, ended: bool) -> list[str]:
    """Return the tensors that a run with these settings has."""
    # Files of the first versions do not say whether their source has hashes: those have none.
    present = {**settings, "hashed": settings["source"].get("hashed") or None}
    absent = {name for name, (_, setting) in OPTIONAL.items() if present[setting] is None}
    late = {LAST, *OPTIONAL}.difference(DUPLICATES)
    return [name for name in TENSORS if name not in absent and (ended or name not in late)]


def _bytes(name: str, count: int) -> int:
    return count * _NUMPY[TENSORS[name]].itemsize


def _header(lengths: Mapping[str, int], run: str, digits: str) -> bytes:
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
    for name, count in lengths.items():
        end = start + _bytes(name, count)
        header[name] = {"dtype": TENSORS[name], "shape": [count], "data_offsets": [start, end]}
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


def _lengths(name: str, tensors: dict[str, Any]) -> dict[str, int]:
    """Return the tensors in order with their lengths, still to be compared with the header and the settings."""
    sizes = {"indices": 0, DUPLICATES[0]: 0}
    for series in sizes:
        match tensors.get(series):
            case {"shape": [int(count)]} if 0 <= count < 1 << 40:
                sizes[series] = int(count)  # true is 1, and spelled differently
            case found if series == "indices" or series in tensors:
                _corrupt(name, series, repr(found), "the shape of a list of rows")
    return {
        series: sizes[DUPLICATES[0] if series in DUPLICATES else "indices"]
        for series in TENSORS
        if series in tensors or (series in SERIES and series != LAST)
    }


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
                "source": {"name": str(), "rows": int(), "dim": int(), "fingerprint": str()} as source,
                "budget": float() | None,
                "groups": {"quotas": list()} | None,
                "initial": {"rows": int()} | None,
                "include": {"rows": int()} | None,
                "max_similarity": float() | None,
            } as settings,
            "stop_reason": str() | None as stop_reason,
            "log_det": float() | None as log_det,
            "signal": float() | None as signal,
            "compared": dict() | None as compared,
        }:
            if _says_of_data(source):
                return SavedRun(series, settings, stop_reason, log_det, signal, compared)
    _corrupt(name, "run", text[:200], "settings, stop_reason, log_det, signal and compared of a selection")


def _says_of_data(source: Mapping[str, Any]) -> bool:
    """Whether a source says of its data, and of extractions that had not ended, what a selection keeps of them."""
    data, hashed, unfinished = source.get("data"), source.get("hashed", False), source.get("unfinished")
    pairs = unfinished is None or (
        isinstance(unfinished, list)
        and all(
            isinstance(pair, list) and len(pair) == 2 and all(type(count) is int for count in pair)
            for pair in unfinished
        )
    )
    return (data is None or Belonging.is_about(data)) and isinstance(hashed, bool) and pairs


def _check(name: str, run: SavedRun, *, ended: bool) -> None:
    """Check what every run has in common."""
    series, settings = run.series, run.settings
    rows = settings["source"]["rows"]
    ends = [value is not None for value in (run.stop_reason, run.log_det, run.signal)]
    if ends != [ended] * 3:
        expected = f"one, with log_det and signal, beside {LAST} and nowhere else"
        _corrupt(name, "stop_reason", repr(run.stop_reason), expected)
    if list(series) != _names(settings, ended=ended):
        names = _names(settings, ended=ended)
        _corrupt(name, "tensors", list(series), f"{names}, those of the settings")
    if len(run) > rows or len(np.unique(series["indices"])) < len(run):
        _corrupt(name, "indices", f"{len(run)} rows of {rows}", "different rows of the source")
    for field, values in series.items():
        if field == LAST and settings["pool_size"] is not None:
            values = values[-1:]  # of windows, only the last says something
        if TENSORS[field] == "F64" and not np.isfinite(values).all():
            _corrupt(name, field, "NaN or infinity", "finite numbers")
    if (series["rows_read"] < 0).any():
        _corrupt(name, "rows_read", int(series["rows_read"].min()), "counts")
    if settings["max_similarity"] is not None:
        _check_duplicates(name, run)
    if not ended:
        return
    if not np.isfinite(run.signal or 0.0):
        _corrupt(name, "signal", run.signal, "a finite number")
    last = float(series[LAST][-1]) if len(run) else 0.0
    at_start = not len(run) and settings["initial"] is not None  # U of the initial rows, which no series has
    if not np.isfinite(run.log_det or 0.0) or (run.log_det != last and not at_start):
        _corrupt(name, "log_det", run.log_det, f"{last}, the last of {LAST}")
    _check_conditions(name, run)


def _check_conditions(name: str, run: SavedRun) -> None:
    """Check what budgets and groups have added to a run that has ended."""
    series, settings = run.series, run.settings
    if settings["groups"] is not None:
        quotas = settings["groups"]["quotas"]
        for quota in quotas:
            match quota:
                case [str() | int(), int() | float() as least, int() | float() | None] if least >= 0:
                    continue
            _corrupt(name, "quotas", repr(quota), "[label, minimum, maximum]")
        if len(run) and not 0 <= series["groups"].min() <= series["groups"].max() < len(quotas):
            _corrupt(name, "groups", int(series["groups"].max()), f"places in {len(quotas)} quotas")
    if settings["budget"] is not None and not (series["costs"] > 0).all():
        _corrupt(name, "costs", float(series["costs"].min()), "costs above 0")
    match run.compared:
        case None if settings["budget"] is None:
            return
        case {
            "kept": "costed" | "uncosted" as kept,
            "costed": {"log_det": float(), "picks": int(), "cost": float()} as costed,
            "uncosted": {"log_det": float(), "picks": int(), "cost": float()} as uncosted,
        } if settings["budget"] is not None:
            own = costed if kept == "costed" else uncosted
            if (own["log_det"], own["picks"]) == (run.log_det, len(run)):
                return
    _corrupt(name, "compared", repr(run.compared), "the two runs of a budget, the kept one with this log_det")


def _check_duplicates(name: str, run: SavedRun) -> None:
    skipped, _, cosines, ranks = (run.series[each] for each in DUPLICATES)
    if len(np.unique(np.concatenate([run.series["indices"], skipped]))) < len(run) + len(skipped):
        _corrupt(name, DUPLICATES[0], f"{len(skipped)} rows, some twice or picked", "others than the picks")
    if (np.abs(cosines) > 1 + 1e-6).any():
        _corrupt(name, DUPLICATES[2], float(np.abs(cosines).max()), "cosines")
    if len(ranks) and not (0 <= ranks[0] and ranks[-1] <= len(run) and (np.diff(ranks) >= 0).all()):
        _corrupt(name, DUPLICATES[3], ranks.tolist()[:10], f"ranks from 0 to {len(run)}, in order")


def _foreign(name: str, found: str) -> NoReturn:
    raise StoreError(
        f"{name}: file: found {found}, expected a selection in safetensors format. Name a file that Selection.save"
        " (spice-rs select --save FILE) or a checkpoint wrote; without one, select again and save it."
    )


def _corrupt(name: str, field: str, found: object, expected: str) -> NoReturn:
    raise CorruptStoreError(
        f"{name}: {field}: found {found}, expected {expected}. The file was cut short or altered: restore it, or"
        " delete it and select again."
    )
