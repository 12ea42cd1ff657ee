"""Memory that runs out: how torch says so, and what gives back what is no longer used."""

from __future__ import annotations

import gc

import torch

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "status_alloc_failed")


def out_of_memory(error: BaseException) -> bool:
    """Whether torch says that memory ran out; on a CPU it does so in words alone."""
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _NO_MEMORY)


def free_memory() -> None:
    """Gives back what is no longer referenced; to be called where the failed call's error is not held any more."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
