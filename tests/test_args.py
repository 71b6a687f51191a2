"""Bad input: the right exception, a message that names argument, value and rule, and nothing written."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

import fastconv
from fastconv import _args, _core, reference

Call = Callable[[], Any]


def ones(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


X = ones(2, 4, 7, 8)
W = ones(6, 4, 3, 3)
Y = ones(2, 6, 5, 6)
DX, DW = X.shape, W.shape


class _Foreign:
    """Looks like another framework's tensor."""

    shape = X.shape
    ndim = 4
    dtype = np.dtype(np.float32)


_Tensor = type("Tensor", (_Foreign,), {"__module__": "torch"})
_DLPack = type("Array", (_Foreign,), {"__module__": "jaxlib", "__dlpack__": lambda self: None})


def check(call: Call, error: type[Exception], *fragments: str) -> None:
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error
    for fragment in fragments:
        assert fragment in message, message
    # A refusal by the core is an inner matter: the user sees one exception.
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def cases(*table: tuple[str, Call, type[Exception], tuple[str, ...]]) -> Any:
    return pytest.mark.parametrize(("call", "error", "fragments"), [pytest.param(*row[1:], id=row[0]) for row in table])


@cases(
    ("zero stride", lambda: fastconv.conv2d(X, W, stride=0), ValueError, ("stride (=0)", "at least 1")),
    ("stride pair", lambda: fastconv.conv2d(X, W, stride=(1, -2)), ValueError, ("stride (=(1, -2))", "at least 1")),
    ("dilation", lambda: fastconv.conv2d(X, W, dilation=-1), ValueError, ("dilation (=-1)", "at least 1")),
    ("groups zero", lambda: fastconv.conv2d(X, W, groups=0), ValueError, ("groups (=0)", "at least 1")),
    ("padding negative", lambda: fastconv.conv2d(X, W, padding=-1), ValueError, ("padding (=-1)", "at least 0")),
    (
        "padding pair negative",
        lambda: fastconv.conv2d(X, W, padding=((0, -1), (1, 1))),
        ValueError,
        ("padding (=((0, -1), (1, 1)))", "at least 0"),
    ),
    (
        "stride entries",
        lambda: fastconv.conv2d(X, W, stride=(1, 1, 1)),
        ValueError,
        ("stride (=(1, 1, 1))", "2 spatial"),
    ),
    ("padding entries", lambda: fastconv.conv2d(X, W, padding=(1,)), ValueError, ("padding (=(1,))", "2 spatial")),
    (
        "1-D padding as a pair",
        lambda: fastconv.conv1d(X[0], W[0], padding=(1, 2)),
        ValueError,
        ("padding (=(1, 2))", "((before, after),)"),
    ),
    ("padding triples", lambda: fastconv.conv2d(X, W, padding=((1, 2, 3), 1)), ValueError, ("padding", "pairs")),
    ("bool stride", lambda: fastconv.conv2d(X, W, stride=True), TypeError, ("stride (=True)", "not a bool")),
    ("bool in a tuple", lambda: fastconv.conv2d(X, W, stride=(True, 1)), TypeError, ("stride (=(True, 1))", "bool")),
    ("float stride", lambda: fastconv.conv2d(X, W, stride=1.0), TypeError, ("stride (=1.0)", "integer", "float")),
    ("float in a tuple", lambda: fastconv.conv2d(X, W, stride=(1, 1.0)), TypeError, ("(=(1, 1.0))", "float")),
    ("nan dilation", lambda: fastconv.conv2d(X, W, dilation=float("nan")), TypeError, ("dilation (=nan)", "integer")),
    ("bool groups", lambda: fastconv.conv2d(X, W, groups=True), TypeError, ("groups (=True)", "not a bool")),
    ("string stride", lambda: fastconv.conv2d(X, W, stride="2"), TypeError, ("stride (='2')", "integer")),
    ("float padding", lambda: fastconv.conv2d(X, W, padding=0.5), TypeError, ("padding (=0.5)", "integer")),
    ("huge stride", lambda: fastconv.conv2d(X, W, stride=2**63), ValueError, ("stride", "64 bits")),
    ("huge padding", lambda: fastconv.conv2d(X, W, padding=2**70), ValueError, ("padding", "64 bits")),
    ("padding word", lambda: fastconv.conv2d(X, W, padding="SAME"), ValueError, ("padding (='SAME')", "same_lower")),
    ("padding mode", lambda: fastconv.conv2d(X, W, padding_mode="edge"), ValueError, ("'edge'", "replicate")),
    ("padding mode type", lambda: fastconv.conv2d(X, W, padding_mode=0), TypeError, ("padding_mode (=0)", "string")),
    ("layout", lambda: fastconv.conv2d(X, W, layout="NCL"), ValueError, ("layout (='NCL')", "NHWC")),
    ("layout unhashable", lambda: fastconv.conv2d(X, W, layout=["NCHW"]), TypeError, ("layout", "string", "list")),
    ("algorithm", lambda: fastconv.conv2d(X, W, algorithm="fast"), ValueError, ("algorithm (='fast')", "direct")),
    (
        "algorithm for this layer",
        lambda: fastconv.conv2d(X, W, algorithm="fft"),
        ValueError,
        ("algorithm (='fft')", "groups"),
    ),
    ("activation", lambda: fastconv.conv2d(X, W, activation="swish"), ValueError, ("activation (='swish')", "silu")),
    ("activation type", lambda: fastconv.conv2d(X, W, activation=np.tanh), TypeError, ("activation", "name")),
    (
        "activation parameters",
        lambda: fastconv.conv2d(X, W, activation=("clip", 1.0)),
        ValueError,
        ("activation (=('clip', 1.0))", "lower, upper"),
    ),
    (
        "activation without parameters",
        lambda: fastconv.conv2d(X, W, activation=("relu", 1.0)),
        ValueError,
        ("activation (=('relu', 1.0))", "'relu' alone"),
    ),
    (
        "clip order",
        lambda: fastconv.conv2d(X, W, activation=("clip", 2, 1)),
        ValueError,
        ("activation (=('clip', 2.0, 1.0))", "lower <= upper"),
    ),
    (
        "nan slope",
        lambda: fastconv.conv2d(X, W, input_activation=("leaky_relu", float("nan"))),
        ValueError,
        ("input_activation (=('leaky_relu', nan))", "finite"),
    ),
    (
        "infinite bound",
        lambda: fastconv.conv2d(X, W, activation=("clip", 0.0, np.inf)),
        ValueError,
        ("activation (=('clip', 0.0, inf))", "finite"),
    ),
    (
        "bool slope",
        lambda: fastconv.conv2d(X, W, activation=("leaky_relu", True)),
        TypeError,
        ("activation (=('leaky_relu', True))", "numbers"),
    ),
    (
        "output_padding",
        lambda: fastconv.conv_transpose2d(X, ones(4, 6, 3, 3), stride=2, output_padding=2),
        ValueError,
        ("output_padding (=2)", "stride (=2)", "dilation (=1)"),
    ),
)
def test_options(call: Call, error: type[Exception], fragments: tuple[str, ...]) -> None:
    check(call, error, *fragments)
    check(call, error, *fragments)  # a cache must not swallow it the second time


