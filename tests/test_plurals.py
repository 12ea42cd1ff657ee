"""A number stands with the noun of that number: "1 row", never "1 rows"."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import spice_rs
from command import run
from spice_rs import SpiceWarning
from spice_rs.nouns import counted

PACKAGE = Path(spice_rs.__file__).parent
NOUNS = "rows|records|picks|samples|columns|shards|batches|steps|windows|lines|turns|processes|labels|tensors|bytes"
ALONE = re.compile(rf"(?<![\d.,/-])1 (?:\w+ )?(?:{NOUNS})\b")
"""What is wrong in a text for people. A share, 0.1 rows, or a part, 3/1 rows, is none."""

NOT_COUNTED = {
    ("advice.py", "rows"),  # "its rows", "their rows"
    ("baselines.py", "picks"),  # k of a method that cannot do one
    ("baselines.py", "rows"),  # a constant
    ("extraction.py", "rows"),  # "3 of 9 rows"
    ("files.py", "bytes"),  # a file that is too large
    ("gradients.py", "rows"),  # rows a second
    ("layers.py", "samples"),  # a batch of several
    ("quotas.py", "rows"),  # a maximum need not be whole
    ("shown.py", "turns"),  # a constant
    ("splits.py", "records"),  # a table of sizes
    ("target.py", "rows"),
    ("tensors.py", "bytes"),  # of a tensor in a header
    ("tracking.py", "picks"),  # a verb
    ("values.py", "rows"),  # an example
}
"""File and noun of the texts where a value stands before a noun and is no number of it that can be 1."""


def numbered() -> Iterator[tuple[str, str, int]]:
    """File, noun and line of every noun in the plural that follows a value in a text, unless `counted` wrote both."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.JoinedStr):
                continue
            for value, after in zip(node.values, node.values[1:], strict=False):
                if not isinstance(value, ast.FormattedValue) or not isinstance(after, ast.Constant):
                    continue
                noun = re.match(rf" ({NOUNS})\b", str(after.value))
                if noun:
                    yield path.name, noun[1], node.lineno


def test_numbers_and_nouns_are_written_by_one_function() -> None:
    found = list(numbered())
    assert [each for each in found if each[:2] not in NOT_COUNTED] == []
    assert {each[:2] for each in found} == NOT_COUNTED, "what is excused is there"


@pytest.mark.parametrize(
    ("number", "nouns", "text"),
    [
        (1, ("row",), "1 row"),
        (0, ("row",), "0 rows"),
        (2, ("batch",), "2 batches"),
        (1, ("row was", "rows were"), "1 row was"),
    ],
)
def test_a_number_and_its_noun(number: int, nouns: tuple[str, ...], text: str) -> None:
    assert counted(number, *nouns) == text


def test_commands_on_one_row_and_one_pick(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All that is said of a store of a row and a column, of one pick, and of what goes wrong with them."""
    with spice_rs.GradientStore.create(tmp_path / "s", dim=1) as writer:
        writer.append(np.ones((1, 1), np.float32), [0], num_tokens=[1])
    with spice_rs.GradientStore.create(tmp_path / "two", dim=1) as writer:
        writer.append(np.float32([[1], [-2]]), [0, 1], num_tokens=[1, 1])
    (tmp_path / "pool.jsonl").write_text('{"text": "a", "source": "x"}\n{"text": "b", "source": "y"}\n')
    store, two, save = tmp_path / "s", tmp_path / "two", tmp_path / "sel.safetensors"
    for command in (
        ["info", store],
        ["select", store, "-k", 1, "--save", save],
        ["select", two, "-k", 1, "--data", tmp_path / "pool.jsonl", "--groups", "source"],
        ["select", two, "-k", 3],
        ["select", two, "--budget", 1, "--exclude", save],
        ["explain", save, store, 0],
        ["certify", save, store],
        ["certify", save, two],
        ["extend", save, two],
        ["extend", save, store, "-k", 2],
        ["compare", two, "-k", 1],
        ["curvature", store],
        ["agreement", store, two, "-k", 1],
        ["relevance", two, store],
        ["verify", store],
        ["compact", store],
        ["merge", tmp_path / "merged", store, two],
        ["convert", store, tmp_path / "other", "--dtype", "float32"],
        ["export", store, tmp_path / "rows.npy"],
        ["report", save, store, "--out", tmp_path / "page.html"],
        ["delete", two, 1],
        ["repair", store],
    ):
        run(*command)
        said = capsys.readouterr()
        text = (said.out + said.err).replace(str(tmp_path), "")
        assert not ALONE.search(text), (command, text)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always", SpiceWarning)
        selection = spice_rs.select(store, 1)
        texts = [
            repr(selection),
            selection.summary(),
            str(selection.composition),
            repr(spice_rs.GradientStore(store)),
        ]
        texts.append(repr(spice_rs.certify(selection, store)))
    for text in [*texts, *(str(each.message) for each in raised)]:
        assert not ALONE.search(text), text
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not ALONE.search(re.sub(r"<svg.*?</svg>|<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL))
