"""Selection of the rows with the most Fisher information and the least gradient conflict."""

from __future__ import annotations

import os
import warnings
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from spice_rs import _core
from spice_rs.checkpoint import INTERVAL, Checkpoint
from spice_rs.errors import InvalidInputError, SpiceWarning
from spice_rs.progress import Progress, bar
from spice_rs.result import Selection
from spice_rs.sources import Normalize, as_rows, open_source


def select(
    source: Any,
    k: int | None = None,
    *,
    alpha: float = 1.0,
    conflict_penalty: float = 0.1,
    fisher: Literal["full", "diagonal", "scalar"] = "full",
    early_stop: float | None = None,
    normalize: Normalize = "auto",
    method: Literal["greedy", "top_k", "epsilon_lazy", "stochastic"] = "greedy",
    epsilon: float = 0.1,
    pool_size: int | None = None,
    select_per_window: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress = None,
    time_limit: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    search: Literal["lazy", "lazy_gain", "eager"] = "lazy",
    hot_rows: int | None = None,
    dim: int | None = None,
    dtype: str | None = None,
) -> Selection:
    """Select the rows with the most Fisher information and the least gradient conflict.

    At every step the row with the largest score Δ_x(S) − λ·conflict_x(S) is picked, equal scores by the lowest
    index (SPICE, arXiv 2601.23155). The picks are exactly those of the naive algorithm in float64, and do not depend
    on `threads`, on `search`, on `hot_rows` or on how the rows are spread over files. (The approximate methods say what
    theirs depend on.)

    Args:
        source: a gradient store or its folder; a .npy file; a .npz file with one matrix or `file.npz::member`; a
            headerless file of numbers with `dim` and `dtype`; an (n, d) array or CPU tensor of float16, bfloat16,
            float32 or float64.
        k: rows to select, 1 ≤ k ≤ n. Without it: as many as `early_stop` allows, or `select_per_window` of every window.
        alpha: weight α of the Fisher information.
        conflict_penalty: weight λ of the conflict penalty. 0 switches it off.
        fisher: "full" is the paper's formula. "diagonal" is the authors' released code, which keeps a diagonal of
            fourth powers (den_j += α·g_j⁴; Δ = log(1 + α Σ g_j²/den_j)): theirs, not the paper's. "scalar", theirs
            too, never changes: Δ = log(1 + α‖g‖²/(1 + α)).
        early_stop: ω in (0, 1), off by default: stop before a row whose Δ is at most ω times the first pick's. The
            paper uses 0.5.
        normalize: scale of the rows: "none" as stored; "sum" or "mean" over learned tokens (for a store that records
            its loss reduction and token counts); "unit" for rows of length 1. "auto" is "mean" for a store of sums
            (the paper's loss; it favours short answers) and "none" for anything else.
        method: "greedy", exact. "top_k" takes the k largest Δ of single rows without interaction and penalty. Two
            approximations of "greedy" for fisher="full", with guarantees for conflict_penalty=0 alone, U* being the
            largest U of any k rows: "epsilon_lazy" is content with a row whose score is at least 1 − ε times the best,
            so that U ≥ (1 − exp(−(1 − ε)))·U*; which one it takes depends on `hot_rows` and the processor, not on
            `threads`. "stochastic" looks at n/k·log(1/ε) random rows a step (Mirzasoleiman et al., AAAI 2015), so that
            on average over seeds U ≥ (1 − 1/e − ε)·U*.
        epsilon: ε in (0, 1) of the approximate methods.
        pool_size: cut a seeded permutation of the rows into windows of this size and select in each on its own, as
            the authors' released code does (with 128).
        select_per_window: rows to select from each window; the last window may be shorter.
        seed: seed of the permutation for windows, `numpy.random.default_rng(seed).permutation(n)`, and of
            method="stochastic".
        threads: threads to use; all cores by default.
        progress: show a bar, or do not; by default where a person can see it. From Python also a callable that gets
            (picks, gain of the latest pick, rows read so far).
        time_limit: seconds after which the run ends with the picks it has, however few. The first reading of the
            rows and the last computation of U are always done. With `pool_size`: with the windows that are done.
        checkpoint: file that keeps the picks while the run goes on, written every few seconds and however the run
            ends. If it is there already, the run goes on where it left off, with the same picks as a run that was never
            interrupted; with a larger k too, and with a smaller one it returns the first k. Not with `pool_size`,
            nor with an approximate method.
        search: how the best row is found; the picks are the same. "lazy" looks at a row again only while an earlier
            Δ and an earlier angle to the mean leave it a chance; "lazy_gain" goes by Δ alone; "eager" evaluates
            every row at every pick, keeps n × d float64 in memory and is there to check the others against.
        hot_rows: rows that the lazy search of the full Fisher information follows pick by pick, by default as many
            as the processor's caches hold. It changes time and memory, and no pick of an exact method.
        dim: columns of a headerless file.
        dtype: element type of a headerless file.

    Returns:
        The picks in order, with Δ, base, ε, conflict and score of each.

    Raises:
        InvalidInputError: an argument is out of range, or a row holds a NaN or an infinity.
        StoreMismatchError: the checkpoint is of other settings or of another source.
        StoreError: the source is no gradient store or a damaged one, or the checkpoint no checkpoint or a damaged one.
        KeyboardInterrupt: Ctrl-C; the checkpoint has the picks so far.

    Warns:
        SpiceWarning: a setting does nothing on these rows, or a zero row was picked.

    Example:
        >>> import numpy as np, spice_rs
        >>> rows = np.float32([[3, 0], [2.9, 0.1], [0, 1], [-3, 0], [-2, 1]])
        >>> spice_rs.select(rows, 3, conflict_penalty=0.5).indices
        array([0, 2, 1])
        >>> spice_rs.select(rows, 3, conflict_penalty=0).indices
        array([0, 4, 1])
    """
    numbers = _check_numbers(
        k=k,
        pool_size=pool_size,
        select_per_window=select_per_window,
        seed=seed,
        threads=threads,
        hot_rows=hot_rows,
    )
    _check_budget(k, early_stop, pool_size, select_per_window)
    if checkpoint is not None and pool_size is not None:
        raise InvalidInputError(
            f"checkpoint: found it beside pool_size={pool_size}, expected one of the two: windows are many short runs."
            " Leave one out."
        )
    if checkpoint is not None and method in ("epsilon_lazy", "stochastic"):
        raise InvalidInputError(
            f"checkpoint: found it beside method={method!r}, expected an exact method: an approximate run cannot be"
            " resumed to the same picks. Leave one out."
        )
    opened = open_source(source, dim=dim, dtype=dtype)
    normalized, scale, unit = opened.row_scale(normalize)
    order = None
    if pool_size is not None:
        order = opened.dataset_order()[np.random.default_rng(seed).permutation(opened.rows)]

    settings: dict[str, Any] = {
        "k": numbers["k"],
        "alpha": float(alpha),
        "conflict_penalty": float(conflict_penalty),
        "fisher": fisher,
        "early_stop": None if early_stop is None else float(early_stop),
        "normalize": normalized,
        "method": method,
        "epsilon": float(epsilon) if method in ("epsilon_lazy", "stochastic") else None,
        "pool_size": numbers["pool_size"],
        "select_per_window": numbers["select_per_window"],
        "seed": numbers["seed"],
        "source": {
            "name": opened.description,
            "rows": opened.rows,
            "dim": opened.dim,
            "dtype": opened.dtype,
            "fingerprint": opened.fingerprint,
        },
    }
    keeper = None
    if checkpoint is not None:
        settings["source"]["fingerprint"] = opened.identify(numbers["threads"])
        keeper = Checkpoint(checkpoint, settings)

    watcher = _Watcher(progress, opened.rows, k or opened.rows)
    try:
        result = _core.select(
            opened.blocks,
            dim=opened.dim,
            index=opened.index,
            scale=scale,
            unit=unit,
            k=numbers["k"],
            alpha=settings["alpha"],
            conflict_penalty=settings["conflict_penalty"],
            early_stop=settings["early_stop"],
            fisher=fisher,
            method=method,
            search=search,
            hot_rows=numbers["hot_rows"],
            epsilon=float(epsilon),
            seed=numbers["seed"] or 0,
            order=order,
            pool_size=numbers["pool_size"],
            select_per_window=numbers["select_per_window"],
            threads=numbers["threads"],
            progress=watcher,
            time_limit=None if time_limit is None else float(time_limit),
            made=keeper.made(opened) if keeper else None,
            checkpoint=keeper.save if keeper else None,
            checkpoint_interval=INTERVAL,
        )
    finally:
        watcher.close()
    for name in ("duplicates", "duplicate_of", "duplicate_cosine"):
        del result[name]
    signal = alpha * result.pop("norm_sq")
    fingerprint = result.pop("fingerprint")
    settings["source"]["fingerprint"] = settings["source"]["fingerprint"] or fingerprint
    selection = Selection(**result, signal=float(np.median(signal)), settings=settings)
    if keeper:
        keeper.finish(selection)
    for message in inert_settings(
        selection, linear_gain=float(signal[opened.positions(selection.indices)].sum())
    ):
        warnings.warn(message, SpiceWarning, stacklevel=2)
    return selection


