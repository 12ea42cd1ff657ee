"""A matplotlib figure that does not complain of letters its fonts lack: it draws boxes for them. Needs matplotlib."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib.figure import Figure


class QuietFigure(Figure):
    """A figure whose labels may be in any script."""

    def draw(self, *args: Any, **kwargs: Any) -> None:
        """Draw, as `Figure` does."""
        with _missing_letters_silent():
            super().draw(*args, **kwargs)

    def savefig(self, *args: Any, **kwargs: Any) -> None:
        """Write to a file, as `Figure` does."""
        with _missing_letters_silent():
            super().savefig(*args, **kwargs)


@contextmanager
def _missing_letters_silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing", category=UserWarning)
        yield
