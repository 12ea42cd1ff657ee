"""Why each row was picked: its gain taken apart, its rival, its nearest earlier pick, and how conflict goes with gain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spice_rs.analysis.inputs import SelectionInputs, takes_inputs
from spice_rs.analysis.prefixes import Floats, Integers, Positions, Prefixes, RunningSum
from spice_rs.analysis.replay import Replay, Run, log_spaced, sampled
from spice_rs.analysis.result import Analysis
from spice_rs.analysis.stepwise import Ranked, stepwise, tightness
from spice_rs.analysis.waiting import waited
from spice_rs.arguments import shown
from spice_rs.errors import InvalidInputError
from spice_rs.interface import spoken
from spice_rs.nouns import counted
from spice_rs.progress import Bar, Progress, bar
from spice_rs.selection.arguments import count, count_or_none, seeded
from spice_rs.selection.result import Selection, as_selection

if TYPE_CHECKING:
    from typing_extensions import Unpack

AFFORDABLE = 5e11
"""Multiplications up to which every step is looked at unless the caller says otherwise: some 10 s on eight cores."""

FEWER_STEPS = 24
"""Steps that are looked at, close together at first, where all of them would cost more."""

RANKED_STEPS = 64
"""Steps at which conflict and gain are ranked, at most, for each run."""

BLOCK_CELLS = 1 << 21
"""Cells of a block of rows, or of its numbers at all prefixes, whichever are more."""


@takes_inputs
def analyze(
    selection: Selection,
    source: Any,
    *,
    steps: int | None = None,
    sample: int = 2000,
    seed: int = 0,
    progress: Progress = None,
    dim: int | None = None,
    dtype: str | None = None,
    **given: Unpack[SelectionInputs],
) -> Analysis:
    """Return what decided each pick: its gain taken apart, its rival, its likeness to earlier picks.

    The best other row of a step is found by scoring all candidates there again, beside the run's own earlier picks. For n
    rows of d columns and m picks this takes some n·m·(2d + m) multiplications for all steps, in float64; beyond
    `AFFORDABLE` of them a sample of the steps is looked at, close together at first, and `margin` is nan at the others.

    Args:
        selection: the picks.
        source: what they were picked from, as for `spice_rs.select`.
        data: what the source was extracted from, to look column names up in.
        index_column: column of `data` with the dataset row of each record, where the n-th record is not row n: data in
            another order, or fewer of them; a dot leads into an object (spice.index).
        groups: as `select` had it. What is given of this and the next is checked to be the same as then. Without
            `groups`, `costs`, `exclude` or `prior` that `select` had, it is unknown who else could have been picked:
            `margin` then is nan. `initial` and `weights` have to be given.
        **given: as `select` had them: see `SelectionInputs`.
        steps: steps at which the runner-up is sought, close together at first; by default all that are affordable.
        sample: candidates that are ranked at a step, at most; more are drawn from.
        seed: seed of that draw.
        progress: show a bar, or do not; by default where a person can see it.
        dim: columns of a headerless source.
        dtype: element type of a headerless source.

    Raises:
        InvalidInputError: an argument is out of range, or not what the selection was made with.
        StoreMismatchError: the source is not what was selected from.

    Example:
        >>> import numpy as np, spice_rs
        >>> rows = np.float32([[3, 0], [2.9, 0.1], [0, 1], [-3, 0], [-2, 1]])
        >>> found = spice_rs.analyze(spice_rs.select(rows, 3, conflict_penalty=0.5), rows)
        >>> found.runner_up, found.nearest
        (array([3, 1, 4]), array([-1,  0,  0]))
    """
    steps, sample, seed = count_or_none("steps", steps), count("sample", sample), seeded(seed)
    selection, progress = as_selection(selection), shown(progress)
    if not len(selection):
        raise InvalidInputError("selection: found no picks, expected at least one. Select rows first.")
    replay = Replay(selection, source, given, dim=dim, dtype=dtype)
    replay.source.warn_unfinished()
    picks, runs = len(selection), replay.runs()
    found = {name: np.full(picks, np.nan) for name in ("norm", "cosine", "nearest_cosine", "bound", "margin")}
    rivals = {name: np.full(picks, -1, np.int64) for name in ("nearest", "runner_up")}
    parts: list[Ranked] = []
    plan = [_steps(replay, run, steps) if replay.contested else np.empty(0, int) for run in runs]
    work = sum(len(run.candidates) for run, ranks in zip(runs, plan, strict=True) if len(ranks))
    last = None
    drawn = bar(progress, total=work, what="analyze", unit="rows")
    try:
        for run, ranks in zip(runs, plan, strict=True):
            here = slice(run.first, run.first + len(run.picks))
            selected, own_weights = replay.rows_of(run)
            for name, values in _beside_earlier(replay, run, selected, own_weights).items():
                (rivals if name == "nearest" else found)[name][here] = values
            if len(ranks):
                best, who = _best_others(replay, run, ranks, selected, own_weights, drawn)
                at = run.first + ranks
                found["margin"][at] = selection.scores[at] - best
                rivals["runner_up"][at] = np.where(who < 0, -1, _dataset_rows(replay, who))
            rows = sampled(run.candidates, sample, seed)
            parts.append(_ranked(replay, run, rows, selected, own_weights))
            last = _after(replay, run, rows, selected, own_weights) if len(runs) == 1 else None
    finally:
        drawn.close()
    full = replay.reading == "full"
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = np.abs(selection.epsilon) / found["bound"] if full else np.full(picks, np.nan)
    ratios[found["bound"] == 0] = np.nan
    tokens = replay.source.num_tokens
    looked_at = sum(map(len, plan))
    return Analysis(
        selection=selection,
        tightness=ratios,
        **found,
        nearest=rivals["nearest"],
        runner_up=rivals["runner_up"],
        num_tokens=None if tokens is None else tokens[replay.picks],
        stepwise=stepwise(parts),
        theorem4=tightness(parts) if full else None,
        candidates=last,
        looked_at=looked_at,
        notes=_notes(replay, runs, looked_at, sample),
    )


# --- one run ------------------------------------------------------------------------------------------------------


def _steps(replay: Replay, run: Run, wanted: int | None) -> Integers:
    """Return the ranks within a run at which the runner-up is sought; rows to include had none."""
    forced = replay.selection.forced
    free = max(0, len(run.picks) - forced)
    if wanted is not None:
        return forced + log_spaced(free, wanted)
    every, few = (forced + log_spaced(free, most) for most in (free, FEWER_STEPS))
    signal = _largest_signal(replay, run.candidates) if replay.reading == "full" else 0.0
    whole, least = (_least_price(replay, run, ranks, signal) for ranks in (every, few))
    # By recursion, few steps can cost as much as all.
    return every if whole <= max(AFFORDABLE, least) else few


def _least_price(replay: Replay, run: Run, ranks: Integers, signal: float) -> float:
    """Return about how many multiplications the cheapest way to look at these steps takes."""
    sizes, rows = len(replay.initial) + ranks, len(run.candidates)
    return replay.price(sizes, rows, recursive=replay.is_recursive(sizes, rows, signal))


def _blocks(replay: Replay, rows: Positions, width: int) -> Iterator[tuple[Positions, Floats, Floats | None]]:
    """Yield (positions, rows, weights) in blocks whose numbers at `width` prefixes fit in the caches' neighbourhood."""
    size = max(1, BLOCK_CELLS // max(width, replay.dim))
    for positions, block in replay.reader.blocks(size, order=rows):
        yield positions, block, None if replay.weights is None else replay.weights[positions]


def _largest_signal(replay: Replay, rows: Positions) -> float:
    """Return the largest αw‖g‖² of rows."""
    largest = 0.0
    for _, block, weights in _blocks(replay, rows, 1):
        squares = (block**2).sum(1) * (1.0 if weights is None else weights)
        largest = max(largest, replay.alpha * float(squares.max(initial=0.0)))
    return largest


def _prefixes(
    replay: Replay, selected: Floats, weights: Floats | None, sizes: Integers, rows: Positions
) -> Iterator[tuple[slice, Prefixes]]:
    signal = _largest_signal(replay, rows) if replay.reading == "full" else 0.0
    return replay.batches(selected, weights, sizes, signal=signal)


def _beside_earlier(
    replay: Replay, run: Run, selected: Floats, weights: Floats | None
) -> dict[str, npt.NDArray[Any]]:
    """Return what each pick is beside the rows selected before it."""
    before, dim = len(replay.initial), replay.dim
    roots = np.ones(len(selected)) if weights is None else np.sqrt(weights)
    norms = np.sqrt((selected**2).sum(1))
    running = RunningSum(dim)
    count = len(run.picks)
    positions = np.concatenate([replay.initial, run.picks])
    nearest, cosines = np.full(count, -1, np.int64), np.zeros(count)
    means, bounds = np.zeros(count), np.zeros(count)
    for start in range(0, len(selected), 512):
        block = selected[start : start + 512]
        products = waited(np.matmul, block, selected[: start + len(block)].T)
        for row, product in enumerate(products):
            j = start + row
            if j >= before:
                total = running.value
                length = norms[j] * float(np.sqrt(total @ total))
                means[j - before] = float(selected[j] @ total) / length if length > 0 else 0.0
            running.add(selected[j], float(roots[j] ** 2))
            if j < max(before, 1):
                continue
            earlier = product[:j]
            lengths = norms[j] * norms[:j]
            near = np.divide(earlier, lengths, out=np.zeros(j), where=lengths > 0)
            at = int(np.argmax(np.abs(near)))
            nearest[j - before] = replay.source.dataset_row(int(positions[at]))
            cosines[j - before] = near[at]
            overlap = float(((replay.alpha * roots[j] * roots[:j] * earlier) ** 2).sum())
            bounds[j - before] = overlap / (1.0 + replay.alpha * (roots[j] * norms[j]) ** 2)
    return {
        "norm": norms[before:],
        "cosine": means,
        "nearest": nearest,
        "nearest_cosine": cosines,
        "bound": bounds,
    }


def _best_others(
    replay: Replay, run: Run, ranks: Integers, selected: Floats, weights: Floats | None, drawn: Bar
) -> tuple[Floats, Positions]:
    """Return the best score of a row that could have been picked instead at each of these ranks, and its position."""
    best, who = np.full(len(ranks), -np.inf), np.full(len(ranks), -1, np.int64)
    taken = np.full(replay.source.rows, len(run.picks), np.int64)
    taken[run.picks] = np.arange(len(run.picks))
    allowances = replay.allowances()
    for part, prefixes in _prefixes(replay, selected, weights, len(replay.initial) + ranks, run.candidates):
        for positions, block, own in _blocks(replay, run.candidates, int(prefixes.sizes[-1])):
            measured = prefixes.measure(block, own)
            scores = replay.score(measured.gain, measured.conflict, positions)
            scores[taken[positions][:, None] <= ranks[part]] = -np.inf
            if (near := replay.first_near(block, selected)) is not None:
                scores[near[0][:, None] < prefixes.sizes] = -np.inf
            if allowances is not None:
                most = allowances[run.first + ranks[part]][:, replay.codes_of(positions)].T
                scores[replay.costs_of(positions)[:, None] > most] = -np.inf
            top = np.argmax(scores, axis=0)
            values = scores[top, np.arange(len(top))]
            better = values > best[part]
            best[part] = np.where(better, values, best[part])
            who[part] = np.where(better, positions[top], who[part])
            drawn.update(len(positions) * len(ranks[part]) / len(ranks))
    return best, who


def _ranked(replay: Replay, run: Run, rows: Positions, selected: Floats, weights: Floats | None) -> Ranked:
    first = 0 if len(replay.initial) else 1  # beside nothing there is no conflict
    count = max(0, len(run.picks) - first)
    ranks = first + log_spaced(count, RANKED_STEPS)
    shape = (len(rows), len(ranks))
    numbers = {name: np.empty(shape) for name in ("gain", "conflict", "cosine", "overlap")}
    base = np.empty(len(rows))
    for part, prefixes in _prefixes(replay, selected, weights, len(replay.initial) + ranks, rows):
        done = 0
        for positions, block, own in _blocks(replay, rows, int(prefixes.sizes[-1])):
            measured = prefixes.measure(block, own, overlap=True)
            here = slice(done, done + len(positions))
            for name, values in numbers.items():
                values[here, part] = getattr(measured, name)
            base[here] = measured.base
            done += len(positions)
    taken = np.full(replay.source.rows, len(run.picks), np.int64)
    taken[run.picks] = np.arange(len(run.picks))
    numbers["gain"][taken[rows][:, None] < ranks] = np.nan
    return Ranked(run.first + ranks, base, **numbers)


def _after(
    replay: Replay, run: Run, rows: Positions, selected: Floats, weights: Floats | None
) -> dict[str, npt.NDArray[Any]]:
    """Return the numbers of a sample of candidates beside all picks."""
    size = np.array([len(selected)])
    (_, prefixes), *_ = _prefixes(replay, selected, weights, size, rows)
    found: dict[str, list[Any]] = {name: [] for name in ("norm", "gain", "conflict", "cosine", "overlap")}
    for _, block, own in _blocks(replay, rows, len(selected)):
        measured = prefixes.measure(block, own, overlap=True)
        found["norm"].append(np.sqrt((block**2).sum(1)))
        for name in ("gain", "conflict", "cosine", "overlap"):
            found[name].append(getattr(measured, name)[:, 0])
    numbers: dict[str, npt.NDArray[Any]] = {name: np.concatenate(values) for name, values in found.items()}
    return {
        "index": _dataset_rows(replay, rows),
        "picked": np.isin(rows, run.picks),
        **numbers,
    }


# --- all runs -----------------------------------------------------------------------------------------------------


def _dataset_rows(replay: Replay, positions: Positions) -> Integers:
    rows: Integers = positions if replay.source.index is None else replay.source.index[positions]
    return rows


def _notes(replay: Replay, runs: list[Run], looked_at: int, sample: int) -> tuple[str, ...]:
    notes = []
    if replay.missing:
        notes.append(
            f"No runner-up: the selection was made with {', '.join(replay.missing)}, not given here, and who else could"
            " have been picked depends on it."
        )
    elif looked_at < len(replay.picks) - replay.selection.forced:
        notes.append(
            f"The runner-up was sought at {looked_at} of {counted(len(replay.picks), 'step')}, close together at"
            " first; give steps="
            " for more."
        )
    most = max(len(run.candidates) for run in runs)
    if most > sample:
        notes.append(f"Candidates were ranked in a sample of {sample} of {most}.")
    if replay.reading != "full":
        notes.append("Δ is that of the run's own reading of the Fisher information, and not the paper's.")
    return tuple(map(spoken, notes))
