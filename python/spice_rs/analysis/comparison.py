"""One k, many methods: what each picks, measured with one and the same yardstick."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs.analysis.measures import Facts, other_scales, overlap, upper_bound
from spice_rs.analysis.methods import Contender, NotAvailable, Setting, contenders
from spice_rs.arguments import flag, shown
from spice_rs.errors import InvalidInputError, SpiceWarning
from spice_rs.frames import Library, as_frame
from spice_rs.interface import spoken
from spice_rs.nouns import counted
from spice_rs.printable import one_line
from spice_rs.progress import PER_CENT, Progress, bar
from spice_rs.selection.arguments import (
    Rows,
    alpha_given,
    count,
    penalty,
    rows_of,
    rows_wanted,
    seeded,
    threads_wanted,
)
from spice_rs.selection.columns import Label
from spice_rs.selection.lopsided import OPENING
from spice_rs.selection.presets import Alpha, resolve_alpha
from spice_rs.selection.result import Selection
from spice_rs.selection.selection import log_det
from spice_rs.selection.target import chance_of, measure
from spice_rs.store.sources import Normalize, Source, open_source

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ComparedMethod:
    """What one method picks. All logarithms are natural.

    Attributes:
        method: its name, with the seed for random picks.
        picks: number of picks m.
        log_det: U of the picks, log det(I + αF).
        against_random: U over the mean U of the random sets; None without any.
        certificate: U over a proven upper bound of the U of any k rows; None where there is no bound. About U alone,
            whatever penalty or rule the rows were picked by.
        log_dets: U of the same picks under other scales of the rows, by scale.
        conflict: mean over the picks of max(0, −cos(g, mean of the picks before)), in pick order, in [0, 1].
        half_life: picks after which Δ first was at most half of the first, in pick order; None if it never was.
        shares: group → its share of the picks; empty without groups.
        median_length: median length of the picks; None without lengths.
        total_length: summed length of the picks; None without lengths.
        seconds: wall-clock time to pick, without the measurements.
        relevance: mean r of the picks to the target, in [−1, 1]; None without one.
    """

    method: str
    picks: int
    log_det: float
    against_random: float | None
    certificate: float | None
    log_dets: dict[str, float]
    conflict: float
    half_life: int | None
    shares: dict[Label, float]
    median_length: float | None
    total_length: float | None
    seconds: float
    relevance: float | None = None


@dataclass(frozen=True)
class ComparedPool:
    """The pool that the methods pick from: rows, share of each group, lengths, mean r; None or empty where not known."""

    rows: int
    shares: dict[Label, float]
    median_length: float | None
    total_length: float | None
    relevance: float | None = None


@dataclass(frozen=True, repr=False, eq=False)
class Comparison:
    """Several selections of one size from one source, side by side.

    Attributes:
        rows: what each method picks, one after the other.
        pool: the same of the whole pool.
        overlap: (r, r) float64 Jaccard index |A∩B|/|A∪B| of the picks of each two methods, in the order of `rows`.
        selections: method → its picks with Δ, base, conflict and U, all by the paper's formula on the shared α and scale.
            `spice` and `no_penalty` are selections as `select` makes them; of the other methods the picks are fed to the
            engine in their order (`include`), so that a Δ means the same everywhere.
        settings: what the methods share.
        notes: sentences on what was left out, and warnings of the runs.
    """

    rows: list[ComparedMethod]
    pool: ComparedPool
    overlap: Floats
    selections: dict[str, Selection]
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, method: str) -> ComparedMethod:
        """Return the row of a method by its name."""
        for row in self.rows:
            if row.method == method:
                return row
        raise KeyError(method)

    def summary(self) -> str:
        """Return tables of plain text: the numbers, the shares of the groups, the overlaps, and the notes."""
        from spice_rs.report import comparison

        return comparison.as_text(self)

    def to_markdown(self) -> str:
        """Return the same tables in Markdown."""
        from spice_rs.report import comparison

        return comparison.as_markdown(self)

    def to_frame(self, library: Library | None = None) -> Any:
        """Return a data frame with a row per method.

        Numbers that are not known are nan. Shares are in columns "share_GROUP", U under other scales in
        "log_det_SCALE".

        Args:
            library: "pandas" or "polars"; by default pandas if it is installed, else polars.

        Raises:
            InvalidInputError: the library is not installed, or there is none of that name.
        """
        from spice_rs.report import comparison

        return as_frame(comparison.columns_of(self), library)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the selections as plain JSON types."""
        from spice_rs.report import comparison

        return comparison.as_dict(self)

    def _repr_html_(self) -> str:
        from spice_rs.report import comparison

        return comparison.as_html(self)

    def __repr__(self) -> str:
        names = ", ".join(one_line(row.method) for row in self.rows)
        return f"Comparison({self.settings['k']} of {counted(self.pool.rows, 'row')}: {names})"


