"""What callers give, as plain Python has it: every public function asks here, before anything is opened or loaded.

A wrong argument is an `InvalidInputError` of one shape, `name: found VALUE, expected WHAT. REMEDY`, whichever function it
was given to; `commands/wording.py` makes an option of the name. Numbers of numpy, and arrays and tensors of no
dimension, are taken wherever Python's own are; truth values are no numbers, and text is none.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from spice_rs.errors import InvalidInputError
from spice_rs.nearness import nearest
from spice_rs.printable import short

MOST = (1 << 63) - 1
"""The largest whole number that anything here can count with."""

BOUNDLESS = (1 << 31) - 1
"""Limits from here on are the machine's, and told only to those who exceed them."""

T = TypeVar("T")


def number_of(value: Any) -> Any:
    """Return a number as it is, one that an array or a tensor of no dimension holds, or None if there is none.

    What is returned is an int, a float, or a number of numpy, whose digits are those of its own precision.
    """
    if getattr(value, "ndim", None) == 0 and not isinstance(value, np.generic):
        value = value[()] if isinstance(value, np.ndarray) else value.item()
    if isinstance(value, bool | np.bool_ | np.timedelta64):  # numpy counts the last among its integers
        return None
    if isinstance(value, int | float | np.integer | np.floating):
        return value
    if hasattr(value, "ndim"):
        return None  # of one dimension or more: torch would count with one that has a single element
    if hasattr(type(value), "__index__"):
        return operator.index(value)
    return float(value) if isinstance(value, numbers.Real) else None


def is_whole(value: Any) -> bool:
    """Whether it is a whole number: 3 is one, and 3.0 is none."""
    return isinstance(number_of(value), int | np.integer)


def whole(
    name: str, value: Any, *, least: int | None = 1, most: int = MOST, remedy: str = "Choose one."
) -> int:
    """Return a whole number as Python has it.

    Args:
        name: the argument.
        value: what was given for it.
        least: the smallest that will do; None where any whole number will.
        most: the largest that will do.
        remedy: what to do otherwise, a sentence.

    Raises:
        InvalidInputError: it is something else.
    """
    return _whole(name, value, least, most, remedy, "")


def whole_or_none(
    name: str, value: Any, *, least: int = 1, most: int = MOST, remedy: str = "Choose one."
) -> int | None:
    """Return `whole` of a number that may be left out."""
    return None if value is None else _whole(name, value, least, most, remedy, " or None")


def _whole(name: str, value: Any, least: int | None, most: int, remedy: str, also: str) -> int:
    found = number_of(value)
    counts = isinstance(found, int | np.integer)
    if counts and (least is None or least <= found <= most):
        return int(found)
    is_open = most >= BOUNDLESS and not (counts and found > most)
    limits = f" of at least {least}" if is_open else f" from {least} to {most}"
    raise refused(name, value, f"a whole number{'' if least is None else limits}{also}", remedy)


def real(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    expected: str | None = None,
    remedy: str = "Choose one.",
) -> float:
    """Return a finite number as Python has it.

    Args:
        name: the argument.
        value: what was given for it.
        least: the smallest that will do.
        above: what it has to be larger than.
        most: the largest that will do.
        below: what it has to be smaller than.
        expected: these limits in words, where they have better ones.
        remedy: what to do otherwise, a sentence.

    Raises:
        InvalidInputError: it is something else.
    """
    found = _float(value)
    legal = (
        math.isfinite(found)
        and (least is None or found >= least)
        and (above is None or found > above)
        and (most is None or found <= most)
        and (below is None or found < below)
    )
    if legal:
        return found
    raise refused(name, value, expected or f"a {_limits(least, above, most, below)}", remedy)


def real_or_none(name: str, value: Any, **limits: Any) -> float | None:
    """Return `real` of a number that may be left out."""
    if value is None:
        return None
    try:
        return real(name, value, **limits)
    except InvalidInputError:
        known = {key: limits.get(key) for key in ("least", "above", "most", "below")}
        expected = limits.get("expected") or f"a {_limits(**known)}, or None"
        return real(name, value, **{**limits, "expected": expected})


def _float(value: Any) -> float:
    """The number as float64; nan if there is none."""
    try:
        found = number_of(value)
        return math.nan if found is None else float(found)
    except OverflowError:  # a whole number beyond float64
        return math.inf


def _limits(least: float | None, above: float | None, most: float | None, below: float | None) -> str:
    if above is not None and below is not None:
        return f"number between {above:g} and {below:g}, both excluded"
    if least is not None and most is not None:
        return f"number from {least:g} to {most:g}"
    if above is not None and most is not None:
        return f"number above {above:g} and up to {most:g}"
    if least is not None:
        return f"finite number of at least {least:g}"
    return "finite number" if above is None else f"finite number above {above:g}"


def choice(
    name: str, value: Any, options: Iterable[str | None], *, remedy: str = "Choose one of these."
) -> Any:
    """Return a word that is one of several, None among them where it may be left out.

    Raises:
        InvalidInputError: it is something else; a word that is nearly one is named.
    """
    options = tuple(options)
    if (value is None or isinstance(value, str)) and value in options:
        return None if value is None else str(value)
    near = nearest(str(value).lower(), filter(None, options)) if isinstance(value, str) else None
    raise refused(name, value, listed(options), remedy if near is None else f"Did you mean {near!r}?")


