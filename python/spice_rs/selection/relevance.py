"""What each row of a pool is worth to a target, for people who want scores."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from spice_rs.arguments import flag, shown
from spice_rs.errors import SpiceWarning
from spice_rs.progress import Progress
from spice_rs.selection.arguments import threads_wanted
from spice_rs.selection.target import Measured, chance_of, measure, zero_findings
from spice_rs.store.source import Source
from spice_rs.store.sources import open_source


def relevance(
    source: Any,
    target: Any,
    *,
    target_groups: Any = None,
    target_data: Any = None,
    partial: bool = False,
    threads: int | None = None,
    progress: Progress = None,
    dim: int | None = None,
    dtype: str | None = None,
) -> npt.NDArray[np.float64]:
    """Return the relevance r = cos(u − μ, t̄ − μ) of every row to a target.

    u are the unit rows of the source, μ is their mean, t̄ the mean of the target's unit rows: what a row teaches beyond
    what any row does, beside what the target asks for beyond it. `select(..., target=...)` picks by it. Rows of the target
    that the source has too are not left out here. No bit depends on threads, or on how rows are spread over files.

    Args:
        source: the pool, as for `select`.
        target: the rows of what is wanted, as for `select`.
        target_groups: (T,) label of each target row by dataset row, or the name of a column of `target_data`: then r to
            each group.
        target_data: what the target was extracted from, to look that column up in.
        partial: take the rows of stores whose extraction has not ended, which is refused otherwise.
        threads: threads to use; all cores by default, and at most 16 for each core.
        progress: show a bar, or do not; by default where a person can see it.
        dim: columns of a headerless source.
        dtype: element type of a headerless source.

    Returns:
        (n,) float64 in [−1, 1] by ascending dataset row, as a store's `index` is when it is sorted; with groups (n, g), in
        the order in which their labels first appear. 0 for rows of zeros.

    Warns:
        SpiceWarning: the target looks like the pool itself, or has rows of zeros.

    Raises:
        InvalidInputError: an argument cannot be used, the target is the source itself, or has only rows of zeros.
        UnfinishedStoreError: an extraction has not ended, and `partial` is false.
        StoreMismatchError: the target was extracted otherwise than the source.

    Example:
        >>> import numpy as np, spice_rs
        >>> pool = np.float32([[1, 0], [0, 1], [1, 1], [-1, 0]])
        >>> spice_rs.relevance(pool, np.float32([[2, 0]])).round(3)
        array([ 1.   , -0.701,  0.57 , -0.678])
    """
    opened = open_source(source, dim=dim, dtype=dtype)
    measured = scored(
        opened,
        target,
        target_groups=target_groups,
        target_data=target_data,
        partial=partial,
        threads=threads,
        progress=progress,
        dim=dim,
        dtype=dtype,
    )
    ordered = measured.relevance[opened.dataset_order()]
    return ordered[:, 0] if target_groups is None else ordered


def scored(
    source: Source,
    target: Any,
    *,
    target_groups: Any,
    target_data: Any,
    partial: bool,
    threads: int | None,
    progress: Progress,
    dim: int | None = None,
    dtype: str | None = None,
) -> Measured:
    """Return the target beside an open source, and warn of what it is not good for; arguments as for `relevance`."""
    threads, progress, partial = threads_wanted(threads), shown(progress), flag("partial", partial)
    source.check_finished(partial)
    measured = measure(
        source,
        target,
        target_groups,
        target_data,
        partial=partial,
        threads=threads,
        progress=progress,
        dim=dim,
        dtype=dtype,
    )
    found = measured.found
    for message in (
        *chance_of(measured.labels, found["norms"], found["noise"]),
        *zero_findings(measured.target.rows, found["zero_rows"]),
    ):
        warnings.warn(message, SpiceWarning, stacklevel=3)
    return measured
