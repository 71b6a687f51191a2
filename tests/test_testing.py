"""The tools of fastconv.testing find what they are for."""

import itertools

import numpy as np
import pytest

import fastconv
from fastconv import functional, reference, testing


def test_all_pairs_meets_every_pair():
    table = {"a": range(5), "b": "xyz", "c": (None, 1), "d": range(4), "e": (0.5,)}
    rows = testing.all_pairs(table)
    for p, q in itertools.combinations(table, 2):
        assert {(r[p], r[q]) for r in rows} == set(itertools.product(table[p], table[q]))
    assert len(rows) < 25  # of 120 combinations; no fewer than 5 * 4 will do


def test_option_table_covers_the_signature_and_refuses_unknown_options():
    table = testing.option_table("conv2d", functional)
    assert {"stride", "padding_mode", "input_gate", "out", "algorithm"} <= table.keys()

    class Module:
        @staticmethod
        def conv2d(x, weight, *, a_new_option=0):
            """An option that has no values yet."""

    with pytest.raises(KeyError, match="a_new_option"):
        testing.option_table("conv2d", Module)


@pytest.mark.parametrize("strides", [None, (1, 4), (-8, 2), (16, -3)])
def test_guard_finds_a_write_outside(strides):
    g = testing.guarded((3, 4), np.float32, strides=strides, values=np.ones((3, 4), np.float32))
    g.check(unchanged=True)
    g.array[2, 3] = 5
    g.check()
    with pytest.raises(AssertionError, match="only read"):
        g.check(unchanged=True)
    first = min(0, 2 * g.array.strides[0]) + min(0, 3 * g.array.strides[1])
    before = np.lib.stride_tricks.as_strided(g.array, (2,), (first - 4,))  # element 1 lies before the lowest
    before[1] = 0
    with pytest.raises(AssertionError, match="outside"):
        g.check()


def test_guard_finds_a_write_into_a_gap():
    g = testing.guarded((2, 3), np.float64, strides=(10, 2))
    np.lib.stride_tricks.as_strided(g.array, (2,), (8,))[1] = 1.0
    with pytest.raises(AssertionError, match="outside"):
        g.check()


def test_bound_admits_float32_and_refuses_a_wrong_result():
    x, w = testing.he_data((2, 32, 9, 9), (16, 32, 3, 3))
    y = reference.conv2d(x, w, padding=1)
    testing.assert_close_to_reference(y, "conv2d", x, w, padding=1)
    assert 0 < testing.observed_constant(y, "conv2d", x, w, padding=1) < 4
    for wrong in (y * np.float32(1.0001), np.roll(y, 1, -1), np.where(y == y.max(), np.float32(np.nan), y)):
        with pytest.raises(AssertionError, match="exceed"):
            testing.assert_close_to_reference(wrong, "conv2d", x, w, padding=1)
    # bfloat16-like products are outside by far.
    rough = reference.conv2d((x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32), w, padding=1)
    with pytest.raises(AssertionError, match="exceed"):
        testing.assert_close_to_reference(rough, "conv2d", x, w, padding=1)


def test_constant_follows_the_tail_of_long_chains():
    """The share of elements beyond c is what docs/numerics.md derives, so that its logarithm sets the largest c."""
    rng = np.random.default_rng(0)
    terms, elements = 96, 200_000
    single, double, size = np.zeros(elements, np.float32), np.zeros(elements), np.zeros(elements)
    for _ in range(terms):
        product = rng.standard_normal(elements) * rng.standard_normal(elements)
        single, double, size = (single + product).astype(np.float32), double + product, size + np.abs(product)
    c = np.abs(single - double) / (np.finfo(np.float32).eps * size)
    assert np.sqrt(np.mean(c**2)) == pytest.approx(0.236, rel=0.02)
    for share, derived in ((1e-2, 0.813), (1e-3, 1.256)):
        assert np.quantile(c, 1 - share) == pytest.approx(derived, rel=0.05)
        assert derived < 0.2124 * np.log(1 / share)
    assert testing.largest_constant(1500) == 4
    assert testing.largest_constant(10**6) == pytest.approx(0.2123 * np.log(1e11), rel=1e-3)


def test_a_stray_is_admitted_in_a_large_array_alone():
    def check(size, *excess):
        error = np.zeros(size)
        error[: len(excess)] = excess
        expected = testing.Bounded(np.zeros(size), np.ones(size))
        testing.assert_within(error, expected, stray=testing.stray_factor(size))

    check(10**6, 1.3)
    check(10**6 + 1, 1.3, -1.3)
    for size, *excess in ((10**6, 1.3, 1.3), (10**6, 1.4), (10**6, np.nan), (10**6, np.inf), (1000, 1.01)):
        with pytest.raises(AssertionError, match="exceed"):
            check(size, *excess)
    # A bound of another constant leaves as much room above 4, and none above 16.
    assert testing.stray_factor(10**6, 1.0) == testing.stray_factor(10**6)
    assert testing.stray_factor(10**9, 16.0) == 1


@pytest.mark.parametrize(("dtype", "largest"), [(np.float32, 4), (np.float64, 5)])
def test_constant_counts_the_oracle_where_it_rounds_too(dtype, largest):
    x, w = np.ones((1, 1, 5), dtype), np.ones((1, 1, 1), dtype)
    eps = np.finfo(dtype).eps
    testing.assert_close_to_reference(x * dtype(1 + largest * eps), "conv1d", x, w)
    with pytest.raises(AssertionError, match="exceed"):
        testing.assert_close_to_reference(x * dtype(1 + (largest + 1) * eps), "conv1d", x, w)


def test_bound_wants_nan_and_infinity_where_the_reference_has_them():
    x, w = np.ones((1, 1, 5)), np.ones((1, 1, 2))
    x[0, 0, 2] = np.inf
    y = reference.conv1d(x, w)
    testing.assert_close_to_reference(y, "conv1d", x, w)
    for wrong in (np.nan, -np.inf, 7.0):
        spoiled = y.copy()
        spoiled[0, 0, 1] = wrong
        with pytest.raises(AssertionError, match="exceed"):
            testing.assert_close_to_reference(spoiled, "conv1d", x, w)


@pytest.mark.parametrize("kind", ["contiguous", "reordered", "reordered_last", "strided", "negative"])
def test_as_memory_keeps_the_values(kind):
    a = testing.integer_data((2, 3, 4, 5))
    b = testing.as_memory(a, kind)
    np.testing.assert_array_equal(a, b)
    assert not np.shares_memory(a, b)
    assert b.flags.c_contiguous == (kind == "contiguous")


def test_layer_tables_have_the_published_totals():
    def total(net):
        return sum(layer.multiply_adds * layer.count for layer in testing.layers("conv2d") if layer.net == net)

    assert total("vgg16") == pytest.approx(15.35e9, rel=1e-3)
    assert total("mobilenet_v2") == pytest.approx(0.2995e9, rel=5e-3)
    assert total("googlenet_v1") == pytest.approx(1.582e9, rel=2e-3)
    assert [len(testing.layers(t)) for t in ("conv1d", "conv2d", "conv3d", "conv_transpose")] == [63, 418, 105, 22]


def test_layer_shapes_are_what_the_functions_give():
    for table in ("conv1d", "conv2d", "conv3d", "conv_transpose"):
        for layer in testing.layers(table)[::9]:
            if layer.multiply_adds > 50e6 and layer.weight_shape[2:].count(1) < len(layer.weight_shape) - 2:
                continue
            x, w = layer.data()
            assert getattr(fastconv.functional, layer.op)(x, w, **layer.options).shape == layer.output_shape, layer
