"""Records: what one row of a data set says, read from files, `datasets` objects or lists, and checked.

The *index* of a record is its position in the data: the number of records before it, bad ones that `skip_bad`
passes over included. In a JSON Lines file every line that is not blank is a record; blank lines are none. So
an index means the same sample whatever was skipped, and it is the index that the gradient store keeps.

Layouts, told apart by the fields that are present (the first match in this order):

=====================  ==============================================================================
`input_ids`, `labels`  tokenised already; -100 in `labels` marks tokens that are not learned
`messages`             chat: a list of {"role", "content"}; all assistant turns are learned
`conversations`        the same in ShareGPT's words: a list of {"from", "value"}
prompt and response    `instruction` (+ `input`) | `prompt` | `question`, then `response` | `output` |
                       `completion` | `answer`
=====================  ==============================================================================

This file needs neither torch nor transformers; `datasets` and `pyarrow` are imported where a source is
theirs.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spice_rs.errors import InvalidInputError

PROMPT_FIELDS = ("instruction", "prompt", "question")
RESPONSE_FIELDS = ("response", "output", "completion", "answer")
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
}
SKIP_REMEDY = "correct it, or pass skip_bad=True (--skip-bad) to leave such records out and count them"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """One sample of the data: a conversation, or tokens that somebody else made.

    Attributes:
        index: Position in the data (see the module's text).
        place: Where it stands, for messages to people: "pool.jsonl, line 7".
        messages: The turns, empty for a tokenised record.
        tokens: (2, T) int64, rows `input_ids` and `labels`, or None for a conversation.
    """

    index: int
    place: str
    messages: tuple[Message, ...] = ()
    tokens: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Records(Sequence[Record]):
    """The records of one data set, in its order.

    Attributes:
        items: The good records, ascending in `index`.
        rows: Number of records in the data, bad ones included: indices are in [0, rows).
        bad: One message per record that was left out.
        source: The data's name for people.
    """

    items: tuple[Record, ...]
    rows: int
    bad: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: Any) -> Any:
        return self.items[position]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.items)


class _Columns(dict[str, Any]):
    """A record of a columnar format, which fills fields that a record does not have with null."""


class _BadRecord(Exception):
    """What is wrong with one record, before its place is known."""


def load_records(data: Any, *, skip_bad: bool = False) -> Records:
    """Reads and checks every record of `data`.

    Args:
        data: Path to a .jsonl, .json or .parquet file (.gz of the first two as well), a folder or hub id for
            `datasets`, a `datasets.Dataset`, or a sequence of dicts.
        skip_bad: Leave bad records out and count them, instead of stopping at the first.

    Raises:
        InvalidInputError: The data cannot be read, or a record is malformed, lacks a field or has an empty
            response; the message names file, line, field, what was found and what to do.
    """
    source, parsed = _open(data)
    items: list[Record] = []
    bad: list[str] = []
    rows = 0
    for index, (place, parse) in enumerate(parsed):
        rows = index + 1
        try:
            items.append(_record(index, place, parse()))
        except _BadRecord as error:
            message = f"{place}: {error}"
            if not skip_bad:
                raise InvalidInputError(f"{message}; {SKIP_REMEDY}") from None
            bad.append(message)
    if rows == 0:
        raise InvalidInputError(
            f"{source}: found no records, expected at least one; check the path and the split"
        )
    if not items:
        raise InvalidInputError(f"{source}: all {rows} records are bad; the first: {bad[0]}")
    return Records(tuple(items), rows, tuple(bad), source)


def raw_records(data: Any, rows: Container[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (row, record as it stands in the data) of the wanted rows, unchecked.

    Args:
        data: As for `load_records`.
        rows: Row numbers as `load_records` counts them.

    Raises:
        InvalidInputError: The data cannot be read, or a wanted record is no object.
    """
    _, parsed = _open(data)
    for index, (place, parse) in enumerate(parsed):
        if index not in rows:
            continue
        try:
            fields = parse()
        except _BadRecord as error:
            raise InvalidInputError(f"{place}: {error}") from None
        if not isinstance(fields, Mapping):
            raise InvalidInputError(f"{place}: found {_found(fields)}, expected an object with named fields")
        yield index, dict(fields)


def dataset_fingerprint(records: Records) -> str:
    """Hash of what is learned from: every good record's index and content, and the number of rows.

    Fields that extraction does not read (ids, sources, scores) do not count: adding one keeps a store valid.
    """
    digest = hashlib.sha256(f"records:{records.rows}\n".encode())
    for record in records:
        if record.tokens is not None:
            content: Any = hashlib.sha256(np.ascontiguousarray(record.tokens).tobytes()).hexdigest()
        else:
            content = [[message.role, message.content] for message in record.messages]
        line = json.dumps([record.index, content], ensure_ascii=True, separators=(",", ":"))
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------ one record


def _record(index: int, place: str, fields: Any) -> Record:
    if not isinstance(fields, Mapping):
        raise _BadRecord(f"found {_found(fields)}, expected an object with named fields")
    if isinstance(fields, _Columns):
        fields = {name: value for name, value in fields.items() if value is not None}
    if "input_ids" in fields:
        return Record(index, place, tokens=_tokens(fields))
    if "messages" in fields:
        return Record(index, place, messages=_messages(fields["messages"], "messages", "role", "content"))
    if "conversations" in fields:
        return Record(
            index, place, messages=_messages(fields["conversations"], "conversations", "from", "value")
        )
    prompt_field = _first_present(fields, PROMPT_FIELDS, "the prompt")
    response_field = _first_present(fields, RESPONSE_FIELDS, "the response")
    prompt = _text(fields[prompt_field], prompt_field)
    extra = fields.get("input") if prompt_field == "instruction" else None
    if extra is not None and _text(extra, "input").strip():
        prompt = f"{prompt}\n\n{extra}"
    response = _text(fields[response_field], response_field)
    if not response.strip():
        raise _BadRecord(f"field {response_field!r} is empty, expected the text to learn")
    return Record(index, place, messages=(Message("user", prompt), Message("assistant", response)))


def _first_present(fields: Mapping[str, Any], names: tuple[str, ...], what: str) -> str:
    for name in names:
        if name in fields:
            return name
    found = ", ".join(map(repr, fields)) or "no fields"
    raise _BadRecord(
        f"found {found}, expected {what} in one of {', '.join(map(repr, names))} (or 'messages', 'input_ids')"
    )


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise _BadRecord(f"field {field!r} is {_found(value)}, expected a string")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise _BadRecord(f"field {field!r} holds half of a surrogate pair, expected Unicode text")
    return value


def _messages(value: Any, field: str, role_key: str, content_key: str) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) == 0:
        raise _BadRecord(f"field {field!r} is {_found(value)}, expected a list of turns")
    turns: list[Message] = []
    for number, turn in enumerate(value):
        where = f"{field}[{number}]"
        if not isinstance(turn, Mapping):
            raise _BadRecord(
                f"{where} is {_found(turn)}, expected an object with {role_key!r} and {content_key!r}"
            )
        for key in (role_key, content_key):
            if key not in turn:
                raise _BadRecord(f"{where} has no {key!r}, found {', '.join(map(repr, turn)) or 'no fields'}")
        role = _text(turn[role_key], f"{where}.{role_key}")
        if role_key == "from":
            if role not in SHAREGPT_ROLES:
                known = ", ".join(SHAREGPT_ROLES)
                raise _BadRecord(f"{where}.from is {role!r}, expected one of {known}")
            role = SHAREGPT_ROLES[role]
        turns.append(Message(role, _content(turn[content_key], f"{where}.{content_key}")))
    replies = [turn.content for turn in turns if turn.role == "assistant"]
    if not replies:
        raise _BadRecord(f"field {field!r} has no assistant turn, expected at least one to learn")
    if not any(reply.strip() for reply in replies):
        raise _BadRecord(f"field {field!r}: every assistant turn is empty, expected text to learn")
    return tuple(turns)


