"""The gradient store: a folder of safetensors files with one gradient row per sample.

Any number of writers fill one store, in any number of processes and days. What a writer has committed is
complete and is never changed; a killed writer loses at most the rows that it had not committed.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spice_rs import _core
from spice_rs.errors import InvalidInputError

__all__ = ["GradientStore", "GradientWriter"]

_Path = str | os.PathLike[str]


class GradientStore:
    """An open store, as it was when it was opened; opening reads no gradients.

    Rows have *positions* 0 … len(store) - 1, the order of the files. ``index`` says which row of the dataset
    is at each position.

    Args:
        path: The folder of the store.

    Raises:
        StoreError: If the path is no store, was written by another version, or has a row twice.
        CorruptStoreError: If a file was cut short or altered.
    """

    def __init__(self, path: _Path) -> None:
        self._core = _core.Store(path)
        info = json.loads(self._core.info())
        self._provenance: dict[str, Any] = info.pop("provenance")
        self._info: dict[str, Any] = info

    @staticmethod
    def create(
        path: _Path,
        *,
        dim: int,
        dtype: str = "float16",
        reduction: str | None = None,
        provenance: Mapping[str, Any] | None = None,
        rows_per_shard: int | None = None,
        bytes_per_shard: int | None = None,
        max_delay: float | None = None,
        writer: str | None = None,
    ) -> GradientWriter:
        """Creates a store, or joins an existing one of the same schema, and returns a writer.

        The schema is ``dim``, ``dtype``, ``reduction`` and ``provenance``. Buffered rows become a shard when
        there are ``rows_per_shard`` of them, when they take ``bytes_per_shard``, or when an append finds that
        the oldest has waited for ``max_delay``.

        Args:
            path: The folder; it and its parents are created.
            dim: Number of columns.
            dtype: How cells are stored: "float16", "bfloat16" or "float32". A power of two per row keeps very
                large and very small rows in range.
            reduction: How the loss was reduced over tokens, "sum" or "mean"; None if unknown.
            provenance: Where the rows come from (model, projection, dataset, …), as plain JSON.
            rows_per_shard: Rows per shard; None for no limit.
            bytes_per_shard: Bytes per shard; None for 64 MiB.
            max_delay: Seconds; None for 30.
            writer: The writer's part of file names; None for a unique one.

        Raises:
            StoreMismatchError: If the store has another schema; the message names the field.
            InvalidInputError: If an argument cannot be used.
            StoreError: If the folder is no store or cannot be written.
        """
        core = _core.StoreWriter(
            path,
            dim=_non_negative("dim", dim),
            dtype=dtype,
            reduction=reduction,
            provenance=_json_object(provenance),
            rows_per_shard=None
            if rows_per_shard is None
            else _non_negative("rows_per_shard", rows_per_shard),
            bytes_per_shard=None
            if bytes_per_shard is None
            else _non_negative("bytes_per_shard", bytes_per_shard),
            max_delay=max_delay,
            writer=writer,
        )
        return GradientWriter(core, path, int(dim))

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._core)

    @property
    def path(self) -> str:
        """The folder of the store."""
        return cast(str, self._info["path"])

    @property
    def dim(self) -> int:
        """Number of columns."""
        return self._core.dim

    @property
    def dtype(self) -> str:
        """How cells are stored: "float16", "bfloat16" or "float32"."""
        return self._core.dtype

    @property
    def reduction(self) -> str | None:
        """How the loss was reduced over tokens: "sum", "mean", or None if the store does not say."""
        return self._core.reduction

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the rows come from, as given to ``create``; a copy."""
        return cast(dict[str, Any], json.loads(json.dumps(self._provenance)))

    @property
    def fingerprint(self) -> str:
        """A hash of schema and rows, 32 hex digits; independent of names of files."""
        return self._core.fingerprint

    @property
    def index(self) -> NDArray[np.int64]:
        """The row of the dataset at each position: (n,) int64; a copy."""
        return self._core.index

    @property
    def norm(self) -> NDArray[np.float32]:
        """The 2-norm of each row before rounding: (n,) float32; a copy."""
        return self._core.norm

    @property
    def loss(self) -> NDArray[np.float32] | None:
        """The loss of each sample: (n,) float32; None unless all shards record it."""
        return self._core.loss

    @property
    def num_tokens(self) -> NDArray[np.int32] | None:
        """The learned tokens of each sample: (n,) int32; None unless all shards record it."""
        return self._core.num_tokens

    def read(self, positions: ArrayLike) -> NDArray[np.float32]:
        """Reads rows.

        Args:
            positions: (m,) integers, 0 ≤ position < len(store), in any order, repeated or not.

        Returns:
            (m, dim) float32: the rows, rounded to the dtype of the store.

        Raises:
            InvalidInputError: If a position is not there or is no integer.
        """
        return self._core.read(_integers("positions", positions, np.int64))

    def info(self) -> dict[str, Any]:
        """What there is to know without reading gradients, as plain JSON types.

        Has path, rows, dim, dtype, reduction, columns, shards, bytes, schema_id, fingerprint,
        format_version, written_by, superseded, leftovers (unfinished files of writers that run or were
        killed) and the keys of ``provenance``; where a key is in both, this is the store's own.
        """
        return {**self.provenance, **self._info}

    def verify(self, progress: Callable[[int, int], object] | None = None) -> dict[str, int]:
        """Reads everything: all checksums, NaN and Inf, the norm of each row.

        Args:
            progress: Called with (rows done, all rows) every few MiB; an exception from it ends the work.

        Returns:
            What was checked: {"shards", "rows", "bytes"}.

        Raises:
            CorruptStoreError: With the file, the place, what was found and what was expected.
        """
        shards, rows, size = self._core.verify(progress)
        return {"shards": shards, "rows": rows, "bytes": size}

    def __repr__(self) -> str:
        return (
            f"GradientStore({self.path!r}, rows={len(self)}, dim={self.dim}, dtype={self.dtype!r}, "
            f"shards={self._info['shards']})"
        )

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th>{html.escape(key)}</th><td>{html.escape(str(self._info[key]))}</td></tr>"
            for key in ("path", "rows", "dim", "dtype", "reduction", "shards", "bytes", "fingerprint")
        )
        return f"<table>{cells}</table>"


