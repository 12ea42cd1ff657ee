"""How LLaMA-Factory reads records as they are: which of its columns and tags each of theirs is.

Known from its own code, `src/llamafactory/data/parser.py`, `converter.py` and `processor/` of versions 0.9.3 to 0.9.5. What
it would pass over without a word is refused by name. Its formatting "openai" (from 0.9.4) is not used: it adds
words to the system prompt, and reads calls of tools from columns in which Arrow has filled in nulls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spice_rs.data.values import is_null
from spice_rs.errors import InvalidInputError
from spice_rs.report.llama_fields import (
    AS_JSON_LINES,
    CHATS,
    CHOSEN,
    KNOWN,
    LABELS,
    MEDIA,
    NAME_COLUMNS,
    PROMPTS,
    QUERIES,
    REJECTED,
    RESPONSES,
    SYSTEMS,
    TOOLS,
    UNREAD,
    Columns,
    Seen,
    check_media,
    listed,
)
from spice_rs.report.llama_marks import check_record_marks
from spice_rs.report.llama_turns import turn_tags
from spice_rs.selection.encoding import encoded

DATE = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d(:\d\d(:\d\d(\.\d*)?)?)?(Z|[+-]\d\d(:?\d\d)?)?)?")
"""What `datasets`, by which LLaMA-Factory loads, takes for a time where a whole column is such text."""


@dataclass
class Layout:
    """What makes LLaMA-Factory read a list of records.

    Attributes:
        entry: What stands in `dataset_info.json`, but for the name of the file.
        stage: The stage of training that reads such records.
        as_text: The column of tools, if it must be written as JSON text.
        skipped: Places of records that it skips with a line in its log, since their turns do not alternate.
    """

    entry: dict[str, Any]
    stage: str
    as_text: str | None = None
    skipped: list[str] = field(default_factory=list)


def layout_of(
    records: Sequence[Mapping[str, Any]],
    places: Sequence[str],
    columns: Mapping[str, str] | None = None,
    ignored: Collection[str] = (),
) -> Layout:
    """Return how LLaMA-Factory reads records, all of them.

    Args:
        records: As they stand in the data; at least one.
        places: What each is called in messages.
        columns: Field → column of the data, as for `extract`: no other column is then read.
        ignored: Columns, and keys "field.key" of turns, that say nothing: `ignore_columns` of `extract`.

    Raises:
        InvalidInputError: It would not read a record, or not all of what a record says; or one entry does not do for all.
    """
    for name in columns or {}:
        if name not in KNOWN:
            raise InvalidInputError(f"columns: found {name!r}, expected fields of {', '.join(sorted(KNOWN))}")
    seen = [Seen.of(place, record, columns, ignored) for record, place in zip(records, places, strict=True)]
    kinds: dict[tuple[str, str], str] = {}
    for each in seen:
        kinds.setdefault(_kind(each), each.place)
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise InvalidInputError(
            f"data: found {_spoken(one)} ({first}) and {_spoken(other)} ({second}) among the picks, expected one of the"
            " two: LLaMA-Factory reads each with an entry of its own. Select from one kind at a time."
        )
    (form, stage) = next(iter(kinds))
    used = Columns(dict(columns or {}))
    if form == "turns":
        tags, skipped = turn_tags(seen, stage, used)
    else:
        tags, skipped = {}, []
        _prompts(seen, form, stage, used)
    as_text = _shared(seen, form, stage, used)
    entry: dict[str, Any] = {"formatting": "sharegpt" if tags else "alpaca"}
    if stage == "dpo":
        entry["ranking"] = True
    entry["columns"] = used.named
    if tags:
        entry["tags"] = tags
    return Layout(entry, stage, as_text, skipped)


def _spoken(kind: tuple[str, str]) -> str:
    form = {"turns": "turns", "text": "plain text", "prompt": "a prompt and a response"}[kind[0]]
    return form + {"kto": " with a label", "dpo": " with a chosen and a rejected one"}.get(kind[1], "")


def _kind(record: Seen) -> tuple[str, str]:
    """Return what a record is made of, and the stage of training it is for."""
    if "input_ids" in record.fields:
        raise record.refuse(
            "token ids, expected text or turns: LLaMA-Factory makes its own tokens", "Give the data in words"
        )
    for name in UNREAD:
        if record.has(name):
            raise record.refuse(
                f"{name!r}, which LLaMA-Factory does not read, expected records without it",
                f"{NAME_COLUMNS}, or {AS_JSON_LINES}",
            )
    plain = record.first((*CHATS, *PROMPTS, *RESPONSES, *CHOSEN)) is None
    if plain and "text" in record.fields:
        return "text", "pt"
    if plain and not record.fields.keys() & KNOWN:
        there = ", ".join(map(repr, record.fields)) or "no fields"
        raise record.refuse(f"{there}, expected a prompt and a response, turns or text", NAME_COLUMNS)
    wanted, unwanted = record.first(CHOSEN), record.first(REJECTED)
    if unwanted is not None and wanted is None and record.first(CHATS) is None:
        wanted = record.first(RESPONSES)  # as ms-swift has it
    if (wanted is None) != (unwanted is None):
        raise record.refuse(
            f"{wanted or unwanted!r} alone, expected a wanted reply and one that is not", NAME_COLUMNS
        )
    stage = "dpo" if wanted is not None else "kto" if _label(record) is not None else "sft"
    return "prompt" if record.first(CHATS) is None else "turns", stage


def _label(record: Seen) -> str | None:
    """Return the field that says whether a reply is wanted."""
    for name in LABELS:
        value = record.fields.get(name)
        if isinstance(value, bool):
            return name
        if isinstance(value, int | float) and value == 0:
            raise record.refuse(
                f"{value!r} as {name!r}, which LLaMA-Factory reads as a reply that is not wanted if it is false alone,"
                " expected false or another value",
                f"Correct it. {NAME_COLUMNS}, if it means something else",
            )
    return None


def _prompts(seen: Sequence[Seen], form: str, stage: str, used: Columns) -> None:
    """Name the columns of prompts and responses, or of plain text, and look whether they are as they are read."""
    for record in seen:
        check_record_marks(record, replies=form != "text")
        contents = []
        for column, names in _wanted(form, stage).items():
            name = record.only(names)
            if name is None:
                there = ", ".join(map(repr, record.fields))
                raise record.refuse(
                    f"{there}, expected the {column} in one of {', '.join(map(repr, names))}", NAME_COLUMNS
                )
            contents.append(record.text(name))
            used.use(column, name, record)
        contents = contents[:2] if stage == "dpo" else contents  # one reply at a time
        if form == "prompt":
            contents += _before(record, used)
        check_media(record, contents)


def _wanted(form: str, stage: str) -> dict[str, tuple[str, ...]]:
    """Return LLaMA-Factory's columns that a record must have, and the fields that are it."""
    if form == "text":
        return {"prompt": ("text",)}
    if stage == "dpo":
        # A response beside a wanted reply would be passed over.
        return {"prompt": PROMPTS, "chosen": (*CHOSEN, *RESPONSES), "rejected": REJECTED}
    return {"prompt": PROMPTS, "response": RESPONSES}


