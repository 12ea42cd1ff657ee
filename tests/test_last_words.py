"""How commands end: pipes that nobody reads, closed streams, Ctrl-C at any time; and what they say in between."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pools
import spice_rs
from command import run
from spice_rs.commands.wording import in_flags
from spice_rs.early import is_command
from spice_rs.nearness import meant
from spice_rs.nouns import counted

pytestmark = pytest.mark.filterwarnings("ignore::spice_rs.SpiceWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a pool, a selection from it, and a store."""
    folder = tmp_path_factory.mktemp("ends")
    rows = pools.law("clustered", 400, 8, 3).astype(np.float32)
    np.save(folder / "rows.npy", rows)
    spice_rs.select(rows, 20).save(folder / "sel")
    spice_rs.select(rows, 1).save(folder / "one")
    with spice_rs.GradientStore.create(folder / "store", dim=8) as writer:
        writer.append(rows, np.arange(400))
    return folder


def spice(folder, *arguments, **streams):
    """`spice-rs ARGUMENTS` in a process of its own, in that folder."""
    return subprocess.run(
        [sys.executable, "-m", "spice_rs", *map(str, arguments)], cwd=folder, text=True, **streams
    )


@pytest.fixture
def unread():
    """The end of a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


SAYING = [
    ("select", "rows.npy", "-k", 300),
    ("select", "rows.npy", "-k", 300, "--out", "/dev/stdout"),
    ("certify", "sel", "rows.npy"),
    ("explain", "sel", "rows.npy", 1, 2, 3),
    ("info", "store", "--json"),
    ("curvature", "rows.npy"),
    ("compare", "rows.npy", "-k", 3, "--methods", "random"),
    ("--help",),
    ("--version",),
    ("select", "--help"),
]


@pytest.mark.parametrize("arguments", SAYING, ids=lambda each: " ".join(map(str, each[:4])))
def test_a_command_whose_output_nobody_reads_ends_without_a_word_of_it(place, unread, arguments):
    done = spice(place, *arguments, stdout=unread, stderr=subprocess.PIPE)
    assert done.returncode == 141
    assert not re.search("Traceback|Exception|rror|fault|roken", done.stderr), done.stderr


def test_messages_that_nobody_reads_end_nothing(place, unread, tmp_path):
    picks = tmp_path / "picks.jsonl"
    options = ("-k", 5, "--normalize", "unit", "--conflict-penalty", 1e-9, "--out", picks)
    done = spice(place, "select", "rows.npy", *options, stdout=subprocess.PIPE, stderr=unread)
    assert done.returncode == 0
    assert len(picks.read_text().splitlines()) == 5
    assert spice(place, "select", "nowhere", "-k", 1, stderr=unread, stdout=subprocess.PIPE).returncode == 2


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&-"])
@pytest.mark.parametrize(
    "arguments", ["select rows.npy -k 2", "info store", "--version", "certify sel rows.npy"]
)
def test_a_stream_that_is_closed_is_no_fault(place, closed, arguments):
    line = f"{sys.executable} -m spice_rs {arguments} {closed}"
    done = subprocess.run(["bash", "-c", line], cwd=place, capture_output=True, text=True)
    assert (done.returncode, "fault" in done.stderr) == (0, False), done.stderr


# --- Ctrl-C ------------------------------------------------------------------------------------------------------

INTERRUPTED = """
import sys
program, module = sys.argv[1:3]
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
sys.argv = [program, "info", "store"]
from spice_rs.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    "module",
    [
        "spice_rs._core",
        "numpy",
        "spice_rs.selection.result",
        "spice_rs.settled",
        "spice_rs.cli",
        "spice_rs.data.splits",
    ],
)
def test_an_interrupted_import_is_one_line_of_the_command_and_a_traceback_of_others(place, module):
    def interrupted(program):
        command = [sys.executable, "-c", INTERRUPTED, program, module]
        return subprocess.run(command, cwd=place, capture_output=True, text=True)

    ours = interrupted("/usr/bin/spice-rs")
    assert (ours.returncode, ours.stderr, ours.stdout) == (130, "spice-rs: interrupted\n", "")
    other = interrupted("train.py")
    assert other.returncode not in (0, 130)
    assert "KeyboardInterrupt" in other.stderr


