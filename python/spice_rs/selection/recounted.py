"""A selection held against its source: whether its numbers are those of the rows that it names.

A checksum says that a file is whole, and not who wrote it. Some numbers of a pick follow from its row and those of the
picks before: these are counted again here, once, for whatever lays a selection over its source. Each pick's row is
read once more, and about as many of the near-duplicates; that a pick was the best of all rows is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from spice_rs import _core
from spice_rs.errors import CorruptStoreError, StoreMismatchError
from spice_rs.nouns import counted
from spice_rs.selection.columns import digest
from spice_rs.selection.represent import represented_again
from spice_rs.selection.saved import NEAR_DUPLICATES, SavedRun
from spice_rs.selection.saved_run import LAST, ROUNDING, Fault
from spice_rs.store.rows import BLOCK_BYTES, RowReader, unit_rows
from spice_rs.store.sources import Source

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

ETA = 1e-8
"""η of the conflict, as in `rust/spice-core/src/selection/conflict.rs`."""

PREFIX = 256
"""First picks, and initial rows before them, of which U is counted again at most."""

PREFIX_CELLS = 1 << 23
"""Cells of the matrix that takes: rows of very many columns make the prefix shorter."""

EPSILON = float(np.finfo(np.float64).eps)

FAINT = 1e-290
"""αw‖g‖² below this one tells no weight, and is the same as another one below it."""


@dataclass(frozen=True)
class Known:
    """What a caller knows of the picks besides the source.

    Attributes:
        weights: (n,) weight of each row in F by position, that of a target included; None where it is not known.
        initial: positions of the initial rows; None where they are not known.
        series: expected (m,) numbers of the picks by the name of their tensor.
        reader: of the rows as the selection saw them; None where they are not made yet.
    """

    weights: Floats | None = None
    initial: Rows | None = None
    series: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    reader: RowReader | None = None


def check_source(name: str, settings: Mapping[str, Any], source: Source, *, content: bool = True) -> None:
    """Refuse a source that a selection with these settings was not made from.

    Args:
        name: what the selection is called in a message: its file.
        settings: `Selection.settings`.
        source: the rows.
        content: look at the hash of the rows too, for which all of them are read where none is recorded.

    Raises:
        StoreMismatchError: the source is another.
    """
    expected = settings["source"]
    identity: dict[str, Any] = {"rows": source.rows, "dim": source.dim, "dtype": source.dtype}
    if content and expected["fingerprint"] is not None:
        identity["fingerprint"] = source.identify()
    check_identity(name, expected, identity, source)


def check_identity(
    name: str, expected: Mapping[str, Any], identity: Mapping[str, Any], source: Source
) -> None:
    """Refuse a source of which a fact is otherwise than a selection remembers.

    Args:
        name: what the selection is called in a message: its file.
        expected: what it remembers: `Selection.settings["source"]`.
        identity: fact → what it is of the source: rows, dim, dtype, fingerprint or content.
        source: the rows.

    Raises:
        StoreMismatchError: it says what differs, in words, since these facts are no arguments.
    """
    wrong = next((fact for fact, value in identity.items() if expected.get(fact) != value), None)
    if wrong is None:
        return
    has, was = identity[wrong], expected.get(wrong)
    if wrong in ("fingerprint", "content"):
        differs = (
            f"has other values than {name} was selected from ({expected['name']}): the fingerprints differ"
        )
    elif wrong == "dtype":
        differs = f"has cells of type {has}, {name} was selected from {was} ({expected['name']})"
    else:
        unit = "column" if wrong == "dim" else "row"
        differs = f"has {counted(has, unit)}, {name} was selected from {was} ({expected['name']})"
    raise StoreMismatchError(
        f"source: {source.description} {differs}. Give the source that was selected from, as it was."
    )


def check_numbers(
    name: str, run: SavedRun, source: Source, told: Known | None = None, *, is_known: bool = False
) -> None:
    """Refuse a selection whose numbers are not those of its rows.

    Args:
        name: what the selection is called in a message: its file.
        run: the selection, as a file holds it.
        source: what it was made from; `check_source` has found nothing.
        told: what else is known of the picks.
        is_known: the rows of the source were looked at already: those of the selection are as they were.

    Raises:
        StoreMismatchError: the rows of the source are others than those that the selection was made from.
        CorruptStoreError: the selection was altered since it was made.
    """
    positions = places_of(name, run, source, is_known=is_known)
    with np.errstate(all="ignore"):  # numbers that overflow are unlike the ones expected
        found = next(_faults(run, source, positions, told or Known()), None)
    if found is not None:
        _refuse(name, run, source, found, is_known)


def places_of(name: str, run: SavedRun, source: Source, *, is_known: bool = False) -> Rows:
    """Return the (m,) positions of the picks.

    Raises:
        StoreMismatchError: as for `check_numbers`.
        CorruptStoreError: a pick, or a near-duplicate, is no row of the source.
    """
    order = np.arange(source.rows) if source.index is None else source.index
    for each in ("indices", *NEAR_DUPLICATES[:2]):
        rows = run.series.get(each, order[:0])
        strange = np.flatnonzero(~np.isin(rows, order))
        if strange.size:
            rank = int(strange[0])
            fault = (f"{each}[{rank}]", f"row {rows[rank]}", f"one of the {counted(source.rows, 'row')}")
            _refuse(name, run, source, fault, is_known)
    return source.positions(run.series["indices"]).astype(np.int64)


def _refuse(name: str, run: SavedRun, source: Source, fault: Fault, is_known: bool) -> NoReturn:
    if not is_known:  # another source explains everything, and so do rows that are not what was written
        check_source(name, run.settings, source)
        _core.norms_sq(source.stored, threads=None)
    where, what, expected = fault
    raise CorruptStoreError(
        f"{name}: {where}: found {what}, expected {expected} in {source.description}. The selection was altered since it"
        " was made: restore the file, or select again."
    )


def window_places(source: Source, positions: Rows, size: int, seed: int) -> tuple[Rows, Rows]:
    """Return the rows in the order in which windows cut them, (n,) positions, and (m,) the number of each row's window."""
    order = source.dataset_order().astype(np.int64)
    shuffled = order[np.random.default_rng(seed).permutation(source.rows)]
    place = np.empty(source.rows, np.int64)
    place[shuffled] = np.arange(source.rows)
    return shuffled, place[positions] // size


