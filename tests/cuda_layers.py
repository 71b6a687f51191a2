"""What the tests of layers on devices share."""

import numpy as np

from fastconv import cuda

DTYPES = ("float32", "float64", "float16", "bfloat16")
EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
LAYOUTS = {1: ("NCL", "NLC"), 2: ("NCHW", "NHWC"), 3: ("NCDHW", "NDHWC")}


def on_device(x, dtype):
    """An array on the device, and its values in float64."""
    d = cuda.to_device(x, dtype=dtype)
    return d, cuda.to_host(d).astype(np.float64)


def assert_close(y, expected, dtype, scale, what=""):
    """Rounded once to the dtype, after the roundings of sums whose terms add up to `scale` in magnitude."""
    y = cuda.to_host(y).astype(np.float64)
    wide = EPS["float64" if dtype == "float64" else "float32"]
    bound = EPS[dtype] * 0.51 * np.abs(expected) + 8 * wide * (scale + 1) + 2.0**-24 * (dtype == "float16")
    assert y.shape == expected.shape
    wrong = ~((np.abs(y - expected) <= bound) | (np.isnan(y) & np.isnan(expected)))
    assert not wrong.any(), (what, np.argwhere(wrong)[:4], y[wrong][:4], expected[wrong][:4])


def side(rng, batch, channels, size, last):
    """One side of a layer, channels first or last."""
    return rng.standard_normal((batch, *size, channels) if last else (batch, channels, *size))
