"""What may be picked and what it is worth, by position of a source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs.errors import InvalidInputError
from spice_rs.selection.columns import digest
from spice_rs.selection.constraints import KEYS, PER_ROW
from spice_rs.selection.options import Constraints, Floats, Positions, Rows
from spice_rs.selection.quotas import EXCESS, Quotas
from spice_rs.selection.represent import Represented
from spice_rs.selection.result import NearDuplicates, as_labels
from spice_rs.selection.saved import NEAR_DUPLICATES
from spice_rs.selection.target import NOTHING, Aimed, Target
from spice_rs.store.sources import Source


@dataclass(frozen=True)
class Conditions:
    """The conditions of a run, by position of its source; None where there is no such condition.

    Attributes:
        source: the rows.
        candidates: (n,) bool, neither excluded nor initial.
        initial: positions that count as picked, in order.
        include: positions to pick first, in order.
        exclude: positions that are never picked.
        groups: the groups and their quotas.
        costs: (n,) cost of each row.
        budget: the cost that the picks may have.
        total: the budget in rows or in cost units.
        scalars: the value of each of `SCALARS`, or None.
        per_row: the (n,) numbers of each of `PER_ROW` that was asked for.
        prior_weight: factor of "prior".
        target: what the rows are picked for.
        aimed: what that means for each row.
        represented: the rows as representative picks see them; None for the source's own.
    """

    source: Source
    candidates: npt.NDArray[np.bool_]
    initial: Positions | None = None
    include: Positions | None = None
    exclude: Positions | None = None
    groups: Quotas | None = None
    costs: Floats | None = None
    budget: float | None = None
    total: Fraction | None = None
    scalars: Mapping[str, float | None] = field(default_factory=dict)
    per_row: Mapping[str, Floats] = field(default_factory=dict)
    prior_weight: float | None = None
    target: Target | None = None
    aimed: Aimed | None = None
    represented: Represented | None = None

    @property
    def row_weights(self) -> Floats | None:
        """(n,) weight of each row in the Fisher information, that of the caller times that of its relevance."""
        return weighted(self.per_row.get("weights"), self.aimed)

    @property
    def typical(self) -> npt.NDArray[np.bool_] | None:
        """(n,) the candidates that α = "auto" is of: those that point to a target, or all; None for all rows."""
        if self.aimed is None:
            return None if self.represented is None else self.candidates
        pointing: npt.NDArray[np.bool_] = self.candidates & ~self.aimed.points_away
        return pointing

    @property
    def max_similarity(self) -> float | None:
        """Largest |cosine| to a pick."""
        return self.scalars.get("max_similarity")

    def for_core(self, *, costed: bool = False) -> Constraints:
        """Return them as the core takes them; `costed`: gains count per cost."""
        groups = self.groups
        minima = maxima = None
        if groups is not None:
            maxima = np.array([math.inf if limit is None else float(limit) for limit in groups.maxima])
            minima = np.array([float(minimum) for minimum in groups.minima])
        exclude = self.exclude
        if self.aimed is not None:
            barred = self.aimed.barred
            for forced in (self.initial, self.include):
                if forced is not None:
                    barred[forced] = False
            if exclude is not None:
                barred[exclude] = True
            exclude = np.flatnonzero(barred)
        return Constraints(
            per_row=told(self.per_row, self.prior_weight, self.costs if costed else None),
            initial=self.initial,
            include=self.include,
            exclude=exclude,
            groups=None if groups is None else groups.codes,
            minima=minima,
            maxima=maxima,
            costs=self.costs,
            budget=self.budget,
            scalars=self.scalars,
        )

    def settings(self) -> dict[str, Any]:
        """Return what `Selection.settings` says of the conditions: numbers, and hashes of the arrays given.

        The hashes are of values in the order of the dataset rows, which no sharding changes.
        """
        order = self.source.dataset_order()

        def hashed(values: Floats | None) -> dict[str, Any] | None:
            return None if values is None else {"sha256": digest(values[order])}

        def listed(positions: Positions | None, *, ordered: bool = True) -> dict[str, Any] | None:
            if positions is None:
                return None
            rows = positions if self.source.index is None else self.source.index[positions]
            return {"rows": len(rows), "sha256": digest(rows if ordered else np.sort(rows))}

        groups = None
        if self.groups is not None:
            groups = {
                "sha256": digest(self.groups.labels, self.groups.codes[order]),
                "quotas": [
                    [label, self._plain(minimum), self._plain(maximum)]
                    for label, minimum, maximum in zip(
                        self.groups.labels, self.groups.minima, self.groups.maxima, strict=True
                    )
                ],
                "pool": self.groups.counts,
                "pool_cost": None if self.costs is None else [float(size) for size in self.groups.sizes],
            }
        values = {
            "budget": self.budget,
            "costs": hashed(self.costs),
            "groups": groups,
            "initial": listed(self.initial),
            "include": listed(self.include),
            "exclude": listed(self.exclude, ordered=False),
            **self.scalars,
            **{each.name: hashed(self.per_row.get(each.name)) for each in PER_ROW},
            "prior_weight": self.prior_weight,
            "target": None if self.target is None else self.target.settings(),
            "represent": None if self.represented is None else self.represented.settings(),
        }
        return {key: values[key] for key in KEYS}

    def about_picks(self) -> int:
        """Return about how many rows a budget of cost is enough for."""
        if self.costs is None or self.budget is None:
            return int(self.candidates.sum())
        return int(np.clip(self.budget / self.costs.mean(), 1, self.candidates.sum()))

    def cost_of(self, rows: Rows) -> float:
        """Return the whole cost of dataset rows."""
        return 0.0 if self.costs is None else math.fsum(self.costs[self.source.positions(rows)])

    def outcome(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a `Selection` of which `_core.select` knows, from what it returned."""
        positions = self.source.positions(result["indices"])
        costs = None if self.costs is None else self.costs[positions]
        groups = None
        if self.groups is not None:
            groups = as_labels(self.groups.labels)[self.groups.codes[positions]]
        series = dict(result)
        skipped = [series.pop(name) for name in NEAR_DUPLICATES]
        near_duplicates = None if self.max_similarity is None else NearDuplicates(*skipped)
        records = self.source.records
        hashes = None if records is None else records[positions]
        return {
            **series,
            "costs": costs,
            "groups": groups,
            "near_duplicates": near_duplicates,
            "record_hashes": hashes,
            "relevance": None if self.aimed is None else self.aimed.best[positions],
            "target": self.target,
        }

    def check_included(self) -> None:
        """Refuse rows to include that the limits forbid.

        Raises:
            InvalidInputError: they exceed the budget, a group's maximum, or what the minima of others leave.
        """
        if self.include is None or self.total is None:
            return
        unit, name = ("rows", "k") if self.costs is None else ("cost units", "budget")
        excess = Fraction(0) if self.costs is None else EXCESS
        costs = np.ones(len(self.include)) if self.costs is None else self.costs[self.include]
        spent = sum(map(Fraction, costs.tolist()), Fraction(0))
        if spent > self.total * (1 + excess):
            raise InvalidInputError(
                f"include: found rows of {_text(spent)} {unit}, expected at most {name}={_text(self.total)}. Include fewer,"
                f" or raise {name}."
            )
        if self.groups is None:
            return
        own_costs: dict[int, Fraction] = {}
        for code, cost in zip(self.groups.codes[self.include].tolist(), costs.tolist(), strict=True):
            own_costs[code] = own_costs.get(code, Fraction(0)) + Fraction(cost)
        needed = Fraction(0)
        for code, label in enumerate(self.groups.labels):
            own, maximum = own_costs.get(code, Fraction(0)), self.groups.maxima[code]
            if maximum is not None and own > maximum * (1 + excess):
                raise InvalidInputError(
                    f"include: found {_text(own)} {unit} of group {label!r}, expected at most its maximum of"
                    f" {_text(maximum)}. Include fewer, or raise the maximum in group_shares."
                )
            needed += max(Fraction(0), self.groups.minima[code] - own)
        if needed > self.total * (1 + excess) - spent:
            raise InvalidInputError(
                f"include: found rows that leave {_text(self.total - spent)} of {name}={_text(self.total)}, expected at"
                f" least the {_text(needed)} {unit} that the groups' minima still need. Include fewer, or raise {name}."
            )

    def _plain(self, value: Fraction | None) -> int | float | None:
        """Return a quota as JSON holds it: a number of rows is whole."""
        return None if value is None else int(value) if self.costs is None else float(value)


