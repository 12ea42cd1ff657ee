"""Paths as people write them: `~`, `~user` and `file://` wherever a path goes in, on the command line and in Python."""

from __future__ import annotations

import getpass
import inspect
import json
import os
from pathlib import Path

import numpy as np
import pytest

import spice_rs
from command import run
from spice_rs import cli
from spice_rs.commands import values
from spice_rs.errors import InvalidInputError
from spice_rs.paths import local
from spice_rs.selection.picks import read_rows
from tiny import make_records

NO_PATHS = {
    "gguf_file",
    "device",
    "split",
    "name",
    "index_column",
    "groups",
    "target_groups",
    "costs",
    "weights",
    "prior",
    "dtype",
}
NO_PATHS |= {"column", "lengths"}
"""Options of the command line that are texts, and no paths."""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with a pool of records; the working folder is another one."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    lines = "".join(json.dumps(record) + "\n" for record in make_records(12))
    (tmp_path / "home" / "pool.jsonl").write_text(lines)
    yield tmp_path / "home"
    assert os.listdir() == []  # nothing was written beside


def test_what_a_path_is(home, monkeypatch):
    assert local("~") == str(home)
    assert local("~/a b") == local(Path("~/a b")) == f"{home}/a b"
    assert local("~/a.npz::m") == f"{home}/a.npz::m"
    assert local(f"~{getpass.getuser()}/x").endswith("/x")
    assert local(f"~{getpass.getuser()}/x").startswith("/")
    for plain in ("a", "./a", "../~/a", "a~", "owner/model", "-", "/a/~b", "s3://bucket/x"):
        assert local(plain) == plain
    assert local("file:///a%20b/c") == local("FILE://localhost/a%20b/c") == "/a b/c"
    with pytest.raises(
        InvalidInputError, match="found a file of the machine 'far', expected one of this machine"
    ):
        local("file://far/x")
    with pytest.raises(
        InvalidInputError, match=r"~nobody-here/x: found no user 'nobody-here'.* write \./~nobody-here/x"
    ):
        local("~nobody-here/x")


def test_a_name_that_begins_with_a_tilde_can_be_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = np.eye(4, dtype=np.float32)
    for written in ("./~x.npy", f"{tmp_path}/~x.npy"):
        np.save(tmp_path / "~x.npy", rows)
        assert local(local(written)) == local(written) == str(tmp_path / "~x.npy")
        assert len(spice_rs.select(written, 2, progress=False)) == 2
    assert (
        local("~x.npy") == local(Path("./~x.npy")) == str(tmp_path / "~x.npy")
    )  # no such user, but such a file
    spice_rs.GradientStore.create("./~store", dim=4).close()
    assert (tmp_path / "~store" / "store.json").is_file()
    assert run("select", "./~x.npy", "-k", 1, "--out", "./~picks.jsonl") == 0
    assert (tmp_path / "~picks.jsonl").is_file()


def test_every_option_that_is_a_path_is_read_as_one():
    seen = set()
    for name in ("extract", "plan", "doctor", "run"):
        for command, parser in cli._parsers([name])[1].items():
            for action in parser._actions:
                if action.nargs == 0 or action.dest in ("help", "version"):
                    continue
                if action.type is None:
                    assert action.dest in NO_PATHS, (
                        f"{command} {action.dest}: read as a path, or named in NO_PATHS"
                    )
                seen |= {action.dest} if action.type is values.path else set()
    assert seen >= {
        "model",
        "data",
        "out",
        "tokenizer",
        "optimizer",
        "checkpoints",
        "chat_template",
        "source",
        "save",
    }
    assert seen >= {
        "checkpoint",
        "initial",
        "include",
        "exclude",
        "old_rows",
        "rows",
        "index",
        "llama_factory",
        "folder",
    }
    assert seen >= {"selection", "earlier", "store", "stores", "a", "b", "group_shares"}


