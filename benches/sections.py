"""What is measured, one function a section. `Bench` runs a measurement and prints its row."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import constraints
import machine
import spice_rs
import table
import worker
from laws import LAWS, write_law

FORMS = ("G @ [w, m]", "linear(G, [w, m])")
"""The torch loops; the second is the faster one."""

BUSY = 0.05
"""Share of the processor time from which other programs are worth a warning."""

QUICK = {"n": 100, "d": 16, "k": 100}
"""What sizes are divided by for a smoke test."""


@dataclass(frozen=True)
class Pool:
    """A matrix on disk."""

    name: str
    n: int
    d: int
    dtype: str
    path: str

    @property
    def nbytes(self) -> int:
        return self.n * self.d * np.dtype(self.dtype).itemsize


class Bench:
    """The settings of this run, its pools, and its table."""

    def __init__(self, settings: argparse.Namespace, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.section = ""
        self.failures = 0
        self.pool = cache(self._pool)
        self.bandwidth = cache(self._bandwidth)

    def size(self, kind: str, full: int) -> int:
        """Return a size, or with --quick a tiny one."""
        return max(full // QUICK[kind], {"n": 200, "d": 8, "k": 5}[kind]) if self.settings.quick else full

    def _pool(self, name: str, n: int, d: int) -> Pool:
        n, d = self.size("n", n), self.size("d", d)
        path = self.folder / f"{name}-{n}x{d}.npy"
        write_law(path, name, n, d, self.settings.seed, "float16")
        return Pool(name, n, d, "float16", str(path))

    def _bandwidth(self, threads: int) -> dict[str, float]:
        """Return bytes a second of reading and of copying 1 GB on so many threads."""
        return self.run("bandwidth", size=1 << (24 if self.settings.quick else 30), threads=threads)

    def run(self, job: str, *, optional: bool = False, **arguments: Any) -> dict[str, Any]:
        """Run a job; what went wrong becomes the note of a result without seconds.

        An `optional` job may use settings that this spice_rs does not have: no failure.
        """
        try:
            return worker.run(job, give_up=self.settings.give_up, **arguments)
        except worker.Unavailable as error:
            self.failures += not optional
            return {"seconds": None, "note": f"n/a: {error}"}
        except worker.Failed as error:
            self.failures += 1
            return {"seconds": None, "note": str(error)}

    def select(
        self,
        pool: Pool,
        k: int | None,
        penalty: float,
        repeat: int = 1,
        *,
        optional: bool = False,
        asked: list[Any] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Time our own selection; `asked`: see `worker.select`."""
        options = {"normalize": "none", **options, "conflict_penalty": penalty}
        if k is not None:
            options["k"] = k
        result = self.run(
            "select", source=pool.path, options=options, repeat=repeat, optional=optional, asked=asked
        )
        shown = {
            "pool": pool.name,
            "n": pool.n,
            "d": pool.d,
            "k": k,
            "λ": f"{penalty:g}",
            "dtype": pool.dtype,
        }
        shown["rows as"] = "unit" if options["normalize"] == "unit" else "stored"
        if repeat > 1 and result["seconds"] is not None:
            result["note"] = f"best of {repeat}"
        return {**result, "shown": shown}

    def row(
        self, ours: dict[str, Any], run: str, against: str = "", theirs: float | None = None, *notes: str
    ) -> None:
        """Print one row of the table."""
        seconds = ours["seconds"]
        cells = {
            **ours["shown"],
            "run": run,
            "seconds": "n/a" if seconds is None else seconds,
            "against": against,
            "its s": theirs,
            "ratio": None if seconds is None or theirs is None else ratio(theirs, seconds),
            "read/pick": ours.get("rows_read"),
            "peak MB": None if ours.get("peak") is None else round(ours["peak"] / 1e6),
            "note": "; ".join(filter(None, (ours.get("note"), *notes, busy(ours)))),
        }
        print(table.line(section=self.section, **cells), flush=True)

    def note(self, text: str, **cells: object) -> None:
        """Print a row that is no measurement."""
        print(table.line(section=self.section, note=text, **cells), flush=True)

    def against_torch(self, pool: Pool, ours: dict[str, Any], form: str, goal: str = "") -> None:
        """Time a torch loop on the same rows, and print the row that compares."""
        shown = ours["shown"]
        k = shown["k"]
        if importlib.util.find_spec("torch") is None:
            return self.row(ours, "lazy", f"torch {form}", None, "torch is not installed: skipped")
        theirs = self.run(
            "torch",
            source=pool.path,
            form=form,
            picks=min(k, self.settings.loop_picks),
            alpha=1.0,
            penalty=float(shown["λ"]),
            unit=shown["rows as"] == "unit",
        )
        if theirs["seconds"] is None:
            return self.row(ours, "lazy", f"torch {form}", None, theirs["note"])
        picks = theirs["picks"]
        same = len(set(theirs["indices"]) & set(ours.get("indices", [])[:picks]))
        note = (
            f"{theirs['threads']} threads, first {picks} picks, extrapolated to {k}; {same} of them are ours"
        )
        seconds = theirs["seconds"] * k / picks
        return self.row(ours, "lazy", f"torch {form}", seconds, note, goal, busy(theirs, "its run "))