class GradientWriter:
    """Appends rows to a store; made by :meth:`GradientStore.create`, to be used in a ``with`` statement.

    Leaving the ``with`` statement commits what was appended, also when an exception passes through.
    """

    def __init__(self, core: _core.StoreWriter, path: _Path, dim: int) -> None:
        self._core = core
        self._path = os.fspath(path)
        self._dim = dim

    def append(
        self,
        rows: ArrayLike,
        index: ArrayLike,
        num_tokens: ArrayLike | None = None,
        loss: ArrayLike | None = None,
    ) -> None:
        """Appends rows: all of them, or none if one is invalid.

        Args:
            rows: (m, dim) floats: an array or a CPU tensor.
            index: (m,) integers, the row of the dataset, each once in a store.
            num_tokens: (m,) integers, the learned tokens of each sample; for all rows of a store or for none.
            loss: (m,) floats, the loss of each sample; for all rows of a store or for none.

        Raises:
            InvalidInputError: For a wrong shape or type, NaN or Inf (the message has the dataset row and the
                column), a norm above 1.7e38, and for a row that the store has.
            StoreError: If a shard cannot be written; rows that ``contains`` are kept for the next ``commit``.
        """
        self._core.append(
            _floats("rows", rows, (None, self._dim)),
            _integers("index", index, np.int64),
            None if num_tokens is None else _integers("num_tokens", num_tokens, np.int32),
            None if loss is None else _floats("loss", loss, (None,)),
        )

    def contains(self, index: ArrayLike) -> NDArray[np.bool_]:
        """Which rows the store had when the writer was created or has got from it since: (m,) bool.

        Args:
            index: (m,) integers, rows of the dataset.
        """
        return self._core.contains(_integers("index", index, np.int64))

    def commit(self) -> None:
        """Makes the buffered rows a shard; they are on disk when this returns.

        Raises:
            StoreError: If the shard cannot be written; the rows stay buffered.
        """
        self._core.commit()

    def close(self) -> None:
        """Commits and closes; closing again does nothing."""
        self._core.close()

    def __enter__(self) -> GradientWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"GradientWriter({self._path!r}, dim={self._dim})"


def _non_negative(field: str, value: int) -> int:
    """An integer that an unsigned one can hold."""
    try:
        number = value.__index__()
    except AttributeError:
        raise TypeError(f"{field}: found {value!r}, expected an integer.") from None
    if not 0 <= number < 1 << 63:
        raise InvalidInputError(f"{field}: found {value!r}, expected a count. Give a positive integer.")
    return number


def _json_object(value: Mapping[str, Any] | None) -> str:
    """JSON text of a mapping."""
    try:
        return json.dumps(dict(value or {}), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"provenance: found {error}, expected plain JSON. Record names, numbers and hashes."
        ) from error


def _as_array(field: str, values: ArrayLike) -> NDArray[Any]:
    """A numpy array of the values; tensors are recognised by their methods, so that torch is not imported."""
    source: Any = values
    if hasattr(source, "detach") and hasattr(source, "device"):
        if str(source.device) != "cpu":
            raise InvalidInputError(
                f"{field}: found a tensor on {source.device}, expected one on the CPU. Call .cpu() on it."
            )
        source = source.detach()
        # numpy has no bfloat16.
        source = source.float() if str(source.dtype) == "torch.bfloat16" else source
    try:
        return np.asarray(source)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{field}: found {error}, expected an array. Give a numpy array.") from error


def _floats(field: str, values: ArrayLike, shape: tuple[int | None, ...]) -> NDArray[np.float32]:
    """C-contiguous float32 of the wanted shape, where None stands for any length."""
    array = _as_array(field, values)
    wanted = (
        "(" + ", ".join("m" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
    )
    if array.ndim != len(shape) or any(
        n is not None and n != m for n, m in zip(shape, array.shape, strict=True)
    ):
        raise InvalidInputError(
            f"{field}: found shape {array.shape}, expected {wanted}. Give one row for each sample."
        )
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise InvalidInputError(f"{field}: found {array.dtype}, expected floats. Convert it to float32.")
    # What float32 cannot hold becomes Inf here, which is then refused with its place.
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)


def _integers(field: str, values: ArrayLike, dtype: type[Any]) -> NDArray[Any]:
    """C-contiguous integers (m,) of ``dtype``; values that do not fit are refused."""
    array = _as_array(field, values)
    if array.ndim != 1:
        raise InvalidInputError(
            f"{field}: found shape {array.shape}, expected (m,). Give one value for each row."
        )
    if array.dtype.kind not in "iu" and array.size > 0:
        raise InvalidInputError(f"{field}: found {array.dtype}, expected integers. Convert it to int64.")
    if array.size > 0:
        limits = np.iinfo(dtype)
        smallest, largest = int(array.min()), int(array.max())
        if smallest < limits.min or largest > limits.max:
            raise InvalidInputError(
                f"{field}: found values from {smallest} to {largest}, expected at most {limits.max}. "
                "Check where they come from."
            )
    return np.ascontiguousarray(array, dtype=dtype)