def paths_of_python() -> set[str]:
    """`function.parameter` of the public functions and methods, for all that may be a path."""
    found = set()
    for name in spice_rs.__all__:
        public = getattr(spice_rs, name)
        members = vars(public).items() if inspect.isclass(public) else [("", public)]
        for member, function in members:
            function = getattr(function, "__func__", function)
            if not inspect.isfunction(function) or (member.startswith("_") and member != "__init__"):
                continue
            for parameter in inspect.signature(function).parameters.values():
                kind = str(parameter.annotation)
                known = parameter.name in ("source", "data", "model", "tokenizer", "sources")
                marks = ("PathLike", "_Path", "OptimizerState", "CheckpointSource")
                if any(mark in kind for mark in marks) or (known and kind == "Any"):
                    found.add(f"{name}.{member}.{parameter.name}".replace("..", "."))
    return found


@pytest.mark.slow
def test_every_path_of_python_may_begin_with_a_tilde(home, proxy):
    used: set[str] = set()

    def call(name, function, *args, **options):
        """Call with paths, at least one of which begins with a tilde."""
        bound = inspect.signature(function).bind(*args, **options)
        given = {key: value for key, value in bound.arguments.items() if isinstance(value, str | Path | list)}
        used.update(f"{name}.{key}" for key, value in given.items() if "~" in str(value))
        return function(*args, **options)

    (home / "proxy").symlink_to(proxy)
    (home / "plain.jinja").write_text("{% for m in messages %}{{ m['content'] }} {% endfor %}")
    settings = {"dim": 16, "progress": False, "min_coverage": 0, "target_modules": "q_proj"}
    lora = {"dim": 16, "progress": False, "min_coverage": 0, "lora_rank": 2}
    model, pool = "~/proxy", Path("~/pool.jsonl")
    store = call("extract", spice_rs.extract, model, pool, "~/store", tokenizer="~/proxy", **settings)
    assert (home / "store" / "store.json").is_file()
    call("extract", spice_rs.extract, model, pool, Path("~/plain"), chat_template="~/plain.jinja", **settings)
    call("extract", spice_rs.extract, model, pool, "~/views", checkpoints=["~/proxy"], **settings)
    call("extract", spice_rs.extract, model, pool, "~/alike", like="~/store", progress=False, min_coverage=0)
    (home / "tokens").mkdir()
    call("extract", spice_rs.extract, model, pool, "~/again", cache_dir="~/tokens", **settings)
    with pytest.raises(InvalidInputError, match=rf"{home}/proxy: found no optimiser's state"):
        call("extract", spice_rs.extract, model, pool, "~/adam", optimizer="~/proxy", **settings)
    call(
        "plan",
        spice_rs.plan,
        model,
        pool,
        out="~/store",
        **settings,
    )
    call("doctor", spice_rs.doctor, model, pool, progress=False, dim=16)
    call(
        "run_schedule", spice_rs.run_schedule, model, pool, "~/run", pool_size=6, select_per_window=2, **lora
    )
    assert (home / "run" / "picks.jsonl").is_file()

    source = "~/store"
    (home / "room").mkdir()
    call("select", spice_rs.select, source, 3, represent=1, represent_folder="~/room", progress=False)
    sel = call(
        "select", spice_rs.select, source, 3, data=pool, groups="id", checkpoint="~/ck", progress=False
    )
    assert (home / "ck").is_file()
    for kind in ("jsonl", "json", "csv", "parquet"):
        call(f"Selection.to_{kind}", getattr(spice_rs.Selection, f"to_{kind}"), sel, f"~/p.{kind}", pool)
        assert (home / f"p.{kind}").is_file()
        assert read_rows(f"~/p.{kind}") == sel.indices.tolist()
    call("Selection.save", spice_rs.Selection.save, sel, "~/sel.safetensors")
    call("Selection.to_llama_factory", spice_rs.Selection.to_llama_factory, sel, "~/llama", pool)
    assert (home / "llama" / "dataset_info.json").is_file()
    sel = call("Selection.load", spice_rs.Selection.load, "~/sel.safetensors", source)
    assert read_rows("~/sel.safetensors").indices.tolist() == sel.indices.tolist()
    row = next(row for row in range(12) if row not in sel.indices)
    plain = spice_rs.select(store, 3, progress=False)
    weights = {"weights": "weight", "data": "~/weights.jsonl"}
    (home / "weights.jsonl").write_text('{"weight": 1}\n' * 12)
    bare = "~/rows.npy"
    np.save(home / "rows.npy", np.eye(12, dtype=np.float32))
    found = spice_rs.select(bare, 3, progress=False, **weights)
    call("Selection.explain", spice_rs.Selection.explain, plain, row, source)
    call("explain", spice_rs.explain, found, bare, [row], **weights)
    call("analyze", spice_rs.analyze, found, bare, progress=False, **weights)
    call("certify", spice_rs.certify, found, bare, progress=False, **weights)
    call("curvature", spice_rs.curvature, bare, progress=False, **weights)
    np.save(home / "held.npy", np.eye(12, dtype=np.float32)[:4])
    (home / "kinds.jsonl").write_text('{"kind": "a"}\n' * 4)
    plainly = spice_rs.select(bare, 3, progress=False)
    kinds = {"groups": "kind", "data": "~/kinds.jsonl"}
    call("coverage", spice_rs.coverage, plainly, bare, "~/held.npy", progress=False, **kinds)
    np.save(home / "target.npy", np.eye(12, dtype=np.float32)[:3] + 1)
    call("relevance", spice_rs.relevance, bare, "~/target.npy", progress=False)
    call("compare", spice_rs.compare, source, 3, "random", data=pool, groups="id", progress=False)
    call("extend", spice_rs.extend, plain, source, k=4, progress=False)
    call("log_det", spice_rs.log_det, source, [0, 1])
    call(
        "write_report",
        spice_rs.write_report,
        plain,
        source,
        "~/r.html",
        data=pool,
        progress=False,
        sweeps=False,
    )
    assert (home / "r.html").is_file()

    opened = spice_rs.GradientStore
    call("GradientStore.__init__", opened.__init__, opened.__new__(opened), source)
    call("GradientStore.create", opened.create, "~/new", dim=4).close()
    call("GradientStore.merge", opened.merge, ["~/store", "~/store"], "~/merged")
    call("GradientStore.convert", opened.convert, store, "~/converted", "float32")
    call("GradientStore.repair", opened.repair, source)
    call("GradientStore.export", opened.export, store, "~/exported.npy", "~/index.npy")
    for name in ("new", "merged", "converted", "exported.npy", "index.npy"):
        assert (home / name).exists()
    assert paths_of_python() - used == set()


