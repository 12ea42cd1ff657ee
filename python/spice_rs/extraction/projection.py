r"""Projections of per-sample gradients to `dim` columns that keep inner products: E⟨Px, Py⟩ = ⟨x, y⟩.

No projection matrix is ever held. Every random sign and bucket is a hash of (seed, parameter name,
coordinate): the same on each device and machine, in every order of modules, batches and ranks, at O(1)
memory. The hash is splitmix64 (Steele, Lea, Flood 2014) in counter mode, in wrapping 64-bit integer
arithmetic:

    key       = first 8 bytes, little-endian, of BLAKE2b(f"{seed}\0{name}\0{stream}", digest_size=8)
    h(key, c) = mix(key + (c + 1)·0x9e3779b97f4a7c15)

A gradient of shape (m, n) has the coordinate i·n + j at (i, j).

**sparse.** Each coordinate c goes to `nnz` buckets: bucket ⌊(h >> 32)·dim / 2³²⌋ with sign 1 - 2·(h & 1),
from the streams "sparse:0", "sparse:1", …, scaled by 1/√nnz. nnz = 1, the default, is the count sketch
(Charikar, Chen, Farach-Colton 2002): one addition per coordinate. The variance of an inner product is
(‖x‖²‖y‖² + ⟨x, y⟩² - (2/nnz)·Σx²y²)/dim, at nnz = 1 that of a dense matrix of signs. Rows of dim/2 columns are those
of dim, neighbours added.

**two_sided.** L G Rᵀ with dense sign matrices L (p, m) and R (p, n), streams "left" and "right", each scaled
by 1/√p, and then the p² numbers sparsely to `dim`. With G = Σ_t e_t a_tᵀ this is Σ_t (L e_t)(R a_t)ᵀ: G is
never formed. A side of p numbers or fewer (a LoRA's rank) is kept as it is. Vectors (biases) go through the
sparse projection alone. L and R add a variance that no `dim` takes away: up to (4/p + 4/p²)‖x‖²‖y‖² for gradients
x = e aᵀ and y of one module; errors of modules are independent, so that M modules of like norm have an M-th of it. The
last step is sparse also where all blocks would fit in `dim` side by side: a row's columns do not depend on the order or
number of what is tracked.

**rademacher.** Dense signs, stream "dense", scaled by 1/√dim: bit k mod 64 of h(c·⌈dim/64⌉ + ⌊k/64⌋) for
column k, as do L and R with p columns. Costs dim operations per coordinate; here to compare with other tools.

**none.** All coordinates, parameters side by side in the order given.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spice_rs.extraction.arguments import checked

DEFAULT_NNZ = 1
DEFAULT_SIDE = 16

_GOLDEN = -7046029254386353131  # 0x9e3779b97f4a7c15 as int64
_MIX_1 = -4658895280553007687  # 0xbf58476d1ce4e5b9
_MIX_2 = -7723592293110705685  # 0x94d049bb133111eb
CHUNK = 1 << 20  # coordinates formed at a time: 4 MB in float32 per sample
SIGNS = 1 << 24  # dense signs made at a time: 64 MB in float32
_CACHED_COORDINATES = 1 << 26  # buckets and signs kept between batches, 12 bytes each: at most 800 MB


@dataclass(frozen=True)
class Parameter:
    """A tracked parameter: its name in `named_parameters()` (the key of all its signs) and its shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of coordinates."""
        return math.prod(self.shape)


def hash_key(seed: int, name: str, stream: str) -> int:
    """The 64-bit key of one stream of hashes, as a signed integer."""
    digest = hashlib.blake2b(f"{seed}\0{name}\0{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def hash_counters(key: int, counters: torch.Tensor) -> torch.Tensor:
    """h(key, c) for int64 counters of any shape, as int64 of that shape."""
    z = (counters + 1).mul_(_GOLDEN).add_(key)
    # int64 >> copies the sign bit: the mask makes it a logical shift.
    z ^= (z >> 30) & ((1 << 34) - 1)
    z *= _MIX_1
    z ^= (z >> 27) & ((1 << 37) - 1)
    z *= _MIX_2
    z ^= (z >> 31) & ((1 << 33) - 1)
    return z


def sparse_coordinates(
    key: int, start: int, count: int, dim: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Buckets (count,) int64 in [0, dim) and signs (count,) float32 ±1 of `count` coordinates."""
    return _bucket_and_sign(hash_counters(key, torch.arange(start, start + count, device=device)), dim)


