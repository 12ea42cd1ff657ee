r"""Text of data, made fit to be shown: what a terminal, a browser or a plot would obey is escaped instead.

Labels, file names and records may hold anything: escape sequences that move a cursor or rename a window, letters that turn
the direction of reading around, half surrogates that no stream takes. Wherever such text becomes visible it goes through a
function of this module, one for each kind of output; files that machines read get it as it is.

Escaped are control characters and invisible format characters (Unicode's Cc, Cf, Zl, Zp) and surrogates, spelled as Python
spells them: `\x1b`, `\u202e`, `\udcff`. Text without any is not changed, so that escaping twice is escaping once.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any, TextIO

from spice_rs.streams import stdout, unheard

_OBEYED = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
"""Categories of Unicode whose characters do something, or nothing that anybody sees."""

_LINE_ENDS = re.compile(r"\s*\n\s*")
_WIDE = frozenset("WF")
_MARKS = frozenset(("Mn", "Me"))


def one_line(value: object) -> str:
    """Return a value as text of one line: line ends and tabs are escaped too."""
    return _escaped(str(value), kept="")


def many_lines(value: object) -> str:
    r"""Return a value as text in which `\n` and `\t` alone do something."""
    return _escaped(str(value), kept="\n\t")


def short(value: object, most: int = 80, written: Callable[[Any], str] = repr) -> str:
    """Return what a value looks like in a message: one line of at most so many letters.

    Args:
        value: anything.
        most: letters.
        written: what writes it.
    """
    try:
        text = _LINE_ENDS.sub(" ", written(value))
    except (ValueError, RecursionError):  # more digits than Python writes, deeper than it goes
        return f"{type(value).__name__} too long to show"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def width(text: str) -> int:
    """Return how many columns of a terminal a line takes: East Asian letters and emoji two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def as_html(value: object, *, lines: bool = False) -> str:
    """Return a value as text of a page or a notebook; with `lines` its line ends stay, as `<pre>` has them."""
    return html.escape(many_lines(value) if lines else one_line(value))


def as_markdown(value: object) -> str:
    """Return a value as text in a paragraph, or in the cell of a table, of Markdown (CommonMark, GitHub's tables)."""
    text = re.sub(r"[\\`*\[<|~$]|&(?=#?\w+;)", r"\\\g<0>", one_line(value).strip())
    # Between letters or digits an underscore means nothing: names stay as they are.
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
    # At the start of a paragraph these begin a quotation, a heading, a list or a rule.
    return re.sub(r"^(\d*)(>|[#+=.)-](?=[\s#=-]|$))", r"\1\\\2", text)


def as_plot(value: object) -> str:
    """Return a value as text for matplotlib, which reads what stands between dollars as mathematics."""
    return one_line(value).replace("$", r"\$")


def say(value: object, file: TextIO | None = None) -> None:
    """Print one line for people, to stdout or to `file`, whatever is in it and whatever letters the stream has."""
    say_block(one_line(value), file)


def say_block(value: object, file: TextIO | None = None) -> None:
    """Print lines for people, for example a table; see `say`. Where nobody listens to `file` any more, the work goes on."""
    to = stdout() if file is None else file
    try:
        print(_encodable(many_lines(value), to), file=to, flush=True)
    except BrokenPipeError:
        if file is None:
            raise
        unheard(file)


def say_json(value: Any, *, indent: int | None = None) -> None:
    """Print a value to stdout as JSON."""
    print(printable_json(json.dumps(value, ensure_ascii=False, indent=indent)), file=stdout(), flush=True)


def printable_json(text: str) -> str:
    r"""Return JSON of the same value that stdout can show: what a terminal would obey, or cannot encode, as `\uXXXX`."""
    encoding = getattr(stdout(), "encoding", None) or "utf-8"
    if not text.replace("\n", "").isprintable():
        text = "".join(json.dumps(each)[1:-1] if _is_obeyed(each) and each != "\n" else each for each in text)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = "".join(each if each.isascii() else json.dumps(each)[1:-1] for each in text)
    return text


def _escaped(text: str, kept: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        each.encode("unicode_escape").decode() if _is_obeyed(each) and each not in kept else each
        for each in text
    )


def _is_obeyed(letter: str) -> bool:
    return not letter.isprintable() and unicodedata.category(letter) in _OBEYED


def _columns(letter: str) -> int:
    if unicodedata.east_asian_width(letter) in _WIDE:
        return 2
    return 0 if unicodedata.category(letter) in _MARKS else 1


def _encodable(text: str, stream: TextIO | None) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
