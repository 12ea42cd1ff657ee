"""The conditions of `select` as the caller gives them, checked and resolved for the rows of a source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs.arguments import real
from spice_rs.errors import InvalidInputError, StoreMismatchError
from spice_rs.nouns import counted
from spice_rs.paths import local_or_none
from spice_rs.printable import short
from spice_rs.progress import Progress
from spice_rs.selection import quotas
from spice_rs.selection.arguments import Share, count_or_none, gamma_given
from spice_rs.selection.columns import Columns, row_list
from spice_rs.selection.conditions import Conditions
from spice_rs.selection.constraints import COLUMNS, PER_ROW, SCALARS
from spice_rs.selection.options import Floats, Positions
from spice_rs.selection.represent import represent, without_gamma
from spice_rs.selection.result import Selection
from spice_rs.selection.saved import check_same
from spice_rs.selection.target import Aimed, Target, aim, check_weight, measure, too_few
from spice_rs.store.sources import Normalize, Source


@dataclass(frozen=True)
class Requested:
    """The conditions as the caller gave them; see `spice_rs.select`.

    Attributes:
        scalars: the arguments of `SCALARS` by name.
        per_row: those of `PER_ROW`; all others are called as there.
    """

    data: Any
    index_column: str | None
    groups: Any
    group_shares: Any
    costs: Any
    budget: Any
    initial: Any
    include: Any
    exclude: Any
    scalars: Mapping[str, Any]
    per_row: Mapping[str, Any]
    prior_weight: Any
    target: Any
    target_weight: Any
    target_groups: Any
    target_data: Any
    represent: Any
    represent_rank: Any
    represent_folder: Any
    dim: Any
    dtype: Any

    @staticmethod
    def of(arguments: Mapping[str, Any]) -> Requested:
        """Return those among the arguments of `select`, by name."""
        scalars = {each.name: arguments[each.name] for each in SCALARS}
        per_row = {each.name: arguments[each.name] for each in PER_ROW}
        names = (each.name for each in fields(Requested) if each.name not in ("scalars", "per_row"))
        return Requested(scalars=scalars, per_row=per_row, **{name: arguments[name] for name in names})

    @property
    def by_name(self) -> dict[str, Any]:
        """All arguments."""
        return {**vars(self), **self.scalars, **self.per_row}

    def check(
        self, *, k: int | Share | None, method: str, fisher: str, pool_size: int | None, checkpoint: bool
    ) -> None:
        """Refuse what does not go together, before anything is opened.

        Raises:
            InvalidInputError: two arguments exclude each other, or one needs another.
        """
        self._check_numbers()
        self._check_represented(fisher)
        conditions = (
            "groups",
            "budget",
            "initial",
            "include",
            "exclude",
            *self.scalars,
            *self.per_row,
            "target",
        )
        given = [name for name in conditions if _asks(self.by_name[name])]
        if pool_size is not None and given:
            raise InvalidInputError(
                f"{given[0]}: found it beside pool_size={pool_size}, expected one of the two: each window is a run of its"
                " own. Leave one out."
            )
        if method in ("epsilon_lazy", "stochastic") and set(given) - {"exclude"}:
            name = next(name for name in given if name != "exclude")
            raise InvalidInputError(
                f"{name}: found it beside method={method!r}, expected 'greedy' or 'top_k'. Use one of these."
            )
        if self.groups is not None and self.target_groups is not None:
            raise InvalidInputError(
                "target_groups: found them beside groups, expected one of the two: picks have quotas by one division. Leave"
                " one out."
            )
        if self.target is None and self.target_weight != 1.0:
            raise InvalidInputError(
                f"target_weight: found {short(self.target_weight)} without target, expected both. Give target, or leave it"
                " out."
            )
        needed = [("group_shares", "groups"), ("costs", "budget")]
        needed += [("target_groups", "target"), ("target_data", "target_groups")]
        for name, other in needed:
            if name == "group_shares" and self.target_groups is not None:
                continue
            if getattr(self, name) is not None and getattr(self, other) is None:
                raise InvalidInputError(
                    f"{name}: found it without {other}, expected both. Give {other}, or leave {name} out."
                )
        if self.budget is not None and k is not None:
            raise InvalidInputError(
                f"budget: found it beside k={k}, expected one of the two: a budget of cost, or of rows. Leave one out."
            )
        if self.budget is not None and checkpoint:
            raise InvalidInputError(
                "checkpoint: found it beside budget, expected one of the two: a budget takes two runs. Leave one out."
            )

    def resolve(
        self,
        source: Source,
        *,
        k: int | None,
        early_stop: float | None,
        threads: int | None,
        normalize: Normalize,
        partial: bool = False,
        progress: Progress = None,
    ) -> Conditions:
        """Return the conditions for the rows of a source.

        Args:
            source: the rows.
            k: rows wanted.
            early_stop: as for `select`.
            threads: as for `select`.
            normalize: scale of the rows, for representative picks.
            partial: as for `select`, of the target.
            progress: as for `select`, while the rows are held against the target, or made those of representative picks.

        Raises:
            InvalidInputError: a value cannot be used, or no selection can meet the conditions.
            StoreMismatchError: a selection given as rows was made from another source.
        """
        columns = Columns(
            source,
            self.data,
            {name: self.by_name[name] for name in COLUMNS},
            self.index_column,
        )
        initial, include, exclude = self._rows(source, threads)
        candidates = np.ones(source.rows, bool)
        for positions in (initial, exclude):
            if positions is not None:
                candidates[positions] = False
        target = aimed = None
        if self.target is not None:
            taken = int((~candidates).sum())
            target, aimed = self._aim(source, candidates, include, partial, threads, progress)
            candidates &= ~aimed.barred
            if include is not None:
                candidates[include] = True  # whatever they are to the target
            if k is not None and k > (left := int(candidates.sum())):
                raise too_few(k, target, left, taken)
        _check_size(k, candidates, include)
        costs = budget = None
        if self.budget is not None:
            costs = self._costs(source, columns)
            _check_costs(costs)
            budget = self._total(costs)
        total = Fraction(budget) if budget is not None else None if k is None else Fraction(k)
        groups = None
        if self.groups is not None:
            labels, codes = columns.labels("groups", self.groups)
            shares = "pool" if self.group_shares is None else self.group_shares
            groups = quotas.resolve(labels, columns.by_position(codes), candidates, costs, shares, total)
        elif aimed is not None and target is not None and target.labels is not None:
            shares = "even" if self.group_shares is None else self.group_shares
            groups = quotas.resolve(target.labels, aimed.serves, candidates, costs, shares, total)
        if groups is not None:
            code = next((code for code, minimum in enumerate(groups.minima) if minimum > 0), None)
            if early_stop is not None and code is not None:
                raise InvalidInputError(
                    f"early_stop: found {early_stop} beside a minimum for group {groups.labels[code]!r}, expected one of"
                    " the two: a run that stops early meets no minimum. Give maxima alone, (None, maximum), or leave"
                    " early_stop out."
                )
        per_row = {
            each.name: columns.by_position(columns.numbers(each.name, given, positive=each.positive))
            for each in PER_ROW
            if (given := self.per_row[each.name]) is not None
        }
        prior_weight = None
        if (prior := per_row.get("prior")) is not None:
            prior_weight = real("prior_weight", self.prior_weight)
            if not math.isfinite(prior_weight * float(np.abs(prior).max())):
                raise InvalidInputError(
                    f"prior_weight: found {prior_weight:g} with a prior up to {np.abs(prior).max():g}, expected a product"
                    " that float64 holds. Use smaller numbers."
                )
        elif self.prior_weight != 1.0:
            raise InvalidInputError(
                f"prior_weight: found {short(self.prior_weight)} without prior, expected both. Give prior, or leave"
                " it out."
            )
        conditions = Conditions(
            source=source,
            candidates=candidates,
            initial=initial,
            include=include,
            exclude=exclude,
            groups=groups,
            costs=costs,
            budget=budget,
            total=total,
            scalars={each.name: each.checked(self.scalars[each.name]) for each in SCALARS},
            per_row=per_row,
            prior_weight=prior_weight,
            target=target,
            aimed=aimed,
        )
        conditions.check_included()
        if (gamma := gamma_given(self.represent)) == 0:
            return conditions
        represented = represent(
            source,
            normalize,
            gamma,
            count_or_none("represent_rank", self.represent_rank),
            folder=local_or_none(self.represent_folder, "represent_folder"),
            threads=threads,
            progress=progress,
        )
        return replace(conditions, represented=represented)

    def _aim(
        self,
        source: Source,
        free: npt.NDArray[np.bool_],
        include: Positions | None,
        partial: bool,
        threads: int | None,
        progress: Progress,
    ) -> tuple[Target, Aimed]:
        """Return the target, and what it means for each row."""
        measured = measure(
            source,
            self.target,
            self.target_groups,
            self.target_data,
            partial=partial,
            threads=threads,
            progress=progress,
            dim=self.dim,
            dtype=self.dtype,
        )
        return aim(measured, source, check_weight(self.target_weight), free, include)

    def _check_represented(self, fisher: str) -> None:
        if gamma_given(self.represent) > 0:
            if fisher == "diagonal":
                raise InvalidInputError(
                    f"fisher: found 'diagonal' beside represent={self.represent:g}, expected 'full' or 'scalar': a diagonal"
                    " is of the columns that gradients have, and these rows have others. Leave one out."
                )
            return
        for name in ("represent_rank", "represent_folder"):
            if getattr(self, name) is not None:
                raise without_gamma(name)

    def _check_numbers(self) -> None:
        count_or_none("represent_rank", self.represent_rank)
        local_or_none(self.represent_folder, "represent_folder")
        if self.budget is not None:
            expected = "a cost of at least 1, or a share of the whole cost in (0, 1), which float64 holds"
            real("budget", self.budget, above=0, expected=expected, remedy="Correct it.")
        real("prior_weight", self.prior_weight)
        check_weight(self.target_weight)
        for each in SCALARS:
            each.checked(self.scalars[each.name])

    def _rows(self, source: Source, threads: int | None) -> list[Positions | None]:
        """Return the positions of the rows of initial, include and exclude."""
        found: dict[str, Positions | None] = {}
        for field in ("initial", "include", "exclude"):
            given = getattr(self, field)
            if isinstance(given, Selection):
                identity = {
                    "rows": source.rows,
                    "dim": source.dim,
                    "dtype": source.dtype,
                    "fingerprint": source.identify(threads),
                }
                remedy = "Give a selection from this source, or its rows: selection.indices."
                check_same(f"{field}: source", given.settings["source"], identity, StoreMismatchError, remedy)
                given = given.indices
            rows = None if given is None else row_list(field, given)
            found[field] = None if rows is None or not rows.size else source.positions(rows, field)
        for field, other in (("initial", "include"), ("initial", "exclude"), ("include", "exclude")):
            first, second = found[field], found[other]
            if first is None or second is None:
                continue
            both = np.intersect1d(first, second)
            if both.size:
                raise InvalidInputError(
                    f"{other}: found row {source.dataset_row(int(both[0]))}, which is in {field} too, expected it in one of"
                    " the two. Leave it out of one."
                )
        return list(found.values())

    def _costs(self, source: Source, columns: Columns) -> Floats:
        if self.costs is not None:
            return columns.by_position(columns.numbers("costs", self.costs, positive=True))
        if source.num_tokens is None:
            raise InvalidInputError(
                f"budget: found it without costs for {source.description}, expected a store that records token counts."
                " Give costs: one number per dataset row, or the name of a column of data."
            )
        tokens = source.num_tokens
        if (tokens <= 0).any():
            position = int(np.flatnonzero(tokens <= 0)[0])
            raise InvalidInputError(
                f"num_tokens of row {source.dataset_row(position)}: found {tokens[position]}, expected at least 1 to be a"
                " cost. Extract this row again, or give costs."
            )
        return tokens.astype(np.float64)

    def _total(self, costs: Floats) -> float:
        exact = quotas.exact_number(self.budget) or Fraction(0)
        return float(exact if exact >= 1 else exact * Fraction(math.fsum(costs)))


def _check_size(k: int | None, candidates: npt.NDArray[np.bool_], include: Positions | None) -> None:
    left = int(candidates.sum())
    if k is not None and k > left == len(candidates):
        raise InvalidInputError(
            f"k: found {k}, expected a number from 1 to {left}, the rows of the source. Ask for fewer rows."
        )
    if left == 0:
        raise InvalidInputError(
            "initial, exclude: found all rows of the source in them, expected rows that can be picked. Exclude fewer."
        )
    if k is not None and k > left:
        raise InvalidInputError(
            f"k: found {k} and {counted(left, 'row')} that are neither initial nor excluded, expected 1 to"
            f" {left}. Select fewer, or"
            " exclude fewer."
        )
    if include is not None and k is not None and len(include) > k:
        raise InvalidInputError(
            f"include: found {counted(len(include), 'row')}, expected at most k={k}. Include fewer, or raise k."
        )


def _asks(value: Any) -> bool:
    """Whether a condition asks for anything: no value and no rows do not."""
    sized = hasattr(value, "__len__") and getattr(value, "ndim", 1) > 0
    return value is not None and not (sized and len(value) == 0)


def _check_costs(costs: Floats) -> None:
    """Refuse costs of which the sum, or a gain per cost, is more than float64 holds."""
    with np.errstate(over="ignore"):
        sound = math.isfinite(float(costs.sum())) and math.isfinite(float(costs.mean() / costs.min()))
    if not sound:
        raise InvalidInputError(
            f"costs: found numbers from {costs.min():g} to {costs.max():g}, expected a sum and quotients that float64"
            " holds. Use another unit, or other costs for the extreme rows."
        )