def _bucket_and_sign(h: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    signs = 1.0 - 2.0 * (h & 1).to(torch.float32)
    buckets = (((h >> 32) & 0xFFFFFFFF) * dim) >> 32
    return buckets, signs


def dense_signs(key: int, start: int, count: int, columns: int, device: torch.device) -> torch.Tensor:
    """Signs (count, columns) float32 ±1 of coordinates start … start + count - 1."""
    words = -(-columns // 64)
    counters = torch.arange(start * words, (start + count) * words, device=device)
    h = hash_counters(key, counters).view(count, words, 1)
    # Through bytes, so that only an eighth of the bits is ever held as int64.
    octets = ((h >> torch.arange(0, 64, 8, device=device)) & 0xFF).to(torch.uint8)  # (count, words, 8)
    bits = (octets.unsqueeze(-1) >> torch.arange(8, device=device, dtype=torch.uint8)) & 1
    return 1.0 - 2.0 * bits.view(count, words * 64)[:, :columns].to(torch.float32)


class Projection(ABC):
    """Adds the projections of per-sample gradients to rows (B, dim) float32.

    A matrix parameter's gradient comes as factors, Σ_t left_t right_tᵀ. `reduce` may shrink a factor as soon
    as it is known, so that less has to be kept until the other one is.
    """

    kind: str

    def __init__(self, dim: int, seed: int) -> None:
        self.dim = dim
        self.seed = seed
        self._buffer = torch.empty(0, dtype=torch.float32)

    def settings(self) -> dict[str, Any]:
        """What a store records: two stores with equal settings have comparable rows."""
        return {"kind": self.kind, "dim": self.dim, "seed": self.seed}

    def reduce(self, parameter: Parameter, side: int, factor: torch.Tensor) -> torch.Tensor:
        """The part of a factor (B, T, shape[side]) that `add_outer` needs; side 0 is left, 1 is right."""
        del parameter, side
        return factor

    def add_outer(
        self, rows: torch.Tensor, parameter: Parameter, left: torch.Tensor, right: torch.Tensor
    ) -> None:
        """Adds the projection of Σ_t left_t right_tᵀ, per sample.

        Args:
            rows: (B, dim) float32, changed in place.
            parameter: A matrix, shape (m, n).
            left: (B, T, m), reduced.
            right: (B, T, n), reduced.
        """
        samples, _, m = left.shape
        n = right.shape[2]
        step = max(1, min(m, CHUNK // n))  # the same for every batch, so that the blocks can be cached
        for start in range(0, m, step):
            block = self._outer(left[:, :, start : start + step], right)
            self.add_flat(rows, parameter, start * n, block.view(samples, -1))

    @abstractmethod
    def add_flat(self, rows: torch.Tensor, parameter: Parameter, start: int, values: torch.Tensor) -> None:
        """Adds the projection of coordinates start … start + c - 1.

        Args:
            rows: (B, dim) float32, changed in place.
            parameter: Of any shape, flattened in C order.
            start: The first coordinate.
            values: (B, c) float32; may be overwritten.
        """

    def add_rows(
        self, rows: torch.Tensor, parameter: Parameter, ids: torch.Tensor, values: torch.Tensor
    ) -> None:
        """Adds the projection of a gradient whose row id_t is the sum of the values at t, per sample.

        Args:
            rows: (B, dim) float32, changed in place.
            parameter: A matrix, shape (m, n): an embedding's table.
            ids: (B, T) int64 in [0, m).
            values: (B, T, n).
        """
        n = parameter.shape[1]
        for number in ids.unique().tolist():
            here = (ids == number).unsqueeze(-1)
            self.add_flat(rows, parameter, number * n, (values * here).sum(dim=1, dtype=torch.float32))

    def _outer(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Σ_t left_t right_tᵀ, (B, m, n) float32, valid until the next call."""
        samples, _, m = left.shape
        n = right.shape[2]
        transposed = left.transpose(1, 2)
        if left.dtype in (torch.bfloat16, torch.float16):
            # Half-precision products are summed in float32 by the hardware and rounded once.
            return torch.bmm(transposed, right.to(left.dtype)).to(torch.float32)
        size = samples * m * n
        if self._buffer.numel() < size or self._buffer.device != left.device:
            # On a CPU fresh pages cost several times the product itself: keep them.
            self._buffer = torch.empty(size, dtype=torch.float32, device=left.device)
        out = self._buffer[:size].view(samples, m, n)
        return torch.bmm(transposed.to(torch.float32), right.to(torch.float32), out=out)


class SparseProjection(Projection):
    """Sparse Johnson-Lindenstrauss: each coordinate is added to `nnz` columns with a sign."""

    kind = "sparse"

    def __init__(self, dim: int, seed: int, nnz: int = DEFAULT_NNZ) -> None:
        super().__init__(dim, seed)
        self.nnz = nnz
        self._cache: dict[tuple[str, int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._cached = 0

    def settings(self) -> dict[str, Any]:
        """Adds `nnz`."""
        return {**super().settings(), "nnz": self.nnz}

    def add_flat(self, rows: torch.Tensor, parameter: Parameter, start: int, values: torch.Tensor) -> None:
        """One signed addition per coordinate and `nnz`."""
        for buckets, signs in self._coordinates(parameter.name, start, values.shape[1], rows.device):
            signed = values * signs if self.nnz > 1 else values.mul_(signs)
            rows.index_add_(1, buckets, signed)

    def add_rows(
        self, rows: torch.Tensor, parameter: Parameter, ids: torch.Tensor, values: torch.Tensor
    ) -> None:
        """One signed addition per coordinate that a token touches."""
        samples, length, n = values.shape
        step = max(1, CHUNK // (samples * n))
        column = torch.arange(n, device=ids.device)
        first = torch.arange(samples, device=ids.device).mul_(self.dim).view(-1, 1, 1)
        for start in range(0, length, step):
            part = slice(start, start + step)
            coordinates = ids[:, part].unsqueeze(-1) * n + column  # (B, t, n)
            for number in range(self.nnz):
                h = hash_counters(hash_key(self.seed, parameter.name, f"sparse:{number}"), coordinates)
                buckets, signs = _bucket_and_sign(h, self.dim)
                signed = values[:, part].to(torch.float32) * (signs / math.sqrt(self.nnz))
                rows.view(-1).index_add_(0, (buckets + first).flatten(), signed.flatten())

    def _coordinates(
        self, name: str, start: int, count: int, device: torch.device
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """`nnz` pairs of buckets (count,) int64 and scaled signs (count,) float32."""
        place = (name, start, count)
        found = self._cache.get(place)
        if found is not None and found[0][0].device == device:
            return found
        pairs = []
        for number in range(self.nnz):
            key = hash_key(self.seed, name, f"sparse:{number}")
            buckets, signs = sparse_coordinates(key, start, count, self.dim, device)
            pairs.append((buckets, signs / math.sqrt(self.nnz)))
        if self._cached + count * self.nnz <= _CACHED_COORDINATES:
            self._cached += count * self.nnz
            self._cache[place] = pairs
        return pairs


class TwoSidedProjection(Projection):
    """Projects both factors to `side` numbers before their outer product, then the blocks sparsely."""

    kind = "two_sided"

    def __init__(self, dim: int, seed: int, side: int = DEFAULT_SIDE, nnz: int = DEFAULT_NNZ) -> None:
        super().__init__(dim, seed)
        self.side = side
        self.sparse = SparseProjection(dim, seed, nnz)
        self._signs: dict[tuple[str, int], torch.Tensor] = {}

    def settings(self) -> dict[str, Any]:
        """Adds `side` (p) and `nnz`."""
        return {**super().settings(), "side": self.side, "nnz": self.sparse.nnz}

    def reduce(self, parameter: Parameter, side: int, factor: torch.Tensor) -> torch.Tensor:
        """(B, T, shape[side]) → (B, T, p), not scaled."""
        if parameter.shape[side] <= self.side:
            return factor
        return torch.nn.functional.linear(factor, self._side_signs(parameter, side, factor))

    def _side_signs(self, parameter: Parameter, side: int, factor: torch.Tensor) -> torch.Tensor:
        """L or R, (p, shape[side]), in the dtype and on the device of the factor."""
        signs = self._signs.get((parameter.name, side))
        if signs is None or signs.device != factor.device or signs.dtype != factor.dtype:
            key = hash_key(self.seed, parameter.name, "left" if side == 0 else "right")
            signs = dense_signs(key, 0, parameter.shape[side], self.side, factor.device).T  # (p, shape[side])
            signs = signs.to(factor.dtype).contiguous()  # ±1 is exact in every dtype
            self._signs[parameter.name, side] = signs
        return signs

    def add_rows(
        self, rows: torch.Tensor, parameter: Parameter, ids: torch.Tensor, values: torch.Tensor
    ) -> None:
        """The left factor is a column of L for each token."""
        if parameter.shape[0] <= self.side:
            left = torch.nn.functional.one_hot(ids, parameter.shape[0]).to(values.dtype)
        else:
            left = self._side_signs(parameter, 0, values).T[ids]  # (B, T, p)
        self.add_outer(rows, parameter, left, self.reduce(parameter, 1, values))

    def add_outer(
        self, rows: torch.Tensor, parameter: Parameter, left: torch.Tensor, right: torch.Tensor
    ) -> None:
        """Adds the scaled Σ_t left_t right_tᵀ of the reduced factors, sparsely."""
        block = torch.bmm(left.transpose(1, 2).to(torch.float32), right.to(torch.float32))  # (B, p, p)
        reduced = sum(size > self.side for size in parameter.shape)
        self.sparse.add_flat(
            rows, parameter, 0, block.view(len(block), -1).div_(math.sqrt(self.side) ** reduced)
        )

    def add_flat(self, rows: torch.Tensor, parameter: Parameter, start: int, values: torch.Tensor) -> None:
        """Vectors have one side only: sparse."""
        self.sparse.add_flat(rows, parameter, start, values)


class RademacherProjection(Projection):
    """A dense matrix of signs, made and used in blocks."""

    kind = "rademacher"

    def add_flat(self, rows: torch.Tensor, parameter: Parameter, start: int, values: torch.Tensor) -> None:
        """`dim` multiplications per coordinate."""
        key = hash_key(self.seed, parameter.name, "dense")
        step = max(1, SIGNS // self.dim)
        for begin in range(0, values.shape[1], step):
            part = values[:, begin : begin + step]
            signs = dense_signs(key, start + begin, part.shape[1], self.dim, rows.device)
            rows.addmm_(part, signs, alpha=1 / math.sqrt(self.dim))


class NoProjection(Projection):
    """Every coordinate of every parameter, side by side."""

    kind = "none"

    def __init__(self, parameters: Sequence[Parameter], seed: int = 0) -> None:
        super().__init__(sum(parameter.numel for parameter in parameters), seed)
        self.layout: list[dict[str, Any]] = []
        self._offsets: dict[str, int] = {}
        offset = 0
        for parameter in parameters:
            self.layout.append({"name": parameter.name, "shape": list(parameter.shape), "offset": offset})
            self._offsets[parameter.name] = offset
            offset += parameter.numel

    def settings(self) -> dict[str, Any]:
        """Without a seed: nothing is random."""
        return {"kind": self.kind, "dim": self.dim}

    def add_rows(
        self, rows: torch.Tensor, parameter: Parameter, ids: torch.Tensor, values: torch.Tensor
    ) -> None:
        """Adds in place, all tokens at once."""
        offset = self._offsets[parameter.name]
        part = rows[:, offset : offset + parameter.numel].unflatten(1, parameter.shape)
        samples = torch.arange(len(ids), device=ids.device).unsqueeze(1).expand_as(ids)
        part.index_put_((samples, ids), values.to(torch.float32), accumulate=True)

    def add_flat(self, rows: torch.Tensor, parameter: Parameter, start: int, values: torch.Tensor) -> None:
        """Adds in place."""
        offset = self._offsets[parameter.name] + start
        rows[:, offset : offset + values.shape[1]] += values


def make_projection(
    kind: str,
    parameters: Sequence[Parameter],
    *,
    dim: int,
    seed: int = 0,
    nnz: int = DEFAULT_NNZ,
    side: int = DEFAULT_SIDE,
) -> Projection:
    """The projection called `kind` ("sparse", "two_sided", "rademacher" or "none").

    Args:
        kind: See the module's text.
        parameters: What is tracked, in the order of `named_parameters()`; only "none" depends on it.
        dim: Columns of a row; "none" has as many as there are coordinates.
        seed: Of all signs and buckets.
        nnz: Buckets per coordinate of the sparse projection.
        side: p of the two-sided projection.

    Raises:
        InvalidInputError: Unknown kind, or a number out of range.
    """
    given = {"projection": kind, "dim": dim, "seed": seed, "nnz": nnz, "side": side}
    kind, dim, seed, nnz, side = checked(given).values()
    if kind == "none":
        return NoProjection(parameters, seed)
    if kind == "sparse":
        return SparseProjection(dim, seed, nnz)
    if kind == "two_sided":
        return TwoSidedProjection(dim, seed, side, nnz)
    return RademacherProjection(dim, seed)
