"""The command line: `spice-rs COMMAND`. Options, defaults and their help come from the functions behind them."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import spice_rs
from spice_rs.errors import SpiceError, SpiceWarning
from spice_rs.progress import bar

EXIT_CHECK_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

COLUMNS = ("groups", "costs", "weights", "prior")
"""Arguments of `select` that are the name of a column here."""

ROW_FILES = ("initial", "include", "exclude")
"""Arguments of `select` that are a file of rows here."""

WORDS = {
    **dict.fromkeys(COLUMNS, ("COLUMN", "Here: a column of --data.")),
    **dict.fromkeys(
        (*ROW_FILES, "old_rows"),
        (
            "FILE",
            "Here: a file with one row number per line, picks as --out writes them, or what --save wrote.",
        ),
    ),
    "group_shares": (
        "pool|JSON|FILE",
        'Here: pool, or JSON such as {"maths": [0.2, null]}, or a .json file of it.',
    ),
}
"""What these arguments are on the command line: placeholder and explanation."""

SHOWN_GROUPS = 50
"""More groups than these are no table that anybody reads."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 1 where a check fails, 2 for an error of the user's, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.simplefilter("always", SpiceWarning)
            options = vars(_parser(arguments[:1]).parse_args(arguments))
            command: Callable[..., int | None] = options.pop("run")
            code = command(**options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it exits
        return EXIT_BROKEN_PIPE
    except (SpiceError, OSError, ModuleNotFoundError) as error:
        print(f"spice-rs: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("spice-rs: interrupted; what was committed to a store or a checkpoint is kept", file=sys.stderr)
        return EXIT_INTERRUPTED
    return code or 0


# --- commands ----------------------------------------------------------------------------------------------------


def _extract(model: str, data: str, out: str, **options: Any) -> None:
    from spice_rs.ranks import Rank

    store = spice_rs.extract(model, data, out, **options)
    rank = Rank.current()
    if rank.count > 1:
        print(f"{store.path}: rank {rank.number} of {rank.count} is done, {len(store)} rows are there so far")
        return
    tracked = store.provenance["tracked"]
    print(f"{store.path}: {len(store)} rows × {store.dim} columns, {store.dtype}")
    print(
        f"gradients of {tracked['coordinates']:,} parameters in {tracked['layers']} layers: "
        f"{tracked['coverage']:.1%} of those meant"
    )


def _plan(model: str, data: str, **options: Any) -> None:
    print(spice_rs.plan(model, data, **options))


def _doctor(model: str, data: str, **options: Any) -> int:
    diagnosis = spice_rs.doctor(model, data, **options)
    print(diagnosis)
    return 0 if diagnosis.passed else EXIT_CHECK_FAILED


def _select(source: str, out: str, data: str | None, save: str | None, **options: Any) -> None:
    from spice_rs.atomic import check_place
    from spice_rs.picks import check_output, read_rows, write_picks
    from spice_rs.report import group_table

    check_output(out, data)
    if save is not None:
        check_place(save)
    if any(options[name] is not None for name in COLUMNS):
        options["data"] = data
    for name in ROW_FILES:
        if options[name] is not None:
            options[name] = read_rows(options[name])
    options["group_shares"] = _shares(options["group_shares"])
    selection = spice_rs.select(source, **options)
    if save is not None:
        selection.save(save)
    write_picks(selection, out, data)
    print(f"{selection!r}\nmedian alpha·‖g‖² {selection.signal:.3g}", file=sys.stderr)
    if selection.compared is not None:
        runs = [
            f"{name} log det {run['log_det']:.6g} ({run['picks']} picks, cost {run['cost']:g})"
            for name, run in selection.compared.items()
            if name != "kept"
        ]
        print(f"{'; '.join(runs)}: kept {selection.compared['kept']}", file=sys.stderr)
    if selection.groups is not None and len(selection.quotas) <= SHOWN_GROUPS:
        print(group_table(selection), file=sys.stderr)
    if out != "-":
        print(f"{out}: {len(selection)} lines", file=sys.stderr)


def _extend(earlier: str, source: str, out: str, data: str | None, save: str | None, **options: Any) -> None:
    from spice_rs.atomic import check_place
    from spice_rs.picks import check_output, read_rows, write_picks

    check_output(out, data)
    if save is not None:
        check_place(save)
    if options["old_rows"] is not None:
        rows = read_rows(options["old_rows"])
        options["old_rows"] = rows.indices if isinstance(rows, spice_rs.Selection) else rows
    selection = spice_rs.extend(spice_rs.Selection.load(earlier), source, **options)
    if save is not None:
        selection.save(save)
    write_picks(selection, out, data)
    print(repr(selection), file=sys.stderr)
    if out != "-":
        print(f"{out}: {len(selection)} lines", file=sys.stderr)


def _shares(text: str | None) -> Any:
    """Return what `--group-shares` says: a word, or JSON in the argument or in a file."""
    if text is None or not (text.lstrip().startswith("{") or text.endswith(".json")):
        return text
    try:
        if text.endswith(".json"):
            with open(text, encoding="utf-8") as file:
                return json.load(file)
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise spice_rs.InvalidInputError(
            f"--group-shares: found no JSON ({error}), expected 'pool' or an object: label → [minimum, maximum]. For"
            ' example {"maths": [0.2, null]}.'
        ) from error


def _info(store: str, as_json: bool) -> None:
    info = spice_rs.GradientStore(store).info()
    if as_json:
        print(json.dumps(info, indent=2))
        return
    for key, value in info.items():
        text = value if isinstance(value, str) else json.dumps(value)
        print(f"{key:20} {text if len(text) <= 100 else text[:97] + '...'}")


def _verify(store: str, as_json: bool, progress: bool | None) -> None:
    opened = spice_rs.GradientStore(store)
    with _watch(progress, "verify") as watch:
        counts = opened.verify(watch)
    if as_json:
        print(json.dumps(counts))
        return
    print(f"{store}: sound, {counts['shards']} shards, {counts['rows']} rows, {counts['bytes']} bytes")
    for kind in ("superseded", "leftovers"):
        for name in counts[kind]:
            print(f"{kind}: {name}")
    if counts["superseded"] or counts["leftovers"]:
        print(
            f"{store}: `spice-rs repair` removes these files, unless a writer still works on them",
            file=sys.stderr,
        )


def _merge(out: str, stores: list[str], as_json: bool, progress: bool | None) -> None:
    with _watch(progress, "merge") as watch:
        merged = spice_rs.GradientStore.merge(stores, out, watch)
    _report(as_json, f"{out}: {len(merged)} rows", {"path": out, "rows": len(merged)})


def _compact(store: str, bytes_per_shard: int | None, as_json: bool, progress: bool | None) -> None:
    opened = spice_rs.GradientStore(store)
    with _watch(progress, "compact") as watch:
        done = opened.compact(bytes_per_shard, watch)
    _report(as_json, f"{store}: {done['shards_before']} shards are {done['shards']} now", done)


def _repair(store: str, as_json: bool, progress: bool | None) -> None:
    with _watch(progress, "repair", "shards") as watch:
        done = spice_rs.GradientStore.repair(store, watch)
    lines = [f"removed: {name}" for name in done["removed"]]
    lines += [f"kept, a writer may still work on it: {name}" for name in done["kept"]]
    lines += [f"set aside: {shard['name']} ({shard['reason']})" for shard in done["damaged"]]
    _report(as_json, "\n".join(lines) or f"{store}: nothing to repair", done)


def _convert(store: str, out: str, dtype: str, as_json: bool, progress: bool | None) -> None:
    opened = spice_rs.GradientStore(store)
    with _watch(progress, "convert") as watch:
        new = opened.convert(out, dtype, watch)
    about = {"path": out, "rows": len(new), "dtype": new.dtype, "bytes": new.info()["bytes"]}
    _report(as_json, f"{out}: {len(new)} rows, {new.dtype}, {about['bytes']} bytes", about)


def _export(store: str, out: str, index: str | None, as_json: bool, progress: bool | None) -> None:
    opened = spice_rs.GradientStore(store)
    with _watch(progress, "export") as watch:
        opened.export(out, index, watch)
    about = {"path": out, "index": index, "rows": len(opened), "dim": opened.dim}
    _report(as_json, f"{out}: {len(opened)} rows × {opened.dim} columns, float32", about)


@contextmanager
def _watch(progress: bool | None, what: str, unit: str = "rows") -> Iterator[Callable[[int, int], None]]:
    """Yield what to call with (done, all): it moves a bar."""
    drawn: Any = None
    seen = 0

    def watch(done: int, total: int) -> None:
        nonlocal drawn, seen
        drawn = drawn or bar(progress, total=total, what=what, unit=unit)
        drawn.update(done - seen)
        seen = done

    try:
        yield watch
    finally:
        if drawn is not None:
            drawn.close()


def _report(as_json: bool, text: str, result: Mapping[str, Any]) -> None:
    print(json.dumps(result) if as_json else text)


def _demo(folder: str, samples: int, share: float) -> None:
    from spice_rs.demo import run_demo

    run_demo(folder, samples=samples, share=share)


# --- parsing -----------------------------------------------------------------------------------------------------


def _parser(called: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spice-rs",
        description="Choose fine-tuning data by Fisher information and gradient conflict (SPICE).",
        epilog="Example: spice-rs extract --model MODEL --data pool.jsonl --out store && "
        "spice-rs select store -k 1000 --data pool.jsonl --out picks.jsonl",
    )
    parser.add_argument("--version", action="version", version=f"spice-rs {spice_rs.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    extract = _command(commands, "extract", _extract, "compute projected per-sample gradients into a store")
    if "extract" in called:  # importing it takes torch, and seconds
        _options(extract, spice_rs.extract, required=("model", "data", "out"))

    plan = _command(commands, "plan", _plan, "predict time, disk and memory of an extraction")
    if "plan" in called:
        _options(plan, spice_rs.plan, required=("model", "data"), skip=("extraction",))
        _options(plan, spice_rs.extract, skip=("model", "data", "out", "progress"))

    doctor = _command(commands, "doctor", _doctor, "check on a few samples that the gradients are right")
    if "doctor" in called:
        _options(doctor, spice_rs.doctor, required=("model", "data"), skip=("extraction",))
        skip = ("model", "data", "out", "dim", "projection", "nnz", "side", "dtype", "progress", "skip_bad")
        _options(doctor, spice_rs.extract, skip=skip)

    select = _command(commands, "select", _select, "pick the rows that carry the most Fisher information")
    select.add_argument(
        "source", metavar="SOURCE", help="store folder, .npy, .npz, file.npz::member or headerless file"
    )
    select.add_argument(
        "--out", default="-", help="JSON Lines file for the picks in order; - for stdout (default)"
    )
    select.add_argument(
        "--data",
        help="the data the store was made from: each line is then the record with a key 'spice', and columns of it can"
        " be named",
    )
    select.add_argument(
        "--save", metavar="FILE", help="safetensors file for the whole selection; Selection.load reads it"
    )
    _options(select, spice_rs.select, skip=("source", "data"), words=WORDS)

    extend = _command(commands, "extend", _extend, "select again from a pool that has grown")
    extend.add_argument("earlier", metavar="SELECTION", help="what `select --save` wrote of the smaller pool")
    extend.add_argument("source", metavar="SOURCE", help="the pool as it is now")
    extend.add_argument("--out", default="-", help="as for select")
    extend.add_argument("--data", help="as for select: the data that the grown pool was made from")
    extend.add_argument("--save", metavar="FILE", help="as for select")
    _options(extend, spice_rs.extend, skip=("selection", "source"), words=WORDS)

    merge = _command(commands, "merge", _merge, "make one new store of several, with identical rows once")
    merge.add_argument("out", metavar="OUT", help="the new store: a new folder")
    merge.add_argument("stores", metavar="STORE", nargs="+", help="store folder")
    _store_options(merge)

    for name, run, summary in (
        ("info", _info, "show what a store holds, without reading gradients"),
        ("verify", _verify, "read a whole store and check every checksum and number"),
        ("compact", _compact, "replace small shards by few large ones; the store can be used meanwhile"),
        ("repair", _repair, "remove forgotten files from a store and set damaged shards aside"),
        ("convert", _convert, "make a new store of the same rows in another dtype"),
        ("export", _export, "write the rows of a store to a .npy file, as float32, sorted by dataset row"),
    ):
        command = _command(commands, name, run, summary)
        command.add_argument("store", metavar="STORE", help="store folder")
        if name == "compact":
            command.add_argument(
                "--bytes-per-shard", type=int, metavar="INT", help="size of the new shards (default: 64 MiB)"
            )
        if name == "convert":
            command.add_argument("out", metavar="OUT", help="the new store: a new folder")
            command.add_argument("--dtype", required=True, help="int8, float16, bfloat16 or float32")
        if name == "export":
            command.add_argument("out", metavar="FILE", help=".npy file for the rows")
            command.add_argument("--index", metavar="FILE", help=".npy file for the dataset rows")
        _store_options(command, progress=name != "info")

    demo = _command(commands, "demo", _demo, "run everything on a small real model and generated tasks")
    demo.add_argument(
        "folder", nargs="?", default="demo-out", help="where data, store and picks go (default: demo-out)"
    )
    demo.add_argument("--samples", type=int, default=240, help="size of the pool (default: 240)")
    demo.add_argument("--share", type=float, default=0.1, help="share of the pool to select (default: 0.1)")
    return parser


def _store_options(parser: argparse.ArgumentParser, progress: bool = True) -> None:
    parser.add_argument("--json", action="store_true", dest="as_json", help="print JSON for scripts")
    if progress:
        parser.add_argument("--progress", action=argparse.BooleanOptionalAction, help="show a bar")


def _command(
    commands: Any, name: str, run: Callable[..., int | None], summary: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
    )
    command.set_defaults(run=run)
    return command


def _options(
    parser: argparse.ArgumentParser,
    function: Callable[..., Any],
    *,
    skip: Sequence[str] = (),
    required: Sequence[str] = (),
    words: Mapping[str, tuple[str, str]] | None = None,
) -> None:
    """Add an option for every parameter of `function` that can be given in words."""
    helps = _argument_docs(function)
    hints = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if name in skip:
            continue
        keywords = _option(hints.get(name, str))
        if keywords is None:
            continue
        flag = f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"
        text = helps.get(name, "")
        if words and name in words:
            keywords["metavar"], note = words[name]
            text += f" {note}"
        if name in required:
            keywords["required"] = True
        else:
            keywords["default"] = parameter.default
            if parameter.default not in (None, False):
                text += f" (default: {parameter.default})"
        parser.add_argument(flag, dest=name, help=text.replace("%", "%%"), **keywords)


def _option(hint: Any) -> dict[str, Any] | None:
    """Return argparse's keywords for a type; None for what cannot be given in words."""
    choices = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else ()
    )
    choices = tuple(choice for choice in choices if choice is not type(None)) or (hint,)
    if bool in choices:
        return {"action": argparse.BooleanOptionalAction}
    for kind in (int, float):
        if kind in choices:
            return {"type": kind, "metavar": kind.__name__.upper()}
    for choice in choices:
        if typing.get_origin(choice) is Literal:
            return {"choices": typing.get_args(choice)}
    if str in choices and any(typing.get_origin(choice) in (list, Sequence) for choice in choices):
        return {"type": _names, "metavar": "NAMES"}
    if str in choices or Any in choices:
        return {"metavar": "TEXT"}
    if any(typing.get_origin(choice) is Mapping for choice in choices):
        return {"type": _pairs, "metavar": "NAME=COLUMN,…"}
    return None


def _names(text: str) -> str | list[str]:
    """Read `q_proj,k_proj` as a list of names and anything else as one pattern."""
    return text.split(",") if re.fullmatch(r"[\w.]+(,[\w.]+)+", text) else text


def _pairs(text: str) -> dict[str, str]:
    """Read `prompt=frage,response=antwort`."""
    pairs = [pair.split("=", 1) for pair in text.split(",")]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected NAME=COLUMN,NAME=COLUMN")
    return {name.strip(): column.strip() for name, column in pairs}


def _argument_docs(function: Callable[..., Any]) -> dict[str, str]:
    """Return the Args section of a docstring, name → text on one line."""
    doc = inspect.getdoc(function) or ""
    section = re.search(r"^Args:\n((?:    .*\n|\n)+)", doc + "\n", re.MULTILINE)
    found: dict[str, str] = {}
    for entry in re.finditer(
        r"^    (\w+): ((?:.*\n)(?:        .*\n)*)", section[1] if section else "", re.MULTILINE
    ):
        found[entry[1]] = " ".join(entry[2].split()).replace("`", "")
    return found


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, SpiceWarning):
        print(f"spice-rs: warning: {message}", file=sys.stderr)
