"""Choose fine-tuning data by greedy log-determinant Fisher information with a gradient-conflict penalty (SPICE).

Data flows one way: dataset → extractor → store → selection → report. `extract` writes a gradient store and needs
torch; everything else needs numpy alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spice_rs._core import __version__
from spice_rs.errors import (
    CorruptStoreError,
    InvalidInputError,
    SpiceError,
    SpiceWarning,
    StoreError,
    StoreMismatchError,
)
from spice_rs.growth import extend
from spice_rs.result import NearDuplicates, Selection
from spice_rs.selection import log_det, select
from spice_rs.store import GradientStore

if TYPE_CHECKING:
    from spice_rs.diagnosis import Diagnosis, doctor
    from spice_rs.extractor import extract
    from spice_rs.planning import Plan, plan

__all__ = [
    "CorruptStoreError",
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
    "doctor",
    "extend",
    "extract",
    "log_det",
    "plan",
    "select",
]


_NEED_TORCH = {
    "Diagnosis": "diagnosis",
    "doctor": "diagnosis",
    "extract": "extractor",
    "Plan": "planning",
    "plan": "planning",
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
