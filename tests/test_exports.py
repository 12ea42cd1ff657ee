"""A selection for people and for other programs: summary, frame, JSON Lines, Parquet, Dataset, LLaMA-Factory."""

from __future__ import annotations

import json
import sys
import warnings

import numpy as np
import pytest

import pools
import spice_rs
from command import run
from spice_rs import InvalidInputError, SpiceWarning, _core
from spice_rs.selection.picks import pick_lines

N = 40
ROWS = pools.law("opposed", N, 6, 2)
RECORDS = [
    {"instruction": f"do {i}", "input": "with ü" * (i % 2), "output": f"done {i}", "score": i / 7}
    for i in range(N)
]
LABELS = [("maths", "chat")[i % 3 % 2] for i in range(N)]
COSTS = [1 + i % 5 for i in range(N)]


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        yield


@pytest.fixture
def sel():
    return spice_rs.select(ROWS, 8, conflict_penalty=0.5)


def rich():
    return spice_rs.select(
        ROWS,
        budget=20,
        costs=COSTS,
        groups=LABELS,
        group_shares={"maths": (4, None)},
        exclude=[3],
        max_similarity=0.8,
        conflict_penalty=0.5,
    )


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


# --- for people ---------------------------------------------------------------------------------------------------


def test_the_summary_says_what_was_selected_and_how(sel):
    facts = dict(line.split("  ", 1) for line in sel.summary().splitlines())
    facts = {name: value.strip() for name, value in facts.items()}
    assert facts["picks"] == "8 of 40 rows of array of shape (40, 6), 6 columns of float32"
    assert facts["method"] == "greedy, full Fisher information"
    assert facts["settings"] == "α = 1, λ = 0.5, rows as 'none'"
    assert facts["stopped"] == "budget"
    assert facts["U"].startswith(f"{sel.log_det:.6g} nats")
    assert facts["gain Δ"].startswith(f"{sel.gains[0]:.4g} → {sel.gains[-1]:.4g}, half of the first after ")
    assert f" after {sel.half_life} picks" in facts["gain Δ"]
    assert facts["interaction"] == f"Σε is {sel.epsilon.sum() / sel.base.sum():.1%} of Σ base"
    assert f"{(sel.conflict > 0).sum()} picks have any" in facts["conflict"]
    assert facts["penalty"] == f"decided {sel.overruled.sum()} picks"
    assert facts["rows read"].startswith(f"{sel.rows_read.sum()} in all")
    assert facts["signal"] == f"median α‖g‖² {sel.signal:.3g}"
    assert "conditions" not in facts


def test_the_summary_names_conditions_costs_and_groups():
    sel = rich()
    text = sel.summary()
    assert "conditions" in text
    assert "exclude 1 rows, 2 groups, budget 20, max_similarity 0.8" in text
    assert f"{sel.costs.sum():g} of 20" in text
    assert f"{sel.compared['kept']}: costed U " in text
    assert f"{len(sel.near_duplicates)} skipped" in text
    assert any(line.split()[:1] == ["maths"] for line in text.splitlines())


def test_the_summary_of_other_runs():
    windows = spice_rs.select(ROWS, pool_size=10, select_per_window=2, fisher="diagonal").summary()
    assert "greedy, diagonal Fisher information, 2 rows of each window of 10" in windows
    assert "until Δ is 0.5 of the first" in spice_rs.select(ROWS, early_stop=0.5).summary()
    sampled = spice_rs.select(ROWS, 4, method="stochastic", epsilon=0.2).summary()
    assert "stochastic, full Fisher information, ε = 0.2" in sampled
    nothing = spice_rs.select(ROWS, 4, time_limit=1e-9)
    assert len(nothing) == 0
    assert "time_limit" in nothing.summary()
    assert "time_limit" in nothing._repr_html_()
    grown = spice_rs.extend(spice_rs.select(ROWS[:30], 4), ROWS)
    assert f"{grown.kept} picks kept of the smaller pool" in grown.summary()


def test_a_notebook_shows_the_facts_the_first_picks_and_the_groups(sel):
    page = sel._repr_html_()
    assert page.count("<table>") == page.count("</table>") == 2
    for rank in range(8):
        assert f"<tr><td>{rank}</td><td>{sel.indices[rank]}</td><td>{sel.gains[rank]:.4g}</td>" in page
    long = spice_rs.select(ROWS, 12)
    assert "<td>2 more</td>" in long._repr_html_()
    assert "<pre>group" in rich()._repr_html_()
    odd = spice_rs.select(ROWS, 4, groups=["<b>" if i % 2 else "a" for i in range(N)])
    assert "<b>" not in odd._repr_html_()


