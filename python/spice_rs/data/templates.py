"""The chat template of a tokenizer, or one from a file, and what it makes of the turns of one record.

A template is a program. Where it asks for today's date (`strftime_now`), it is given the day that the caller
names, so that the same record gives the same tokens on every day. Where it marks the assistant's words
({% generation %}), the marks are shown in the text by letters of their own, and read from there: so they are
where the words are, whatever version of `transformers` renders it.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from spice_rs.data.letters import MARK_END, MARK_START
from spice_rs.errors import InvalidInputError
from spice_rs.files import opened, read_whole

JOINED = "none"
"""The word in place of a template for prompts and responses that are joined as they stand."""
REMEDY = "pass another template (chat_template=FILE)"

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*([-+]?)%\}")
_END_GENERATION = re.compile(r"\{%([-+]?)\s*endgeneration\s*[-+]?%\}")
_OF_THE_CALL = frozenset(
    "conversation chat_template tools tokenize add_generation_prompt continue_final_message padding truncation max_length "
    "return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs sanitize_control_tokens messages".split()
)
"""Names of arguments of `apply_chat_template`, and of the turns: no variables that a record can set."""
_OF_EXPRESSIONS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError)
_OTHER_DAY = datetime.timedelta(days=4018)  # another day of the week, month and year


class TemplateFault(Exception):
    """The chat template cannot be followed for one record."""


def read_template(given: str | os.PathLike[str] | None) -> str | None:
    """The template of the argument `chat_template`: the text of the file, `JOINED`, or None for the tokenizer's own.

    Raises:
        InvalidInputError: The file cannot be read, or is no chat template.
    """
    if given is None or given == JOINED:
        return given
    if not isinstance(given, str | os.PathLike):
        raise InvalidInputError(
            f"chat_template: found {type(given).__name__}, expected the path of a file or {JOINED!r}. Name one."
        )
    place = f"chat_template {os.fspath(given)!r}"
    expected = f"a file with a Jinja template, or {JOINED!r} to join prompt and response"
    try:
        with opened(given, expected) as file:
            text = file.read().decode("utf-8")
    except InvalidInputError as error:
        raise InvalidInputError(f"chat_template: {error}") from None
    except (OSError, ValueError) as error:
        kind = "not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None)
        raise InvalidInputError(
            f"{place}: found {kind or error}, expected {expected}. Write it again."
        ) from None
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        pass
    else:
        raise InvalidInputError(
            f"{place}: found JSON, expected a Jinja template alone. Take it out of there."
        )
    if not re.search(r"\bmessages\b", text):
        raise InvalidInputError(
            f"{place}: found a template that never uses 'messages', expected one of conversations. Name that."
        )
    _check_syntax(text, place)
    return text


def recorded_date(file: Path, part: str) -> datetime.date | None:
    """The date that the chat template was told for what is there already; None if there is none.

    Args:
        file: `store.json` of a store, or the state of a run. What cannot be read is left to those who open it.
        part: Its member that has "template_date".
    """
    try:
        return datetime.date.fromisoformat(json.loads(read_whole(file, "JSON"))[part]["template_date"])
    except (InvalidInputError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _check_syntax(text: str, place: str) -> None:
    from jinja2 import Environment, TemplateSyntaxError

    try:
        bare = _END_GENERATION.sub("", _GENERATION.sub("", text))
        Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False).parse(bare)
    except TemplateSyntaxError as error:
        raise InvalidInputError(f"{place}: no Jinja template: line {error.lineno}: {error.message}") from None


@dataclass
class ChatTemplate:
    """A tokenizer with the template that it is to use.

    Attributes:
        tokenizer: A `transformers` tokenizer.
        given: Text of the template in place of the tokenizer's own, or None.
        today: What the template is told if it asks for the date.
        dated: Whether any text rendered so far depends on the date.
    """

    tokenizer: Any
    given: str | None
    today: datetime.date
    dated: bool = False
    _sources: dict[bool, Source] = field(default_factory=dict)

    def of(self, tools: Sequence[Any] | None, options: Mapping[str, Any]) -> Rendering:
        """The template for one record.

        Args:
            tools: Descriptions of the tools, if there are any: some tokenizers have another template then.
            options: Further variables that the record sets; None counts as not set.

        Raises:
            TemplateFault: The template has no such variable.
        """
        described = tools is not None
        if described not in self._sources:
            self._sources[described] = self._source(tools)
        source = self._sources[described]
        options = {name: value for name, value in options.items() if value is not None}
        for name in options:
            if name in _OF_THE_CALL or (
                source.text is not None and not re.search(rf"\b{re.escape(name)}\b", source.text)
            ):
                raise TemplateFault(
                    f"the record sets {name!r} for the chat template, which has no variable of that name; take it out, or "
                    f"{REMEDY}"
                )
        return Rendering(self, source, tools, options)

    def _source(self, tools: Sequence[Any] | None) -> Source:
        text = self.given
        if text is None:
            try:
                text = self.tokenizer.get_chat_template(None, tools)
            except (AttributeError, TypeError, ValueError):  # a tokenizer that renders by itself
                text = getattr(self.tokenizer, "chat_template", None)
        text = text if isinstance(text, str) else None
        return Source(text, self.given is not None, self.today)


@dataclass(frozen=True)
class Source:
    """The text of a template, as it is passed on.

    Attributes:
        text: None where the tokenizer renders by itself.
        given: Whether it is not the tokenizer's own.
        today: The date that it is told.
    """

    text: str | None
    given: bool
    today: datetime.date

    @cached_property
    def asks_the_date(self) -> bool:
        """Whether it may write today's date."""
        return self.text is not None and "strftime_now" in self.text

    @cached_property
    def is_marked(self) -> bool:
        """Whether it marks the assistant's words."""
        return self.text is not None and bool(_GENERATION.search(self.text))

    @cached_property
    def pinned(self) -> str | None:
        """What the tokenizer is to use; None: its own, as it is."""
        if not self.asks_the_date:
            return self.text if self.given else None
        return self._told(self.today)

    @cached_property
    def on_another_day(self) -> str | None:
        """The same, told another date."""
        return self._told(self.today + _OTHER_DAY)

    @cached_property
    def shows_marks(self) -> str:
        """The same, its {% generation %} marks shown by letters."""
        assert self.text is not None
        text = self.pinned or self.text
        text = _GENERATION.sub(lambda tag: tag[0] + _written(MARK_START, "", tag[1]), text)
        return _END_GENERATION.sub(lambda tag: _written(MARK_END, tag[1], "") + tag[0], text)

    def _told(self, day: datetime.date) -> str:
        """With a `strftime_now` of its own, that replaces each directive; `transformers` takes no function for it."""
        midnight = datetime.datetime.combine(day, datetime.time())
        values = {letter: midnight.strftime(f"%{letter}") for letter in "aAbBcdFGHIjmMpSTuUVwWxXyYZz"}
        values.update(
            D=midnight.strftime("%m/%d/%y"),
            R="00:00",
            e=f"{day.day:2}",
            h=values["b"],
            f="000000",
            n="\n",
            t="\t",
        )
        pairs = [("%%", "\x00"), *((f"%-{each}", values[each].lstrip("0") or "0") for each in "dHIjmMSy")]
        pairs += [(f"%{letter}", value) for letter, value in values.items()] + [("\x00", "%")]
        filters = "".join(f" | replace({json.dumps(old)}, {json.dumps(new)})" for old, new in pairs)
        # A line of its own, whose end is left out (trim_blocks): the template's first line stays one.
        return f"{{% macro strftime_now(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}\n{self.text}"


