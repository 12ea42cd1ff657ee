"""How many cases a test takes. Counts are those of `make test`; `make quick` takes a twentieth of each."""

from __future__ import annotations

import os
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

QUICK = os.environ.get("SPICE_TESTS") == "quick"

NEW_CASES = "SPICE_NEW_CASES" in os.environ
"""Draw other cases every time: to search for faults. Otherwise the same ones, so that a red run is the change's."""


def some(count: int, least: int = 1) -> int:
    """As many of `count` as this run takes."""
    return max(least, count // 20) if QUICK else count


# The one profile of all properties. Timings are not tests: a slow machine fails none.
settings.register_profile(
    "tests", max_examples=some(100, least=5), deadline=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("tests")


def cases(count: int = 100, **options: object) -> settings:
    """The settings of a property that is looked at on so many drawn cases."""
    return settings(max_examples=some(count, least=5), **options)


def for_cases(look: Callable, *strategies: SearchStrategy, count: int, same: bool = not NEW_CASES) -> None:
    """Call `look` on so many drawn cases, the same every time unless new ones are asked for."""
    cases(count, derandomize=same, database=None)(given(*strategies)(look))()
