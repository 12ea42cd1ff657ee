"""The form of `Selection.settings` in a file: what each entry may be, whoever wrote it.

A checksum says that a file is whole, and not who made it. What is read here is used as it stands by whatever takes a
selection, so each entry is looked at once, when a file is opened. Entries that are not known are kept as they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from spice_rs.data.matching import Belonging
from spice_rs.printable import short
from spice_rs.selection.constraints import KEYS, PER_ROW, SCALARS

_MOST = (1 << 31) - 1  # what `select` takes as a whole number
_MOST_ROWS = 1 << 62
MOST_WEIGHT = 10.0
"""Largest τ of a target: beyond, a few rows weigh all, and α that makes others count is beyond float64."""
MOST_GAMMA = 4.0
"""Largest γ of representative picks: beyond, rows far from what is common are too short for float32."""
_DTYPES = {"int8", "float16", "bfloat16", "float32", "float64"}

Check = Callable[[Any], bool]


def fault_of(settings: Any) -> tuple[str, str, str] | None:
    """Return the first entry that settings cannot have: (its name, what was found, what was expected); else None."""
    if not isinstance(settings, dict):
        return "settings", short(settings), "an object"
    parts: list[tuple[Any, dict[str, tuple[str, Check]], str]] = [
        (settings, _SETTINGS, "settings"),
        (settings.get("source"), _SOURCE, "settings.source"),
    ]
    for part, form, place in parts:
        for name, (expected, check) in form.items():
            if name not in part and name not in _LATER:
                return f"{place}.{name}", "none", expected
            if name in part and not check(part[name]):
                return f"{place}.{name}", short(part[name]), expected
    return _of_pairs(settings)


def _of_pairs(settings: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The same for entries of which one is there only with the other."""
    for one, other in (("budget", "costs"), ("pool_size", "select_per_window"), ("prior", "prior_weight")):
        if (settings[one] is None) is not (settings[other] is None):
            found = f"{short(settings[one])} beside {other} {short(settings[other])}"
            return f"settings.{one}", found, f"both {one} and {other}, or neither"
    if settings["pool_size"] is not None and settings["select_per_window"] > settings["pool_size"]:
        found = f"{settings['select_per_window']} of {settings['pool_size']}"
        return "settings.select_per_window", found, "at most pool_size"
    represented, dim = settings.get("represent"), settings["source"]["dim"]
    if represented is not None and max(represented["directions"], represented["rank"] or 1) > dim:
        return (
            "settings.represent",
            short(represented),
            f"at most {dim} directions, the columns of the source",
        )
    groups = settings["groups"]
    if groups is not None and (groups["pool_cost"] is None) is not (settings["budget"] is None):
        return "settings.groups", f"pool_cost {short(groups['pool_cost'])}", "costs with a budget alone"
    return None


def penalty_of(settings: Mapping[str, Any]) -> float:
    """Return the λ that counted in a run with these settings: none where the largest single gains are taken."""
    return 0.0 if settings["method"] == "top_k" else float(settings["conflict_penalty"])


# --- what values may be -------------------------------------------------------------------------------------------


def is_whole(value: Any, least: int = 0, most: int = _MOST_ROWS) -> bool:
    """Whether it is a whole number in a range; true and false are none."""
    return type(value) is int and least <= value <= most


def is_real(value: Any) -> bool:
    """Whether it is a finite number that float64 holds."""
    if type(value) is int:
        return abs(value) < 1 << 1000
    return type(value) is float and math.isfinite(value)


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _real(legal: Callable[[float], bool]) -> Check:
    return lambda value: is_real(value) and legal(value)


def _one_of(*words: str) -> Check:
    return lambda value: isinstance(value, str) and value in words


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{1,64}", value) is not None


def _is_hashed(value: Any) -> bool:
    return isinstance(value, dict) and _is_digest(value.get("sha256"))