def _content(value: Any, field: str) -> str:
    """A turn's text: a string, or a list of {"type": "text", "text"} parts."""
    if isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        for part in value:
            if part.get("type") != "text":
                raise _BadRecord(f"{field} has a part of type {part.get('type')!r}, expected text alone")
        return "".join(_text(part.get("text"), f"{field}.text") for part in value)
    return _text(value, field)


def _tokens(fields: Mapping[str, Any]) -> NDArray[np.int64]:
    columns = []
    for name in ("input_ids", "labels"):
        if name not in fields:
            raise _BadRecord(f"field {name!r} is missing beside {', '.join(map(repr, fields))}")
        value = fields[name]
        try:
            column = np.asarray(value)
        except (ValueError, TypeError, RuntimeError):
            raise _BadRecord(f"field {name!r} is {_found(value)}, expected a list of integers") from None
        if column.ndim != 1 or column.dtype.kind not in "iu" or column.size == 0:
            raise _BadRecord(f"field {name!r} is {_found(value)}, expected a non-empty list of integers")
        columns.append(np.minimum(column, np.iinfo(np.int64).max).astype(np.int64))
    if columns[0].size != columns[1].size:
        raise _BadRecord(
            f"found {columns[0].size} input_ids and {columns[1].size} labels, expected equal lengths"
        )
    if max(column.max() for column in columns) >= 1 << 31:
        raise _BadRecord("found a token id of 2³¹ or more, expected ids of a vocabulary")
    if columns[0].min() < 0:
        raise _BadRecord(f"field 'input_ids' holds {columns[0].min()}, expected token ids of 0 and above")
    if columns[1].min() < 0 and np.any((columns[1] < 0) & (columns[1] != -100)):
        raise _BadRecord("field 'labels' holds a negative id that is not -100, expected token ids or -100")
    return np.stack(columns)