@pytest.mark.slow
def test_paths_of_the_command_line_may_begin_with_a_tilde(home, proxy, capsys):
    (home / "proxy").symlink_to(proxy)
    assert (
        run("extract", "--model", "~/proxy", "--data", "~/pool.jsonl", "--out", "~/s", "--min-coverage", 0)
        == 0
    )
    (home / "rows.txt").write_text("3\n")
    (home / "none.txt").write_text("5\n")
    (home / "one.txt").write_text("6\n")
    for line in (
        "select ~/s -k 3 --data ~/pool.jsonl --out ~/picks.jsonl --save ~/sel.safetensors --force",
        "select ~/s -k 2 --include ~/rows.txt --exclude ~/none.txt --initial ~/one.txt --checkpoint ~/ck --out ~/p.csv"
        " --llama-factory ~/llama --data ~/pool.jsonl",
        "extend ~/sel.safetensors ~/s -k 4 --out ~/more.jsonl",
        "export-picks ~/sel.safetensors --data ~/pool.jsonl --out ~/again.parquet",
        "certify ~/sel.safetensors ~/s",
        "curvature ~/s --out ~/c.npz",
        "report ~/sel.safetensors ~/s --out ~/r.html --no-sweeps",
        "compare ~/s -k 2 --methods random",
        "agreement ~/s ~/s -k 2",
        "merge ~/m ~/s ~/s",
        "export ~/s ~/rows.npy --index ~/index.npy",
        "delete ~/m --rows ~/index.npy",
        "info ~/s",
    ):
        assert run(*line.split()) == 0, capsys.readouterr().err
    made = {
        "picks.jsonl",
        "sel.safetensors",
        "ck",
        "llama",
        "p.csv",
        "more.jsonl",
        "again.parquet",
        "c.npz",
        "r.html",
    }
    assert made | {"m", "rows.npy", "index.npy"} <= set(os.listdir(home))
