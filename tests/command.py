"""The command line, called in this process."""

from __future__ import annotations

from spice_rs import cli


def run(*arguments) -> int:
    """Return the exit code of `spice-rs ARGUMENTS`."""
    try:
        return cli.main([str(a) for a in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
