"""The file of a selection: one safetensors file that anything able to read safetensors opens.

The format, version 1. All numbers are little-endian.

    8 bytes   length of the header
    header    JSON, padded with spaces to a multiple of 8 bytes
    data      one tensor after the other: of shape (m,), m being the number of picks, four of shape (s,), s being the
              number of near-duplicates, and three of a target

The tensors are those of `TENSORS`, in that order and without gaps. Some are there only for some settings; these but the
four of near-duplicates, and `log_dets`, only in a run that has ended:

    costs           if settings["budget"] is not null: the cost of each pick
    groups          if settings["groups"] is not null: the group of each pick, as its place in
                    settings["groups"]["quotas"], a list of [label, minimum, maximum]
    record_hashes   if settings["source"]["hashed"] is true: the hash of the record of each pick
    relevance       if settings["target"] is not null: r of each pick
    pick_tokens, pick_labels, pick_alike
                    if settings["composition"] is there and has "tokens", has "labels", has "alike" true: the tokens
                    of each pick, the place of its label in "labels", a list of [label, rows of the pool], and the rank of
                    the first other pick that it is nearly parallel to, or -1
    target_mean, target_directions, target_overlap
                    the same: (d,) μ, (g·d,) the contrast q of each of g groups, and (o,) rows left out as the target's
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
(`Belonging.about`), so that records can be checked without the source. Files of before have neither, nor "composition".

So m, s, o, d, g and the text of `run` determine every byte of the header, and a reader demands just that header. No length
that a file states is believed before it agrees with the size of the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from spice_rs.atomic import replacing
from spice_rs.errors import CorruptStoreError, InvalidInputError, StoreError
from spice_rs.files import opened
from spice_rs.nouns import counted
from spice_rs.own_json import parsed
from spice_rs.paths import local
from spice_rs.printable import short
from spice_rs.selection.constraints import KEYS
from spice_rs.selection.form import fault_of
from spice_rs.selection.saved_run import (
    COMPOSITION,
    LAST,
    NEAR_DUPLICATES,
    SERIES,
    TARGET,
    TENSORS,
    SavedRun,
    fault_of_run,
    names_of,
)

__all__ = [
    "COMPOSITION",
    "NEAR_DUPLICATES",
    "SERIES",
    "TARGET",
    "SavedRun",
    "check_same",
    "read_run",
    "write_run",
]

_NUMPY: dict[str, np.dtype[Any]] = {"I64": np.dtype("<i8"), "F64": np.dtype("<f8"), "BOOL": np.dtype("u1")}
_FORMAT = "spice-rs selection"
_VERSION = "1"
_MAX_HEADER = 100_000_000  # as safetensors has it
_LENGTH = 8
_START = b'{"__metadata__":{"checksum":"sha256:'
_DIGITS = 64
_SEAL = slice(_LENGTH + len(_START), _LENGTH + len(_START) + _DIGITS)
"""Where in the file the digits of the checksum are."""


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
    names = names_of(run.settings, ended=run.stop_reason is not None)
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
        with opened(path, "a saved selection") as file:
            size = os.fstat(file.fileno()).st_size
            first = file.read(_LENGTH)
            if first.lstrip()[:1] in (b"{", b"[") and b"\0" not in first:  # a length has zeros
                _foreign(name, "JSON, as picks are written in")
            length = int.from_bytes(first, "little")
            if size < _LENGTH + len(_START) or length > _MAX_HEADER:
                _foreign(name, f"{counted(size, 'byte')} that start with no header of one")
            header = file.read(length)
            metadata, tensors = _parse(name, header)
            lengths = _lengths(name, tensors)
            if header != _header(lengths, metadata["run"], metadata["checksum"].removeprefix("sha256:")):
                expected_tensors = f"those of {counted(lengths['indices'], 'pick')}, in order"
                _corrupt(name, "header", "other tensors or metadata", expected_tensors)
            expected = _LENGTH + length + sum(_bytes(series, count) for series, count in lengths.items())
            if size != expected:
                _corrupt(name, "file size", counted(size, "byte"), f"{expected}")
            data = file.read(expected - _LENGTH - length)
    except InvalidInputError as error:
        if os.path.lexists(name):
            raise
        raise InvalidInputError(f"{error} One is saved with Selection.save.") from error
    except OSError as error:
        raise StoreError(
            f"{name}: file: found one that cannot be read ({error.strerror}), expected a selection. Copy it again."
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
        if TENSORS[each] == "BOOL" and array.max(initial=0) > 1:
            _corrupt(name, each, int(array.max()), "0 and 1")
        series[each] = array.astype(bool if TENSORS[each] == "BOOL" else dtype.newbyteorder("="))
        start += array.nbytes
    run = _run(name, metadata["run"], series)
    fault = fault_of_run(run, list(lengths))
    if fault is not None:
        _corrupt(name, *fault)
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
        described = parsed(header)
    except ValueError as error:
        _corrupt(name, "header", error, "JSON")
    metadata = described.pop("__metadata__")
    if metadata.get("format") != _FORMAT:
        _foreign(name, f"the format {short(metadata.get('format'))}")
    if metadata.get("format_version") != _VERSION:
        raise StoreError(
            f"{name}: format_version: found {short(metadata.get('format_version'))}, expected {_VERSION!r}."
            " Read it with the version of spice-rs that wrote it."
        )
    for key in ("checksum", "run"):
        if not isinstance(metadata.get(key), str):
            _corrupt(name, key, short(metadata.get(key)), "a text")
    return metadata, described


def _lengths(name: str, tensors: dict[str, Any]) -> dict[str, int]:
    """Return the tensors in order with their lengths, still to be compared with the header and the settings."""
    sizes = dict.fromkeys(("indices", NEAR_DUPLICATES[0], *TARGET), 0)
    for series in sizes:
        match tensors.get(series):
            case {"shape": [int(count)]} if 0 <= count < 1 << 40:
                sizes[series] = int(count)  # true is 1, and spelled differently
            case found if series == "indices" or series in tensors:
                _corrupt(name, series, short(found), "the shape of a list of numbers")
    return {
        series: sizes[
            series if series in TARGET else NEAR_DUPLICATES[0] if series in NEAR_DUPLICATES else "indices"
        ]
        for series in TENSORS
        if series in tensors or (series in SERIES and series != LAST)
    }


# --- what the file says -------------------------------------------------------------------------------------------


def _run(name: str, text: str, series: dict[str, npt.NDArray[Any]]) -> SavedRun:
    """Return the run, each of its values one that it can have, but not yet held against the others."""
    try:
        run = parsed(text)
    except ValueError as error:
        _corrupt(name, "run", error, "JSON")
    match run:
        case {
            "settings": settings,
            "stop_reason": None | "budget" | "early_stop" | "exhausted" | "time_limit" as stop_reason,
            "log_det": float() | None as log_det,
            "signal": float() | None as signal,
            "compared": dict() | None as compared,
        } if len(run) == 5:
            fault = fault_of(settings)
            if fault is not None:
                _corrupt(name, *fault)
            for key in KEYS:
                settings.setdefault(key)  # constraints that came after the file
            return SavedRun(series, settings, stop_reason, log_det, signal, compared)
    _corrupt(name, "run", text[:200], "settings, stop_reason, log_det, signal and compared of a selection")


def _foreign(name: str, found: str) -> NoReturn:
    raise StoreError(
        f"{name}: file: found {found}, expected a selection in safetensors format. Name a file that Selection.save or"
        " a checkpoint wrote; without one, select again and save it."
    )


def _corrupt(name: str, field: str, found: object, expected: str) -> NoReturn:
    raise CorruptStoreError(
        f"{name}: {field}: found {found}, expected {expected}. The file was cut short or altered: restore it, or"
        " delete it and select again."
    )