def compare(
    source: Any,
    k: Rows,
    methods: str | Sequence[str] | Mapping[str, Any] | None = None,
    *,
    target: Any = None,
    alpha: Alpha = 1.0,
    conflict_penalty: float = 0.1,
    normalize: Normalize = "auto",
    scales: str | Sequence[str] | None = None,
    data: Any = None,
    index_column: str | None = None,
    groups: Any = None,
    lengths: Any = None,
    random_sets: int = 3,
    pool_size: int = 128,
    seed: int = 0,
    certificate: bool = True,
    threads: int | None = None,
    progress: Progress = None,
    partial: bool = False,
    dim: int | None = None,
    dtype: str | None = None,
) -> Comparison:
    """Select `k` rows with several methods and measure all of them alike.

    The methods, all on rows of the same scale:

    =================  ===============================================================================================
    spice              `select` with these settings
    no_penalty         the same with λ = 0: Fisher information alone
    diagonal           the released code's objective (`fisher="diagonal"`)
    windows            the same in windows of `pool_size` rows of a permutation, each with its share of k
    top_k              the k largest norms
    k_center           farthest-first traversal by Euclidean distance (Gonzalez 1985; Sener and Savarese, ICLR 2018)
    facility_location  Σ_x max_{y∈S} (1 + cos(g_x, g_y))/2 by submodlib or apricot, where one is installed and n ≤ 5000
    representative     `select(represent=1)` as it is without more being said
    target             with a `target`: `select(target=...)` as it is without more being said
    relevance          with a `target`: the k largest relevances to it
    less               with a `target`: the k largest mean cosines to its rows, the rule of LESS (Xia et al., ICML 2024)
    random             `random_sets` random sets
    =================  ===============================================================================================

    Args:
        source: as for `select`.
        k: rows that each method picks, 1 ≤ k ≤ n, or a share of them, as for `select`.
        methods: some of spice, no_penalty, diagonal, windows, top_k, k_center, facility_location, representative, target,
            relevance, less and random; all of them by default. From Python also label → one of these names, options of
            `select`, dataset rows in pick order, or a selection from this source, to compare one's own.
        target: rows of what the picks are to be for, as for `select`. Rows that it has too are no candidates of any method,
            and "auto" in `normalize` is "unit".
        alpha: weight α of the Fisher information, in the methods and in what is measured; "auto" as for `select`. U under
            other scales has that α too.
        conflict_penalty: weight λ of the conflict penalty in spice, diagonal and windows.
        normalize: scale of the rows, as for `select`.
        scales: other scales to measure U under: all that the source knows by default, among "none", "sum", "mean", "unit".
        data: what the source was extracted from, to look column names up in: a path, a Dataset, or a list of records.
        index_column: column of `data` with the dataset row of each record, where the n-th record is not row n: data in
            another order, or fewer of them; a dot leads into an object (spice.index).
        groups: label of each row, for example where it comes from: the name of a column of `data`, or (N,) labels by
            dataset row. Their shares are shown.
        lengths: length of each row's answer: the name of a column of `data`, or (N,) numbers by dataset row. By default
            the learned tokens that a store records.
        random_sets: number of random sets, with the seeds seed, seed + 1, ….
        pool_size: rows of a window.
        seed: seed of the windows' permutation and of the first random set.
        certificate: bound U of any k rows from above with `certify`.
        threads: threads to use; all cores by default.
        progress: show a bar, or do not; by default where a person can see it. From Python also a callable that gets
            (method, picks it has made).
        partial: take the rows of a store whose extraction has not ended, which is refused otherwise.
        dim: columns of a headerless file.
        dtype: element type of a headerless file.

    Returns:
        A row of numbers per method, the overlaps, and the selections.

    Raises:
        UnfinishedStoreError: the extraction of a store has not ended, and `partial` is false.
        InvalidInputError: an argument is out of range, a name is not known, or none of the methods can run
            here.
        StoreMismatchError: a selection among `methods` was made from another source.
        StoreError: the source is no gradient store or a damaged one.

    Example:
        >>> import numpy as np, spice_rs
        >>> rows = np.random.default_rng(0).standard_normal((200, 16))
        >>> sides = spice_rs.compare(rows, 20, ["spice", "top_k", "random"])
        >>> sides["spice"].log_det > sides["top_k"].log_det > sides["random 0"].log_det
        True
        >>> sides.overlap.shape
        (5, 5)
    """
    asked, seed, threads = rows_wanted(k), seeded(seed), threads_wanted(threads)
    random_sets, pool_size = count("random_sets", random_sets), count("pool_size", pool_size)
    given, conflict_penalty = alpha_given(alpha), penalty(conflict_penalty)
    certificate, progress = flag("certificate", certificate), shown(progress)
    opened = open_source(source, dim=dim, dtype=dtype)
    opened.check_finished(partial)
    wanted = rows_of(asked, opened.rows) or 0
    if wanted > opened.rows:
        raise InvalidInputError(
            f"k: found {wanted}, expected a number from 1 to {opened.rows}, the rows of the source. Ask for fewer rows."
        )
    aims = None
    if target is not None:
        aims = measure(
            opened,
            target,
            None,
            None,
            partial=partial,
            threads=threads,
            progress=progress,
            dim=dim,
            dtype=dtype,
        )
        left = opened.rows - len(aims.overlap)
        if wanted > left:
            raise InvalidInputError(
                f"k: found {wanted}, expected a number from 1 to {left}, the rows of the source that the target has not."
                " Ask for fewer rows."
            )
        for finding in chance_of(None, aims.found["norms"], aims.found["noise"]):
            warnings.warn(finding, SpiceWarning, stacklevel=2)
        normalize = "unit" if normalize == "auto" else normalize
    pool = opened.pool(normalize)
    resolved, alpha = pool.normalize, resolve_alpha(given, pool, threads=threads)
    setting = Setting(
        source=opened,
        k=wanted,
        alpha=alpha,
        conflict_penalty=conflict_penalty,
        normalize=resolved,  # type: ignore[arg-type]
        random_sets=random_sets,
        pool_size=pool_size,
        seed=seed,
        threads=threads,
        target=target,
        measured=aims,
    )
    lines = contenders(setting, methods)
    others = other_scales(opened, resolved, scales)
    facts = Facts(opened, data, groups, lengths, index_column)
    watch = _Watch(progress, setting.k, len(lines))
    notes = [f"{store.path}: {store.unfinished}." for store in opened.unfinished]
    selections: dict[str, Selection] = {}
    seconds: dict[str, float] = {}
    with watch:
        for contender in lines:
            watch.begin(contender.label)
            try:
                selections[contender.label], seconds[contender.label] = _made(
                    setting, contender, watch, notes
                )
            except NotAvailable as reason:
                notes.append(f"The method {contender.label} was left out: {reason}.")
            watch.end()
        if not selections:
            raise InvalidInputError(f"methods: found only what cannot run here: {' '.join(notes)}")
    bound = None
    if certificate:
        try:
            bound = upper_bound(setting, lines, selections, progress)
        except InvalidInputError as error:
            notes.append(f"There is no bound of U: {error}")
    by_chance = [contender.label for contender in lines if contender.random]
    chance = [selections[label].log_det for label in by_chance if label in selections]
    mean = float(np.mean(chance)) if chance else None
    measured = _under(opened, others, selections, alpha, threads, notes)
    rows = []
    for label, selection in selections.items():
        chosen = opened.positions(selection.indices)
        rows.append(
            ComparedMethod(
                method=label,
                picks=len(selection),
                log_det=selection.log_det,
                against_random=selection.log_det / mean if mean else None,
                certificate=None
                if bound is None or len(selection) > wanted
                else _share(selection.log_det, bound),
                log_dets={scale: values[label] for scale, values in measured.items()},
                conflict=float(selection.conflict.mean()),
                half_life=selection.half_life,
                **facts.of(chosen),
                seconds=seconds[label],
                relevance=None if aims is None else float(aims.relevance[chosen].mean()),
            )
        )
    return Comparison(
        rows=rows,
        pool=ComparedPool(
            rows=opened.rows,
            **facts.of(np.arange(opened.rows)),
            relevance=None if aims is None else float(aims.relevance.mean()),
        ),
        overlap=overlap([selection.indices for selection in selections.values()]),
        selections=selections,
        settings={
            "k": setting.k,
            "alpha": setting.alpha,
            "conflict_penalty": setting.conflict_penalty,
            "normalize": resolved,
            "random_sets": setting.random_sets,
            "pool_size": setting.pool_size,
            "seed": setting.seed,
            "upper_bound": bound,
            "length_unit": facts.unit,
            "source": opened.identity(),
        },
        notes=[*map(spoken, notes)],
    )