def _faults(run: SavedRun, source: Source, positions: Rows, told: Known) -> Iterator[Fault]:
    """Yield what the rows of the source contradict; only the first is to be relied on."""
    yield from _of_rows(run, source, positions, told)
    if not len(run):
        return
    reader = told.reader
    if reader is None:
        represented = represented_again(run.settings, source)
        if represented is None:
            reader = RowReader(source, run.settings["normalize"])
        else:
            reader = represented.reader(source)
    yield from _of_cells(run, source, reader, positions, told)
    if NEAR_DUPLICATES[0] in run.series:
        near = [source.positions(run.series[each]).astype(np.int64) for each in NEAR_DUPLICATES[:2]]
        yield from _of_near_duplicates(run, reader, max(len(run), PREFIX), near)


def _of_rows(run: SavedRun, source: Source, positions: Rows, told: Known) -> Iterator[Fault]:
    """What is known of each row beside its cells."""
    expected: dict[str, npt.NDArray[Any]] = dict(told.series)
    if (records := source.records) is not None:
        expected["record_hashes"] = records[positions]
    if (tokens := source.num_tokens) is not None:
        expected["pick_tokens"] = tokens[positions]
        costs = run.settings["costs"]
        by_row = tokens.astype(np.float64)
        if costs is not None and digest(by_row[source.dataset_order()]) == costs["sha256"]:
            expected.setdefault("costs", by_row[positions])
    for name, values in expected.items():
        if name in run.series:
            tolerance = ROUNDING * np.abs(values) if name in ("costs", "relevance", "scores") else 0
            if name == "scores":
                tolerance = tolerance + ROUNDING * (run.series["gains"] + run.settings["conflict_penalty"])
            yield from _unlike(run, name, values, tolerance)


def _unlike(run: SavedRun, name: str, expected: npt.NDArray[Any], tolerance: Any) -> Iterator[Fault]:
    """The first number of the first picks that is not the one expected, if there is one."""
    found = run.series[name][: len(expected)]
    # Not `>`: what is no number is unlike as well.
    if found.dtype.kind == "f":
        wrong = np.flatnonzero(~(np.isfinite(expected) & (np.abs(found - expected) <= tolerance)))
    else:
        wrong = np.flatnonzero(found != expected)
    if wrong.size:
        rank = int(wrong[0])
        row = run.series["indices"][rank]
        yield f"{name}[{rank}]", f"{found[rank]}", f"{expected[rank]}, that of row {row}"