def test_options_equal_to_the_eye_are_told_apart() -> None:
    fastconv.conv2d(X, W, stride=(1, 1), groups=1)
    for stride in (True, 1.0, (1.0, 1), (True, True)):
        with pytest.raises(TypeError, match="stride"):
            fastconv.conv2d(X, W, stride=stride)


def test_other_spellings_of_options() -> None:
    expected = fastconv.conv2d(X, W, stride=(2, 1), padding=((1, 0), (2, 2)), activation=("clip", 0.0, 6.0))
    for stride in ([2, 1], (np.int64(2), np.int8(1)), np.array([2, 1])):
        for padding in ([[1, 0], [2, 2]], ((1, 0), 2), np.array([[1, 0], [2, 2]])):
            for activation in (["clip", 0, 6], ("clip", np.float32(0), np.int32(6))):
                y = fastconv.conv2d(X, W, stride=stride, padding=padding, activation=activation)
                np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(fastconv.conv2d(X, W, padding="valid"), fastconv.conv2d(X, W))


@cases(
    ("list", lambda: fastconv.conv2d(X.tolist(), W), TypeError, ("x is of type list", "numpy.asarray(x")),
    ("none", lambda: fastconv.conv2d(X, None), TypeError, ("weight is of type NoneType", "numpy.ndarray")),
    ("tensor", lambda: fastconv.conv2d(_Tensor(), W), TypeError, ("x is of type torch.Tensor", "have __dlpack__")),
    ("dlpack", lambda: fastconv.conv2d(X, _DLPack()), TypeError, ("weight (of type jaxlib.Array)", "__dlpack__")),
    ("foreign bias", lambda: fastconv.conv2d(X, W, 1.0), TypeError, ("bias is of type float", "numpy.ndarray")),
    ("masked", lambda: fastconv.conv2d(np.ma.masked_array(X), W), TypeError, ("x is a masked array", "filled")),
    ("integer", lambda: fastconv.conv2d(X.astype(np.int32), W), TypeError, ("x (dtype int32)", "float32 or float64")),
    ("half", lambda: fastconv.conv2d(X, W.astype(np.float16)), TypeError, ("weight (dtype float16)", "float32")),
    ("complex", lambda: fastconv.conv2d(X.astype(complex), W), TypeError, ("x (dtype complex128)", "float64")),
    ("object", lambda: fastconv.conv2d(X.astype(object), W), TypeError, ("x (dtype object)", "float64")),
    ("swapped", lambda: fastconv.conv2d(X.astype(">f4"), W), TypeError, ("x (dtype >f4)", "native byte order")),
    ("mixed", lambda: fastconv.conv2d(X, W.astype(float)), TypeError, ("weight (dtype float64)", "x, float32")),
    ("mixed bias", lambda: fastconv.conv2d(X, W, ones(6, dtype=float)), TypeError, ("bias (dtype float64)", "float32")),
    (
        "mixed gate",
        lambda: fastconv.conv2d(X, W, input_gate=ones(2, 4, dtype=float)),
        TypeError,
        ("input_gate (dtype float64)", "x, float32"),
    ),
    ("mixed out", lambda: fastconv.conv2d(X, W, out=Y.astype(float)), TypeError, ("out (dtype float64)", "float32")),
    (
        "gradient dtype",
        lambda: fastconv.conv2d_backward_input(Y, W.astype(float), DX),
        TypeError,
        ("weight", "float64"),
    ),
    ("gradient type", lambda: fastconv.conv2d_backward(Y, X.tolist(), W), TypeError, ("x is of type list",)),
    ("linear type", lambda: fastconv.linear([[1.0]], ones(1, 1)), TypeError, ("x is of type list",)),
    ("linear dtype", lambda: fastconv.linear(ones(2, 3), ones(4, 3, dtype=float)), TypeError, ("weight", "float64")),
)
def test_types(call: Call, error: type[Exception], fragments: tuple[str, ...]) -> None:
    check(call, error, *fragments)