def log_det(
    source: Any,
    rows: npt.ArrayLike,
    *,
    alpha: float = 1.0,
    normalize: Normalize = "auto",
    threads: int | None = None,
    dim: int | None = None,
    dtype: str | None = None,
) -> float:
    """Return U(S) = log det(I + αF_S) of any set of rows, in nats.

    Args:
        source: as for `select`.
        rows: (m,) whole numbers, dataset rows (for example `sel.indices`).
        alpha: weight α of the Fisher information.
        normalize: as for `select`.
        threads: threads to use; all cores by default.
        dim: columns of a headerless file.
        dtype: element type of a headerless file.

    Raises:
        InvalidInputError: a row is not in the source, or an argument is out of range.
    """
    _check_numbers(threads=threads)
    opened = open_source(source, dim=dim, dtype=dtype)
    _, scale, unit = opened.row_scale(normalize)
    positions = opened.positions(as_rows(rows))
    value: float = _core.log_det(
        opened.blocks,
        dim=opened.dim,
        scale=scale,
        unit=unit,
        positions=positions,
        alpha=float(alpha),
        threads=threads,
    )
    return value


def inert_settings(selection: Selection, *, linear_gain: float) -> list[str]:
    """Return a sentence for every setting that did nothing, and for picked zero rows.

    Args:
        selection: the picks.
        linear_gain: Σ α‖g‖² over the picks, which U cannot exceed and equals if nothing interacts.
    """
    messages = []
    settings, picks = selection.settings, len(selection)
    penalty = settings["conflict_penalty"]
    if settings["method"] == "greedy" and penalty > 0 and picks > 1 and not selection.overruled.any():
        messages.append(
            f"conflict_penalty={penalty:g} changed none of the {picks} picks (mean conflict of the picks"
            f" {selection.conflict.mean():.3f}). Its size matters against Δ ({selection.gains[-1]:.3g} at the last pick):"
            " try a larger one, a smaller alpha, or normalize='unit'."
        )
    if picks > 1 and 0 < linear_gain and selection.log_det > 0.99 * linear_gain:
        messages.append(
            f"alpha·‖g‖² is so small (median {selection.signal:.2g}) that U is linear: the picks do not interact and"
            " the result is close to the largest norms. Try a larger alpha, or normalize='unit'."
        )
    first, last = (selection.gains.max(), selection.gains.min()) if picks else (0.0, 0.0)
    if picks > 1 and last > 0.99 * first and selection.signal > 100:
        messages.append(
            f"alpha·‖g‖² is so large (median {selection.signal:.2g}) that every Δ is the same to 1 %: the order of the"
            " picks says little. Try a smaller alpha, or normalize='unit'."
        )
    zero = np.flatnonzero(selection.base == 0)
    if zero.size:
        messages.append(
            f"{zero.size} of the picks are rows of zeros (the first: row {selection.indices[zero[0]]}): they have Δ = 0 and"
            " no conflict, and so beat rows whose penalty exceeds their Δ. Try a smaller k or conflict_penalty, and see"
            " why these gradients vanish."
        )
    return messages


