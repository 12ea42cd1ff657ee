"""Extracting as an earlier store was extracted: with its model, modules, projection, seeds and settings, or not at all.

A store's provenance says what its rows are gradients of, and what it does not say lies beside it: `extraction.json` has
where the model lay and what was asked for. It is no part of the store's format: merges do not copy it, and what it says is
believed no further than that the new store's provenance has to come out as the earlier one's.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from spice_rs.atomic import replacing
from spice_rs.errors import InvalidInputError, StoreError, StoreMismatchError
from spice_rs.extraction.arguments import checked
from spice_rs.extraction.settings import Settings
from spice_rs.own_json import parsed
from spice_rs.paths import is_meant_local, local
from spice_rs.printable import short
from spice_rs.store.alike import told
from spice_rs.store.sources import differences_of_origin
from spice_rs.store.store import GradientStore

FILE = "extraction.json"

_MOST_BYTES = 1 << 20

ASKED = (
    "tokenizer",
    "target_modules",
    "norms",
    "embeddings",
    "lora_rank",
    "gguf_file",
    "completion_only",
    "chat_template",
    "autocast",
    "dtype",
)
"""Arguments that are repeated as they were given; the provenance has those of the projection and `max_length`."""

_PATHS = ("tokenizer", "gguf_file", "chat_template")

_UNREPEATED = {"optimizer": "optimizer", "checkpoints": "checkpoints", "loss_fn": "loss"}
"""Argument that no file holds, and has to be given again → what the provenance says of it."""


_UNASKED = {
    "tokenizer": "the model's own",
    "chat_template": "the tokenizer's own",
    "target_modules": "those chosen by default",
    "autocast": "what the machine does by default",
}
"""What it means that an argument was not given, for messages."""

_given: ContextVar[frozenset[str]] = ContextVar("given", default=frozenset())

Function = TypeVar("Function", bound=Callable[..., Any])


def knows_what_is_given(function: Function) -> Function:
    """Let a function ask `repeated` with the names of its keyword arguments that its caller has given.

    A value that is the default of its argument is one that somebody asked for, too, where he has named it.
    """

    @functools.wraps(function)
    def called(*positional: Any, **named: Any) -> Any:
        with _noted_as_given(frozenset(named)):
            return function(*positional, **named)

    return cast(Function, called)


@contextmanager
def _noted_as_given(names: frozenset[str]) -> Iterator[None]:
    token = _given.set(names)
    try:
        yield
    finally:
        _given.reset(token)


def remember(out: str | os.PathLike[str], model: Any, settings: Settings) -> None:
    """Write what was asked for into the folder of a store, unless it is there.

    Raises:
        OSError: It cannot be written.
    """
    path = Path(local(out)) / FILE
    if path.exists():
        return
    asked = {name: _plain(name, getattr(settings, name)) for name in ASKED}
    text = json.dumps({"model": _plain("model", model), "asked": asked}, indent=1)
    with replacing(path) as file:
        file.write(text.encode() + b"\n")


def earlier_store(like: str | os.PathLike[str]) -> GradientStore:
    """The store to extract as.

    Raises:
        InvalidInputError: There is none at the path.
        StoreError: It is damaged.
    """
    try:
        return GradientStore(like)
    except StoreError as error:
        raise type(error)(f"like: {error}") from error
    except InvalidInputError as error:
        raise InvalidInputError(f"like: {error}") from error


def repeated(store: GradientStore, model: Any, given: Settings) -> tuple[Any, Settings]:
    """The model and the settings of an earlier store, beside what is about the new data alone.

    Args:
        store: The earlier store.
        model: What was given for the model; None for that of the store.
        given: The settings asked for, by a function that `knows_what_is_given`. What is None counts as not given.

    Raises:
        InvalidInputError: Something that was given is otherwise in the store, or has to be given and was not.
    """
    noted = _noted(store)
    model = noted["model"] if model is None else model
    if model is None:
        raise InvalidInputError(
            f"model: found none, and {store.path} does not say where its model"
            f" ({_known(store, 'model', 'id')}) lies, expected its folder or hub id. Give it."
        )
    if isinstance(model, str) and is_meant_local(model) and not os.path.exists(local(model)):
        raise InvalidInputError(
            f"model: found none, and that of {store.path} is not at {model} any more, expected its folder or hub id. Give"
            " where it is now."
        )
    for name, key in _UNREPEATED.items():
        if store.provenance.get(key) not in (None, "cross_entropy") and getattr(given, name) is None:
            raise InvalidInputError(
                f"{name}: found none, and the rows of {store.path} were extracted with one, which no file holds, expected"
                " the same again. Give it."
            )
    wanted = checked({**noted["asked"], **_of_provenance(store)})  # files may say anything
    others = {
        name: own
        for name in wanted
        if name in _given.get() and (own := getattr(given, name)) is not None and own != wanted[name]
    }
    if others:
        (first, own), *more = others.items()
        has = f"which has {_shown(first, wanted[first])}"
        also = "".join(
            f"; {name}: found {short(own)}, not {_shown(name, wanted[name])}" for name, own in more
        )
        either = f"{' and '.join(f'{name}=…' for name in others)}, or like=…"
        raise InvalidInputError(
            f"{first}: found {short(own)} beside like={str(store.path)!r}, {has}, expected no other{also}."
            f" Leave out {either}."
        )
    return model, replace(given, **wanted)


def check_alike(store: GradientStore, reduction: str, provenance: Mapping[str, Any]) -> None:
    """Refuse to extract rows that are gradients of another kind than those of an earlier store.

    Raises:
        StoreMismatchError: It names each difference.
    """
    found = differences_of_origin(
        {**store.provenance, "reduction": store.reduction}, {**provenance, "reduction": reduction}
    )
    if found:
        raise StoreMismatchError(
            f"like: found what differs from {store.path}: {told(found)}. Extract with the model and the versions of"
            " libraries that it was extracted with."
        )


def _shown(name: str, value: Any) -> str:
    """A setting of a store; what nobody had asked for is what it comes to."""
    return _UNASKED.get(name, "none") if value is None else short(value)


def _noted(store: GradientStore) -> dict[str, Any]:
    """What lies beside a store; of one without, nothing."""
    path = Path(store.path) / FILE
    nothing: dict[str, Any] = {"model": None, "asked": {}}
    if path.is_symlink() or not path.is_file():  # as nothing of a store is read through links
        return nothing
    try:
        with open(path, "rb") as file:
            found = parsed(file.read(_MOST_BYTES))
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"{path}: found what cannot be read ({error}), expected what an extraction noted. Delete it, and give the"
            " arguments of `extract` that the store was made with."
        ) from error
    match found:
        case {"model": None | str(), "asked": dict() as asked} if asked.keys() <= {*ASKED}:
            return dict(found)
    raise InvalidInputError(
        f"{path}: found {short(found)}, expected model and asked. Delete it, and give the arguments of `extract` that the"
        " store was made with."
    )


def _of_provenance(store: GradientStore) -> dict[str, Any]:
    """The settings that a store's provenance states."""
    known = store.provenance
    projection = known.get("projection") or {}
    names = {"kind": "projection", "dim": "dim", "seed": "seed", "nnz": "nnz", "side": "side"}
    found = {own: projection[name] for name, own in names.items() if name in projection}
    if projection.get("kind") == "none":
        found.pop("dim", None)  # that of the model
    adapter = _known(store, "model", "adapter")
    if isinstance(adapter, Mapping) and "rank" in adapter:
        found["lora_rank"] = adapter["rank"]
    found.update({name: known[name] for name in ("max_length", "completion_only") if name in known})
    return found


def _known(store: GradientStore, *names: str) -> Any:
    found: Any = store.provenance
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _plain(name: str, value: Any) -> Any:
    """As JSON has it: of a folder the whole path, of an object nothing."""
    if isinstance(value, torch.nn.Module) or value is None:
        return None
    if isinstance(value, str | os.PathLike):
        text = local(value) if name in ("model", *_PATHS) else os.fspath(value)
        there = name in ("model", *_PATHS) and os.path.exists(text)
        return os.path.abspath(text) if there else text
    if isinstance(value, bool | int):
        return value
    return list(value) if isinstance(value, list | tuple) and all(isinstance(x, str) for x in value) else None