def test_misaligned() -> None:
    raw = np.zeros(X.nbytes + 8, np.uint8)
    shifted = raw[1 : 1 + X.nbytes].view(np.float32).reshape(X.shape)
    check(lambda: fastconv.conv2d(shifted, W), ValueError, "x (strides", "aligned", "x.copy()")
    packed = np.zeros(16, np.dtype([("a", "f4"), ("b", "u1")]))["a"].reshape(1, 1, 4, 4)
    check(lambda: fastconv.conv2d(packed, ones(1, 1, 1, 1)), ValueError, "x (strides", "item size 4", "x.copy()")


@cases(
    ("rank", lambda: fastconv.conv2d(X[0, 0], W), ValueError, ("x (shape (7, 8))", "4 dimensions (N, C, H, W)")),
    ("rank 6", lambda: fastconv.conv2d(X[None, None], W), ValueError, ("x (shape (1, 1, 2, 4, 7, 8))", "4 dimensions")),
    ("rank NHWC", lambda: fastconv.conv2d(X[0, 0], W, layout="NHWC"), ValueError, ("(N, H, W, C)", "3 without")),
    ("weight rank", lambda: fastconv.conv2d(X, W[0]), ValueError, ("weight (shape (4, 3, 3))", "4 dimensions")),
    ("groups in", lambda: fastconv.conv2d(X, W, groups=3), ValueError, ("groups (=3) must divide in_channels (=4)",)),
    (
        "groups out",
        lambda: fastconv.conv2d(X, ones(6, 1, 3, 3), groups=4),
        ValueError,
        ("groups (=4) must divide out_channels (=6)",),
    ),
    (
        "weight channels",
        lambda: fastconv.conv2d(X, W, groups=2),
        ValueError,
        ("weight (shape (6, 4, 3, 3))", "in_channels / groups (=4 / 2 = 2)", "dimension 1"),
    ),
    (
        "transposed weight channels",
        lambda: fastconv.conv_transpose2d(X, W),
        ValueError,
        ("weight (shape (6, 4, 3, 3))", "in_channels (=4)", "dimension 0"),
    ),
    ("no channels", lambda: fastconv.conv2d(X[:, :0], W[:, :0]), ValueError, ("in_channels (=0)", "at least 1")),
    ("no outputs", lambda: fastconv.conv2d(X, W[:0]), ValueError, ("weight (shape (0, 4, 3, 3))", "at least one")),
    ("no taps", lambda: fastconv.conv2d(X, W[..., :0]), ValueError, ("weight (shape (6, 4, 3, 0))", "at least one")),
    ("no pixels", lambda: fastconv.conv2d(X[:, :, :0], W), ValueError, ("x (shape (2, 4, 0, 8))", "at least one")),
    (
        "kernel",
        lambda: fastconv.conv2d(X, ones(6, 4, 9, 3), padding=((0, 1), (0, 0))),
        ValueError,
        ("kernel height (=9)", "padded input height (=7 + 0 + 1 = 8)"),
    ),
    (
        "dilated kernel",
        lambda: fastconv.conv2d(X, W, dilation=(1, 4)),
        ValueError,
        ("kernel width (=3, dilated to 9)", "(=8 + 0 + 0 = 8)"),
    ),
    (
        "1-D kernel",
        lambda: fastconv.conv1d(ones(1, 1, 2), ones(1, 1, 3)),
        ValueError,
        ("kernel length (=3)", "input length (=2 + 0 + 0 = 2)"),
    ),
    (
        "3-D kernel",
        lambda: fastconv.conv3d(ones(1, 1, 1, 3, 3), ones(1, 1, 2, 1, 1)),
        ValueError,
        ("kernel depth (=2)", "input depth (=1"),
    ),
    (
        "cropped away",
        lambda: fastconv.conv_transpose2d(ones(1, 1, 2, 9), ones(1, 1, 3, 3), padding=2),
        ValueError,
        ("padding (=2 and 2)", "output height of at least 1, not 0"),
    ),
    (
        "reflect",
        lambda: fastconv.conv2d(X, W, padding=(7, 1), padding_mode="reflect"),
        ValueError,
        ("padding (=7)", "at most 6", "'reflect'", "height of 7"),
    ),
    (
        "circular",
        lambda: fastconv.conv2d(X, W, padding=(1, 9), padding_mode="circular"),
        ValueError,
        ("padding (=9)", "at most 8", "'circular'", "width of 8"),
    ),
    (
        "overflow",
        lambda: fastconv.conv2d(X, W, padding=2**59),
        ValueError,
        ("the output (shape (2, 6, 11529", "at most 2**60 elements"),
    ),
    (
        "transposed overflow",
        lambda: fastconv.conv_transpose1d(ones(1, 1, 9), ones(1, 1, 3), stride=2**58),
        ValueError,
        ("the output (shape (1, 1, 23", "at most 2**60 elements"),
    ),
    ("bias", lambda: fastconv.conv2d(X, W, ones(4)), ValueError, ("bias (shape (4,))", "(6,)", "output channel")),
    ("bias rank", lambda: fastconv.conv2d(X, W, ones(6, 1)), ValueError, ("bias (shape (6, 1))", "(6,)")),
    ("scale", lambda: fastconv.conv2d(X, W, scale=ones(1)), ValueError, ("scale (shape (1,))", "(6,)")),
    ("shift", lambda: fastconv.conv2d(X, W, shift=ones(7)), ValueError, ("shift (shape (7,))", "(6,)")),
    (
        "input_scale",
        lambda: fastconv.conv2d(X, W, input_scale=ones(6)),
        ValueError,
        ("input_scale (shape (6,))", "(4,)"),
    ),
    (
        "input_shift",
        lambda: fastconv.conv2d(X, W, input_shift=ones(2)),
        ValueError,
        ("input_shift (shape (2,))", "(4,)"),
    ),
    ("gate", lambda: fastconv.conv2d(X, W, input_gate=ones(1, 4)), ValueError, ("input_gate (shape (1, 4))", "(2, 4)")),
    ("gate rank", lambda: fastconv.conv2d(X, W, input_gate=ones(4)), ValueError, ("input_gate (shape (4,))", "(2, 4)")),
    ("unbatched gate", lambda: fastconv.conv2d(X[0], W, input_gate=ones(1, 4)), ValueError, ("(1, 4)", "(4,)")),
    (
        "residual",
        lambda: fastconv.conv2d(X, W, residual=X),
        ValueError,
        ("residual (shape (2, 4, 7, 8))", "(2, 6, 5, 6)"),
    ),
    (
        "residual rank",
        lambda: fastconv.conv2d(X, W, residual=Y[0]),
        ValueError,
        ("residual (shape (6, 5, 6))", "(2, 6"),
    ),
    ("out shape", lambda: fastconv.conv2d(X, W, out=Y[:1]), ValueError, ("out (shape (1, 6, 5, 6))", "(2, 6, 5, 6)")),
    ("out rank", lambda: fastconv.conv2d(X, W, out=Y[0]), ValueError, ("out (shape (6, 5, 6))", "(2, 6, 5, 6)")),
    ("out type", lambda: fastconv.conv2d(X, W, out=Y.tolist()), TypeError, ("out is of type list",)),
    ("linear features", lambda: fastconv.linear(ones(2, 3), ones(4, 5)), ValueError, ("x (shape (2, 3))", "(=5")),
    (
        "linear weight",
        lambda: fastconv.linear(ones(2, 3), ones(4, 3, 1)),
        ValueError,
        ("weight (shape (4, 3, 1))", "2"),
    ),
    ("linear scalar", lambda: fastconv.linear(np.float32(1) * ones()[()], ones(1, 1)), TypeError, ("x is of type",)),
    ("linear 0-D", lambda: fastconv.linear(ones(), ones(1, 1)), ValueError, ("x (shape ())", "1 dimension")),
    ("linear empty", lambda: fastconv.linear(ones(2, 0), ones(4, 0)), ValueError, ("weight (shape (4, 0))",)),
    (
        "linear bias",
        lambda: fastconv.linear(ones(2, 3), ones(4, 3), ones(3)),
        ValueError,
        ("bias (shape (3,))", "(4,)"),
    ),
    (
        "linear residual",
        lambda: fastconv.linear(ones(2, 3), ones(4, 3), residual=ones(4)),
        ValueError,
        ("residual (shape (4,))", "(2, 4)"),
    ),
    (
        "linear out",
        lambda: fastconv.linear(ones(2, 3), ones(4, 3), out=ones(4, 2)),
        ValueError,
        ("out (shape (4, 2))",),
    ),
)
def test_shapes(call: Call, error: type[Exception], fragments: tuple[str, ...]) -> None:
    check(call, error, *fragments)


