"""Choose fine-tuning data by greedy log-determinant Fisher information with a gradient-conflict penalty (SPICE).

Data flows one way: dataset → extractor → store → selection → analysis, report. `extract` writes a gradient store and needs
torch; everything else needs numpy alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spice_rs._core import __version__
from spice_rs.analysis.certificate import Certificate, certify
from spice_rs.analysis.curvature import Curvature, curvature
from spice_rs.errors import (
    CorruptStoreError,
    InvalidInputError,
    SpiceError,
    SpiceWarning,
    StoreError,
    StoreMismatchError,
)
from spice_rs.selection.growth import extend
from spice_rs.selection.result import NearDuplicates, Selection
from spice_rs.selection.selection import log_det, select
from spice_rs.store.store import GradientStore

if TYPE_CHECKING:
    from spice_rs.diagnosis.doctor import Diagnosis, doctor
    from spice_rs.extraction.extractor import extract
    from spice_rs.extraction.planning import Plan, plan

__all__ = [
    "Certificate",
    "CorruptStoreError",
    "Curvature",
    "Diagnosis",
    "GradientStore",
    "InvalidInputError",
    "NearDuplicates",
    "Plan",
    "Selection",
    "SpiceError",
    "SpiceWarning",
    "StoreError",
    "StoreMismatchError",
    "__version__",
    "certify",
    "curvature",
    "doctor",
    "extend",
    "extract",
    "log_det",
    "plan",
    "select",
]


_NEED_TORCH = {
    "Diagnosis": "diagnosis.doctor",
    "doctor": "diagnosis.doctor",
    "extract": "extraction.extractor",
    "Plan": "extraction.planning",
    "plan": "extraction.planning",
}
"""Name → module."""


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first used: `import spice_rs` must not need it."""
    module = _NEED_TORCH.get(name)
    if module is not None:
        try:
            return getattr(import_module(f"spice_rs.{module}"), name)
        except ModuleNotFoundError as error:
            message = f"{error}: extraction needs more packages; pip install 'spice-rs[extract]'"
            raise ModuleNotFoundError(message, name=error.name) from error
    raise AttributeError(f"module 'spice_rs' has no attribute {name!r}")
