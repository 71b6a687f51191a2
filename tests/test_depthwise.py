"""Depthwise layers: one filter for each channel, forward and both gradients, in both memory orders.

They share the functions of the dense layers, whose tests cover them too; here the shapes are those that choose between
the depthwise kernels' forms and edges.
"""

import dataclasses
import itertools
from typing import Any

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
OPS = [f"{family}{d}d" for family in ("conv", "conv_transpose") for d in (1, 2, 3)]
GRADIENTS = ("", "_backward_input", "_backward_weight")
# The square ones have kernels of their own, in place; the others are computed from copies or tap by tap.
FILTERS = [
    ((3, 3), {"padding": 1}),
    ((3, 3), {"padding": 1, "stride": 2}),
    ((3, 3), {"padding": ((0, 2), (2, 0)), "stride": 2}),
    ((5, 5), {"padding": 2}),
    ((5, 5), {"padding": (1, 3), "stride": 2}),
    ((7, 7), {"padding": 3}),
    ((7, 7), {"padding": 3, "stride": 2}),
    ((3, 3), {"padding": 2, "dilation": 2}),
    ((3, 3), {"padding": 1, "padding_mode": "reflect"}),
    ((1, 9), {"padding": (0, 4)}),
    ((2, 3), {"stride": (1, 3), "dilation": (3, 1), "padding": (3, 1)}),
    ((1, 1), {}),
    ((4, 4), {"stride": 3}),
]


def lay(a: Any, layout: str) -> Any:
    return np.ascontiguousarray(np.moveaxis(a, 1, -1)) if layout == "NHWC" else a


def operands(op: str, x_shape: Any, kernel: Any, dtype: Any, options: Any, *, integers: bool = False) -> Any:
    """(x, w, dy) of a depthwise layer, or one of groups; x_shape is (N, C, ...)."""
    make = (
        testing.integer_data
        if integers
        else lambda shape, dtype, seed: testing.he_data(shape, (1, 1), dtype, seed=seed)[0]
    )
    group = x_shape[1] // options["groups"]
    x, w = make(x_shape, dtype, seed=1), make((x_shape[1], group, *kernel), dtype, seed=2)
    x = lay(x, options.get("layout", "NCHW"))
    y = getattr(reference, op)(x, w, **options)
    return x, w, make(y.shape, dtype, seed=3)


def passes(op: str, x: Any, w: Any, dy: Any, options: Any) -> Any:
    """{gradient: the call's operands}."""
    return {"": (x, w), "_backward_input": (dy, w, x.shape), "_backward_weight": (dy, x, w.shape)}


def assert_same_bits(a: Any, b: Any, what: str) -> None:
    assert a.shape == b.shape
    assert np.array_equal(
        np.ascontiguousarray(a).view(f"u{a.itemsize}"), np.ascontiguousarray(b).view(f"u{b.itemsize}")
    ), f"{what}: bits differ"


# ------------------------------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_of_channels_is_exact(dtype: Any, layout: str) -> None:
    for channels in range(1, 71):
        kernel, options = FILTERS[channels % len(FILTERS)]
        shape = (1 + channels % 2, channels, 9 + channels % 5, 7 + channels)
        options = {**options, "groups": channels, "layout": layout}
        x, w, dy = operands("conv2d", shape, kernel, dtype, options, integers=True)
        for gradient, arguments in passes("conv2d", x, w, dy, options).items():
            got = getattr(functional, f"conv2d{gradient}")(*arguments, **options)
            expected = getattr(reference, f"conv2d{gradient}")(*arguments, **options)
            np.testing.assert_array_equal(got, expected, err_msg=f"{gradient} {channels} {kernel} {options}")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "options"), FILTERS, ids=str)
def test_every_width_is_exact(kernel: Any, options: Any, dtype: Any, layout: str) -> None:
    options = {**options, "groups": 9, "layout": layout}
    for width in (*range(9, 42), 64, 131):
        x, w, dy = operands("conv2d", (1, 9, 11, width), kernel, dtype, options, integers=True)
        for gradient, arguments in passes("conv2d", x, w, dy, options).items():
            got = getattr(functional, f"conv2d{gradient}")(*arguments, **options)
            expected = getattr(reference, f"conv2d{gradient}")(*arguments, **options)
            np.testing.assert_array_equal(got, expected, err_msg=f"{gradient} {width}")