@cases(
    (
        "dy",
        lambda: fastconv.conv2d_backward_input(Y[:, :, 1:], W, DX),
        ValueError,
        ("dy (shape (2, 6, 4, 6))", "(2, 6, 5, 6)"),
    ),
    (
        "dy rank",
        lambda: fastconv.conv2d_backward_input(Y[0, 0], W, DX),
        ValueError,
        ("dy (shape (5, 6))", "4 dimensions"),
    ),
    (
        "input_shape rank",
        lambda: fastconv.conv2d_backward_input(Y, W, DX[1:]),
        ValueError,
        ("input_shape (=(4, 7, 8))",),
    ),
    (
        "input_shape negative",
        lambda: fastconv.conv2d_backward_input(Y, W, (2, 4, -7, 8)),
        ValueError,
        ("input_shape (=(2, 4, -7, 8))", "at least 0"),
    ),
    (
        "input_shape float",
        lambda: fastconv.conv2d_backward_input(Y, W, (2, 4, 7.0, 8)),
        TypeError,
        ("input_shape (=(2, 4, 7.0, 8))", "integer"),
    ),
    ("input_shape int", lambda: fastconv.conv2d_backward_input(Y, W, 7), TypeError, ("input_shape (=7)", "tuple")),
    (
        "input_shape huge",
        lambda: fastconv.conv2d_backward_input(Y, W, (2, 4, 2**62, 8)),
        ValueError,
        ("input_shape (shape (2, 4, 46", "at most 2**60"),
    ),
    (
        "input_shape channels",
        lambda: fastconv.conv2d_backward_input(Y, W, (2, 5, 7, 8)),
        ValueError,
        ("weight", "in_channels / groups (=5 / 1 = 5)"),
    ),
    (
        "weight_shape",
        lambda: fastconv.conv2d_backward_weight(Y, X, (6, 4, 2, 3)),
        ValueError,
        ("dy (shape (2, 6, 5, 6))", "(2, 6, 6, 6)"),
    ),
    (
        "weight_shape rank",
        lambda: fastconv.conv2d_backward_weight(Y, X, (6, 4, 3)),
        ValueError,
        ("weight_shape", "4 ent"),
    ),
    ("x", lambda: fastconv.conv2d_backward_weight(Y, X[:1], DW), ValueError, ("dy (shape (2,", "(1, 6, 5, 6)")),
    ("x rank", lambda: fastconv.conv2d_backward_weight(Y, X[0], DW), ValueError, ("dy (shape (2,", "(6, 5, 6)")),
    (
        "no out",
        lambda: fastconv.conv2d_backward_input(Y, W, DX, accumulate=True),
        ValueError,
        ("accumulate (=True)", "out"),
    ),
    (
        "flag",
        lambda: fastconv.conv2d_backward_weight(Y, X, DW, accumulate=1),
        TypeError,
        ("accumulate (=1)", "True or"),
    ),
    ("bias out", lambda: fastconv.conv2d_backward_bias(Y, out=ones(5)), ValueError, ("out (shape (5,))", "(6,)")),
    ("bias rank", lambda: fastconv.conv2d_backward_bias(Y[0, 0]), ValueError, ("dy (shape (5, 6))", "4 dimensions")),
    ("needs", lambda: fastconv.conv2d_backward(Y, X, W, needs=("x",)), ValueError, ("needs (=('x',))", "'input'")),
    (
        "needs string",
        lambda: fastconv.conv2d_backward(Y, X, W, needs="input"),
        TypeError,
        ("needs (='input')", "collection"),
    ),
    ("targets", lambda: fastconv.conv2d_backward(Y, X, W, accumulate=3), TypeError, ("accumulate", "mapping", "int")),
    ("target key", lambda: fastconv.conv2d_backward(Y, X, W, accumulate={"w": W}), ValueError, ("key 'w'", "'weight'")),
    (
        "linear dy",
        lambda: fastconv.linear_backward_input(ones(2, 3), ones(4, 5)),
        ValueError,
        ("dy (shape (2, 3))", "(=4"),
    ),
    (
        "linear rows",
        lambda: fastconv.linear_backward_weight(ones(2, 4), ones(3, 5)),
        ValueError,
        ("dy (shape (2, 4))", "(3, 4)"),
    ),
    (
        "linear no out",
        lambda: fastconv.linear_backward_bias(ones(2, 4), accumulate=True),
        ValueError,
        ("accumulate (=True)",),
    ),
    (
        "linear target",
        lambda: fastconv.linear_backward_weight(ones(2, 4), ones(2, 5), out=ones(4, 4)),
        ValueError,
        ("out (shape (4, 4))", "(4, 5)"),
    ),
)
def test_gradients(call: Call, error: type[Exception], fragments: tuple[str, ...]) -> None:
    check(call, error, *fragments)


