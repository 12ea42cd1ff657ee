"""How good a selection is at least, beside any other of as many rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs import _core
from spice_rs.analysis.curvature import percent
from spice_rs.arguments import number_of, rows_given, shown
from spice_rs.errors import InvalidInputError, StoreMismatchError
from spice_rs.frames import Framed
from spice_rs.nouns import counted
from spice_rs.progress import PER_CENT, Progress, counting
from spice_rs.selection.arguments import count, threads_wanted
from spice_rs.selection.columns import Columns, digest, row_list
from spice_rs.selection.conditions import weighted
from spice_rs.selection.recounted import Known, check_identity, check_numbers, check_source, places_of
from spice_rs.selection.represent import represented_again
from spice_rs.selection.result import Selection, as_selection
from spice_rs.selection.target import aimed_again
from spice_rs.store.sources import Source, open_source
from spice_rs.tables import html_view

Floats = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, repr=False, eq=False)
class Certificate(Framed):
    """An upper bound of U(S) = log det(I + αF_S) over all choices of k rows, from p prefixes of a selection of k.

    Attributes:
        prefixes: (p,) int64 numbers of first picks; the last one is k.
        submodular: (p,) float64 bound by submodularity, U(S_j) + Σ of the k largest Δ_x(S_j) outside S_j.
        concave: (p,) float64 bound by the concavity of log det in the weights of the rows, U(S_j) + Σ of the k largest
            a_x − Σ_{x∈S_j} a_x with a_x = α gᵀ(I + αF_{S_j})⁻¹g.
        bounds: (p,) float64 the smaller of both.
        relaxed: (s,) float64 bound by concavity at better weights than those of the picks, after each step to them.
        log_dets: (p,) float64 U of the prefixes.
        log_det: U of all picks.
        upper_bound: the smallest bound: no k rows have a larger U.
        ratio: U of the picks is at least this share of the largest U of any k rows.
        prefix: the prefix that bounds best; None if better weights do.
        picks: k.
        conflict_penalty: λ that the picks were made with. The bound is about U alone, whatever it is.
    """

    prefixes: npt.NDArray[np.int64]
    submodular: Floats
    concave: Floats
    bounds: Floats
    relaxed: Floats
    log_dets: Floats
    log_det: float
    upper_bound: float
    ratio: float
    prefix: int | None
    picks: int
    conflict_penalty: float

    def to_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return the columns prefix (int64), log_det, submodular, concave and bound (float64), each (p,)."""
        return {
            "prefix": self.prefixes,
            "log_det": self.log_dets,
            "submodular": self.submodular,
            "concave": self.concave,
            "bound": self.bounds,
        }

    def _repr_html_(self) -> str:
        columns = (self.prefixes, self.log_dets, self.submodular, self.concave)
        cells = [[f"{value:.6g}" for value in row] for row in zip(*columns, strict=True)]
        return html_view([["prefix", "U", "submodular bound", "concave bound"], *cells], repr(self))

    def __repr__(self) -> str:
        return (
            f"Certificate({counted(self.picks, 'pick')}, log det {self.log_det:.6g} of at most {self.upper_bound:.6g},"
            f" at least {percent(self.ratio)} of the best)"
        )


@dataclass(frozen=True)
class Choice:
    """The rows that bounds are taken from, by position, as `_core` takes them: (m,) int64 each."""

    initial: npt.NDArray[np.int64]
    picks: npt.NDArray[np.int64]
    prefixes: npt.NDArray[np.int64]