def _is_list(value: Any) -> bool:
    return _is_hashed(value) and is_whole(value.get("rows"), 1)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_dtype(value: Any) -> bool:
    return isinstance(value, str) and _DTYPES.issuperset(value.split("+"))


def _is_groups(value: Any) -> bool:
    if not _is_hashed(value) or not {"quotas", "pool", "pool_cost"} <= value.keys():
        return False
    if not isinstance(value["quotas"], list) or not value["quotas"]:
        return False
    quotas, pool, costs = value["quotas"], value.get("pool"), value.get("pool_cost")
    if not all(map(_is_quota, quotas)):
        return False
    labels = [quota[0] for quota in quotas]
    if len({type(label) for label in labels}) > 1 or len(set(labels)) < len(labels):
        return False
    return (
        isinstance(pool, list)
        and len(pool) == len(quotas)
        and all(map(is_whole, pool))
        and (
            costs is None
            or (
                isinstance(costs, list)
                and len(costs) == len(quotas)
                and all(map(_real(_not_negative), costs))
            )
        )
    )


def _is_quota(value: Any) -> bool:
    match value:
        case [str() | int(), least, most]:
            return (
                is_real(least)
                and least >= 0
                and (most is None or (is_real(most) and most >= least))
                and (not isinstance(value[0], int) or abs(value[0]) < 1 << 63)
            )
    return False


def _is_unfinished(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(map(is_whole, pair)) for pair in value
    )


def _is_extended(value: Any) -> bool:
    match value:
        case {"picks": picks, "unchanged": unchanged, "new": list() as new}:
            return (
                all(map(is_whole, (picks, unchanged, *new))) and unchanged <= picks and new == sorted({*new})
            )
    return False


def _is_target(value: Any) -> bool:
    match value:
        case {
            "name": str(),
            "fingerprint": str(),
            "rows": rows,
            "zero_rows": zero,
            "weight": weight,
            "labels": labels,
            "contrast": list() as contrast,
            "noise": list() as noise,
            "away": away,
            "candidates": candidates,
            "overlap": overlap,
        } if len(value) == 11:
            count = 1 if labels is None else len(labels) if isinstance(labels, list) else 0
            kinds = set(map(type, labels or [""]))
            return (
                is_whole(rows, 1)
                and all(map(is_whole, (zero, away, candidates, overlap)))
                and is_real(weight)
                and 0 <= weight <= MOST_WEIGHT
                and count == len(contrast) == len(noise) > 0
                and len(kinds) == 1
                and kinds <= {str, int, bool}
                and all(map(_real(_not_negative), contrast))
                and all(map(_or_none(_real(_not_negative)), noise))
            )
    return False


def _is_represented(value: Any) -> bool:
    match value:
        case {"gamma": gamma, "rank": rank, "directions": directions, "energy": energy} if len(value) == 4:
            return (
                is_real(gamma)
                and 0 < gamma <= MOST_GAMMA
                and _or_none(_COUNT)(rank)
                and is_whole(directions, 1, _MOST if rank is None else rank)
                and is_real(energy)
                and 0 <= energy <= 1 + 1e-9
            )
    return False


def _is_composition(value: Any) -> bool:
    match value:
        case {
            "rows": rows,
            "tokens": tokens,
            "column": str() | None,
            "labels": labels,
            "alike": bool(),
        } if len(value) == 5:
            return is_whole(rows) and _or_none(_is_tokens)(tokens) and _or_none(_is_labelled)(labels)
    return False


def _is_tokens(value: Any) -> bool:
    match value:
        case [median, total]:
            return is_real(median) and median >= 0 and is_whole(total)
    return False


def _is_labelled(value: Any) -> bool:
    """Whether these are labels with a number each."""
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        return False
    kinds = {type(label) for label, _ in value}
    return (
        len(kinds) == 1
        and kinds <= {str, int, bool}
        and len({label for label, _ in value}) == len(value)
        and all(is_whole(count) for _, count in value)
    )


def _not_negative(value: float) -> bool:
    return value >= 0


