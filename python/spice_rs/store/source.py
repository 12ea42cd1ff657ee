"""Rows that can be selected from, with what is known of them; `sources.py` opens everything as such."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from spice_rs import _core
from spice_rs.arguments import choice, flag
from spice_rs.data.matching import Belonging
from spice_rs.errors import InvalidInputError, SpiceWarning, UnfinishedStoreError
from spice_rs.store.pool import Pool
from spice_rs.store.store import GradientStore

Normalize = Literal["auto", "none", "sum", "mean", "unit"]
"""The scale of the rows that compete; see `spice_rs.select`."""


Label = str | int | bool
"""What a group is called."""


@dataclass(frozen=True)
class RowLabels:
    """A label of each row.

    Attributes:
        labels: the different labels.
        codes: (n,) int64 place in `labels` of each row's, by position.
        column: column of the data that they are from; None if the caller gave them.
    """

    labels: list[Label]
    codes: npt.NDArray[np.int64]
    column: str | None = None


@dataclass(frozen=True)
class Source:
    """Rows and what is known about them.

    Of stores and files a pickle holds the path, and whoever loads it opens them again; what has changed since, or is gone,
    is an error. Of arrays it holds the rows.

    Attributes:
        blocks: row blocks as `_core` takes them: (cells as uint8, dtype, rows), the same with the file behind a map, or an
            open store.
        rows: number of rows n.
        dim: number of columns d.
        dtype: name of the element type.
        description: what the user named, for messages and for `Selection.settings`.
        index: (n,) int64 dataset rows in the order of the blocks, or None for 0 … n − 1.
        scale: (n,) float64 factor of each row, or None for 1.
        num_tokens: (n,) int32 learned tokens of each row, or None.
        reduction: "sum" or "mean" over tokens if the rows are gradients of such a loss, else None.
        fingerprint: hash of the content where one is recorded, else None.
        data: what is known of the data that the rows were extracted from, as `Belonging.about` has it, else None.
        keep_alive: what the blocks are of.
        origin: (function, arguments) that open the same rows again; None of arrays.
        labels: what rows are of, where somebody has looked that up in the data: for what is said of picks alone.
    """

    blocks: list[Any]
    rows: int
    dim: int
    dtype: str
    description: str
    index: npt.NDArray[np.int64] | None = None
    scale: npt.NDArray[np.float64] | None = None
    num_tokens: npt.NDArray[np.int32] | None = None
    reduction: str | None = None
    fingerprint: str | None = None
    data: dict[str, Any] | None = None
    keep_alive: Any = field(default=None, repr=False)
    origin: tuple[Callable[..., Source], tuple[Any, ...]] | None = field(default=None, repr=False)
    labels: RowLabels | None = field(default=None, repr=False)

    def __reduce__(self) -> tuple[Callable[..., Source], tuple[Any, ...]]:
        if self.origin is not None:
            return self.origin
        known = {each.name: getattr(self, each.name) for each in fields(self)}
        # Rows of the caller's memory; a map of its own goes as what it holds.
        known |= {
            "blocks": [(np.asarray(cells), *about[:2]) for cells, *about in self.blocks],
            "keep_alive": None,
        }
        return partial(Source, **known), ()

    @property
    def stored(self) -> Pool:
        """The rows as they are stored, without a scale."""
        return Pool(self.blocks, self.dim, self.index)

    def pool(self, normalize: Normalize) -> Pool:
        """Return the rows at a scale.

        Raises:
            InvalidInputError: the source does not record what the normalisation needs.
        """
        normalize = choice("normalize", normalize, get_args(Normalize))
        if normalize == "auto":
            normalize = "mean" if self.reduction == "sum" and self.num_tokens is not None else "none"
        scale = self.scale
        if normalize in ("sum", "mean") and normalize != self.reduction:
            factor = self._token_factor(normalize)
            scale = factor if scale is None else scale * factor
        return Pool(self.blocks, self.dim, self.index, normalize, scale, normalize == "unit")

    def _token_factor(self, normalize: str) -> npt.NDArray[np.float64]:
        """Return the (n,) float64 factors from sums over tokens to means, or back."""
        if self.reduction is None or self.num_tokens is None:
            raise InvalidInputError(
                f"normalize: found {normalize!r} for {self.description}, expected a store that records its loss"
                " reduction and token counts. Use normalize='none' or 'unit'."
            )
        tokens = self.num_tokens.astype(np.float64)
        if (tokens <= 0).any():
            row = int(np.flatnonzero(tokens <= 0)[0])
            raise InvalidInputError(
                f"num_tokens of row {self.dataset_row(row)}: found {self.num_tokens[row]}, expected at least 1."
                " Extract this row again, or use normalize='none'."
            )
        return 1.0 / tokens if normalize == "mean" else tokens

    @property
    def is_joined(self) -> bool:
        """Whether it is made of several sources, which it then keeps alive."""
        return isinstance(self.keep_alive, list)

    @property
    def unfinished(self) -> list[GradientStore]:
        """Those of its stores whose extraction has not ended."""
        if self.is_joined:
            return [store for part in self.keep_alive for store in part.unfinished]
        store = self.keep_alive
        return [store] if isinstance(store, GradientStore) and store.unfinished is not None else []

    def check_finished(self, partial: bool) -> None:
        """Refuse a pool that is not whole yet, unless that is what is wanted.

        Raises:
            UnfinishedStoreError: an extraction has not ended, and `partial` is false.
        """
        if flag("partial", partial) or not self.unfinished:
            return
        store = self.unfinished[0]
        raise UnfinishedStoreError(
            f"{store.path}: found {store.unfinished}, expected all rows. Run the same `extract` again, which goes on from"
            " there; or take what there is: partial=True."
        )

    def warn_unfinished(self) -> None:
        """Say that the pool is not whole yet, where its picks are looked at."""
        for store in self.unfinished:
            warnings.warn(
                f"{store.path}: {store.unfinished}; what is said here is of these rows.",
                SpiceWarning,
                stacklevel=3,
            )

    @cached_property
    def records(self) -> npt.NDArray[np.int64] | None:
        """(n,) int64 hash of what each row was extracted from, in the order of the blocks; None if it is not known."""
        if self.data is None:
            return None
        found = [block.record for block in self.blocks]
        return None if any(each is None for each in found) else np.concatenate(found)

    @property
    def belonging(self) -> Belonging | None:
        """What is known of the data that the rows were extracted from; None if nothing is."""
        if self.data is None or self.index is None:
            return None
        return Belonging.of(self.description, self.data, self.index, self.records)

    def identify(self, threads: int | None = None) -> str:
        """Return a hash of the rows as stored and of their dataset rows; reads all of them where none is recorded."""
        return self.fingerprint or _core.fingerprint(self.stored, threads=threads)

    def identity(self, content: str | None = None) -> dict[str, Any]:
        """Return what a selection remembers of its source; `content` is the hash of the rows that the core returns."""
        return {
            "name": self.description,
            "rows": self.rows,
            "dim": self.dim,
            "dtype": self.dtype,
            "fingerprint": self.fingerprint or content,
            "content": content,
            "data": self.data,
            "hashed": self.records is not None,
            "unfinished": [[len(store), store.expected_rows] for store in self.unfinished] or None,
        }

    def dataset_row(self, position: int) -> int:
        """Return the dataset row at a position of the source."""
        return position if self.index is None else int(self.index[position])

    def positions(self, rows: npt.NDArray[np.int64], field: str = "rows") -> npt.NDArray[np.int64]:
        """Return the positions of dataset `rows`, which the user gave as `field`.

        Raises:
            InvalidInputError: a row is not in the source.
        """
        order = self.dataset_order()
        index = np.arange(self.rows) if self.index is None else self.index
        found = np.minimum(np.searchsorted(index, rows, sorter=order), self.rows - 1)
        positions = order[found]
        missing = np.flatnonzero(index[positions] != rows)
        if missing.size:
            first, last = int(index[order[0]]), int(index[order[-1]])
            limits = f"{first} to {last}" + ("" if last - first + 1 == self.rows else ", not all of them")
            raise InvalidInputError(
                f"{field}: found {int(rows[missing[0]])}, expected rows of {self.description} ({limits}). Leave this row"
                " out."
            )
        return positions

    def dataset_order(self) -> npt.NDArray[np.int64]:
        """Return the positions sorted by dataset row: an order that no sharding changes."""
        return np.arange(self.rows) if self.index is None else np.argsort(self.index, kind="stable")