def _check_numbers(**numbers: object) -> dict[str, int | None]:
    checked: dict[str, int | None] = {}
    for name, value in numbers.items():
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool | np.bool_)
        if value is not None and not whole:
            raise InvalidInputError(
                f"{name}: found {value!r}, expected a whole number. Convert it with int()."
            )
        lowest = 0 if name == "seed" else 1
        if value is not None and not lowest <= value < 1 << 31:  # type: ignore[operator]
            raise InvalidInputError(
                f"{name}: found {value}, expected {lowest} to 2147483647. Give a number in between."
            )
        checked[name] = None if value is None else int(value)  # type: ignore[call-overload]
    return checked


def _check_budget(
    k: int | None, early_stop: float | None, pool_size: int | None, per_window: int | None
) -> None:
    if pool_size is None:
        if per_window is not None:
            raise InvalidInputError(
                "select_per_window: found it without pool_size, expected both or neither. Give pool_size=128 as well."
            )
        if k is None and early_stop is None:
            raise InvalidInputError(
                "k: found None, expected a number of rows. Give k, or early_stop to end by itself."
            )
    elif per_window is None or k is not None:
        raise InvalidInputError(
            f"pool_size: found k={k} and select_per_window={per_window} beside it, expected select_per_window and no k."
            " Each window has a budget of its own."
        )
    elif per_window > pool_size:
        raise InvalidInputError(
            f"select_per_window: found {per_window}, expected at most pool_size={pool_size}. Select fewer, or widen it."
        )


class _Watcher:
    """Turns what the core reports into a bar, or into calls of the user's function."""

    def __init__(self, progress: Progress, rows: int, budget: int) -> None:
        self._call = progress if callable(progress) else None
        shown: Progress = False if self._call else progress
        self._reading = bar(shown, total=rows, what="read", unit="rows")
        self._selecting = bar(shown, total=budget, what="select", unit="picks")
        self._read = self._picked = 0

    def __call__(self, surveyed: int, picks: int, gain: float, rows_read: int) -> None:
        if self._call:
            if picks > self._picked:
                self._call(picks, gain, rows_read)
        else:
            self._reading.update(surveyed - self._read)
            if picks > self._picked:
                self._selecting.set_postfix_str(f"gain {gain:.3g}", refresh=False)
                self._selecting.update(picks - self._picked)
        self._read, self._picked = surveyed, picks

    def close(self) -> None:
        self._reading.close()
        self._selecting.close()
