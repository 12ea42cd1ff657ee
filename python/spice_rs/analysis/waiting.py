"""Long single steps, which nothing can stop from inside: Ctrl-C gets through while they run."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

T = TypeVar("T")

POLL = 0.1
"""Seconds between two looks at signals, where a system does not wake those who wait for them."""


def waited(work: Callable[..., T], *arguments: Any) -> T:
    """Return what `work` returns for these arguments, or raise what it raises.

    It runs on a thread of its own while this one waits: a factorisation of numpy holds whoever calls it until it is done,
    be that minutes, and signals are looked at by the main thread alone. If one ends the wait, the other thread ends after
    its step, or with the process.
    """
    if threading.current_thread() is not threading.main_thread():
        return work(*arguments)
    future: Future[T] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            result = context.run(work, *arguments)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the caller gets it
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, daemon=True).start()
    while not wait([future], timeout=POLL).done:
        pass
    return future.result()
