"""The gradient store: a folder of safetensors files with one gradient row per sample.

Any number of writers fill one store, in any number of processes and days. What a writer has committed is
complete and is never changed; a killed writer loses at most the rows that it had not committed: what waits in its queue
and for its next shard, which is written when it is full or `seconds_per_shard` old.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spice_rs import _core
from spice_rs.arguments import (
    callable_or_none,
    choice,
    flag,
    real_or_none,
    refused,
    text_or_none,
    whole,
    whole_or_none,
)
from spice_rs.atomic import check_place, replacing
from spice_rs.errors import InvalidInputError, SpiceWarning, StoreMismatchError
from spice_rs.nouns import counted
from spice_rs.own_json import parsed
from spice_rs.paths import local, local_or_none
from spice_rs.printable import as_html
from spice_rs.store.grown import largest, read_grown, write_grown
from spice_rs.store.options import Schema, Shards
from spice_rs.store.unfinished import Unfinished, mark, of_all, read_mark
from spice_rs.store.values import integers, json_object, room
from spice_rs.store.writer import GradientWriter

__all__ = ["GradientStore", "GradientWriter"]

_Path = str | os.PathLike[str]

Progress = Callable[[int, int], object]
"""Called with (done, all) every few MiB; an exception from it ends the work."""

STORE_FILE = "store.json"
"""What a folder has that is a store."""

DTYPES = ("int8", "float16", "bfloat16", "float32")
"""How cells can be stored."""

_WIDEST = 1 << 32  # columns
_LONGEST_WAIT = 1e18  # seconds: what the core counts in
_EXPORT_CELLS = 1 << 20
_LONGEST_HEADER = 1 << 20  # bytes; see the format
_LEAST_ROW = 17  # bytes of a row: index, scale, norm and a cell
"""Cells that are exported at a time."""


class GradientStore:
    """An open store, as it was when it was opened; opening reads no gradients. See docs/store-format.md for the files.

    Rows have *positions* 0 … len(store) - 1, the order of the files. ``index`` says which row of the dataset
    is at each position.

    A pickle holds the path and the options, and whoever loads it (a worker process, say) opens the store again: positions
    mean the same there, or it is a StoreMismatchError; a store that was moved is a StoreError. A copy shares open files.

    Args:
        path: The folder of the store.
        memory_limit: Bytes that the open store may take: its columns (some 32 bytes for each row), the rows that ``read``
            returns, and pages of the files that ``read``, ``verify`` and ``export`` map; None for no limit. A selection
            reads through the system's page cache, whatever the limit.

    Raises:
        StoreError: If the path is no store, was written by another version, or has a row twice.
        CorruptStoreError: If a file was cut short or altered.
        InvalidInputError: If the columns alone take more than ``memory_limit``.
    """

    def __init__(self, path: _Path, *, memory_limit: int | None = None) -> None:
        self._memory_limit = whole_or_none("memory_limit", memory_limit, least=0)
        self._open(path)

    def _open(self, path: _Path) -> None:
        self._core = _core.Store(local(path), self._memory_limit)
        self._order: NDArray[np.int64] | None = None
        info = json.loads(self._core.info())
        self._provenance: dict[str, Any] = info.pop("provenance")
        self._info: dict[str, Any] = info
        self._grown = read_grown(self.path)
        found = read_mark(self.path)
        self._unfinished = found if found is not None and len(self) < found.rows else None

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (type(self), self.path, self._memory_limit, self._identity())

    def __copy__(self) -> GradientStore:
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> GradientStore:
        return self.__copy__()  # nothing of it is ever changed in place

    def _identity(self) -> str:
        """A hash of the rows and of their order."""
        order = hashlib.blake2b(self.index.tobytes(), digest_size=16).hexdigest()
        return f"{self.fingerprint}-{order}"

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
        seconds_per_shard: float | None = None,
        fsync: bool = True,
        writer: str | None = None,
    ) -> GradientWriter:
        """Creates a store, or joins an existing one of the same schema, and returns a writer.

        The schema is ``dim``, ``dtype``, ``reduction`` and ``provenance``. Rows become a shard when
        there are ``rows_per_shard`` of them, when they take ``bytes_per_shard``, or when the oldest has waited for
        ``seconds_per_shard``. A thread of the writer's converts, writes and syncs them; 64 MiB of float32 rows may wait for
        it before ``append`` does.

        Args:
            path: The folder; it and its parents are created.
            dim: Number of columns.
            dtype: How cells are stored: "int8", "float16", "bfloat16" or "float32". A scale per row keeps very large
                and very small rows in range; for "int8" it is the row's largest cell / 127.
            reduction: How the loss was reduced over tokens, "sum" or "mean"; None if unknown.
            provenance: Where the rows come from (model, projection, dataset, …), as plain JSON.
            rows_per_shard: Rows per shard; None for no limit.
            bytes_per_shard: Bytes per shard; None for 64 MiB.
            seconds_per_shard: Seconds; None for 30.
            fsync: Wait until a shard is on disk before it counts as committed. Without that, rows survive a kill all the
                same, but after a power cut shards may be missing or damaged; ``repair`` finds the damaged ones.
            writer: The writer's part of file names; None for a unique one.

        Raises:
            StoreMismatchError: If the store has another schema; the message names the field.
            InvalidInputError: If an argument cannot be used.
            StoreError: If the folder is no store or cannot be written.
        """
        path = local(path)
        schema = Schema(
            whole("dim", dim, most=_WIDEST),
            choice("dtype", dtype, DTYPES),
            choice("reduction", reduction, ("sum", "mean", None)),
            json_object(provenance),
        )
        shards = Shards(
            rows=whole_or_none("rows_per_shard", rows_per_shard),
            bytes=whole_or_none("bytes_per_shard", bytes_per_shard, least=0),
            seconds=real_or_none("seconds_per_shard", seconds_per_shard, least=0, most=_LONGEST_WAIT),
            fsync=flag("fsync", fsync),
            writer=text_or_none("writer", writer),
        )
        core = _core.StoreWriter(path, schema, shards)
        return GradientWriter(core, path, schema.dim)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._core)

    @property
    def unfinished(self) -> str | None:
        """How far the extraction is, in words, where it has begun and not ended, as far as the store says."""
        return None if self._unfinished is None else self._unfinished.text(len(self))

    @property
    def expected_rows(self) -> int | None:
        """Number of rows that the store will have when its extraction has ended; None where nothing says it has not."""
        return None if self._unfinished is None else self._unfinished.rows

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
        """How cells are stored: "int8", "float16", "bfloat16" or "float32"."""
        return self._core.dtype

    @property
    def reduction(self) -> str | None:
        """How the loss was reduced over tokens: "sum", "mean", or None if the store does not say."""
        return self._core.reduction

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the rows come from, as given to ``create``; a copy. "dataset" is that of the data as they are now."""
        grown = {} if self._grown is None else {"dataset": self._grown}
        return cast(dict[str, Any], json.loads(json.dumps(self._provenance | grown)))

    @property
    def first_dataset(self) -> Any:
        """What ``provenance["dataset"]`` was when the store was created, which is a part of its schema; a copy."""
        return json.loads(json.dumps(self._provenance.get("dataset")))

    @property
    def fingerprint(self) -> str:
        """A hash of schema and rows, 32 hex digits; independent of their order and of the files that they are in.

        Stores of the first versions lack what it is taken from; there, a compaction changes it once.
        """
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

    @property
    def record(self) -> NDArray[np.int64] | None:
        """A hash of what each row was extracted from: (n,) int64; None unless all shards record it."""
        return self._core.record

    def read(self, positions: ArrayLike, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Reads rows, on all cores if they are many.

        Args:
            positions: (m,) integers, 0 ≤ position < len(store), in any order, repeated or not.
            out: (m, dim) float32, C-contiguous, to be filled; None for a new array. Where many parts are read one
                after the other, one array for all of them saves the time in which the system hands out memory.

        Returns:
            (m, dim) float32: the rows, rounded to the dtype of the store; ``out`` if it was given.

        Raises:
            InvalidInputError: If a position is not there or is no integer; if ``out`` cannot be filled; or if the memory
                limit leaves no room for so many rows.
        """
        wanted = integers("positions", positions, np.int64)
        if wanted.size and wanted.min() < 0:
            raise InvalidInputError(
                f"positions: found {int(wanted.min())}, expected at least 0. Positions count from the first row, so that"
                " len(store) - 1 is the last."
            )
        filled = room("out", out, (len(wanted), self.dim))
        self._core.read(wanted, filled)
        return filled

    def positions(self, index: ArrayLike) -> NDArray[np.int64]:
        """Looks up where rows of the dataset are; reads no gradients.

        Args:
            index: (m,) integers, rows of the dataset, in any order, repeated or not.

        Returns:
            (m,) int64: their positions, so that ``read(positions(index))`` are these rows.

        Raises:
            InvalidInputError: If the store has no such row; the message names the first.
        """
        wanted = integers("index", index, np.int64)
        rows = self.index
        if self._order is None:
            self._order = np.argsort(rows, kind="stable")
        found = np.searchsorted(rows, wanted, sorter=self._order)
        places = (
            self._order[np.minimum(found, len(rows) - 1)] if len(rows) else np.zeros(len(wanted), np.int64)
        )
        missing = np.flatnonzero(rows[places] != wanted) if len(rows) else np.arange(len(wanted))
        if missing.size:
            raise InvalidInputError(
                f"index: found {int(wanted[missing[0]])}, expected rows of {self.path}. Leave this row out, or extract it."
            )
        return places

    def info(self) -> dict[str, Any]:
        """What there is to know without reading gradients, as plain JSON types.

        Has path, rows, expected_rows, dim, dtype, reduction, columns, shards, bytes, schema_id, fingerprint,
        format_version, written_by, superseded, leftovers (unfinished files of writers that run or were
        killed) and the keys of ``provenance``; where a key is in both, this is the store's own.
        """
        known = {**self.provenance, **self._info}
        first = {"path": known.pop("path"), "rows": known.pop("rows")}
        return {**first, "expected_rows": self.expected_rows, **known}

    def verify(self, progress: Progress | None = None) -> dict[str, Any]:
        """Reads everything: all checksums, NaN and Inf, the scale and the norm of each row.

        Args:
            progress: Called with (rows done, all rows) every few MiB; an exception from it ends the work.

        Returns:
            What was checked: {"shards", "rows", "bytes"}, and the names of files that are in the way and no part of the
            store: "superseded" shards, and "leftovers" of writers that run or were killed. ``repair`` removes them.

        Raises:
            CorruptStoreError: With the file, the place, what was found and what was expected.
        """
        return _result(self._core.verify(callable_or_none("progress", progress)))

    @staticmethod
    def merge(
        sources: Sequence[_Path],
        path: _Path,
        progress: Progress | None = None,
        differing: Literal["refuse", "first", "last"] = "refuse",
    ) -> GradientStore:
        """Makes one new store of several: all their rows, in their order, as they are stored.

        Rows that are there more than once are kept once if they are the same to the bit. The new store appears when it is
        whole. A single store in which two writers wrote one row can be merged too: it loses the copy.

        Args:
            sources: Folders of stores with one schema.
            path: A new folder.
            progress: As for ``verify``.
            differing: What to do with rows of one index that are not the same, as two machines may have computed them:
                "refuse" to merge, or keep the "first" or the "last" in the order of sources and positions.

        Raises:
            InvalidInputError: If ``sources`` is no list.
            StoreMismatchError: If two stores have different schemas; the message names the field.
            StoreError: If two different rows have one index (the message has both shards), or if ``path`` is taken.
            CorruptStoreError: If a source is damaged.
        """
        if isinstance(sources, str | bytes | os.PathLike) or not isinstance(sources, Iterable):
            raise refused("sources", sources, "a list of folders", "Put it into one, in brackets.")
        choice("differing", differing, ("refuse", "first", "last"))
        callable_or_none("progress", progress)
        folders = [local(source, "sources") for source in sources]
        marks, grown = [read_mark(folder) for folder in folders], largest([*map(read_grown, folders)])
        path = local(path)
        _core.merge(folders, path, differing, progress)
        return _marked(path, of_all(marks), grown)

    def convert(self, path: _Path, dtype: str, progress: Progress | None = None) -> GradientStore:
        """Makes a new store of the same rows in another dtype; it appears when it is whole.

        From "float32" the rows are those that would have been written in ``dtype`` at once. Other rows are rounded a
        second time, and "converted_from" in the provenance says what they were.

        Args:
            path: A new folder.
            dtype: "int8", "float16", "bfloat16" or "float32".
            progress: As for ``verify``.

        Raises:
            InvalidInputError: If there is no such dtype.
            StoreError: If ``path`` is taken or cannot be written.
            CorruptStoreError: If a shard is damaged.
        """
        path = local(path)
        _core.convert(
            self._core, path, choice("dtype", dtype, DTYPES), callable_or_none("progress", progress)
        )
        return _marked(path, self._unfinished, self._grown)

    def compact(self, bytes_per_shard: int | None = None, progress: Progress | None = None) -> dict[str, int]:
        """Replaces small shards by as few as can be; this object then shows the store as it is now.

        Others may read and append meanwhile. Whenever the process is killed, all rows are there once. The positions of rows
        change; dataset indices, picks and the fingerprint do not.

        Args:
            bytes_per_shard: Shards of at least this size stay, and the new ones have at most about it; None for 64 MiB.
            progress: As for ``verify``, with the rows to be copied.

        Returns:
            {"shards_before", "shards", "deleted"}: the last is 0.

        Raises:
            StoreError: While another process compacts, deletes or repairs; if a shard cannot be written.
            CorruptStoreError: If a shard is damaged; it stays, and so does the rest.
        """
        size = whole_or_none("bytes_per_shard", bytes_per_shard, least=0)
        callable_or_none("progress", progress)
        done = _result(_core.compact(self.path, size, progress))
        self._open(self.path)
        return done

    def delete(self, index: ArrayLike, progress: Progress | None = None) -> dict[str, int]:
        """Deletes rows; this object then shows the store as it is now.

        Rows that the store does not have are ignored. If the process is killed, some of the rows may be deleted; the same
        call deletes the rest. An extraction that is resumed computes deleted rows again.

        Args:
            index: (m,) integers, rows of the dataset.
            progress: As for ``verify``, with the rows of the shards concerned.

        Returns:
            {"shards_before", "shards", "deleted", "absent"}: the last two are the numbers of rows deleted, and of
            those that the store did not have.

        Raises:
            StoreError, CorruptStoreError: As for ``compact``.
        """
        callable_or_none("progress", progress)
        rows = np.unique(integers("index", index, np.int64))
        done = _result(_core.delete(self.path, rows, progress))
        self._open(self.path)
        return {**done, "absent": len(rows) - done["deleted"]}

    @staticmethod
    def repair(path: _Path, progress: Progress | None = None) -> dict[str, Any]:
        """Makes a store with damaged or forgotten files, or copies of rows, one that opens and that ``verify`` finds sound.

        Removes unfinished files of dead writers and superseded shards, and renames damaged shards to "damaged-…", which
        the store does not look at. Their rows are missing then, and the store is unfinished: an extraction that is resumed
        computes them again. Of rows
        with one index that are the same to the bit, as two extractions at a time leave them, one is kept. Others may read
        and append meanwhile; whenever the process is killed, no row is lost, and the next repair does the rest.

        Args:
            path: The folder of the store.
            progress: Called with (shards done, all shards).

        Returns:
            {"removed": names, "kept": names of unfinished files whose writers live, "damaged": [{"name", "reason"}],
            "duplicates": [{"name", "rows", "kept_in", "bytes"}]}: the last has the copies that were dropped, by the shard
            that had them, with their dataset rows, the shards that keep the same rows, and the bytes that they took.

        Raises:
            StoreError: If there is no store; while another process compacts, deletes or repairs; if two rows of one index
                differ (the message has both shards): all else is repaired then, and no row is dropped.
            CorruptStoreError: If store.json is damaged: restore it from a copy.
        """
        path = local(path)
        earlier = read_mark(path)
        done = _result(_core.repair(path, callable_or_none("progress", progress)))
        if done["damaged"]:
            rows = len(GradientStore(path)) + sum(
                _rows_of(Path(path) / each["name"]) for each in done["damaged"]
            )
            if earlier is None or earlier.rows < rows:
                mark(path, Unfinished(rows, longest_first=False, lost=True))
        return done

    def export(self, path: _Path, index: _Path | None = None, progress: Progress | None = None) -> None:
        """Writes the rows as one float32 matrix to a .npy file, sorted by dataset row.

        Args:
            path: The .npy file; it appears when it is whole, in place of one that is there.
            index: Another .npy file, for the (n,) int64 dataset rows; None for none.
            progress: As for ``verify``.

        Raises:
            InvalidInputError: If no file can lie there, or both are one.
            OSError: If a file cannot be written.
        """
        path, index = local(path), local_or_none(index, "index")
        callable_or_none("progress", progress)
        for place in (path, index):
            if place is not None:
                check_place(place)
        if index is not None and os.path.realpath(path) == os.path.realpath(index):
            raise InvalidInputError(
                f"index: found {os.fspath(index)}, the file of the rows, expected another. Name one of its own."
            )
        if self.unfinished is not None:
            warnings.warn(f"{self.path}: {self.unfinished}; the file has no more", SpiceWarning, stacklevel=2)
        order = np.argsort(self.index, kind="stable")
        rows_per_chunk = max(1, min(_EXPORT_CELLS // self.dim, self._core.rows_at_a_time))
        with replacing(path) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(self), self.dim)}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(self), rows_per_chunk):
                chunk = order[start : start + rows_per_chunk]
                file.write(self.read(chunk).astype("<f4", copy=False).data)
                if progress is not None:
                    progress(start + len(chunk), len(self))
        if index is not None:
            with replacing(index) as file:
                np.save(file, self.index[order])

    def __repr__(self) -> str:
        of = "" if self.expected_rows is None else f" of {self.expected_rows}"
        return (
            f"GradientStore({self.path!r}, rows={len(self)}{of}, dim={self.dim}, dtype={self.dtype!r}, "
            f"shards={self._info['shards']}{', unfinished' * bool(of)})"
        )

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th>{as_html(key)}</th><td>{as_html(self._info[key])}</td></tr>"
            for key in ("path", "rows", "dim", "dtype", "reduction", "shards", "bytes", "fingerprint")
        )
        note = "" if self.unfinished is None else f"<p>{as_html(self.unfinished)}</p>"
        return f"<table>{cells}</table>{note}"


def _marked(path: _Path, unfinished: Unfinished | None, grown: dict[str, Any] | None) -> GradientStore:
    """Open a new store, after it was marked as unfinished where it is, and as grown."""
    if grown is not None:
        write_grown(path, grown)
    store = GradientStore(path)
    if unfinished is None or len(store) >= unfinished.rows:
        return store
    mark(path, unfinished)
    return GradientStore(path)


def _reopened(kind: type[GradientStore], path: str, memory_limit: int | None, identity: str) -> GradientStore:
    """Open a store that was pickled.

    Raises:
        StoreMismatchError: it has other rows by now, or has them in another order.
    """
    store = kind(path, memory_limit=memory_limit)
    if store._identity() != identity:
        raise StoreMismatchError(
            f"{path}: rows: found {counted(len(store), 'row')} that are not, or not in the order of, those of the"
            " store that was"
            " pickled, expected the same. It was appended to or compacted meanwhile: open it again, and pickle that, or"
            " pass its path."
        )
    return store


def _result(text: str) -> dict[str, Any]:
    """What the core has to say about its work."""
    return cast(dict[str, Any], json.loads(text))


def _rows_of(shard: Path) -> int:
    """Return how many rows a damaged shard says that it had, as far as it is large enough for them; at least 1."""
    try:
        with open(shard, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = parsed(file.read(min(length, _LONGEST_HEADER)))
            most = os.fstat(file.fileno()).st_size // _LEAST_ROW
        return max(1, min(int(header["__metadata__"]["rows"]), most))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 1
