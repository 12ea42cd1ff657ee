"""What stands behind an option, read: each reader says what it expected."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence

from spice_rs.errors import InvalidInputError
from spice_rs.nearness import meant
from spice_rs.paths import local


def path(text: str) -> str:
    """Read a path, or what may be one: a hub id, for example, stays as it is."""
    try:
        return local(text)
    except InvalidInputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def whole(text: str) -> int:
    """Read a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number") from None


def number(text: str) -> float:
    """Read a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number") from None


def rows_or_share(text: str) -> int | float | str:
    """Read a number of rows, or a share of them: 100, 0.1, 10%."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    if text.strip().endswith("%"):
        return text
    raise argparse.ArgumentTypeError(
        f"found {text!r}, expected a number of rows, or a share of them such as 0.1 or 10%"
    )


def share(text: str) -> float | str:
    """Read a share: 0.1, 10%, and 1 for all."""
    found = rows_or_share(text)
    if isinstance(found, str) or 0 < found <= 1:
        return found if isinstance(found, str) else float(found)
    expected = "a share above 0 and up to 1, or per cent"
    if found <= 0:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}, such as 0.1 or 10%")
    raise argparse.ArgumentTypeError(
        f"found {text!r}, expected {expected}: {text} rows are -k {text}, {text} per cent --share {text}%"
    )


def number_or(kind: Callable[[str], int | float], words: Sequence[str]) -> Callable[[str], int | float | str]:
    """Return what reads a number or one of the words."""
    what = "a whole number" if kind is whole else "a number"

    def read(text: str) -> int | float | str:
        if text in words:
            return text
        try:
            return kind(text)
        except argparse.ArgumentTypeError:
            expected = " or ".join([what, *words])
            raise argparse.ArgumentTypeError(
                f"found {text!r}, expected {expected}{meant(text, words)}"
            ) from None

    return read


def one_of(words: Sequence[str]) -> Callable[[str], str]:
    """Return what reads one of the words."""

    def read(text: str) -> str:
        if text in words:
            return text
        expected = f"one of {', '.join(words)}" if len(words) > 1 else words[0]
        raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}{meant(text, words)}")

    return read


def names(text: str) -> str | list[str]:
    """Read `q_proj,k_proj` and `!q_proj,!k_proj` as lists of names, and anything else as one pattern."""
    return text.split(",") if re.fullmatch(r"!?[\w.]+(,!?[\w.]+)+", text) else text


def columns(text: str) -> list[str]:
    """Read `notes,raw text,judge-1`: names of columns may hold anything but commas."""
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected COLUMN,COLUMN")
    return found


def pairs(text: str) -> dict[str, str]:
    """Read `prompt=frage,response=antwort`."""
    found = [pair.split("=", 1) for pair in text.split(",")]
    if any(len(pair) != 2 or not all(pair) for pair in found):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected NAME=COLUMN,NAME=COLUMN")
    return {name.strip(): column.strip() for name, column in found}
