import math

import numpy as np
import pytest
import torch

from spice_rs.errors import InvalidInputError
from spice_rs.extraction.projection import (
    KINDS,
    Parameter,
    dense_signs,
    hash_counters,
    hash_key,
    make_projection,
    sparse_coordinates,
)

MASK = (1 << 64) - 1
CPU = torch.device("cpu")
WEIGHT = Parameter("layer.weight", (6, 5))
BIAS = Parameter("layer.bias", (6,))


def splitmix(key: int, counter: int) -> int:
    """splitmix64 in unbounded integers: the definition that the tensor code must follow."""
    z = (key + (counter + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def sparse_matrix(seed: int, name: str, count: int, dim: int, nnz: int) -> np.ndarray:
    matrix = np.zeros((count, dim))
    for number in range(nnz):
        key = hash_key(seed, name, f"sparse:{number}") & MASK
        for c in range(count):
            h = splitmix(key, c)
            matrix[c, ((h >> 32) * dim) >> 32] += (1 - 2 * (h & 1)) / math.sqrt(nnz)
    return matrix


def sign_matrix(key: int, count: int, columns: int) -> np.ndarray:
    words = -(-columns // 64)
    return np.array(
        [
            [1 - 2 * ((splitmix(key & MASK, c * words + k // 64) >> (k % 64)) & 1) for k in range(columns)]
            for c in range(count)
        ],
        dtype=np.float64,
    )


def explicit_matrix(kind: str, parameter: Parameter, dim: int, seed: int, nnz: int, side: int) -> np.ndarray:
    """The whole projection of one parameter, (numel, dim), from the definitions."""
    if kind == "rademacher":
        return sign_matrix(hash_key(seed, parameter.name, "dense"), parameter.numel, dim) / math.sqrt(dim)
    if kind == "sparse" or len(parameter.shape) == 1:
        return sparse_matrix(seed, parameter.name, parameter.numel, dim, nnz)
    left, right = (
        sign_matrix(hash_key(seed, parameter.name, stream), size, side) / math.sqrt(side)
        if size > side
        else np.eye(size)  # short sides are kept
        for stream, size in zip(("left", "right"), parameter.shape, strict=True)
    )
    both = np.kron(left, right)
    return both @ sparse_matrix(seed, parameter.name, both.shape[1], dim, nnz)


def project(projection, left, right, weight=WEIGHT):
    rows = torch.zeros(len(left), projection.dim)
    projection.add_outer(
        rows, weight, projection.reduce(weight, 0, left), projection.reduce(weight, 1, right)
    )
    return rows


def factors(samples=3, tokens=4, shape=(6, 5)):
    generator = torch.Generator().manual_seed(7)
    return (torch.randn(samples, tokens, size, generator=generator) for size in shape)


def test_hash_is_splitmix64():
    key = hash_key(3, "name", "stream")
    counters = torch.tensor([0, 1, 2, 1000, 2**40])
    expected = [splitmix(key & MASK, int(counter)) for counter in counters]
    assert [value & MASK for value in hash_counters(key, counters).tolist()] == expected


def test_hash_has_known_values():
    # The published test vector of splitmix64 with seed 1234567.
    assert [value & MASK for value in hash_counters(1234567, torch.arange(3)).tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@pytest.mark.parametrize("kind", ["sparse", "two_sided", "rademacher"])
@pytest.mark.parametrize(("dim", "nnz", "side"), [(16, 1, 4), (70, 3, 5), (16, 1, 6)])
def test_projection_equals_its_explicit_matrix(kind, dim, nnz, side):
    left, right = factors()
    gradient = torch.einsum("bti,btj->bij", left, right).flatten(1).double().numpy()
    projection = make_projection(kind, [WEIGHT], dim=dim, seed=11, nnz=nnz, side=side)
    expected = gradient @ explicit_matrix(kind, WEIGHT, dim, 11, nnz, side)
    np.testing.assert_allclose(project(projection, left, right).numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["sparse", "two_sided", "rademacher"])
def test_vectors_equal_their_explicit_matrix(kind):
    values = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    rows = torch.zeros(2, 16)
    make_projection(kind, [BIAS], dim=16, seed=1).add_flat(rows, BIAS, 0, values.clone())
    expected = values.numpy() @ explicit_matrix(kind, BIAS, 16, 1, 1, 16)
    np.testing.assert_allclose(rows.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["sparse", "two_sided", "rademacher"])
def test_inner_products_are_unbiased(kind):
    left, right = factors(samples=2)
    gradient = torch.einsum("bti,btj->bij", left, right).flatten(1)
    products = []
    for seed in range(3000):
        rows = project(make_projection(kind, [WEIGHT], dim=8, seed=seed, side=4), left, right)
        products.append([float(rows[0] @ rows[1]), float(rows[0] @ rows[0])])
    mean, error = np.mean(products, axis=0), np.std(products, axis=0) / math.sqrt(len(products))
    expected = [float(gradient[0] @ gradient[1]), float(gradient[0] @ gradient[0])]
    assert np.all(np.abs(mean - expected) < 4 * error), (mean, expected, error)


@pytest.mark.parametrize("kind", ["sparse", "rademacher", "none"])
def test_blocks_of_coordinates_do_not_change_rows(kind, monkeypatch):
    left, right = factors()
    whole = project(make_projection(kind, [WEIGHT], dim=16, seed=2), left, right)
    monkeypatch.setattr("spice_rs.extraction.projection._CHUNK", 5)  # one row of the weight at a time
    monkeypatch.setattr("spice_rs.extraction.projection._SIGNS", 32)
    parts = project(make_projection(kind, [WEIGHT], dim=16, seed=2), left, right)
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_its_batch(kind):
    left, right = factors()
    projection = make_projection(kind, [WEIGHT], dim=16, seed=5)
    together = project(projection, left, right)
    alone = torch.cat([project(projection, left[[i]], right[[i]]) for i in range(3)])
    torch.testing.assert_close(alone, together)


def test_signs_and_buckets_are_even():
    buckets, signs = sparse_coordinates(hash_key(0, "w", "sparse:0"), 0, 64_000, 64, CPU)
    counts = torch.bincount(buckets, minlength=64).double()
    assert len(counts) == 64
    assert abs(float(signs.mean())) < 4 / math.sqrt(64_000)
    # χ² with 63 degrees of freedom: mean 63, deviation √126.
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 63 + 5 * math.sqrt(126)
    dense = dense_signs(hash_key(0, "w", "dense"), 0, 500, 128, CPU)
    assert float((dense.mean(dim=0).abs()).max()) < 5 / math.sqrt(500)


def test_names_and_seeds_and_streams_give_other_keys():
    keys = {hash_key(s, n, t) for s in (0, 1) for n in ("a", "b") for t in ("left", "right")}
    assert len(keys) == 8


def test_none_keeps_every_coordinate_in_c_order():
    projection = make_projection("none", [BIAS, WEIGHT], dim=4)
    assert projection.dim == 36
    assert projection.layout[1] == {"name": "layer.weight", "shape": [6, 5], "offset": 6}
    left, right = factors()
    expected = torch.einsum("bti,btj->bij", left, right).flatten(1)
    torch.testing.assert_close(project(projection, left, right)[:, 6:], expected)


def test_transposed_factors_give_the_same_gradient_in_half_precision():
    left, right = factors()
    projection = make_projection("sparse", [WEIGHT], dim=16, seed=2)
    exact = project(projection, left, right)
    rough = project(projection, left.bfloat16(), right.bfloat16())
    assert rough.dtype == torch.float32
    assert float((rough - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize(
    ("kind", "options", "word"),
    [
        ("dense", {}, "projection"),
        ("sparse", {"dim": 0}, "dim"),
        ("sparse", {"nnz": 0}, "nnz"),
        ("sparse", {"nnz": 17}, "nnz"),
        ("two_sided", {"side": 0}, "side"),
        ("sparse", {"dim": True}, "dim"),
    ],
)
def test_wrong_settings_are_named(kind, options, word):
    with pytest.raises(InvalidInputError, match=word):
        make_projection(kind, [WEIGHT], **{"dim": 16, **options})
