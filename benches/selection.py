"""Time `select` against its peers, against its limits and against itself; prints one table.

    python benches/selection.py                           everything: hours, most of them the large pools
    python benches/selection.py --sections loop windows   some of it
    python benches/selection.py --quick                   tiny sizes: does the script work? Its figures mean nothing

loop         n = 20 k and 100 k, d = 1024, k = 2 k: against a fused eager loop in torch, in two forms
real         gradients of a language model: the same
deep         k ≫ d: rows read per pick, with and without the angle bound
submodlib    against submodlib's LazyGreedy log-det, kernel and hand-over included
windows      windows of 128: against one pass over the pool at the speed of memory
paper        n = 97.5 k, d = 8192, k = 9750: time and memory against a limit
million      n = 1 M, d = 1024, k = 10 k (--long: and 100 k): the same
growth       n from 25 k to 200 k: exponents of time and of rows read
narrow       d = 32 and few picks: four times the rows
threads      one thread against two
approximate  ε-lazy and stochastic greedy: time and U against exact
limits       groups, budgets of cost, near-duplicates, weights, priors, owned rows: against a run without them

We read float16 files, as a store holds them; torch gets a float32 copy, made beforehand (it has no fast float16 on CPUs).
A torch loop is timed over its first --loop-picks picks and extrapolated linearly, which leaves out what grows with the
picks and so errs in its favour. All pools together take some 6 GB in --work-dir; they are deleted at the end.
submodlib wants an environment of its own: `python -m venv V && V/bin/pip install submodlib-py`, then
`--submodlib-python V/bin/python`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import worker

REAL = Path(__file__).parents[1] / "../shared/data/gradients_smollm2.npz::gradients"


def arguments(sections: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sections", nargs="+", choices=sections, default=sections)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, as a smoke test")
    parser.add_argument("--long", action="store_true", help="also pick 100 k of the million")
    parser.add_argument("--seed", type=int, default=0, help="seed of the synthetic pools")
    parser.add_argument("--loop-picks", type=int, default=60, help="picks of a torch loop that are timed")
    parser.add_argument(
        "--eager-picks",
        type=int,
        default=0,
        help="also time so many picks of our eager search, which may keep n × d float64 in memory",
    )
    parser.add_argument("--real", default=str(REAL), help="FILE.npz::MEMBER with real gradients")
    parser.add_argument("--submodlib-python", help="an interpreter that has submodlib-py")
    parser.add_argument(
        "--give-up", type=float, metavar="SECONDS", help="end a measurement that takes longer"
    )
    parser.add_argument(
        "--work-dir", help="where the pools are kept during the run; by default the temporary one"
    )
    return parser.parse_args()


def main() -> int:
    # A worker must not import more than it measures: what the table needs comes after this.
    if sys.argv[1:2] == ["--worker"]:
        worker.main(sys.argv[2])
        return 0

    import machine
    import table
    from sections import SECTIONS, Bench

    settings = arguments(list(SECTIONS))
    print(machine.describe())
    print(f"- seeds: pools {settings.seed}, windows and stochastic greedy 0; alpha = 1 everywhere")
    if settings.quick:
        print("- --quick: tiny sizes, the figures mean nothing")
    print(table.READING, flush=True)
    print(table.heading(), flush=True)
    with tempfile.TemporaryDirectory(prefix="spice-bench-", dir=settings.work_dir) as folder:
        bench = Bench(settings, Path(folder))
        for name in SECTIONS:
            if name in settings.sections:
                bench.section = name
                SECTIONS[name](bench)
    if bench.failures:
        print(f"{bench.failures} measurements failed; see their notes.", file=sys.stderr)
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
