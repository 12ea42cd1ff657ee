"""Records: what one row of a data set says, checked; `reading.py` opens files, `datasets` objects and lists.

The *index* of a record is its position in the data: the number of records before it, bad ones that `skip_bad`
passes over included. In a JSON Lines file every line that is not blank is a record; blank lines are none. So
an index means the same sample whatever was skipped, and it is the index that the gradient store keeps.

Layouts, told apart by the fields that say something (the first match in this order); docs/data-formats.md has them all:

=====================  ==============================================================================
`input_ids`            tokenised already (`tokens.py`); -100 in `labels` marks tokens that are not learned
`chosen`, `rejected`   preference data (`preferences.py`): refused, or the wanted side with preference="chosen"
`messages`,            turns (`turns.py`); all of the assistant's are learned, their calls of tools too, unless marked
`conversations`        otherwise (`marks.py`); `tools` beside them describes these, as chat templates take them
prompt and response    `instruction` (+ `input`, `context`) | `prompt` | `question` | `query`, then `response` | `output` |
                       `completion` | `answer` | `answers` (`pairs.py`); `system` and `history` go before
`text`                 plain text, all of it learned
=====================  ==============================================================================

Text that none of these reads is refused by name (`fields.py`), never dropped. Data that call these fields otherwise are
read with `columns`, field → column of the data: {"prompt": "frage", "response": "antwort"}.

This file needs neither torch nor transformers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spice_rs.data import layouts, preferences
from spice_rs.data.fields import Fields, Rules
from spice_rs.data.layouts import FIELDS, PROMPT_FIELDS, RESPONSE_FIELDS
from spice_rs.data.left_out import SKIP_REMEDY, LeftOut
from spice_rs.data.marks import check_record_mark, unwanted
from spice_rs.data.pairs import read_plain, read_prompt, read_response, with_system
from spice_rs.data.reading import BadRecord, found, open_data
from spice_rs.data.samples import short_hash
from spice_rs.data.tokens import READ as TOKENS_READ
from spice_rs.data.tokens import read_tokens
from spice_rs.data.tools import read_tools
from spice_rs.data.turns import MORE, Message, as_context, read_turns
from spice_rs.data.values import is_blank, plain, text
from spice_rs.errors import InvalidInputError
from spice_rs.nouns import counted

__all__ = [
    "FIELDS",
    "MORE",
    "PROMPT_FIELDS",
    "RESPONSE_FIELDS",
    "Message",
    "Record",
    "Records",
    "dataset_fingerprint",
    "load_records",
    "parse_record",
    "record_hash",
]


_TOLD_EVERY = 64  # records, of which some are long


@dataclass(frozen=True)
class Record:
    """One sample of the data: a conversation, plain text, or tokens that somebody else made.

    Attributes:
        index: Position in the data (see the module's text).
        place: Where it stands, for messages to people: "pool.jsonl, line 7".
        messages: The turns, empty for text and tokens.
        tokens: (2, T) int64, rows `input_ids` and `labels`, or None.
        text: Text that is learned as a whole, or None.
        tools: Descriptions of the tools that a conversation may call, for the chat template.
        template_options: Further variables of the chat template that the record sets, as TRL's `chat_template_kwargs`.
    """

    index: int
    place: str
    messages: tuple[Message, ...] = ()
    tokens: NDArray[np.int64] | None = None
    text: str | None = None
    tools: Sequence[Any] | None = None
    template_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Records(Sequence[Record]):
    """The records of one data set, in its order.

    Attributes:
        items: The good records, ascending in `index`.
        rows: Number of records in the data, bad ones included: indices are in [0, rows).
        bad: The records that were left out.
        source: The data's name for people.
        described: Columns that describe the records by their names, and are not read.
    """

    items: Sequence[Record]
    rows: int
    bad: tuple[LeftOut, ...]
    source: str
    described: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: Any) -> Any:
        return self.items[position]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.items)


class Keeper(Protocol):
    """What takes records one after the other, to keep them elsewhere than in memory."""

    def append(self, record: Record) -> None:
        """Take the next one."""

    def finish(self) -> Sequence[Record]:
        """Return all that were taken."""


def load_records(
    data: Any,
    *,
    skip_bad: bool = False,
    columns: Mapping[str, str] | None = None,
    ignore_columns: str | Sequence[str] | None = None,
    preference: str | None = None,
    keeper: Keeper | None = None,
    count: Callable[[int], object] | None = None,
) -> Records:
    """Reads and checks every record of `data`.

    Args:
        data: Path to a .jsonl, .json, .csv, .tsv or .parquet file (.gz of all but the last as well), a folder or hub id for
            `datasets`, a `datasets.Dataset`, or a sequence of dicts.
        skip_bad: Leave bad records out and count them, instead of stopping at the first.
        columns: Field → column of the data, for data that do not use the names of `FIELDS`.
        ignore_columns: Columns that say nothing to learn from, beside those known as such: one name, or several. A key
            of a turn is "messages.key".
        preference: "chosen": of preference data learn the wanted replies; they are refused otherwise.
        keeper: Keeps the good records; None: they are held in memory.
        count: Called with the number of records that were read since it was called before, now and then.

    Raises:
        InvalidInputError: The data cannot be read, or a record is malformed, lacks a field, has an empty response, or
            holds text that would not be read; the message names file, line, field, what was found and what to do.
    """
    rules = Rules.of(columns, ignore_columns, preference)
    source, parsed = open_data(data)
    items: list[Record] = []
    take = items.append if keeper is None else keeper.append
    bad: list[LeftOut] = []
    rows = told = 0
    names: set[str] = set()
    for index, (place, parse) in enumerate(parsed):
        rows = index + 1
        if count is not None and rows - told == _TOLD_EVERY:
            count(rows - told)
            told = rows
        try:
            given = parse()
            record = _record(index, place, given, rules)
            names.update(given)
        except BadRecord as error:
            left_out = LeftOut(index, place, error.reason, str(error))
            if not skip_bad:
                raise InvalidInputError(f"{left_out}; {SKIP_REMEDY}") from None
            bad.append(left_out)
        else:
            take(record)
    if count is not None:
        count(rows - told)
    if rows == 0:
        raise InvalidInputError(
            f"{source}: found no records, expected at least one; check the path and the split"
        )
    if len(bad) == rows:
        raise InvalidInputError(
            f"{source}: all {counted(rows, 'record is', 'records are')} bad; the first: {bad[0]}"
        )
    named = set(rules.columns.values())
    described = sorted(name for name in names - named if isinstance(name, str) and layouts.is_metadata(name))
    kept = tuple(items) if keeper is None else keeper.finish()
    return Records(kept, rows, tuple(bad), source, tuple(described))


def parse_record(
    index: int,
    place: str,
    fields: Any,
    *,
    columns: Mapping[str, str] | None = None,
    ignore_columns: str | Sequence[str] | None = None,
    preference: str | None = None,
) -> Record:
    """Reads one record, given as it stands in the data, with arguments as those of `load_records`.

    Raises:
        BadRecord: It is malformed, lacks a field, has an empty response, or holds text that would not be read.
    """
    return _record(index, place, fields, Rules.of(columns, ignore_columns, preference))


def dataset_fingerprint(records: Records) -> str:
    """Hash of what is learned from: every good record's index and content, and the number of rows.

    Fields that extraction does not read (ids, sources, scores) do not count: adding one keeps a store valid.
    """
    digest = hashlib.sha256(f"records:{records.rows}\n".encode())
    for record in records:
        digest.update(_as_json([record.index, _learned(record)]) + b"\n")
    return digest.hexdigest()


def fingerprint_and_hashes(records: Records) -> tuple[str, NDArray[np.int64]]:
    """`dataset_fingerprint` of all records and `record_hash` of each, (n,) int64, in one go over them."""
    digest = hashlib.sha256(f"records:{records.rows}\n".encode())
    hashes = np.empty(len(records), np.int64)
    for place, record in enumerate(records):
        short, ordered = _encodings(record)
        digest.update(f"[{record.index},{short}]\n".encode())
        hashes[place] = short_hash(ordered.encode())
    return digest.hexdigest(), hashes


def _encodings(record: Record) -> tuple[str, str]:
    """What is learned from a record as JSON: as the fingerprint of all has it, and as the hash of one."""
    if record.messages and record.tools is None and not record.template_options:
        turns = [
            (encode_basestring_ascii(each.role), encode_basestring_ascii(each.content))
            for each in record.messages
            if each.learned and not each.more
        ]
        if len(turns) == len(record.messages):  # as nearly all are
            short = ",".join([f"[{role},{content}]" for role, content in turns])
            return f"[{short}]", f"[{', '.join([f'[{role}, {content}]' for role, content in turns])}]"
    learned = _learned(record)
    return _SHORT(learned), _SORTED(_without_nulls(learned))


def record_hash(record: Record) -> int:
    """Hash of what is learned from one record, an int64, wherever it stands in whatever data.

    It counts what `dataset_fingerprint` counts, without the index, and without what columnar formats change inside of
    tools and calls: the order of fields, and fields that are null where a record does not have them.
    """
    return short_hash(_SORTED(_without_nulls(_learned(record))).encode())


def _without_nulls(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list | tuple) else value


def _learned(record: Record) -> Any:
    """What is learned from a record, in what JSON has."""
    if record.tokens is not None:
        return hashlib.sha256(np.ascontiguousarray(record.tokens).tobytes()).hexdigest()
    if record.text is not None:
        return {"text": record.text}
    content: list[Any] = [
        [each.role, each.content, *([each.more] if each.more else []), *([] if each.learned else [False])]
        for each in record.messages
    ]
    content += [] if record.tools is None else [{"tools": record.tools}]
    return content + ([{"template_options": record.template_options}] if record.template_options else [])


def _as_json(content: Any) -> bytes:
    return _SHORT(content).encode()


_SHORT = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode
_SORTED = json.JSONEncoder(ensure_ascii=True, sort_keys=True).encode


# ------------------------------------------------------------------------------------------ one record


def _record(index: int, place: str, given: Any, rules: Rules) -> Record:
    try:
        return _read(index, place, given, rules)
    except RecursionError:
        raise BadRecord(
            "wrong type", "found values nested too deeply to be read, expected fewer levels"
        ) from None


def _read(index: int, place: str, given: Any, rules: Rules) -> Record:
    if not isinstance(given, Mapping):
        raise BadRecord("no object", f"found {found(given)}, expected an object with named fields")
    pair = None if rules.columns or rules.ignored else read_plain(given)
    if pair is not None:
        return Record(index, place, messages=pair)
    fields = Fields(given, rules)
    turns_field = fields.first("turns")
    paired = fields.first("prompt") or fields.first("response")
    if fields.says("input_ids") or ("input_ids" in fields and not (turns_field or paired)):
        read = {name: fields.take(name) for name in fields.values if name in TOKENS_READ}
        tokens = read_tokens(read)
        _follow_marks(fields)
        fields.check_rest("tokens", tokens=True)
        return Record(index, place, tokens=tokens)
    if turns_field is not None and not fields.says(turns_field) and paired is not None:
        turns_field = None  # an empty list, as it is put where records of two layouts are joined
    sides = [name for name in (*fields.kinds.wanted, *fields.kinds.unwanted) if _is_side(fields, name)]
    if sides:
        turns, layout = _wanted_turns(fields, turns_field, sides), "preference data"
    elif turns_field is not None:
        turns, layout = with_system(fields, _turns(fields, turns_field)), f"turns in {turns_field!r}"
    elif "text" in fields and paired is None:
        return _plain_text(index, place, fields)
    else:
        turns, layout = _pair(fields), "a prompt and a response"
    _follow_marks(fields)
    _check_replies(turns, turns_field or fields.first("response") or layout)
    tools = _tools(fields, turns)
    options = _template_options(fields)
    fields.check_rest(layout)
    return Record(index, place, messages=tuple(turns), tools=tools, template_options=options)


def _plain_text(index: int, place: str, fields: Fields) -> Record:
    words = text(fields.take("text"), "text")
    if not words.strip():
        raise BadRecord("empty text", "field 'text': found empty text, expected the text to learn")
    _follow_marks(fields, wanted=False)
    fields.check_rest("plain text")
    return Record(index, place, text=words)


def _turns(fields: Fields, name: str) -> list[Message]:
    """The turns of a conversation, with the marks that the record has for each."""
    marks = {}
    for mark in fields.kinds.marks:
        value, kind = fields.anywhere(mark), layouts.kind_of_mark(mark)
        by_turn = isinstance(value, list | tuple | np.ndarray) and not is_blank(value)
        if by_turn and kind in ("learned", "masked", "either"):
            marks[mark] = value
    fields.leave(marks)
    return read_turns(fields.take(name), name, ignored=fields.rules.ignored, marks=marks)


def _pair(fields: Fields) -> list[Message]:
    several = fields.first("several")
    if several is None or not fields.says(several) or fields.first("response") is not None:
        return [*read_prompt(fields), *read_response(fields)]
    scores = fields.first("scores")
    if fields.rules.preference is None or scores is None:
        raise preferences.refused([several])
    fields.leave((several, scores))
    reply = preferences.best_reply(fields.values[several], fields.values[scores], (several, scores))
    return [*as_context(read_prompt(fields)), Message("assistant", reply)]


def _is_side(fields: Fields, name: str) -> bool:
    """Whether it is a reply, and no number or mark under the name of one."""
    value = fields.anywhere(name)
    return value is not None and hasattr(value, "__len__") and not is_blank(value)


def _wanted_turns(fields: Fields, turns_field: str | None, sides: Sequence[str]) -> list[Message]:
    if fields.rules.preference is None:
        raise preferences.refused(sides)
    wanted = next((name for name in fields.kinds.wanted if name in sides and name in fields), None)
    unwanted = next((name for name in fields.kinds.unwanted if name in sides), None)
    fields.leave(fields.kinds.unwanted)
    if turns_field is not None and wanted is not None:
        turns = with_system(fields, _turns(fields, turns_field))
    elif turns_field is not None:
        return preferences.last_reply(with_system(fields, _turns(fields, turns_field)), turns_field)
    elif wanted is None:
        prompt = as_context(read_prompt(fields))
        return [*prompt, *read_response(fields)]
    else:
        turns = read_prompt(fields, needed=False)
    other = None if unwanted is None else fields.anywhere(unwanted)
    names = (wanted, unwanted or "rejected")
    return preferences.chosen_turns(turns, fields.take(wanted), other, names, fields.rules.ignored)


def _follow_marks(fields: Fields, *, wanted: bool = True) -> None:
    """Refuses a record that is marked as not to be learned, or whose reply is not wanted."""
    for name in fields.kinds.marks:
        value, kind = fields.anywhere(name), layouts.kind_of_mark(name)
        if value is None or is_blank(value) or fields.is_done(name) or (kind == "wanted" and not wanted):
            continue
        check_record_mark(name, value)
        if kind not in ("alike", "wanted") or isinstance(value, bool | int | float | np.generic):
            fields.leave((name,))
    for name in (*fields.kinds.wanted, *fields.kinds.unwanted):  # as marks, and not as sides
        value = fields.anywhere(name)
        if isinstance(value, bool | np.bool_):
            if bool(value) == (name in fields.kinds.unwanted):
                raise unwanted(name, value)
            fields.leave((name,))


def _check_replies(turns: Sequence[Message], field: str) -> None:
    replies = [turn for turn in turns if turn.role == "assistant"]
    if not replies:
        raise BadRecord(
            "no assistant turn", f"field {field!r}: found no assistant turn, expected at least one to learn"
        )
    if not any(reply.content.strip() or reply.calls for reply in replies):
        raise BadRecord(
            "empty response",
            f"field {field!r}: found assistant turns that are all empty, expected text to learn",
        )
    if not any(reply.learned and (reply.content.strip() or reply.calls) for reply in replies):
        raise BadRecord(
            "nothing to learn",
            f"field {field!r}: found assistant turns that are all marked as not to be learned, or empty, expected"
            " one to learn",
        )


def _tools(fields: Fields, turns: Sequence[Message]) -> Sequence[Any] | None:
    name = fields.first("tools")
    if name is None:
        return None
    needed = name in fields.rules.columns or any(turn.calls for turn in turns)
    return read_tools(fields.take(name), name, needed=needed)


def _template_options(fields: Fields) -> Mapping[str, Any]:
    if layouts.OPTIONS_FIELD not in fields:
        return {}
    value = fields.take(layouts.OPTIONS_FIELD)
    options = plain(_parsed(value) if isinstance(value, str) else value, f"field {layouts.OPTIONS_FIELD!r}")
    if not isinstance(options, dict):
        raise BadRecord(
            "wrong type",
            f"field {layouts.OPTIONS_FIELD!r}: found {found(value)}, expected an object of variables",
        )
    return options


def _parsed(value: str) -> Any:
    try:
        return json.loads(value) if value.strip() else {}
    except (ValueError, RecursionError):
        return value
