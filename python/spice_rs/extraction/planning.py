"""`plan`: what an extraction will take, from a few of its own batches.

The batches that the run will make are known before it: the samples are tokenised, and go longest first. A few of them, from
the longest to the shortest, are computed and written to a store that is thrown away, and the times of the others lie
between theirs. The first batch needs the most memory, so that the peak so far is that of the run; where one does not fit,
the batches become smaller here as they would there.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spice_rs.arguments import flag_or_none, whole
from spice_rs.data.templates import recorded_date
from spice_rs.extraction.batching import Sample, lengths_of, longest_first, rows_of
from spice_rs.extraction.extractor import extract
from spice_rs.extraction.gradients import GradientRun, write_rows
from spice_rs.extraction.joining import check_settings, dataset_of
from spice_rs.extraction.preparation import Extraction, preparing
from spice_rs.extraction.ranks import Rank
from spice_rs.extraction.settings import Settings
from spice_rs.extraction.token_cache import TokenCache
from spice_rs.extraction.transfer import HostCopy
from spice_rs.paths import local_or_none
from spice_rs.progress import libraries_silent
from spice_rs.signs import step
from spice_rs.store.store import GradientStore, GradientWriter
from spice_rs.tables import aligned
from spice_rs.temporary import folder_for

_CELL = {"int8": 1, "float16": 2, "bfloat16": 2, "float32": 4}
_COLUMNS = 24  # bytes of a row's index, scale, norm, loss and number of tokens
_SHARD = 64 << 20  # rows wait in memory until there are so many bytes of them
_HEADER = 1024  # of a shard; store.json is about as long
_REPEATS, _ENOUGH = 7, 0.3  # a batch is timed so often, or for so many seconds

clock: Callable[[], float] = time.perf_counter


@dataclass(frozen=True)
class Plan:
    """What an extraction will take.

    Attributes:
        rows: Rows to compute: those that can be used and that the store lacks.
        tokens: Their tokens, without padding.
        processes: Processes that share them.
        batches: Batches of the process that has most to do.
        measured: How many of those were computed for this.
        rows_per_second: Of all processes together, once they run.
        seconds: From the first batch to the last.
        preparation: Seconds until the first batch: reading, loading, tokenising, hashing.
        disk: Bytes of the new rows in the store.
        memory: Most bytes of memory of one process; on a GPU, of its memory.
        tokens_per_batch: Padded tokens per batch, smaller than asked for where those did not fit.
        coverage: Tracked share of the parameters meant.
        left_out: Records that cannot be used.
        truncated: Samples that are cut.
        scratch: Bytes of disk for the tokens until the extraction ends, and for the records until they are tokenised.
        scratch_at: The file of the tokens.
    """

    rows: int
    tokens: int
    processes: int
    batches: int
    measured: int
    rows_per_second: float
    seconds: float
    preparation: float
    disk: int
    memory: int
    tokens_per_batch: int
    coverage: float
    left_out: int
    truncated: int
    scratch: tuple[int, int] = (0, 0)
    scratch_at: str = ""

    @property
    def hours(self) -> float:
        """All in all, preparation included."""
        return (self.seconds + self.preparation) / 3600

    def __str__(self) -> str:
        tokens = self.tokens / self.seconds if self.seconds else 0.0
        rows = [
            ("", "predicted"),
            ("rows to compute", f"{self.rows:,}"),
            ("tokens in them", f"{self.tokens:,}"),
            ("records left out, samples cut", f"{self.left_out:,}, {self.truncated:,}"),
            ("coverage", f"{self.coverage:.2%}"),
            ("batches, measured", f"{self.batches:,}, {self.measured}"),
            ("padded tokens per batch", f"{self.tokens_per_batch:,}"),
            ("rows/s", _rate(self.rows_per_second)),
            ("tokens/s", _rate(tokens)),
            ("time", f"{_duration(self.seconds)} and {_duration(self.preparation)} before it"),
            ("disk", _size(self.disk)),
            ("disk until it ends", self._scratch()),
            ("memory" + (" of each process" if self.processes > 1 else ""), _size(self.memory)),
        ]
        return aligned(rows)

    def _scratch(self) -> str:
        tokens, records = self.scratch
        if not tokens:
            return "none"
        at = f" ({self.scratch_at})" if self.scratch_at else ""
        return f"{_size(tokens)} of tokens{at}, before it {_size(records)} of records"


def plan(
    model: Any,
    data: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    measure: int = 8,
    processes: int = 1,
    progress: bool | None = None,
    **extraction: Any,
) -> Plan:
    """Predicts what `extract` with the same arguments will take. Nothing is kept.

    Args:
        model: As for `extract`.
        data: As for `extract`.
        out: The store's folder; rows that are there already do not count.
        measure: Number of batches that are computed for it.
        processes: Processes that will share the work, each with a device of its own like this one.
        progress: False: show none of the bars of transformers; `plan` has none of its own.
        extraction: Further arguments of `extract`.

    Returns:
        The plan, which prints as a table.

    Raises:
        InvalidInputError: An argument, a record or the model cannot be used.
        StoreError: `out` is there and is no store.
        StoreMismatchError: `out` was made with other settings, weights or data.
    """
    measure, processes = whole("measure", measure), whole("processes", processes)
    progress, out = flag_or_none("progress", progress), local_or_none(out, "out")
    settings = Settings.of(extraction, extract)
    begun = clock()
    earlier = None
    if out is not None and Path(out).exists() and not _is_empty_folder(Path(out)):
        earlier = GradientStore(out)
        check_settings(out, settings)
    cache = None if out is None else TokenCache.of(out, settings.cache_dir)
    told = None if out is None else recorded_date(Path(out) / "store.json", "provenance")
    with (
        libraries_silent(progress),
        preparing(model, data, settings, template_date=told, out=out, progress=progress) as ready,
    ):
        preparation = clock() - begun
        if earlier is not None:
            _check_store(ready, settings, earlier)
        samples = ready.inputs.samples
        missing = samples if earlier is None else samples[~np.isin(rows_of(samples), earlier.index)]
        share = Rank(0, processes).slice(missing)
        near = None if out is None else next(each for each in Path(out).absolute().parents if each.is_dir())
        with (
            folder_for("plan", near) as folder,
            GradientStore.create(
                folder / "store", dim=ready.projection.dim, dtype=settings.dtype, reduction="sum"
            ) as writer,
        ):
            run = ready.run()
            seconds, batches, measured, first = _measure(run, writer, share, measure)
        row = ready.projection.dim * _CELL[settings.dtype] + _COLUMNS
        shards = processes * (1 + len(share) * row // _SHARD)
        waiting = min(_SHARD, max(0, len(share) - measured) * row) if not _on_gpu(ready) else 0
        return Plan(
            rows=len(missing),
            tokens=int(lengths_of(missing).sum()),
            processes=processes,
            batches=batches,
            measured=measured,
            rows_per_second=len(missing) / seconds if seconds else 0.0,
            seconds=seconds,
            preparation=preparation + first,
            disk=len(missing) * row + (shards + 1) * _HEADER if missing else 0,
            memory=_peak(ready) + waiting,
            tokens_per_batch=run.tokens,
            coverage=ready.tracked.coverage,
            left_out=len(ready.inputs.left_out),
            truncated=ready.inputs.truncated,
            scratch=ready.inputs.scratch,
            scratch_at="" if cache is None else str(cache.path),
        )


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _check_store(ready: Extraction, settings: Settings, earlier: GradientStore) -> None:
    """Refuses a store that `extract` would refuse; a writer that joins it writes nothing."""
    dim, dtype = ready.projection.dim, settings.dtype
    provenance = {**ready.provenance, "dataset": dataset_of(ready.inputs, settings, earlier).recorded}
    GradientStore.create(earlier.path, dim=dim, dtype=dtype, reduction="sum", provenance=provenance).close()


def _measure(
    run: GradientRun, writer: GradientWriter, share: Sequence[Sample], measure: int
) -> tuple[float, int, int, float]:
    """(seconds of all batches, batches, batches measured, what only the first one pays)."""
    if not share:
        return 0.0, 0, 0, 0.0
    ordered = longest_first(share)
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)
    with run.capture.attached():
        begun = clock()
        next(iter(run.batches(ordered)))  # the largest, halved until it fits
        warm = clock() - begun
        while True:
            starts = [0]
            while (after := starts[-1] + len(run.take(ordered, starts[-1]))) < len(ordered):
                starts.append(after)
            few = min(measure, len(starts))
            chosen = np.unique(np.linspace(0, len(starts) - 1, few).round().astype(int))
            times: list[float] = []
            for number, place in enumerate(chosen, 1):
                step(f"measuring batch {number} of {few}")
                batch = run.take(ordered, starts[place])
                seconds = _time(run, batch)
                if seconds is None:
                    run.shrink(batch)
                    break
                times.append(seconds)
            else:
                break
        computing = float(np.interp(np.arange(len(starts)), chosen, times).sum())
        writing = _writing(run, writer, run.take(ordered, 0), len(ordered))
    # On a GPU they go side by side; else the cores that would compute the next batch write this one.
    seconds = max(computing, writing) if run.device.type == "cuda" else computing + writing
    return seconds, len(starts), len(chosen), max(0.0, warm - times[0])


def _time(run: GradientRun, batch: Sequence[Sample]) -> float | None:
    """Seconds that one batch takes, the median of several where they are short; None if memory ran out."""
    times: list[float] = []
    while len(times) < _REPEATS and (not times or 0 < sum(times) < _ENOUGH):
        begun = clock()
        result = run.compute_or_none(batch)
        if result is None:
            return None
        result[1].cpu()  # waits for the device
        times.append(clock() - begun)
    return float(np.median(times))


def _writing(run: GradientRun, writer: GradientWriter, batch: Sequence[Sample], rows: int) -> float:
    """Seconds that it takes to write so many rows: a part for each row, and one for each shard."""
    result = run.compute(batch)
    result[1].cpu()
    begun = clock()
    write_rows(writer, batch, HostCopy(*result))
    appended = clock()
    writer.commit()
    committed = clock()
    row = 4 * run.capture.projection.dim
    shards = 1 + rows * row // _SHARD
    return (appended - begun) * rows / len(batch) + (committed - appended) * shards


def _on_gpu(ready: Extraction) -> bool:
    return bool(ready.inputs.device.type == "cuda")


def _peak(ready: Extraction) -> int:
    """Most bytes so far, of this process or of its GPU."""
    if _on_gpu(ready):
        return int(torch.cuda.max_memory_allocated(ready.inputs.device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.2g} s"


def _rate(number: float) -> str:
    """Three digits or all before the point: 0.0312, 9.53, 2,260."""
    return f"{number:.3g}" if number < 999.5 else f"{float(f'{number:.3g}'):,.0f}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{_rate(count)} TB"
