import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch

from spice_rs.errors import InvalidInputError
from spice_rs.extraction.arguments import KINDS
from spice_rs.extraction.projection import (
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
    rows = torch.zeros(len(left), projection.dim, device=left.device)
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


def independent_signs_variance(x, y, dim, nnz=1):
    """Of ⟨Px, Py⟩ where signs and buckets are independent: pairs of coordinates that meet, each with 1/dim."""
    return ((x @ x) * (y @ y) + (x @ y) ** 2 - 2 / nnz * (x**2 @ y**2)) / dim


def every_sign_matrix(side, size):
    """All of them, (2^(side·size), side, size), scaled; short sides are kept."""
    if size <= side:
        return np.eye(size)[None]
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=side * size)))
    return signs.reshape(-1, side, size) / math.sqrt(side)


def two_sided_variance(x, y, dim, side, nnz=1):
    """Of ⟨S(LXRᵀ), S(LYRᵀ)⟩: the mean over all L and R of S's variance, and the variance of S's mean."""
    lefts, rights = (every_sign_matrix(side, size) for size in x.shape)
    means, variances = [], []
    for left in lefts:
        for right in rights:
            p, q = (left @ each @ right.T for each in (x, y))
            means.append(np.sum(p * q))
            variances.append(independent_signs_variance(p.ravel(), q.ravel(), dim, nnz))
    return np.mean(variances) + np.var(means)


SMALL = Parameter("layer.weight", (4, 3))
CASES = [("sparse", 1), ("sparse", 3), ("rademacher", 1), ("two_sided", 1), ("two_sided", 2)]


@cache
def products(kind, nnz):
    """⟨Px, Py⟩ and ‖Px‖² for many seeds, (seeds, 2), and x and y, both (4, 3)."""
    left, right = factors(samples=2, tokens=2, shape=SMALL.shape)
    found = []
    # Products of two signs have heavy tails: a variance that is estimated from few seeds is mostly too small, and so is its
    # error.
    for seed in range(20_000 if kind == "two_sided" else 2500):
        rows = project(make_projection(kind, [SMALL], dim=8, seed=seed, side=2, nnz=nnz), left, right, SMALL)
        found.append((rows @ rows[0]).tolist()[::-1])
    x, y = torch.einsum("bti,btj->bij", left.double(), right.double()).numpy()
    return np.array(found), x, y


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "nnz"), CASES)
def test_inner_products_are_unbiased(kind, nnz):
    found, x, y = products(kind, nnz)
    error = found.std(axis=0) / math.sqrt(len(found))
    expected = [np.sum(x * y), np.sum(x * x)]
    assert np.all(np.abs(found.mean(axis=0) - expected) < 4 * error), (found.mean(axis=0), expected, error)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "nnz"), CASES)
def test_inner_products_vary_as_the_theory_says(kind, nnz):
    found, x, y = products(kind, nnz)
    for values, other in zip(found.T, (y, x), strict=True):
        if kind == "two_sided":
            expected = two_sided_variance(x, other, 8, 2, nnz)
        else:
            expected = independent_signs_variance(x.ravel(), other.ravel(), 8, nnz)
        squares = (values - values.mean()) ** 2
        error = squares.std() / math.sqrt(len(squares))
        assert abs(squares.mean() - expected) < 4 * error, (squares.mean(), expected, error)


def whole_numbers(shape, samples=3, tokens=4):
    """Factors whose products and sums float32 holds exactly, so that rows may be compared bit for bit."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(-3, 4, (samples, tokens, size), generator=generator).float() for size in shape]


@pytest.mark.parametrize("kind", ["sparse", "two_sided", "rademacher"])
def test_rows_do_not_depend_on_the_order_of_modules_or_on_what_else_is_tracked(kind):
    parameters = [Parameter(name, shape) for name, shape in [("b", (6, 5)), ("a", (9, 2)), ("c", (6, 5))]]
    inputs = {parameter: whole_numbers(parameter.shape) for parameter in parameters}

    def rows(order):
        projection = make_projection(kind, order, dim=16, seed=4, side=4)
        total = torch.zeros(3, 16)
        for parameter in order:
            left, right = (projection.reduce(parameter, i, each) for i, each in enumerate(inputs[parameter]))
            projection.add_outer(total, parameter, left, right)
        return total

    whole = rows(parameters)
    assert whole.abs().sum() > 0
    for order in itertools.permutations(parameters):
        assert torch.equal(rows(order), whole)
    assert torch.equal(sum(rows([parameter]) for parameter in parameters), whole)
    assert not torch.equal(rows(parameters[:1]), rows(parameters[2:]))  # the name is the key


@pytest.mark.parametrize("kind", ["sparse", "two_sided", "rademacher", "none"])
def test_rows_are_the_same_on_every_device(kind):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    left, right = whole_numbers((70, 50))
    weight = Parameter("layer.weight", (70, 50))
    projection = make_projection(kind, [weight], dim=64, seed=4, side=4)
    there = [project(projection, left.to(device), right.to(device), weight) for device in ("cuda", "cpu")]
    assert torch.equal(there[0].cpu(), there[1])


@pytest.mark.parametrize("kind", ["sparse", "two_sided"])
def test_rows_of_half_the_columns_are_those_whose_neighbours_are_added(kind):
    left, right = factors()
    wide, narrow = (
        project(make_projection(kind, [WEIGHT], dim=dim, seed=6, side=4), left, right) for dim in (24, 12)
    )
    torch.testing.assert_close(wide.view(3, 12, 2).sum(dim=2), narrow)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_an_embedding_are_those_of_its_gradient(kind):
    table = Parameter("table", (20, 5))
    ids = torch.tensor([[3, 3, 0, 19], [1, 2, 3, 3]])
    values = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    projection = make_projection(kind, [BIAS, table], dim=16, seed=2, side=4)
    found = torch.zeros(2, projection.dim)
    projection.add_rows(found, table, ids, values)
    one_hot = torch.nn.functional.one_hot(ids, 20).float()
    torch.testing.assert_close(found, project(projection, one_hot, values, table))


@pytest.mark.parametrize("kind", ["sparse", "rademacher", "none"])
def test_blocks_of_coordinates_do_not_change_rows(kind, monkeypatch):
    left, right = factors()
    whole = project(make_projection(kind, [WEIGHT], dim=16, seed=2), left, right)
    monkeypatch.setattr("spice_rs.extraction.projection.CHUNK", 5)  # one row of the weight at a time
    monkeypatch.setattr("spice_rs.extraction.projection.SIGNS", 32)
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
