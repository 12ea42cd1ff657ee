"""The methods that `spice_rs.compare` knows by name, and what else can be compared."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs import _core
from spice_rs.analysis.baselines import NotAvailable, Watch, facility_location, k_center, random_rows
from spice_rs.arguments import rows_given
from spice_rs.errors import InvalidInputError
from spice_rs.nearness import meant
from spice_rs.nouns import counted
from spice_rs.selection.presets import PENALTY
from spice_rs.selection.result import Selection
from spice_rs.selection.selection import select
from spice_rs.selection.target import Measured
from spice_rs.store.rows import RowReader
from spice_rs.store.sources import Normalize, Source

__all__ = ["METHODS", "Contender", "NotAvailable", "Setting", "contenders"]


@dataclass(frozen=True)
class Setting:
    """What all methods of a comparison share; see `spice_rs.compare`."""

    source: Source
    k: int
    alpha: float
    conflict_penalty: float
    normalize: Normalize
    random_sets: int
    pool_size: int
    seed: int
    threads: int | None
    target: Any = None
    measured: Measured | None = None

    @cached_property
    def candidates(self) -> npt.NDArray[np.int64]:
        """Positions that may be picked, by dataset row: all but those that the target has too."""
        order = self.source.dataset_order()
        return order if self.measured is None else order[~np.isin(order, self.measured.overlap)]

    def measure(self, picks: Any) -> Selection:
        """Return picks as a selection with the shared settings, whoever made them."""
        return self._select(lambda _: None, {"k": len(picks), "include": picks})

    def select(self, watch: Watch, **options: Any) -> Selection:
        """Select with the shared settings, but for `options`; rows that the target has too are never picked.

        Raises:
            NotAvailable: windows cannot leave these out.
        """
        if self.measured is not None and options.get("target") is None and len(self.measured.overlap):
            if options.get("pool_size") is not None:
                raise NotAvailable("windows cannot leave out the rows that the target has too")
            given = options.get("exclude")
            given = given.indices if isinstance(given, Selection) else [] if given is None else given
            options["exclude"] = np.union1d(
                rows_given("exclude", given), self.dataset_rows(self.measured.overlap)
            )
        return self._select(watch, options)

    def _select(self, watch: Watch, options: dict[str, Any]) -> Selection:
        own_budget = {"budget", "pool_size", "early_stop"} & {
            name for name, value in options.items() if value is not None
        }
        shared: dict[str, Any] = {
            "k": None if own_budget else self.k,
            "alpha": self.alpha,
            "conflict_penalty": None if self.conflict_penalty == PENALTY else self.conflict_penalty,
            "normalize": self.normalize,
            "threads": self.threads,
            "progress": lambda picks, *_: watch(picks),
            "partial": True,  # or `compare` would have refused the source
        }
        return select(self.source, **{**shared, **options})

    def dataset_rows(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the dataset rows at positions of the source."""
        return positions if self.source.index is None else self.source.index[positions]


Picks = Selection | npt.NDArray[np.int64]
"""What a method makes: dataset rows in the order of the picks, or a selection of which something else counts too: its
numbers (`Contender.exact`), or that it was made from the same source."""


@dataclass(frozen=True)
class Contender:
    """One line of the comparison: a method with all its settings.

    Attributes:
        label: what the line is called.
        pick: makes the picks, telling `Watch` of each.
        exact: the picks are those of the exact search on the shared α and scale without conditions, so that the
            numbers in the selection are those that are compared.
        random: the picks are drawn by chance.
    """

    label: str
    pick: Callable[[Watch], Picks]
    exact: bool = False
    random: bool = False


def _spice(setting: Setting) -> list[Contender]:
    return [Contender("spice", lambda watch: setting.select(watch), exact=True)]


def _no_penalty(setting: Setting) -> list[Contender]:
    return [Contender("no_penalty", lambda watch: setting.select(watch, conflict_penalty=0.0), exact=True)]


def _diagonal(setting: Setting) -> list[Contender]:
    return [Contender("diagonal", lambda watch: setting.select(watch, fisher="diagonal").indices)]


