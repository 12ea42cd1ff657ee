"""Names: of the fields that are read, of columns that say nothing to learn from, and the layouts that people have.

`LAYOUTS` is the table of docs/data-formats.md, and a test holds the two together. This file holds names alone; what is
done with them is in `records.py` and the modules that it calls.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

PROMPT_FIELDS = ("instruction", "prompt", "question", "query")
RESPONSE_FIELDS = ("response", "output", "completion", "answer", "answers")
TURN_FIELDS = ("messages", "conversations")
SYSTEM_FIELDS = ("system", "system_prompt")
TOOL_FIELDS = ("tools", "functions")
WANTED_FIELDS = ("chosen", "chosen_response", "accepted", "preferred", "preferred_output")
UNWANTED_FIELDS = (
    "rejected",
    "rejected_response",
    "rejected_messages",
    "non_preferred_output",
    "undesirable",
)
SEVERAL_FIELDS = ("completions", "responses", "candidates", "generations")
SCORE_FIELDS = ("scores", "rewards")
TOKEN_FIELDS = ("input_ids", "labels")
LOSS_MASK_FIELDS = ("completion_mask", "assistant_masks", "assistant_mask", "loss_mask")
ALPACA_FIELDS = ("instruction", "input", "output")
OPTIONS_FIELD = "chat_template_kwargs"

ALTERNATIVES = {
    "prompt": PROMPT_FIELDS,
    "response": RESPONSE_FIELDS,
    "turns": TURN_FIELDS,
    "system": SYSTEM_FIELDS,
    "tools": TOOL_FIELDS,
    "several": SEVERAL_FIELDS,
    "scores": SCORE_FIELDS,
}
"""Fields that mean the same: a record is read by the first of them that says something."""

WANTED_MARKS = ("label", "kto_tag", "desirable", "is_desirable", "is_chosen", "is_preferred", "thumbs_up")
"""Of a record: whether its reply is wanted (KTO)."""

LEARNED_MARKS = (
    *(
        "weight",
        "weights",
        "sample_weight",
        "example_weight",
        "loss_weight",
        "loss_scale",
        "loss_mask",
        "loss_masks",
    ),
    *("train", "training", "trainable", "train_on_turn", "train_mask"),
    *("learn", "learned", "loss", "turn_mask", "turn_weight", "turn_weights"),
    *("completion_mask", "assistant_mask", "assistant_masks"),
)
"""Of a record, a turn, or of each turn of a record: 1 or true where it is learned."""

MASKED_MARKS = ("masked", "is_masked", "ignore", "ignored", "no_loss", "no_train")
"""1 or true where it is not learned."""

EITHER_MARKS = ("mask", "masks")
"""One or the other: turns that are no replies tell, since they are not learned."""

PARTIAL_MARKS = ("train_detail", "training_detail", "token_weights", "loss_weights")
"""Marks of parts of a turn."""

_KINDS_OF_MARKS = {
    **dict.fromkeys(WANTED_MARKS, "wanted"),
    **dict.fromkeys(LEARNED_MARKS, "learned"),
    **dict.fromkeys(MASKED_MARKS, "masked"),
    **dict.fromkeys(EITHER_MARKS, "either"),
    **dict.fromkeys(PARTIAL_MARKS, "partial"),
}
_WORDS_OF_MARKS = frozenset(
    "train training trainable loss learn learned mask masked unmasked supervised".split()
)

FIELDS = (
    *TOKEN_FIELDS,
    "attention_mask",
    *LOSS_MASK_FIELDS,
    *TURN_FIELDS,
    *TOOL_FIELDS,
    OPTIONS_FIELD,
    *SYSTEM_FIELDS,
    "history",
    "context",
    *PROMPT_FIELDS,
    "input",
    *RESPONSE_FIELDS,
    "chosen",
    "rejected",
    *SEVERAL_FIELDS,
    *SCORE_FIELDS,
    "weight",
    "label",
    "text",
)
"""Fields that a record can have, and that `columns` can name a column for."""

NEEDED_FIELDS = frozenset(
    (*TOKEN_FIELDS, *TURN_FIELDS, *PROMPT_FIELDS, *RESPONSE_FIELDS, "chosen", *SEVERAL_FIELDS, "text")
)
"""Fields that a record must have once `columns` names them; the others may be absent."""

TELLING_FIELDS = (
    *TOKEN_FIELDS,
    *TURN_FIELDS,
    "tools",
    *PROMPT_FIELDS,
    "input",
    *RESPONSE_FIELDS,
    "chosen",
    "text",
)
"""Fields by which a mapping is taken for a record, beside data of the user's own."""


