"""What a file keeps of a run, and what its numbers have to be to belong together."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs.nouns import counted
from spice_rs.printable import short
from spice_rs.selection.constraints import PER_ROW
from spice_rs.selection.form import is_real, is_whole, penalty_of

SERIES = {
    "indices": "I64",
    "gains": "F64",
    "base": "F64",
    "conflict": "F64",
    "scores": "F64",
    "rows_read": "I64",
    "log_dets": "F64",
    "overruled": "BOOL",
}
"""The numbers of each pick and their element types; see `spice_rs.Selection` for what they are."""

LAST = "log_dets"
"""The series that is there only when the run has ended."""

NEAR_DUPLICATES = ("duplicate_rows", "duplicate_of", "duplicate_cosines", "duplicate_ranks")
"""The tensors that have an element for each near-duplicate."""

TARGET = ("target_mean", "target_directions", "target_overlap")
"""The tensors of a target: (d,) its pool's mean, (g·d,) the contrasts, and (o,) the rows that were left out as its own."""

COMPOSITION = ("pick_tokens", "pick_labels", "pick_alike")
"""The tensors of a composition: of each pick its tokens, the number of its label, and the first pick like it."""

OPTIONAL = {
    "costs": ("F64", "budget"),
    "groups": ("I64", "groups"),
    "record_hashes": ("I64", "hashed"),
    **{name: ("I64", name) for name in COMPOSITION},
    "relevance": ("F64", "target"),
    "target_mean": ("F64", "target"),
    "target_directions": ("F64", "target"),
    "target_overlap": ("I64", "target"),
    "duplicate_rows": ("I64", "max_similarity"),
    "duplicate_of": ("I64", "max_similarity"),
    "duplicate_cosines": ("F64", "max_similarity"),
    "duplicate_ranks": ("I64", "max_similarity"),
}
"""What a run has for some settings alone: element type, and the setting ("hashed" is one of its source, and those of a
composition are its entries). Only of duplicates it need not have ended."""

TENSORS = {
    **{name: kind for name, kind in SERIES.items() if name != "overruled"},
    **{name: kind for name, (kind, _) in OPTIONAL.items()},
    "overruled": "BOOL",  # last, so that all others lie at multiples of 8 bytes
}
"""All tensors that there can be, in the order of the file, and their element types."""

ROUNDING = 1e-6
"""Part of a number by which sums and products of others may differ from it."""

MOST_GAIN = math.log(sys.float_info.max)
"""log(1 + α‖g‖²) of a number that float64 holds is at most this."""

_EPSILON = sys.float_info.epsilon

Fault = tuple[str, str, str]
"""Field, what was found, what was expected."""


@dataclass(frozen=True)
class SavedRun:
    """What a file holds.

    Attributes:
        series: name → (m,) or (s,) array, of the names in `TENSORS`, those that the run has.
        settings: `Selection.settings`.
        stop_reason: why the run ended; None if it has not.
        log_det: U of all picks; None if the run has not ended.
        signal: median of α‖g‖² over the source; None if the run has not ended.
        compared: `Selection.compared`.
    """

    series: dict[str, npt.NDArray[Any]]
    settings: dict[str, Any]
    stop_reason: str | None
    log_det: float | None
    signal: float | None
    compared: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.series["indices"])


def names_of(settings: Mapping[str, Any], *, ended: bool) -> list[str]:
    """Return the tensors that a run with these settings has."""
    # Files of the first versions say nothing of targets, compositions, or whether their source has hashes: they have none.
    made = settings.get("composition") or {}
    known = (made.get("tokens"), made.get("labels"), made.get("alike") or None)
    present = {
        "target": None,
        **settings,
        **dict(zip(COMPOSITION, known, strict=True)),
        "hashed": settings["source"].get("hashed") or None,
    }
    absent = {name for name, (_, setting) in OPTIONAL.items() if present[setting] is None}
    late = {LAST, *OPTIONAL}.difference(NEAR_DUPLICATES)
    return [name for name in TENSORS if name not in absent and (ended or name not in late)]


