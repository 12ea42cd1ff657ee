"""Whether memory suffices for what is about to be done."""

from __future__ import annotations

from spice_rs import _core


def check_memory(found: str, needed: float, remedy: str, *, field: str = "source") -> None:
    """Refuse work that would take more memory than this process can still take.

    What that is the compiled half decides, for selections as for everything else: of what the system has available, of the
    limits of the control groups that the process is in (both versions, each group above included) and of its own
    (`ulimit -v`, `ulimit -d`), the narrowest. Nothing is refused where the system does not say.

    Args:
        found: what takes the memory, as in "9750 picks of 8192 columns".
        needed: bytes that it takes.
        remedy: what to do instead, a sentence.
        field: the argument that asks for it.

    Raises:
        InvalidInputError: there are fewer bytes; the message says how many, and what limits them.
    """
    _core.check_memory(field, found, float(needed), remedy)