def _found(value: Any) -> str:
    if value is None:
        return "null"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


# --------------------------------------------------------------------------------------------- sources

# A source yields one (place, parse) per record; `parse` raises _BadRecord where the record cannot be decoded.
_Parsed = Iterator[tuple[str, Callable[[], Any]]]


def _open(data: Any) -> tuple[str, _Parsed]:
    if isinstance(data, (str, Path)):
        return str(data), _from_path(data)
    if isinstance(data, Mapping):
        raise InvalidInputError(
            f"data is {_found(data)}, expected a list of records; for a DatasetDict pass one split"
        )
    if isinstance(data, Sequence) or (hasattr(data, "__len__") and hasattr(data, "__iter__")):
        return "data", _from_items(data, "data")
    raise InvalidInputError(
        f"data is {_found(data)}, expected a path, a hub id, a Dataset or a list of records"
    )


def _from_items(items: Iterable[Any], name: str) -> _Parsed:
    for index, item in enumerate(items):
        yield f"{name}[{index}]", lambda item=item: item  # type: ignore[misc]


def _from_path(data: str | Path) -> _Parsed:
    path = Path(data)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else (suffixes or [""])[-1]
    if path.is_file():
        if kind in (".jsonl", ".ndjson"):
            return _from_jsonl(path)
        if kind == ".json":
            return _from_json(path)
        if kind == ".parquet":
            return _from_parquet(path)
        raise InvalidInputError(
            f"{path}: found suffix {kind!r}, expected .jsonl, .json or .parquet; rename or convert it"
        )
    if kind in (".jsonl", ".ndjson", ".json", ".parquet"):
        raise InvalidInputError(f"{path}: no such file; check the path")
    return _from_datasets(data)


def _from_jsonl(path: Path) -> _Parsed:
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opener(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
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
        raise _BadRecord(
            f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}, found {_found(line[:80])}"
        ) from None
    except UnicodeDecodeError as error:
        raise _BadRecord(f"not UTF-8: byte {error.start} is {line[error.start]:#04x}") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, a number of thousands of digits
        raise _BadRecord(f"not JSON that can be read: {error}") from None


def _from_json(path: Path) -> _Parsed:
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opener(path, "rb") as file:
            text = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInputError(
            f"{path}: cannot be read to its end ({error}); copy or download it again"
        ) from error
    if not text.lstrip().startswith(b"["):
        return _from_jsonl(path)  # JSON Lines are often named .json
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise InvalidInputError(
            f"{path}: not a JSON list ({error}); correct it, or save one record per line as .jsonl"
        ) from None
    return _from_items(items, str(path))


def _from_parquet(path: Path) -> _Parsed:
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
            for batch in file.iter_batches():
                for item in batch.to_pylist():
                    yield f"{path}, row {index}", lambda item=item: _Columns(item)  # type: ignore[misc]
                    index += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidInputError(f"{path}: not a readable Parquet file ({error}); write it again") from error


def _from_datasets(data: str | Path) -> _Parsed:
    try:
        import datasets
    except ImportError:
        raise InvalidInputError(
            f"{data}: no such file, and hub ids and folders need `datasets`; pip install 'spice-rs[extract]'"
        ) from None
    path = Path(data)
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(str(path))
        else:
            loaded = datasets.load_dataset(str(data))
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidInputError(
            f"{data}: neither a file nor a data set that `datasets` can load ({error})"
        ) from error
    if isinstance(loaded, Mapping):
        splits = list(loaded)
        if "train" not in splits and len(splits) != 1:
            raise InvalidInputError(
                f"{data}: found splits {splits}, expected 'train' or a single one; pass a Dataset"
            )
        loaded = loaded["train" if "train" in splits else splits[0]]
    return _from_items(map(_Columns, loaded), str(data))
