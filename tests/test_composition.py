"""What picks are made of beside their pool: measured, kept, shown, and warned of where nobody asked for it."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import spice_rs
from command import run
from spice_rs import CorruptStoreError, Selection, SpiceWarning
from spice_rs.report.shares import SHOWN_LABELS, beside_pool
from spice_rs.report.summary import as_html
from spice_rs.selection.composition import ALIKE, MOST_LABELS
from spice_rs.selection.lopsided import OPENING
from spice_rs.selection.saved import SavedRun, write_run
from spice_rs.store.rows import RowReader
from spice_rs.store.source import RowLabels
from spice_rs.store.sources import Source

N, DIM = 400, 16
SOURCES = ["chat", "code", "maths", "play"]


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rows_of(seed: int = 0, n: int = N) -> np.ndarray:
    return draw(seed).standard_normal((n, DIM)).astype(np.float32)


def pool_of(rows, tokens=None, reduction=None, labels=None) -> Source:
    """Rows with what a store records of them, and labels as the command line looks them up."""
    found = None
    if labels is not None:
        names = sorted(set(labels))
        found = RowLabels(names, np.array([names.index(each) for each in labels]), "source")
    return Source(
        [(np.ascontiguousarray(rows).reshape(-1).view(np.uint8), "float32", len(rows))],
        len(rows),
        rows.shape[1],
        "float32",
        "pool",
        num_tokens=None if tokens is None else np.asarray(tokens, np.int32),
        reduction=reduction,
        keep_alive=rows,
        labels=found,
    )


def short_answers_win(labels=None) -> Source:
    """Sums over tokens of gradients that cancel: means are long where answers are short."""
    tokens = draw(1).integers(5, 400, N)
    rows = rows_of() * np.sqrt(tokens)[:, None].astype(np.float32)
    return pool_of(rows, tokens, "sum", labels)


def one_source_wins() -> Source:
    """Rows of one source of four are three times as long."""
    labels = [SOURCES[each] for each in draw(2).integers(0, 4, N)]
    longer = np.where(np.array(labels) == "play", 3.0, 1.0)
    return pool_of(rows_of() * longer[:, None].astype(np.float32), labels=labels)


def said(source, *args, **options) -> tuple[Selection, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SpiceWarning)
        selection = spice_rs.select(source, *args, **options)
    return selection, [str(each.message) for each in caught if each.category is SpiceWarning]


def lopsided(texts: list[str]) -> list[str]:
    return [text for text in texts if text.startswith(OPENING)]


# --- what is measured -----------------------------------------------------------------------------------------------


def test_tokens_and_labels_are_those_of_the_rows():
    labels = [SOURCES[each] for each in draw(2).integers(0, 4, N)]
    source = short_answers_win(labels)
    exclude = np.flatnonzero(np.array(labels) == "chat")[:20]
    made = said(source, 40, exclude=exclude)[0].composition
    picks = said(source, 40, exclude=exclude)[0].indices
    left = np.setdiff1d(np.arange(N), exclude)
    assert made.rows == N - 20
    assert made.tokens.tolist() == source.num_tokens[picks].tolist()
    assert made.pool_tokens == (np.median(source.num_tokens[left]), source.num_tokens[left].sum())
    assert (made.median_tokens, made.total_tokens) == (np.median(made.tokens), made.tokens.sum())
    for share, rows in ((made.shares, picks), (made.pool_shares, left)):
        assert share == {each: np.mean([labels[row] == each for row in rows]) for each in SOURCES}
    assert made.column == "source"


def test_what_is_not_known_is_none_and_costs_no_word():
    selection, texts = said(rows_of(), 40)
    made = selection.composition
    assert (made.tokens, made.pool_tokens, made.labels, made.codes, made.column) == (None,) * 5
    assert (made.median_tokens, made.total_tokens, made.counts) == (None,) * 3
    assert made.shares == made.pool_shares == {}
    assert texts == []
    assert [row[0] for row in beside_pool(selection)] == [
        "",
        "rows",
        f"alike (|cosine| > {ALIKE:g})",
    ]


def test_groups_that_are_given_are_labels():
    labels = [i % 3 for i in range(N)]
    selection, texts = said(rows_of(), 30, groups=labels)
    assert selection.composition.labels == [0, 1, 2]
    assert selection.composition.column is None
    assert selection.composition.counts.tolist() == [10, 10, 10]
    assert lopsided(texts) == []
    records = [{"of": str(label)} for label in labels]
    assert said(rows_of(), 30, groups="of", data=records)[0].composition.column == "of"
    many = said(rows_of(), 30, groups=list(range(N)))[0].composition
    assert (many.labels, many.shares) == (None, {})


@pytest.mark.parametrize("m", [2, 30, 700, 1300])
def test_picks_that_are_alike_are_those_of_every_two_picks(m):
    """More than a block of them, so that the first partner may lie in another block, before or after."""
    rows = rows_of(3, 1300)
    random = draw(4)
    for _ in range(150):
        a, b = random.integers(0, 1300, 2)
        rows[a] = (
            rows[b] * random.choice([1, -1, 1e-3, 50]) + random.normal(0, 0.02, DIM) * np.abs(rows[b]).mean()
        )
    rows[7] = 0
    selection = said(rows, m, method="top_k")[0]
    unit = RowReader(pool_of(rows), "unit").read(selection.indices)
    near = np.abs(unit @ unit.T) > ALIKE
    np.fill_diagonal(near, False)
    expected = np.where(near.any(1), near.argmax(1), -1)
    assert selection.composition.alike.tolist() == expected.tolist()
    assert selection.composition.num_alike == near.any(1).sum()
    for k in {1, m // 2 or 1, m - 1}:
        cut = near[:k, :k]
        made = selection.head(k).composition
        assert made.alike.tolist() == np.where(cut.any(1), cut.argmax(1), -1).tolist()


def test_picks_that_are_too_many_to_compare_are_said_not_to_be(monkeypatch):
    monkeypatch.setattr("spice_rs.selection.composition.MOST_PRODUCTS", 100)
    selection = said(rows_of(), 20)[0]
    assert selection.composition.alike is None
    assert beside_pool(selection)[-1][1] == "not compared"
    assert "not compared" in repr(selection.composition)


def test_the_head_of_a_selection_is_made_of_what_a_shorter_run_is():
    source = short_answers_win(["a", "b"] * (N // 2))
    long, short = said(source, 60)[0].head(25).composition, said(source, 25)[0].composition
    assert long.about_pool() == short.about_pool()
    for name in ("tokens", "codes", "alike"):
        assert getattr(long, name).tolist() == getattr(short, name).tolist()


def test_shards_and_threads_change_nothing(tmp_path):
    tokens = draw(1).integers(5, 400, N)
    for name, size in (("one", N), ("many", 37)):
        with spice_rs.GradientStore.create(
            tmp_path / name, dim=DIM, dtype="float32", reduction="sum", rows_per_shard=size
        ) as writer:
            order = draw(size).permutation(N)
            writer.append(rows_of()[order], index=order, num_tokens=tokens[order])
    made = [said(tmp_path / name, 40, threads=t)[0].composition for name in ("one", "many") for t in (1, 3)]
    for each in made[1:]:
        assert each.about_pool() == made[0].about_pool()
        assert each.tokens.tolist() == made[0].tokens.tolist()
        assert each.alike.tolist() == made[0].alike.tolist()


def test_an_extended_selection_is_made_of_what_select_would_pick():
    source = short_answers_win()
    part = pool_of(np.asarray(source.keep_alive)[:350], source.num_tokens[:350], "sum")
    before = said(part, 30)[0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SpiceWarning)
        grown = spice_rs.extend(before, source)
    assert len(lopsided([str(each.message) for each in caught])) == 1
    whole = said(source, 30)[0].composition
    assert grown.composition.about_pool() == whole.about_pool()
    assert grown.composition.tokens.tolist() == whole.tokens.tolist()


# --- what is warned of ----------------------------------------------------------------------------------------------


def test_short_answers_are_said_first_with_cause_and_remedy():
    selection, texts = said(short_answers_win(), 60, conflict_penalty=1e-9)
    made = selection.composition
    assert made.median_tokens < made.pool_tokens[0] / 2
    assert texts[0] == (
        f"{OPENING}: their median answer has {made.median_tokens:g} tokens, the pool's {made.pool_tokens[0]:g}. Gradients"
        " of the mean loss are largest for short answers, and the largest win: try represent=1 for rows that say much about"
        " the pool. Or select for a few records that you trust: target=…."
    )
    assert texts[-1].startswith("conflict_penalty=1e-09 changed none")
    assert len(lopsided(texts)) == 1
    # And the remedy is one.
    assert lopsided(said(short_answers_win(), 60, represent=1)[1]) == []


def test_rows_of_means_and_of_sums_have_causes_of_their_own():
    tokens = draw(1).integers(5, 400, N)
    means = pool_of(rows_of() / np.sqrt(tokens)[:, None].astype(np.float32), tokens, "mean")
    assert "mean loss are largest for short answers" in said(means, 60)[1][0]
    sums = pool_of(rows_of() * tokens[:, None].astype(np.float32), tokens**2, "sum")
    assert "summed loss are largest for long answers" in said(sums, 60, normalize="sum")[1][0]


def test_one_source_that_wins_is_named():
    selection, texts = said(one_source_wins(), 60)
    share = selection.composition.shares["play"]
    assert share > 0.6
    (text,) = lopsided(texts)
    assert f"'source' is 'play' in {share:.0%} of them and in " in text
    assert text.endswith(
        "The largest gradients win, whatever they are of: try represent=1 for rows that say much about the pool, or"
        " groups='source' for the pool's shares. Or select for a few records that you trust: target=…."
    )
    assert lopsided(said(one_source_wins(), 60, represent=1)[1]) == []


def test_unit_rows_of_which_one_source_is_like_no_other():
    labels = ["odd" if i % 8 == 0 else "usual" for i in range(N)]
    rows = np.float32(draw().standard_normal((N, DIM)) * 0.01)
    rows[:, 0] += 1
    rows[::8] = rows_of()[::8]
    pool = pool_of(rows, labels=labels)
    (text,) = lopsided(said(pool, 40, normalize="unit")[1])
    assert (
        "Unit rows win by being unlike the others: try represent=1 for rows that say much about the pool, or"
        " groups='source' for the pool's shares. Or select for a few records that you trust: target=…."
        in text
    )
    assert lopsided(said(pool, 40, represent=1)[1]) == []


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("k", [1, 3, 12, 40, 200, N])
def test_what_chance_makes_is_no_finding(seed, k):
    """Rows alike in law: whatever is picked is a random draw of tokens and labels, however they are spread."""
    random = draw(seed)
    tokens = np.maximum(1, np.exp(random.normal(4, 1.5, N))).astype(int)
    labels = random.choice(list("abcdefghij")[: 2 + seed], N).tolist()
    rows = rows_of(seed) / np.linalg.norm(rows_of(seed), axis=1, keepdims=True)
    assert said(pool_of(rows, tokens, "mean", labels), k)[1] == []


def test_all_rows_are_the_pool():
    assert lopsided(said(short_answers_win(), N)[1]) == []
    equal = pool_of(rows_of(), np.full(N, 7), "sum")
    assert lopsided(said(equal, 60)[1]) == []
    nothing = pool_of(rows_of(), np.zeros(N), "mean")
    assert lopsided(said(nothing, 60)[1]) == []


@pytest.mark.parametrize(
    "options",
    [
        {"groups": ["a", "b"] * (N // 2)},
        {"groups": ["a", "b"] * (N // 2), "group_shares": {"a": (0.9, None)}},
        {"include": [3, 4]},
        {"initial": [3, 4]},
        {"weights": [1.0, 2.0] * (N // 2)},
        {"prior": [0.1, 0.2] * (N // 2)},
        {"target": rows_of(9, 12)},
        {"k": None, "budget": 2000},
    ],
    ids=lambda options: ",".join(options),
)
def test_who_asked_for_something_else_is_not_warned(options):
    selection, texts = said(short_answers_win(), **{"k": 60, **options})
    assert lopsided(texts) == []
    assert selection.composition.tokens is not None


@pytest.mark.parametrize(
    "options",
    [
        {"method": "top_k"},
        {"fisher": "diagonal"},
        {"method": "stochastic"},
        {"k": None, "pool_size": 100, "select_per_window": 15},
        {"max_similarity": 0.9},
        {"k": None, "budget": 60, "costs": [1] * N},
    ],
    ids=lambda options: ",".join(options),
)
def test_every_way_of_picking_the_largest_is_warned_of(options):
    texts = said(one_source_wins(), **{"k": 60, **options})[1]
    assert len(lopsided(texts)) == 1
    assert lopsided(texts) == texts[:1]
    takes_a_target = "pool_size" not in options and options.get("method") != "stochastic"
    assert ("target=…" in texts[0]) is takes_a_target


def test_excluded_rows_are_no_part_of_the_pool():
    source = one_source_wins()
    names = np.array(source.labels.labels)[source.labels.codes]
    selection, texts = said(source, 60, exclude=np.flatnonzero(names != "play"))
    assert selection.composition.pool_shares["play"] == 1
    assert lopsided(texts) == []


def test_a_comparison_shows_shares_and_does_not_repeat_itself():
    found = spice_rs.compare(short_answers_win(), 40, ["spice", "top_k", "random"])
    assert not [note for note in found.notes if OPENING in note or "changed none" in note]


def test_the_penalty_is_said_to_be_idle_where_it_was_asked_for_and_last():
    rows = np.abs(rows_of())
    assert said(rows, 30)[1] == []
    for options in ({"conflict_penalty": 0.1}, {"preset": "paper"}):
        assert said(rows, 30, **options)[1][-1].startswith(
            "conflict_penalty=0.1 changed none of the 30 picks"
        )
    texts = said(rows, 30, conflict_penalty=0.2, alpha=1e-9, prior=[1.0] * N)[1]
    starts = ["prior is 1 for every row", "alpha·‖g‖² is so small", "conflict_penalty=0.2 changed none"]
    assert [text.startswith(start) for text, start in zip(texts, starts, strict=True)] == [True] * 3


# --- kept -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [None, ["a", "b"] * (N // 2), ["it\nis", "é"] * (N // 2)])
@pytest.mark.parametrize("known", [True, False])
def test_it_comes_back_from_a_file(labels, known, tmp_path):
    source = short_answers_win(labels) if known else pool_of(rows_of(), labels=labels)
    selection = said(source, 30)[0]
    selection.save(tmp_path / "sel")
    loaded = Selection.load(tmp_path / "sel")
    assert loaded.settings == selection.settings
    made, back = selection.composition, loaded.composition
    assert back.about_pool() == made.about_pool()
    for name in ("tokens", "codes", "alike"):
        one, other = getattr(made, name), getattr(back, name)
        assert (one is None and other is None) or one.tolist() == other.tolist()
    assert (back.shares, back.pool_shares) == (made.shares, made.pool_shares)
    assert loaded.summary() == selection.summary()
    loaded.head(10).save(tmp_path / "head")
    assert Selection.load(tmp_path / "head").composition.alike.tolist() == made.head(10).alike.tolist()


def test_a_checkpoint_has_it_and_goes_on(tmp_path):
    source, file = short_answers_win(), tmp_path / "run"
    first = said(source, 20, checkpoint=file)[0]
    assert Selection.load(file).composition.tokens.tolist() == first.composition.tokens.tolist()
    assert (
        said(source, 50, checkpoint=file)[0].composition.tokens.tolist()
        == said(source, 50)[0].composition.tokens.tolist()
    )


def test_files_of_before_targets_go_on(tmp_path):
    rows = rows_of()
    whole = said(rows[:350], 20)[0].as_run()
    settings = {
        name: value for name, value in whole.settings.items() if name not in ("target", "composition")
    }
    series = {name: values for name, values in whole.series.items() if not name.startswith("pick_")}
    write_run(tmp_path / "old", SavedRun(series, settings, "budget", whole.log_det, whole.signal))
    old = Selection.load(tmp_path / "old")
    assert spice_rs.extend(old, rows).indices.tolist() == said(rows, 20)[0].indices.tolist()
    assert old.explain(int(np.setdiff1d(np.arange(350), old.indices)[0]), rows[:350])


def test_files_of_before_load_without(tmp_path):
    selection = said(short_answers_win(), 20)[0]
    whole = selection.as_run()
    series = {name: values for name, values in whole.series.items() if not name.startswith("pick_")}
    write_run(tmp_path / "old", SavedRun(series, selection.settings, "budget", whole.log_det, whole.signal))
    old = Selection.load(tmp_path / "old")
    assert old.composition is None
    assert beside_pool(old) == []
    assert "alike" not in old.summary()
    assert old.head(5).composition is None
    assert "<table>" in as_html(old)
    old.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "old").read_bytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": N + 1}, "settings.composition.rows: found 401"),
        ({"rows": -1}, "settings.composition: found"),
        ({"tokens": [float(1), -5]}, "settings.composition: found"),
        ({"tokens": ["a", 5]}, "settings.composition: found"),
        ({"tokens": None}, "tensors: found"),
        ({"labels": [["a", 1], ["a", 2]]}, "settings.composition: found"),
        ({"labels": [["a", 1], [2, 2]]}, "settings.composition: found"),
        ({"labels": []}, "settings.composition: found"),
        ({"labels": [["a", 1]]}, "pick_labels: found numbers from 0 to 1"),
        ({"alike": 1}, "settings.composition: found"),
        ({"alike": False}, "tensors: found"),
        ({"column": 3}, "settings.composition: found"),
        ({"more": 3}, "settings.composition: found"),
    ],
    ids=str,
)
def test_what_no_run_has_is_refused(change, says, tmp_path):
    whole = said(short_answers_win(["a", "b"] * (N // 2)), 20)[0].as_run()
    file, made = tmp_path / "sel", whole.settings["composition"]
    write_run(file, whole)
    old, new = (json.dumps(json.dumps(each))[1:-1].encode() for each in (made, {**made, **change}))
    contents = file.read_bytes()
    assert old in contents
    file.write_bytes(_resealed(contents, old, new))
    with pytest.raises(CorruptStoreError, match=re.escape(says)):
        Selection.load(file)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("pick_tokens", -1, "pick_tokens: found numbers from -1"),
        ("pick_labels", 2, "pick_labels: found numbers from"),
        ("pick_alike", 20, "pick_alike: found numbers from"),
        ("pick_alike", -2, "pick_alike: found numbers from -2"),
        ("pick_alike", 0, "pick_alike: found a pick that is like itself"),
    ],
)
def test_numbers_that_no_pick_has_are_refused(name, value, says, tmp_path):
    whole = said(short_answers_win(["a", "b"] * (N // 2)), 20)[0].as_run()
    whole.series[name][0] = value
    write_run(tmp_path / "sel", whole)
    with pytest.raises(CorruptStoreError, match=re.escape(says)):
        Selection.load(tmp_path / "sel")


def _resealed(contents: bytes, old: bytes, new: bytes) -> bytes:
    """Altered contents with the length and the checksum that fit them."""
    data = contents[8 + int.from_bytes(contents[:8], "little") :]
    header = contents[8 : -len(data)].replace(old, new, 1).rstrip(b" ")
    header += b" " * (-len(header) % 8)
    whole = len(header).to_bytes(8, "little") + header + data
    start = whole.index(b"sha256:") + 7
    blank = whole[:start] + b"0" * 64 + whole[start + 64 :]
    return whole[:start] + hashlib.sha256(blank).hexdigest().encode() + whole[start + 64 :]


# --- shown ----------------------------------------------------------------------------------------------------------


def test_a_repr_is_a_line_and_a_summary_has_a_table():
    selection = said(one_source_wins(), 60)[0]
    assert "\n" not in repr(selection)
    assert "\n" not in repr(selection.composition)
    text, page = selection.summary(), as_html(selection)
    share = selection.composition.shares["play"]
    assert re.search(rf"^source play +{share:.1%} +\d+\.\d%$", text, re.MULTILINE)
    assert f"<td>{share:.1%}</td>" in page


def test_the_labels_that_moved_most_are_shown_and_the_others_in_one_line():
    labels = [f"l{each:02}" for each in draw(5).integers(0, MOST_LABELS, 4 * N)]
    selection = said(pool_of(rows_of(5, 4 * N), labels=labels), 60)[0]
    rows = [row for row in beside_pool(selection) if row[0].startswith("source ")]
    assert len(rows) == SHOWN_LABELS + 1
    assert rows[-1][0] == f"source {MOST_LABELS - SHOWN_LABELS} others"
    for column in (1, 2):
        assert abs(sum(float(row[column].rstrip("%")) for row in rows) - 100) < 1


def test_the_report_has_it(tmp_path):
    pytest.importorskip("matplotlib")
    selection = said(one_source_wins(), 20)[0]
    spice_rs.write_report(selection, one_source_wins(), tmp_path / "page.html", sweeps=False)
    page = (tmp_path / "page.html").read_text()
    assert "Picks beside the pool" in page
    assert "source play" in page


# --- on the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A store of rows of which one source is longer, and the data that it stands for."""
    source = one_source_wins()
    names = np.array(source.labels.labels)[source.labels.codes].tolist()
    with spice_rs.GradientStore.create(tmp_path / "store", dim=DIM, dtype="float32") as writer:
        writer.append(source.keep_alive, index=np.arange(N), num_tokens=draw(1).integers(5, 50, N))
    records = [
        {"instruction": f"do {i}", "response": "x", "type": "one", "category": name}
        for i, name in enumerate(names)
    ]
    write_records(tmp_path / "pool.jsonl", records)
    return tmp_path, records


