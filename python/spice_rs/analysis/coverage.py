"""How well picks cover rows that they were not picked from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs.analysis.inputs import SelectionInputs
from spice_rs.analysis.prefixes import Floats, Integers, Prefixes
from spice_rs.analysis.replay import Replay
from spice_rs.arguments import flag_or_none, number_of, rows_given
from spice_rs.errors import InvalidInputError
from spice_rs.nouns import counted
from spice_rs.progress import bar
from spice_rs.selection.arguments import count, seeded
from spice_rs.selection.columns import Columns, Label
from spice_rs.selection.presets import resolve_alpha
from spice_rs.selection.result import Selection, as_selection
from spice_rs.store.alike import check_alike
from spice_rs.store.rows import RowReader
from spice_rs.store.sources import Source, open_source, opened_beside
from spice_rs.tables import UNKNOWN, aligned, html_view


@dataclass(frozen=True, eq=False)
class Coverage:
    """What held-out rows would still gain beside a selection, and beside random picks.

    Attributes:
        picks: number of picks m.
        rows: number of held-out rows h.
        alone: mean Δ of the held-out rows beside nothing, in nats.
        left: mean Δ of them beside the picks.
        random: (r,) float64 the same beside r random sets of m rows.
        groups: label → (rows, mean Δ beside the picks, mean of the same beside the random sets); empty without groups.
    """

    picks: int
    rows: int
    alone: float
    left: float
    random: Floats
    groups: dict[Label, tuple[int, float, float]]

    @property
    def ratio(self) -> float:
        """`left` over the mean of `random`: below 1 the picks cover held-out rows better than random ones do."""
        mean = float(self.random.mean())
        return self.left / mean if mean > 0 else 1.0

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON knows them."""
        return {
            "picks": self.picks,
            "rows": self.rows,
            "alone": self.alone,
            "left": self.left,
            "random": self.random.tolist(),
            "ratio": self.ratio,
            "groups": {
                str(label): {"rows": rows, "left": left, "random": random}
                for label, (rows, left, random) in self.groups.items()
            },
        }

    def _cells(self) -> list[tuple[str, ...]]:
        """Return the table: what is left of Δ, for all held-out rows and for those of each group."""
        random = float(self.random.mean())
        lines = [
            ("all", self.rows, self.left, random),
            *((str(of), *found) for of, found in self.groups.items()),
        ]
        return [
            ("held-out rows", "rows", "Δ beside the picks", "beside random ones", "ratio"),
            *(
                (
                    of,
                    f"{rows:,}",
                    f"{left:.4f}",
                    f"{drawn:.4f}",
                    f"{left / drawn:.3f}" if drawn > 0 else UNKNOWN,
                )
                for of, rows, left, drawn in lines
            ),
        ]

    def summary(self) -> str:
        """Return a table of plain text, and what it is to be held against."""
        spread = f" (± {self.random.std(ddof=1):.4f})" if len(self.random) > 1 else ""
        return (
            f"{aligned(self._cells())}\n\n{counted(self.picks, 'pick')}; {counted(len(self.random), 'random set')} of as"
            f" many rows{spread}; Δ beside nothing: {self.alone:.4f} nats\n"
            "a ratio below 1: the picks say more of held-out rows than random ones do"
        )

    def _repr_html_(self) -> str:
        return html_view(self._cells(), repr(self))

    def __repr__(self) -> str:
        spread = f" ± {self.random.std(ddof=1):.4f}" if len(self.random) > 1 else ""
        return (
            f"Coverage({counted(self.picks, 'pick leaves', 'picks leave')} {self.left:.4f} of {self.alone:.4f}"
            f" nats to {self.rows} held-out rows,"
            f" random ones {self.random.mean():.4f}{spread}: {self.ratio:.3f})"
        )