def depthwise_table(op: str) -> Any:
    """The options of the function, for depthwise layers alone."""
    return {**testing.option_table(op, functional), "groups": (1, 3, 9, 17, 40), "channels": ((1, 1),)}


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("op", OPS)
def test_all_pairs_of_options(op: str, gradient: str) -> None:
    failures, count = [], 0
    for i, choice in enumerate(testing.all_pairs(depthwise_table(op + gradient), seed=3)):
        count += 1
        case = testing.make_case(op + gradient, choice, seed=i)
        try:
            case.check(case.call(functional))
        except Exception as e:
            failures.append(f"{choice}\n    {type(e).__name__}: {e}")
    assert count > 10
    assert not failures, f"{len(failures)} of {count} cases fail:\n" + "\n".join(failures[:5])


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("op", OPS)
def test_guarded_buffers_around_every_operand(op: str, gradient: str) -> None:
    for i, choice in enumerate(testing.all_pairs(depthwise_table(op + gradient), seed=4)):
        case = testing.make_case(op + gradient, choice, seed=i)
        guards: list[Any] = []

        def guard(value: Any, guards: list[Any] = guards) -> Any:
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
        strides = tuple(s // memory.itemsize for s in memory.strides)
        values = memory if case.options.get("accumulate") else None
        out = testing.guarded(memory.shape, memory.dtype, strides=strides, values=values)
        result = getattr(functional, op + gradient)(*inside.arrays, **{**inside.options, "out": out.array})
        try:
            assert result is out.array
            out.check()
            for g in guards:
                g.check(unchanged=True)
            case.check(result)
        except AssertionError as e:
            raise AssertionError(f"{choice}: {e}") from e


@st.composite
def problems(draw: Any) -> Any:
    op = draw(st.sampled_from(OPS))
    rank = int(op[-2])
    channels = draw(st.integers(1, 70))

    def per_dimension(low: int, high: int) -> Any:
        return draw(st.integers(low, high) | st.tuples(*[st.integers(low, high)] * rank))

    kernel = draw(st.tuples(*[st.integers(1, 7)] * rank) | st.sampled_from([(3,) * rank, (5,) * rank, (7,) * rank]))
    pairs = st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * rank)
    options: dict[str, Any] = {
        "stride": per_dimension(1, 3),
        "dilation": per_dimension(1, 2),
        "padding": draw(st.integers(0, 3) | pairs | st.sampled_from(["same", "same_lower"])),
        "groups": channels,
        "layout": draw(st.sampled_from(LAYOUTS)),
    }
    if "transpose" in op:
        options["output_padding"] = per_dimension(0, 2)
    else:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    limit = {1: 60, 2: 20, 3: 8}[rank]
    size = draw(st.tuples(*[st.integers(1, limit)] * rank))
    lead = draw(st.sampled_from([(), (1,), (2,), (3,), (0,)]))
    shape = (*lead, *size, channels) if options["layout"] == "NHWC" else (*lead, channels, *size)
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 1000))
    kinds = st.sampled_from(["contiguous", "reordered", "strided", "negative", "broadcast"])
    x = testing.integer_data(shape, dtype, seed=seed)
    if lead:
        x = testing.as_memory(x, draw(kinds))
    w = testing.as_memory(testing.integer_data((channels, 1, *kernel), dtype, seed=seed + 1), draw(kinds))
    vectors = {}
    for name in ("scale", "shift", "input_scale", "input_shift", "input_gate", "residual"):
        if draw(st.booleans()):
            vectors[name] = draw(kinds)
    clamps: tuple[Any, ...] = (None, "relu", "relu6", ("clip", -9, 9))
    dress = {"activation": draw(st.sampled_from(clamps)), "input_activation": draw(st.sampled_from(clamps))}
    return op, x, w, options, vectors, dress, draw(kinds)


@given(problems())
def test_any_layer_is_exact_on_integers(problem: Any) -> None:
    op, x, w, options, vectors, dress, dy_kind = problem
    try:
        expected = getattr(reference, op)(x, w, **options)
    except ValueError:
        with pytest.raises(ValueError, match=r"\d"):
            getattr(functional, op)(x, w, **options)
        return
    np.testing.assert_array_equal(getattr(functional, op)(x, w, **options), expected, strict=True)
    channels, batched = w.shape[0], x.ndim == w.ndim
    shapes = {"residual": expected.shape, "input_gate": (x.shape[0], channels) if batched else (channels,)}
    dressed = {**options, **dress}
    for i, (name, kind) in enumerate(vectors.items()):
        vector = testing.integer_data(shapes.get(name, (channels,)), x.dtype, seed=i, limit=2)
        dressed[name] = testing.as_memory(vector, kind)
    got = getattr(functional, op)(x, w, **dressed)
    np.testing.assert_array_equal(got, getattr(reference, op)(x, w, **dressed), strict=True)
    dy = testing.as_memory(testing.integer_data(expected.shape, x.dtype, seed=7), dy_kind if batched else "contiguous")
    gradients = getattr(functional, f"{op}_backward")(dy, x, w, **options)
    wanted = getattr(reference, f"{op}_backward")(dy, x, w, **options)
    for name in gradients._fields:
        np.testing.assert_array_equal(getattr(gradients, name), getattr(wanted, name), strict=True, err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "options"), FILTERS, ids=str)