def write_records(path, records) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def told(capsys, *arguments) -> str:
    assert run(*arguments) == 0
    return capsys.readouterr().err


def test_a_column_that_can_be_seen_is_shown_and_named(folder, capsys):
    tmp_path, _ = folder
    store, data, out = tmp_path / "store", tmp_path / "pool.jsonl", tmp_path / "picks.jsonl"
    err = told(capsys, "select", store, "-k", 60, "--data", data, "--out", out, "--save", tmp_path / "sel")
    picked = [json.loads(line)["category"] for line in out.read_text().splitlines()]
    share = picked.count("play") / 60
    assert re.search(rf"^category play +{share:.1%} ", err, re.MULTILINE)
    assert "median tokens" in err
    warned = [line for line in err.splitlines() if OPENING in line]
    assert len(warned) == 1
    assert warned[0].endswith(
        "try --represent 1 for rows that say much about the pool, or --groups category for the pool's shares. Or select"
        " for a few records that you trust: --target …."
    )
    assert "conflict-penalty" not in err
    sentence = next(i for i, line in enumerate(err.splitlines()) if line.startswith("60 of 400 rows picked"))
    assert err.splitlines()[sentence + 1].split() == ["picks", "pool"]
    made = Selection.load(tmp_path / "sel").composition
    assert made.column == "category"
    assert made.shares == {each: picked.count(each) / 60 for each in made.labels}
    err = told(
        capsys, "extend", tmp_path / "sel", store, "-k", 30, "--data", data, "--out", tmp_path / "b.jsonl"
    )
    assert "category play" in err
    asked = told(
        capsys,
        "select",
        store,
        "-k",
        60,
        "--data",
        data,
        "--groups",
        "category",
        "--out",
        tmp_path / "c.jsonl",
    )
    assert OPENING not in asked
    assert "category play" not in asked  # the table of the groups has them
    assert "alike (" in asked