@cases(
    ("threads", lambda: fastconv.set_num_threads(0), ValueError, ("n (=0)", "at least 1")),
    ("threads bool", lambda: fastconv.num_threads(True), TypeError, ("n (=True)", "bool")),
    ("threads float", lambda: fastconv.set_num_threads(2.0), TypeError, ("n (=2.0)", "integer")),
    ("isa", lambda: fastconv.set_isa("sse"), ValueError, ("isa (='sse')", "portable")),
    ("isa type", lambda: fastconv.isa(2), TypeError, ("isa (=2)", "string")),
    ("denormals", lambda: fastconv.flush_denormals(1), TypeError, ("on (=1)", "True or False")),
    ("cache", lambda: fastconv.set_cache_limit(-1), ValueError, ("mb (=-1)", "at least 0")),
    ("cache nan", lambda: fastconv.set_cache_limit(float("nan")), ValueError, ("mb (=nan)", "at least 0")),
    ("plan op", lambda: fastconv.plan("conv4d", X, W), ValueError, ("op (='conv4d')", "conv3d")),
    ("plan out", lambda: fastconv.plan("conv2d", X, W, out=Y), TypeError, ("out is given to the plan when",)),
    (
        "plan gate",
        lambda: fastconv.plan("conv2d", X, W, input_gate=ones(2, 4)),
        TypeError,
        ("input_gate is given to the plan when", "input_gate=True"),
    ),
    (
        "gate without notice",
        lambda: fastconv.plan("conv2d", X, W)(X, input_gate=ones(2, 4)),
        ValueError,
        ("input_gate must be announced", "input_gate=True"),
    ),
    ("plan groups", lambda: fastconv.plan("conv2d", X, W, groups=3), ValueError, ("groups (=3) must divide",)),
    ("plan shape", lambda: fastconv.plan("conv2d", (2, 4, -7, 8), W), ValueError, ("x (=(2, 4, -7, 8))", "negative")),
    ("plan x", lambda: fastconv.plan("conv2d", X, W)(X[:, :, 1:]), ValueError, ("x (shape (2, 4, 6, 8))", "made for")),
    (
        "plan dtype",
        lambda: fastconv.plan("conv2d", X, W)(X.astype(float)),
        TypeError,
        ("weight (dtype float32)", "float64"),
    ),
    (
        "plan residual",
        lambda: fastconv.plan("conv2d", X, W)(X, residual=X),
        ValueError,
        ("residual (shape", "(2, 6, 5, 6)"),
    ),
    ("plan linear", lambda: fastconv.plan("linear", (2, 3), ones(4, 3))(ones(2, 4)), ValueError, ("x (shape (2, 4))",)),
    ("explain op", lambda: fastconv.explain("conv2d_backward", Y, X, W), ValueError, ("op (='conv2d_backward')",)),
    (
        "explain shape",
        lambda: fastconv.explain("conv2d", (1, 3, 2, 2), W),
        ValueError,
        ("weight (shape (6, 4", "(=3 / 1"),
    ),
)
def test_runtime_and_plans(call: Call, error: type[Exception], fragments: tuple[str, ...]) -> None:
    check(call, error, *fragments)


