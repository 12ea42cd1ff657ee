"""The steps in order: dataset → extractor → store → selection → picks. Read this first."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spice_rs.arguments import real
from spice_rs.data.splits import with_split
from spice_rs.extraction.extractor import extract
from spice_rs.paths import local
from spice_rs.selection.foresight import check_for_json
from spice_rs.selection.result import Selection
from spice_rs.selection.selection import select
from spice_rs.store.store import GradientStore


def choose(
    model: Any,
    data: Any,
    folder: str | os.PathLike[str],
    *,
    share: float = 0.1,
    extraction: Mapping[str, Any] | None = None,
    selection: Mapping[str, Any] | None = None,
) -> tuple[GradientStore, Selection]:
    """Choose a share of the data for fine-tuning a model like `model`.

    Args:
        model: the proxy model, as for `extract`.
        data: the pool, as for `extract`.
        folder: gets `store` (kept and completed when called again) and `picks.jsonl`.
        share: share of the extracted rows to select, in (0, 1].
        extraction: further arguments of `extract`.
        selection: further arguments of `select`.

    Returns:
        The store and the selection.

    Raises:
        InvalidInputError: a record, a row or an argument cannot be used.
        StoreError: the store cannot be used, or was made with other settings.
    """
    share = real("share", share, above=0, most=1, remedy="The paper selects 0.1.")
    folder = Path(local(folder, "folder"))
    part = with_split(data, (extraction or {}).get("split"))
    check_for_json(part)
    store = extract(model, data, folder / "store", **(extraction or {}))
    picked = select(store, max(1, round(share * len(store))), **(selection or {}))
    picked.to_jsonl(folder / "picks.jsonl", part)
    return store, picked
