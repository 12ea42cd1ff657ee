"""A store whose extraction has not ended says so, and nothing is picked from it unless that is what is wanted."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

import spice_rs
from command import run
from spice_rs.errors import SpiceWarning, StoreError, UnfinishedStoreError
from spice_rs.progress import PlainLine, bar
from spice_rs.store.lease import FILE as LEASE
from spice_rs.store.lease import lease
from spice_rs.store.store import GradientStore
from spice_rs.store.unfinished import FILE, Unfinished, mark, of_all, read_mark
from tiny import make_records

RECORDS = make_records(20)
STATE = "5 of 20 rows, the longest first: the extraction has not ended (or is still running)"


def fill(folder, rows, seed=0):
    """A store of these dataset rows."""
    cells = np.random.default_rng(seed).standard_normal((20, 8), dtype=np.float32)
    with spice_rs.GradientStore.create(folder, dim=8, reduction="sum") as writer:
        writer.append(cells[rows], rows, num_tokens=np.ones(len(rows), np.int32))
    return folder


@pytest.fixture
def part(tmp_path):
    """A store with 5 of 20 rows."""
    mark(fill(tmp_path / "part", range(5)), Unfinished(20, longest_first=True))
    return tmp_path / "part"


# --- the mark -----------------------------------------------------------------------------------------------------


def test_a_store_without_a_mark_claims_nothing(tmp_path):
    store = spice_rs.GradientStore(fill(tmp_path / "s", range(5)))
    assert (store.expected_rows, store.unfinished, store.info()["expected_rows"]) == (None, None, None)
    assert ("rows=5, " in repr(store), "unfinished" in repr(store)) == (True, False)
    spice_rs.select(store, 2)


def test_a_store_says_how_far_it_is(part, capsys):
    store = spice_rs.GradientStore(part)
    assert (store.expected_rows, store.unfinished) == (20, STATE)
    assert store.info()["expected_rows"] == 20
    assert "rows=5 of 20" in repr(store)
    assert "unfinished" in repr(store)
    assert STATE in store._repr_html_()
    assert run("info", part) == 0
    assert re.search(rf"^unfinished +{re.escape(STATE)}$", capsys.readouterr().out, re.MULTILINE)
    assert run("info", part, "--json") == 0
    assert json.loads(capsys.readouterr().out)["expected_rows"] == 20


def test_what_is_done_to_a_store_leaves_the_mark(part):
    store = spice_rs.GradientStore(part)
    store.verify()
    store.compact()
    assert store.expected_rows == 20
    store.delete([4])
    assert store.unfinished.startswith("4 of 20 rows")
    assert spice_rs.GradientStore.repair(part)["damaged"] == []
    assert spice_rs.GradientStore(part).expected_rows == 20
    fill(part, range(4, 20))
    assert spice_rs.GradientStore(part).expected_rows is None  # all are there, whoever has put them there


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"rows": "20"}', '{"rows": 0, "longest_first": true}', "9" * 5000]
)
def test_a_mark_that_cannot_be_read_claims_nothing(part, text):
    (part / FILE).write_text(text)
    assert read_mark(part) is None
    spice_rs.select(part, 2)


def test_a_mark_is_no_link_and_no_folder(part):
    (part / FILE).rename(part / "elsewhere.json")
    (part / FILE).symlink_to(part / "elsewhere.json")
    assert read_mark(part) is None
    (part / FILE).unlink()
    (part / FILE).mkdir()
    assert read_mark(part) is None


def test_what_is_made_of_unfinished_stores_is_unfinished_until_it_is_whole(part, tmp_path, capsys):
    spice_rs.GradientStore(part).convert(tmp_path / "converted", "float32")
    assert spice_rs.GradientStore(tmp_path / "converted").unfinished == STATE
    other = fill(tmp_path / "other", range(5, 12))
    mark(other, Unfinished(20, longest_first=True))
    both = spice_rs.GradientStore.merge([part, other], tmp_path / "both")
    assert both.unfinished.startswith("12 of 20")
    assert spice_rs.GradientStore(tmp_path / "both").expected_rows == 20
    whole = spice_rs.GradientStore.merge(
        [both.path, fill(tmp_path / "rest", range(12, 20))], tmp_path / "whole"
    )
    assert (len(whole), whole.expected_rows) == (20, None)
    assert not (tmp_path / "whole" / FILE).exists()
    assert of_all([None, None]) is None
    assert run("merge", tmp_path / "again", part, other) == 0
    assert f"{tmp_path / 'again'}: 12 of 20 rows" in capsys.readouterr().out


# --- picking ------------------------------------------------------------------------------------------------------


def test_nothing_is_picked_from_a_part_unless_it_is_wanted(part, tmp_path):
    rest = fill(tmp_path / "rest", range(5, 20))
    other, before = fill(tmp_path / "b", range(5), 1), spice_rs.select(fill(tmp_path / "less", range(4)), 2)
    calls = {
        "select": lambda source, **o: spice_rs.select(source, 2, **o),
        "extend": lambda source, **o: spice_rs.extend(before, source, **o),
        "compare": lambda source, **o: spice_rs.compare(source, 2, ["top_k", "random"], **o),
        "agreement": lambda source, **o: spice_rs.agreement(source, other, 2, **o),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpiceWarning)
        for name, call in calls.items():
            with pytest.raises(UnfinishedStoreError) as caught:
                call(part)
            assert str(caught.value) == (
                f"{part}: found {STATE}, expected all rows. Run the same `extract` again, which goes on from there; or take"
                " what there is: partial=True."
            ), name
            found = call(part, partial=True)
            if name == "compare":
                assert f"{part}: {STATE}." in found.summary()
    with pytest.raises(UnfinishedStoreError, match="5 of 20"):
        spice_rs.select([part, rest], 2)


def test_a_selection_from_a_part_says_so(part, tmp_path):
    picks = spice_rs.select(part, 3, partial=True)
    assert picks.settings["partial"] is True
    assert picks.settings["source"]["unfinished"] == [[5, 20]]
    picks.save(tmp_path / "sel.safetensors")
    for each in (picks, picks.head(2), spice_rs.Selection.load(tmp_path / "sel.safetensors", part)):
        assert "the extraction had not ended: 5 of 20 rows were there" in each.summary()
        assert "had not ended" in each._repr_html_()
    whole = fill(part, range(5, 20))
    found = spice_rs.extend(picks, whole)
    assert found.settings["partial"] is False
    assert "had not ended" not in found.summary()


@pytest.mark.slow
def test_whoever_looks_at_a_part_is_told(part, tmp_path):
    pytest.importorskip("matplotlib")
    picks = spice_rs.select(part, 3, partial=True)
    for look in (
        lambda: spice_rs.explain(picks, part, [0]),
        lambda: spice_rs.analyze(picks, part),
        lambda: spice_rs.certify(picks, part),
        lambda: spice_rs.curvature(part),
        lambda: spice_rs.write_report(picks, part, tmp_path / "r.html"),
    ):
        with pytest.warns(SpiceWarning) as caught:
            look()
        assert [str(each.message) for each in caught].count(
            f"{part}: {STATE}; what is said here is of these rows."
        ) == 1
    assert "had not ended: 5 of 20" in (tmp_path / "r.html").read_text("utf-8")


def test_the_command_line_takes_a_part_when_told_to(part, tmp_path, capsys):
    assert run("select", part, "-k", 2, "--out", tmp_path / "p.jsonl") == 2
    assert "--partial" in capsys.readouterr().err
    assert run("select", part, "-k", 2, "--out", tmp_path / "p.jsonl", "--partial") == 0
    capsys.readouterr()
    assert run("explain", tmp_path / "p.jsonl", part, 4) == 0  # its picks are scored again
    assert f"warning: {part}: {STATE}" in capsys.readouterr().err


# --- extracting ---------------------------------------------------------------------------------------------------


def small(proxy, data, out, **options):
    return spice_rs.extract(
        proxy, data, out, **{"dim": 32, "progress": False, "tokens_per_batch": 1, **options}
    )


@pytest.fixture
def stopping(monkeypatch):
    """Makes an extraction end after so many rows."""
    from spice_rs.extraction.gradients import GradientRun

    plain = GradientRun.batches

    def after(count, error=KeyboardInterrupt):
        def batches(self, samples):
            for number, batch in enumerate(plain(self, samples)):
                if number == count:
                    raise error
                yield batch

        monkeypatch.setattr(GradientRun, "batches", batches if count is not None else plain)

    return after


def test_an_extraction_marks_its_store_while_it_goes_on(proxy, tmp_path, stopping, monkeypatch):
    out = tmp_path / "s"
    stopping(5)
    with pytest.raises(KeyboardInterrupt):
        small(proxy, RECORDS, out)
    store = spice_rs.GradientStore(out)
    assert store.unfinished == STATE
    lengths = np.array([len(f"{each['instruction']} {each['response']}".split()) for each in RECORDS])
    assert lengths[store.index].min() >= np.sort(lengths)[-5]
    stopping(3, error=RuntimeError("the machine"))
    with pytest.raises(RuntimeError):
        small(proxy, RECORDS, out)
    assert spice_rs.GradientStore(out).unfinished.startswith("8 of 20 rows")

    drawn = []
    from spice_rs.extraction import gradients

    def seen(progress, **options):
        drawn.append(options)
        return bar(False, **options)

    monkeypatch.setattr(gradients, "bar", seen)
    stopping(None)
    store = small(proxy, RECORDS, out)
    assert (len(store), store.expected_rows) == (20, None)
    assert not (out / FILE).exists()
    # The bar of the last run began with the 8 longest, of all the tokens.
    tokens = sorted((len(row) for row in _token_rows(proxy)), reverse=True)
    assert (drawn[-1]["initial"], drawn[-1]["total"]) == (sum(tokens[:8]), sum(tokens))
    spice_rs.select(store, 3)
    np.testing.assert_array_equal(np.sort(store.index), np.arange(20))


def _token_rows(proxy):
    from spice_rs.data.dataset import load_records, tokenise
    from tiny import make_tokenizer

    return [example.input_ids for example in tokenise(load_records(RECORDS), make_tokenizer())]


def test_a_limit_is_an_end(proxy, tmp_path, stopping):
    assert small(proxy, RECORDS, tmp_path / "s", limit=6).expected_rows is None
    stopping(2)
    with pytest.raises(KeyboardInterrupt):
        small(proxy, RECORDS, tmp_path / "s", limit=12)
    assert spice_rs.GradientStore(tmp_path / "s").unfinished.startswith("8 of 12 rows")
    stopping(None)
    with pytest.raises(UnfinishedStoreError):
        spice_rs.select(tmp_path / "s", 2)
    small(
        proxy, RECORDS, tmp_path / "s", limit=6
    )  # what it asks for is there, and with it two that are the longest
    store = spice_rs.GradientStore(tmp_path / "s")
    assert (len(store), store.expected_rows) == (8, 12)
    one_more = min(set(range(12)) - set(store.index.tolist())) + 1
    small(proxy, RECORDS, tmp_path / "s", limit=one_more)
    store = spice_rs.GradientStore(tmp_path / "s")
    assert (len(store), store.expected_rows) == (9, 12)
    assert small(proxy, RECORDS, tmp_path / "s", limit=12).expected_rows is None


def test_whichever_rank_is_the_last_ends_it(proxy, tmp_path, monkeypatch):
    expected = []
    for number in (1, 0):
        for name, value in (("RANK", number), ("WORLD_SIZE", 2), ("LOCAL_RANK", number)):
            monkeypatch.setenv(name, str(value))
        expected.append(small(proxy, RECORDS, tmp_path / "s").expected_rows)
    assert expected == [20, None]


def test_records_that_are_left_out_are_not_waited_for(proxy, tmp_path):
    with pytest.warns(SpiceWarning, match="left out"):
        store = small(proxy, [*RECORDS[:5], {"id": 1}], tmp_path / "s", skip_bad=True)
    assert (len(store), store.expected_rows) == (5, None)


def test_samples_of_ones_own_come_in_no_order_of_length(tmp_path, stopping):
    import torch

    from test_matching import own_loss

    table = [{"x": torch.randn(4), "y": row % 2} for row in range(6)]
    stopping(2)
    model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    with pytest.raises(KeyboardInterrupt):
        spice_rs.extract(
            model, table, tmp_path / "s", loss_fn=own_loss, dim=8, tokens_per_batch=1, progress=False
        )
    assert spice_rs.GradientStore(tmp_path / "s").unfinished == (
        "2 of 6 rows: the extraction has not ended (or is still running)"
    )


SLOW = """
import sys, time
from spice_rs.extraction.gradients import GradientRun
compute = GradientRun.compute
def slowly(self, samples, length=0):
    time.sleep(0.1)
    print("batch", flush=True)
    return compute(self, samples, length)
