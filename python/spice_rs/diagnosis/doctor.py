"""`doctor`: whether the rows of one's own model and data are what they should be, in one table.

A few samples of all lengths are computed in ways that must not matter (alone, padded, together, again), and against plain
autograd, one backward per sample on a forward that knows nothing of hooks, masks and padding. Rows are compared after a
sparse projection: it is linear, so what is off anywhere is off in the projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spice_rs.arguments import flag_or_none, real_or_none, whole
from spice_rs.data.dataset import Example
from spice_rs.diagnosis.masks import mask_checks
from spice_rs.diagnosis.plain import plain_rows
from spice_rs.diagnosis.verdict import Check
from spice_rs.extraction.batching import Sample, longest_first, one_by_one
from spice_rs.extraction.extractor import extract
from spice_rs.extraction.own_data import UnlikeSamplesError
from spice_rs.extraction.preflight import tolerance_of
from spice_rs.extraction.preparation import Extraction, Settings, preparing
from spice_rs.extraction.projection import SparseProjection
from spice_rs.extraction.proxy import limits, threshold_of
from spice_rs.interface import spoken
from spice_rs.nouns import counted
from spice_rs.progress import libraries_silent
from spice_rs.signs import step
from spice_rs.tables import aligned

_DIM = 4096
_PADDING = 13  # tokens that the padded samples are longer than the longest


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor` found.

    Attributes:
        checks: In the order in which they were made.
    """

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed; checks that do not apply do not count."""
        return all(check.passed is not False for check in self.checks)

    def __str__(self) -> str:
        words = {True: "pass", False: "FAIL", None: "-"}
        rows = [
            (spoken(check.name), spoken(check.found), spoken(check.expected), words[check.passed])
            for check in self.checks
        ]
        return aligned([("check", "found", "expected", "result"), *rows], left=True)


def doctor(
    model: Any,
    data: Any,
    *,
    samples: int = 8,
    tolerance: float | None = None,
    progress: bool | None = None,
    **extraction: Any,
) -> Diagnosis:
    """Checks what `extract` would compute on a few samples of the data.

    Args:
        model: As for `extract`.
        data: As for `extract`.
        samples: Number of samples, of all lengths.
        tolerance: Largest relative error of a row. Default, as in what `extract` tries out: 1e-3 for models in float32,
            1e-2 on a GPU, 1e-5 in float64, 0.1 in half precision or under autocast, 0.3 there with experts.
        progress: False: show none of the bars of transformers; `doctor` has none of its own.
        extraction: Further arguments of `extract`. Records that cannot be used are counted, not an error.

    Returns:
        The checks, which print as a table.

    Raises:
        InvalidInputError: An argument or the model cannot be used, or there is no record to learn from.
    """
    samples = whole("samples", samples, least=2, remedy="One alone cannot be padded.")
    tolerance, progress = real_or_none("tolerance", tolerance, least=0), flag_or_none("progress", progress)
    least = Settings.of(extraction, extract).min_coverage
    settings = Settings.of({**extraction, "skip_bad": True, "min_coverage": 0.0}, extract)
    with (
        libraries_silent(progress),
        preparing(model, data, settings, quiet=True, keep_records=True, progress=progress) as ready,
    ):
        ordered = longest_first(ready.inputs.samples)
        few = [ordered[round(i * (len(ordered) - 1) / (samples - 1))] for i in range(samples)]
        few = list({sample.index: sample for sample in few}.values())
        step("comparing masks with their text")
        checks = [*_data_checks(ready), *mask_checks(ready.inputs, settings.completion_only)]
        checks.append(
            Check(
                "coverage", ready.tracked.coverage >= least, f"{ready.tracked.coverage:.2%}", f"≥ {least:.2%}"
            )
        )
        if tolerance is None:
            tolerance = tolerance_of(ready.network, ready.inputs.device, ready.autocast)
        checks.extend(_row_checks(ready, few, settings, tolerance))
    return Diagnosis(tuple(checks))


def _data_checks(ready: Extraction) -> list[Check]:
    inputs = ready.inputs
    left_out, samples = len(inputs.left_out), len(inputs.samples)
    reason = f"; the first: {inputs.left_out[0]}" if left_out else ""
    return [
        Check("records that can be used", left_out == 0, f"{samples} of {samples + left_out}{reason}", "all"),
        Check("columns that are not read", None, ", ".join(inputs.described) or "none", "descriptions alone"),
        Check("samples cut to max_length", None, f"{inputs.truncated} of {samples}", "few"),
    ]


def _row_checks(
    ready: Extraction, few: Sequence[Sample], settings: Settings, tolerance: float
) -> list[Check]:
    projection = SparseProjection(_DIM, seed=0)
    run = ready.run(projection=projection)
    # Where each sample has a batch of its own, there is nothing that could depend on others.
    apart = one_by_one(ready.inputs.samples, run.tokens)

    def rows_together(sizes: int) -> torch.Tensor | None:
        if apart:
            return None
        try:
            return rows(sizes)[0]
        except UnlikeSamplesError:  # the user's own, which go one by one
            return None

    def rows(sizes: int, length: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [run.compute(few[i : i + sizes], length) for i in range(0, len(few), sizes)]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    step(f"computing {counted(len(few), 'row')} in several ways")
    with run.capture.attached():
        alone, losses = rows(1)
        again, _ = rows(1)
        pairs, together = rows_together(2), rows_together(len(few))
        longest = max(sample.length for sample in few)
        _, positions = limits(ready.network)
        padded_to = longest + _PADDING if positions is None else min(longest + _PADDING, positions)
        padded = rows(1, padded_to)[0] if isinstance(few[0], Example) and not apart else None
    filled = [name for name, parameter in ready.network.named_parameters() if parameter.grad is not None]
    step("the same rows by plain autograd")
    plain, plain_losses = plain_rows(ready, few, settings, projection)
    names = [sample.index for sample in few]

    def same(
        name: str,
        found: torch.Tensor | None,
        expected: torch.Tensor,
        without: str = "one sample at a time" if apart else "no batch of unlike samples",
    ) -> Check:
        if found is None:
            return Check(name, None, without, "")
        return _compared(name, found, expected, names, tolerance)

    smallest = float(alone.norm(dim=1).min())
    threshold = threshold_of(ready.network)
    outliers = (
        []
        if threshold is None
        else [
            Check("llm_int8_threshold", None if apart else False, f"{threshold[1]:g} ({threshold[0]})", "0")
        ]
    )
    return [
        *outliers,
        same("rows again", again, alone),
        same(f"rows padded to {counted(padded_to, 'token')}", padded, alone, "no padding"),
        same("rows in pairs", pairs, alone),
        same(f"rows in one batch of {len(few)}", together, alone),
        same("rows by plain autograd", alone, plain),
        same("losses by a plain forward", losses[:, None], plain_losses[:, None]),
        Check("rows that are not zero", smallest > 0, f"shortest {smallest:.3g}", "> 0"),
        Check(".grad of parameters", not filled, f"{len(filled)} filled", "none filled"),
    ]


def _compared(
    name: str, found: torch.Tensor, expected: torch.Tensor, names: Sequence[int], tolerance: float
) -> Check:
    found, expected = found.double().cpu(), expected.double().cpu()
    lengths = expected.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    errors = (found - expected).norm(dim=1) / lengths
    worst = int(errors.nan_to_num(nan=torch.inf).argmax())
    error = float(errors[worst])
    return Check(name, error <= tolerance, f"off by {error:.1e} (row {names[worst]})", f"≤ {tolerance:.0e}")