def test_adjoint_identity_is_exact_on_integers(kernel: Any, options: Any, dtype: Any, layout: str) -> None:
    options = {**options, "groups": 21, "layout": layout}
    x, w, dy = operands("conv2d", (2, 21, 14, 23), kernel, dtype, options, integers=True)
    y = functional.conv2d(x, w, **options)
    got = functional.conv2d_backward(dy, x, w, **options)

    def inner(a: Any, b: Any) -> int:
        return int((a.astype(np.float64) * b).sum())

    assert inner(y, dy) == inner(got.input, x) == inner(got.weight, w)
    # A sum that is zero would prove nothing.
    assert inner(y, dy) != 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("op", "shape", "kernel", "options"),
    [
        ("conv1d", (2, 18, 9001), (3,), {"padding": 1}),  # rows in several pieces
        ("conv1d", (1, 18, 9001), (31,), {"padding": 15, "stride": 2, "padding_mode": "circular"}),
        ("conv1d", (2, 2050, 150), (4,), {"padding": 3}),  # few whole pixels at a time
        ("conv2d", (1, 18, 3, 8300), (3, 3), {"padding": 1}),
        ("conv2d", (1, 18, 7, 4500), (3, 3), {"padding": 1, "stride": 2}),
        ("conv2d", (1, 18, 300, 5), (5, 5), {"padding": 2}),
        ("conv3d", (1, 18, 4, 9, 1030), (3, 3, 3), {"padding": 1}),
        ("conv_transpose1d", (1, 18, 4500), (4,), {"stride": 2, "padding": 1, "output_padding": 1}),
        ("conv_transpose2d", (1, 18, 5, 1030), (3, 3), {"stride": 3, "output_padding": 2}),
    ],
)
def test_large_images_are_exact(op: str, shape: Any, kernel: Any, options: Any, layout: str) -> None:
    options = {**options, "groups": shape[1], "layout": layout}
    x, w, dy = operands(op, shape, kernel, np.float32, options, integers=True)
    for gradient, arguments in passes(op, x, w, dy, options).items():
        expected = getattr(reference, op + gradient)(*arguments, **options)
        for threads in (1, 3):
            with fastconv.num_threads(threads):
                got = getattr(functional, op + gradient)(*arguments, **options)
            np.testing.assert_array_equal(got, expected, err_msg=f"{gradient} {threads}")


# Filters of several planes whose planes have kernels of their own are gone through plane by plane.
VOLUMES = [
    ((3, 3, 3), {"padding": 1}),
    ((3, 3, 3), {"padding": 1, "stride": (1, 2, 2)}),
    ((5, 3, 3), {"padding": (2, 1, 1), "stride": (2, 2, 2)}),
    ((2, 3, 3), {"padding": (3, 0, 2), "dilation": (3, 1, 1)}),  # windows that lie before and behind the image
    ((3, 5, 5), {"padding": (1, 2, 2)}),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kernel", "options"), VOLUMES, ids=str)
def test_filters_of_several_planes_are_exact(kernel: Any, options: Any, dtype: Any, layout: str) -> None:
    options = {**options, "groups": 37, "layout": layout}
    x, w, dy = operands("conv3d", (2, 37, 4, 33, 34), kernel, dtype, options, integers=True)
    for gradient, arguments in passes("conv3d", x, w, dy, options).items():
        expected = getattr(reference, "conv3d" + gradient)(*arguments, **options)
        np.testing.assert_array_equal(getattr(functional, "conv3d" + gradient)(*arguments, **options), expected)
    y = reference.conv3d(x, w, **options)
    plan = fastconv.plan("conv3d", x, w, activation="relu", **options)
    np.testing.assert_array_equal(plan(x, residual=dy), np.maximum(y + dy, 0))
    w[3, 0, 0, 0, 0] = np.inf
    testing.assert_close_to_reference(fastconv.plan("conv3d", x, w, **options)(x), "conv3d", x, w, **options)


def test_columns_that_are_one_column_in_memory() -> None:
    """A stride of zero is no row of zeros."""
    for layout, channels, dtype in itertools.product(LAYOUTS, (3, 40), DTYPES):
        options = {"padding": 1, "groups": channels, "layout": layout}
        x = testing.integer_data((3, channels, 20, 1) if layout == "NCHW" else (3, 20, 1, channels), dtype, seed=1)
        x = np.broadcast_to(x, (3, channels, 20, 30) if layout == "NCHW" else (3, 20, 30, channels))
        w = testing.integer_data((channels, 1, 3, 3), dtype, seed=2)
        for op in ("conv2d", "conv_transpose2d"):
            expected = getattr(reference, op)(x, w, **options)
            np.testing.assert_array_equal(getattr(functional, op)(x, w, **options), expected)
            got = getattr(functional, f"{op}_backward")(x, x, w, **options)
            wanted = getattr(reference, f"{op}_backward")(x, x, w, **options)
            for name in got._fields:
                np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name), err_msg=f"{op} {name}")


def test_tasks_of_unlike_channels() -> None:
    """The last channels are fewer: their task's copy of the input, which may have more rows, takes no more memory."""
    rng = np.random.default_rng(0)
    for channels in (240, 176, 144, 112):
        x, w = testing.integer_data((1, 17, 114, channels), seed=1), testing.integer_data((channels, 1, 3, 3), seed=2)
        options: dict[str, Any] = {"groups": channels, "layout": "NHWC", "padding": 1}
        options["input_scale"] = rng.integers(-2, 3, channels).astype(np.float32)
        for threads in (1, 2):
            with fastconv.num_threads(threads):
                y = functional.conv2d(x, w, **options)
            np.testing.assert_array_equal(y, reference.conv2d(x, w, **options))


