"""A selection as a data set of LLaMA-Factory: a file of samples, and its entry in `dataset_info.json`.

Written is what the gradients were taken of, in one layout whatever the data's own: chat turns as {"messages":
[{"role", "content"}, …]}, read with formatting "sharegpt", and plain text as {"text"}, for stage `pt`.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spice_rs.atomic import replacing
from spice_rs.data.records import Message, Record, chosen_records
from spice_rs.errors import InvalidInputError, SpiceWarning

if TYPE_CHECKING:
    from spice_rs.selection.result import Selection

INFO = "dataset_info.json"

CHAT: dict[str, Any] = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "observation_tag": "tool",
        "function_tag": "function_call",
        "system_tag": "system",
    },
}
"""How chat turns are read. A tag that is left out is none at all, once one is given."""

TEXT: dict[str, Any] = {"columns": {"prompt": "text"}}
"""How plain text is read."""


def write_llama_factory(
    selection: Selection,
    folder: str | os.PathLike[str],
    data: Any,
    *,
    name: str = "spice",
    columns: Mapping[str, str] | None = None,
) -> None:
    """Write `NAME.jsonl` and the entry NAME in `dataset_info.json`; see `Selection.to_llama_factory`."""
    check_folder(folder, name)
    rows = selection.indices.tolist()
    records = {record.index: record for record in chosen_records(data, set(rows), columns)}
    missing = set(rows) - records.keys()
    if missing:
        raise InvalidInputError(
            f"data: found no record {min(missing)}, expected all {len(rows)} picked rows. Give the data that the"
            " gradients were extracted from."
        )
    picked = [records[row] for row in rows]
    layout = _layout(picked)
    _warn_of_skipped(picked)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entries = _entries(folder / INFO)
    file_name = f"{name}.jsonl"
    with replacing(folder / file_name) as file:
        file.writelines(json.dumps(_sample(record), ensure_ascii=False).encode() + b"\n" for record in picked)
    entries[name] = {"file_name": file_name, **layout}
    with replacing(folder / INFO) as file:
        file.write(json.dumps(entries, ensure_ascii=False, indent=2).encode() + b"\n")


def check_folder(folder: str | os.PathLike[str], name: str) -> None:
    """Fail now if `write_llama_factory` would fail after a long selection.

    Raises:
        InvalidInputError: no data set can be called so, the folder is a file, or has a data set of this name by others.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InvalidInputError(
            f"name: found {name!r}, expected letters, digits, '_', '-' and '.'. LLaMA-Factory parts names by commas."
        )
    place = Path(folder)
    if place.exists() and not place.is_dir():
        raise InvalidInputError(
            f"{place}: found a file, expected a folder, LLaMA-Factory's dataset_dir. Name one."
        )
    entry = _entries(place / INFO).get(name)
    if entry is not None and (not isinstance(entry, dict) or entry.get("file_name") != f"{name}.jsonl"):
        raise InvalidInputError(
            f"{place / INFO}: found another data set called {name!r}, expected none or {name}.jsonl. Give another name."
        )


def _entries(path: Path) -> dict[str, Any]:
    """Return the data sets that are there already."""
    try:
        entries = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError, OSError) as error:
        raise InvalidInputError(
            f"{path}: found no JSON ({error}), expected an object. Correct it, or name another folder."
        ) from error
    if not isinstance(entries, dict):
        raise InvalidInputError(
            f"{path}: found {type(entries).__name__}, expected an object. Correct it, or name another folder."
        )
    return entries


def _layout(records: Sequence[Record]) -> dict[str, Any]:
    kinds = {_kind(record): record for record in reversed(records)}
    if "tokens" in kinds:
        raise InvalidInputError(
            f"{kinds['tokens'].place}: found token ids, expected text or turns: LLaMA-Factory makes its own tokens. Give"
            " the data in words."
        )
    richer = next((each for each in records if _is_richer(each)), None)
    if richer is not None:
        raise InvalidInputError(
            f"{richer.place}: found tools, calls of them or thoughts, expected turns of words alone: LLaMA-Factory has a"
            " layout of its own for them. Export the records as they are, and convert them with its tools."
        )
    if len(kinds) > 1:
        text, chat = kinds["text"].place, kinds["chat"].place
        raise InvalidInputError(
            f"data: found plain text ({text}) and turns ({chat}) among the picks, expected one of the two: LLaMA-Factory"
            " trains on each in a stage of its own. Select from one kind at a time."
        )
    return TEXT if "text" in kinds else CHAT


def _kind(record: Record) -> str:
    if record.tokens is not None:
        return "tokens"
    return "chat" if record.text is None else "text"


def _is_richer(record: Record) -> bool:
    """Whether a record has more than its turns' words (and names) to learn from."""
    return record.tools is not None or any(turn.more.keys() - {"name"} for turn in record.messages)


def _sample(record: Record) -> dict[str, Any]:
    if record.text is not None:
        return {"text": record.text}
    return {"messages": [{"role": _role(turn), "content": turn.content} for turn in record.messages]}


def _role(turn: Message) -> str:
    """Return the turn's role; what a function returned is called a tool's since functions became tools."""
    return "tool" if turn.role == "function" else turn.role


def _warn_of_skipped(records: Sequence[Record]) -> None:
    skipped = [record for record in records if record.text is None and not _alternates(record)]
    if skipped:
        message = (
            f"{len(skipped)} of {len(records)} picks (the first: {skipped[0].place}) will be skipped by LLaMA-Factory:"
            " after a system turn it wants user or tool and assistant in turn, the assistant last. Correct the records."
        )
        warnings.warn(message, SpiceWarning, stacklevel=4)


def _alternates(record: Record) -> bool:
    roles = [_role(turn) for turn in record.messages]
    if roles[:1] == ["system"]:
        roles = roles[1:]
    asked, answered = roles[::2], roles[1::2]
    return len(asked) == len(answered) and set(asked) <= {"user", "tool"} and set(answered) <= {"assistant"}