@pytest.mark.parametrize(
    "change",
    [
        lambda i, name: {},
        lambda i, name: {"source": "one"},
        lambda i, name: {"source": f"row {i}"},
        lambda i, name: {"source": name, "task": name} if i else {},
        lambda i, name: {"source": {"name": name}, "task": i % 3},
        lambda i, name: {"source": (name if i else None)},
        lambda i, name: {"task": f"{name} " * 60},
    ],
)
def test_what_is_no_column_of_labels_is_not_shown(change, folder, capsys):
    tmp_path, records = folder
    write_records(
        tmp_path / "pool.jsonl",
        [
            {"instruction": f"do {i}", "response": "x", **change(i, record["category"])}
            for i, record in enumerate(records)
        ],
    )
    data, out = tmp_path / "pool.jsonl", tmp_path / "picks.jsonl"
    err = told(capsys, "select", tmp_path / "store", "-k", 60, "--data", data, "--out", out)
    assert "%" not in err
    assert OPENING not in err


def test_the_most_telling_of_several_columns_is_taken(folder, capsys):
    tmp_path, records = folder
    for i, record in enumerate(records):
        record.update(type="ab"[i % 2], source="cd"[i % 2])
    write_records(tmp_path / "pool.jsonl", records)
    data, out = tmp_path / "pool.jsonl", tmp_path / "picks.jsonl"
    err = told(capsys, "select", tmp_path / "store", "-k", 60, "--data", data, "--out", out)
    assert re.search(r"^source c ", err, re.MULTILINE)
    assert "category" not in err