def test_residues_that_no_tap_meets() -> None:
    """A stride beyond the filter leaves pixels of the transposed layer without a term: the epilogue of zero."""
    for layout, channels, rank in itertools.product(LAYOUTS, (1, 40), (1, 2, 3)):
        options = {"stride": 4, "output_padding": 3, "groups": channels, "layout": layout}
        op = f"conv_transpose{rank}d"
        x, w, dy = operands(op, (2, channels, *(5,) * rank), (2,) * rank, np.float32, options, integers=True)
        shift = testing.integer_data((channels,), seed=5)
        for extra in ({}, {"shift": shift, "activation": "relu", "residual": testing.integer_data(dy.shape, seed=6)}):
            got = getattr(functional, op)(x, w, **options, **extra)
            np.testing.assert_array_equal(got, getattr(reference, op)(x, w, **options, **extra))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_batch(layout: str) -> None:
    options = {"groups": 20, "layout": layout, "padding": 1}
    x = lay(np.empty((0, 20, 6, 7), np.float32), layout)
    w = np.ones((20, 1, 3, 3), np.float32)
    y = functional.conv2d(x, w, **options)
    assert y.shape == x.shape
    assert functional.conv2d_backward_input(y, w, x.shape, **options).shape == x.shape
    dw = np.full(w.shape, np.nan, np.float32)
    assert not functional.conv2d_backward_weight(y, x, w.shape, **options, out=dw).any()
    dw[...] = 3
    functional.conv2d_backward_weight(y, x, w.shape, **options, accumulate=True, out=dw)
    assert (dw == 3).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("kernel", "options"), FILTERS, ids=str)
def test_nonfinite_values_reach_what_the_reference_says(
    kernel: Any, options: Any, value: float, dtype: Any, layout: str, rng: np.random.Generator
) -> None:
    channels = int(rng.integers(1, 20))
    options = {**options, "groups": channels, "layout": layout}
    x, w, dy = operands("conv2d", (2, channels, 10, int(rng.integers(9, 22))), kernel, dtype, options)
    arguments = passes("conv2d", x, w, dy, options)
    for target in (x, w, dy):
        for _ in range(3):
            at = tuple(rng.integers(n) for n in target.shape)
            kept, target[at] = target[at], value
            for gradient in GRADIENTS:
                if target is w and gradient == "_backward_input":
                    continue  # beyond the border of dy are zeros: test_nonfinite.py says what is asked there
                got = getattr(functional, f"conv2d{gradient}")(*arguments[gradient], **options)
                testing.assert_close_to_reference(got, f"conv2d{gradient}", *arguments[gradient], **options)
            target[at] = kept


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kernel", "options"), FILTERS[:5], ids=str)
def test_a_plan_of_infinite_weights(kernel: Any, options: Any, layout: str) -> None:
    """Rows of padding are passed over where all filters are finite, and only there."""
    options = {**options, "groups": 20, "layout": layout}
    x, w, _ = operands("conv2d", (2, 20, 12, 13), kernel, np.float32, options)
    for value in (np.inf, np.nan):
        w[3, 0, 0, 0] = value
        y = fastconv.plan("conv2d", x, w, **options)(x)
        testing.assert_close_to_reference(y, "conv2d", x, w, **options)
        assert np.isnan(y[..., 3] if layout == "NHWC" else y[:, 3]).any()


# ---------------------------------------------------------------------------------------------------------- the bits


# Shapes with several tasks for every thread, uneven ones, and rows in pieces.
BIT_LAYERS = [
    ("conv1d", (2, 19, 9000), (9,), {"padding": 4}),
    ("conv1d", (3, 70, 2500), (4,), {"stride": 3}),
    ("conv2d", (3, 40, 30, 31), (3, 3), {"padding": 1}),
    ("conv2d", (2, 130, 29, 28), (3, 3), {"padding": 1, "stride": 2}),
    ("conv2d", (2, 33, 40, 41), (5, 5), {"padding": 2}),
    ("conv2d", (5, 24, 21, 20), (7, 7), {"padding": 3}),
    ("conv2d", (2, 50, 26, 26), (3, 3), {"padding": 2, "dilation": 2}),
    ("conv2d", (2, 21, 35, 30), (5, 3), {"padding": (2, 1), "padding_mode": "reflect"}),
    ("conv3d", (2, 20, 6, 14, 15), (3, 3, 3), {"padding": 1}),
    ("conv_transpose2d", (2, 37, 20, 21), (4, 4), {"stride": 2, "padding": 1}),
    # Groups of a few channels, which are run alike.
    ("conv1d", (2, 38, 3000), (3,), {"padding": 1, "groups": 19}),
    ("conv2d", (3, 72, 30, 31), (3, 3), {"padding": 1, "groups": 18}),
    ("conv2d", (2, 136, 29, 28), (3, 3), {"padding": 1, "stride": 2, "groups": 17}),
    ("conv2d", (2, 256, 9, 16), (2, 3), {"padding": 1, "stride": (1, 2), "dilation": (3, 1), "groups": 64}),
    ("conv2d", (2, 40, 12, 13), (3, 3), {"padding": 2, "padding_mode": "circular", "groups": 10}),
]