def busy(result: dict[str, Any], whose: str = "") -> str:
    """Return a warning if other programs were using the machine during a run."""
    share = result.get("others")
    return f"BUSY: {whose}{share:.0%}" if share is not None and share > BUSY else ""


def ratio(theirs: float, ours: float) -> str:
    value = theirs / ours
    return f"{value:.3f} ×" if value < 0.1 else f"{value:.2f} ×" if value < 10 else f"{value:.1f} ×"


def loop(bench: Bench) -> None:
    goals = {20_000: "goal 12 ×", 100_000: "goal 25 ×"}
    for n in goals:
        for name in LAWS:
            pool, k = bench.pool(name, n, 1024), bench.size("k", 2000)
            ours = bench.select(pool, k, 0.1)
            for form in FORMS:
                bench.against_torch(pool, ours, form, goals[n] if name == "clustered" else "")
            if bench.settings.eager_picks:
                few = min(k, bench.settings.eager_picks)
                eager = bench.select(pool, few, 0.1, search="eager")
                theirs = None if eager["seconds"] is None else eager["seconds"] * k / few
                note = f"first {few} picks, extrapolated to {k}"
                bench.row(
                    ours, "lazy", "our eager search", theirs, eager.get("note", note), busy(eager, "its run ")
                )


def real(bench: Bench) -> None:
    file, _, member = bench.settings.real.partition("::")
    if not Path(file).is_file():
        return bench.note(f"{Path(file).name} is not there (--real FILE.npz::MEMBER): skipped")
    with np.load(file) as archive:
        rows = archive[member or "gradients"][: 300 if bench.settings.quick else None]
    path = bench.folder / "real.npy"
    np.save(path, rows)
    pool = Pool("real", *rows.shape, str(rows.dtype), str(path))
    for share in (0.1, 0.5):
        for normalize in ("none", "unit"):
            ours = bench.select(pool, round(share * pool.n), 0.1, 3, normalize=normalize)
            for form in FORMS:
                bench.against_torch(pool, ours, form)
    return None


def deep(bench: Bench) -> None:
    # "lazy_gain" bounds scores by a stale gain alone, "lazy" by a stale angle too.
    for name in ("clustered", "opposed"):
        for penalty in (0.1, 0.5):
            pool, k = bench.pool(name, 50_000, 128), bench.size("k", 5000)
            both = bench.select(pool, k, penalty, search="lazy")
            gain = bench.select(pool, k, penalty, search="lazy_gain", optional=True)
            bench.row(both, "search=lazy", "search=lazy_gain", gain["seconds"])
            bench.row(gain, "search=lazy_gain")


def submodlib(bench: Bench) -> None:
    python = bench.settings.submodlib_python
    if not python:
        return bench.note("needs --submodlib-python, an interpreter with submodlib-py: skipped")
    pool, k = bench.pool("clustered", 5000, 2048), bench.size("k", 200)
    ours = bench.select(pool, k, 0.0)
    theirs = bench.run("submodlib", python=python, source=pool.path, k=k, alpha=1.0)
    if theirs["seconds"] is None or ours["seconds"] is None:
        return bench.row(ours, "lazy", "submodlib LazyGreedy", theirs["seconds"], theirs.get("note", ""))
    parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in theirs["parts"].items())
    value = spice_rs.log_det(pool.path, theirs["indices"])
    note = f"{parts}; U {ours['log_det']:.6f}, theirs {value:.6f}; goal 20 ×"
    against = "submodlib LazyGreedy"
    return bench.row(ours, "lazy", against, theirs["seconds"], note, busy(theirs, "its run "))


def windows(bench: Bench) -> None:
    pool = bench.pool("clustered", 100_000, 1024)
    for fisher, goal in (("full", ""), ("diagonal", "goal 0.5 ×")):
        window = {"pool_size": 128, "select_per_window": 13, "fisher": fisher}
        ours = bench.select(pool, None, 0.1, repeat=3, **window)
        ours["shown"]["k"] = "13/128"
        against_memory(bench, pool, ours, f"windows, {fisher}", machine.cores(), goal)


def against_memory(
    bench: Bench, pool: Pool, ours: dict[str, Any], run: str, threads: int, goal: str = ""
) -> None:
    """Print a row that compares with one pass over the pool at the measured speed of memory."""
    speed = bench.bandwidth(threads)
    if ours["seconds"] is None or "read" not in speed:
        return bench.row(ours, run, "", None, speed.get("note", ""))
    reached = pool.nbytes / ours["seconds"] / 1e9
    note = f"{reached:.2f} GB/s; measured copy {speed['copy'] / 1e9:.1f} GB/s"
    against = f"one read at {speed['read'] / 1e9:.1f} GB/s"
    return bench.row(ours, run, against, pool.nbytes / speed["read"], note, goal, busy(speed, "its run "))


