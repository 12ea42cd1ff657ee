"""What people write for a path, as the operating system takes it: the one place where `~` and `file://` mean something."""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

from spice_rs.arguments import refused
from spice_rs.errors import InvalidInputError
from spice_rs.nearness import nearest

_SCHEME = "file:"


def local(path: str | bytes | os.PathLike[str], name: str = "path") -> str:
    """Return a path with the home folder in place of `~` or `~user`, and without `file://`; anything else as it is.

    It may be called on what it has returned: a file that is itself called `~x`, and given as `./~x`, comes back as an
    absolute path. What follows `::` is no part of the path and stays.

    Args:
        path: what was given: text, bytes as the operating system has them, or a `pathlib.Path`.
        name: the argument, for messages.

    Raises:
        InvalidInputError: it is no path or an empty one, there is no such user, or the URL names another machine.
    """
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise refused(name, path, "a path", "Give it as a text or a pathlib.Path.") from None
    if not text:
        raise InvalidInputError(
            "found an empty path, expected the name of a file or folder. Give one (an unset variable of a shell is empty)."
        )
    if text.lower().startswith(_SCHEME + "//"):
        text = _of_url(text)
    if not text.startswith("~"):
        plain = os.path.normpath(text)
        return os.path.abspath(text) if plain.startswith("~") else text  # pathlib would take the "./" away
    whole = os.path.expanduser(text)
    if whole != text:
        return whole
    if os.path.lexists(text.split("::")[0]):
        return os.path.abspath(text)
    user = text.split("/")[0]
    raise InvalidInputError(
        f"{text}: found no user {user[1:]!r}, expected ~ or ~user for a home folder. For a name that begins with ~ write"
        f" ./{text}."
    )


def local_or_none(path: str | bytes | os.PathLike[str] | None, name: str = "path") -> str | None:
    """Return `local` of a path that may be left out."""
    return None if path is None else local(path, name)


def _of_url(text: str) -> str:
    parts = urlsplit(text, allow_fragments=False)
    if parts.netloc not in ("", "localhost"):
        raise InvalidInputError(
            f"{text}: found a file of the machine {parts.netloc!r}, expected one of this machine: file:///folder/name. Copy"
            " it here first."
        )
    return unquote(parts.path)


def is_meant_local(name: str) -> bool:
    """Whether a name that may be a hub id can only be a path, whether or not something is there."""
    return (
        os.path.isabs(name)
        or name.startswith(".")
        or name.endswith(os.sep)
        or name.count("/") > 1
        or ("/" in name and os.path.isdir(name.split("/")[0]))
    )


def near(name: str) -> str:
    """Return a question after the path that was meant, if there is one beside it with nearly the same name; else ""."""
    path = os.path.normpath(name)
    folder, last = os.path.split(path)
    if os.path.lexists(path):
        return ""
    try:
        there = os.listdir(folder or ".")
    except OSError:
        return ""
    found = nearest(last, there, cutoff=0.7)
    return f"; did you mean {os.path.join(folder, found)}?" if found else ""
