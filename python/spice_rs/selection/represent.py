"""Representative picks: the pool's own second moment as a prior covariance.

With F = Σ uuᵀ over the unit rows of a pool and C = F/λ, λ its largest eigenvalue, log det(I + αC^{γ/2}F_S C^{γ/2}) is the
usual objective on rows C^{γ/2}g: directions in which the pool has little energy count little. These rows are made once, as
float32, and everything that looks at rows then looks at them: gains, bounds, conflicts, near-duplicates, certificates. They
are written in the basis of C's eigenvectors, which changes no inner product: the leading r directions are r columns.

(The other way is to keep the rows as they are and to map each pick by C^γ. It needs each row's ‖C^{γ/2}g‖² first, and that
takes the n·d² multiplications that making the rows takes; a search would have to know of two geometries at every product.)
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
import shutil
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs import _core
from spice_rs.errors import InvalidInputError
from spice_rs.memory import check_memory
from spice_rs.progress import Progress, counting
from spice_rs.store.pool import Pool
from spice_rs.store.rows import RowReader
from spice_rs.store.sources import Normalize, Source

IN_MEMORY = 1 << 30
"""Bytes of rows up to which they are kept in memory, where there is room; more of them go to a file without a name."""


@dataclass(frozen=True, eq=False)
class Represented:
    """The rows of a source as representative picks see them.

    Attributes:
        gamma: γ in (0, 4].
        rank: directions asked for; None for all.
        columns: directions r that count: those of which C has more than 1e-12 of its largest eigenvalue, at most `rank`.
        energy: share of Σ‖u‖² that these directions have, in [0, 1].
        fingerprint: hash of the rows of the source as they are stored.
        rows: (n·r,) float32 rows in the order of the source.
    """

    gamma: float
    rank: int | None
    columns: int
    energy: float
    fingerprint: str
    rows: npt.NDArray[np.float32]

    def settings(self) -> dict[str, Any]:
        """Return what `Selection.settings` says of it."""
        return {
            "gamma": self.gamma,
            "rank": self.rank,
            "directions": self.columns,
            "energy": self.energy,
        }

    def pool(self, pool: Pool) -> Pool:
        """Return these rows in place of those of a pool that they were made from."""
        return dataclasses.replace(pool, blocks=[self._block], dim=self.columns, scale=None, unit=False)

    def reader(self, source: Source) -> RowReader:
        """Return a reader of these rows by position of the source."""
        plain = Source(
            blocks=[self._block],
            rows=source.rows,
            dim=self.columns,
            dtype="float32",
            description=source.description,
            index=source.index,
        )
        return RowReader(plain, "none")

    @property
    def _block(self) -> tuple[Any, str, int]:
        return self.rows.view(np.uint8), "float32", len(self.rows) // self.columns


def represent(
    source: Source,
    normalize: Normalize,
    gamma: float,
    rank: int | None = None,
    *,
    folder: str | None = None,
    threads: int | None = None,
    progress: Progress = None,
) -> Represented:
    """Make the rows C^{γ/2}g of a source: the same bits for any threads and any spread of rows over files.

    Args:
        source: the pool.
        normalize: scale of the rows g. C is of unit rows, whatever it is.
        gamma: γ, above 0.
        rank: leading directions to keep; None for all.
        folder: where rows go that are too many for memory; None for the system's folder of temporary files.
        threads: to use.
        progress: show a bar, or do not; functions are for picks, and hear nothing of it.

    Raises:
        InvalidInputError: a row cannot be used, there are fewer columns than `rank`, or there is no room for the d × d
            matrices or for the rows.
        KeyboardInterrupt: Ctrl-C.
    """
    if rank is not None and rank > source.dim:
        raise InvalidInputError(
            f"represent_rank: found {rank}, expected at most {source.dim}, the columns of {source.description}. Leave it"
            " out to keep all directions."
        )
    shown = None if callable(progress) else progress
    pool = source.pool(normalize)
    with counting(shown, "second moment") as count:
        found = _core.second_moment(
            source.pool("unit"), gamma=gamma, rank=rank, threads=threads, progress=count
        )
    columns, spectrum = found["columns"], found["spectrum"]
    total = math.fsum(spectrum)
    rows = _room(source.rows * columns, folder)
    with counting(shown, "transform") as count:
        _core.transform(pool, found["directions"], rows, threads=threads, progress=count)
    rows.flags.writeable = False
    return Represented(
        gamma=gamma,
        rank=rank,
        columns=columns,
        energy=math.fsum(spectrum[:columns]) / total if total > 0 else 1.0,
        fingerprint=found["fingerprint"],
        rows=rows,
    )


def without_gamma(name: str) -> InvalidInputError:
    """Return the error of an argument that is about representative picks, where none are asked for."""
    return InvalidInputError(
        f"{name}: found it without represent, expected both. Give represent=1, or leave {name} out."
    )


def represented_again(
    settings: dict[str, Any], source: Source, *, threads: int | None = None, progress: Progress = None
) -> Represented | None:
    """Return the rows that a selection with these settings was made from; None if these are the source's own."""
    known = settings.get("represent")
    if known is None:
        return None
    normalize, gamma, rank = settings["normalize"], known["gamma"], known["rank"]
    return represent(source, normalize, gamma, rank, threads=threads, progress=progress)


def _room(cells: int, folder: str | None) -> npt.NDArray[np.float32]:
    """Return so many float32 zeros, in memory or in a file without a name, which ends with the array."""
    size = 4 * cells
    if folder is None and size <= IN_MEMORY:
        try:
            check_memory("rows of representative picks", float(size), "", field="represent")
            return np.zeros(cells, np.float32)
        except InvalidInputError:
            pass  # a file takes no memory that the system could not take back
    place = folder or tempfile.gettempdir()
    try:
        free = shutil.disk_usage(place).free
        if free < size:
            raise InvalidInputError(
                f"represent_folder: found {free / 1e9:.1f} GB free in {place}, expected {size / 1e9:.1f} GB for the rows in"
                " the pool's own geometry. Make room, name another folder (select takes it as represent_folder; elsewhere"
                " TMPDIR names it), or keep fewer directions with represent_rank."
            )
        with tempfile.TemporaryFile(dir=place) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # or a full disk would end the process later
            else:
                file.truncate(size)
            return np.frombuffer(mmap.mmap(file.fileno(), size), np.float32)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidInputError(
            f"represent_folder: found no room for {size / 1e9:.1f} GB in {place} ({reason}), expected a folder for the rows"
            " in the pool's own geometry. Name another one."
        ) from error