def _written(letter: str, before: str, after: str) -> str:
    """A block that writes a letter: blocks strip the white space that the tag beside them would have stripped."""
    return f'{{%{before} if true %}}{{{{ "{letter}" }}}}{{% endif {after}%}}'


@dataclass(frozen=True)
class Rendering:
    """The template with the tools and variables of one record.

    Attributes:
        template: The template.
        source: Its text.
        tools: Descriptions of the tools.
        options: Further variables.
        parts: Whether contents go to it as lists of one text part: templates of models that also see take nothing else.
    """

    template: ChatTemplate
    source: Source
    tools: Sequence[Any] | None
    options: Mapping[str, Any]
    parts: bool = False

    def in_parts(self) -> Rendering | None:
        """The same with contents in parts; None if the template does not look at any."""
        if self.source.text is None or not all(
            re.search(rf"\b{name}\b", self.source.text) for name in ("type", "text")
        ):
            return None
        return replace(self, parts=True)

    def text(
        self,
        turns: Sequence[Mapping[str, Any]],
        *,
        generation: bool = False,
        tools: Sequence[Any] | None = None,
    ) -> str:
        """The text of turns, with the head of the assistant's next one if `generation`.

        Raises:
            TemplateFault: The template refuses them.
        """
        return self._render(self.source.pinned, turns, generation, tools or self.tools)

    def with_marks(self, turns: Sequence[Mapping[str, Any]]) -> str:
        """The text, with `MARK_START` and `MARK_END` around what the template marks."""
        return self._render(self.source.shows_marks, turns, False, self.tools)

    def note_date(self, turns: Sequence[Mapping[str, Any]], text: str) -> None:
        """Notes whether the text of the turns depends on the date."""
        if self.source.asks_the_date and not self.template.dated:
            other = self._render(self.source.on_another_day, turns, False, self.tools)
            self.template.dated = other != text

    def _render(
        self,
        source: str | None,
        turns: Sequence[Mapping[str, Any]],
        generation: bool,
        tools: Sequence[Any] | None,
    ) -> str:
        from jinja2 import TemplateError

        options = dict(self.options)
        if source is not None:  # some tokenizers do not know of it
            options["chat_template"] = source
        if tools is not None:
            options["tools"] = tools
        if self.parts:
            turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
        try:
            text = str(
                self.template.tokenizer.apply_chat_template(
                    list(turns), tokenize=False, add_generation_prompt=generation, **options
                )
            )
        # raise_exception(…) in a template (roles must alternate, no system role, …), and what its expressions raise.
        except (TemplateError, *_OF_EXPRESSIONS) as error:
            raise TemplateFault(f"the chat template refuses the conversation: {error}") from None
        if self.parts and re.search(r"""["']type["']: ["']text["']""", text):
            raise TemplateFault("the chat template writes parts of contents as they are, not their text")
        return text
