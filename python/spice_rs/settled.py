"""What the compiled half finds out once, found out at import: see `settle`."""

from __future__ import annotations

import numpy as np

from spice_rs import _core
from spice_rs.analysis.certificate import Choice
from spice_rs.selection.checkpoint import COLUMNS
from spice_rs.selection.options import Constraints, Control, Objective, Past, Windows
from spice_rs.store.options import Schema, Shards
from spice_rs.store.pool import Pool


def settle() -> None:
    """Hand one of each object to the core that it reads by the names of its attributes, every array there.

    The core keeps such names behind locks. A child that is forked while another thread takes one for the first time would
    wait for it without end; while a package is imported nobody does.
    """
    rows, floats, flags = np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool)
    made = (
        rows,
        *(flags if name == "overruled" else rows if name == "rows_read" else floats for name in COLUMNS),
    )
    _core.settle(
        (
            Pool([(np.zeros(0, np.uint8), "float32", 0)], 1, rows, "none", floats, False, floats),
            Objective(
                k=1,
                alpha=1.0,
                conflict_penalty=0.0,
                early_stop=None,
                fisher="full",
                method="greedy",
                search="lazy",
                hot_rows=None,
            ),
            Constraints(
                per_row={"multiplier": floats, "bonus": floats},
                initial=rows,
                include=rows,
                exclude=rows,
                groups=rows,
                minima=floats,
                maxima=floats,
                costs=floats,
                budget=1.0,
            ),
            Windows(rows, 1, 1),
            Past(made, (rows, rows, floats, rows), flags),
            Control(None, None, None, None, 1.0),
        ),
        Choice(rows, rows, rows),
        (
            Schema(1, "float32", None, "{}"),
            Shards(rows=None, bytes=None, seconds=None, fsync=True, writer=None),
        ),
    )
