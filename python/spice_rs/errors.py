"""The exceptions of the package: every message names the place, what was found, what was expected, what to do."""

from __future__ import annotations

from spice_rs.printable import many_lines


class SpiceError(Exception):
    """Base class of every error that the package raises on purpose.

    Messages quote what was found; whoever prints one is shown control characters and does not obey them.
    """

    def __str__(self) -> str:
        return many_lines(super().__str__())


class InvalidInputError(SpiceError, ValueError):
    """An argument, a record or a row cannot be used."""


class StoreError(SpiceError):
    """A gradient store or a saved selection cannot be opened, read or written."""


class CorruptStoreError(StoreError):
    """A file of a gradient store, of rows or of a selection was cut short, overwritten or altered."""


class StoreMismatchError(StoreError):
    """A gradient store or a saved selection is sound but was made with other settings or from other rows."""


class UnfinishedStoreError(StoreError):
    """A gradient store has some of its rows alone: its extraction has not ended."""


class SpiceWarning(UserWarning):
    """A setting does nothing, or a result needs a second look. Messages print like those of errors."""

    def __str__(self) -> str:
        return many_lines(super().__str__())
