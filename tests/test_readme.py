"""What the README says is true."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import spice_rs

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_its_examples_run(capsys):
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    runnable = [block for block in blocks if "…" not in block]
    assert len(runnable) >= 2
    for block in runnable:
        exec(block, names)
    assert "Selection(100 of 2000 rows" in capsys.readouterr().out


def test_the_signature_it_shows_is_the_signature():
    shown = re.search(r"spice_rs\.select\(source, (.*?), …\)", README, re.DOTALL)
    assert shown is not None
    parameters = inspect.signature(spice_rs.select).parameters
    for name, default in re.findall(r"(\w+)=([^,\s]+)", shown[1]):
        assert repr(parameters[name].default).replace("'", '"') == default