def _of_cells(
    run: SavedRun, source: Source, reader: RowReader, positions: Rows, told: Known
) -> Iterator[Fault]:
    """What follows from the cells of the picks: base, conflict, the gains of a diagonal F, U of the first picks."""
    settings, count, alpha = run.settings, len(run), float(run.settings["alpha"])
    by_row = told.weights
    if settings["weights"] is None and settings.get("target") is None:
        by_row = np.ones(source.rows)
    initial = np.empty(0, np.int64) if told.initial is None else told.initial
    from_start = settings["initial"] is None or (told.initial is not None and by_row is not None)
    windows = None
    if settings["pool_size"] is not None:
        windows = window_places(source, positions, settings["pool_size"], settings["seed"])[1]
    before = _Before(reader.dim, alpha)
    if by_row is not None:
        for at, rows in _in_blocks(reader, initial):
            before.add(rows, by_row[initial[at]])
    base, conflict, slack, gains, weights = (np.zeros(count) for _ in range(5))
    for here, rows in _in_blocks(reader, positions):
        squares = np.einsum("ij,ij->i", rows, rows)
        if by_row is not None:
            weights[here] = by_row[positions[here]]
            base[here] = np.log1p(alpha * (weights[here] * squares))
        else:  # a row's base tells what it weighs, and all that follows has to agree with it
            base[here] = run.series["base"][here]
            signal = np.minimum(alpha * squares, base[here])
            # Of numbers below float64's normal ones hardly a digit is left.
            weights[here] = np.where(signal > FAINT, np.expm1(base[here]) / (alpha * squares), np.nan)
        for part in _parts(here, windows):
            if windows is not None and (part.start == 0 or windows[part.start] != windows[part.start - 1]):
                before = _Before(reader.dim, alpha)
            own = rows[part.start - here.start : part.stop - here.start]
            conflict[part], slack[part], gains[part] = before.measure(own, weights[part])
            before.add(own, weights[part])
    yield from _unlike(run, "base", base, ROUNDING * base + FAINT)
    if not from_start:
        return
    blank = np.flatnonzero(
        np.isnan(weights)
    )  # rows of zeros, whose weight nothing tells: it counts in the mean
    known = len(run) if not blank.size else int(blank[0])
    yield from _unlike(run, "conflict", conflict[:known], (ROUNDING + slack)[:known])
    if settings["fisher"] == "diagonal" and settings["method"] != "top_k":
        yield from _unlike(run, "gains", gains[:known], ROUNDING * base[:known] + FAINT)
    prefix = max(0, min(count, min(PREFIX, PREFIX_CELLS // (reader.dim + PREFIX)) - len(initial)))
    if prefix and LAST in run.series and (windows is None or prefix == count):
        first = np.concatenate([initial, positions[:prefix]])
        own = np.nan_to_num(weights[:prefix]) if by_row is None else by_row[first]
        yield from _of_prefix(run, reader.read(first) * np.sqrt(alpha * own)[:, None], prefix)


def _parts(here: slice, windows: Rows | None) -> Iterator[slice]:
    """Yield the parts of a slice of ranks that lie in one window each."""
    cuts = [] if windows is None else (np.flatnonzero(np.diff(windows[here])) + 1 + here.start).tolist()
    for start, stop in zip([here.start, *cuts], [*cuts, here.stop], strict=True):
        yield slice(start, stop)


def _of_prefix(run: SavedRun, rows: Floats, count: int) -> Iterator[Fault]:
    """U of the first picks, from the definition; `rows` are the initial ones and those, times √(αw)."""
    if not np.isfinite(rows).all():
        return
    # Of [A, I]ᵀ, not of I + AAᵀ, in which 1 beside a long row is lost.
    triangle = np.linalg.qr(np.concatenate([rows, np.eye(len(rows))], axis=1).T, mode="r")
    log_dets = np.cumsum(2.0 * np.log(np.abs(np.diagonal(triangle))))[-count:]
    signal = np.einsum("ij,ij->i", rows, rows)
    tolerance = ROUNDING * np.cumsum(np.log1p(signal))[-count:]
    # Of short rows little is left beside 1. The core factors I + AAᵀ itself: beside a long row it has fewer digits.
    steps = np.arange(1, len(rows) + 1)[-count:]
    tolerance = tolerance + 32.0 * EPSILON * steps * (1.0 + signal.max())
    if run.settings["pool_size"] is None:
        yield from _unlike(run, LAST, log_dets, tolerance)
        return
    found = run.series[LAST][-1]
    if not abs(found - log_dets[-1]) <= tolerance[-1]:
        yield LAST, f"{found}", f"{log_dets[-1]}, U of all picks"


class _Before:
    """What the rows before a pick leave: their mean, and the released code's diagonal of F.

    Args:
        dim: columns of the rows.
        alpha: weight α of the Fisher information.
    """

    def __init__(self, dim: int, alpha: float) -> None:
        self._sum, self._alpha = np.zeros(dim), alpha
        self._diagonal = np.ones(dim)
        self._weight = self._length = 0.0
        self.count = 0

    def add(self, rows: Floats, weights: Floats) -> None:
        """Add rows of (b,) weights."""
        self._sum = self._sum + weights @ rows
        self._diagonal = self._diagonal + self._alpha * (weights**2 @ rows**4)
        self._weight += float(weights.sum())
        self._length += float(weights @ _lengths(rows))
        self.count += len(rows)

    def measure(self, rows: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """Return (b,) conflict of each row with those before it, how far rounding lets it be off, and its diagonal gain."""
        scaled = weights[:, None] * rows
        sums = _up_to(self._sum, scaled)
        counts = _up_to(np.float64(self._weight), weights)
        lengths = self._length + np.cumsum(weights * _lengths(rows))
        norms = _lengths(sums)
        own = _lengths(rows)
        aligned = np.einsum("ij,ij->i", rows, sums)
        conflict = np.maximum(-aligned / (own * norms + ETA * np.where(counts > 0, counts, 1.0)), 0.0)
        blank = (np.arange(len(rows)) == 0) & (self.count == 0)
        conflict[blank | (own == 0) | (norms == 0)] = 0.0
        steps = self.count + np.arange(1, len(rows) + 1)
        slack = np.where(norms > 0, 4.0 * EPSILON * steps * lengths / np.where(norms > 0, norms, 1.0), np.inf)
        slack[blank] = 0.0
        fourth = self._alpha * scaled**2 * rows**2
        diagonal = _up_to(self._diagonal, fourth)
        gain = np.log1p(np.einsum("ij,ij->i", self._alpha * scaled / diagonal, rows))
        return conflict, slack, gain


def _up_to(start: Any, values: Floats) -> Floats:
    """Return the sums of what comes before each of the values, from a start on."""
    sums = np.empty_like(values)
    sums[:1] = start
    np.cumsum(values[:-1], axis=0, out=sums[1:])
    sums[1:] += start
    return sums


def _lengths(rows: Floats) -> Floats:
    """Return (b,) ‖g‖, of rows whose squares leave float64 too."""
    largest = np.abs(rows).max(axis=1, initial=0.0)
    short = rows / np.where(largest > 0, largest, 1.0)[:, None]
    lengths: Floats = largest * np.sqrt(np.einsum("ij,ij->i", short, short))
    return lengths


def _in_blocks(reader: RowReader, positions: Rows) -> Iterator[tuple[slice, Floats]]:
    """Yield the rows at these positions, a quarter of a block at a time: so many are made of each."""
    size = max(1, BLOCK_BYTES // (32 * reader.dim))
    for start in range(0, len(positions), size):
        here = slice(start, min(start + size, len(positions)))
        yield here, reader.read(positions[here])


def _of_near_duplicates(
    run: SavedRun, reader: RowReader, most: int, near: list[npt.NDArray[np.int64]]
) -> Iterator[Fault]:
    """The cosines of rows that were skipped: of `most` of them at most, spread over all."""
    skipped, of = near
    cosines = run.series[NEAR_DUPLICATES[2]]
    spread = np.linspace(0, len(skipped) - 1, min(len(skipped), most))
    looked_at = np.unique(spread.astype(np.int64))
    for here, rows in _in_blocks(reader, skipped[looked_at]):
        at = looked_at[here]
        expected = np.einsum("ij,ij->i", unit_rows(rows), unit_rows(reader.read(of[at])))
        wrong = at[~(np.abs(cosines[at] - expected) <= ROUNDING)]
        if wrong.size:
            which = int(wrong[0])
            one, other = (run.series[each][which] for each in NEAR_DUPLICATES[:2])
            cosine = float(expected[np.flatnonzero(at == which)[0]])
            field = f"{NEAR_DUPLICATES[2]}[{which}]"
            yield field, f"{cosines[which]}", f"{cosine}, that of rows {one} and {other}"
