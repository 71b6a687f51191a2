"""Device arrays: in, out, and what is said where they do not fit."""

import gc
import io
import re
import subprocess
import sys

import numpy as np
import pytest

import fastconv
from fastconv import _core, _testing, cuda, functional

OK, BAD_DTYPE, BAD_DEVICE = 0, 2, 11  # of Status

pytestmark = pytest.mark.usefixtures("device")


class Dlpack:
    """A producer that has DLPack and nothing else."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


class Interface:
    """A producer that has `__cuda_array_interface__` and nothing else."""

    def __init__(self, array, **changes):
        self._array = array
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, **changes}


def image(rng, shape=(2, 3, 4, 5)):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "uint8", "int16", "int32", "int64"])
def test_round_trip(dtype, rng):
    for shape in ((), (1,), (3, 0, 2), (2, 3, 4, 5, 6)):
        x = (rng.standard_normal(shape) * 50).astype(dtype)
        d = cuda.to_device(x)
        assert (d.shape, d.dtype, d.strides, d.device, d.nbytes) == (shape, dtype, x.strides, 0, x.nbytes)
        y = cuda.to_host(d)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, x)


def test_round_trip_of_bfloat16():
    x = np.array([0, -0.0, 1, 1.00390625, 1.01171875, -3.14159, 3e38, 1e-40, np.inf, -np.inf, np.nan], np.float32)
    y = cuda.to_host(cuda.to_device(x, dtype="bfloat16"))
    # Ties go to even; 3e38 is within the range.
    expected = [0, -0.0, 1, 1, 1.015625, -3.140625, 2.9972e38, 9.1835e-41 + 0 * 1, np.inf, -np.inf, np.nan]
    np.testing.assert_allclose(y, expected, rtol=1e-2)
    assert y[3] == 1
    assert y[4] == 1.015625
    assert np.signbit(y[1])


def test_memory_order_is_kept(rng):
    x = image(rng).transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
    d = cuda.to_device(x)
    assert d.strides == x.strides
    y = functional.relu(d)
    assert y.strides == x.strides
    np.testing.assert_array_equal(cuda.to_host(y), np.maximum(x, 0))


def test_parts_are_views(rng):
    x = image(rng)
    d = cuda.to_device(x)
    for index in (
        0,
        -1,
        slice(1, None),
        (0, 1),
        (..., 2),
        (slice(None), None, 1),
        (slice(None), slice(None, None, -2)),
    ):
        part = d[index]
        np.testing.assert_array_equal(cuda.to_host(part), x[index])
    np.testing.assert_array_equal(cuda.to_host(d.reshape(6, -1)), x.reshape(6, -1))
    np.testing.assert_array_equal(cuda.to_host(d.reshape((120,))), x.reshape(120))
    # A part keeps the memory of the whole.
    part = cuda.to_device(x)[1]
    gc.collect()
    np.testing.assert_array_equal(cuda.to_host(part), x[1])
    with pytest.raises(TypeError, match=r"index \(=\[0\]\) must be of integers"):
        d[[0]]
    with pytest.raises(ValueError, match="must lie in C order"):
        d[:, ::2].reshape(-1)
    with pytest.raises(ValueError, match=r"shape \(=\(7,\)\) must have the 120 elements"):
        d.reshape(7)


def test_foreign_arrays(rng):
    x = image(rng)
    d = cuda.to_device(x)
    for producer in (Dlpack(d), Interface(d), Interface(d, stream=None), Interface(d, strides=None, version=2)):
        y = functional.relu(producer)
        assert isinstance(y, cuda.DeviceArray)
        np.testing.assert_array_equal(cuda.to_host(y), np.maximum(x, 0))
        np.testing.assert_array_equal(cuda.to_host(producer), x)
    b = cuda.to_device(x, dtype="bfloat16")
    assert not hasattr(b, "__cuda_array_interface__")
    y = functional.relu(Dlpack(b))
    assert y.dtype == "bfloat16"
    np.testing.assert_array_equal(cuda.to_host(y), np.maximum(cuda.to_host(b), 0))


def test_dlpack_keeps_and_frees_its_producer(rng):
    class Watched(cuda.DeviceArray):
        __slots__ = ()

    d = cuda.to_device(image(rng))
    capsule = d.__dlpack__()
    before = sys.getrefcount(d)
    del capsule
    assert sys.getrefcount(d) == before - 1  # the capsule that nobody took
    view = _core.DeviceView.from_dlpack(d.__dlpack__())
    assert sys.getrefcount(d) == before
    del view
    gc.collect()
    assert sys.getrefcount(d) == before - 1
    with pytest.raises(BufferError, match="dl_device"):
        d.__dlpack__(dl_device=(1, 0))
    with pytest.raises(BufferError, match="copy"):
        d.__dlpack__(copy=True)
    capsule = d.__dlpack__()
    _core.DeviceView.from_dlpack(capsule)
    with pytest.raises(ValueError, match="dltensor"):
        _core.DeviceView.from_dlpack(capsule)


def test_out(rng):
    x = image(rng)
    d, out = cuda.to_device(x), cuda.empty(x.shape)
    assert functional.relu(d, out=out) is out
    np.testing.assert_array_equal(cuda.to_host(out), np.maximum(x, 0))
    strided = cuda.empty((2, 6, 4, 5))[:, ::2]
    assert functional.relu(d, out=strided) is strided
    np.testing.assert_array_equal(cuda.to_host(strided), np.maximum(x, 0))
    assert functional.relu(d, out=d) is d
    np.testing.assert_array_equal(cuda.to_host(d), np.maximum(x, 0))


def test_refusals_are_named(rng):
    x = image(rng)
    d = cuda.to_device(x)
    for call, error, message in (
        (lambda: functional.add(d, x), TypeError, "y (on the host) must be on the device of x, cuda:0"),
        (lambda: functional.add(x, d), TypeError, "y (on cuda:0) must be on the device of x, the host"),
        (lambda: functional.relu(d, out=x), TypeError, "out (on the host) must be on the device of x, cuda:0"),
        (lambda: functional.relu(x, out=d), TypeError, "out (on cuda:0) must be on the device of x, the host"),
        (
            lambda: functional.add(d, cuda.to_device(x, dtype="bfloat16")),
            TypeError,
            "y (dtype bfloat16) must have the dtype of x, float32",
        ),
        (
            lambda: functional.relu(cuda.to_device(x.astype(np.int32))),
            TypeError,
            "x (dtype int32) must have dtype float32, float64, float16 or bfloat16",
        ),
        (
            lambda: functional.relu(x.astype(np.float16)),
            TypeError,
            "x (dtype float16) must have dtype float32 or float64",
        ),
        (lambda: functional.add(d, d[:1]), ValueError, "y (shape (1, 3, 4, 5)) must have shape (2, 3, 4, 5)"),
        (lambda: functional.relu(d, out=d[:1]), ValueError, "out (shape (1, 3, 4, 5)) must have shape (2, 3, 4, 5)"),
        (lambda: functional.relu(d[1:], out=d[:1]), None, ""),
        (lambda: functional.add(d[1:], d[:1], out=d[:1, ::-1]), ValueError, "must not overlap y"),
        (lambda: functional.relu(d, out=Interface(d, data=(d.pointer, True))), ValueError, "out (read-only)"),
        (lambda: functional.relu(d, out=Dlpack(cuda.empty(x.shape))), ValueError, "out (read-only) must be writable"),
        (lambda: functional.softmax(d, 4), ValueError, "axis (=4) must be from -4 to 3"),
        (lambda: cuda.empty(3, device=7), ValueError, "device (=7) must be from 0 to"),
        (lambda: cuda.empty(3, device=True), TypeError, "device (=True) must be an integer, not bool"),
        (lambda: cuda.empty((3, -1)), ValueError, "shape (=(3, -1)) must have no negative length"),
        (lambda: cuda.empty(3, "complex64"), TypeError, "dtype (='complex64') must be one of float32"),
        (lambda: cuda.to_host(x), TypeError, "array is of type ndarray and must be an array in a CUDA device's memory"),
        (
            lambda: functional.relu(Interface(d, typestr="<c8")),
            TypeError,
            "x (on a CUDA device) must be a dense array of float32",
        ),
        (lambda: functional.relu(Interface(d, mask=d)), TypeError, "x (on a CUDA device) must be a dense array"),
        (lambda: fastconv.plan("conv2d", d, d[:, :, :3, :3]), RuntimeError, "conv2d does not serve arrays on a CUDA"),
        (
            lambda: fastconv.explain("linear", d, d[0, 0]),
            RuntimeError,
            "explain('linear') does not serve arrays on a CUDA",
        ),
    ):
        if error is None:
            call()
            continue
        with pytest.raises(error, match=re.escape(message)):
            call()
    # What was refused has not harmed what comes next.
    np.testing.assert_array_equal(cuda.to_host(functional.relu(cuda.to_device(x))), np.maximum(x, 0))


class Deleted(Interface):
    """A producer like a JAX array that was deleted or donated: it has a shape, and its memory is gone."""

    def __init__(self, array):
        self.shape = array.shape

    @property
    def __cuda_array_interface__(self):
        raise RuntimeError("Array has been deleted with shape=float32[2,3,4,5].")


class DeletedDlpack(Dlpack):
    def __dlpack__(self, **options):
        raise BufferError("the buffer was donated")


def one_value(device, elements):
    """An array of that many elements, all of them the same one."""
    whole = cuda.to_device(np.ones(1, np.float32))
    return cuda.DeviceArray(whole._memory, whole.pointer, "float32", (elements,), (0,))


def test_bad_input_is_named_and_harms_nothing(rng):
    """Wrong ordinals, other devices, deleted or read-only arrays, old devices, no memory."""
    x = image(rng)
    d = cuda.to_device(x)
    count = cuda.device_count()
    several = count > 1
    other = cuda.to_device(x, device=1) if several else d
    cases = [
        (lambda: cuda.to_device(x, device=97), ValueError, f"device (=97) must be from 0 to {count - 1}"),
        (lambda: cuda.empty(3, device=-1), ValueError, "device (=-1) must be from 0 to"),
        (lambda: cuda.synchronize(97), ValueError, "device (=97) must be from 0 to"),
        (
            lambda: functional.add(d, Deleted(d)),
            ValueError,
            "y (of type Deleted) cannot be read where it lies: Array has",
        ),
        (lambda: functional.relu(Deleted(d)), ValueError, "x (of type Deleted) cannot be read where it lies"),
        (lambda: functional.relu(d, out=Deleted(d)), ValueError, "out (of type Deleted) cannot be read where it lies"),
        (
            lambda: functional.conv2d(d, d[:, :, :3, :3], out=Deleted(d)),
            ValueError,
            "out (of type Deleted) cannot be read",
        ),
        (
            lambda: functional.max_pool2d(d, 2, out=DeletedDlpack(d)),
            ValueError,
            "out (of type DeletedDlpack) cannot be read where it lies: the buffer was donated",
        ),
        (
            lambda: functional.relu(Interface(d, data=(0, False))),
            ValueError,
            "x (shape (2, 3, 4, 5)) must have memory: its storage has been freed",
        ),
        (
            lambda: functional.relu(Interface(d, data=(x.ctypes.data, False))),
            ValueError,
            "must lie in a CUDA device's memory, and that address does not",
        ),
        (
            lambda: functional.relu(d, out=Interface(d, data=(d.pointer, True))),
            ValueError,
            "out (read-only) must be writ",
        ),
        (
            lambda: functional.conv2d(d, d[:, :, :3, :3], out=Dlpack(cuda.empty((2, 2, 2, 3)))),
            ValueError,
            "out (read-only) must be writable",
        ),
        (
            lambda: functional.batch_norm_train(d, Interface(cuda.empty(3), data=(d.pointer, True)), cuda.empty(3)),
            ValueError,
            "read-only",
        ),
    ]
    if several:
        on = "(on cuda:1) must be on the device of"
        w, v = d[:, :, :3, :3], other[:, :, :3, :3]
        cases += [
            (lambda: functional.conv2d(d, v), TypeError, f"weight {on} x, cuda:0"),
            (lambda: functional.conv2d(d, w, out=other), TypeError, f"out {on} x, cuda:0"),
            (lambda: functional.conv2d_backward(other[..., :2, :3], d, w[:2]), TypeError, "must be on the device of"),
            (lambda: functional.batch_norm(d, other[0, :, 0, 0], d[0, :, 0, 0]), TypeError, on),
            (lambda: functional.max_pool2d(d, 2, out=other), TypeError, f"out {on} x, cuda:0"),
            (lambda: functional.softmax(d, 1, out=other), TypeError, f"out {on} x, cuda:0"),
        ]
    for call, error, message in cases:
        with pytest.raises(error, match=re.escape(message)):
            call()
        # The context is as it was.
        np.testing.assert_array_equal(cuda.to_host(functional.relu(d)), np.maximum(x, 0))


def test_no_memory_for_a_result(device, rng):
    d = cuda.to_device(image(rng))
    before = cuda.to_host(functional.relu(d))
    # Its result is larger than the device, and no array of that size is needed to ask for it.
    large = one_value(device, device.device_info(0)["memory"] // 4 + 1)
    for call in (lambda: functional.relu(large), lambda: functional.add(large, large)):
        with pytest.raises(MemoryError, match="out of memory"):
            call()
        np.testing.assert_array_equal(cuda.to_host(functional.relu(d)), before)


def test_a_device_that_is_too_old(device, rng, monkeypatch):
    class Old:
        """The module, of a device of an earlier architecture."""

        def __getattr__(self, name):
            return getattr(device, name)

        def device_info(self, ordinal):
            return {**device.device_info(ordinal), "name": "Tesla T4", "capability": (7, 5)}

    d = cuda.to_device(image(rng))
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "_module", Old)
        cuda._check_capability.cache_clear()
        words = r"cuda:0 \(Tesla T4, compute capability 7.5\) is not supported: it must have 8.0 or a later one"
        for call in (lambda: cuda.empty(3), lambda: functional.relu(d), lambda: functional.max_pool2d(d, 2)):
            with pytest.raises(RuntimeError, match=words):
                call()
    cuda._check_capability.cache_clear()
    assert functional.relu(d).shape == d.shape


def test_what_the_device_refuses_is_said(device, rng):
    if not hasattr(device, "fail_next_launch"):
        pytest.skip("needs the module _cuda_host")
    x = image(rng)
    d = cuda.to_device(x)
    for code, words in (
        (209, "no kernel image is available for execution on the device"),
        (700, "illegal memory access"),
    ):
        device.fail_next_launch(code)
        with pytest.raises(RuntimeError, match=f"the device refused the call: .*{words}"):
            functional.relu(d)
        np.testing.assert_array_equal(cuda.to_host(functional.relu(d)), np.maximum(x, 0))


def test_another_device(rng):
    if cuda.device_count() < 2:
        pytest.skip("needs two devices")
    x = image(rng)
    d, e = cuda.to_device(x), cuda.to_device(x, device=1)
    y = functional.relu(e)
    assert y.device == 1
    assert functional.relu(Interface(e)).device == 1
    assert functional.relu(Dlpack(e)).device == 1
    assert cuda.empty(1).device == 0
    with pytest.raises(TypeError, match=r"y \(on cuda:1\) must be on the device of x, cuda:0"):
        functional.add(d, e)


def test_out_of_memory(device):
    bytes_of = device.device_info(0)["memory"]
    with pytest.raises(MemoryError, match="out of memory"):
        cuda.empty((bytes_of,), "float64")
    assert functional.relu(cuda.empty(4)).shape == (4,)


def test_an_empty_array():
    assert functional.relu(cuda.empty((0, 3))).shape == (0, 3)
    assert functional.add(cuda.empty((2, 0)), cuda.empty((2, 0))).shape == (2, 0)


def test_configuration_names_the_devices(device):
    file = io.StringIO()
    fastconv.show_config(file)
    assert re.search(rf"^cuda +.*{re.escape(device.device_info(0)['name'])}", file.getvalue(), re.M)


@pytest.mark.parametrize(
    ("dtype", "place", "expected"),
    [(0, 0, OK), (1, 0, OK), (7, 0, BAD_DTYPE), (8, 0, BAD_DTYPE), (0, 1, BAD_DEVICE), (7, 1, BAD_DEVICE)],
)
def test_the_cpu_refuses_other_devices_and_short_floats(dtype, place, expected):
    # 7 and 8 are float16 and bfloat16, place 1 is a GPU.
    for name, status in _testing.cpu_statuses(dtype, place):
        assert status == expected, name


def test_without_a_module():
    program = """if True:
        import numpy, fastconv
        from fastconv import cuda
        assert not cuda.is_available() and cuda.device_count() == 0
        fastconv.show_config()
        class Array:
            __cuda_array_interface__ = {"shape": (1,), "typestr": "<f4", "data": (4096, False), "version": 3}
        for call in (lambda: cuda.empty(3), lambda: fastconv.relu(Array())):
            try:
                call()
            except RuntimeError as error:
                print(error)
    """
    import os

    environment = {**os.environ, "FASTCONV_CUDA_MODULE": "_no_such_module"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count("no CUDA device can be used: this fastconv was built without CUDA (FASTCONV_CUDA=ON") == 2
    assert re.search(r"^cuda +this fastconv was built without CUDA", done.stdout, re.M)