GradientRun.compute = slowly
from spice_rs.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on(proxy, tmp_path):
    data, out = tmp_path / "pool.jsonl", tmp_path / "store"
    data.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    command = [
        "extract",
        "--model",
        proxy,
        "--data",
        data,
        "--out",
        out,
        "--dim",
        32,
        "--tokens-per-batch",
        1,
    ]
    command = list(map(str, command))
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    for _ in range(4):  # what is printed beside the command's own output goes to stderr
        assert "batch\n" in iter(process.stderr.readline, "")
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    shown, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert shown == ""
    kept = len(spice_rs.GradientStore(out))
    assert 3 <= kept < 20
    assert "Traceback" not in said
    assert said.splitlines()[-1] == (
        f"spice-rs: stopped: {kept} of 20 rows are kept in {out}; the same command goes on from there"
    )
    assert run(*command, "--no-progress") == 0
    assert spice_rs.GradientStore(out).expected_rows is None
    assert len(spice_rs.GradientStore(out)) == 20


def test_a_resumed_line_counts_from_what_is_there_and_rates_the_rest():
    stream = io.StringIO()
    line = PlainLine(100, "extract", "tokens", stream, initial=40)
    line._started -= 10.0
    line._drawn -= 10.0
    line.update(20)
    line.close()
    assert re.search(r"extract: 60/100 tokens, (1\.9|2\.0)/s", stream.getvalue())