def weighted(weights: Floats | None, aimed: Aimed | None) -> Floats | None:
    """Return the (n,) weights of the caller times those of a target; None where there are neither."""
    if aimed is None:
        return weights
    if weights is None:
        return aimed.weights
    product = np.where(aimed.points_away, NOTHING, weights * aimed.weights)
    if not (product > 0).all():
        position = int(np.argmin(product))
        raise InvalidInputError(
            f"weights: found {weights[position]:g} for a row of relevance {aimed.best[position]:.3g}, expected a product"
            " that float64 holds. Use larger weights, or a smaller target_weight."
        )
    return product


def told(
    per_row: Mapping[str, Floats], prior_weight: float | None, costs: Floats | None
) -> dict[str, Floats]:
    """Return the (n,) numbers that the core takes by name: those of `PER_ROW`, and m and b of a row's score.

    Weights are not among them, which the pool has; a prior is in b, and `costs`, by which gains count, are in m.
    """
    found = dict(per_row)
    found.pop("weights", None)
    prior = found.pop("prior", None)
    if prior is not None:
        found["bonus"] = prior * (prior_weight or 0.0)
    if costs is not None:  # a penalty has the same size as before
        found["multiplier"] = math.fsum(costs) / len(costs) / costs
    return found


def _text(value: Fraction) -> str:
    return str(value) if value == int(value) else f"{float(value):.6g}"
