"""Selection of the rows with the most Fisher information and the least gradient conflict."""

from __future__ import annotations

import os
import warnings
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from spice_rs import _core
from spice_rs.arguments import choice, real, rows_given, shown
from spice_rs.errors import InvalidInputError, SpiceWarning
from spice_rs.paths import local_or_none
from spice_rs.progress import Progress
from spice_rs.selection.advice import (
    forgotten_rows,
    inert_penalty,
    inert_settings,
    unmet_conditions,
    without_preset,
)
from spice_rs.selection.arguments import (
    Rows,
    alpha_given,
    check_budget,
    count_or_none,
    fisher_given,
    gamma_given,
    penalty,
    rows_of,
    rows_wanted,
    search_given,
    seconds_allowed,
    seeded,
    stops_at,
    threads_wanted,
)
from spice_rs.selection.checkpoint import Checkpoint
from spice_rs.selection.composition import composed
from spice_rs.selection.lopsided import lopsided
from spice_rs.selection.options import Objective, Past, Windows
from spice_rs.selection.presets import PENALTY, Alpha, Preset, resolve_alpha, with_preset
from spice_rs.selection.requested import Requested
from spice_rs.selection.result import Selection
from spice_rs.selection.run import run
from spice_rs.selection.target import findings
from spice_rs.store.source import RowLabels
from spice_rs.store.sources import Normalize, open_source

_APPROXIMATE = ("epsilon_lazy", "stochastic")
"""Methods whose picks are not always those of the naive algorithm."""