def listed(options: Sequence[str | None]) -> str:
    """Return options as a sentence has them: 'a', 'b' or None."""
    texts = [repr(each) for each in options]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def flag(name: str, value: Any) -> bool:
    """Return a truth value as Python has it; a number and a word are none, or "no" would be yes.

    Raises:
        InvalidInputError: it is something else.
    """
    return bool(_flag(name, value, "True or False"))


def flag_or_none(name: str, value: Any) -> bool | None:
    """Return `flag` of a truth value that may be left out."""
    return None if value is None else _flag(name, value, "True, False or None")


def _flag(name: str, value: Any, expected: str) -> bool:
    if getattr(value, "ndim", None) == 0 and not isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise refused(name, value, expected, "Give one of these.")


def text(name: str, value: Any) -> str:
    """Return a text.

    Raises:
        InvalidInputError: it is something else.
    """
    if isinstance(value, str):
        return value
    raise refused(name, value, "a text", "Put it in quotes.")


def text_or_none(name: str, value: Any) -> str | None:
    """Return `text` of one that may be left out."""
    return None if value is None else text(name, value)


def callable_or_none(name: str, value: T) -> T:
    """Return something that is called, or None where it may be left out.

    Raises:
        InvalidInputError: it is something else.
    """
    if value is None or callable(value):
        return value
    raise refused(name, value, "a function or None", "Give one that can be called.")


def shown(progress: Any) -> bool | Callable[..., object] | None:
    """Return what says whether progress is shown: a truth value, what is called instead, or None.

    Raises:
        InvalidInputError: it is something else.
    """
    if progress is None or callable(progress):
        return progress  # type: ignore[no-any-return]
    return _flag("progress", progress, "True, False, None or a function")


def mapping_or_none(name: str, value: Any) -> Mapping[str, str] | None:
    """Return text by text that may be left out.

    Raises:
        InvalidInputError: it is something else.
    """
    if value is None:
        return None
    if isinstance(value, Mapping) and all(isinstance(each, str) for pair in value.items() for each in pair):
        return value
    raise refused(name, value, "a mapping of text to text, or None", "Put it in braces: {'a': 'b'}.")


def names_or_none(name: str, value: Any) -> Any:
    """Return a text or several that may be left out, as they are.

    Raises:
        InvalidInputError: it is something else.
    """
    several = isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)
    if value is None or isinstance(value, str) or (several and all(isinstance(each, str) for each in value)):
        return value
    raise refused(name, value, "a text, a list of texts or None", "Put each in quotes.")


def has_truth_values(values: Any) -> bool:
    """Whether a list has truth values among its elements, which an array of it would show as 0 and 1."""
    return isinstance(values, list | tuple) and not {bool, np.bool_}.isdisjoint(map(type, values))


def instance(name: str, value: Any, kind: type[T], *, expected: str, remedy: str) -> T:
    """Return an object of a kind.

    Raises:
        InvalidInputError: it is something else.
    """
    if isinstance(value, kind):
        return value
    raise InvalidInputError(f"{name}: found {type(value).__name__}, expected {expected}. {remedy}")


def rows_given(name: str, value: Any, *, remedy: str = "for example sel.indices") -> npt.NDArray[np.int64]:
    """Return whole numbers in one dimension: a list, an array or a tensor of them, of any integers.

    Args:
        name: the argument.
        value: what was given for it.
        remedy: what to pass, for example.

    Raises:
        InvalidInputError: it is something else.
    """
    expected = "whole numbers in one dimension"
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # lists of different lengths, tensors of a GPU
        raise refused(name, value, expected, f"Pass {remedy}.") from None
    if not array.ndim:  # numpy sees one object in a set, which has no order
        raise InvalidInputError(
            f"{name}: found {type(value).__name__}, expected {expected}. Pass a list or an array: the order may matter."
        )
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        found = f"{array.dtype} of shape {array.shape}"
        raise InvalidInputError(f"{name}: found {found}, expected {expected}. Pass {remedy}.")
    if has_truth_values(value):
        raise refused(name, value, expected, "True and False are none: leave them out.")
    if array.dtype.kind == "u" and array.size and array.max() > MOST:
        raise refused(name, int(array.max()), f"whole numbers up to {MOST}", "Leave it out.")
    return array.astype(np.int64)


def reals(name: str, value: Any) -> list[float]:
    """Return finite numbers above 0: a list, an array or a tensor of them, or a single one.

    Raises:
        InvalidInputError: they are something else.
    """
    given = value.tolist() if hasattr(value, "tolist") else value
    given = given if number_of(given) is None else [given]
    found = [_float(each) for each in given] if isinstance(given, list | tuple) else [math.nan]
    if all(math.isfinite(each) and each > 0 for each in found):
        return found
    raise refused(name, value, "a list of positive numbers", "Correct it.")


def refused(name: str, value: Any, expected: str, remedy: str) -> InvalidInputError:
    """Return what to say of a wrong argument."""
    return InvalidInputError(f"{name}: found {short(value)}, expected {expected}. {remedy}")