# --- out --------------------------------------------------------------------------------------------------------


def _refused_outputs() -> dict[str, tuple[np.ndarray, np.ndarray, str]]:
    """(x, out, rule) for conv2d(x, W)."""
    read_only = np.full_like(Y, 7)
    read_only.flags.writeable = False
    shared = np.full(X.size + Y.size, 7, np.float32)
    folded = as_strided(np.full(Y.size, 7, np.float32), Y.shape, (0, 120, 24, 4))
    skewed = as_strided(np.full(Y.size, 7, np.float32), Y.shape, (720, 120, 20, 4))
    tail = shared[X.size - 1 : X.size - 1 + Y.size].reshape(Y.shape)
    return {
        "read-only": (X, read_only, "out (read-only) must be writable"),
        "overlap by one element": (shared[: X.size].reshape(X.shape), tail, "must not overlap x"),
        "broadcast": (X, folded, "share memory with each other"),
        "skewed": (X, skewed, "share memory with each other"),
        "shape": (X, np.full((2, 6, 5, 7), 7, np.float32), "must have shape (2, 6, 5, 6)"),
    }


@pytest.mark.parametrize("name", _refused_outputs())
def test_refused_out_is_not_written(name: str) -> None:
    x, out, rule = _refused_outputs()[name]
    before = out.copy()
    check(lambda: fastconv.conv2d(x, W, out=out), ValueError, "out", rule)
    np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize("operand", ["weight", "bias", "residual", "input_gate"])
