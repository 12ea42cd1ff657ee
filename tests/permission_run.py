"""Commands and functions that may not read or write what they name: `permission_run.py FOLDER`, a JSON object a line.

A process of its own, which gives up the right to pass over permissions before anything starts a thread: that of root, too,
which most containers run as.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

_VERSION = 0x20080522
_PASSING = 0b1110
"""CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER."""


def obey() -> bool:
    """Give up what lets this thread, and those that it will start, pass over permissions; whether that worked."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        header, sets = (ctypes.c_uint32 * 2)(_VERSION, 0), (ctypes.c_uint32 * 6)()
        if not hasattr(libc, "capget") or libc.capget(header, sets):
            return False
        for number in range(3):  # effective, permitted, inheritable
            sets[number] &= ~_PASSING
        if libc.capset(header, sets):
            return False
    return True


class Case:
    """One call that cannot do its work.

    Args:
        locked: what nobody may touch, below the case's folder.
        call: arguments of the command line, or a function of Python; both in that folder.
        mode: what is left of the permissions of `locked`.
    """

    def __init__(self, locked: str, call: list[str] | Callable[[], Any], *, mode: int = 0) -> None:
        self.locked, self.call, self.mode = locked, call, mode


READ_ONLY = 0o555

_EXTRACT = ["extract", "--model", "model", "--data", "pool.jsonl", "--dim", "64"]
_SELECT = ["select", "store", "-k", "4"]
_PICKS = ["sel.safetensors", "store"]


