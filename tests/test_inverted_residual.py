"""Inverted residuals: one pass gives the bits of three convolutions, in every option and split; the gradients fit."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastconv
from fastconv import functional, reference, testing

pytestmark = pytest.mark.usefixtures("isa")

DTYPES = (np.float32, np.float64)
LAYOUTS = ("NCHW", "NHWC")
THREADS = (1, 2, 3, 7)


def in_layout(x, layout):
    return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if layout.endswith("C") else x


def operands(seed, shape, size, kernel, dtype=np.float32, n=2, layout="NCHW"):
    """An image and the weights for channels (input, expansion, output), each scaled by what it sums over."""
    rng = np.random.default_rng(seed)
    c, e, k = shape

    def weight(*axes):
        return (rng.standard_normal(axes) / np.sqrt(np.prod(axes[1:]))).astype(dtype)

    x = in_layout(rng.standard_normal((n, c, *size)).astype(dtype), layout)
    return x, weight(e, c, 1, 1), weight(e, 1, *kernel), weight(k, e, 1, 1)


def vectors(seed, length, dtype):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(length).astype(dtype) for name in ("bias", "scale", "shift")}


def three_calls(x, expand, depthwise, project, layout, first, inner, last, **options):
    e = functional.conv2d(x, expand, layout=layout, **first)
    u = functional.conv2d(e, depthwise, groups=len(depthwise), layout=layout, **inner, **options)
    return functional.conv2d(u, project, layout=layout, **last)


def prefixed(prefix, options):
    return {f"{prefix}_{name}": value for name, value in options.items()}


def squeeze_weights(seed, e, reduced, dtype):
    rng = np.random.default_rng(seed)
    return {
        "se_reduce_weight": (rng.standard_normal((reduced, e, 1, 1)) / np.sqrt(e)).astype(dtype),
        "se_reduce_bias": rng.standard_normal(reduced).astype(dtype),
        "se_expand_weight": (rng.standard_normal((e, reduced, 1, 1)) / np.sqrt(reduced)).astype(dtype),
        "se_expand_bias": rng.standard_normal(e).astype(dtype),
    }


# Thin and wide layers, one and several pieces of both reductions, blocks of one row and of all, windows that are moved
# on and windows that hold the image, strips of columns (700 of 256 channels outgrow any second-level cache), filters
# that leave rows out, and what is made as a whole: other paddings and a filter that reaches across a wide image.
SHAPES = [
    ((3, 5, 4), (9, 8), (3, 3), {"padding": 1}),
    ((1, 1, 1), (6, 7), (3, 3), {"padding": 1}),
    ((8, 6, 9), (30, 31), (3, 3), {"padding": 1}),
    ((24, 144, 24), (56, 56), (3, 3), {"padding": 1}),
    ((16, 96, 24), (61, 63), (3, 3), {"padding": 1, "stride": 2}),
    ((96, 576, 40), (14, 14), (5, 5), {"padding": 2}),
    ((600, 420, 24), (7, 7), (3, 3), {"padding": "same"}),
    ((4, 256, 8), (5, 700), (3, 3), {"padding": 1}),
    ((4, 256, 8), (9, 701), (5, 4), {"padding": "same_lower", "stride": (3, 2)}),
    ((12, 72, 12), (40, 33), (3, 3), {"padding": 4, "dilation": 4}),
    ((12, 40, 12), (41, 33), (2, 2), {"stride": 5}),
    ((12, 40, 12), (41, 33), (1, 1), {}),
    ((10, 33, 17), (12, 12), (3, 5), {"padding": (0, 2), "stride": (2, 1), "padding_mode": "reflect"}),
    ((10, 33, 17), (12, 12), (3, 3), {"padding": 2, "padding_mode": "circular"}),
    ((4, 256, 8), (90, 700), (3, 3), {"padding": (40, 300), "dilation": (40, 300)}),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_pass_gives_the_bits_of_three_calls(shape, layout, dtype):
    (c, e, k), size, kernel, options = shape
    x, *weights = operands(1, (c, e, k), size, kernel, dtype, n=1 if max(size) > 600 else 2, layout=layout)
    first, inner, last = (vectors(i, n, dtype) for i, n in enumerate((e, e, k)))
    first["activation"], inner["activation"] = "relu6", "hardswish"
    expected = three_calls(x, *weights, layout, first, inner, last, **options)
    named = {**prefixed("expand", first), **prefixed("depthwise", inner), **last, "layout": layout, **options}
    bias = named.pop("bias")
    y = fastconv.inverted_residual(x, *weights, bias, **named)
    np.testing.assert_array_equal(y, expected)
    # As many threads as make it go stage by stage, and strips of a few rows.
    for threads in (2, 7):
        with fastconv.num_threads(threads):
            np.testing.assert_array_equal(fastconv.inverted_residual(x, *weights, bias, **named), expected)
    if np.prod(size) < 4000:
        testing.assert_close_to_reference(y, "inverted_residual", x, *weights, bias, **named)


def test_the_shapes_take_every_way():
    """Kept rows, strips of columns, the expansion as a whole: each is met above."""
    ways = set()
    for (c, e, k), size, kernel, options in SHAPES:
        x, *weights = operands(1, (c, e, k), size, kernel, n=1)
        decision = fastconv.plan("inverted_residual", x.shape, *weights, **options).decision
        q = functional.inverted_residual(x, *weights, **options).shape[-1]
        if decision["role"] == "the expansion of an image":
            assert decision["whole_bytes"] == 4 * e * size[0] * size[1]
            ways.add("whole")
        else:
            assert decision["whole_bytes"] == 0
            assert decision["workspace_per_thread"] < 2 << 20
            assert 0 < decision["kept_rows"] <= size[0]
            ways.add("columns" if decision["columns"] < q else "moved" if decision["kept_rows"] < size[0] else "held")
    assert {"whole", "columns", "moved", "held"} == ways


def test_all_pairs_of_options():
    failures, count = [], 0
    for i, choice in enumerate(testing.all_pairs(testing.option_table("inverted_residual", functional))):
        count += 1
        case = testing.make_case("inverted_residual", choice, seed=i)
        try:
            case.check(case.call(functional))
        except Exception as e:
            failures.append(f"{choice}\n    {type(e).__name__}: {e}")
    assert count > 100
    assert not failures, f"{len(failures)} of {count} cases fail:\n" + "\n".join(failures[:5])


def test_guarded_buffers_around_every_operand():
    for i, choice in enumerate(testing.all_pairs(testing.option_table("inverted_residual", functional), seed=1)):
        case = testing.make_case("inverted_residual", choice, seed=i)
        guards = []

        def guard(value, guards=guards):
            if not isinstance(value, np.ndarray):
                return value
            guards.append(testing.guarded_copy(value))
            return guards[-1].array

        inside = dataclasses.replace(
            case,
            arrays=tuple(guard(a) for a in case.arrays),
            options={k: guard(v) for k, v in case.options.items() if k != "out"},
            out_memory=None,
        )
        memory = testing.as_memory(case.initial["out"], case.out_memory or "contiguous")
        out = testing.guarded(memory.shape, memory.dtype, strides=tuple(s // memory.itemsize for s in memory.strides))
        result = functional.inverted_residual(*inside.arrays, **{**inside.options, "out": out.array})
        try:
            assert result is out.array
            out.check()
            for g in guards:
                g.check(unchanged=True)
            case.check(result)
        except AssertionError as e:
            raise AssertionError(f"{choice}: {e}") from e


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_on_integers(layout, dtype):
    sizes = itertools.product((1, 5, 16), (1, 9, 40), (1, 33), (6, 19), (2, 3), (1, 2))
    for c, e, k, n, kernel, stride in sizes:
        x = in_layout(testing.integer_data((2, c, n, n + 1), dtype, limit=2), layout)
        expand = testing.integer_data((e, c, 1, 1), dtype, seed=1, limit=2)
        depthwise = testing.integer_data((e, 1, kernel, kernel), dtype, seed=2, limit=2)
        project = testing.integer_data((k, e, 1, 1), dtype, seed=3, limit=2)
        options = {"stride": stride, "padding": 1, "layout": layout, "expand_activation": "relu"}
        y = fastconv.inverted_residual(x, expand, depthwise, project, **options)
        np.testing.assert_array_equal(y, reference.inverted_residual(x, expand, depthwise, project, **options))


@given(
    st.tuples(st.integers(1, 30), st.integers(1, 60), st.integers(1, 40)),
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.integers(1, 3),
    st.integers(0, 3),
    st.sampled_from(LAYOUTS),
    st.integers(1, 4),
)
def test_any_shape(channels, size, kernel, stride, dilation, padding, layout, threads):
    if any(n + 2 * padding < dilation * (k - 1) + 1 for n, k in zip(size, kernel, strict=True)):
        return
    x, *weights = operands(5, channels, size, kernel, layout=layout)
    options = {"stride": stride, "dilation": dilation, "padding": padding, "layout": layout}
    with fastconv.num_threads(threads):
        y = fastconv.inverted_residual(x, *weights, expand_activation="relu", **options)
    testing.assert_close_to_reference(y, "inverted_residual", x, *weights, expand_activation="relu", **options)
    del options["layout"]
    np.testing.assert_array_equal(y, three_calls(x, *weights, layout, {"activation": "relu"}, {}, {}, **options))


@pytest.mark.parametrize("squeeze", [False, True])
@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_depend_on_neither_threads_nor_batch_nor_plan(layout, dtype, expanded, squeeze):
    shapes = [((16, 96, 16), (40, 37), 1), ((24, 72, 40), (14, 14), 2), ((160, 640, 33), (7, 7), 1)]
    for shape, size, stride in [*shapes, ((3, 256, 5), (5, 700), 1)]:
        x, expand, depthwise, project = operands(7, shape, size, (3, 3), dtype, n=3, layout=layout)
        if not expanded:
            expand, depthwise, project = None, depthwise[: shape[0]], project[:, : shape[0]]
        options = {"padding": 1, "stride": stride, "layout": layout, "depthwise_activation": "relu6"}
        if expanded:
            options["expand_activation"] = "relu6"
        if squeeze:
            options |= squeeze_weights(8, len(depthwise), 12, dtype)
        weights = (expand, depthwise, project)
        with fastconv.num_threads(1):
            y = fastconv.inverted_residual(x, *weights, **options)
        prepared = fastconv.plan("inverted_residual", x, *weights, **options)
        for threads in THREADS:
            with fastconv.num_threads(threads):
                np.testing.assert_array_equal(fastconv.inverted_residual(x, *weights, **options), y)
                np.testing.assert_array_equal(prepared(x), y)
                np.testing.assert_array_equal(prepared(x[2:]), y[2:])
                np.testing.assert_array_equal(fastconv.inverted_residual(x[1], *weights, **options), y[1])
                np.testing.assert_array_equal(prepared(x[1]), y[1])


def test_both_memory_orders_give_the_same_bits():
    x, *weights = operands(2, (12, 60, 20), (23, 21), (3, 3))
    y = fastconv.inverted_residual(x, *weights, padding=1)
    last = fastconv.inverted_residual(in_layout(x, "NHWC"), *weights, padding=1, layout="NHWC")
    np.testing.assert_array_equal(in_layout(y, "NHWC"), last)


@pytest.mark.parametrize("squeeze", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["reordered", "strided", "negative", "broadcast"])
def test_any_memory_order(layout, kind, squeeze):
    order = "reordered_last" if kind == "reordered" and layout == "NHWC" else kind
    shape = (2, 9, 11, 20) if layout == "NHWC" else (2, 20, 9, 11)
    x = testing.as_memory(testing.integer_data(shape, np.float32, seed=1), order)
    expand = testing.as_memory(testing.integer_data((40, 20, 1, 1), np.float32, seed=2, limit=2), kind)
    depthwise = testing.as_memory(testing.integer_data((40, 1, 3, 3), np.float32, seed=3, limit=2), kind)
    project = testing.as_memory(testing.integer_data((24, 40, 1, 1), np.float32, seed=4, limit=2), kind)
    options = {"padding": 1, "layout": layout}
    if squeeze:
        # A gate of 0 or 1, so that everything stays an integer.
        ones = np.ones((1, 40, 1, 1), np.float32)
        bias = np.where(np.arange(40) % 3, 9, -9).astype(np.float32)
        options |= {"se_reduce_weight": ones, "se_expand_weight": 0 * ones.reshape(40, 1, 1, 1)}
        options |= {"se_expand_bias": bias, "se_gate": "hardsigmoid"}
    expected = reference.inverted_residual(x, expand, depthwise, project, **options)
    out = testing.as_memory(np.zeros_like(expected), "strided" if kind == "broadcast" else order)
    assert fastconv.inverted_residual(x, expand, depthwise, project, out=out, **options) is out
    np.testing.assert_array_equal(out, expected)
    prepared = fastconv.plan("inverted_residual", shape, expand, depthwise, project, **options)
    out[...] = 0
    assert prepared(x, out=out) is out
    np.testing.assert_array_equal(out, expected)
    residual = testing.as_memory(expected, order)
    np.testing.assert_array_equal(
        prepared(x, residual=residual), 2 * residual if kind != "broadcast" else expected + residual
    )
    assert prepared.packed_bytes > 0
    assert prepared.workspace_bytes > 0
    assert "inverted_residual" in repr(prepared)


def test_the_result_follows_the_memory_order_of_x():
    x, *weights = operands(3, (6, 18, 7), (8, 9), (3, 3))
    for more in ({}, squeeze_weights(1, 18, 4, np.float32)):
        y = fastconv.inverted_residual(x, *weights, **more)
        last = fastconv.inverted_residual(testing.as_memory(x, "reordered"), *weights, **more)
        assert y.flags.c_contiguous
        assert np.moveaxis(last, 1, -1).flags.c_contiguous
        np.testing.assert_allclose(last, y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_an_expansion_it_is_a_separable_layer(layout):
    x, _, depthwise, project = operands(4, (24, 24, 16), (15, 14), (3, 3), layout=layout)
    options = {"padding": 1, "stride": 2, "layout": layout, "depthwise_activation": "relu6", "activation": "relu"}
    inner = prefixed("depthwise", vectors(1, 24, np.float32))
    y = fastconv.inverted_residual(x, None, depthwise, project, **inner, **options)
    np.testing.assert_array_equal(y, fastconv.separable_conv2d(x, depthwise, project, **inner, **options))
    prepared = fastconv.plan("inverted_residual", x, None, depthwise, project, **inner, **options)
    np.testing.assert_array_equal(prepared(x), y)
    assert prepared.decision["algorithm"] == "separable"


def test_a_plan_keeps_its_own_copy():
    x, *weights = operands(4, (6, 18, 7), (8, 9), (3, 3))
    more = squeeze_weights(1, 18, 4, np.float32)
    prepared = fastconv.plan("inverted_residual", x, *weights, **more)
    y = prepared(x)
    for a in (*weights, *more.values()):
        a[...] = 7
    np.testing.assert_array_equal(prepared(x), y)
    with pytest.raises(AttributeError, match="immutable"):
        prepared.op = "x"


def test_empty_and_single():
    x, *weights = operands(8, (4, 9, 6), (5, 5), (3, 3))
    for more in ({}, squeeze_weights(1, 9, 2, np.float32)):
        assert fastconv.inverted_residual(x[:0], *weights, **more).shape == (0, 6, 3, 3)
        assert fastconv.inverted_residual(x[0], *weights, **more).shape == (6, 3, 3)
        prepared = fastconv.plan("inverted_residual", x, *weights, **more)
        assert prepared(x[:0]).shape == (0, 6, 3, 3)
        assert prepared(x[0]).shape == (6, 3, 3)


def test_the_identity_of_mobilenet_is_a_residual():
    x, *weights = operands(9, (16, 96, 16), (14, 14), (3, 3))
    y = fastconv.inverted_residual(x, *weights, padding=1, residual=x)
    np.testing.assert_allclose(y, fastconv.inverted_residual(x, *weights, padding=1) + x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_goes_where_the_reference_has_it(value):
    x, expand, depthwise, project = operands(10, (8, 32, 8), (30, 30), (3, 3))
    x[1, 3, 17, 4] = value
    with np.errstate(all="ignore"):
        expected = reference.inverted_residual(x, expand, depthwise, project, padding=1, expand_activation="relu")
    y = fastconv.inverted_residual(x, expand, depthwise, project, padding=1, expand_activation="relu")
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))


@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients(layout, expanded):
    x, expand, depthwise, project = operands(9, (10, 18, 7), (9, 8), (3, 3), np.float64, layout=layout)
    if not expanded:
        expand, depthwise, project = None, depthwise[:10], project[:, :10]
    weights = (expand, depthwise, project)
    options = {"padding": 1, "stride": 2, "layout": layout}
    y = fastconv.inverted_residual(x, *weights, **options)
    dy = np.random.default_rng(1).standard_normal(y.shape)
    got = fastconv.inverted_residual_backward(dy, x, *weights, **options)
    expected = reference.inverted_residual_backward(dy, x, *weights, **options)
    for name in got._fields:
        if name == "expand_weight" and not expanded:
            assert got.expand_weight is None
            continue
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), rtol=0, atol=1e-12, err_msg=name)
    # The adjoint identity, through each factor: y is linear in each.
    factors = {"input": x, "expand_weight": expand, "depthwise_weight": depthwise, "project_weight": project}
    for name, operand in factors.items():
        if operand is not None:
            np.testing.assert_allclose(np.vdot(y, dy), np.vdot(getattr(got, name), operand), rtol=1e-10, err_msg=name)
    # Differences of one element at a time.
    call = {"x": x, **{name: a for name, a in factors.items() if name != "input"}}
    for name, operand in factors.items():
        if operand is None:
            continue
        at = tuple(n // 2 for n in operand.shape)
        moved = operand.copy()
        moved[at] += 1e-4
        moved = {**call, "x" if name == "input" else name: moved}
        difference = np.vdot(fastconv.inverted_residual(*moved.values(), **options) - y, dy) / 1e-4
        np.testing.assert_allclose(difference, getattr(got, name)[at], rtol=1e-6, atol=1e-7, err_msg=name)


def test_each_gradient_alone():
    x, *weights = operands(9, (5, 14, 6), (9, 8), (3, 3), np.float64)
    dy = np.random.default_rng(1).standard_normal((2, 6, 7, 6))
    every = fastconv.inverted_residual_backward(dy, x, *weights)
    for name in every._fields:
        one = fastconv.inverted_residual_backward(dy, x, *weights, needs=(name,))
        for other in every._fields:
            if other == name:
                np.testing.assert_array_equal(getattr(one, other), getattr(every, other))
            else:
                assert getattr(one, other) is None


def test_errors_name_the_argument():
    x, *weights = operands(10, (8, 20, 6), (5, 5), (3, 3))
    expand, depthwise, project = weights
    f32 = np.float32
    squeeze = squeeze_weights(1, 20, 4, f32)
    for arguments, options, kind, text in [
        ((x, expand[:, :7], depthwise, project), {}, ValueError, r"expand_weight \(shape \(20, 7, 1, 1\)\)"),
        ((x, expand, depthwise[:7], project), {}, ValueError, r"depthwise_weight \(shape \(7, 1, 3, 3\)\)"),
        ((x, None, depthwise, project), {}, ValueError, r"depthwise_weight \(shape \(20, 1, 3, 3\)\)"),
        ((x, None, depthwise[:16], project[:, :16]), {}, ValueError, r"depthwise_weight \(shape \(16, 1, 3, 3\)\)"),
        ((x, expand, depthwise, project[:, :5]), {}, ValueError, r"project_weight \(shape \(6, 5, 1, 1\)\)"),
        ((x, expand, depthwise, project[..., 0]), {}, ValueError, r"project_weight \(shape \(6, 20, 1\)\)"),
        ((x[0, 0], *weights), {}, ValueError, r"x \(shape \(5, 5\)\)"),
        ((x, expand.astype(np.float64), depthwise, project), {}, TypeError, "expand_weight"),
        ((x, expand, None, project), {}, TypeError, "depthwise_weight"),
        ((x, *weights), {"bias": np.zeros(5, f32)}, ValueError, "bias"),
        ((x, *weights), {"expand_bias": np.zeros(5, f32)}, ValueError, "expand_bias"),
        ((x, *weights), {"depthwise_scale": np.zeros(5, f32)}, ValueError, "depthwise_scale"),
        ((x, None, depthwise[:8], project[:, :8]), {"expand_shift": np.zeros(8, f32)}, ValueError, "expand_shift"),
        ((x, *weights), {"residual": x}, ValueError, "residual"),
        ((x, *weights), {"out": np.zeros((2, 6, 3, 4), f32)}, ValueError, "out"),
        ((x, *weights), {"stride": 0}, ValueError, "stride"),
        ((x, *weights), {"dilation": 3}, ValueError, "kernel"),
        ((x, *weights), {"expand_activation": "swish"}, ValueError, r"expand_activation \(='swish'\)"),
        ((x, *weights), {"depthwise_activation": "swish"}, ValueError, r"depthwise_activation \(='swish'\)"),
        ((x, *weights), {"activation": "swish"}, ValueError, r"activation \(='swish'\)"),
        ((x, *weights), {**squeeze, "se_gate": "swish"}, ValueError, r"se_gate \(='swish'\)"),
        ((x, *weights), {"se_expand_bias": np.zeros(20, f32)}, ValueError, "se_expand_bias"),
        ((x, *weights), {"se_reduce_weight": squeeze["se_reduce_weight"]}, ValueError, "se_expand_weight"),
        ((x, *weights), {**squeeze, "se_reduce_weight": np.zeros((4, 9, 1, 1), f32)}, ValueError, "se_reduce_weight"),
        ((x, *weights), {**squeeze, "se_expand_weight": np.zeros((20, 5, 1, 1), f32)}, ValueError, "se_expand_weight"),
        ((x, *weights), {**squeeze, "out": np.zeros((2, 6, 3, 4), f32)}, ValueError, "out"),
        ((x.tolist(), *weights), {}, TypeError, "x"),
    ]:
        out = options.get("out")
        with pytest.raises(kind, match=text):
            fastconv.inverted_residual(*arguments, **options)
        assert out is None or not out.any()
        if "out" not in options and "residual" not in options:
            with pytest.raises(kind, match=text):
                fastconv.plan("inverted_residual", *arguments, **options)
    with pytest.raises(ValueError, match="needs"):
        fastconv.inverted_residual_backward(x, x, *weights, needs=("weight",))
    with pytest.raises(ValueError, match="dy"):
        fastconv.inverted_residual_backward(x, x, *weights)
    for more in ({}, squeeze):
        prepared = fastconv.plan("inverted_residual", x, *weights, **more)
        with pytest.raises(ValueError, match="x"):
            prepared(x[:, :7])
        with pytest.raises(ValueError, match="x"):
            prepared(x[:, :, :4])
        with pytest.raises(ValueError, match="residual"):
            prepared(x, residual=x)
        with pytest.raises(ValueError, match="out"):
            prepared(x, out=x)
        with pytest.raises(TypeError, match="input_gate"):
            prepared(x, input_gate=x)
