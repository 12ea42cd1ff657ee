"""Choose fine-tuning data by greedy log-determinant Fisher information with a gradient-conflict penalty (SPICE).

Data flows one way: dataset → extractor → store → selection → analysis, report. `extract` writes a gradient store and needs
torch; everything else needs numpy alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spice_rs import early  # isort: skip  (before all that takes time)
from spice_rs._core import __version__
from spice_rs.analysis.agreement import Agreement, agreement
from spice_rs.analysis.certificate import Certificate, certify
from spice_rs.analysis.coverage import Coverage, coverage
from spice_rs.analysis.curvature import Curvature, curvature
from spice_rs.analysis.explained import Explanation
from spice_rs.analysis.explanation import explain
from spice_rs.analysis.picks import analyze
from spice_rs.analysis.result import Analysis
from spice_rs.errors import (
    CorruptStoreError,
    InvalidInputError,
    SpiceError,
    SpiceWarning,
    StoreError,
    StoreMismatchError,
    UnfinishedStoreError,
)
from spice_rs.report.page import write_report
from spice_rs.selection.composition import Composition
from spice_rs.selection.growth import extend
from spice_rs.selection.relevance import relevance
from spice_rs.selection.result import NearDuplicates, Selection
from spice_rs.selection.selection import log_det, select
from spice_rs.selection.target import Target
from spice_rs.settled import settle
from spice_rs.store.store import GradientStore

if TYPE_CHECKING:
    from spice_rs.analysis.comparison import Comparison, compare
    from spice_rs.diagnosis.doctor import Diagnosis, doctor
    from spice_rs.extraction.extractor import extract
    from spice_rs.extraction.planning import Plan, plan
    from spice_rs.schedule.online import OnlineSelector, select_online
    from spice_rs.schedule.result import Schedule
    from spice_rs.schedule.schedule import run_schedule

__all__ = [
    "Agreement",
    "Analysis",
    "Certificate",
    "Comparison",
    "Composition",
    "CorruptStoreError",
    "Coverage",
    "Curvature",
    "Diagnosis",
    "Explanation",
    "GradientStore",
    "InvalidInputError",
    "NearDuplicates",
    "OnlineSelector",
    "Plan",
    "Schedule",
    "Selection",
    "SpiceError",
    "SpiceWarning",
    "StoreError",
    "StoreMismatchError",
    "Target",
    "UnfinishedStoreError",
    "__version__",
    "agreement",
    "analyze",
    "certify",
    "compare",
    "coverage",
    "curvature",
    "doctor",
    "explain",
    "extend",
    "extract",
    "log_det",
    "plan",
    "relevance",
    "run_schedule",
    "select",
    "select_online",
    "write_report",
]


_ON_FIRST_USE = {
    "Comparison": "analysis.comparison",
    "compare": "analysis.comparison",
    "Diagnosis": "diagnosis.doctor",
    "doctor": "diagnosis.doctor",
    "extract": "extraction.extractor",
    "OnlineSelector": "schedule.online",
    "Plan": "extraction.planning",
    "plan": "extraction.planning",
    "Schedule": "schedule.result",
    "run_schedule": "schedule.schedule",
    "select_online": "schedule.online",
}
"""Name → module: what needs torch, and what not every program needs."""


settle()
del early, settle


def __getattr__(name: str) -> Any:
    """Import a module when a name of it is first used: `import spice_rs` must be fast, and must not need torch."""
    module = _ON_FIRST_USE.get(name)
    if module is not None:
        try:
            return getattr(import_module(f"spice_rs.{module}"), name)
        except ModuleNotFoundError as error:
            message = f"{error}: extraction needs more packages; pip install 'spice-rs[extract]'"
            raise ModuleNotFoundError(message, name=error.name) from error
    raise AttributeError(f"module 'spice_rs' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Name what is imported on first use too, for completion."""
    return sorted({*globals(), *__all__})