def cases() -> dict[str, Case]:
    """Every command, and every function beside it, with each path that it reads or writes."""
    import numpy as np

    import spice_rs

    def store() -> Any:
        return spice_rs.GradientStore("store")

    def selection() -> Any:
        return spice_rs.Selection.load("sel.safetensors")

    def write(folder: str) -> None:
        with spice_rs.GradientStore.create(folder, dim=2) as writer:
            writer.append(np.ones((1, 2), np.float32), [0])

    shard = "store/" + next(name for name in sorted(os.listdir("store")) if name.startswith("shard-"))
    found: dict[str, Case] = {}
    # --- what is read ---
    reading = {
        "select": _SELECT,
        "extend": ["extend", *_PICKS],
        "relevance": ["relevance", "store", "target"],
        "explain": ["explain", *_PICKS, "1"],
        "certify": ["certify", *_PICKS],
        "report": ["report", *_PICKS, "--out", "page.html"],
        "compare": ["compare", "store", "-k", "4"],
        "agreement": ["agreement", "store", "other", "-k", "4"],
        "curvature": ["curvature", "store"],
        "info": ["info", "store"],
        "verify": ["verify", "store"],
        "merge": ["merge", "merged", "store", "other"],
        "compact": ["compact", "store"],
        "delete": ["delete", "store", "1"],
        "convert": ["convert", "store", "converted", "--dtype", "float32"],
        "export": ["export", "store", "new.npy"],
    }
    for name, call in reading.items():
        for what, locked in (("the folder", "store"), ("the schema", "store/store.json"), ("a shard", shard)):
            found[f"{name}: {what} of a store"] = Case(locked, call)
    found["repair: the folder of a store"] = Case("store", ["repair", "store"])
    found["select: a file of rows"] = Case("rows.npy", ["select", "rows.npy", "-k", "4"])
    found["select: a target"] = Case("target/store.json", [*_SELECT, "--target", "target"])
    found["select: data"] = Case("pool.jsonl", [*_SELECT, "--data", "pool.jsonl", "--out", "picks.jsonl"])
    found["select: rows to leave out"] = Case("wanted.txt", [*_SELECT, "--exclude", "wanted.txt"])
    found["select: shares"] = Case(
        "shares.json",
        [*_SELECT, "--data", "pool.jsonl", "--groups", "topic", "--group-shares", "shares.json"],
    )
    found["select: a checkpoint"] = Case("run", [*_SELECT, "--checkpoint", "run"])
    for name in ("explain", "certify", "report", "extend"):
        found[f"{name}: the selection"] = Case("sel.safetensors", reading[name])
    found["export-picks: the selection"] = Case("sel.safetensors", ["export-picks", "sel.safetensors"])
    found["export-picks: data"] = Case(
        "pool.jsonl", ["export-picks", "sel.safetensors", "--data", "pool.jsonl"]
    )
    found["explain: data"] = Case("pool.jsonl", [*reading["explain"], "--data", "pool.jsonl"])
    found["report: data"] = Case("pool.jsonl", [*reading["report"], "--data", "pool.jsonl"])
    found["explain: a list of picks"] = Case("wanted.txt", ["explain", "wanted.txt", "store", "1"])
    for command, more in (
        ("extract", [*_EXTRACT[1:], "--out", "new"]),
        ("plan", _EXTRACT[1:]),
        ("doctor", _EXTRACT[1:-2]),
        ("run", [*_EXTRACT[1:], "--out", "new", "--pool-size", "8", "--select-per-window", "2"]),
    ):
        for what, locked in (
            ("data", "pool.jsonl"),
            ("the model's folder", "model"),
            ("its settings", "model/config.json"),
            ("its weights", "model/model.safetensors"),
            ("its tokenizer", "model/tokenizer.json"),
        ):
            found[f"{command}: {what}"] = Case(locked, [command, *more])
    found["extract: an earlier store"] = Case(
        "store/store.json", ["extract", "--like", "store", "--data", "pool.jsonl", "--out", "new"]
    )
    found["extract: a template"] = Case(
        "template.jinja", [*_EXTRACT, "--out", "new", "--chat-template", "template.jinja"]
    )
    # --- what is written ---
    writing = {
        "select --out": [*_SELECT, "--out", "closed/picks.jsonl"],
        "select --save": [*_SELECT, "--save", "closed/sel.safetensors"],
        "select --checkpoint": [*_SELECT, "--checkpoint", "closed/run"],
        "select --llama-factory": [*_SELECT, "--data", "pool.jsonl", "--llama-factory", "closed"],
        "select --llama-factory, a new folder": [
            *(*_SELECT, "--data", "pool.jsonl", "--llama-factory", "closed/new")
        ],
        "extend --out": ["extend", *_PICKS, "--out", "closed/picks.jsonl"],
        "extend --save": ["extend", *_PICKS, "--save", "closed/sel.safetensors"],
        "export-picks --out": ["export-picks", "sel.safetensors", "--out", "closed/picks.jsonl"],
        "relevance --out": ["relevance", "store", "target", "--out", "closed/rows.jsonl"],
        "report --out": ["report", *_PICKS, "--out", "closed/page.html"],
        "merge": ["merge", "closed/merged", "store", "other"],
        "convert": ["convert", "store", "closed/converted", "--dtype", "float32"],
        "export": ["export", "store", "closed/rows.npy"],
        "export --index": ["export", "store", "rows2.npy", "--index", "closed/index.npy"],
        "extract --out": [*_EXTRACT, "--out", "closed/new"],
        "run --out": [
            "run",
            *_EXTRACT[1:],
            "--out",
            "closed/new",
            "--pool-size",
            "8",
            "--select-per-window",
            "2",
        ],
        "demo": ["demo", "closed/demo"],
    }
    for name, call in writing.items():
        found[name] = Case("closed", call, mode=READ_ONLY)
    for name, call in {
        "compact": ["compact", "many"],
        "delete": ["delete", "many", "1"],
        "repair": ["repair", "many"],
    }.items():
        found[f"{name}: a store that cannot be written"] = Case("many", call, mode=READ_ONLY)
    found["extract: a store that cannot be written"] = Case(
        "store", [*_EXTRACT, "--out", "store"], mode=READ_ONLY
    )
    found["run: a folder that cannot be written"] = Case(
        "empty",
        ["run", *_EXTRACT[1:], "--out", "empty", "--pool-size", "8", "--select-per-window", "2"],
        mode=READ_ONLY,
    )
    found["extract: a place for the tokens"] = Case(
        "closed", [*_EXTRACT, "--out", "new", "--cache-dir", "closed"], mode=READ_ONLY
    )
    # --- the same in Python ---
    functions: dict[str, tuple[str, Callable[[], Any], int]] = {
        "GradientStore": (shard, store, 0),
        "GradientStore.create": ("closed", lambda: write("closed/new"), READ_ONLY),
        "GradientStore.create, the folder": ("empty", lambda: write("empty"), READ_ONLY),
        "GradientStore.rows": (shard, store, 0),
        "Selection.load": ("sel.safetensors", selection, 0),
        "Selection.save": ("closed", lambda: selection().save("closed/sel.safetensors"), READ_ONLY),
        "Selection.to_jsonl": ("closed", lambda: selection().to_jsonl("closed/picks.jsonl"), READ_ONLY),
        "Selection.to_json": ("closed", lambda: selection().to_json("closed/picks.json"), READ_ONLY),
        "Selection.to_csv": ("closed", lambda: selection().to_csv("closed/picks.csv"), READ_ONLY),
        "Selection.to_parquet": ("closed", lambda: selection().to_parquet("closed/picks.parquet"), READ_ONLY),
        "Selection.to_jsonl, data": (
            "pool.jsonl",
            lambda: selection().to_jsonl("picks.jsonl", "pool.jsonl"),
            0,
        ),
        "Selection.to_llama_factory": (
            "closed",
            lambda: selection().to_llama_factory("closed/new", "pool.jsonl"),
            READ_ONLY,
        ),
        "select, a checkpoint": (
            "closed",
            lambda: spice_rs.select("store", 4, checkpoint="closed/run"),
            READ_ONLY,
        ),
        "select, a file": ("rows.npy", lambda: spice_rs.select("rows.npy", 4), 0),
        "write_report": (
            "closed",
            lambda: spice_rs.write_report(selection(), "store", "closed/page.html"),
            READ_ONLY,
        ),
        "relevance": ("target/store.json", lambda: spice_rs.relevance("store", "target"), 0),
        "extract": (
            "closed",
            lambda: spice_rs.extract("model", "pool.jsonl", "closed/new", dim=64),
            READ_ONLY,
        ),
        "extract, data": ("pool.jsonl", lambda: spice_rs.extract("model", "pool.jsonl", "new", dim=64), 0),
    }
    for name, (locked, call_of, mode) in functions.items():
        found[f"Python: {name}"] = Case(locked, call_of, mode=mode)
    return found


