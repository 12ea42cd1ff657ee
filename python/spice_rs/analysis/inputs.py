"""What a selection was made with besides numbers, which is given again to whatever looks at its picks."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, TypedDict, TypeVar, get_type_hints


class SelectionInputs(TypedDict, total=False):
    """Arguments of `select` that a selection does not hold, by name; None, or left out, where they are not given."""

    data: Any
    index_column: str | None
    groups: Any
    costs: Any
    initial: Any
    exclude: Any
    weights: Any
    prior: Any


BESIDE_DATA = tuple(name for name in SelectionInputs.__annotations__ if name not in ("data", "index_column"))
"""Those that are constraints."""

Function = TypeVar("Function", bound=Callable[..., Any])


def takes_inputs(function: Function) -> Function:
    """Let the signature and the docstring of a function show each of `SelectionInputs`, which it takes as `**given`.

    They come before its other keyword-only arguments. The docstring has an entry `**given`; in its place stand those of
    `SelectionInputs` that it says nothing else of.
    """
    signature = inspect.signature(function)
    named = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    hints = get_type_hints(SelectionInputs)
    inputs = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)
        for name, hint in hints.items()
    ]
    first = sum(each.kind is not inspect.Parameter.KEYWORD_ONLY for each in named)
    shown: Any = function
    shown.__signature__ = signature.replace(parameters=[*named[:first], *inputs, *named[first:]])
    del shown.__annotations__["given"]
    shown.__annotations__ |= hints
    shown.__doc__ = _with_inputs(function.__doc__ or "")
    return function


def check_names(given: Mapping[str, Any]) -> None:
    """Refuse what is none of `SelectionInputs`, as Python refuses an argument that a function does not have.

    Raises:
        TypeError: there is one.
    """
    for name in given:
        if name not in SelectionInputs.__annotations__:
            expected = ", ".join(SelectionInputs.__annotations__)
            raise TypeError(f"found an unexpected keyword argument {name!r}, expected one of {expected}.")


def _with_inputs(doc: str) -> str:
    """Return a docstring with an entry for each of `SelectionInputs` in place of the one for `**given`."""
    others = (name for name in SelectionInputs.__annotations__ if f"\n        {name}: " not in doc)
    entries = "".join(f"        {name}: as `select` had it.\n" for name in others)
    return re.sub(r"^        \*\*given: .*\n", entries, doc, flags=re.MULTILINE)