def bit_operands(op: str, shape: Any, kernel: Any, options: Any, dtype: Any, layout: str) -> Any:
    options = {"groups": shape[1], **options, "layout": layout}
    x, w, dy = operands(op, shape, kernel, dtype, options)
    return x, w, dy, options


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "shape", "kernel", "options"), BIT_LAYERS, ids=str)
def test_any_number_of_threads(op: str, shape: Any, kernel: Any, options: Any, dtype: Any, layout: str) -> None:
    x, w, dy, options = bit_operands(op, shape, kernel, options, dtype, layout)
    for gradient, arguments in passes(op, x, w, dy, options).items():
        results = []
        for threads in (*THREADS, 2):
            with fastconv.num_threads(threads):
                results.append(getattr(functional, op + gradient)(*arguments, **options))
        for result in results[1:]:
            assert_same_bits(result, results[0], gradient)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weight_gradient_of_a_long_batch(layout: str) -> None:
    for shape, kernel in (((150, 3, 9, 10), (3, 3)), ((40, 20, 7, 7), (3, 3)), ((90, 9, 60), (5,))):
        op = f"conv{len(kernel)}d"
        x, w, dy, options = bit_operands(op, shape, kernel, {"padding": 1}, np.float32, layout)
        results = []
        for threads in THREADS:
            with fastconv.num_threads(threads):
                results.append(getattr(functional, f"{op}_backward_weight")(dy, x, w.shape, **options))
        for result in results:
            assert_same_bits(result, results[0], f"{shape}")
        testing.assert_close_to_reference(results[0], f"{op}_backward_weight", dy, x, w.shape, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "shape", "kernel", "options"), BIT_LAYERS, ids=str)
def test_image_alone_in_a_batch_or_in_a_plan(
    op: str, shape: Any, kernel: Any, options: Any, dtype: Any, layout: str
) -> None:
    x, w, dy, options = bit_operands(op, shape, kernel, options, dtype, layout)
    forward, backward = getattr(functional, op), getattr(functional, f"{op}_backward_input")
    y, dx = forward(x, w, **options), backward(dy, w, x.shape, **options)
    for i in (0, len(x) - 1):
        assert_same_bits(forward(x[i], w, **options), y[i], "unbatched")
        assert_same_bits(backward(dy[i : i + 1], w, (1, *x.shape[1:]), **options)[0], dx[i], "input gradient alone")
    assert_same_bits(fastconv.plan(op, x, w, **options)(x), y, "plan")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("op", "shape", "kernel", "options"), [layer for layer in BIT_LAYERS if "groups" not in layer[3]], ids=str
)
def test_both_memory_orders(
    op: str, shape: Any, kernel: Any, options: Any, dtype: Any, rng: np.random.Generator
) -> None:
    """The sums have the same order: by filter rows, then by taps."""
    x, w, dy, options = bit_operands(op, shape, kernel, options, dtype, "NCHW")
    channels = shape[1]
    extra = {
        name: rng.standard_normal(channels).astype(dtype) for name in ("scale", "shift", "input_scale", "input_shift")
    }
    extra |= {"input_gate": rng.random(shape[:2]).astype(dtype), "activation": "hardswish", "input_activation": "silu"}
    last = {**options, "layout": "NHWC"}
    for dressing in ({}, extra):
        y = getattr(functional, op)(x, w, **options, **dressing)
        turned = getattr(functional, op)(lay(x, "NHWC"), w, **last, **dressing)
        assert_same_bits(np.moveaxis(turned, -1, 1), y, "forward")
    # Axes of one order, memory of the other.
    reordered = testing.as_memory(x, "reordered")
    assert_same_bits(
        getattr(functional, op)(reordered, w, **options), getattr(functional, op)(x, w, **options), "memory"
    )
    dx = getattr(functional, f"{op}_backward_input")(dy, w, x.shape, **options)
    turned = getattr(functional, f"{op}_backward_input")(lay(dy, "NHWC"), w, lay(x, "NHWC").shape, **last)
    assert_same_bits(np.moveaxis(turned, -1, 1), dx, "input gradient")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("op", "shape", "kernel", "options"), BIT_LAYERS[1:4], ids=str)
def test_strides_do_not_change_the_bits(op: str, shape: Any, kernel: Any, options: Any, layout: str) -> None:
    x, w, dy, options = bit_operands(op, shape, kernel, options, np.float32, layout)
    y = getattr(functional, op)(x, w, **options)
    dx = getattr(functional, f"{op}_backward_input")(dy, w, x.shape, **options)
    dw = getattr(functional, f"{op}_backward_weight")(dy, x, w.shape, **options)
    residual = getattr(functional, op)(x, w, **options, residual=dy)

    def strided(a: Any) -> Any:
        """Gaps along every axis; the innermost one in memory stays innermost."""
        wide = np.zeros([2 * n + 1 for n in a.shape], a.dtype)
        view = wide[tuple(slice(1, None, 2) for _ in a.shape)]
        view[...] = a
        return view

    for out in (None, strided(np.zeros_like(y)), testing.as_memory(np.zeros_like(y), "negative")):
        assert_same_bits(getattr(functional, op)(strided(x), strided(w), **options, out=out), y, "forward")
        got = getattr(functional, op)(strided(x), w, **options, residual=strided(dy), out=out)
        assert_same_bits(got, residual, "residual")
    for out in (None, strided(np.zeros_like(x))):
        got = getattr(functional, f"{op}_backward_input")(strided(dy), strided(w), x.shape, **options, out=out)
        assert_same_bits(got, dx, "input gradient")
    # A weight gradient's form follows from the strides.
    got = getattr(functional, f"{op}_backward_weight")(strided(dy), strided(x), w.shape, **options)
    testing.assert_close_to_reference(got, f"{op}_backward_weight", dy, x, w.shape, **options)
    testing.assert_close_to_reference(dw, f"{op}_backward_weight", dy, x, w.shape, **options)