# --- columns ------------------------------------------------------------------------------------------------------


def test_a_frame_has_the_numbers_of_each_pick(sel):
    frame = sel.to_frame()
    expected = {
        "index": sel.indices,
        "gain": sel.gains,
        "base": sel.base,
        "epsilon": sel.epsilon,
        "conflict": sel.conflict,
        "score": sel.scores,
        "log_det": sel.log_dets,
        "overruled": sel.overruled,
        "rows_read": sel.rows_read,
    }
    for name, values in expected.items():
        assert np.array_equal(frame[name], values)
    assert frame["rank"].tolist() == list(range(8))
    assert frame.keys() == {*expected, "rank"}
    frame["gain"][:] = 0  # a copy
    assert sel.gains[0] > 0
    whole = rich()
    assert whole.to_frame()["group"].tolist() == whole.groups.tolist()
    assert whole.to_frame()["cost"].tolist() == whole.costs.tolist()


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_libraries_for_tables_take_the_frame(library):
    frame = rich().to_frame()
    table = pytest.importorskip(library).DataFrame(frame)
    assert list(table.columns) == list(frame)
    for name, values in frame.items():
        assert table[name].to_list() == values.tolist()


# --- files --------------------------------------------------------------------------------------------------------


def test_json_lines_are_those_of_the_command_line(sel, tmp_path, monkeypatch):
    for data in (None, RECORDS):
        sel.to_jsonl(tmp_path / "picks.jsonl", data)
        lines = (tmp_path / "picks.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == list(pick_lines(sel, data))
    with pytest.raises(InvalidInputError, match="none"):
        sel.to_jsonl(tmp_path / "none" / "picks.jsonl")
    monkeypatch.chdir(tmp_path)
    sel.to_jsonl("-")  # a file like any other: stdout is the command line's
    assert (tmp_path / "-").is_file()


def test_parquet_holds_the_records_and_the_numbers(sel, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "picks.parquet"
    sel.to_parquet(path)
    table = parquet.read_table(path)
    frame = sel.to_frame()
    assert table.column_names == list(frame)
    for name, values in frame.items():
        assert table[name].to_pylist() == values.tolist()
    assert json.loads(table.schema.metadata[b"spice_rs"]) == sel.settings
    sel.to_parquet(path, RECORDS)
    assert parquet.read_table(path).to_pylist() == list(pick_lines(sel, RECORDS))
    assert rich().to_parquet(path) is None
    assert parquet.read_table(path)["group"].to_pylist() == rich().groups.tolist()


def test_parquet_keeps_fields_that_the_first_record_lacks(sel, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    rare = int(sel.indices[5])
    records = [{**record, **({"note": "rare"} if i == rare else {})} for i, record in enumerate(RECORDS)]
    sel.to_parquet(tmp_path / "picks.parquet", records)
    notes = parquet.read_table(tmp_path / "picks.parquet")["note"].to_pylist()
    assert notes == [None] * 5 + ["rare"] + [None] * 2


def test_parquet_refuses_what_it_cannot_hold(sel, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    path = tmp_path / "picks.parquet"
    mixed = [{**record, "output": i if i % 2 else str(i)} for i, record in enumerate(RECORDS)]
    with pytest.raises(InvalidInputError, match="'output': found values of several kinds"):
        sel.to_parquet(path, mixed)
    with pytest.raises(InvalidInputError, match="a folder"):
        sel.to_parquet(tmp_path)
    assert not path.exists()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidInputError, match="pip install pyarrow"):
        sel.to_parquet(path)
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_comes_back_in_pick_order(sel):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list(RECORDS)
    picked = sel.dataset(dataset)
    assert isinstance(picked, datasets.Dataset)
    assert picked.to_list() == [RECORDS[row] for row in sel.indices]
    with pytest.raises(InvalidInputError, match=f"more than {sel.indices.max()}"):
        sel.dataset(dataset.select(range(int(sel.indices.max()))))
    for wrong in (RECORDS, datasets.DatasetDict({"train": dataset}), dataset.to_iterable_dataset(), None):
        with pytest.raises(InvalidInputError, match=r"expected a datasets\.Dataset"):
            sel.dataset(wrong)
    with pytest.raises(InvalidInputError, match="one of its splits"):
        sel.dataset({"train": dataset})


# --- LLaMA-Factory ------------------------------------------------------------------------------------------------


def as_llama_factory_reads(folder, name):
    """What LLaMA-Factory makes of an entry: (system, turns) or the text of each sample; None where it skips one.

    After its converters for "alpaca" and "sharegpt": `src/llamafactory/data/converter.py`.
    """
    entry = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))[name]
    lines = (folder / entry["file_name"]).read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    columns = entry["columns"]
    if entry.get("formatting", "alpaca") == "alpaca":
        return [sample[columns["prompt"]] for sample in samples]
    tags = entry["tags"]
    odd, even = (
        {tags["user_tag"]: "user", tags["observation_tag"]: "observation"},
        {tags["assistant_tag"]: "assistant", tags["function_tag"]: "function"},
    )
    read = []
    for sample in samples:
        turns = [(turn[tags["role_tag"]], turn[tags["content_tag"]]) for turn in sample[columns["messages"]]]
        system = ""
        if turns and turns[0][0] == tags["system_tag"]:
            system, turns = turns[0][1], turns[1:]
        roles = [(odd, even)[i % 2].get(role) for i, (role, _) in enumerate(turns)]
        if None in roles or len(turns) % 2:
            read.append(None)
        else:
            contents = [content for _, content in turns]
            read.append((system, list(zip(roles, contents, strict=True))))
    return read


@pytest.mark.parametrize("kind", ["alpaca", "prompt", "messages", "sharegpt"])
def test_llama_factory_reads_the_picks_in_any_layout(sel, tmp_path, kind):
    questions = [record["instruction"] for record in RECORDS]
    if kind == "alpaca":
        data = RECORDS
        questions = [r["instruction"] + (f"\n\n{r['input']}" if r["input"] else "") for r in RECORDS]
    elif kind == "prompt":
        data = [{"frage": r["instruction"], "antwort": r["output"], "score": 1} for r in RECORDS]
    else:
        roles = ("role", "content", "system", "user", "assistant") if kind == "messages" else (
            "from", "value", "system", "human", "gpt"
        )  # fmt: skip
        role, content, *names = roles
        data = [
            {
                ("messages" if kind == "messages" else "conversations"): [
                    {role: names[0], content: "be kind"},
                    {role: names[1], content: r["instruction"]},
                    {role: names[2], content: r["output"]},
                ]
            }
            for r in RECORDS
        ]
    columns = {"prompt": "frage", "response": "antwort"} if kind == "prompt" else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sel.to_llama_factory(tmp_path / "new" / "data", data, columns=columns)
    system = "be kind" if kind in ("messages", "sharegpt") else ""
    expected = [
        (system, [("user", questions[row]), ("assistant", RECORDS[row]["output"])])
        for row in sel.indices.tolist()
    ]
    assert as_llama_factory_reads(tmp_path / "new" / "data", "spice") == expected


def test_llama_factory_reads_plain_text(sel, tmp_path):
    sel.to_llama_factory(tmp_path, [{"text": f"täxt {i}"} for i in range(N)], name="plain")
    assert as_llama_factory_reads(tmp_path, "plain") == [f"täxt {row}" for row in sel.indices.tolist()]


def turns(*roles):
    return {"messages": [{"role": role, "content": f"{role} says"} for role in roles]}


def test_picks_that_llama_factory_skips_are_counted(sel, tmp_path):
    data = [turns("user", "assistant") for _ in range(N)]
    a, b, c, d = sel.indices[[1, 3, 4, 6]].tolist()
    data[a] = turns("assistant", "user", "assistant")
    data[b] = turns("system", "user", "user", "assistant")
    data[c] = turns("system", "user", "assistant", "function", "assistant")  # fine
    data[d] = turns("user", "assistant", "user")
    with pytest.warns(
        SpiceWarning, match=rf"3 of 8 picks \(the first: data\[{a}\]\) will be skipped"
    ) as caught:
        sel.to_llama_factory(tmp_path, data)
    assert caught[0].filename == __file__
    read = as_llama_factory_reads(tmp_path, "spice")
    assert [i for i, sample in enumerate(read) if sample is None] == [1, 3, 6]
    assert [role for role, _ in read[4][1]] == ["user", "assistant", "observation", "assistant"]


def test_other_data_sets_of_llama_factory_stay(sel, tmp_path):
    info = tmp_path / "dataset_info.json"
    info.write_text(json.dumps({"alpaca_en": {"file_name": "ä.json"}, "theirs": {"hf_hub_url": "x/y"}}))
    sel.to_llama_factory(tmp_path, RECORDS, name="ours-10.pct")
    sel.head(3).to_llama_factory(tmp_path, RECORDS, name="ours-10.pct")  # ours, and so replaced
    entries = json.loads(info.read_text(encoding="utf-8"))
    assert list(entries) == ["alpaca_en", "theirs", "ours-10.pct"]
    assert entries["alpaca_en"] == {"file_name": "ä.json"}
    assert len(as_llama_factory_reads(tmp_path, "ours-10.pct")) == 3
    before = info.read_bytes()
    for name, says in {"theirs": "another data set", "a,b": "name: found", "../x": "name: found"}.items():
        with pytest.raises(InvalidInputError, match=says):
            sel.to_llama_factory(tmp_path, RECORDS, name=name)
    assert info.read_bytes() == before


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (RECORDS[:5], "found no record"),
        ([{"input_ids": [1, 2], "labels": [1, 2]}] * N, "found token ids"),
        ([{"text": "a"}, {"prompt": "b", "response": "c"}] * (N // 2), "one of the two"),
        ([{"instruction": "a"}] * N, "expected the response"),
        ([{"messages": [{"role": "assistant", "content": "a"}], "tools": [{}]}] * N, "found tools"),
        ([{"messages": [{"role": "assistant", "tool_calls": [{}]}]}] * N, "calls of them"),
    ],
)
def test_what_llama_factory_cannot_read_is_refused(sel, tmp_path, data, says):
    with pytest.raises(InvalidInputError, match=says):
        sel.to_llama_factory(tmp_path, data)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_dataset_info_is_named(sel, tmp_path):
    for contents in ("{", "[]"):
        (tmp_path / "dataset_info.json").write_text(contents)
        with pytest.raises(InvalidInputError, match=r"dataset_info\.json: found"):
            sel.to_llama_factory(tmp_path, RECORDS)
    with pytest.raises(InvalidInputError, match="found a file, expected a folder"):
        sel.to_llama_factory(tmp_path / "dataset_info.json", RECORDS)


# --- the commands -------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    write_lines(tmp_path / "pool.jsonl", RECORDS)
    return tmp_path


def test_select_writes_parquet_and_for_llama_factory(place, sel, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    arguments = [
        "select",
        place / "rows.npy",
        "-k",
        8,
        "--conflict-penalty",
        0.5,
        "--data",
        place / "pool.jsonl",
    ]
    assert run(*arguments, "--out", place / "picks.parquet", "--llama-factory", place / "lf") == 0
    assert parquet.read_table(place / "picks.parquet").to_pylist() == list(pick_lines(sel, RECORDS))
    read = as_llama_factory_reads(place / "lf", "spice")
    assert [turns[1] for _, turns in read] == [("assistant", f"done {row}") for row in sel.indices.tolist()]
    assert "8 samples as 'spice'" in capsys.readouterr().err


def test_export_picks_writes_a_saved_selection(place, sel, capsys):
    saved, pool = place / "sel.safetensors", place / "pool.jsonl"
    sel.save(saved)
    assert run("export-picks", saved) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == list(pick_lines(sel))
    assert run("export-picks", saved, "--data", pool, "--out", place / "picks.jsonl") == 0
    assert capsys.readouterr().out == ""
    lines = [json.loads(line) for line in (place / "picks.jsonl").read_text().splitlines()]
    assert lines == list(pick_lines(sel, RECORDS))
    arguments = ["--data", pool, "--llama-factory", place / "lf", "--name", "mine"]
    assert run("export-picks", saved, *arguments, "--columns", "prompt=instruction,response=output") == 0
    assert capsys.readouterr().out == ""
    read = as_llama_factory_reads(place / "lf", "mine")
    assert [turns[0] for _, turns in read] == [("user", f"do {row}") for row in sel.indices.tolist()]


def test_targets_are_checked_before_the_selection(place, capsys, monkeypatch):
    monkeypatch.setattr(_core, "select", None)
    (place / "lf").write_text("")
    rows, pool = place / "rows.npy", place / "pool.jsonl"
    for arguments, says in (
        (["--llama-factory", place / "lf"], "without --data"),
        (["--llama-factory", place / "lf", "--data", pool], "found a file"),
        (["--out", place / "none" / "picks.parquet"], "none"),
    ):
        assert run("select", rows, "-k", 3, *arguments) == 2
        assert says in capsys.readouterr().err