def test_the_command_is_known_by_its_name():
    assert is_command("/venv/bin/spice-rs", ["python", "/venv/bin/spice-rs"])
    assert is_command("-m", ["python", "-m", "spice_rs", "info"])
    assert not is_command("-m", ["python", "-m", "pytest"])
    assert not is_command("spice.py", ["python", "spice.py"])


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("select", ("select", "rows.npy", "-k", 3), "spice-rs: interrupted\n"),
        ("certify", ("certify", "sel", "rows.npy"), "spice-rs: interrupted\n"),
        ("compare", ("compare", "rows.npy", "-k", 3), "spice-rs: interrupted\n"),
        ("select", ("select", "rows.npy", "-k", 3, "--checkpoint", "sel"), "so far are in sel, and the same"),
        ("compact", ("compact", "store"), "every row is there once, and the same command goes on\n"),
        ("delete", ("delete", "store", 3), "the same command deletes them\n"),
        ("repair", ("repair", "store"), "no row was lost"),
        ("verify", ("verify", "store"), "spice-rs: interrupted\n"),
    ],
)  # fmt: skip
def test_an_interruption_says_what_is_kept_if_anything_is(place, monkeypatch, capsys, name, arguments, says):
    home = spice_rs.GradientStore if hasattr(spice_rs.GradientStore, name) else spice_rs

    @functools.wraps(getattr(home, name))
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(home, name, interrupted)
    monkeypatch.chdir(place)
    assert run(*arguments) == 130
    said = capsys.readouterr().err
    assert said.endswith(says) if says.endswith("\n") else says in said


# --- what is said ------------------------------------------------------------------------------------------------


def test_a_selection_is_told_in_a_sentence(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    assert run("select", "rows.npy", "-k", 1) == 0
    said = capsys.readouterr().err
    assert re.match(r"1 of 400 rows picked: gain [\d.]+ at first and [\d.]+ at last; log det ", said)
    assert run("extend", "sel", "rows.npy") == 0
    said += capsys.readouterr().err
    assert re.search(
        r"20 of 400 rows picked \(20 picks kept, the first 20 in order; 0 rows read again\): gain", said
    )
    assert said.count("; stopped at the budget; median α‖g‖² ") == 2
    assert "Selection(" not in said
    for reason in ("early_stop", "exhausted", "time_limit"):
        assert reason in spice_rs.report.summary._STOPPED


def test_a_first_pick_has_no_numbers_beside_others(place, capsys, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(place)
    assert run("report", "one", "rows.npy", "--out", tmp_path / "r.html") == 0
    out = capsys.readouterr().out
    assert not re.search(r"\bnan\b|0 steps", out)
    assert re.search(r"^tightness +– +– +–$", out, re.MULTILINE)
    assert "Nothing is correlated" in out
    text = re.sub(r"<svg.*?</svg>|<[^>]*>", " ", (tmp_path / "r.html").read_text(), flags=re.DOTALL)
    assert not re.search(r"\bnan\b", text)
    assert "Nothing is correlated" in text
    shown = spice_rs.analyze(spice_rs.Selection.load("sel"), "rows.npy").summary()
    assert re.search(r"^conflict +– +\S+ +\d", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("compare", "rows.npy", "-k", 3, "--methods", "rando"), "did you mean random? Choose"),
        (("compare", "rows.npy", "-k", 3, "--methods", "spice,top-k"), "did you mean top_k? Choose"),
        (("select", "rows.npy"), "Give -k …, --budget … (of cost), or --early-stop … to end by itself."),
        (("select", "rows.npy", "-k", 3, "--group-shares", "pool"), "found it without --groups, expected both"),
        (("select", "rows.npy", "-k", 3, "--costs", "x"), "without --budget, expected both. Give --budget, or"),
        (("select", "rows.npy", "-k", 3, "--prior-weight", 3), "without --prior, expected both. Give --prior, or"),
        (("select", "rows.npy", "-k", 3, "--name", "x"), "--name: found it without --llama-factory"),
        (("select", "rows.npy", "-k", 3, "--columns", "a=b"), "--columns: found it without --llama-factory"),
        (("certify", "sel", "rows.npy", "--data", "x.jsonl"), "--data: found it without the name of a column, expected"
            " one in --weights"),
        (("curvature", "rows.npy", "--data", "x.jsonl"), "--data: found it without the name of a column, expected one in"
            " --weights"),
        *(((command, "", *more), "found an empty path, expected the name") for command, more in (
            ("info", ()), ("verify", ()), ("select", ("-k", 3)), ("export-picks", ()), ("merge", ("store",)))),
        (("select", "rows.npy", "-k", 3, "--out", ""), "found an empty path"),
        (("select", "rows.npy", "-k", 3, "--data", ""), "found an empty path"),
    ],
)  # fmt: skip
def test_what_was_meant_is_named_in_words_of_the_command_line(place, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(place)
    assert run(*arguments) == 2
    assert says in capsys.readouterr().err


def test_nearly_right_names_are_named_wherever_one_of_some_is_expected(place, tmp_path):
    np.savez(tmp_path / "x.npz", gradients=np.eye(3), other=np.eye(4))
    for wrong, right in (
        (lambda: spice_rs.select(f"{tmp_path / 'x.npz'}::gradient", 2), "gradients"),
        (lambda: spice_rs.select(np.eye(3), 2, preset="papre"), "paper"),
    ):
        with pytest.raises(spice_rs.InvalidInputError, match=rf"[dD]id you mean '?{right}'?\?"):
            wrong()
    assert meant("zzz", ["paper"]) == meant(None, ["paper"]) == ""


def test_rows_that_are_not_there_are_told_by_delete(place, tmp_path, capsys):
    store = spice_rs.GradientStore.merge([place / "store"], tmp_path / "s")
    assert store.delete([1, 1, 900])["absent"] == 1
    assert run("delete", tmp_path / "s", 2, 401, 402, 403) == 0
    assert "1 row deleted, 3 rows were not there (401-403), 398 left" in capsys.readouterr().out
    assert run("delete", tmp_path / "s", 2, "--json") == 0
    assert json.loads(capsys.readouterr().out)["absent"] == 1


def test_words_become_options_where_they_are_given_or_left_out():
    flags = {"k": "-k", "a": "A", "budget": "--budget", "data": "--data", "weights": "--weights"}
    for python, shell in (
        ("Select a smaller k.", "Select a smaller -k."),
        ("any k rows, k = 3 and k-center", "any k rows, k = 3 and k-center"),
        ("Give budget, or leave data out.", "Give --budget, or leave --data out."),
        ("Give the budget; without data that are joined", "Give the budget; without data that are joined"),
        ("found it without weights.npy", "found it without weights.npy"),
    ):
        assert in_flags(python, flags) == shell


# --- numbers of things -------------------------------------------------------------------------------------------

PACKAGE = Path(spice_rs.__file__).parent
TOLD = [
    *sorted((PACKAGE / "commands").glob("*.py")),
    *(PACKAGE / name for name in ("demo.py", "report/summary.py", "report/page.py", "schedule/result.py",
      "selection/result.py", "analysis/result.py", "analysis/agreement.py", "analysis/certificate.py",
      "analysis/curvature.py")),
]  # fmt: skip
NOUNS = "rows|records|samples|picks|shards|bytes|windows|columns|tokens|batches|steps|groups|runs|files|tasks|layers|pairs"


def plurals(tree):
    """Nouns in the plural behind a number that may be 1, in what is told and not raised; "n of m rows" is for any."""
    raised = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Raise) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and id(node) not in raised:
            before = ""
            for value, after in zip(node.values, node.values[1:], strict=False):
                if isinstance(value, ast.Constant):
                    before = value.value
                elif isinstance(after, ast.Constant) and not before.endswith(("of ", "of any ")):
                    text = ast.unparse(value)
                    if "of" not in text and (match := re.match(rf" ({NOUNS})\b", after.value)):
                        yield node.lineno, f"{text}{match[0]}"