def _before(record: Seen, used: Columns) -> list[str]:
    """Name the columns beside a prompt, and return their words."""
    query = record.only(QUERIES)
    contents = []
    if query is not None:
        contents.append(record.text(query))
        used.use("query", query, record)
    if (history := record.fields.get("history")) is not None:
        used.use("history", "history", record)
        for pair in history if isinstance(history, list | tuple) else [history]:
            words = list(pair) if isinstance(pair, list | tuple) else []
            if len(words) != 2 or not all(isinstance(each, str) for each in words):
                raise record.refuse(
                    "a history that is no list of [prompt, response], which LLaMA-Factory does not read, expected one",
                    NAME_COLUMNS,
                )
            contents += words
    return contents


def _shared(seen: Sequence[Seen], form: str, stage: str, used: Columns) -> str | None:
    """Name the columns that any layout can have; return that of tools, if it must be written as text."""
    as_text = None
    for record in seen:
        given = {"system": record.only(SYSTEMS), "tools": record.only(TOOLS)}
        given |= {column: record.only(names) for column, names in MEDIA.items()}
        if stage == "kto":
            given["kto_tag"] = _label(record)
        for column, name in given.items():
            if name is None:
                continue
            if form == "text":
                if record.has(name):
                    raise record.refuse(
                        f"{name!r} beside plain text, which LLaMA-Factory reads alone, expected nothing beside it",
                        f"{NAME_COLUMNS}, or {AS_JSON_LINES}",
                    )
                continue
            if column == "system":
                record.text(name)
            used.use(column, name, record)
            if column == "tools" and _tools(record.fields[name], record) != record.fields[name]:
                as_text = used.named["tools"]
    return as_text


def _tools(value: Any, record: Seen) -> str:
    """Return descriptions of tools as LLaMA-Factory reads them: JSON text of a list of objects."""
    try:
        tools = (json.loads(value) if value.strip() else []) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        tools = None
    listed = [tools] if isinstance(tools, Mapping) else tools
    if not isinstance(listed, list | tuple) or not all(isinstance(tool, Mapping) for tool in listed):
        raise record.refuse(
            "'tools' that are no list of objects, nor the same as JSON text, expected what LLaMA-Factory reads",
            NAME_COLUMNS,
        )
    return value if isinstance(value, str) and listed is tools else encoded(listed, record.place)


def check_dates(records: Sequence[Mapping[str, Any]], layout: Layout) -> None:
    """Refuse a column that is read and holds nothing but dates.

    Raises:
        InvalidInputError: see above.
    """
    for column, name in layout.entry["columns"].items():
        words = [record[name] for record in records if record.get(name) is not None]
        if words and all(isinstance(each, str) and DATE.fullmatch(each) for each in words):
            raise InvalidInputError(
                f"data: found nothing but dates such as {words[0]!r} as {name!r}, expected other words in one pick at"
                f" least: `datasets` reads such a column as times, and LLaMA-Factory no times as its {column}. Write the"
                " records as turns."
            )


def samples_of(
    records: Sequence[Mapping[str, Any]], places: Sequence[str], layout: Layout
) -> Iterator[dict[str, Any]]:
    """Yield the records as they are written: unchanged but for tools that must be text, and nulls as pandas has them."""
    name, read = layout.as_text, {*KNOWN, *layout.entry["columns"].values()}
    for record, place in zip(records, places, strict=True):
        sample = {key: None if key in read and is_null(value) else value for key, value in record.items()}
        if name is not None and sample.get(name) is not None:
            sample[name] = _tools(listed(sample[name]), Seen(place, sample))
        yield sample