TEMPLATE_VARIABLES = ("enable_thinking", "thinking", "add_generation_prompt", "continue_final_message")
"""Names that templates and tokenizers know, which say something of a record only in `OPTIONS_FIELD`."""


@dataclass(frozen=True)
class Layout:
    """A layout that many data sets have.

    Attributes:
        name: What people call it.
        told_by: Fields that a record of it has; "a|b": one of the two.
        reads: Fields that are read.
        read_as: What becomes of them, for people.
        refuses: Columns that are refused, and so the record.
        ignores: Columns of its own that hold text and say nothing more to learn from.
    """

    name: str
    told_by: tuple[str, ...]
    reads: tuple[str, ...]
    read_as: str
    refuses: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()

    def fits(self, names: frozenset[str]) -> bool:
        """Whether a record with these fields may be of this layout."""
        return all(any(each in names for each in told.split("|")) for told in self.told_by)


_PAIR = ("tools", OPTIONS_FIELD)

LAYOUTS = (
    Layout(
        "Tokenised",
        ("input_ids",),
        (*TOKEN_FIELDS, "attention_mask", *LOSS_MASK_FIELDS, "position_ids", "cu_seqlens", "seq_lengths"),
        "the sample itself",
        refuses=("pixel_values",),
        ignores=("token_type_ids", "special_tokens_mask", "length", "text"),
    ),
    Layout(
        "OpenAI chat",
        ("messages",),
        ("messages", *TOOL_FIELDS, OPTIONS_FIELD, *SYSTEM_FIELDS),
        "turns; a system column goes first",
        refuses=("images",),
        ignores=("parallel_tool_calls",),
    ),
    Layout(
        "ShareGPT, SlimOrca, OpenHermes, LLaMA-Factory's sharegpt",
        ("conversations",),
        ("conversations", *TOOL_FIELDS, OPTIONS_FIELD, *SYSTEM_FIELDS),
        "turns; a system column goes first",
        refuses=("images", "videos", "audios"),
        ignores=("title",),
    ),
    Layout(
        "UltraChat, no_robots",
        ("messages", "prompt"),
        ("messages", "prompt"),
        "turns; a prompt that is one of them says nothing more, and another is refused",
    ),
    Layout(
        "Alpaca, LLaMA-Factory's alpaca",
        ("instruction", "output"),
        ("instruction", "input", "output", *SYSTEM_FIELDS, "history", *_PAIR),
        "system, turns of the history (learned), instruction and input with an empty line between, output; a text that"
        " holds the last three is a rendering of them",
        refuses=("images", "videos", "audios"),
        ignores=("text",),
    ),
    Layout(
        "Dolly",
        ("instruction", "context", "response"),
        ("instruction", "context", "response"),
        "instruction and context with an empty line between, response",
        ignores=("category",),
    ),
    Layout(
        "OpenOrca",
        ("system_prompt", "question", "response"),
        ("system_prompt", "question", "response"),
        "system, question, response",
    ),
    Layout(
        "ms-swift",
        ("query", "response"),
        (*SYSTEM_FIELDS, "history", "query", "response", *_PAIR),
        "system, turns of the history (learned), query, response",
        refuses=("images", "videos", "audios"),
    ),
    Layout(
        "MetaMath",
        ("query", "response", "original_question"),
        ("query", "response"),
        "query, response",
        ignores=("original_question", "type"),
    ),
    Layout(
        "SQuAD",
        ("question", "context", "answer|answers"),
        ("question", "context", "answer", "answers"),
        "context and question with an empty line between, the answer; several different answers are refused",
        ignores=("title",),
    ),
    Layout(
        "TRL prompt and completion",
        ("prompt", "completion"),
        ("prompt", "completion", *_PAIR),
        "texts, or lists of turns; the assistant's turns in the prompt are context",
        refuses=("images",),
    ),
    Layout(
        "KTO (TRL, LLaMA-Factory, ms-swift)",
        ("prompt|messages|conversations|instruction|query", "label|kto_tag"),
        ("prompt", "completion", "messages", "conversations", "label", "kto_tag"),
        "as without the mark where it is true; where it is false, there is nothing to learn",
    ),
    Layout(
        "Preference pairs (TRL, HH-RLHF, Orca-DPO, UltraFeedback, LLaMA-Factory's ranking)",
        ("chosen|rejected",),
        ("prompt", "question", "instruction", "messages", "conversations", "chosen", *SYSTEM_FIELDS),
        'refused; with preference="chosen" the wanted side, of which what both sides share is context',
        ignores=("rejected",),
    ),
    Layout(
        "Several replies with scores",
        ("|".join(SEVERAL_FIELDS),),
        ("prompt", *SEVERAL_FIELDS, *SCORE_FIELDS),
        'refused; with preference="chosen" the reply with the highest score',
    ),
    Layout(
        "Plain text", ("text",), ("text",), "text, all of it learned", refuses=("image",), ignores=("title",)
    ),
    Layout(
        "OASST's trees", ("text", "role"), (), "refused: a row is one message of a tree", refuses=("role",)
    ),
)
"""The layouts of docs/data-formats.md. Fields mean the same in any mixture of them."""