@pytest.mark.parametrize("file", TOLD, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_numbers_of_things_are_told_by_one_helper(file):
    assert not [*plurals(ast.parse(file.read_text(encoding="utf-8")))]


def test_one_is_singular():
    assert [counted(n, "row") for n in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert (counted(1, "batch"), counted(2, "batch"), counted(3, "process")) == (
        "1 batch",
        "2 batches",
        "3 processes",
    )
    assert counted(1, "row was", "rows were") == "1 row was"
    assert counted(12345, "byte", form=",") == "12,345 bytes"
    assert len([*plurals(ast.parse('f"{n} rows and {m} of {k} rows"'))]) == 1


def test_a_store_of_one_row_is_told_in_the_singular(tmp_path, capsys):
    with spice_rs.GradientStore.create(tmp_path / "s", dim=1) as writer:
        writer.append(np.ones((1, 1), np.float32), [0])
    assert run("verify", tmp_path / "s") == 0
    assert run("export", tmp_path / "s", tmp_path / "x.npy") == 0
    out = capsys.readouterr().out
    assert "sound, 1 shard, 1 row, " in out
    assert "1 row × 1 column" in out


def test_damage_that_a_repair_can_mend_says_so(place, tmp_path, capsys):
    spice_rs.GradientStore.merge([place / "store"], tmp_path / "s")
    shard = next((tmp_path / "s").glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(
        spice_rs.CorruptStoreError, match=r"let GradientStore\.repair set it aside and extract again"
    ):
        spice_rs.GradientStore(tmp_path / "s")
    assert run("info", tmp_path / "s") == 2
    assert "let `spice-rs repair` set it aside and extract again" in capsys.readouterr().err
    assert run("repair", tmp_path / "s") == 0
    (tmp_path / "s" / "store.json").write_text("{}")
    with pytest.raises(spice_rs.StoreError) as caught:
        spice_rs.GradientStore(tmp_path / "s")
    assert "GradientStore.repair" not in str(caught.value)
