from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from spice_rs.analysis.certificate import Choice
from spice_rs.selection.options import Constraints, Control, Objective, Past, Windows
from spice_rs.store.options import Schema, Shards
from spice_rs.store.pool import Pool

__all__ = [
    "MOST_GROWTH",
    "MOST_SIGNAL",
    "ROUNDING",
    "SLACK",
    "MappedFile",
    "Prefixes",
    "Store",
    "StoreWriter",
    "__version__",
    "allowances",
    "certify",
    "check_memory",
    "compact",
    "convert",
    "curvature",
    "delete",
    "fingerprint",
    "log_det",
    "log_dets",
    "merge",
    "near_duplicates",
    "norms_sq",
    "relevance",
    "relevance_to",
    "repair",
    "scores",
    "second_moment",
    "select",
    "settle",
    "single_gains",
    "transform",
]

MOST_GROWTH: float
MOST_SIGNAL: float
ROUNDING: float
SLACK: float
__version__: str

@final
class MappedFile:
    def __new__(cls, path: str | PathLike[str], cells: NDArray[np.uint8], constant: bool) -> Self: ...
    def check(self) -> None: ...

@final
class Prefixes:
    def __new__(
        cls,
        pool: Pool,
        *,
        ends: NDArray[np.int64],
        alpha: float,
        reading: str,
        signal: float,
        threads: int | None,
    ) -> Self: ...
    def measure(
        self, rows: NDArray[np.float64], weights: NDArray[np.float64] | None
    ) -> dict[str, NDArray[np.float64]]: ...

@final
class Store:
    def __new__(cls, path: str | PathLike[str], memory_limit: int | None = None) -> Self: ...
    def __len__(self) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def reduction(self) -> str | None: ...
    @property
    def rows_at_a_time(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def index(self) -> NDArray[np.int64]: ...
    @property
    def scale(self) -> NDArray[np.float32]: ...
    @property
    def norm(self) -> NDArray[np.float32]: ...
    @property
    def loss(self) -> NDArray[np.float32] | None: ...
    @property
    def num_tokens(self) -> NDArray[np.int32] | None: ...
    @property
    def record(self) -> NDArray[np.int64] | None: ...
    def info(self) -> str: ...
    def read(self, positions: NDArray[np.int64], out: NDArray[np.float32]) -> None: ...
    def verify(self, progress: Callable[[int, int], object] | None) -> str: ...

@final
class StoreWriter:
    def __new__(cls, path: str | PathLike[str], schema: Schema, shards: Shards) -> Self: ...
    def append(
        self,
        rows: NDArray[np.float32],
        index: NDArray[np.int64],
        num_tokens: NDArray[np.int32] | None,
        loss: NDArray[np.float32] | None,
        record: NDArray[np.int64] | None,
    ) -> None: ...
    def contains(self, index: NDArray[np.int64]) -> NDArray[np.bool_]: ...
    def commit(self) -> None: ...
    def close(self) -> None: ...

def merge(
    sources: Sequence[str | PathLike[str]],
    path: str | PathLike[str],
    differing: str,
    progress: Callable[[int, int], object] | None,
) -> str: ...
def convert(
    source: Store, path: str | PathLike[str], dtype: str, progress: Callable[[int, int], object] | None
) -> None: ...
def compact(
    path: str | PathLike[str],
    bytes_per_shard: int | None,
    progress: Callable[[int, int], object] | None,
) -> str: ...
def delete(
    path: str | PathLike[str],
    index: NDArray[np.int64],
    progress: Callable[[int, int], object] | None,
) -> str: ...
def repair(path: str | PathLike[str], progress: Callable[[int, int], object] | None) -> str: ...
def check_memory(field: str, found: str, needed: float, remedy: str) -> None: ...
def select(
    pool: Pool,
    objective: Objective,
    constraints: Constraints,
    *,
    windows: Windows | None,
    past: Past,
    control: Control,
) -> dict[str, Any]: ...
def settle(
    run: tuple[Pool, Objective, Constraints, Windows, Past, Control],
    choice: Choice,
    writer: tuple[Schema, Shards],
) -> None: ...
def allowances(
    constraints: Constraints, *, positions: NDArray[np.int64], k: int
) -> NDArray[np.float64] | None: ...
def scores(
    constraints: Constraints,
    *,
    positions: NDArray[np.int64],
    gains: NDArray[np.float64],
    conflicts: NDArray[np.float64],
    conflict_penalty: float,
) -> NDArray[np.float64]: ...
def fingerprint(pool: Pool, *, threads: int | None, positions: NDArray[np.int64] | None = None) -> str: ...
def norms_sq(pool: Pool, *, threads: int | None) -> NDArray[np.float64]: ...
def log_det(pool: Pool, *, positions: NDArray[np.int64], alpha: float, threads: int | None) -> float: ...
def log_dets(
    pool: Pool, *, positions: NDArray[np.int64], alpha: float, threads: int | None
) -> NDArray[np.float64]: ...
def single_gains(pool: Pool, *, alpha: float, threads: int | None) -> NDArray[np.float64]: ...
def near_duplicates(
    pool: Pool, *, listed: int, max_similarity: float, threads: int | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]: ...
def curvature(
    pool: Pool,
    *,
    alpha: float,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> dict[str, Any]: ...
def certify(
    pool: Pool,
    choice: Choice,
    *,
    alpha: float,
    steps: int,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> dict[str, Any]: ...
def relevance(
    pool: Pool,
    target: Pool,
    groups: NDArray[np.int64],
    count: int,
    *,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> dict[str, Any]: ...
def relevance_to(
    pool: Pool,
    mean: NDArray[np.float64],
    directions: NDArray[np.float64],
    *,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> NDArray[np.float64]: ...
def second_moment(
    pool: Pool,
    *,
    gamma: float,
    rank: int | None,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> dict[str, Any]: ...
def transform(
    pool: Pool,
    directions: NDArray[np.float64],
    out: NDArray[np.float32],
    *,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> None: ...
