"""Which settings to use: every scale, α, λ, ω, mode and window on real gradients. Prints tables, or fills a page.

    python benches/settings/study.py [--gradients FILE.npz] [--store FOLDER] [--pool FILE.jsonl.gz] [--page FILE.md]

Each pool is split: four fifths can be selected, a tenth of these are; a fifth is held out and judges the picks. The page
keeps its prose; what stands between its `<!-- tables -->` marks is replaced. Takes half a minute a pool on two cores.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import spice_rs
from measures import Geometry, Judge, geometry, jaccard, shift, stepwise_spearman
from pool import Pool, from_archive, from_store

SHARED = Path(__file__).parents[2] / "../shared/data"
SHARE = 0.1
PENALTIES = (0.0, 0.1, 0.3, 0.5, 1.0, 3.0)
ALPHAS = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Times 1 / median ‖g‖²."""

MARKS = re.compile(r"(<!-- tables -->\n).*(<!-- end of tables -->)", re.DOTALL)


class Study:
    """One pool, its judge, and the selections made so far."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.judge = Judge(pool)
        self.k = round(SHARE * len(pool.candidates))
        self.median = {
            scale: float(np.median(np.square(rows[pool.candidates].astype(np.float64)).sum(1)))
            for scale, rows in pool.scaled.items()
        }

    def select(
        self, scale: str, factor: float = 1.0, penalty: float = 0.1, **options: object
    ) -> spice_rs.Selection:
        """Select a tenth of the candidates with α = factor / median ‖g‖²."""
        budget = {} if "pool_size" in options else {"k": self.k}
        return spice_rs.select(
            self.pool.scaled[scale][self.pool.candidates],
            alpha=factor / self.median[scale],
            conflict_penalty=penalty,
            normalize="none",
            **{**budget, **options},
        )

    def picks(self, selection: spice_rs.Selection) -> np.ndarray:
        """Return the positions of the picks in the whole pool."""
        return self.pool.candidates[selection.indices]

    def outcome(self, picks: np.ndarray) -> list[str]:
        """Return the cells that every table of picks ends with."""
        verdict = self.judge.verdict(picks)
        return [
            f"{np.median(self.pool.tokens[picks]):.0f}",
            f"{shift(self.pool, picks):.2f}",
            *(f"{verdict[name]:.3f}" for name in ("unit", "mean")),
            f"{verdict['unit, best']:.2f} … {verdict['unit, worst']:.2f}",
        ]


OUTCOME = ["median tokens", "shift", "left, unit", "left, mean", "by source (unit)"]


def table(heading: list[str], rows: Iterator[list[str]]) -> str:
    lines = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def scales(study: Study) -> str:
    """Scale × α, λ = 0.1, full, over the whole pool."""

    def rows() -> Iterator[list[str]]:
        pool = study.pool
        sets = [
            np.random.default_rng(seed).choice(pool.candidates, study.k, replace=False) for seed in range(5)
        ]
        shown = [study.outcome(picks) for picks in sets]
        yield ["(random, first of five)", "", "", "", "", *shown[0]]
        for scale in pool.scaled:
            for factor in [*ALPHAS, 1.0 * study.median[scale]]:
                given = "1" if factor not in ALPHAS else f"{factor:g} / median"
                found = study.select(scale, factor)
                free = study.select(scale, factor, 0.0)
                yield [
                    scale,
                    given,
                    f"{factor:.3g}",
                    str(found.half_life or "–"),
                    f"{jaccard(found.indices, free.indices):.2f}",
                    *study.outcome(study.picks(found)),
                ]

    return table(["scale", "α", "median α‖g‖²", "half-life", "shared with λ = 0", *OUTCOME], rows())


def penalties(study: Study) -> str:
    """Λ sweep at α = 1 / median."""

    def rows() -> Iterator[list[str]]:
        for scale in ("mean", "unit", "unit, centred, unit"):
            free = study.select(scale, 1.0, 0.0)
            for penalty in PENALTIES:
                found = study.select(scale, 1.0, penalty)
                yield [
                    scale,
                    f"{penalty:g}",
                    f"{found.log_det / free.log_det:.4f}",
                    f"{found.conflict.mean():.4f}",
                    f"{jaccard(found.indices, free.indices):.2f}",
                    *study.outcome(study.picks(found)),
                ]

    heading = ["scale", "λ", "U / U(λ = 0)", "mean conflict", "shared with λ = 0", *OUTCOME]
    return table(heading, rows())


def modes(study: Study) -> str:
    """Full and diagonal, global and in windows, pool shares."""

    def rows() -> Iterator[list[str]]:
        windows = {"pool_size": 128, "select_per_window": round(128 * SHARE)}
        shares = {"groups": study.pool.sources[study.pool.candidates], "group_shares": "pool"}
        for scale in ("mean", "unit"):
            space = geometry(study.pool.scaled[scale], 1 / study.median[scale])
            best = space.log_det(study.picks(study.select(scale, penalty=0.0)))
            for fisher in ("full", "diagonal"):
                for name, options in {"pool": {}, "windows of 128": windows, "pool's shares": shares}.items():
                    picks = study.picks(study.select(scale, fisher=fisher, **options))
                    yield [
                        scale,
                        fisher,
                        name,
                        str(len(picks)),
                        f"{space.log_det(picks) / best:.3f}",
                        *study.outcome(picks),
                    ]

    return table(["scale", "Fisher", "over", "picks", "U / best", *OUTCOME], rows())


def stops(study: Study) -> str:
    """Early stop: what ω leaves of the budget."""

    def rows() -> Iterator[list[str]]:
        for scale in ("mean", "unit"):
            for factor in (0.1, 1.0, 10.0):
                whole = study.select(scale, factor)
                for omega in (0.3, 0.5, 0.7):
                    found = study.select(scale, factor, early_stop=omega)
                    window = study.select(
                        scale, factor, early_stop=omega, pool_size=128, select_per_window=round(128 * SHARE)
                    )
                    yield [
                        scale,
                        f"{factor:g} / median",
                        f"{omega:g}",
                        f"{len(found)} of {study.k}",
                        f"{found.log_det / whole.log_det:.2f}",
                        str(len(window)),
                    ]

    heading = ["scale", "α", "ω", "picks", "U / U without", "picks, windows of 128"]
    return table(heading, rows())


def claims(study: Study) -> str:
    """The paper's figures about the run, beside ours."""

    def rows() -> Iterator[list[str]]:
        for scale in ("mean", "unit"):
            for factor in (0.1, 1.0, 10.0):
                space = Geometry(study.judge.grounds[scale].gram, factor / study.median[scale])
                found = study.select(scale, factor)
                free = study.select(scale, factor, 0.0)
                rho = stepwise_spearman(space, study.picks(found), study.pool.candidates)
                yield [
                    scale,
                    f"{factor:g} / median",
                    *(f"{rho[name]:.2f}" for name in rho),
                    str(found.half_life or f"> {study.k}"),
                    _window_half_life(study, scale, factor),
                    f"{found.log_det / free.log_det:.4f}",
                ]

    names = [f"{a} / {b}" for a in ("conflict", "cos", "Σ(gᵀg)²") for b in ("Δ", "ε")]
    return table(["scale", "α", *names, "half-life", "in windows", "U / U(λ = 0)"], rows())


