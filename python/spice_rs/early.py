"""Ctrl-C while the command `spice-rs` is still being imported: one line, as afterwards, and the same exit code.

The package is imported before its command line can catch anything. So this module, the first that it imports, asks whether
the process is the command's own; in any other program it does nothing.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType

EXIT_INTERRUPTED = 130


def is_command(program: str, whole: list[str]) -> bool:
    """Return whether a process is `spice-rs` or `python -m spice_rs`.

    Args:
        program: what it is called: `sys.argv[0]`, which is "-m" as long as a module is looked for.
        whole: its whole command line: `sys.orig_argv`.
    """
    if program == "-m":
        return "spice_rs" in whole
    return os.path.basename(program).partition(".")[0] in ("spice-rs", "spice-rs-script")


def _ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    try:
        os.write(2, b"spice-rs: interrupted\n")
    finally:
        os._exit(EXIT_INTERRUPTED)


if sys.argv and is_command(sys.argv[0], sys.orig_argv):
    sys.excepthook = _ended