def _share(part: float, bound: float) -> float:
    """Return what U is of its bound; of nothing, all."""
    return part / bound if bound > 0 else 1.0


def _under(
    source: Source,
    scales: Sequence[Normalize],
    selections: Mapping[str, Selection],
    alpha: float,
    threads: int | None,
    notes: list[str],
) -> dict[str, dict[str, float]]:
    """Return scale → label → U of the picks under it; a scale for which α is out of range becomes a note."""
    found: dict[str, dict[str, float]] = {}
    for scale in scales:
        try:
            found[scale] = {
                label: log_det(source, selection.indices, alpha=alpha, normalize=scale, threads=threads)
                for label, selection in selections.items()
            }
        except InvalidInputError as error:
            notes.append(f"U under {scale!r} was left out: {error}")
    return found


def _made(setting: Setting, contender: Contender, watch: _Watch, notes: list[str]) -> tuple[Selection, float]:
    """Return what a method picks, with the numbers that are compared, and the seconds that picking took."""
    aims = setting.measured
    aimless = [] if aims is None else chance_of(None, aims.found["norms"], aims.found["noise"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SpiceWarning)
        started = time.perf_counter()
        made = contender.pick(watch)
        seconds = time.perf_counter() - started
    for each in caught:
        if not issubclass(each.category, SpiceWarning):
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        elif str(each.message).startswith(OPENING) or str(each.message) in aimless:
            continue  # said before; shares and lengths of all methods stand side by side
        elif not any(str(each.message) in note for note in notes):
            notes.append(f"{contender.label}: {each.message}")
    if contender.exact and isinstance(made, Selection):
        return made, seconds
    if isinstance(made, Selection):
        notes += _measured_otherwise(setting, contender.label, made)
    if not len(made):
        raise InvalidInputError(
            f"methods: found no picks of {contender.label!r}, expected at least one row. Leave it out."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)  # about settings that this method did not have
        return setting.measure(made), seconds


def _measured_otherwise(setting: Setting, label: str, made: Selection) -> list[str]:
    """Return a sentence if a selection of the user's is measured under other settings than it was made with."""
    own = made.settings
    shared = {"alpha": setting.alpha, "normalize": setting.normalize}
    parts = [
        f"{name}={own[name]!r} and not {value!r}" for name, value in shared.items() if own[name] != value
    ]
    parts += [f"{name}, which do not count here" for name in ("weights", "initial") if own[name] is not None]
    return [f"{label}: its rows were picked with {', with '.join(parts)}."] if parts else []


class _Watch:
    """One bar, or one callable of the user's, for all methods."""

    def __init__(self, progress: Progress, k: int, methods: int) -> None:
        self._call = progress if callable(progress) else None
        shown: Progress = False if self._call else progress
        self._bar = bar(shown, total=100, what="compare", unit=PER_CENT)
        self._k, self._methods, self._method = k, methods, ""
        self._ended = self._drawn = 0

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def begin(self, method: str) -> None:
        self._method = method
        self._bar.set_postfix_str(one_line(method))

    def __call__(self, picks: int) -> None:
        self._draw(min(picks, self._k))
        if self._call:
            self._call(self._method, picks)

    def end(self) -> None:
        self._draw(self._k)
        self._ended += 1

    def _draw(self, picks: int) -> None:
        """Move the bar to where a method that has made so many picks has brought all of them."""
        share = 100 * (self._ended * self._k + picks) // (self._methods * self._k)
        self._bar.update(share - self._drawn)
        self._drawn = share
