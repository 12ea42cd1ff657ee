"""The model hub, where it may be out of reach: what is cached is used at once, and else one line says so within seconds.

Left to themselves the libraries try again for more than a minute, once for each file that they look for.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spice_rs.errors import InvalidInputError
from spice_rs.paths import near

PATIENCE = 3.0
"""Seconds within which the hub must answer."""

_BELIEVED = 60.0
"""Seconds for which an answer holds."""

asked: dict[str, tuple[float, str | None]] = {}
"""Address of a hub → when it was asked, and why it is out of reach."""


@contextmanager
def reached(name: str, kind: str) -> Iterator[None]:
    """Inside, libraries load what a name stands for; where the hub is out of reach, from their cache alone.

    Args:
        name: A folder, or a hub id.
        kind: "model" or "dataset".

    Raises:
        InvalidInputError: The name is no folder, and what it names is not in the cache of a hub that is out of reach.
    """
    reason = None if Path(name).exists() else _out_of_reach()
    if reason is None:
        yield
        return
    from huggingface_hub import constants

    kept = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"
    with _offline():
        try:
            yield
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            cached = "has not all of it" if kept.is_dir() else "does not have it"
            raise InvalidInputError(
                f"{name}: found no file or folder of this name{near(name) or '.'} And no hub ({reason}); its cache"
                f" {constants.HF_HUB_CACHE} {cached}. Give a path, set HF_HOME to a folder whose cache has it, or"
                " HF_ENDPOINT to a hub that can be reached."
            ) from error


def _out_of_reach() -> str | None:
    """Why the hub cannot be asked; None if it can."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return None  # which whoever needs it will say
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    address = constants.ENDPOINT
    when, reason = asked.get(address, (-_BELIEVED, None))
    if time.monotonic() - when >= _BELIEVED:
        reason = _ask(address)
        asked[address] = time.monotonic(), reason
    return None if reason is None else f"{address} is out of reach: {reason}"


def _ask(address: str) -> str | None:
    """Ask as the libraries do, with their proxies; any answer will do. Looking up a name heeds no time limit."""
    answer: list[str | None] = []

    def ask() -> None:
        from huggingface_hub import get_session

        try:
            get_session().head(address, timeout=PATIENCE)
        except Exception as error:  # noqa: BLE001 - of whichever library the session is
            answer.append(" ".join(str(error).split()) or type(error).__name__)
        else:
            answer.append(None)

    thread = threading.Thread(target=ask, daemon=True, name="spice-hub")
    thread.start()
    thread.join(PATIENCE + 1)
    return answer[0] if answer else f"no answer within {PATIENCE:g} seconds"


@contextmanager
def _offline() -> Iterator[None]:
    """Inside, no library asks the hub."""
    from huggingface_hub import constants

    places: list[Any] = [constants]
    if "datasets" in sys.modules:
        places.append(sys.modules["datasets"].config)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
