"""What several test files share."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest

# Models of a few thousand weights and small matrices: threads would only wait for each other, and for those of others.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are loaded

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "benches")]  # oracle.py, pools.py, …; laws.py

import counts  # noqa: E402, F401 - the profile of all properties

SHARED = Path(os.environ.get("SPICE_SHARED", Path(__file__).parents[2] / "shared"))


def pytest_collection_finish():
    """Take what torch and transformers have loaded out of every later garbage collection."""
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()  # or what they have bound is said to leak


@pytest.fixture
def shared_file():
    """Path of a file of the shared reference data; skips where it is absent."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.is_file():
            pytest.skip(f"no reference data {name}")
        return path

    return find


@pytest.fixture(scope="session")
def proxy(tmp_path_factory):
    """The folder of a tiny Llama and a tokenizer of single letters."""
    from tiny import save_proxy

    return save_proxy(tmp_path_factory.mktemp("proxy"))


@pytest.fixture(autouse=True)
def no_signs(monkeypatch):
    """Commands that are called in this process say no steps, however slow the machine is; tests of signs undo this."""
    from spice_rs import signs

    monkeypatch.setattr(signs, "FIRST", 3600)
    monkeypatch.setattr(signs, "PATIENCE", 3600)
