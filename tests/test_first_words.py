"""What a newcomer reads of a selection: kept picks, records, early stops, settings that a saved selection does not have."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

import pools
import spice_rs
from command import run
from spice_rs import InvalidInputError, SpiceWarning, StoreMismatchError

ROWS = pools.law("clustered", 80, 8, 3).astype(np.float32)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        yield


# --- extend --------------------------------------------------------------------------------------------------------


@pytest.fixture
def grown(tmp_path):
    """A pool whose new row is the second pick, and shifts the others."""
    basis = np.diag(np.linspace(9, 2, 8)).astype(np.float32)
    late = np.float32([[0, 8.5, 0.4, 0, 0, 0, 0, 0]])
    np.save(tmp_path / "old.npy", basis)
    np.save(tmp_path / "new.npy", np.vstack([basis, late]))
    before = spice_rs.select(tmp_path / "old.npy", 6)
    before.save(tmp_path / "before")
    return tmp_path, before, spice_rs.extend(before, tmp_path / "new.npy")


def test_picks_are_kept_wherever_they_stand(grown, capsys):
    folder, before, after = grown
    assert before.indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert after.indices.tolist()[:2] == [0, 8]
    kept = sum(row in before.indices for row in after.indices)
    assert (after.kept, after.unchanged) == (kept, 1)
    assert kept >= 4
    new = [rank for rank, row in enumerate(after.indices.tolist()) if row not in before.indices]
    assert after.settings["extended"] == {"picks": 6, "unchanged": 1, "new": new}
    for k in range(1, 7):
        head = after.head(k)
        assert head.kept == sum(row in before.indices for row in head.indices)
        assert head.unchanged == 1
    assert f"{kept} picks kept, the first 1 in order" in repr(after)
    assert f"{kept} picks kept of the smaller pool, which had 6" in after.summary()
    assert "; 1 new, the first 1 unchanged" in after.summary()
    after.save(folder / "after")
    again = spice_rs.Selection.load(folder / "after")
    assert (again.kept, again.unchanged) == (kept, 1)
    assert run("extend", folder / "before", folder / "new.npy", "--out", folder / "p.jsonl") == 0
    assert f"{kept} picks kept" in capsys.readouterr().err
    pytest.importorskip("matplotlib")
    spice_rs.write_report(after, folder / "new.npy", folder / "r.html", sweeps=False)
    assert f"{kept} picks kept of the smaller pool" in (folder / "r.html").read_text()
    twice = spice_rs.extend(after, folder / "new.npy")
    assert (twice.kept, twice.unchanged) == (6, 6)
    assert before.kept is before.unchanged is None


def test_a_file_of_an_earlier_version_says_nothing_of_what_it_did_not_count(grown):
    folder, _, after = grown
    after.settings.pop("extended")
    after.settings["kept"] = 1
    after.save(folder / "old")
    old = spice_rs.Selection.load(folder / "old")
    assert old.kept is None
    assert "kept" not in old.summary()
    assert "kept" not in spice_rs.extend(old, folder / "new.npy").settings


# --- explain -------------------------------------------------------------------------------------------------------


def data(prompt="instruction", response="response", extra=()):
    return [{prompt: f"What is {i}?", response: f"It is {i}.", **dict(extra)} for i in range(80)]


def test_explanations_show_the_records_of_the_row_and_of_its_nearest_picks():
    sel = spice_rs.select(ROWS, 10)
    for found in spice_rs.explain(sel, ROWS, range(20), data=data()):
        assert found.record == f'prompt "What is {found.row}?", answer "It is {found.row}."'
        assert found.nearest_record == f'prompt "What is {found.nearest}?", answer "It is {found.nearest}."'
        if found.redundant_with is not None:
            assert f"What is {found.redundant_with}?" in found.redundant_record
        shown = str(found).splitlines()
        assert shown[0] == found.text
        assert shown[1] == f"  row {found.row}: {found.record}"
        assert shown[2].startswith(
            f"  row {found.nearest}, nearest, cosine {found.nearest_cosine:.3f}: prompt"
        )
        assert found.to_json()["record"] == found.record
        assert f"row={found.row}, reason={found.reason!r}" in repr(found)
        assert found.record in repr(found)
    without = sel.explain(3, ROWS)
    assert without.record is without.nearest_record is None
    assert "give data to see it" in repr(without)
    assert str(without) == without.text
    assert "record" not in without.to_json()


@pytest.mark.parametrize(
    ("records", "given", "words"),
    [
        (
            data("frage", "antwort"),
            {"columns": {"prompt": "frage", "response": "antwort"}},
            'prompt "What is 7?", answer',
        ),
        (data("frage", "antwort"), {}, 'frage "What is 7?", antwort "It is 7."'),
        (data(extra={"notes": "text that no layout reads"}), {}, 'prompt "What is 7?", answer "It is 7."'),
        ([{"text": f"text {i}"} for i in range(80)], {}, 'text "text 7"'),
        (
            [{"prompt": f"p{i}", "chosen": "good", "rejected": "bad"} for i in range(80)],
            {},
            'prompt "p7", answer "good"',
        ),
        (
            [
                {
                    "messages": [
                        {"role": "user", "content": f"q{i}"},
                        {"role": "assistant", "content": "word " * 90 + "end."},
                    ]
                }
                for i in range(80)
            ],
            {},
            'prompt "q7", answer "word word',
        ),
        (
            [
                {"row": i, "instruction": f"What is {i}?", "response": f"It is {i}."}
                for i in reversed(range(80))
            ],
            {"index_column": "row"},
            'prompt "What is 7?", answer "It is 7."',
        ),
    ],
)
def test_records_of_any_layout(records, given, words):
    [found] = spice_rs.explain(spice_rs.select(ROWS, 10), ROWS, 7, data=records, **given)
    assert found.record.startswith(words)
    assert len(found.record) < 400
    if "word word" in words:
        assert found.record.endswith('end."')


def test_the_command_shows_them_or_says_how(tmp_path, capsys):
    np.save(tmp_path / "pool.npy", ROWS)
    spice_rs.select(tmp_path / "pool.npy", 10).save(tmp_path / "sel")
    (tmp_path / "pool.jsonl").write_text(
        "".join(json.dumps(each) + "\n" for each in data("frage", "antwort"))
    )
    command = ("explain", tmp_path / "sel", tmp_path / "pool.npy", 7, 8)
    assert run(*command, "--data", tmp_path / "pool.jsonl", "--columns", "prompt=frage,response=antwort") == 0
    shown = capsys.readouterr()
    assert 'row 7: prompt "What is 7?", answer "It is 7."' in shown.out
    assert ", nearest, cosine" in shown.out
    assert shown.err == ""
    assert run(*command) == 0
    shown = capsys.readouterr()
    assert "--data" not in shown.out
    assert "--data" in shown.err
    assert run(*command, "--columns", "prompt=frage") == 2
    assert "columns: found them without --data" in capsys.readouterr().err
    short = tmp_path / "short.jsonl"
    short.write_text('{"instruction": "q", "response": "a"}\n')
    assert run(*command, "--data", short) == 2
    assert "found no record" in capsys.readouterr().err


# --- settings of a saved selection ---------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """A store of sums, and selections from it under its own and another scale."""
    with spice_rs.GradientStore.create(tmp_path / "store", dim=8, dtype="float32", reduction="sum") as writer:
        writer.append(ROWS, index=np.arange(80), num_tokens=np.arange(1, 81, dtype=np.int32))
    spice_rs.select(tmp_path / "store", 9, alpha=2.0, normalize="unit", conflict_penalty=0.3).save(
        tmp_path / "sel"
    )
    spice_rs.select(tmp_path / "store", 9).save(tmp_path / "mean")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("command", ["explain", "report"])
@pytest.mark.parametrize(
    ("file", "options", "refused"),
    [
        ("sel", [], None),
        ("sel", ["--normalize", "unit"], None),
        ("sel", ["--alpha", "2"], None),
        ("sel", ["--conflict-penalty", "0.3", "--alpha", "2.0", "--normalize", "unit"], None),
        ("sel", ["--normalize", "none"], "normalize: found 'none' for"),
        ("sel", ["--normalize", "auto"], "normalize: found 'auto' for"),
        ("sel", ["--normalize", "mean"], "expected 'unit'"),
        ("sel", ["--alpha", "1"], "alpha: found 1.0 for"),
        ("sel", ["--alpha", "auto"], "alpha: found 'auto' for"),
        ("sel", ["--conflict-penalty", "0.1"], "--conflict-penalty: found 0.1 for"),
        ("sel", ["--conflict-penalty", "nan"], "--conflict-penalty: found nan"),
        ("sel", ["--dim", "9"], "dim: found 9 for"),
        ("sel", ["--dtype", "float16"], "dtype: found 'float16' for"),
        ("sel", ["--dim", "8", "--dtype", "float32"], None),
        ("mean", ["--normalize", "auto"], None),
        ("mean", ["--normalize", "mean", "--alpha", "1", "--conflict-penalty", "0.1"], None),
        ("mean", ["--normalize", "sum"], "expected 'mean'"),
    ],
)
def test_settings_beside_a_saved_selection_are_its_own_or_refused(
    saved, capsys, command, file, options, refused
):
    pytest.importorskip("matplotlib")
    more = [7] if command == "explain" else ["--out", saved / "r.html", "--no-sweeps", "--steps", 2]
    code = run(command, saved / file, saved / "store", *more, *options)
    err = capsys.readouterr().err
    assert code == (0 if refused is None else 2), err
    if refused is not None:
        assert refused in err
        assert not (saved / "r.html").exists()


@pytest.mark.parametrize("command", ["certify", "extend", "export-picks"])
@pytest.mark.parametrize(
    "option", ["--normalize", "--alpha", "--conflict-penalty", "--preset", "--early-stop", "--fisher"]
)
def test_commands_without_settings_refuse_them(saved, command, option):
    source = [] if command == "export-picks" else [saved / "store"]
    assert run(command, saved / "sel", *source, option, "1") == 2


@pytest.mark.parametrize("command", ["certify", "extend"])
@pytest.mark.parametrize("option", [("--dim", 9), ("--dtype", "float16")])
def test_a_shape_that_is_not_the_sources_is_refused(saved, capsys, command, option):
    assert run(command, saved / "sel", saved / "store", *option) == 2
    assert f"{option[0][2:]}: found" in capsys.readouterr().err
    for source in (ROWS, saved / "store", spice_rs.GradientStore(saved / "store")):
        with pytest.raises(InvalidInputError, match=option[0][2:]):
            spice_rs.select(source, 3, **{option[0][2:]: option[1]})


CONDITIONS = {
    "groups": ["a", "b"] * 40,
    "costs": np.arange(1.0, 81.0),
    "initial": [3],
    "exclude": [5],
    "weights": np.arange(1.0, 81.0),
    "prior": np.arange(80.0),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_what_a_selection_was_made_without_is_refused(tmp_path, name):
    pytest.importorskip("matplotlib")
    sel = spice_rs.select(ROWS, 9)
    value = {name: CONDITIONS[name]}
    for call in (
        lambda: spice_rs.analyze(sel, ROWS, **value),
        lambda: spice_rs.explain(sel, ROWS, 7, **value),
        lambda: spice_rs.write_report(sel, ROWS, tmp_path / "r.html", **value),
    ):
        with pytest.raises(
            InvalidInputError, match=f"{name}: found it for a selection that was made without"
        ):
            call()
    if name in ("weights", "initial"):
        with pytest.raises(StoreMismatchError, match=f"{name}: found values"):
            spice_rs.certify(sel, ROWS, **value)
    if name in ("initial", "exclude"):
        assert spice_rs.explain(sel, ROWS, 7, **{name: []})


def test_a_comparison_says_what_a_selection_was_picked_with():
    mine = spice_rs.select(ROWS, 5, normalize="unit", alpha=3.0, weights=np.linspace(1, 2, 80))
    sides = spice_rs.compare(ROWS, 5, {"mine": mine, "spice": "spice"}, certificate=False)
    assert (
        "mine: its rows were picked with alpha=3.0 and not 1.0, with normalize='unit' and not 'none', with weights,"
        " which do not count here." in sides.notes
    )
    same = spice_rs.compare(ROWS, 5, {"mine": spice_rs.select(ROWS, 5)}, certificate=False)
    assert not any("its rows were picked" in note for note in same.notes)
    with pytest.raises(StoreMismatchError):
        spice_rs.compare(ROWS + 1, 5, {"mine": mine})


# --- early stops ---------------------------------------------------------------------------------------------------


def said(*arguments, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sel = spice_rs.select(*arguments, **options)
    return sel, [str(each.message) for each in caught if "early_stop" in str(each.message)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 3, "preset": "paper+"}, "ended no run: all rows asked for were picked before Δ fell to 0.5"),
        ({"k": 80, "early_stop": 1e-9}, "no row was left before"),
        ({"early_stop": 1e-9}, "no row was left before"),
        ({"k": 1, "preset": "paper+"}, "nothing was to follow"),
        ({"early_stop": 0.9999, "conflict_penalty": 0.0}, "ended the run after the first pick"),
        ({"pool_size": 20, "select_per_window": 2, "early_stop": 1e-3}, "ended no window"),
        (
            {"pool_size": 20, "select_per_window": 9, "early_stop": 0.9999},
            "ended every window after the first pick",
        ),
        ({"k": 40, "preset": "paper+"}, None),
        ({"preset": "paper+"}, None),
        ({"k": 3, "preset": "paper"}, None),
        ({"k": 3}, None),
    ],
)
def test_an_early_stop_that_did_nothing_or_all_says_so(tmp_path, options, words):
    sel, messages = said(ROWS, **options)
    assert len(messages) == (0 if words is None else 1)
    sel.save(tmp_path / "sel")
    summary = spice_rs.Selection.load(tmp_path / "sel").summary()
    assert ("early stop" in summary) == (words is not None)
    if words is not None:
        assert words in messages[0]
        finding, _, refused = messages[0].partition(" For any of this")
        assert finding in summary
        assert ("leave preset out" in refused) == ("preset" in options)
        assert "leave it out" in messages[0]


def test_the_threshold_that_is_named_would_have_stopped_the_run():
    sel, [message] = said(ROWS, 5, early_stop=0.01)
    threshold = float(message.split("Raise it to ")[1].split()[0])
    stopped = spice_rs.select(ROWS, 5, early_stop=threshold)
    assert stopped.stop_reason == "early_stop"
    assert stopped.indices.tolist() == sel.indices.tolist()[: len(stopped)]
    assert len(stopped) < 5


@pytest.mark.slow
def test_it_is_said_by_the_command_the_report_and_extend(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    np.save(tmp_path / "a.npy", ROWS[:70])
    np.save(tmp_path / "b.npy", ROWS)
    command = ("select", tmp_path / "a.npy", "-k", 3, "--preset", "paper+", "--save", tmp_path / "sel")
    assert run(*command, "--out", tmp_path / "p.jsonl") == 0
    assert "warning: --early-stop 0.5 ended no run" in capsys.readouterr().err
    assert run("extend", tmp_path / "sel", tmp_path / "b.npy", "--out", tmp_path / "q.jsonl") == 0
    assert "warning: --early-stop 0.5 ended no run" in capsys.readouterr().err
    assert (
        run("report", tmp_path / "sel", tmp_path / "a.npy", "--out", tmp_path / "r.html", "--no-sweeps") == 0
    )
    assert "early_stop=0.5 ended no run" in (tmp_path / "r.html").read_text()
    timed, messages = said(ROWS, 40, early_stop=1e-9, time_limit=1e-9)
    assert messages == [] or timed.stop_reason != "time_limit"