@functools.lru_cache(maxsize=4096)
def fitting(names: frozenset[str]) -> frozenset[str]:
    """The columns that the layouts of a record with these fields ignore."""
    return frozenset(name for layout in LAYOUTS if layout.fits(names) for name in layout.ignores)


_SAYS_NOTHING = frozenset(
    """
    id ids idx index indices uid uuid guid key number row
    source sources src origin dataset datasets subset config split path paths filename filepath dump provenance
    name author authors annotator annotators worker workers
    category categories topic topics task tasks type types kind kinds tag tags domain domains subject subjects field
    group groups cluster clusters class
    skill skills difficulty level grade intent flags genre
    url urls uri link links website
    license licence licenses licences copyright
    date dates datetime time timestamp timestamps year created updated modified
    score scores rating ratings quality rank ranks votes upvotes downvotes likes reward rewards confidence
    lang langs language languages locale country
    model models generator engine teacher version status
    hash hashes sha sha1 sha256 md5 checksum fingerprint
    meta metadata spice subcategory subcategories resource langdetect ext ability bucket added channel header hexsha
    """.split()
)
"""Names of columns that describe a record, in small letters."""

_SUFFIXES = frozenset(
    """
    id ids idx index uid uuid url urls uri score scores rating ratings date time timestamp at hash sha256 md5 source
    category type lang language license licence licenses model models split path topic tag tags
    generator generators hexsha datetime config configs label labels
    """.split()
)

_MEDIA = frozenset(
    """
    image images img imgs picture pictures photo photos pixel pixels audio audios sound sounds video videos
    pdf pdfs attachment attachments
    """.split()
)
_FILES = (("file",), ("files",))
_OF_MEDIA = frozenset("id ids count counts num number n has size width height hash sha256 md5 score".split())


@functools.lru_cache(maxsize=65536)
def parts(name: str) -> tuple[str, ...]:
    """A name's words: "conversationId", "Conversation-ID" and "conversation_id" are alike."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return tuple(part for part in re.split(r"[^0-9a-z]+", snake.lower()) if part)


@functools.lru_cache(maxsize=65536)
def kind_of_mark(name: str) -> str | None:
    """What a field or key of this name marks: "learned", "masked", "either", "partial", "wanted"; None: nothing.

    "alike": it has a word of marks in its name, and may be one.
    """
    own = parts(name)
    kind = _KINDS_OF_MARKS.get("_".join(own))
    return kind or (None if _WORDS_OF_MARKS.isdisjoint(own) else "alike")


@functools.lru_cache(maxsize=65536)
def is_metadata(name: str) -> bool:
    """Whether a column of this name describes the record, and is no part of it."""
    own = parts(name)
    if is_media(name):
        return False
    if name.startswith("spice."):  # our own numbers in a table
        return True
    if len(own) < 2:
        return not _SAYS_NOTHING.isdisjoint(own)
    return own[-1] in _SUFFIXES or (own[-1] in ("name", "names") and is_metadata("_".join(own[:-1])))


@functools.lru_cache(maxsize=65536)
def is_media(name: str) -> bool:
    """Whether a column of this name holds images, sounds, films or files, or where they lie."""
    own = parts(name)
    return own in _FILES or (not _MEDIA.isdisjoint(own) and _OF_MEDIA.isdisjoint((own[0], own[-1])))


@functools.lru_cache(maxsize=65536)
def is_unwanted(name: str) -> bool:
    """Whether a column of this name holds a reply that is not wanted."""
    return name in UNWANTED_FIELDS or ("rejected" in parts(name) and not is_metadata(name))
