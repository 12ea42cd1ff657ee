"""The total curvature of a pool: how good greedy picks from it must be, before anything is picked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs import _core
from spice_rs.arguments import shown
from spice_rs.frames import Framed
from spice_rs.nouns import counted
from spice_rs.progress import Progress, counting
from spice_rs.selection.arguments import alpha_given, count_or_none, gamma_given, threads_wanted
from spice_rs.selection.columns import Columns, digest
from spice_rs.selection.presets import Alpha, resolve_alpha
from spice_rs.selection.represent import represent as make_represented
from spice_rs.selection.represent import without_gamma
from spice_rs.store.sources import Normalize, open_source
from spice_rs.tables import UNKNOWN, html_view

Floats = npt.NDArray[np.float64]


def percent(share: float) -> str:
    """Return a share in per cent, rounded down: what is proven must not look better than it is."""
    return f"{math.floor(share * 1000) / 10:.1f} %"


@dataclass(frozen=True, repr=False, eq=False)
class Curvature(Framed):
    """How far U(S) = log det(I + αF_S) is from adding up over the n rows of a pool D.

    Attributes:
        total: c = 1 − min_x Δ_x(D∖{x})/Δ_x(∅), in [0, 1]: 0 if no row takes anything from another, 1 if some row is
            worth nothing beside all others.
        error: c is at most this much larger, whatever was rounded.
        guarantee: (1 − e^−c)/c of the largest c that `error` allows, in [1 − 1/e, 1]: greedy selection by U alone
            (conflict_penalty=0, no conditions) reaches at least this share of the largest U of any k rows, for every k.
        row: dataset row with the smallest ratio; None if all rows are zero.
        rows: (n,) int64 dataset rows, in the order of the source; the order of the next two.
        leverages: (n,) float64 α gᵀ(I + αF_D)⁻¹g, in [0, 1): how much of its direction is the row's own.
        ratios: (n,) float64 Δ_x(D∖{x})/Δ_x(∅), in [0, 1]: what is left of the row's gain beside all others; nan for zero
            rows.
        settings: alpha, normalize, a hash of the weights, what representative picks would see of the rows, and what is
            known of the source.
    """

    total: float
    error: float
    guarantee: float
    row: int | None
    rows: npt.NDArray[np.int64]
    leverages: Floats
    ratios: Floats
    settings: dict[str, Any]

    def __len__(self) -> int:
        return len(self.rows)

    def to_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return the columns index (int64), leverage and ratio (float64), each (n,)."""
        return {"index": self.rows, "leverage": self.leverages, "ratio": self.ratios}

    def _repr_html_(self) -> str:
        row = UNKNOWN if self.row is None else str(self.row)
        cells = ["total curvature", "error", "guarantee", "row that decides"]
        return html_view(
            [cells, [f"{self.total:.6g}", f"{self.error:.2g}", percent(self.guarantee), row]], repr(self)
        )

    def __repr__(self) -> str:
        where = "" if self.row is None else f" at row {self.row}"
        return f"Curvature({counted(len(self), 'row')}, total {self.total:.6g}{where}, guarantee {percent(self.guarantee)})"


def curvature(
    source: Any,
    *,
    alpha: Alpha | None = None,
    normalize: Normalize = "auto",
    data: Any = None,
    index_column: str | None = None,
    weights: Any = None,
    represent: float = 0.0,
    represent_rank: int | None = None,
    threads: int | None = None,
    progress: Progress = None,
    dim: int | None = None,
    dtype: str | None = None,
) -> Curvature:
    """Return the exact total curvature of U over all rows of a source.

    U is monotone and submodular; if its total curvature is c, greedy selection has at least (1 − e^−c)/c of the best U
    (Conforti and Cornuéjols, 1984). That holds for conflict_penalty=0 alone: the penalised score is not submodular,
    and no guarantee is known for it. With many more rows than columns c is close to 1 and the guarantee close to 1 − 1/e,
    63 %; `certify` says more of a given selection.

    No loop over subsets is needed: with M = I + αF_D and h = gᵀM⁻¹g, Δ_x(D∖{x}) = −log(1 − αh). Rows are read three times,
    through the map; two passes take n·d²/2 multiplications each, and d × d matrices of float64 are kept (n × n if n ≤ d).

    Args:
        source: as for `select`.
        alpha: weight α of the Fisher information, or "auto", as for `select`; 1 unless said otherwise.
        normalize: as for `select`.
        data: what the source was extracted from, to look the name of a column up in.
        index_column: column of `data` with the dataset row of each record, where the n-th record is not row n: data in
            another order, or fewer of them; a dot leads into an object (spice.index).
        weights: as for `select`: weight of each row in the Fisher information.
        represent: as for `select`: the rows C^{γ/2}g; they are unit rows before, unless `normalize` says otherwise, and α
            is "auto" over them.
        represent_rank: as for `select`.
        threads: threads to use; all cores by default.
        progress: show a bar, or do not; by default where a person can see it. From Python also a callable that gets
            (rows read so far, rows that all passes will read).
        dim: columns of a headerless file.
        dtype: element type of a headerless file.

    Raises:
        InvalidInputError: an argument is out of range, a row holds a NaN or an infinity, or the matrices do not fit into
            memory.
        KeyboardInterrupt: Ctrl-C.

    Example:
        >>> import numpy as np, spice_rs
        >>> spice_rs.curvature(np.eye(3, dtype=np.float32)).guarantee > 0.999999
        True
        >>> spice_rs.curvature(np.float32([[1, 0], [1, 0], [0, 1]]))
        Curvature(3 rows, total 0.415037 at row 0, guarantee 81.8 %)
    """
    threads, progress, gamma = threads_wanted(threads), shown(progress), gamma_given(represent)
    given = alpha_given(("auto" if gamma else 1.0) if alpha is None else alpha)
    rank = count_or_none("represent_rank", represent_rank)
    if rank is not None and not gamma:
        raise without_gamma("represent_rank")
    opened = open_source(source, dim=dim, dtype=dtype)
    opened.warn_unfinished()
    pool = opened.pool("unit" if gamma and normalize == "auto" else normalize)
    known = None
    if gamma:
        made = make_represented(
            opened,
            pool.normalize,  # type: ignore[arg-type]
            gamma,
            rank,
            threads=threads,
            progress=progress,
        )
        known, pool = made.settings(), made.pool(pool)
    columns = Columns(opened, data, {"weights": weights}, index_column)
    hashed = None
    if weights is not None:
        values = columns.numbers("weights", weights, positive=True)
        hashed, pool = {"sha256": digest(values)}, pool.weighted(columns.by_position(values))
    alpha = resolve_alpha(given, pool, threads=threads)
    with counting(progress, "curvature") as count:
        found = _core.curvature(pool, alpha=alpha, threads=threads, progress=count)
    rows = np.arange(opened.rows, dtype=np.int64) if opened.index is None else opened.index
    position = found.pop("position")
    found["row"] = None if position is None else int(rows[position])
    settings = {
        "alpha": alpha,
        "normalize": pool.normalize,
        "weights": hashed,
        "represent": known,
        "source": opened.identity(),
    }
    return Curvature(**found, rows=rows, settings=settings)