def _top_k(setting: Setting) -> list[Contender]:
    return [Contender("top_k", lambda watch: setting.select(watch, method="top_k").indices)]


def _windows(setting: Setting) -> list[Contender]:
    """The released code's pool: windows of a permutation, each with its share of k, by its diagonal.

    Every window gets the share rounded up, and then the last picks of the last windows are left out: greedy picks are
    nested.
    """

    def pick(watch: Watch) -> Picks:
        rows = setting.source.rows
        size = min(setting.pool_size, rows)
        per_window = min(size, -(-setting.k * size // rows))
        selection = setting.select(
            watch, fisher="diagonal", pool_size=size, select_per_window=per_window, seed=setting.seed
        )
        sizes = np.minimum(size, rows - size * np.arange(-(-rows // size)))
        rank = np.concatenate([np.arange(min(per_window, int(each))) for each in sizes])
        kept = np.sort(np.argsort(rank, kind="stable")[: setting.k])
        return selection.indices[kept]

    return [Contender("windows", pick)]


def _random(setting: Setting) -> list[Contender]:
    def drawn(seed: int) -> Callable[[Watch], Picks]:
        return lambda watch: setting.dataset_rows(random_rows(setting.candidates, setting.k, seed))

    seeds = range(setting.seed, setting.seed + setting.random_sets)
    return [Contender(f"random {seed}", drawn(seed), random=True) for seed in seeds]


def _k_center(setting: Setting) -> list[Contender]:
    def pick(watch: Watch) -> Picks:
        reader = RowReader(setting.source, setting.normalize)
        return setting.dataset_rows(k_center(setting.candidates, reader, setting.k, watch))

    return [Contender("k_center", pick)]


def _facility_location(setting: Setting) -> list[Contender]:
    def pick(watch: Watch) -> Picks:
        if len(setting.candidates) < setting.source.rows:
            raise NotAvailable("the libraries' kernels have all rows, those that the target has too")
        positions, _ = facility_location(RowReader(setting.source, setting.normalize), setting.k)
        return setting.dataset_rows(positions)

    return [Contender("facility_location", pick)]


def _representative(setting: Setting) -> list[Contender]:
    """Rows that say much about the pool: γ = 1, at the scale and α that `select` takes for it."""

    def pick(watch: Watch) -> Picks:
        own: dict[str, Any] = {"alpha": "auto", "conflict_penalty": 0.0, "normalize": "unit"}
        try:
            return setting.select(watch, represent=1.0, **own).indices
        except InvalidInputError as error:
            if not str(error).startswith("represent"):
                raise
            raise NotAvailable(str(error).removesuffix(".")) from error  # there is no room for its matrices

    return [Contender("representative", pick)]


def _target(setting: Setting) -> list[Contender]:
    def pick(watch: Watch) -> Picks:
        best = _measured(setting).relevance[:, 0]
        if (left := int((best[setting.candidates] > 0).sum())) < setting.k:
            raise NotAvailable(
                f"{counted(left, 'row points', 'rows point')} to the target, and k is {setting.k}"
            )
        own: dict[str, Any] = {"alpha": "auto", "conflict_penalty": 0.0, "normalize": "unit"}
        return setting.select(watch, target=setting.target, **own).indices

    return [Contender("target", pick)]


def _relevance(setting: Setting) -> list[Contender]:
    """The k rows of the largest r, without interaction."""
    return [
        Contender("relevance", lambda watch: _largest(setting, _measured(setting).relevance[:, 0], watch))
    ]


def _less(setting: Setting) -> list[Contender]:
    """The k rows of the largest mean cosine to the target's rows: the rule of LESS (arXiv 2402.04333)."""

    def pick(watch: Watch) -> Picks:
        found = _measured(setting).found
        mean = found["directions"] + found["mean"]  # t̄
        cosines = _core.relevance_to(
            setting.source.pool("unit"),
            np.zeros_like(mean),
            np.ascontiguousarray(mean),
            threads=setting.threads,
            progress=None,
        )
        return _largest(setting, cosines, watch)

    return [Contender("less", pick)]


def _measured(setting: Setting) -> Measured:
    assert setting.measured is not None  # or `contenders` would have refused the method
    return setting.measured


def _largest(setting: Setting, values: npt.NDArray[np.float64], watch: Watch) -> npt.NDArray[np.int64]:
    """Return the k candidates of the largest values, of equals the lowest rows."""
    order = np.argsort(-values[setting.candidates], kind="stable")[: setting.k]
    watch(setting.k)
    return setting.dataset_rows(setting.candidates[order])


METHODS: dict[str, Callable[[Setting], list[Contender]]] = {
    "spice": _spice,
    "no_penalty": _no_penalty,
    "diagonal": _diagonal,
    "windows": _windows,
    "top_k": _top_k,
    "k_center": _k_center,
    "facility_location": _facility_location,
    "representative": _representative,
    "target": _target,
    "relevance": _relevance,
    "less": _less,
    "random": _random,
}
"""Name → its lines in the comparison, in the order of the table."""

FOR_TARGETS = ("target", "relevance", "less")
"""Methods that there are with a target alone."""


def contenders(setting: Setting, methods: str | Sequence[str] | Mapping[str, Any] | None) -> list[Contender]:
    """Return what is to be compared, as `spice_rs.compare` takes it.

    Raises:
        InvalidInputError: there is no such method, none was named, or one is there twice.
    """
    if methods is None:
        methods = [name for name in METHODS if setting.measured is not None or name not in FOR_TARGETS]
    if isinstance(methods, str):
        methods = [methods]
    given: Mapping[Any, Any] = {}
    if isinstance(methods, Mapping):
        given = methods
    elif isinstance(methods, Sequence) and all(isinstance(name, str) for name in methods):
        given = {name: name for name in methods}
    else:
        raise InvalidInputError(
            f"methods: found {methods!r}, expected names, or a mapping: label → name, options of select, rows, or a"
            " selection. Put rows into a mapping with a label."
        )
    if not given:
        raise InvalidInputError(
            f"methods: found none, expected some of {', '.join(METHODS)}. Leave it out for all of them."
        )
    if len(given) < len(methods):
        raise InvalidInputError(f"methods: found a name twice in {list(methods)}. Leave it out once.")
    found = [
        contender for label, method in given.items() for contender in _contenders(setting, label, method)
    ]
    labels = [contender.label for contender in found]
    if twice := [label for label in dict.fromkeys(labels) if labels.count(label) > 1]:
        raise InvalidInputError(
            f"methods: found two lines called {twice[0]!r}, expected a name for each. Give one of them another."
        )
    return found


def _contenders(setting: Setting, label: str, method: Any) -> list[Contender]:
    if isinstance(method, str):
        if method not in METHODS:
            raise InvalidInputError(
                f"methods: found {method!r}, expected one of {', '.join(METHODS)}{meant(method, METHODS) or '.'} Choose one"
                " of these, or give a mapping: label → options of select, or rows, or a selection."
            )
        if method in FOR_TARGETS and setting.measured is None:
            raise InvalidInputError(
                f"methods: found {method!r} without target, expected both. Give target, or leave the method out."
            )
        made = METHODS[method](setting)
        return [replace(contender, label=contender.label.replace(method, label, 1)) for contender in made]
    if isinstance(method, Mapping):
        options = dict(method)
        known = list(inspect.signature(select).parameters)[1:]
        if wrong := [name for name in options if name not in known]:
            raise InvalidInputError(
                f"methods[{label!r}]: found {wrong[0]!r}, expected options of select: {', '.join(known)}. Correct it."
            )
        return [Contender(label, lambda watch: setting.select(watch, **options).indices)]
    return [Contender(label, lambda watch: method if isinstance(method, Selection) else _rows(label, method))]


def _rows(label: str, given: Any) -> npt.NDArray[np.int64]:
    from spice_rs.selection.columns import row_list

    return row_list(f"methods[{label!r}]", given)
