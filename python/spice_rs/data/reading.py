"""Where records come from: files, folders, hub ids and objects of `datasets`, data frames, and lists.

A source is opened as pairs (place, parse), one for each record: the place is for messages to people, and `parse`
raises `BadRecord` where the record cannot be decoded, so that one bad line does not end the reading. `datasets` and
`pyarrow` are imported where a source is theirs.
"""

from __future__ import annotations

import codecs
import copy
import csv
import io
import json
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spice_rs.data.splits import are_splits, chosen, parted
from spice_rs.errors import InvalidInputError
from spice_rs.files import check_file, check_folder, lines_of, read_whole, unpacked
from spice_rs.hub import reached
from spice_rs.nouns import counted
from spice_rs.paths import is_meant_local, local, near
from spice_rs.signs import step

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", *_DELIMITERS)
_KINDS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
}
"""Suffix → kind of file, of which `datasets` reads one in a folder."""
_ABOUT_DATA = ("dataset_info", "dataset_infos", "dataset_dict", "state")  # JSON that describes a data set
LONGEST_CELL = 1 << 27  # letters; Python's own limit is shorter than many answers

Parsed = Iterator[tuple[str, Callable[[], Any]]]
"""(place, parse) of each record."""


class BadRecord(Exception):
    """What is wrong with one record, before its place is known: in a few words for counting, and in full."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def found(value: Any) -> str:
    """A value for a message: its type and the start of it."""
    if value is None:
        return "null"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def ignoring(*names: str) -> str:
    """How a caller says that columns, or keys of turns, say nothing; for messages."""
    given = repr(names[0]) if len(names) == 1 else repr(list(names))
    return f"ignore_columns={given}"


@dataclass(frozen=True)
class Loaded:
    """A data set that `datasets` has loaded.

    Attributes:
        name: What was asked for.
        rows: Its records.
    """

    name: str
    rows: Any


def loaded(data: Any) -> Any:
    """The data, where they are a folder or a hub id as what `datasets` makes of it: it is asked once.

    Raises:
        InvalidInputError: The data cannot be read.
    """
    if not isinstance(data, str | os.PathLike):
        return chosen(data, "data", None) if isinstance(data, Mapping) and are_splits(data) else data
    given, split = parted(data)
    path = _checked(given)
    return data if path.is_file() or _kind(path) in _SUFFIXES else _from_datasets(given, path, split)


def check_there(data: str | os.PathLike[str]) -> None:
    """Refuse a path at which nothing is, unless it may be a hub id.

    Raises:
        InvalidInputError: there is no such file or folder.
    """
    given, _ = parted(data)
    path = _checked(given)
    if path.exists():
        return
    if _kind(path) in _SUFFIXES:
        raise InvalidInputError(f"{path}: no such file; check the path{near(str(path))}")
    if is_meant_local(local(given)):
        raise InvalidInputError(f"{given}: no such file or folder; check the path{near(local(given))}")


def identity(data: Any) -> list[str | int] | None:
    """What tells these data from others without reading them; None if nothing does.

    A file is known by what the system says of it, which changes with every write; a data set of `datasets` by the
    fingerprint that it has.
    """
    if isinstance(data, str | os.PathLike):
        path = local(parted(data)[0])
        try:
            about = os.stat(path)
        except OSError:
            return None
        if not stat.S_ISREG(about.st_mode):
            return None
        known = (about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
        return ["file", os.fspath(data), os.path.realpath(path), *known]
    name, rows = (data.name, data.rows) if isinstance(data, Loaded) else ("data", data)
    fingerprint = getattr(rows, "_fingerprint", None)
    if type(rows).__module__.partition(".")[0] != "datasets" or not isinstance(fingerprint, str):
        return None
    return ["datasets", name, fingerprint, len(rows)]


def size_of(data: Any) -> int | None:
    """The number of records, where the data say it."""
    rows = data.rows if isinstance(data, Loaded) else data
    return len(rows) if hasattr(rows, "__len__") and not isinstance(rows, str) else None


def open_data(data: Any) -> tuple[str, Parsed]:
    """The data's name for people, and its records.

    Raises:
        InvalidInputError: the data cannot be read; files are read while the records are taken.
    """
    if isinstance(data, Loaded):
        step(f"reading {data.name}")
        return data.name, _from_items(data.rows, data.name)
    step("reading the data" if not isinstance(data, str | os.PathLike) else f"reading {os.fspath(data)}")
    if isinstance(data, str | os.PathLike):
        return os.fspath(data), _from_path(data)
    if (rows := _rows_of_frame(data)) is not None:
        return "data", _from_items(rows, "data")
    if isinstance(data, Mapping):
        if are_splits(data):
            return open_data(chosen(data, "data", None))
        raise InvalidInputError(f"data: found {found(data)}, expected a list of records. Give one.")
    if isinstance(data, Sequence) or (hasattr(data, "__len__") and hasattr(data, "__iter__")):
        return "data", _from_items(data, "data")
    raise InvalidInputError(
        f"data: found {found(data)}, expected a path, a hub id, a Dataset, a data frame or a list of records. Give one."
    )


def _rows_of_frame(data: Any) -> Iterable[Any] | None:
    """The rows of a data frame of pandas or polars, or of a table of Arrow, in its order; None for anything else."""
    package = type(data).__module__.partition(".")[0]
    if package == "pandas" and hasattr(data, "itertuples"):
        names = list(data.columns)
        return (dict(zip(names, row, strict=True)) for row in data.itertuples(index=False, name=None))
    if package == "polars" and hasattr(data, "iter_rows"):
        return data.iter_rows(named=True)  # type: ignore[no-any-return]
    if package == "pyarrow" and hasattr(data, "to_batches"):
        return (row for batch in data.to_batches() for row in batch.to_pylist())
    return None


def _from_items(items: Iterable[Any], name: str) -> Parsed:
    for index, item in enumerate(_undecoded(items)):
        yield f"{name}[{index}]", lambda item=item: item  # type: ignore[misc]


def _undecoded(items: Iterable[Any]) -> Iterable[Any]:
    """The rows of a `Dataset` with images, sounds or films as they lie there: nobody needs them, and decoding may fail."""
    given, form = getattr(items, "features", None), getattr(items, "format", None)
    if not isinstance(given, Mapping) or not isinstance(form, Mapping) or form.get("type") is not None:
        return items  # no `Dataset`, or one whose format is the caller's
    features: Any = copy.deepcopy(given)
    if not _leave_encoded(features):
        return items
    tables = items.with_format("arrow", columns=form["columns"]).iter(batch_size=1000)  # type: ignore[attr-defined]
    return (features.decode_example(row) for table in tables for row in table.to_pylist())


def _leave_encoded(feature: Any) -> bool:
    """Tells types of `datasets` for what is no text not to decode it, at any depth; whether there are any."""
    if isinstance(feature, Mapping):
        return any([_leave_encoded(each) for each in feature.values()])
    if isinstance(feature, list | tuple):
        return any([_leave_encoded(each) for each in feature])
    if hasattr(feature, "feature"):
        return _leave_encoded(feature.feature)
    if not hasattr(feature, "decode_example") or type(feature).__name__ == "Json":
        return False
    feature.decode = False
    return True


def _from_path(data: str | os.PathLike[str]) -> Parsed:
    given, split = parted(data)
    path = _checked(given)
    kind = _kind(path)
    if path.is_file():
        if split is not None:
            raise InvalidInputError(
                f"{path}: found split {split!r} of a file, which has none, expected the file alone. Leave the split out."
            )
        if kind in (".jsonl", ".ndjson"):
            return _from_jsonl(path)
        if kind == ".json":
            return _from_json(path)
        if kind == ".parquet":
            return _from_parquet(path)
        if kind in _DELIMITERS:
            return _from_table(path, _DELIMITERS[kind])
        if kind in (".zst", ".xz", ".bz2", ".zip"):
            unpacked(path, "records").close()  # which names what has packed it
        raise InvalidInputError(
            f"{path}: found suffix {kind!r}, expected .jsonl, .json, .csv, .tsv or .parquet; rename or convert it"
        )
    check_there(data)
    rows = _from_datasets(given, path, split)
    return _from_items(rows.rows, rows.name)


def _checked(data: str | os.PathLike[str]) -> Path:
    """The path of a file, of a folder, or of nothing: then it may be a hub id."""
    path = Path(local(data))
    try:
        path.is_file()
    except OSError as error:  # a text that is no path
        raise InvalidInputError(f"data is {found(str(data))}, no path ({error.strerror}); check it") from None
    if os.path.lexists(path) and not path.is_dir():
        check_file(path, "a file of records")  # never a pipe: records are read more than once
    return path


def _kind(path: Path) -> str:
    """The suffix that says how a file is read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else (suffixes or [""])[-1]