def test_records_in_another_order_are_joined_by_their_column(folder, capsys):
    tmp_path, records = folder
    shuffled = [{**records[i], "row": int(i)} for i in draw(6).permutation(N)]
    write_records(tmp_path / "other.jsonl", shuffled)
    store = tmp_path / "store"
    plain = ("select", store, "-k", 60, "--out")
    first = told(capsys, *plain, tmp_path / "a.jsonl", "--data", tmp_path / "pool.jsonl")
    other = ("--data", tmp_path / "other.jsonl", "--index-column", "row")
    second = told(capsys, *plain, tmp_path / "b.jsonl", *other)
    lines = [[line for line in text.splitlines() if line.startswith("category")] for text in (first, second)]
    assert len(lines[0]) == 4
    assert lines[0] == lines[1]


def test_rows_of_an_array_are_labelled_where_the_data_fit_them(folder, capsys):
    tmp_path, records = folder
    np.save(tmp_path / "rows.npy", one_source_wins().keep_alive)
    plain = ("select", tmp_path / "rows.npy", "-k", 60, "--data")
    assert "category play" in told(capsys, *plain, tmp_path / "pool.jsonl", "--out", tmp_path / "a.jsonl")
    write_records(tmp_path / "longer.jsonl", [*records, records[0]])
    assert "category" not in told(capsys, *plain, tmp_path / "longer.jsonl", "--out", tmp_path / "b.jsonl")