def certify(
    selection: Selection,
    source: Any,
    prefixes: int | Sequence[int] = 12,
    *,
    steps: int = 4,
    data: Any = None,
    index_column: str | None = None,
    weights: Any = None,
    initial: Any = None,
    threads: int | None = None,
    progress: Progress = None,
    dim: int | None = None,
    dtype: str | None = None,
) -> Certificate:
    """Return a proven upper bound of U over any k rows, and so how much of the best U a selection has.

    The bound holds however the rows were picked: by any method, with a conflict penalty, under conditions. It is about
    U alone. What the penalty avoids does not count in it, and neither do conditions: it bounds U of any k rows
    (beside the same initial rows, with the same weights), k being the number of picks, those that conditions forbid
    included. Rounding is bounded too, and always against the claim.

    Args:
        selection: the picks; what `Selection.load` returns is one.
        source: what was selected from.
        prefixes: how many prefixes of the picks to look at, log-spaced from 1 to k, or which, as numbers of picks. No pick
            and all of them are looked at in any case. More of them can only make the bound tighter, and take longer.
        steps: at most so many steps of Frank and Wolfe's method to weights of the rows where the bound by concavity is
            tighter. Each is one more pass over the source; none is taken where there are far fewer picks than columns,
            where they cannot lead below the best bound, or where its matrices do not fit into memory.
        data: what the source was extracted from, to look the name of a column up in.
        index_column: column of `data` with the dataset row of each record, where the n-th record is not row n: data in
            another order, or fewer of them; a dot leads into an object (spice.index).
        weights: the weights of the selection, if it has any.
        initial: the initial rows of the selection, if it has any.
        threads: threads to use; all cores by default.
        progress: show a bar, or do not; by default where a person can see it. From Python also a callable that gets
            (rows read so far, rows that all passes will read).
        dim: columns of a headerless file.
        dtype: element type of a headerless file.

    Raises:
        InvalidInputError: an argument is out of range, the selection has no picks, or the matrices do not fit into
            memory.
        StoreMismatchError: the source, the weights or the initial rows are not those of the selection.
        CorruptStoreError: the selection was altered since: its numbers are not those of its rows.
        KeyboardInterrupt: Ctrl-C.

    Example:
        >>> import numpy as np, spice_rs
        >>> rows = np.random.default_rng(0).standard_normal((300, 8), dtype=np.float32)
        >>> spice_rs.certify(spice_rs.select(rows, 20), rows)
        Certificate(20 picks, log det 29.0608 of at most 29.241, at least 99.3 % of the best)
    """
    threads, steps, progress = threads_wanted(threads), count("steps", steps, least=0), shown(progress)
    selection = as_selection(selection)
    settings, k = selection.settings, len(selection)
    if k == 0:
        raise InvalidInputError(
            "selection: found no picks, expected at least one. Select again, with more time."
        )
    chosen = _prefixes(prefixes, k)
    opened = open_source(source, dim=dim, dtype=dtype)
    opened.warn_unfinished()
    check_source(selection.file or "the selection", settings, opened, content=False)
    represented = represented_again(settings, opened, threads=threads, progress=progress)
    pool, starts = opened.pool(settings["normalize"]), _initial(opened, initial, settings)
    pool = pool if represented is None else represented.pool(pool)
    by_row = _weights(opened, data, index_column, weights, settings)
    aimed = None if selection.target is None else aimed_again(selection.target, opened, threads)
    by_row = weighted(by_row, aimed)
    name, run = selection.file or "selection", selection.as_run()
    picks = places_of(name, run, opened)
    series = {} if aimed is None else {"relevance": aimed.best[picks]}
    reader = None if represented is None else represented.reader(opened)
    check_numbers(name, run, opened, Known(by_row, starts, series, reader))
    choice = Choice(starts, picks, chosen)
    with counting(progress, "certify", PER_CENT) as seen:
        found = _core.certify(
            pool.weighted(by_row),
            choice,
            alpha=settings["alpha"],
            steps=steps,
            threads=threads,
            progress=seen,
        )
    content = {"content": found["fingerprint"] if represented is None else represented.fingerprint}
    check_identity(selection.file or "the selection", settings["source"], content, opened)
    submodular, concave = found["submodular"], found["concave"]
    bounds = np.minimum(submodular, concave)
    return Certificate(
        prefixes=chosen,
        submodular=submodular,
        concave=concave,
        bounds=bounds,
        relaxed=found["relaxed"],
        log_dets=found["log_dets"],
        log_det=float(found["log_dets"][-1]),
        upper_bound=found["upper_bound"],
        ratio=found["ratio"],
        prefix=int(chosen[bounds.argmin()]) if found["upper_bound"] == bounds.min() else None,
        picks=k,
        conflict_penalty=settings["conflict_penalty"],
    )


def _prefixes(asked: int | Sequence[int], k: int) -> npt.NDArray[np.int64]:
    """Return ascending numbers of picks, from 0 to all of them."""
    if number_of(asked) is not None or isinstance(asked, bool | str | None):
        spaced = np.round(np.geomspace(1, k, count("prefixes", asked))).astype(np.int64)
    else:
        spaced = rows_given("prefixes", asked, remedy="a list of numbers of picks")
        outside = spaced[(spaced < 0) | (spaced > k)]
        if outside.size:
            raise InvalidInputError(
                f"prefixes: found {outside[0]}, expected numbers from 0 to {k}, the picks there are. Leave it out."
            )
    return np.unique(np.concatenate([spaced, [0, k]])).astype(np.int64)


def _weights(
    source: Source, data: Any, index_column: str | None, given: Any, settings: dict[str, Any]
) -> Floats | None:
    """Return the weights by position, after a look whether they are those of the selection."""
    columns = Columns(source, data, {"weights": given}, index_column)
    values = None if given is None else columns.numbers("weights", given, positive=True)
    _check_given("weights", None if values is None else digest(values), settings)
    return None if values is None else columns.by_position(values)


def _initial(source: Source, given: Any, settings: dict[str, Any]) -> Positions:
    """Return the positions of the initial rows, after a look whether they are those of the selection."""
    if isinstance(given, Selection):
        given = given.indices
    rows = np.empty(0, np.int64) if given is None else row_list("initial", given)
    _check_given("initial", digest(rows) if rows.size else None, settings)
    return source.positions(rows, "initial").astype(np.int64)


def _check_given(field: str, found: str | None, settings: dict[str, Any]) -> None:
    recorded = settings[field]
    expected = None if recorded is None else recorded["sha256"]
    if found == expected:
        return
    remedy = f"Leave {field} out." if expected is None else f"Give the {field} that `select` was given."
    raise StoreMismatchError(
        f"{field}: found {_named(found)}, expected {_named(expected)} as the selection has. {remedy}"
    )


def _named(digested: str | None) -> str:
    return "none" if digested is None else f"values of hash {digested}"
