"""Many processes fill one store: each its own rows, none waits for another, and any may die."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext

import numpy as np
import pytest

import spice_rs
import spice_rs.cli
from models import make_model
from reference import make_data, rows_of, run
from spice_rs.errors import InvalidInputError, StoreError
from spice_rs.extraction.batching import longest_first
from spice_rs.extraction.own_data import OwnSample
from spice_rs.extraction.ranks import Rank
from spice_rs.store.lease import FILE as LEASE
from spice_rs.store.lease import lease
from tiny import make_records


@pytest.fixture
def as_rank(monkeypatch):
    def become(number, count):
        for name, value in (("RANK", number), ("WORLD_SIZE", count), ("LOCAL_RANK", number)):
            monkeypatch.setenv(name, str(value))

    return become


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_slices_are_disjoint_whole_and_of_like_length(count):
    draw = random.Random(count)
    samples = [OwnSample(row, draw.randint(1, 500)) for row in range(401)]
    slices = [Rank(number, count).slice(samples) for number in range(count)]
    assert sorted(each.index for part in slices for each in part) == list(range(401))
    lengths = [sum(each.length for each in part) for part in slices]
    assert max(lengths) - min(lengths) <= 500  # the longest sample
    assert all(part == longest_first(part) for part in slices)
    draw.shuffle(samples)
    assert Rank(0, count).slice(samples) == slices[0]


def test_the_environment_says_which_rank_this_is(as_rank, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert Rank.current() == Rank(0, 1, 0)
    as_rank(2, 4)
    assert Rank.current() == Rank(2, 4, 2, "4 by hand")
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(InvalidInputError, match="RANK=4"):
        Rank.current()


def test_processes_of_one_run_are_known_by_where_they_meet(as_rank, monkeypatch):
    as_rank(1, 2)
    monkeypatch.setenv("MASTER_ADDR", "node-1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    first = Rank.current().run
    as_rank(0, 2)
    assert first == Rank.current().run
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "other")
    assert Rank.current().run not in (None, first)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # which is another machine on each
    assert socket.gethostname() in Rank.current().run
    as_rank(0, 1)
    assert Rank.current().run is None


@pytest.mark.parametrize("meets", ["node-1", None])
def test_no_rank_works_on_a_store_that_another_run_is_at(as_rank, meets, tmp_path, monkeypatch):
    """Whether torchrun has started it, or somebody with RANK and WORLD_SIZE alone."""
    out, options = tmp_path / "s", {"dim": 8, "progress": False}
    model, records = make_model(), make_data(8)
    spice_rs.extract(model, records[:2], out, **options)
    for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    if meets is not None:
        monkeypatch.setenv("MASTER_ADDR", meets)
    as_rank(1, 2)
    for holder, refused in (("a", True), ("3 by hand", True), (None, True), (Rank.current().run, False)):
        with lease(out, holder), pytest.raises(StoreError) if refused else nullcontext() as caught:
            spice_rs.extract(model, records, out, **options)
        if refused:
            assert f"found an extraction at work (process {os.getpid()} on " in str(caught.value)
            assert len(spice_rs.GradientStore(out)) == 2
    found = spice_rs.GradientStore(out)
    assert 2 < len(found) < 8  # its own share
    (out / LEASE).write_text("process 1 on a machine that is gone\na")  # as a killed one leaves it
    spice_rs.extract(model, records, out, **options)


def test_ranks_in_turn_make_the_store_of_one_process(as_rank, tmp_path, monkeypatch):
    model, data = make_model(), make_data(11)
    data[3] = {"input_ids": [1, 2]}  # left out, and reported by one rank alone
    stores = {}
    for number in (1, 0, 2):
        as_rank(number, 3)
        with pytest.warns(spice_rs.SpiceWarning) if number == 0 else _silence():
            stores[number] = run(model, data, tmp_path / "s", skip_bad=True)
        assert (tmp_path / "s.left-out.jsonl").exists() is (number != 1)
    assert [len(stores[number]) for number in (1, 0, 2)] == [3, 6, 10]
    monkeypatch.delenv("RANK")
    with pytest.warns(spice_rs.SpiceWarning):
        whole = run(model, data, tmp_path / "whole", skip_bad=True)
    assert stores[2].provenance == whole.provenance
    np.testing.assert_allclose(rows_of(stores[2]), rows_of(whole), rtol=1e-4, atol=1e-5)
    assert stores[2].num_tokens[np.argsort(stores[2].index)].tolist() == [
        whole.num_tokens[place] for place in np.argsort(whole.index)
    ]


class _silence:
    def __enter__(self):
        import warnings

        self.caught = warnings.catch_warnings()
        self.caught.__enter__()
        warnings.simplefilter("error", spice_rs.SpiceWarning)

    def __exit__(self, *error):
        self.caught.__exit__(*error)


# --- real processes ----------------------------------------------------------------------------------------------

ROWS, DIM = 240, 1 << 18  # 1 MiB a row: a shard of 64 MiB is full after 64 rows


@pytest.fixture
def pool(proxy, tmp_path):
    """Arguments of the command but for --out, and a folder that goes when the test ends: its stores are large."""
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(each) + "\n" for each in make_records(ROWS)))
    options = ["--dim", str(DIM), "--dtype", "float32", "--tokens-per-batch", "16", "--device", "cpu"]
    words = ["extract", "--model", str(proxy), "--data", str(tmp_path / "pool.jsonl"), *options]
    yield [*words, "--no-progress"], tmp_path
    shutil.rmtree(tmp_path)


def environment(**more):
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def check_equal(found, expected):
    found, expected = (spice_rs.GradientStore(path) for path in (found, expected))
    found.verify()
    assert sorted(found.index.tolist()) == sorted(expected.index.tolist()) == list(range(ROWS))
    assert found.provenance == expected.provenance
    places = [np.argsort(store.index) for store in (found, expected)]
    np.testing.assert_array_equal(found.num_tokens[places[0]], expected.num_tokens[places[1]])
    np.testing.assert_allclose(found.loss[places[0]], expected.loss[places[1]], rtol=1e-5)
    for start in range(0, ROWS, 60):
        left, right = (
            store.read(place[start : start + 60])
            for store, place in zip((found, expected), places, strict=True)
        )
        errors = np.linalg.norm(left - right, axis=1) / np.linalg.norm(right, axis=1)
        assert errors.max() < 1e-5


@pytest.mark.slow
def test_torchrun_makes_the_store_of_one_process(pool):
    words, folder = pool
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "spice_rs"]
    done = subprocess.run(
        [sys.executable, *launch, *words, "--out", str(folder / "many")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "rank 0 of 2 is done" in done.stdout
    assert done.stdout.count("of those meant") == 1  # the coverage, once
    assert "rank 1 of 2 is done" in done.stdout
    assert spice_rs.cli.main([*words, "--out", str(folder / "one")]) == 0
    check_equal(folder / "many", folder / "one")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("seed", [0, 1])
def test_whatever_dies_the_next_run_completes_the_rest(seed, pool):
    words, folder = pool
    draw, out = random.Random(seed), folder / "many"

    def start(count):
        return [
            subprocess.Popen(
                [sys.executable, "-m", "spice_rs", *words, "--out", str(out)],
                env=environment(RANK=str(number), WORLD_SIZE=str(count), LOCAL_RANK=str(number)),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for number in range(count)
        ]

    def shards():
        return len(list(out.glob("shard-*")))

    killed = 0
    for victims, count in ((1, 2), (2, 2)):
        before, processes = shards(), start(count)
        try:
            deadline, wanted = time.monotonic() + 200, draw.randint(0, 1)
            while shards() < before + wanted and any(process.poll() is None for process in processes):
                assert time.monotonic() < deadline
                time.sleep(0.002)
            if not wanted:
                time.sleep(draw.uniform(0, 5))  # anywhere: while it starts, computes or writes
            for process in draw.sample(processes, victims):
                process.kill()
        finally:
            if victims == count:
                for process in processes:
                    process.kill()
            for process in processes:
                error = process.communicate(timeout=300)[1]
                killed += process.returncode == -signal.SIGKILL
                assert process.returncode in (0, -signal.SIGKILL), error.decode()
    assert killed > 0
    last = start(2)
    left = [process.communicate(timeout=300)[1] for process in last]
    assert [process.returncode for process in last] == [0, 0], left
    assert spice_rs.cli.main([*words, "--out", str(folder / "one")]) == 0
    check_equal(out, folder / "one")