def select(
    source: Any,
    k: Rows | None = None,
    *,
    preset: Preset | None = None,
    target: Any = None,
    target_weight: float = 1.0,
    target_groups: Any = None,
    target_data: Any = None,
    represent: float = 0.0,
    represent_rank: int | None = None,
    represent_folder: str | os.PathLike[str] | None = None,
    alpha: Alpha | None = None,
    conflict_penalty: float | None = None,
    data: Any = None,
    index_column: str | None = None,
    groups: Any = None,
    group_shares: Any = None,
    costs: Any = None,
    budget: float | None = None,
    initial: Any = None,
    include: Any = None,
    exclude: Any = None,
    max_similarity: float | None = None,
    weights: Any = None,
    prior: Any = None,
    prior_weight: float = 1.0,
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
    partial: bool = False,
    dim: int | None = None,
    dtype: str | None = None,
) -> Selection:
    """Select the rows with the most Fisher information and the least gradient conflict.

    At every step the row with the largest score Δ_x(S) − λ·conflict_x(S) is picked, equal scores by the lowest
    index (SPICE, arXiv 2601.23155). The picks are exactly those of the naive algorithm in float64, and do not depend
    on `threads`, on `search`, on `hot_rows` or on how the rows are spread over files. (The approximate methods say what
    theirs depend on.)

    Conditions say what may be picked and what it is worth. They go together with one another and with every `fisher`
    of the methods "greedy" and "top_k"; the other methods take `exclude` alone, windows (`pool_size`) none:

    ==============================================  ==========  ==========  ==========================
    condition                                       early_stop  checkpoint  head, and a checkpoint for
                                                                            another k
    ==============================================  ==========  ==========  ==========================
    groups, maxima alone                            yes         yes         yes
    groups with a minimum ("pool" has)              no          yes         no
    costs, budget                                   yes         no          no
    initial, include, exclude, max_similarity,      yes         yes         yes
    weights, prior, target, represent
    ==============================================  ==========  ==========  ==========================

    `extend` takes selections without conditions only.

    Args:
        source: a gradient store or its folder; a .npy file; a .npz file with one matrix or `file.npz::member`; a
            headerless file of numbers with `dim` and `dtype`; an (n, d) array or CPU tensor of float16, bfloat16,
            float32 or float64.
        k: rows to select, 1 ≤ k ≤ n; or a share of the n rows, 0.1 or "10%" (1 is a row, and 1.0 is all of them), to the
            nearest row, half of one upwards, and at least one. Without it: as many as `early_stop` or `budget` allows, or
            `select_per_window` of every window.
        preset: the paper's settings: "paper" is α = 1, λ = 0.1, the full Fisher information of gradients of the mean loss
            (of the rows as they are where a source does not record its loss), and "paper+" the same with ω = 0.5. An
            argument that says something else beside it is an error.
        target: what the picks are to be for: the rows of some tens of records of what the model is to become good at,
            anything that `source` can be, extracted as the source was (`extract(..., like=...)`). With unit rows u, their
            mean μ and the mean t̄ of the target's, the relevance of a row is r = cos(u − μ, t̄ − μ), in [−1, 1]. Rows with
            r ≤ 0 are no candidates, nor are those that the target has too (the same record, or a cosine above 0.999); the
            others weigh r^τ in F, times `weights`. Unless said otherwise, rows are unit rows then, α is "auto" over the
            candidates, and λ is 0. `Selection.target` and `Selection.relevance` tell what came of it.
        target_weight: τ in [0, 10]. 0 weighs all rows alike that point to the target.
        target_groups: what several targets are told apart by: (T,) labels by dataset row of the target, or the name of a
            column of `target_data`. A row weighs by the group that it serves best, and the groups get as many picks each,
            or what `group_shares` says.
        target_data: what the target was extracted from, to look the column of `target_groups` up in.
        represent: γ in [0, 4] of representative picks: rows are multiplied by C^{γ/2}, with C = F/λ, F = Σ u·uᵀ over the
            unit rows of the whole source and λ its largest eigenvalue. Directions in which the pool has little energy count
            little then, so that picks say much about the pool, and not what is unlike all of it. 0 is off, ½ and 1 are good
            choices. Unless said otherwise, rows are unit rows (before C^{γ/2}), α is "auto" over the candidates, and λ of
            the penalty is 0. Everything that looks at rows looks at the new ones, `max_similarity` among it. It takes some
            n·d² multiplications and 4·n·d bytes in memory or in a file; not with fisher="diagonal".
        represent_rank: keep the leading directions of C alone, at most so many. The search is over so many columns then.
        represent_folder: where the new rows go if they take more than a gigabyte, in a file without a name that ends with
            the run; by default the system's folder for temporary files. If it is named, they go there however few they are.
        alpha: weight α of the Fisher information; 1 unless said otherwise. "auto" is 1 over the median of w‖g‖² of the
            rows that are not zero: picks do not depend on the unit of the gradients then, and λ and ω mean the same for any
            model.
        conflict_penalty: weight λ of the conflict penalty; 0.1 unless said otherwise. 0 switches it off.
        data: what the source was extracted from, to look column names up in: a path, a Dataset, or a list of records.
        index_column: column of `data` with the dataset row of each record, where the n-th record is not row n: data in
            another order, or fewer of them; a dot leads into an object (spice.index).
        groups: label of each row: the name of a column of `data`, or (N,) texts, whole numbers or bools by dataset row.
            Their shares among the picks are `group_shares`.
        group_shares: what each group must and may have. "pool", the default with `groups`: as large a share of the
            picks as of the rows that can be picked, to the row (largest remainders first), or of the cost with `budget`.
            "even", the default with `target_groups`: as much for each. Or label → (minimum, maximum): None for no limit, a
            whole number of rows, or a float in [0, 1] as a share of k, rounded inwards to whole rows (with `budget`: cost
            units, or a share of it); labels that are missing have no limits. Rows that would leave too little for the
            minima of other groups are passed over.
        costs: cost of each row: the name of a column of `data`, or (N,) numbers above 0 by dataset row. By default the
            token counts of a store. Only with `budget`.
        budget: whole cost that the picks may have, in place of k: 1 or more in cost units, a float below 1 as a share of
            the cost of all rows. The search runs twice, with every gain divided by its row's cost over the mean cost
            and without; the run with the larger U (in which a `prior` does not count) is returned, and
            `Selection.compared` has both.
        initial: dataset rows that count as picked before the first pick, or a selection from the same source. They
            cost nothing and are in no result: a selection does not hold the initial rows that it had itself. To build
            on both, give one list of both.
        include: dataset rows to pick first, in this order, or a selection from the same source.
        exclude: dataset rows never to pick, or a selection from the same source.
        max_similarity: τ in (0, 1): skip rows whose gradient has a cosine above τ or below −τ with that of a pick or
            an initial row; `Selection.near_duplicates` lists those that would have been picked.
        weights: weight w > 0 of each row in the Fisher information F = Σ w·g·gᵀ and in the mean of the picks: the
            name of a column of `data`, or (N,) numbers by dataset row.
        prior: what each row's score gets on top, times `prior_weight`: the name of a column of `data`, or (N,) numbers
            by dataset row, for example a quality score. With `budget` it counts in the scores of both runs, and not
            in the choice of the run to keep, which is the one with the larger U.
        prior_weight: factor of `prior`.
        fisher: "full" is the paper's formula. "diagonal" is the authors' released code, which keeps a diagonal of
            fourth powers (den_j += α·g_j⁴; Δ = log(1 + α Σ g_j²/den_j)): theirs, not the paper's. "scalar", theirs
            too, never changes: Δ = log(1 + α‖g‖²/(1 + α)).
        early_stop: ω in (0, 1), off by default: stop before a row whose Δ is at most ω times the first pick's. The
            paper uses 0.5.
        normalize: scale of the rows: "none" as stored; "sum" or "mean" over learned tokens (for a store that records its
            loss reduction and token counts); "unit" for rows of length 1. "auto" is "unit" with `target` or `represent` and
            no preset, "mean" for a store of sums (the paper's loss; it favours short answers) and "none" for anything else.
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
        threads: threads to use; all cores by default, and at most 16 for each core.
        progress: show a bar, or do not; by default where a person can see it. From Python also a callable that gets
            (picks, gain of the latest pick, rows read so far); with `budget` those of both runs together.
        time_limit: seconds after which the run ends with the picks it has, however few. The first reading of the
            rows and the last computation of U are always done. With `pool_size`: with the windows that are done. With
            `budget`: half of the time for each run.
        checkpoint: file that keeps the picks while the run goes on, written every few seconds and however the run
            ends. If it is there already, the run goes on where it left off, with the same picks as a run that was never
            interrupted; with a larger k too, and with a smaller one it returns the first k. Not with `pool_size` or
            `budget`, nor with an approximate method.
        search: how the best row is found; the picks are the same. "lazy" looks at a row again only while an earlier
            Δ and an earlier angle to the mean leave it a chance; "lazy_gain" goes by Δ alone; "eager" evaluates
            every row at every pick, keeps n × d float64 in memory and is there to check the others against.
        hot_rows: rows that the lazy search of the full Fisher information follows pick by pick, by default as many
            as the processor's caches hold. It changes time and memory, and no pick of an exact method.
        partial: take the rows of a store whose extraction has not ended, which is refused otherwise.
        dim: columns of a headerless file.
        dtype: element type of a headerless file.

    Returns:
        The picks in order, with Δ, base, ε, conflict and score of each.

    Raises:
        InvalidInputError: an argument is out of range, no selection can meet the conditions, or a row holds a NaN or an
            infinity.
        UnfinishedStoreError: the extraction of a store has not ended, and `partial` is false.
        StoreMismatchError: the checkpoint is of other settings or of another source, or a selection given as rows is.
        StoreError: the source is no gradient store or a damaged one, or the checkpoint no checkpoint or a damaged one.
        KeyboardInterrupt: Ctrl-C; the checkpoint has the picks so far.

    Warns:
        SpiceWarning: the picks are not like the pool though nobody asked for that (see `Selection.composition`), a
            condition was not met, a zero row was picked, or a setting that was given does nothing on these rows.

    Example:
        >>> import numpy as np, spice_rs
        >>> rows = np.float32([[3, 0], [2.9, 0.1], [0, 1], [-3, 0], [-2, 1]])
        >>> spice_rs.select(rows, 3, conflict_penalty=0.5).indices
        array([0, 2, 1])
        >>> spice_rs.select(rows, 3, conflict_penalty=0).indices
        array([0, 4, 1])
    """
    arguments = dict(locals())
    aims = target is not None or gamma_given(represent) > 0
    named = with_preset(
        preset,
        {
            "alpha": alpha,
            "conflict_penalty": conflict_penalty,
            "fisher": fisher,
            "early_stop": early_stop,
            "normalize": normalize,
            "method": method,
        },
        select,
    )
    defaults = {"alpha": "auto" if aims else 1.0, "conflict_penalty": 0.0 if aims else PENALTY}
    penalised = conflict_penalty is not None or preset is not None
    named.update({name: value for name, value in defaults.items() if named[name] is None})
    if aims and named["normalize"] == "auto" and preset is None:
        named["normalize"] = "unit"
    alpha, conflict_penalty = alpha_given(named["alpha"]), penalty(named["conflict_penalty"])
    fisher, early_stop = fisher_given(named["fisher"]), stops_at(named["early_stop"])
    method = choice("method", named["method"], ("greedy", "top_k", *_APPROXIMATE))
    epsilon = real(
        "epsilon", epsilon, above=0, below=1, remedy="A small number stays close to the exact picks."
    )
    wanted = None if k is None else rows_wanted(k)
    seed, search = seeded(seed), search_given(search)
    pool_size = count_or_none("pool_size", pool_size)
    select_per_window = count_or_none("select_per_window", select_per_window)
    threads, hot_rows = threads_wanted(threads), count_or_none("hot_rows", hot_rows)
    time_limit, progress = seconds_allowed(time_limit), shown(progress)
    checkpoint = local_or_none(checkpoint, "checkpoint")
    requested = Requested.of(arguments)
    if checkpoint is not None and pool_size is not None:
        raise InvalidInputError(
            f"checkpoint: found it beside pool_size={pool_size}, expected one of the two: windows are many short runs."
            " Leave one out."
        )
    if checkpoint is not None and method in _APPROXIMATE:
        raise InvalidInputError(
            f"checkpoint: found it beside method={method!r}, expected an exact method: an approximate run cannot be"
            " resumed to the same picks. Leave one out."
        )
    requested.check(
        k=wanted, method=method, fisher=fisher, pool_size=pool_size, checkpoint=checkpoint is not None
    )
    check_budget(wanted, early_stop, budget, pool_size, select_per_window)
    opened = open_source(source, dim=dim, dtype=dtype)
    opened.check_finished(partial)
    pool, picks = opened.pool(named["normalize"]), rows_of(wanted, opened.rows)
    conditions = requested.resolve(
        opened,
        k=picks,
        early_stop=early_stop,
        threads=threads,
        normalize=pool.normalize,  # type: ignore[arg-type]
        partial=partial,
        progress=progress,
    )
    represented = conditions.represented
    pool = pool if represented is None else represented.pool(pool)
    pool = pool.weighted(conditions.row_weights)
    among = conditions.typical
    windows = None
    if pool_size is not None and select_per_window is not None:
        order = opened.dataset_order()[np.random.default_rng(seed).permutation(opened.rows)]
        windows = Windows(order, pool_size, select_per_window)
    settings: dict[str, Any] = {
        "k": picks,
        "alpha": resolve_alpha(alpha, pool, threads=threads, among=among),
        "conflict_penalty": conflict_penalty,
        "fisher": fisher,
        "early_stop": early_stop,
        "normalize": pool.normalize,
        "method": method,
        "epsilon": epsilon if method in _APPROXIMATE else None,
        "pool_size": pool_size,
        "select_per_window": select_per_window,
        "seed": seed,
        **conditions.settings(),
        "partial": bool(opened.unfinished),
        "source": opened.identity(),
    }
    keeper = past = None
    if checkpoint is not None:
        settings["source"]["fingerprint"] = opened.identify(threads)
        keeper = Checkpoint(checkpoint, settings)
        past = Past(keeper.made(opened), keeper.near_duplicates(opened))
    objective = Objective(
        k=picks,
        alpha=settings["alpha"],
        conflict_penalty=settings["conflict_penalty"],
        early_stop=settings["early_stop"],
        fisher=fisher,
        method=method,
        search=search,
        hot_rows=hot_rows,
        epsilon=epsilon,
        seed=seed,
    )
    result, compared = run(
        pool,
        objective,
        conditions,
        windows=windows,
        past=past,
        checkpoint=keeper,
        threads=threads,
        progress=progress,
        time_limit=time_limit,
    )
    signal = settings["alpha"] * result.pop("norm_sq")
    content = result.pop("fingerprint")
    settings["source"] = opened.identity(content if represented is None else represented.fingerprint)
    positions = opened.positions(result["indices"])
    labels = None
    if groups is not None and (own := conditions.groups) is not None:
        labels = RowLabels(own.labels, own.codes, groups if isinstance(groups, str) else None)
    selection = Selection(
        **conditions.outcome(result),
        compared=compared,
        signal=float(np.median(signal if among is None or not among.any() else signal[among])),
        settings=settings,
        composition=composed(opened, positions, (conditions.initial, conditions.exclude), labels),
    )
    if keeper:
        keeper.finish(selection)
    for message in [  # what matters most first: what the picks are of, what was asked for, what did nothing
        *lopsided(selection, opened.reduction),
        *(findings(selection.target, selection.groups) if selection.target is not None else []),
        *unmet_conditions(selection, conditions),
        *forgotten_rows(initial),
        *inert_settings(selection, linear_gain=float(signal[positions].sum())),
        *inert_penalty(selection, asked=penalised),
    ]:
        warnings.warn(without_preset(message, preset), SpiceWarning, stacklevel=2)
    return selection


def log_det(
    source: Any,
    rows: npt.ArrayLike,
    *,
    alpha: Alpha = 1.0,
    normalize: Normalize = "auto",
    threads: int | None = None,
    dim: int | None = None,
    dtype: str | None = None,
) -> float:
    """Return U(S) = log det(I + αF_S) of any set of rows, in nats.

    Args:
        source: as for `select`.
        rows: (m,) whole numbers, dataset rows (for example `sel.indices`).
        alpha: weight α of the Fisher information, or "auto", as for `select`.
        normalize: as for `select`.
        threads: threads to use; all cores by default, and at most 16 for each core.
        dim: columns of a headerless file.
        dtype: element type of a headerless file.

    Raises:
        InvalidInputError: a row is not in the source, or an argument is out of range.
    """
    alpha, threads, wanted = alpha_given(alpha), threads_wanted(threads), rows_given("rows", rows)
    opened = open_source(source, dim=dim, dtype=dtype)
    pool = opened.pool(normalize)
    return _core.log_det(
        pool,
        positions=opened.positions(wanted),
        alpha=resolve_alpha(alpha, pool, threads=threads),
        threads=threads,
    )
