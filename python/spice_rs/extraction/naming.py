"""Parameters' names in files and in models that are wrapped in different ways."""

from __future__ import annotations

import re
from collections.abc import Iterable

_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "base_model.model.")


def plain_name(name: str) -> str:
    """The name without what wrappers (DDP, FSDP, torch.compile, peft) add: their prefixes, and the adapter's name."""
    name = name.replace("_fsdp_wrapped_module.", "").replace("_orig_mod.", "").replace("base_layer.", "")
    while (wrapper := next((each for each in _WRAPPERS if name.startswith(each)), None)) is not None:
        name = name[len(wrapper) :]
    # Files of peft leave out the adapter's name, and the end of DoRA's.
    name = re.sub(r"\.(lora_(?:embedding_)?[AB])\.[^.]+(?=\.)", r".\1", name)
    return re.sub(r"\.lora_magnitude_vector(\..*)?$", ".lora_magnitude_vector", name)


def matching(given: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Each name that is given → the one known that means the same; those without one are left out.

    Args:
        given: Names in a file.
        known: Names in a model.
    """
    there = set(known)
    plain: dict[str, list[str]] = {}
    for name in there:
        plain.setdefault(plain_name(name), []).append(name)
    found: dict[str, str] = {}
    for name in given:
        candidates = [name] if name in there else plain.get(plain_name(name), [])
        if len(candidates) == 1:
            found[name] = candidates[0]
    return found
