"""What a user may not read or write is said in one line that names it, before any work."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
READ_LATER = ("extract: ", "plan: ", "doctor: ", "run", "Python: extract, data")
"""Commands whose work begins with a look at what cannot be read."""


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    """What came of each case, by its name."""
    pytest.importorskip("torch")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, HERE / "permission_run.py", folder], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    cases = {case.pop("name"): case for case in map(json.loads, done.stdout.splitlines())}
    if "no permissions here" in cases:
        pytest.skip("this user may pass over permissions, and cannot give that up")
    return cases


@pytest.mark.slow
def test_what_may_not_be_touched_is_named_in_one_line(found: dict[str, dict[str, Any]]) -> None:
    assert len(found) > 100
    for name, case in found.items():
        said, where = case["said"], f"{name}: {case}"
        # A command ends with 2 and has said a line; a function raises an error of ours.
        assert (case["code"] == 2) is (case["kind"] == ""), where
        assert case["kind"] in ("", "StoreError", "InvalidInputError"), where
        assert case["locked"] in said, where
        assert "permission" in said.lower(), where
        assert ": found " in said, where
        assert ", expected " in said, where
        remedy = said.rpartition(", expected ")[2]
        assert "ive " in remedy, where  # the permission, or give another
        assert "\n" not in said, where
        assert "Traceback" not in said, where
        assert "Errno" not in said, where


@pytest.mark.slow
def test_it_is_found_before_any_work_and_leaves_nothing_behind(found: dict[str, dict[str, Any]]) -> None:
    for name, case in found.items():
        assert case["left"] == [], f"{name}: {case}"
        if not name.startswith(READ_LATER):
            assert case["worked"] == [], f"{name}: {case}"