def paper(bench: Bench) -> None:
    pool = bench.pool("clustered", 97_500, 8192)
    ours = bench.select(pool, bench.size("k", 9750), 0.1)
    bench.row(ours, "lazy", "limit", 8 * 60.0, "limit 3,000 MB")


def million(bench: Bench) -> None:
    pool = bench.pool("clustered", 1_000_000, 1024)
    for k, limit in ((10_000, 4 * 60.0), (100_000, 25 * 60.0))[: 2 if bench.settings.long else 1]:
        bench.row(bench.select(pool, bench.size("k", k), 0.1), "lazy", "limit", limit)


def growth(bench: Bench) -> None:
    runs = []
    for n in (25_000, 50_000, 100_000, 200_000):
        pool = bench.pool("clustered", n, 1024)
        ours = bench.select(pool, bench.size("k", 2000), 0.1)
        bench.row(ours, "lazy")
        if ours["seconds"] is not None:
            runs.append((pool.n, ours["seconds"], ours["rows_read"]))
    if len(runs) < 2:
        return bench.note("fewer than two runs ended: nothing to fit")
    n, seconds, read = np.log(np.array(runs, float)).T
    fitted = {"seconds": np.polyfit(n, seconds, 1)[0], "read/pick": np.polyfit(n, read, 1)[0]}
    cells = {name: f"n^{exponent:.2f}" for name, exponent in fitted.items()}
    return bench.note(
        f"least squares over {len(runs)} points, in logarithms", run="exponent of growth", **cells
    )


def narrow(bench: Bench) -> None:
    for name in LAWS:
        seconds = []
        for n in (250_000, 1_000_000):
            ours = bench.select(bench.pool(name, n, 32), bench.size("k", 50), 0.1, 3, threads=1)
            bench.row(ours, "lazy, threads=1")
            seconds.append(ours["seconds"])
        if all(seconds):
            bench.note(f"{name}: {seconds[1] / seconds[0]:.1f} × the seconds for 4 × the rows")


def threads(bench: Bench) -> None:
    pool = bench.pool("clustered", 100_000, 1024)
    for k, run, repeat in ((bench.size("k", 2000), "lazy", 3), (1, "first pass", 3)):
        alone: float | None = None
        for count in (1, 2):
            ours = bench.select(pool, k, 0.1, repeat, threads=count)
            label = f"{run}, threads={count}"
            if count == 1:
                alone = ours["seconds"]
            else:
                goal = "goal 1.7 × where compute-bound"
                bench.row(ours, label, "threads=1", alone, goal)
            if k == 1:
                against_memory(bench, pool, ours, label, count)
            elif count == 1:
                bench.row(ours, label)


def approximate(bench: Bench) -> None:
    for name in ("clustered", "unit"):
        pool, k = bench.pool(name, 100_000, 1024), bench.size("k", 2000)
        exact = bench.select(pool, k, 0.0)
        bench.row(exact, "exact")
        for options in approximations():
            ours = bench.select(pool, k, 0.0, optional=True, **options)
            note = ""
            if ours["seconds"] is not None and exact["seconds"] is not None:
                note = f"U = {ours['log_det'] / exact['log_det']:.5f} of exact"
            label = f"{options['method']}, ε={options['epsilon']}"
            bench.row(ours, label, "exact", exact["seconds"], note)


def limits(bench: Bench) -> None:
    pool, k = bench.pool("clustered", 100_000, 1024), bench.size("k", 2000)
    plain = bench.select(pool, k, 0.1, 3)
    bench.row(plain, "nothing asked")
    for name in constraints.NAMES:
        ours = bench.select(pool, None, 0.1, 3, asked=[name, pool.n, k, bench.settings.seed])
        ours["shown"]["k"] = ours.get("picks")
        note = ""
        if ours.get("compared"):
            runs = {run: ours["compared"][run]["picks"] for run in ("costed", "uncosted")}
            note = "two runs: " + ", ".join(f"{run} {picks} picks" for run, picks in runs.items())
        bench.row(ours, name, "nothing asked", plain["seconds"], note, "goal 0.67 ×")


def approximations() -> Iterator[dict[str, Any]]:
    """Settings that give up exactness for speed; the stated guarantees hold without penalty."""
    for epsilon in (0.01, 0.1, 0.3):
        yield {"method": "epsilon_lazy", "epsilon": epsilon}
    for epsilon in (0.01, 0.1, 0.3):
        yield {"method": "stochastic", "epsilon": epsilon, "seed": 0}


SECTIONS: dict[str, Callable[[Bench], None]] = {
    section.__name__: section
    for section in (
        loop,
        real,
        deep,
        submodlib,
        windows,
        paper,
        million,
        growth,
        narrow,
        threads,
        approximate,
        limits,
    )
}