def coverage(
    selection: Selection,
    source: Any,
    held_out: Any,
    *,
    groups: Any = None,
    data: Any = None,
    initial: Any = None,
    weights: Any = None,
    random_sets: int = 5,
    seed: int = 0,
    progress: bool | None = None,
    dim: int | None = None,
    dtype: str | None = None,
) -> Coverage:
    """Return what held-out rows would still gain beside a selection, against random picks of the same size.

    Δ = log(1 + α hᵀ(I + αF_S)⁻¹h) of each held-out row h, at the scale and the α of the selection: what is left of it that
    the picks do not say. A larger U is not better coverage: rows that are like no others have much information, and say
    little about the rest. Representative picks are measured on the rows before C^{γ/2}, with α "auto" over these, so that
    all γ have one yardstick: that of a selection without it, of unit rows with α "auto".

    Args:
        selection: the picks, by the full Fisher information and in one run.
        source: what they were picked from.
        held_out: rows that were not in it, as for `select`, extracted as it was; or dataset rows of the source itself that
            are no picks (whole numbers): then random picks are not among these either.
        groups: label of each held-out row, for a number each: the name of a column of `data`, or (h,) labels by dataset row
            of the held-out source, or in the order of the rows given.
        data: what the held-out source was extracted from, to look that column up in.
        initial: as `select` had it.
        weights: as `select` had it; held-out rows weigh 1.
        random_sets: random sets of as many rows, drawn from those that could be picked.
        seed: seed of the draws.
        progress: show a bar, or do not; by default where a person can see it.
        dim: columns of a headerless source.
        dtype: element type of a headerless source.

    Raises:
        InvalidInputError: an argument cannot be used, or a held-out row was picked.
        StoreMismatchError: the source is not what was selected from, or the held-out rows are of another kind.

    Example:
        >>> import numpy as np, spice_rs
        >>> rows = np.random.default_rng(0).standard_normal((400, 8), dtype=np.float32)
        >>> sel = spice_rs.select(rows[:300], 40, normalize="unit", alpha="auto")
        >>> found = spice_rs.coverage(sel, rows[:300], rows[300:])
        >>> found.left < found.alone, len(found.random)
        (True, 5)
    """
    selection = as_selection(selection)
    random_sets, seed, progress = (
        count("random_sets", random_sets),
        seeded(seed),
        flag_or_none("progress", progress),
    )
    if not len(selection):
        raise InvalidInputError("selection: found no picks, expected at least one. Select rows first.")
    replay = Replay(
        selection, source, SelectionInputs(initial=initial, weights=weights), dim=dim, dtype=dtype
    )
    if replay.reading != "full" or replay.settings["pool_size"] is not None:
        raise InvalidInputError(
            f"selection: found one of fisher={replay.settings['fisher']!r}, method={replay.settings['method']!r},"
            f" pool_size={replay.settings['pool_size']}, expected greedy picks of one run by the full Fisher information."
            " Select such ones."
        )
    [run] = replay.runs()
    free = run.candidates
    if _is_rows(held_out):
        positions = replay.source.positions(rows_given("held_out", held_out), "held_out").astype(np.int64)
        if (picked := np.isin(positions, replay.picks)).any():
            row = replay.source.dataset_row(int(positions[np.flatnonzero(picked)[0]]))
            raise InvalidInputError(
                f"held_out: found row {row}, which was picked, expected others. Leave it out."
            )
        held, reader = replay.source, replay.plain
        free = free[~np.isin(free, positions)]  # the picks are left
        labels, codes = _labels_of_list(groups, len(positions))
    else:
        held = opened_beside(held_out, "held_out", dim, dtype)
        check_alike("held_out", held, replay.source)
        _check_apart(selection, replay.source, held)
        reader = RowReader(held, replay.settings["normalize"])
        positions = held.dataset_order().astype(np.int64)
        labels, codes = _labels(held, groups, data)
    if not len(positions):
        raise InvalidInputError("held_out: found no rows, expected at least one. Hold some out.")
    alpha = replay.alpha
    if replay.settings.get("represent") is not None:  # of other rows
        alpha = resolve_alpha("auto", replay.source.pool(replay.settings["normalize"]))
    draws = np.random.default_rng(seed)
    sets = [replay.picks, *(draws.choice(free, len(selection), replace=False) for _ in range(random_sets))]
    found = np.empty((len(sets), len(positions)))
    alone = np.empty(len(positions))
    signal = max(
        (replay.alpha * float((block**2).sum(1).max()) for _, block in reader.blocks(order=positions))
    )
    shown = bar(progress, total=len(sets) * len(positions), what="coverage", unit="rows")
    try:
        for number, chosen in enumerate(sets):
            selected = np.concatenate([replay.initial, chosen])
            own = None if replay.weights is None else replay.weights[selected]
            prefixes = Prefixes(
                replay.plain.read(selected),
                alpha,
                np.array([0, len(selected)]),
                weights=own,
                signal=signal,
            )
            done = 0
            for at, block in reader.blocks(order=positions):
                gains = prefixes.measure(block).gain
                alone[done : done + len(at)] = gains[:, 0]
                found[number, done : done + len(at)] = gains[:, 1]
                done += len(at)
                shown.update(len(at))
    finally:
        shown.close()
    return Coverage(
        picks=len(selection),
        rows=len(positions),
        alone=float(alone.mean()),
        left=float(found[0].mean()),
        random=found[1:].mean(axis=1),
        groups={
            label: (
                int((codes == code).sum()),
                float(found[0, codes == code].mean()),
                float(found[1:, codes == code].mean()),
            )
            for code, label in enumerate(labels)
        },
    )


def _is_rows(held_out: Any) -> bool:
    """Whether it is a list of numbers rather than a source."""
    if isinstance(held_out, list | tuple):
        return all(number_of(each) is not None for each in held_out)
    return getattr(held_out, "ndim", None) == 1


def _labels(held: Source, groups: Any, data: Any) -> tuple[list[Label], Integers]:
    """Return labels and their numbers, by dataset row of the held-out source."""
    if groups is None and data is None:
        return [], np.zeros(held.rows, np.int64)
    return Columns(held, data, {"groups": groups}, joins=False).labels("groups", groups)


def _labels_of_list(groups: Any, rows: int) -> tuple[list[Label], npt.NDArray[np.int64]]:
    """The same of labels that are given in the order of a list of rows."""
    if groups is None:
        return [], np.zeros(rows, np.int64)
    if isinstance(groups, str) or not hasattr(groups, "__len__") or len(groups) != rows:
        raise InvalidInputError(
            f"groups: found {type(groups).__name__}, expected {counted(rows, 'label')}, one for each row of"
            " held_out, in its order."
            " Give a list of them."
        )
    return Columns(open_source(np.zeros((rows, 1), np.float32)), None, {}).labels("groups", list(groups))


def _check_apart(selection: Selection, source: Source, held: Source) -> None:
    """Refuse held-out rows that were picked, as far as hashes tell."""
    same = held.rows == source.rows and held.identify() == source.identify()
    hashes = selection.record_hashes
    if not same and hashes is not None and held.records is not None:
        same = bool(np.isin(held.records, hashes).any())
    if same:
        raise InvalidInputError(
            f"held_out: found rows in {held.description} that were picked, expected others. Give rows that were not, for"
            " example numbers of rows of the source."
        )