def test_two_extractions_do_not_work_on_one_store_at_once(proxy, tmp_path):
    records = make_records(12)
    options = {"dim": 16, "progress": False}
    spice_rs.extract(proxy, records, tmp_path / "s", limit=5, **options)
    held = f"process {os.getpid()} on "
    with lease(tmp_path / "s"):
        with pytest.raises(StoreError, match=f"found an extraction at work .{held}.*Wait for it, or stop it"):
            spice_rs.extract(proxy, records, tmp_path / "s", **options)
        assert len(GradientStore(tmp_path / "s")) == 5
    assert not (tmp_path / "s" / LEASE).exists()
    (tmp_path / "s" / LEASE).write_text("process 1 on a machine that is gone")  # as a killed one leaves it
    assert len(spice_rs.extract(proxy, records, tmp_path / "s", **options)) == 12
    assert not (tmp_path / "s" / LEASE).exists()
    GradientStore(tmp_path / "s").verify()


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_a_store_that_a_repair_has_taken_rows_from_is_unfinished(tmp_path, capsys, damage):
    with spice_rs.GradientStore.create(tmp_path / "s", dim=3, dtype="float32", rows_per_shard=4) as writer:
        writer.append(np.eye(10, 3, dtype=np.float32) + 1, index=range(10))
    shard = sorted((tmp_path / "s").glob("shard-*"))[0]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] if damage == "cut" else b"\0" * 40 + content[40:])
    assert run("repair", tmp_path / "s") == 0
    rows = 10 if damage == "cut" else 7  # what nobody can read is one at least
    said = f"6 of {rows} rows: the others were in damaged shards"
    assert said in capsys.readouterr().out
    store = spice_rs.GradientStore(tmp_path / "s")
    assert store.unfinished.startswith(said)
    with pytest.raises(UnfinishedStoreError, match=said):
        spice_rs.select(store, 2)
    assert run("verify", tmp_path / "s") == 0
    assert said in capsys.readouterr().out
    with spice_rs.GradientStore.create(tmp_path / "s", dim=3, dtype="float32") as writer:
        writer.append(np.eye(10, 3, dtype=np.float32)[:4] + 1, index=range(4))
    assert len(spice_rs.select(tmp_path / "s", 2, conflict_penalty=0)) == 2


def test_a_damaged_shard_is_not_believed_to_have_had_more_rows_than_its_bytes(tmp_path):
    with spice_rs.GradientStore.create(tmp_path / "s", dim=3, dtype="float32", rows_per_shard=4) as writer:
        writer.append(np.eye(8, 3, dtype=np.float32) + 1, index=range(8))
    shard = sorted((tmp_path / "s").glob("shard-*"))[0]
    content = shard.read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    lie = header.replace(b'"rows":"4"', b'"rows":"999999999999"')
    assert lie != header
    shard.write_bytes(len(lie).to_bytes(8, "little") + lie + content[8 + len(header) :])
    spice_rs.GradientStore.repair(tmp_path / "s")
    assert 4 < spice_rs.GradientStore(tmp_path / "s").expected_rows <= 4 + len(content) // 17 + 1