def fault_of_run(run: SavedRun, tensors: Sequence[str]) -> Fault | None:
    """Return the first thing of a run that contradicts another, or None.

    Args:
        run: with settings that `form.fault_of` finds nothing in.
        tensors: the tensors that its file has.
    """
    ended = LAST in tensors
    ends = [value is not None for value in (run.stop_reason, run.log_det, run.signal)]
    if ends != [ended] * 3:
        expected = f"one, with log_det and signal, beside {LAST} and nowhere else"
        return "stop_reason", short(run.stop_reason), expected
    names = names_of(run.settings, ended=ended)
    if list(tensors) != names:
        return "tensors", str(list(tensors)), f"{names}, those of the settings"
    checks = [_of_rows, _of_numbers]
    checks += [_of_near_duplicates] * (run.settings["max_similarity"] is not None)
    if ended:
        checks += [_of_end, _of_gains, _of_groups, _of_budget, _of_costed_scores, _of_target, _of_composition]
    return next((fault for check in checks if (fault := check(run)) is not None), None)


def _of_rows(run: SavedRun) -> Fault | None:
    settings, indices = run.settings, run.series["indices"]
    rows, k, pool_size = settings["source"]["rows"], settings["k"], settings["pool_size"]
    if len(run) > rows or len(np.unique(indices)) < len(run):
        return "indices", f"{counted(len(run), 'row')} of {rows}", "different rows of the source"
    if (indices < 0).any():
        return "indices", str(indices.min()), "dataset rows of at least 0"
    most = k if pool_size is None else -(-rows // pool_size) * settings["select_per_window"]
    if most is not None and len(run) > most:
        return "indices", counted(len(run), "pick"), f"at most {most}, as the settings say"
    kept, grown = settings.get("kept"), settings.get("extended")
    if kept is not None and kept > len(run):
        return "settings.kept", str(kept), f"at most the {counted(len(run), 'pick')}"
    if grown is not None and not _has_grown(grown, len(run)):
        return (
            "settings.extended",
            short(grown),
            f"what became of the picks before, among {counted(len(run), 'pick')}",
        )
    return None


def _has_grown(grown: Mapping[str, Any], picks: int) -> bool:
    """Whether what is said of an earlier selection fits so many picks: the first new one ends what is unchanged."""
    new = grown["new"]
    ranks = new[-1] < picks if new else True
    return ranks and picks - len(new) <= grown["picks"] and grown["unchanged"] <= (new[0] if new else picks)


def _of_numbers(run: SavedRun) -> Fault | None:
    series, settings = run.series, run.settings
    for field, values in series.items():
        if field == LAST and settings["pool_size"] is not None:  # of windows, only the last says something
            if not np.isnan(values[:-1]).all():
                return field, "numbers before the last", "NaN, as windows are no run of their own"
            values = values[-1:]
        if TENSORS[field] == "F64" and not np.isfinite(values).all():
            return field, "NaN or infinity", "finite numbers"
    for field, most in (
        ("gains", MOST_GAIN),
        ("base", MOST_GAIN),
        ("conflict", 1 + ROUNDING),
        ("rows_read", 1 << 48),
    ):
        values = series[field]
        if ((values < 0) | (values > most)).any():
            return field, f"numbers from {values.min()} to {values.max()}", f"numbers from 0 to {most}"
    if (series["gains"] > series["base"] * (1 + ROUNDING)).any():
        rank = int(np.argmax(series["gains"] - series["base"]))
        return f"gains[{rank}]", str(series["gains"][rank]), f"at most {series['base'][rank]}, its base"
    penalty = penalty_of(settings)
    is_costed = settings["budget"] is not None and (run.compared or {}).get("kept") != "uncosted"
    if not is_costed and all(settings[each.name] is None for each in PER_ROW if each.scored):
        expected = series["gains"] - penalty * series["conflict"]
        wrong = np.abs(series["scores"] - expected) > ROUNDING * (series["gains"] + penalty)
        if wrong.any():
            rank = int(np.flatnonzero(wrong)[0])
            return f"scores[{rank}]", str(series["scores"][rank]), f"{expected[rank]}, gain less penalty"
    return None


def _of_end(run: SavedRun) -> Fault | None:
    """The end of a run that has one: what U it has come to."""
    series, settings = run.series, run.settings
    if run.signal is not None and run.signal < 0:
        return "signal", str(run.signal), "a number of at least 0"
    last = float(series[LAST][-1]) if len(run) else 0.0
    at_start = not len(run) and settings["initial"] is not None  # U of the initial rows, which no series has
    if run.log_det != last and not at_start:
        return "log_det", str(run.log_det), f"{last}, the last of {LAST}"
    found = series[LAST] if settings["pool_size"] is None else series[LAST][-1:]
    if (np.diff(found, prepend=0.0) < -ROUNDING * (1 + np.abs(found))).any():
        return LAST, "numbers that fall", "U of more and more rows"
    return None


def _of_gains(run: SavedRun) -> Fault | None:
    """Gains beside what else tells them: the growth of U, or the worth of a row alone."""
    series, settings = run.series, run.settings
    gains, base, log_dets = series["gains"], series["base"], series[LAST]
    slack = ROUNDING * base
    field, expected = "gains", gains
    if settings["fisher"] == "scalar":
        expected = np.log1p(np.expm1(base) / (1.0 + settings["alpha"]))
    elif settings["method"] == "top_k":
        expected = base
    elif settings["fisher"] == "full" and settings["pool_size"] is None:
        # Without the first of a run with initial rows: their U is not known.
        start = float(log_dets[0] - gains[0]) if len(run) and settings["initial"] is not None else 0.0
        field, expected = LAST, start + np.cumsum(gains)
        with np.errstate(over="ignore"):
            # U is of a matrix whose factor has fewer digits beside a long row, and more of them the more rows there are.
            longest = np.expm1(base.max(initial=0.0)) * _EPSILON
        slack = ROUNDING * np.cumsum(base) + 8.0 * longest * np.arange(1, len(run) + 1)
        slack = slack + ROUNDING * abs(start)
    wrong = np.flatnonzero(np.abs(series[field] - expected) > slack)
    if not wrong.size:
        return None
    rank = int(wrong[0])
    return (
        f"{field}[{rank}]",
        str(series[field][rank]),
        f"{expected[rank]}, as the other numbers of the picks have it",
    )


def _of_costed_scores(run: SavedRun) -> Fault | None:
    """Scores by which gains count per cost: gain less penalty, times one number for all picks over their cost."""
    series, settings = run.series, run.settings
    is_costed = run.compared is not None and run.compared["kept"] == "costed"
    if not is_costed or any(settings[each.name] is not None for each in PER_ROW if each.scored):
        return None
    gains, penalties = series["gains"], penalty_of(settings) * series["conflict"]
    told = gains > ROUNDING * (1.0 + penalty_of(settings))
    if not told.any():
        return None
    factors = (series["scores"] + penalties)[told] * series["costs"][told] / gains[told]
    usual = float(np.median(factors))
    expected = usual * gains / series["costs"] - penalties
    scale = usual * gains / series["costs"] + penalty_of(settings)
    wrong = np.flatnonzero(np.abs(series["scores"] - expected) > ROUNDING * scale)
    if not wrong.size:
        return None
    rank = int(wrong[0])
    return f"scores[{rank}]", str(series["scores"][rank]), f"{expected[rank]}, gain for its cost less penalty"


def _of_groups(run: SavedRun) -> Fault | None:
    groups = run.settings["groups"]
    if groups is None or not len(run):
        return None
    codes, quotas = run.series["groups"], groups["quotas"]
    if not 0 <= codes.min() <= codes.max() < len(quotas):
        return "groups", str(codes.max()), f"places in {len(quotas)} quotas"
    spent = np.bincount(codes, run.series.get("costs"), minlength=len(quotas)).tolist()
    for sum_of, (label, _, most) in zip(spent, quotas, strict=True):
        if most is not None and sum_of > most * (1 + ROUNDING):
            return f"groups[{label!r}]", f"{sum_of:g} in the picks", f"at most its maximum of {most:g}"
    return None


def _of_budget(run: SavedRun) -> Fault | None:
    budget = run.settings["budget"]
    if budget is None:
        return None if run.compared is None else ("compared", short(run.compared), "null without a budget")
    costs = run.series["costs"]
    if not (costs > 0).all():
        return "costs", str(costs.min()), "costs above 0"
    cost = math.fsum(costs.tolist())
    if cost > budget * (1 + ROUNDING):
        return "costs", f"{cost:g} in all", f"at most the budget of {budget:g}"
    match run.compared:
        case {
            "kept": "costed" | "uncosted" as kept,
            "costed": dict() as costed,
            "uncosted": dict() as uncosted,
        } if all(map(_is_outcome, (costed, uncosted))):
            own = costed if kept == "costed" else uncosted
            same_cost = abs(own["cost"] - cost) <= ROUNDING * cost
            if (own["log_det"], own["picks"]) == (run.log_det, len(run)) and same_cost:
                return None
    expected = "the two runs of a budget, the kept one with this log_det and cost"
    return "compared", short(run.compared), expected


def _is_outcome(run: Mapping[str, Any]) -> bool:
    """Whether it is what is said of each of the two runs of a budget."""
    return is_real(run.get("log_det")) and is_whole(run.get("picks")) and is_real(run.get("cost"))


def _of_target(run: SavedRun) -> Fault | None:
    target = run.settings.get("target")
    if target is None:
        return None
    mean, directions, overlap = (run.series[name] for name in TARGET)
    dim, groups = run.settings["source"]["dim"], len(target["contrast"])
    if len(mean) != dim or len(directions) != dim * groups:
        found = f"{len(mean)} and {counted(len(directions), 'number')}"
        return TARGET[1], found, f"{dim} and {groups} times as many"
    lengths = np.sqrt((directions.reshape(groups, dim) ** 2).sum(axis=1))
    if (np.abs(lengths - target["contrast"]) > ROUNDING).any():
        return TARGET[1], f"lengths {lengths.tolist()}", f"{target['contrast']}, as settings.target.contrast"
    distinct = len(np.unique(overlap)) == len(overlap) and not (overlap < 0).any()
    if len(overlap) != target["overlap"] or not distinct:
        return TARGET[2], counted(len(overlap), "row"), f"{target['overlap']} different ones"
    relevance = run.series["relevance"]
    if (np.abs(relevance) > 1).any():
        return "relevance", f"numbers from {relevance.min()} to {relevance.max()}", "numbers in [-1, 1]"
    return None


def _of_composition(run: SavedRun) -> Fault | None:
    made = run.settings.get("composition")
    if made is None:
        return None
    if made["rows"] > run.settings["source"]["rows"]:
        return "settings.composition.rows", str(made["rows"]), "at most the rows of the source"
    most = {"pick_tokens": 1 << 31, "pick_labels": len(made["labels"] or ()), "pick_alike": len(run)}
    for name, above in most.items():
        values = run.series.get(name, np.empty(0, np.int64))
        least = -1 if name == "pick_alike" else 0
        if ((values < least) | (values >= above)).any():
            return (
                name,
                f"numbers from {values.min()} to {values.max()}",
                f"numbers from {least} to {above - 1}",
            )
    if made["alike"] and (run.series["pick_alike"] == np.arange(len(run))).any():
        return "pick_alike", "a pick that is like itself", "ranks of other picks"
    return None


def _of_near_duplicates(run: SavedRun) -> Fault | None:
    rows, of, cosines, ranks = (run.series[each] for each in NEAR_DUPLICATES)
    picks, limit = run.series["indices"], run.settings["max_similarity"]
    if len(np.unique(np.concatenate([picks, rows]))) < len(run) + len(rows) or (rows < 0).any():
        return (
            NEAR_DUPLICATES[0],
            f"{counted(len(rows), 'row')}, some twice, picked or below 0",
            "others than the picks",
        )
    if run.settings["initial"] is None and not np.isin(of, picks).all():
        return NEAR_DUPLICATES[1], str(of[~np.isin(of, picks)][0]), "picks"
    sizes = np.abs(cosines)
    if ((sizes > 1 + ROUNDING) | (sizes < limit - ROUNDING)).any():
        return NEAR_DUPLICATES[2], f"{cosines.min()} to {cosines.max()}", f"cosines beyond {limit:g}"
    if len(ranks) and not (0 <= ranks[0] and ranks[-1] <= len(run) and (np.diff(ranks) >= 0).all()):
        return NEAR_DUPLICATES[3], str(ranks.tolist()[:10]), f"ranks from 0 to {len(run)}, in order"
    return None
