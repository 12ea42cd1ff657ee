from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

__all__ = [
    "Store",
    "StoreWriter",
    "__version__",
    "certify",
    "check_memory",
    "compact",
    "convert",
    "curvature",
    "delete",
    "fingerprint",
    "log_det",
    "merge",
    "norms_sq",
    "repair",
    "select",
]

__version__: str

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
    def __new__(
        cls,
        path: str | PathLike[str],
        *,
        dim: int,
        dtype: str,
        reduction: str | None,
        provenance: str,
        rows_per_shard: int | None,
        bytes_per_shard: int | None,
        seconds_per_shard: float | None,
        fsync: bool,
        writer: str | None,
    ) -> Self: ...
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
    source: Sequence[Store | tuple[NDArray[np.uint8], str, int]],
    *,
    dim: int,
    index: NDArray[np.int64] | None,
    scale: NDArray[np.float64] | None,
    unit: bool,
    k: int | None,
    alpha: float,
    conflict_penalty: float,
    early_stop: float | None,
    fisher: str,
    method: str,
    search: str,
    hot_rows: int | None,
    epsilon: float,
    seed: int,
    order: NDArray[np.int64] | None,
    pool_size: int | None,
    select_per_window: int | None,
    threads: int | None,
    progress: Callable[[int, int, float, int], object] | None,
    time_limit: float | None,
    made: tuple[NDArray[Any], ...] | None,
    checkpoint: Callable[[dict[str, Any]], object] | None,
    checkpoint_interval: float,
    weights: NDArray[np.float64] | None = None,
    multiplier: NDArray[np.float64] | None = None,
    bonus: NDArray[np.float64] | None = None,
    initial: NDArray[np.int64] | None = None,
    include: NDArray[np.int64] | None = None,
    exclude: NDArray[np.int64] | None = None,
    groups: NDArray[np.int64] | None = None,
    minima: NDArray[np.float64] | None = None,
    maxima: NDArray[np.float64] | None = None,
    costs: NDArray[np.float64] | None = None,
    budget: float | None = None,
    max_similarity: float | None = None,
    old: NDArray[np.bool_] | None = None,
    left_out: tuple[NDArray[Any], ...] | None = None,
) -> dict[str, Any]: ...
def fingerprint(
    source: Sequence[Store | tuple[NDArray[np.uint8], str, int]],
    *,
    dim: int,
    index: NDArray[np.int64] | None,
    threads: int | None,
    positions: NDArray[np.int64] | None = None,
) -> str: ...
def norms_sq(
    source: Sequence[Store | tuple[NDArray[np.uint8], str, int]],
    *,
    dim: int,
    index: NDArray[np.int64] | None,
    scale: NDArray[np.float64] | None,
    unit: bool,
    weights: NDArray[np.float64] | None,
    threads: int | None,
) -> NDArray[np.float64]: ...
def log_det(
    source: Sequence[Store | tuple[NDArray[np.uint8], str, int]],
    *,
    dim: int,
    scale: NDArray[np.float64] | None,
    unit: bool,
    positions: NDArray[np.int64],
    alpha: float,
    threads: int | None,
) -> float: ...
def curvature(
    source: Sequence[Store | tuple[NDArray[np.uint8], str, int]],
    *,
    dim: int,
    index: NDArray[np.int64] | None,
    scale: NDArray[np.float64] | None,
    unit: bool,
    weights: NDArray[np.float64] | None,
    alpha: float,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> dict[str, Any]: ...
def certify(
    source: Sequence[Store | tuple[NDArray[np.uint8], str, int]],
    *,
    dim: int,
    index: NDArray[np.int64] | None,
    scale: NDArray[np.float64] | None,
    unit: bool,
    weights: NDArray[np.float64] | None,
    alpha: float,
    initial: NDArray[np.int64],
    picks: NDArray[np.int64],
    prefixes: NDArray[np.int64],
    steps: int,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> dict[str, Any]: ...
