"""What a run tells while it goes on: one JSON object for each window and each step, and TensorBoard's files."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from spice_rs.errors import InvalidInputError
from spice_rs.files import check_file


class Metrics:
    """Appends to `metrics.jsonl`, and to `tensorboard/` where that is wanted.

    Args:
        folder: Of the run.
        kept: Bytes of the file that belong to windows that are done; the rest is from a window that was not.
        window: Windows that are done.
        tensorboard: Write TensorBoard's files; None: if the package is installed.

    Raises:
        InvalidInputError: TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path, *, kept: int, window: int, tensorboard: bool | None) -> None:
        installed = importlib.util.find_spec("tensorboard") is not None
        if tensorboard and not installed:
            raise InvalidInputError(
                "tensorboard is wanted and not installed; pip install tensorboard, or leave it out"
            )
        path = folder / "metrics.jsonl"
        if os.path.lexists(path):
            check_file(path, "the metrics of a run")  # a pipe would be waited for
        self._file = open(path, "ab")
        if os.fstat(self._file.fileno()).st_size > kept:
            self._file.truncate(kept)
        self._file.seek(0, os.SEEK_END)
        self._board: Any = None
        if tensorboard or (tensorboard is None and installed):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=window + 1)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, kind: str, window: int, values: Mapping[str, Any]) -> None:
        """Add a line.

        Args:
            kind: "window" or "step".
            window: Windows done, this one included.
            values: Name → number, text or None.
        """
        line = {"kind": kind, "window": window, **values}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, window)

    @property
    def length(self) -> int:
        """Bytes of `metrics.jsonl`."""
        return self._file.tell()
