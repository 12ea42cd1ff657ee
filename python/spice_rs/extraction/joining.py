"""Whether data are those of the rows that are there already, and what a store records of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spice_rs.data.matching import LAYOUT
from spice_rs.errors import StoreMismatchError
from spice_rs.extraction.inputs import Inputs
from spice_rs.extraction.settings import Settings
from spice_rs.own_json import parsed
from spice_rs.printable import short
from spice_rs.store.grown import write_grown
from spice_rs.store.store import STORE_FILE, GradientStore

_MOST_BYTES = 1 << 24


@dataclass(frozen=True)
class Dataset:
    """The data's part of a store's provenance.

    Attributes:
        recorded: What the store records of the data that it begins, or began, with.
        grown: What it is to note of data that have more records than those; None if they have not grown since.
        before: Records that there were before they grew.
    """

    recorded: dict[str, Any]
    grown: dict[str, Any] | None = None
    before: int = 0

    def note(self, out: str | os.PathLike[str]) -> None:
        """Have the store belong to the data as they are now."""
        if self.grown is not None:
            write_grown(out, self.grown)


def check_settings(out: str | os.PathLike[str], settings: Settings) -> None:
    """Refuse settings that are not those of a store that is there, before data and model are looked at.

    What its description does not say, or what cannot be read of it, is left to whoever opens it.

    Args:
        out: The store's folder.
        settings: What was asked for.

    Raises:
        StoreMismatchError: One of them is otherwise in the store.
    """
    try:
        with open(Path(out) / STORE_FILE, "rb") as file:
            described = parsed(file.read(_MOST_BYTES))
        known = described["provenance"]
        projection = dict(known["projection"])
        kind = projection.pop("kind")
    except (OSError, ValueError, LookupError, TypeError):
        return
    if kind == settings.projection == "none":
        projection.pop("dim", None)  # that of the model
    there = {"projection": kind, "dtype": described.get("dtype"), **projection}
    there |= {name: known[name] for name in ("max_length", "completion_only") if name in known}
    for name, value in there.items():
        if (own := getattr(settings, name, value)) != value:
            raise StoreMismatchError(
                f"{name}: found {short(own)}, expected {short(value)}, with which the rows in {os.fspath(out)} were"
                f" extracted. Give {name}={short(value)}, or extract into another folder."
            )


def dataset_of(inputs: Inputs, settings: Settings, earlier: GradientStore | None) -> Dataset:
    """Return what a store records of data, and of how they were read, for data that are given later.

    A store that is there goes on with the same records. It also grows with others where every one of its rows is still that
    of its record: more records have come, mostly at the end.

    Args:
        inputs: The data.
        settings: How they were read.
        earlier: The store, if it is there.

    Raises:
        StoreMismatchError: A row of the store is that of another record.
    """
    dataset: dict[str, Any] = inputs.provenance["dataset"]
    layout = {name: _plain(value) for name in LAYOUT if (value := getattr(settings, name)) is not None}
    there = None if earlier is None else earlier.provenance.get("dataset")
    if earlier is None or not isinstance(there, Mapping) or "fingerprint" not in there:
        return Dataset(dataset | layout)
    recorded: dict[str, Any] = earlier.first_dataset
    if there["fingerprint"] == dataset["fingerprint"]:
        return Dataset(recorded)  # the same records, whatever their columns were called
    differing, before = _differing(earlier, inputs), there.get("rows")
    same_kind = bool(there.get("own")) == bool(dataset.get("own")) and there.get("fields") == dataset.get(
        "fields"
    )
    if not differing.size and len(earlier) and same_kind and isinstance(before, int) and inputs.rows > before:
        return Dataset(recorded, dataset | layout, before)
    known = differing.size and earlier.record is not None
    first = f"; the first that differs: record {differing[0]}" if known else ""
    raise StoreMismatchError(
        f"out: {earlier.path} has rows of other data: found others in {inputs.source} ({inputs.rows} of them{first}),"
        f" expected those that its rows were extracted from ({before}), or those and more. Give these with data=…, or"
        " another folder with out=…."
    )


def _differing(store: GradientStore, inputs: Inputs) -> NDArray[np.int64]:
    """Rows of a store, ascending, that are not those of their records: these are others, gone, or cannot be used.

    Of a store of an earlier version, which does not know its records, nothing can be said but by all data at once.
    """
    order = np.argsort(store.index, kind="stable")
    rows, hashed = store.index[order], inputs.hashed
    if store.record is None or not len(hashed.rows):
        return rows
    places = np.minimum(np.searchsorted(hashed.rows, rows), len(hashed.rows) - 1)
    same = (hashed.rows[places] == rows) & (hashed.hashes[places] == store.record[order])
    differing: NDArray[np.int64] = rows[~same]
    return differing


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, Mapping):
        return dict(value)
    return value if isinstance(value, str) else list(value)