_POSITIVE = _real(lambda value: value > 0)
_SHARE = _real(lambda value: 0 < value < 1)
_COUNT: Check = lambda value: is_whole(value, 1, _MOST)  # noqa: E731

_SETTINGS: dict[str, tuple[str, Check]] = {
    "k": ("a whole number of at least 1, or null", _or_none(_COUNT)),
    "alpha": ("a positive number", _POSITIVE),
    "conflict_penalty": ("a number of at least 0", _real(_not_negative)),
    "fisher": ("full, diagonal or scalar", _one_of("full", "diagonal", "scalar")),
    "early_stop": ("a number between 0 and 1, or null", _or_none(_SHARE)),
    "normalize": ("none, sum, mean or unit", _one_of("none", "sum", "mean", "unit")),
    "method": (
        "greedy, top_k, epsilon_lazy or stochastic",
        _one_of("greedy", "top_k", "epsilon_lazy", "stochastic"),
    ),
    "epsilon": ("a number between 0 and 1, or null", _or_none(_SHARE)),
    "pool_size": ("a whole number of at least 1, or null", _or_none(_COUNT)),
    "select_per_window": ("a whole number of at least 1, or null", _or_none(_COUNT)),
    "seed": ("a whole number of at least 0, or null", _or_none(lambda value: is_whole(value, 0, _MOST))),
    "budget": ("a positive number, or null", _or_none(_POSITIVE)),
    "costs": ("the hash of costs, or null", _or_none(_is_hashed)),
    "groups": ("hash, quotas [label, minimum, maximum] and sizes of groups, or null", _or_none(_is_groups)),
    "initial": ("number and hash of rows, or null", _or_none(_is_list)),
    "include": ("number and hash of rows, or null", _or_none(_is_list)),
    "exclude": ("number and hash of rows, or null", _or_none(_is_list)),
    **{each.name: (f"{each.expected}, or null", _or_none(each.is_legal)) for each in SCALARS},
    **{each.name: (f"the hash of {each.name}, or null", _or_none(_is_hashed)) for each in PER_ROW},
    "prior_weight": ("a number, or null", _or_none(is_real)),
    "target": ("what is known of a target, or null", _or_none(_is_target)),
    "represent": (
        "γ, rank, directions and energy of representative picks, or null",
        _or_none(_is_represented),
    ),
    "composition": ("what a pool is made of, or null", _or_none(_is_composition)),
    "partial": ("true or false", _is_bool),
    "kept": ("a whole number of at least 0", is_whole),
    "extended": ("picks, unchanged and new of a pool that has grown", _is_extended),
    "remade": ("true or false", _is_bool),
    "source": ("what is known of the source", lambda value: isinstance(value, dict)),
}

_SOURCE: dict[str, tuple[str, Check]] = {
    "name": ("a text", _is_text),
    "rows": ("a whole number of at least 1", lambda value: is_whole(value, 1)),
    "dim": ("a whole number of at least 1", lambda value: is_whole(value, 1)),
    "dtype": ("the name of a dtype", _is_dtype),
    "fingerprint": ("a text", _is_text),
    "content": ("a text, or null", _or_none(_is_text)),
    "data": ("what is known of the data, or null", _or_none(Belonging.is_about)),
    "hashed": ("true or false", _is_bool),
    "unfinished": ("pairs of counts, or null", _or_none(_is_unfinished)),
}

_FIRST = {
    *("budget", "costs", "groups", "initial", "include", "exclude", "max_similarity"),
    *("weights", "prior", "prior_weight"),
}
"""Constraints that every file has an entry of; `read_run` says of the others that nobody asked for them."""

_LATER = frozenset(
    {
        "composition",
        "partial",
        "kept",
        "extended",
        "remade",
        "content",
        "data",
        "hashed",
        "unfinished",
    }
    | set(KEYS) - _FIRST
)
"""Entries that not every selection has, or that files of the first versions lack."""