def _window_half_life(study: Study, scale: str, factor: float) -> str:
    """Return the median half-life over the windows of 128, run to 64 picks each."""
    candidates = study.pool.candidates
    order = np.random.default_rng(0).permutation(len(candidates))
    lives = []
    for start in range(0, len(order) - 127, 128):
        rows = study.pool.scaled[scale][candidates[order[start : start + 128]]]
        found = spice_rs.select(rows, 64, alpha=factor / study.median[scale], normalize="none")
        lives.append(found.half_life or np.inf)
    middle = float(np.median(lives))
    return f"{middle:.0f}" if np.isfinite(middle) else "> 64"


SECTIONS = {
    "Scale and α": scales,
    "λ": penalties,
    "Modes": modes,
    "Early stop": stops,
    "The paper's figures": claims,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gradients", type=Path, default=SHARED / "gradients_smollm2.npz")
    parser.add_argument("--store", type=Path, help="a store of summed gradients of the same pool's records")
    parser.add_argument("--pool", type=Path, default=SHARED / "pool.jsonl.gz")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--page", type=Path, help="Markdown file to write the tables into")
    settings = parser.parse_args()
    sys.path.append(str(Path(__file__).parents[1]))
    from machine import describe

    warnings.simplefilter("ignore", spice_rs.SpiceWarning)

    pools = [from_archive(settings.gradients, settings.pool, settings.seed)]
    if settings.store:
        pools.append(from_store(settings.store, settings.pool, settings.seed))
    text = f"{describe()}\n- seed {settings.seed}\n"
    for pool in pools:
        study = Study(pool)
        n, d = pool.rows.shape
        medians = ", ".join(f"{scale}: {value:.3g}" for scale, value in study.median.items())
        text += (
            f"\n### {pool.name}\n\nn = {n}, d = {d}; {len(pool.candidates)} candidates, k = {study.k},"
            f" {len(pool.held_out)} held out. Median ‖g‖² ({medians}).\n"
        )
        for name, section in SECTIONS.items():
            print(f"{pool.name}: {name}", file=sys.stderr, flush=True)
            text += f"\n**{name}**\n\n{section(study)}"
    print(text)
    if settings.page:
        page = settings.page.read_text(encoding="utf-8")
        settings.page.write_text(
            MARKS.sub(lambda found: f"{found[1]}{text}{found[2]}", page), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
