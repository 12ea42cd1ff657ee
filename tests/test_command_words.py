"""What the command line says: of a wrong line in one line, in its help, and in the words of its options."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch  # noqa: F401 - commands that load it say so

import spice_rs
from command import run
from spice_rs import cli
from spice_rs.commands import ahead
from spice_rs.commands.options import argument_docs
from spice_rs.commands.wording import in_flags
from spice_rs.errors import InvalidInputError
from spice_rs.interface import speaking, spoken
from tiny import make_records

PACKAGE = Path(spice_rs.__file__).parent
LOADING = ("extract", "plan", "doctor", "run")


@pytest.fixture(scope="module")
def parsers():
    """Name → parser of every command, with all of its options."""
    found = dict(cli._parsers([])[1])
    for name in LOADING:
        found[name] = cli._parsers([name])[1][name]
    return found


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "found no command, expected one: extract, then select, for example."),
        ("selct", "selct: no such command; did you mean select?"),
        ("xyzzy", "xyzzy: no such command. `spice-rs --help` has all of them."),
        ("--vesion", "--vesion: no such option of spice-rs; did you mean --version?"),
        ("select s --outt x", "--outt: no such option of spice-rs select; did you mean --out?"),
        ("select s --xyzzy x", "--xyzzy: no such option of spice-rs select. `spice-rs select --help` has all."),
        ("select s -z 3", "-z: no such option of spice-rs select"),
        ("select s --se 1", "--se: found the beginning of --select-per-window, --seed and --search, expected one of them."),
        ("select s -k x", "-k: found 'x', expected a number of rows, or a share of them such as 0.1 or 10%. A whole one"),
        ("select s -k 1.5", "-k: found 1.5, expected a whole number of at least 1, or a share"),
        ("select s --time-limit soon", "--time-limit: found 'soon', expected a number."),
        ("select s --alpha aut", "--alpha: found 'aut', expected a number or auto; did you mean auto?"),
        ("select s --fisher ful", "--fisher: found 'ful', expected one of full, diagonal, scalar; did you mean full?"),
        ("select s --normalize", "--normalize: found no value behind it, expected one."),
        ("select s --force=1", "--force: found the value '1', expected none behind it."),
        ("select s t", "t: found this beside all that is known. A whole one: `spice-rs select SOURCE [options]`"),
        ("select", "found no SOURCE, expected one."),
        ("certify", "found no SELECTION and no SOURCE, expected each of them."),
        ("extract --data d", "found no --model and no --out, expected each of them."),
        ("extract --model m --modle x", "--modle: no such option of spice-rs extract; did you mean --model?"),
        ("extract --model m --data d --out o --columns a", "--columns: found 'a', expected NAME=COLUMN,NAME=COLUMN."),
        ("explain a b seven", "ROW: found 'seven', expected a whole number."),
        ("convert a b --dtype int", "--dtype: found 'int', expected one of int8, float16, bfloat16, float32"),
        ("select ~nobody-here/s", "SOURCE: ~nobody-here/s: found no user 'nobody-here', expected ~ or ~user"),
    ],
)  # fmt: skip
def test_a_wrong_line_takes_one_line(line, says, capsys):
    assert run(*line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"spice-rs: {says}"), err
    assert err.count("\n") == 1
    assert not re.search(r"invalid|argument|unrecognized|\?\.|\.\.", err)


def test_values_that_begin_with_a_dash_are_no_options(capsys):
    for line in (
        "select none.npy --alpha -1",
        "select none.npy -k5",
        "select none.npy --out -",
        "select none.npy -- -k",
    ):
        run(*line.split())
        assert "no such option" not in capsys.readouterr().err


def test_help_of_every_command_is_in_groups_says_what_holds_without_an_option_and_fits(parsers, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert {"extract", "select", "export-picks", "demo"} <= set(parsers)
    for name, parser in parsers.items():
        text = parser.format_help()
        assert max(len(line) for line in text.split("examples:")[0].splitlines()) <= 80, name
        rest = dict(parser.parts())["options"]
        assert [action.dest for action in rest] == ["help"], name
        for action in parser._actions:
            assert action.help, (name, action.dest)
            assert not re.search(
                r"\bNone\b|\bTrue\b|\bFalse\b|spice_rs|\(N,\)|\bdict\b|Dataset\b", action.help
            )
            assert not re.search(r"\b[a-z]+_[a-z]+=|[A-Z]{3,}_[A-Z]{3,}", action.help), (name, action.help)
            if action.default not in (None, False, "-", "==SUPPRESS==") and action.dest != "folder":
                assert re.search(
                    rf"default: {re.escape(str(action.default))}\b|default: (on|--)|\bby default", action.help
                )
    titles = [title for title, _ in parsers["extract"].parts()]
    assert titles[:3] == ["model", "data", "what is learned of a record"]
    for name in ("extract", "select"):
        assert f"examples:\n  spice-rs {name} " in parsers[name].format_help()


def test_the_help_of_all_lists_every_command_in_the_order_of_the_flow(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    names = [name for names in cli._FLOW.values() for name in names]
    assert set(names) == set(cli._parsers([])[1]) - {"run-schedule", "write-report"}
    places = [re.search(rf"^  {name} ", text, re.MULTILINE).start() for name in names]
    assert places == sorted(places)
    assert (
        names.index("extract") < names.index("select") < names.index("explain") < names.index("export-picks")
    )


def test_explanations_are_read_from_docstrings():
    def function():
        """Do it.

        Args:
            k: rows, `n` of them:
                all by default.
            long_name: a text
                over two lines.

        Returns:
            k: nothing of this.
        """

    assert argument_docs(function) == {
        "k": "rows, n of them: all by default.",
        "long_name": "a text over two lines.",
    }
    assert argument_docs(lambda: None) == {}
    for each in (spice_rs.select, spice_rs.extract, spice_rs.compare, spice_rs.write_report):
        assert set(argument_docs(each)) >= set(each.__annotations__) - {"return", "extraction"}


FLAGS = {
    "k": "-k",
    "max_length": "--max-length",
    "skip_bad": "--skip-bad",
    "columns": "--columns",
    "ignore_columns": "--ignore-columns",
    "split": "--split",
    "alpha": "--alpha",
    "source": "SOURCE",
    "dim": "--dim",
}


@pytest.mark.parametrize(
    ("python", "shell"),
    [
        ("max_length is 1, expected 2", "--max-length is 1, expected 2"),
        ("k: found 0. Give k.", "-k: found 0. Give -k."),
        ("source: found none", "SOURCE: found none"),
        ("set max_length=64 or lower", "set --max-length 64 or lower"),
        ("raise max_length.", "raise --max-length."),
        ("pass skip_bad=True to go on", "pass --skip-bad to go on"),
        ("skip_bad=False", "--no-skip-bad"),
        ("with split=None", "with no --split"),
        ("Add split='a b'.", "Add --split 'a b'."),
        ("ignore_columns=['a', 'b'],", "--ignore-columns a,b,"),
        ("columns={'prompt': 'frage', 'response': 'x'}", "--columns prompt=frage,response=x"),
        ("max_length=64 (--max-length 64), or", "--max-length 64, or"),
        ("with columns=…", "with --columns …"),
        ("sel: dim: found 6, expected 5", "sel: dim: found 6, expected 5"),
        (
            "as that was: `spice_rs.extract(data=…, out=…, like='my store')`.",
            "as that was: `spice-rs extract --data … --out … --like 'my store'`.",
        ),
        # What is quoted is not ours, and neither are paths, other names, and words of English.
        ("found 'max_length=3' in pool", "found 'max_length=3' in pool"),
        ("/data/max_length=3/x.npy: no such file", "/data/max_length=3/x.npy: no such file"),
        ("/data/max_length.npy: alpha is small", "/data/max_length.npy: alpha is small"),
        ("llm_int8_threshold=0 and my_max_length=1", "llm_int8_threshold=0 and my_max_length=1"),
        ("f(load_in_8bit=True): the columns split", "f(load_in_8bit=True): the columns split"),
    ],
)  # fmt: skip
def test_messages_speak_of_options(python, shell):
    assert in_flags(python, FLAGS) == shell


def messages():
    """Every text of the package with at least two words that is no docstring, values in it replaced."""
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.parent.name == "commands" or file.name == "cli.py":
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        told = [n.value for n in ast.walk(tree) if isinstance(n, ast.Expr)]
        inside = {id(part) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for part in n.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                text = "".join(
                    part.value
                    if isinstance(part, ast.Constant)
                    else "'x'"
                    if part.conversion == ord("r")
                    else "7"
                    for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
                text = node.value
            else:
                continue
            if node not in told and text.count(" ") > 1:
                yield file.relative_to(PACKAGE), node.lineno, text


def test_no_message_names_an_argument_that_the_command_line_calls_otherwise(parsers):
    words = cli._words(None, parsers.values())
    names = "|".join(name for name in words if not name.startswith("as_"))
    seen = 0
    for file, line, text in messages():
        if file.name in ("page.py", "plots.py") and "<" in text:
            continue
        shown = in_flags(text, words)
        seen += shown != text
        plain = re.sub(r"'[^']*'|\"[^\"]*\"|\w+\([^()]*\)", "", shown)
        assert not re.search(rf"(?<![\w-])({names})=", plain), f"{file}:{line}: {shown}"
        assert not re.search(rf"(?<![\w.-])({'|'.join(n for n in words if '_' in n)})(?![\w(])", plain), (
            f"{file}:{line}: {shown}"
        )
    assert seen > 100


def test_what_is_kept_of_a_message_is_in_the_words_of_the_command_line():
    message = "unit was left out: alpha: found 1e+20, expected less; set max_length=64"
    assert spoken(message) == message
    with speaking(lambda text: in_flags(text, {"alpha": "--alpha", "max_length": "--max-length"})):
        assert spoken(message) == (
            "unit was left out: --alpha: found 1e+20, expected less; set --max-length 64"
        )
    assert spoken(message) == message


def test_every_note_of_a_comparison_is(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32)
    np.save("x.npy", rows * 1e-8)
    np.save("t.npy", rows[:3] * 1e-8)
    monkeypatch.setattr("spice_rs.analysis.comparison.upper_bound", _no_bound)
    methods = "spice,windows,facility_location,random"
    for arguments in (
        ("--alpha", 1e14),
        ("--alpha", 1, "--conflict-penalty", 1e-9),
        ("--alpha", 1e14, "--normalize", "none", "--target", "t.npy"),
        ("--alpha", 1e14, "--markdown"),
        ("--alpha", 1e14, "--json"),
    ):
        assert run("compare", "x.npy", "-k", 5, "--methods", methods, *arguments) == 0
        out = capsys.readouterr().out
        assert "There is no bound of U: -k: found 5, expected fewer; set --conflict-penalty 0" in out
        plain = out if "--json" not in arguments else " ".join(json.loads(out)["notes"])
        assert not re.search(r"(?<![\w-])(alpha|k|methods|normalize|conflict_penalty)(=|: found)", plain), (
            plain
        )
    assert "--alpha: found" in out


def _no_bound(*_):
    raise InvalidInputError("k: found 5, expected fewer; set conflict_penalty=0")


@pytest.mark.slow
def test_records_that_are_left_out_are_listed_in_words_of_the_command_line(proxy, tmp_path, capsys):
    records = [
        *make_records(3),
        {"instruction": "a b", "unheard": "c"},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]},
        {"instruction": "a " * 90, "output": "b"},
        {"input_ids": [1, 2], "labels": "x"},
        {"messages": [{"role": "stranger", "content": "a"}]},
        {"instruction": 3, "output": "a"},
    ]
    data = tmp_path / "pool.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in records))
    options = ("--model", proxy, "--data", data, "--skip-bad", "--max-length", 24)
    assert run("extract", *options, "--out", tmp_path / "s", "--dim", 8) == 0
    listed = [json.loads(line) for line in (tmp_path / "s.left-out.jsonl").read_text().splitlines()]
    assert len(listed) >= 5
    assert run("doctor", *options[:4], "--max-length", 24) in (0, 1)
    told = [each["detail"] for each in listed] + [capsys.readouterr().out]
    assert any("--" in each for each in told)
    assert not [
        each for each in told if re.search(r"\b(columns|preference|max_length|skip_bad)=|max_length", each)
    ]


def test_messages_of_python_name_no_options():
    for file, line, text in messages():
        if file.name == "demo.py":
            continue
        plain = re.sub(r"spice-rs [a-z-]+ [^.;`]*|pip install [^)]*", "", text)
        assert not re.search(r"(?<![\w-])--[a-z]", plain), f"{file}:{line}: {text}"


@pytest.mark.parametrize("name", ["store", "data", "out", "source", "seed", "k"])
def test_a_path_that_is_called_as_an_argument_stays_a_path(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("select", name, "-k", 1) == 2
    assert f"spice-rs: {name}: found no such file or folder" in capsys.readouterr().err


def test_what_needs_no_torch_to_be_seen_is_said_without_it(tmp_path):
    (tmp_path / "pool.jsonl").write_text('{"text": "a"}\n')
    line = ["extract", "--model", "m", "--out", str(tmp_path / "s")]
    data = ["--data", str(tmp_path / "pool.jsonl")]
    lines = {
        "--outt: no such option of spice-rs extract; did you mean --out?": [*line, *data, "--outt", "x"],
        "none.jsonl: no such file": [*line, "--data", str(tmp_path / "none.jsonl")],
        "--like: ": [*line, *data, "--like", str(tmp_path / "none")],
        "plan.jsonl: no such file": ["plan", "--model", "m", f"--data={tmp_path / 'plan.jsonl'}"],
    }
    script = (
        "import sys\nsys.modules['torch'] = None\nfrom spice_rs.cli import main\n"
        f"for line in {list(lines.values())!r}:\n    assert main(line) == 2, line\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    told = result.stderr.splitlines()
    assert len(told) == len(lines)
    for said, each in zip(lines, told, strict=True):
        assert said in each
        assert "pip install" not in each


def test_the_options_that_are_known_ahead_are_those_of_the_command(parsers):
    known = {*ahead.options(), "-h", "--help"}
    assert known == set(parsers["extract"]._option_string_actions)
