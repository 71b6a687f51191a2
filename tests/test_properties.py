"""Random shapes and options: the compiled functions and the reference agree, or both refuse."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastconv import functional, reference, testing

pytestmark = pytest.mark.usefixtures("isa")


@st.composite
def problems(draw, transposed):
    """(op, x, weight, options) of one to three dimensions; some are to be refused."""
    rank = draw(st.integers(1, 3))
    limit = {1: 40, 2: 14, 3: 7}[rank]
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 8]))
    c, k = draw(st.integers(1, 9)), draw(st.integers(1, 20))
    size = draw(st.tuples(*[st.integers(1, limit)] * rank))
    kernel = draw(st.tuples(*[st.integers(1, 4)] * rank))

    def per_dimension(low, high):
        return draw(st.integers(low, high) | st.tuples(*[st.integers(low, high)] * rank))

    pairs = st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * rank)
    options = {
        "stride": per_dimension(1, 3),
        "dilation": per_dimension(1, 3),
        "padding": draw(st.integers(0, 3) | pairs | st.sampled_from(["valid", "same", "same_lower"])),
        "groups": groups,
        "layout": draw(st.sampled_from(["NCHW", "NHWC"])),
    }
    if transposed:
        options["output_padding"] = per_dimension(0, 2)
    else:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    lead = draw(st.sampled_from([(), (1,), (2,), (3,), (0,)]))
    x_shape = (*lead, *size, c * groups) if options["layout"] == "NHWC" else (*lead, c * groups, *size)
    w_shape = (c * groups, k, *kernel) if transposed else (k * groups, c, *kernel)
    seed = draw(st.integers(0, 1000))
    x = testing.integer_data(x_shape, dtype, seed=seed)
    w = testing.integer_data(w_shape, dtype, seed=seed + 1)
    kinds = st.sampled_from(["contiguous", "reordered", "strided", "negative", "broadcast"])
    if lead:
        x = testing.as_memory(x, draw(kinds))
    return f"conv_transpose{rank}d" if transposed else f"conv{rank}d", x, testing.as_memory(w, draw(kinds)), options


def check(problem):
    op, x, w, options = problem
    try:
        expected = getattr(reference, op)(x, w, **options)
    except ValueError:
        with pytest.raises(ValueError, match=r"\d"):  # the message shows the value that is refused
            getattr(functional, op)(x, w, **options)
        return
    # On integers the two must agree exactly.
    np.testing.assert_array_equal(getattr(functional, op)(x, w, **options), expected, strict=True)
    dy = testing.integer_data(expected.shape, x.dtype, seed=7)
    got = getattr(functional, f"{op}_backward")(dy, x, w, **options)
    wanted = getattr(reference, f"{op}_backward")(dy, x, w, **options)
    for name in got._fields:
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name), strict=True, err_msg=name)


@given(problems(transposed=False))
def test_convolution(problem):
    check(problem)


@given(problems(transposed=True))
def test_transposed_convolution(problem):
    check(problem)


@st.composite
def dressed(draw):
    """A forward case with prologue and epilogue, as a row of the option table."""
    op = draw(
        st.sampled_from([f"{family}{d}d" for family in ("conv", "conv_transpose") for d in (1, 2, 3)] + ["linear"])
    )
    table = testing.option_table(op, functional)
    return testing.make_case(
        op, {n: draw(st.sampled_from(list(v))) for n, v in table.items()}, draw(st.integers(0, 99))
    )


@given(dressed())
def test_any_options(case):
    case.check(case.call(functional))


LONG = settings(
    max_examples=3000,
    derandomize=False,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@LONG
@given(problems(transposed=False) | problems(transposed=True))
def test_long_convolutions(problem):
    check(problem)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@LONG
@given(dressed())
def test_long_any_options(case):
    case.check(case.call(functional))