def test_out_overlaps_another_operand(operand: str) -> None:
    store = np.full(Y.size * 2, 7, np.float32)
    shape = {"weight": W.shape, "bias": (6,), "residual": Y.shape, "input_gate": (2, 4)}[operand]
    arrays: dict[str, Any] = {"weight": W, operand: store[: int(np.prod(shape))].reshape(shape)}
    out = store[1 : 1 + Y.size].reshape(Y.shape)
    before = store.copy()
    check(lambda: fastconv.conv2d(X, **arrays, out=out), ValueError, "out (shape", f"must not overlap {operand}")
    np.testing.assert_array_equal(store, before)


def test_out_interleaved_with_its_input_is_served() -> None:
    rng = np.random.default_rng(1)
    both = rng.standard_normal((2, 8, 5, 6)).astype(np.float32)
    weight = rng.standard_normal((4, 4, 1, 1)).astype(np.float32)
    expected = fastconv.conv2d(both[:, :4].copy(), weight)
    fastconv.conv2d(both[:, :4], weight, out=both[:, 4:])
    np.testing.assert_array_equal(both[:, 4:], expected)


@pytest.mark.parametrize("bad", ["weight", "bias", "read-only", "overlap", "input"])
def test_combined_gradients_write_all_or_nothing(bad: str) -> None:
    targets = {"input": np.full_like(X, 7), "weight": np.full_like(W, 7), "bias": np.full(6, 7, np.float32)}
    if bad == "read-only":
        targets["bias"].flags.writeable = False
    elif bad == "overlap":
        targets["bias"] = targets["weight"].reshape(-1)[:6]
    else:
        targets[bad] = np.full((*targets[bad].shape[:-1], 9), 7, np.float32)
    before = {name: a.copy() for name, a in targets.items()}
    check(lambda: fastconv.conv2d_backward(Y, X, W, accumulate=targets), ValueError, "accumulate[", "must")
    for name, a in targets.items():
        np.testing.assert_array_equal(a, before[name])