def test_without_data_tokens_are_shown(folder, capsys):
    err = told(capsys, "select", folder[0] / "store", "-k", 5)
    assert "median tokens" in err
    assert "category" not in err


# --- real gradients -------------------------------------------------------------------------------------------------

SHARED = Path(os.environ.get("SPICE_SHARED", "shared")) / "data"


@pytest.mark.skipif(not (SHARED / "gradients_smollm2.npz").exists(), reason="no shared data")
def test_the_default_on_real_rows_is_told_first_what_it_picks(tmp_path, capsys):
    with np.load(SHARED / "gradients_smollm2.npz") as file:
        order = np.argsort(file["index"])
        with spice_rs.GradientStore.create(
            tmp_path / "store", dim=file["gradients"].shape[1], reduction="mean"
        ) as writer:
            rows, tokens = np.float32(file["gradients"][order]), file["num_tokens"][order]
            writer.append(rows, index=file["index"][order], num_tokens=tokens.astype(np.int32))
    with gzip.open(SHARED / "pool.jsonl.gz", "rb") as packed:
        (tmp_path / "pool.jsonl").write_bytes(packed.read())
    plain = ("select", tmp_path / "store", "-k", 200, "--data", tmp_path / "pool.jsonl", "--out")
    err = told(capsys, *plain, tmp_path / "a.jsonl")
    assert err.startswith(
        f"spice-rs: warning: {OPENING}: their median answer has 17 tokens, the pool's 67, and 'source' is 'toolformer' in"
        " 80% of them and in 30% of the pool. Gradients of the mean loss are largest for short answers, and the largest"
        " win: try --represent 1 for rows that say much about the pool, or --groups source for the pool's shares. Or select"
        " for a few records that you trust: --target ….\n"
    )
    assert "--conflict-penalty" not in err
    assert OPENING not in told(capsys, *plain, tmp_path / "b.jsonl", "--normalize", "unit")
    assert OPENING not in told(capsys, *plain, tmp_path / "c.jsonl", "--represent", 1)