def prepare(folder: Path) -> None:
    """Make what the cases read."""
    import numpy as np

    import spice_rs
    from tiny import make_records, save_proxy

    os.chdir(folder)
    save_proxy(folder / "model")
    records = [{**each, "topic": "ab"[row % 2]} for row, each in enumerate(make_records(24))]
    Path("pool.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    for name, count in (("store", 24), ("other", 24), ("target", 6)):
        spice_rs.extract("model", records[:count], name, dim=64, progress=False)
    with spice_rs.GradientStore.create("many", dim=2, rows_per_shard=1) as writer:
        writer.append(np.ones((4, 2), np.float32), range(4))
    np.save("rows.npy", np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32))
    spice_rs.select("store", 4, checkpoint="run").save("sel.safetensors")
    Path("wanted.txt").write_text("3\n5\n", encoding="utf-8")
    Path("shares.json").write_text('{"a": [0.2, null]}', encoding="utf-8")
    Path("template.jinja").write_text("{{ messages }}", encoding="utf-8")
    for name in ("closed", "empty"):
        Path(name).mkdir()


@contextmanager
def watching(worked: list[str]) -> Iterator[None]:
    """Inside, work that may take long is written down: a search, an analysis, a look at data and model."""
    from spice_rs.analysis import certificate
    from spice_rs.extraction import extractor
    from spice_rs.report import page
    from spice_rs.selection import growth, selection

    def noted(place: Any, name: str) -> Any:
        work = getattr(place, name)

        def called(*given: Any, **named: Any) -> Any:
            worked.append(name)
            return work(*given, **named)

        return patch.object(place, name, called)

    with ExitStack() as stack:
        for place, name in (
            (selection, "run"),
            (growth, "run"),
            (page, "analyze"),
            (certificate, "places_of"),
            (extractor, "preparing"),
        ):
            stack.enter_context(noted(place, name))
        yield


def tried(case: Case) -> dict[str, Any]:
    """What came of a case."""
    from spice_rs import SpiceError, cli

    out, err, worked = StringIO(), StringIO(), []
    locked = Path(case.locked)
    mode = locked.stat().st_mode
    locked.chmod(case.mode)
    before = set(os.listdir("."))
    kind, code = "", 0
    try:
        with redirect_stdout(out), redirect_stderr(err), watching(worked):
            if callable(case.call):
                case.call()
            else:
                code = cli.main(case.call)
    except SpiceError as error:
        kind, said = type(error).__name__, str(error)
    except BaseException as error:  # noqa: BLE001 - whatever else is what is looked for
        kind, said = f"not ours: {type(error).__name__}", str(error)
    else:
        said = err.getvalue().strip()
    finally:
        locked.chmod(mode)
    left = sorted(set(os.listdir(".")) - before)
    for name in left:
        shutil.rmtree(name) if os.path.isdir(name) else os.unlink(name)
    return {"code": code, "kind": kind, "said": said, "left": left, "worked": worked}


def main() -> None:
    """Prepare, and try all."""
    if not obey():
        print(json.dumps({"name": "no permissions here"}))
        return
    warnings.simplefilter("ignore")
    prepare(Path(sys.argv[1]))
    for name, case in cases().items():
        print(json.dumps({"name": name, "locked": case.locked, **tried(case)}), flush=True)


if __name__ == "__main__":
    main()