def _from_table(path: Path, delimiter: str) -> Parsed:
    """Rows of text by the names in the first line. A quoted cell may go over several lines."""
    try:
        with (
            unpacked(path, "a table") as raw,
            io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text,
        ):
            allow_long_cells()
            rows = csv.reader(text, delimiter=delimiter, strict=True)
            names = next(rows, [])
            if twice := {name for name in names if names.count(name) > 1}:
                raise InvalidInputError(
                    f"{path}: found the column {min(twice)!r} twice, expected names that differ; rename one"
                )
            number = 0
            for cells in rows:
                if cells:
                    yield f"{path}, row {number}", lambda cells=cells: _row(names, cells)  # type: ignore[misc]
                    number += 1
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"{path}: cannot be read to its end ({error}); write it again, in UTF-8, or as .jsonl"
        ) from error


def allow_long_cells() -> None:
    """Let Python read cells of CSV as long as answers are."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))


def _row(names: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    if len(cells) != len(names):
        raise BadRecord(
            "ragged row",
            f"found {counted(len(cells), 'cell')}, expected {len(names)}, one for each name in the first line",
        )
    return dict(zip(names, cells, strict=True))


def _from_jsonl(path: Path) -> Parsed:
    try:
        with unpacked(path, "JSON Lines") as lines:
            for number, line in enumerate(lines_of(lines, path), start=1):
                if line.strip():
                    yield f"{path}, line {number}", lambda line=line: _decode(line)  # type: ignore[misc]
    except (OSError, EOFError, zlib.error) as error:
        # A gzip file cut short ends in EOFError; one that is no gzip in BadGzipFile, an OSError.
        raise InvalidInputError(
            f"{path}: cannot be read to its end ({error}); copy or download it again"
        ) from error


def _decode(line: bytes) -> Any:
    try:
        return json.loads(line.rstrip(b"\r\n"))
    except json.JSONDecodeError as error:
        raise BadRecord(
            "not JSON",
            f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}, found {found(line[:80])}",
        ) from None
    except UnicodeDecodeError as error:
        raise BadRecord("not UTF-8", f"not UTF-8: byte {error.start} is {line[error.start]:#04x}") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, a number of thousands of digits
        raise BadRecord("not JSON", f"not JSON that can be read: {error}") from None


def _from_json(path: Path) -> Parsed:
    text = read_whole(path, "a list of records")
    text = text.removeprefix(codecs.BOM_UTF8)
    if not text.lstrip().startswith(b"["):
        _check_lines(path, text)
        return _from_jsonl(path)  # JSON Lines are often named .json
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise InvalidInputError(
            f"{path}: not a JSON list ({error}); correct it, or save one record per line as .jsonl"
        ) from None
    return _from_items(items, str(path))


def _check_lines(path: Path, text: bytes) -> None:
    """Refuses a file that is one object over several lines."""
    try:
        whole = json.loads(text) if b"\n" in text.strip() else None
    except (ValueError, RecursionError):
        return
    if isinstance(whole, dict):
        raise InvalidInputError(
            f"{path}: found one object with {', '.join(map(repr, list(whole)[:5])) or 'no fields'}, expected a list of "
            "records, or one record per line; save the records alone"
        )


def _from_parquet(path: Path) -> Parsed:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InvalidInputError(
            f"{path}: reading Parquet needs pyarrow; pip install 'spice-rs[extract]'"
        ) from None
    index = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            # Maps are objects to us; an older pyarrow, which has no such argument, need not know it without them.
            maps = {"maps_as_pydicts": "strict"} if "map<" in str(file.schema_arrow) else {}
            for batch in file.iter_batches():
                for item in batch.to_pylist(**maps):
                    yield f"{path}, row {index}", lambda item=item: item  # type: ignore[misc]
                    index += 1
    except (
        pyarrow.ArrowException,
        OSError,
        KeyError,
        ValueError,
        MemoryError,
    ) as error:  # KeyError: a key twice in a map
        raise InvalidInputError(f"{path}: not a readable Parquet file ({error}); write it again") from error


def _from_datasets(given: str, path: Path, split: str | None) -> Loaded:
    """What `datasets` makes of a folder, or of a hub id."""
    if not path.is_dir() and is_meant_local(local(given)):
        raise InvalidInputError(f"{given}: no such file or folder; check the path{near(local(given))}")
    data = str(path) if path.is_dir() else given
    try:
        import datasets
    except ImportError:
        raise InvalidInputError(
            f"{data}: no such file, and hub ids and folders need `datasets`; pip install 'spice-rs[extract]'"
        ) from None
    is_saved = (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
    if path.is_dir():
        check_folder(path, "files of records")
    if not is_saved:
        _check_kinds(path)
    try:
        if is_saved:
            loaded = datasets.load_from_disk(str(path))
        else:
            with reached(data, "dataset"):
                loaded = datasets.load_dataset(data)
    except InvalidInputError:
        raise
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise InvalidInputError(
            f"{data}: neither a file nor a data set that `datasets` can load{near(given)} ({reason})"
        ) from error
    if isinstance(loaded, Mapping):
        loaded = chosen(loaded, data, split)
    elif split is not None and str(loaded.split) != split:
        raise InvalidInputError(
            f"{data}: found split {split!r} of a data set that is one of its own, expected the folder alone. Leave the"
            " split out."
        )
    return Loaded(data, loaded)


def _check_kinds(folder: Path) -> None:
    """Refuses a folder with files of several kinds, of which `datasets` reads one.

    Raises:
        InvalidInputError: See above.
    """
    if not folder.is_dir():
        return
    kinds: dict[str, Path] = {}
    for file in sorted(folder.rglob("*")):
        suffixes = [
            suffix.lower() for suffix in file.suffixes if suffix.lower() not in (".gz", ".zst", ".bz2", ".xz")
        ]
        about = file.stem in _ABOUT_DATA or any(
            part.startswith(".") for part in file.relative_to(folder).parts
        )
        kind = _KINDS.get(suffixes[-1]) if suffixes and not about and file.is_file() else None
        if kind is not None:
            kinds.setdefault(kind, file)
    if len(kinds) > 1:
        one, other, *_ = kinds.values()
        raise InvalidInputError(
            f"{folder}: found files of several kinds ({one.name}, {other.name}), of which `datasets` would read one,"
            " expected one kind. Name a file, or move the others"
        )