# ---------------------------------------------------------------------------------------------------- the decisions


def lanes_of(isa: str, dtype: Any) -> int:
    return {"portable": 16, "avx2": 32, "avx512": 64}[isa] // np.dtype(dtype).itemsize


@pytest.mark.parametrize("dtype", DTYPES)
def test_explain(isa: str, dtype: Any) -> None:
    lanes = lanes_of(isa, dtype)
    for layout, channels in itertools.product(LAYOUTS, (1, lanes // 2, lanes // 2 + 1, 100)):
        options = {"groups": channels, "layout": layout, "padding": 1}
        shape = (2, channels, 20, 21) if layout == "NCHW" else (2, 20, 21, channels)
        x, w = np.zeros(shape, dtype), np.zeros((channels, 1, 3, 3), dtype)
        # One channel has no neighbours: both orders are one.
        by_channels = layout == "NHWC" and 2 * channels > lanes
        for e in (
            fastconv.explain("conv2d", x, w, **options),
            fastconv.explain("conv2d_backward_input", x, w, shape, **options),
            fastconv.explain("conv_transpose2d", x, w, **options),
        ):
            d = e.decision
            assert d["algorithm"] == "depthwise"
            assert d["role"] == ("lanes of channels" if by_channels else "lanes of pixels")
            assert (d["tile_rows"], d["tile_columns"]) == (1, lanes)
            assert d["reduction_block"] == 9
            assert d["channel_block"] == channels
            assert d["pixel_block"] == 20 * 21
            assert d["error_bound"] == 9 + 1 + 4 + (isa == "portable")
            assert f"depthwise on {isa}, {d['role']}, tile 1 x {lanes}" in str(e)
        d = fastconv.explain("conv2d_backward_weight", x, x, w.shape, **options).decision
        in_place = by_channels or (isa != "portable" and (layout == "NCHW" or channels == 1))
        assert d["algorithm"] == ("depthwise" if in_place else "direct")
        if in_place:
            # Planes of this size are turned, so that lanes are channels.
            vectors = by_channels or (isa != "portable" and 2 * channels > lanes)
            assert d["role"] == ("lanes of channels" if vectors else "lanes of pixels")
            assert d["pixel_block"] == 20 * 21
            # One sum a part of the images' rows, in vectors.
            pitch = -(-channels // lanes) * lanes if vectors else channels
            parts, rest = divmod(d["packed_weight_bytes"], pitch * 9 * np.dtype(dtype).itemsize)
            assert 1 <= parts <= 16
            assert rest == 0
    # Two outputs a channel are not depthwise in this sense: the tile computes them.
    assert fastconv.explain("conv2d", (1, 8, 9, 9), (16, 1, 3, 3), groups=8).decision["algorithm"] == "direct"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("channels", "kernel"), [(40, (3, 3)), (40, (5, 5)), (40, (2, 7)), (3, (3, 3))])
def test_proven_bound(layout: str, channels: int, kernel: Any) -> None:
    """On constant data a chain's roundings all point one way."""
    padding = tuple(k // 2 for k in kernel)
    options = {"groups": channels, "layout": layout, "padding": padding}
    for size in ((1, 40), (60, 1), (40, 37), (9, 700)):
        shape = (3, channels, *size) if layout == "NCHW" else (3, *size, channels)
        y_shape = fastconv.explain("conv2d", shape, (channels, 1, *kernel), **options).shapes["y"]
        for op, operands in (
            ("conv2d", [shape, (channels, 1, *kernel)]),
            ("conv2d_backward_input", [y_shape, (channels, 1, *kernel), shape]),
            ("conv2d_backward_weight", [y_shape, shape, (channels, 1, *kernel)]),
        ):
            proven = fastconv.explain(op, *operands, **options).decision["error_bound"]
            for value in (0.7, 0.9, 1.1, 1.3):
                arrays = [np.full(s, value, np.float32) for s in operands[:2]]
                exact = getattr(reference, op)(*(a.astype(np.float64) for a in arrays), *operands[2:], **options)
                error = np.abs(getattr(functional, op)(*arrays, *operands[2:], **options) - exact)
                assert (error <= proven * np.finfo(np.float32).eps * exact).all(), (op, size, value)


def test_long_rows_are_summed_in_pieces() -> None:
    """With channels innermost a chain would otherwise be as long as a row: of 20000 equal terms its error shows."""
    for channels, size, kernel in ((40, (20000,), (3,)), (40, (2, 9000), (3, 3))):
        op = f"conv{len(size)}d_backward_weight"
        options = {"groups": channels, "layout": "NHWC", "padding": 1}
        operands = [(1, *size, channels), (1, *size, channels), (channels, 1, *kernel)]
        proven = fastconv.explain(op, *operands, **options).decision["error_bound"]
        assert proven < 1024 + 40
        arrays = [np.full(shape, 1.1, np.float32) for shape in operands[:2]]
        exact = getattr(reference, op)(*(a.astype(np.float64) for a in arrays), operands[2], **options)
        error = np.abs(getattr(functional, op)(*arrays, operands[2], **options) - exact)
        assert (error <= proven * np.finfo(np.float32).eps * exact).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("channels", "size", "kernel", "stride"),
    [(40, (130, 120), 3, 2), (37, (300, 90), 3, 3), (96, (112, 112), 5, 2), (50, (14, 13), 7, 1), (19, (9, 8), 5, 1)],
)
def test_turned_planes_are_exact(isa: str, channels: int, size: Any, kernel: int, stride: int, dtype: Any) -> None:
    """Whole planes and bands of them; outputs whose columns are far apart, and sums that go on."""
    rng = np.random.default_rng(0)
    options = {"groups": channels, "padding": kernel // 2, "stride": stride}
    x, w = (rng.integers(-3, 4, s).astype(dtype) for s in ((2, channels, *size), (channels, 1, kernel, kernel)))
    y = functional.conv2d(x, w, **options)
    np.testing.assert_array_equal(y, reference.conv2d(x, w, **options))
    dy = rng.integers(-3, 4, y.shape).astype(dtype)
    want = reference.conv2d_backward_input(dy, w, x.shape, **options)
    np.testing.assert_array_equal(functional.conv2d_backward_input(dy, w, x.shape, **options), want)
    for order in ((0, 1, 3, 2), (1, 0, 2, 3), (2, 0, 1, 3)):
        shape = tuple(want.shape[a] for a in order)
        strides = tuple(s // want.itemsize for s in np.transpose(np.empty(shape, dtype), np.argsort(order)).strides)
        out = testing.guarded(want.shape, dtype, strides=strides)
        functional.conv2d_backward_input(dy, w, x.shape, **options, out=out.array)
        out.check()
        np.testing.assert_array_equal(out.array, want, err_msg=f"{order}")
    total = want + 1
    functional.conv2d_backward_input(dy, w, x.shape, **options, out=total, accumulate=True)
    np.testing.assert_array_equal(total, want + 1 + want)
    dw = reference.conv2d_backward_weight(dy, x, w.shape, **options)
    np.testing.assert_array_equal(functional.conv2d_backward_weight(dy, x, w.shape, **options), dw)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [512, 1024, 1280])
def test_far_pixels_are_brought_together(isa: str, channels: int, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    options = {"groups": channels, "padding": 1, "layout": "NHWC"}
    x, dy = (rng.integers(-3, 4, (3, 9, 7, channels)).astype(dtype) for _ in range(2))
    dw = functional.conv2d_backward_weight(dy, x, (channels, 1, 3, 3), **options)
    np.testing.assert_array_equal(dw, reference.conv2d_backward_weight(dy, x, (channels, 1, 3, 3), **options))


def peak(function: Any, arguments: Any, options: Any) -> int:
    """Scratch of one call on one thread."""
    fastconv.workspace_info(reset=True)
    with fastconv.num_threads(1):
        function(*arguments, **options)
    return int(fastconv.workspace_info()["peak_call_bytes_per_thread"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("op", "shape", "kernel", "options"), BIT_LAYERS, ids=str)
def test_scratch_is_what_explain_says(op: str, shape: Any, kernel: Any, options: Any, layout: str) -> None:
    x, w, dy, options = bit_operands(op, shape, kernel, options, np.float32, layout)
    # Beside a task's: a call's vectors, and the offsets of the taps while the filters are packed.
    small = 4 * 4 * shape[1] + 8 * int(np.prod(kernel)) + 64
    for gradient, arguments in passes(op, x, w, dy, options).items():
        if gradient == "_backward_input" and options.get("padding_mode", "zeros") != "zeros":
            continue  # which has a piece of the frame besides
        said = fastconv.explain(op + gradient, *arguments, **options).decision["workspace_per_thread"]
        taken = peak(getattr(functional, op + gradient), arguments, options)
        assert said <= taken <= said + small, gradient


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_scratch_is_bounded(layout: str, mode: str) -> None:
    for size, channels, kernel in itertools.product(((2000, 2000), (40, 30), (14, 5000000)), (1, 64, 2048), (3, 5, 7)):
        shape = (1, channels, *size) if layout == "NCHW" else (1, *size, channels)
        options = {"groups": channels, "layout": layout, "padding": 1, "padding_mode": mode}
        for extra in ({}, {"stride": 2}, {"dilation": 2}):
            e = fastconv.explain("conv2d", shape, (channels, 1, kernel, 3), **options, **extra)
            assert e.decision["workspace_per_thread"] < 2**21, (size, channels, kernel, extra)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("group", [2, 3, 4, 8, 16, 32])
def test_groups_of_a_few_channels(isa: str, group: int, layout: str, dtype: Any) -> None:
    """Exact on integers, whole vectors or not, with a prologue and an epilogue, and their gradients."""
    rng = np.random.default_rng(group)
    for groups, shape, extra in itertools.product(
        (3, 16), ((9, 7), (16, 30)), ({}, {"stride": 2}, {"padding": 2, "padding_mode": "reflect"})
    ):
        c = groups * group
        options = {"groups": groups, "padding": 1, "layout": layout, **extra}
        if group > 16:  # Winograd's sums are not exact
            options["algorithm"] = "direct"
        x = rng.integers(-3, 4, (2, *shape, c) if layout == "NHWC" else (2, c, *shape)).astype(dtype)
        w = rng.integers(-3, 4, (c, group, 3, 3)).astype(dtype)
        bias, scale = (rng.integers(-3, 4, c).astype(dtype) for _ in range(2))
        y = reference.conv2d(x, w, bias, **options)
        residual = rng.integers(-3, 4, y.shape).astype(dtype)
        epilogue = {"scale": scale, "residual": residual, "activation": "relu", "input_shift": bias}
        for function in (
            lambda f: f(x, w, bias, **options),  # noqa: B023
            lambda f: f(x, w, bias, **options, **epilogue),  # noqa: B023
        ):
            np.testing.assert_array_equal(function(functional.conv2d), function(reference.conv2d))
        dy = rng.integers(-3, 4, y.shape).astype(dtype)
        if "padding_mode" not in options:
            np.testing.assert_array_equal(
                functional.conv_transpose2d(dy, w, bias, **options), reference.conv_transpose2d(dy, w, bias, **options)
            )
        for name, arguments in (("input", (dy, w, x.shape)), ("weight", (dy, x, w.shape))):
            gradient = f"conv2d_backward_{name}"
            if name == "weight":
                options["algorithm"] = "direct"
            want = getattr(reference, gradient)(*arguments, **options)
            np.testing.assert_array_equal(getattr(functional, gradient)(*arguments, **options), want)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_of_a_few_channels_in_space(isa: str, layout: str) -> None:
    """All phases of a gradient are run alike, however many planes each has."""
    rng = np.random.default_rng(0)
    for depth, kernel in itertools.product((1, 2, 3, 5), ((1, 3, 3), (3, 3, 3), (3, 1, 2))):
        options = {"groups": 8, "stride": 2, "padding": tuple(k // 2 for k in kernel), "layout": layout}
        x = rng.integers(-3, 4, (2, depth, 6, 7, 32) if layout == "NHWC" else (2, 32, depth, 6, 7)).astype(np.float32)
        w = rng.integers(-3, 4, (32, 4, *kernel)).astype(np.float32)
        y = reference.conv3d(x, w, **options)
        np.testing.assert_array_equal(functional.conv3d(x, w, **options), y)
        want = reference.conv3d_backward_input(y, w, x.shape, **options)
        np.testing.assert_array_equal(functional.conv3d_backward_input(y, w, x.shape, **options), want)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (2, 3)])
def test_gradients_in_one_sweep_have_the_bits_of_phases(isa: str, kernel: Any, dtype: Any, layout: str) -> None:
    """Signs of zeros included: gradients that lie otherwise in memory, or are added to something, go by phases."""
    rng = np.random.default_rng(0)
    for c, shape, padding in itertools.product((5, 40), ((6, 6), (13, 40), (9, 7)), (0, 1, 2)):
        options = {"groups": c, "stride": 2, "padding": padding, "layout": layout}
        size = (2, *shape, c) if layout == "NHWC" else (2, c, *shape)
        if min(shape) + 2 * padding < max(kernel):
            continue
        w = rng.standard_normal((c, 1, *kernel)).astype(dtype)
        y = reference.conv2d(np.zeros(size, dtype), w, **options)
        dy = np.maximum(rng.standard_normal(y.shape), 0).astype(dtype)
        one = functional.conv2d_backward_input(dy, w, size, **options)
        apart = np.empty((*size[:-1], 2 * size[-1]), dtype)[..., ::2]
        functional.conv2d_backward_input(dy, w, size, **options, out=apart)
        assert_same_bits(one, apart, f"{c} {shape} {padding}")


def test_a_gradient_in_one_sweep_explains_itself(isa: str) -> None:
    options = {"stride": 2, "groups": 64, "padding": 1}
    for layout, shape, dy in (
        ("NCHW", (1, 64, 56, 56), (1, 64, 28, 28)),
        ("NHWC", (1, 56, 56, 64), (1, 28, 28, 64)),
    ):
        said = fastconv.explain("conv2d_backward_input", dy, (64, 1, 3, 3), shape, layout=layout, **options)
        assert said.decision["algorithm"] == "depthwise"
        assert (said.candidates == ()) == (isa != "portable")  # which has phases
    # Phases on both sides of a limit: each way is barred by one of them.
    said = fastconv.explain("conv1d_backward_input", (1, 16, 925), (16, 1, 200), (1, 16, 2049), stride=2, groups=16)
    assert said.candidates