def test_failing_gradients_leave_out_alone() -> None:
    for call in (
        lambda out: fastconv.conv2d_backward_input(Y[:, :, 1:], W, DX, accumulate=True, out=out),
        lambda out: fastconv.conv2d_backward_input(Y, W, DX, groups=3, out=out),
        lambda out: fastconv.conv2d_backward_input(Y.astype(float), W, DX, out=out),
    ):
        out = np.full_like(X, 7)
        with pytest.raises((ValueError, TypeError)):
            call(out)
        assert (out == 7).all()


def test_no_memory() -> None:
    program = """
        import resource
        import numpy as np
        import fastconv
        x, w = np.ones((1, 1, 16), np.float32), np.ones((1, 1, 1), np.float32)
        fastconv.conv1d(x, w)
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), resource.RLIM_INFINITY))
        for call in (
            lambda: fastconv.conv1d(x, w, padding=((400_000_000, 400_000_000),)),
            lambda: fastconv.conv1d_backward_input(x[..., :8], w, (1, 1, 800_000_016), stride=110_000_000),
        ):
            try:
                call()
            except MemoryError as error:
                assert "(1, 1, 800000016)" in str(error) and "3200000064 bytes" in str(error), error
            else:
                raise SystemExit("no MemoryError")
        np.testing.assert_array_equal(fastconv.conv1d(x, w), x)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- the two sets of checks agree -------------------------------------------------------------------------------

# Mostly sizes that fit, so that both sides of the border are seen.
sizes = st.sampled_from([0, 1, 2, 3, 5, 6, 7, 8])
counts = st.sampled_from([0, *[1] * 6, *[2] * 6])
pads = st.integers(0, 3)
taps = st.sampled_from([0, *[1] * 8, *[2] * 8, 3, 3])


@st.composite
def layers(draw: st.DrawFn) -> dict[str, Any]:
    rank = draw(st.integers(1, 3))
    transposed = draw(st.booleans())
    groups = draw(st.integers(1, 3))
    channels, outputs = draw(counts) * groups, draw(counts) * groups
    weight = [channels, outputs // groups] if transposed else [outputs, channels // groups]
    if draw(st.integers(0, 9)) == 0:
        weight[draw(st.integers(0, 1))] += 1
    each = lambda entries: tuple(draw(st.lists(entries, min_size=rank, max_size=rank)))  # noqa: E731
    options: dict[str, Any] = {
        "stride": each(st.integers(1, 3)),
        "dilation": each(st.integers(1, 3)),
        "padding": draw(st.sampled_from(["same", "same_lower", "valid"])) if draw(st.booleans()) else each(pads),
        "groups": groups,
        "layout": draw(st.sampled_from(["NCHW", "NHWC"])),
    }
    if transposed:
        options["output_padding"] = each(st.integers(0, 1))
    else:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    pixels = each(sizes)
    image = (*pixels, channels) if options["layout"] == "NHWC" else (channels, *pixels)
    batch = draw(st.sampled_from([(), (1,), (2,)]))
    return {
        "op": f"conv_transpose{rank}d" if transposed else f"conv{rank}d",
        "x": (*batch, *image),
        "weight": (*weight, *each(taps)),
        "options": options,
    }


@settings(max_examples=500, deadline=None)
@given(layers())
def test_every_refusal_is_explained(layer: dict[str, Any]) -> None:
    """Where the core refuses, _args finds a reason; where it serves, the shape is the reference's."""
    x, weight = np.ones(layer["x"], np.float32), np.ones(layer["weight"], np.float32)
    try:
        y = getattr(fastconv, layer["op"])(x, weight, **layer["options"])
    except ValueError:
        return  # with a RuntimeError there would be a refusal that _args cannot explain
    expected = getattr(reference, layer["op"])(x, weight, **layer["options"])
    assert y.shape == expected.shape
    # Integers come out exactly.
    np.testing.assert_array_equal(y, expected)


def test_an_unexplained_refusal_is_not_swallowed() -> None:
    spec = _args.conv_spec(2, False, 1, 0, 0, 1, 1, "zeros", "NCHW", "auto", None, None)
    error = _args.forward_error(_core.Refused("unsupported"), spec, {"x": X, "weight": W})
    assert type(error) is RuntimeError
    assert "unsupported" in str(error)


def test_weight_gradient_into_other_strides():
    x, dy = np.ones((1, 2, 5, 5), np.float32), np.ones((1, 3, 3, 3), np.float32)
    out = np.zeros((3, 3, 3, 2), np.float32).transpose(0, 3, 1, 2)
    with pytest.raises(ValueError, match=r"out \(strides .*\) must be C-contiguous"):
        fastconv.conv2d_backward_weight(dy, x, (3, 2, 3, 3), out=out)
    assert not out.any()
