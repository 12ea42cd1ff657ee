"""What `_core.StoreWriter` is asked for; the binding has a struct of the same fields for each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schema:
    """What a store's rows are: columns, element type, the loss's reduction over tokens, and provenance as JSON."""

    dim: int
    dtype: str
    reduction: str | None
    provenance: str


@dataclass(frozen=True, kw_only=True)
class Shards:
    """When a shard is committed, and who writes it; None for the core's own default, or for no such limit."""

    rows: int | None
    bytes: int | None
    seconds: float | None
    fsync: bool
    writer: str | None
