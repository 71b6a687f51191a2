"""Every kernel of the table against plain NumPy, on every instruction set that this CPU has.

Buffers are larger than what a kernel may touch: what it must not write keeps its values, and what it must not use is
NaN. Data movement and the products of small integers have one right answer, so those tests have tolerance zero.
"""

import itertools
import math

import numpy as np
import pytest

from fastconv import _testing, testing

ISAS = _testing.isas()
DTYPES = (np.float32, np.float64)
LENGTHS = (0, 1, 2, 7)
MARK = -77.0  # fills what a kernel must leave alone

COVERED = set()


def covers(*names):
    """Names the kernels that a test checks: see test_every_kernel_has_a_test."""
    COVERED.update(names)
    return lambda test: test


pytestmark = [pytest.mark.parametrize("isa", ISAS), pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)]


@pytest.fixture
def shape(isa, dtype):
    return _testing.tile_shape(isa, np.dtype(dtype).name)


def integers(rng, n, dtype, high=8):
    return rng.integers(-high, high + 1, n).astype(dtype)


def marked(n, dtype):
    return np.full(n, MARK, dtype)


def scattered(rng, count, length, gap=3):
    """Starts of `count` runs of `length` in a shuffled order, and the size of the array that holds them."""
    return (rng.permutation(count) * (length + gap) + gap).tolist(), count * (length + gap) + gap


# ------------------------------------------------------------------------------------------------------------- gemm


class Gemm:
    """The operands of one product: rows reached through scattered pointers, unused elements NaN."""

    def __init__(self, rng, isa, dtype, lanes, *, m, vectors, tail, taps=1, length=5, step=1, values=integers):
        self.isa, self.dtype, self.m, self.columns = isa, dtype, m, (vectors - 1) * lanes + tail
        # A negative step walks a row from its end.
        reach = abs(step) * max(length - 1, 0) + 1
        starts, size = scattered(rng, taps * m, reach)
        base = [s + (reach - 1 if step < 0 else 0) for s in starts]
        rows = np.full(size, np.nan, dtype)
        self.terms = np.zeros((taps, m, length), dtype)
        for i, start in enumerate(base):
            values_of_row = values(rng, length, dtype)
            self.terms[i // m, i % m] = values_of_row
            rows[[start + k * step for k in range(length)]] = values_of_row
        panel = np.zeros((taps * length, vectors * lanes), dtype)
        panel[:, : self.columns] = values(rng, taps * length * self.columns, dtype).reshape(-1, self.columns)
        # A common offset of all rows; the starts are shifted the other way.
        self.arguments = {
            "rows": rows,
            "row_starts": [s - 2 for s in base],
            "row_offset": 2,
            "row_pitch": m,
            "row_step": step,
            "taps": taps,
            "length": length,
            "m": m,
            "panel": panel,
            "vectors": vectors,
            "tail": tail,
        }
        self.product = np.einsum(
            "tmk,tkn->mn",
            self.terms.astype(np.float64),
            panel.reshape(taps, length, vectors * lanes).astype(np.float64),
        )[:, : self.columns]
        self.c_starts, self.c_size = scattered(rng, m, self.columns)

    def spread(self, block, background=MARK):
        """A block (m, columns) in an array that C's pointers reach."""
        array = np.full(self.c_size, background, self.dtype)
        for start, row in zip(self.c_starts, block, strict=True):
            array[start : start + self.columns] = row
        return array

    def run(self, *, before=None, residual=None, **options):
        c = marked(self.c_size, self.dtype) if before is None else self.spread(before)
        if residual is not None:
            options |= {
                "residual": self.spread(residual, np.nan),
                "residual_starts": [s + 1 for s in self.c_starts],
                "residual_offset": -1,
            }
        starts = [s - 3 for s in self.c_starts]
        _testing.gemm(self.isa, **self.arguments, c=c, c_starts=starts, c_offset=3, **options)
        return c

    def check(self, expected, **options):
        np.testing.assert_array_equal(self.run(**options), self.spread(expected))


def widths(shape):
    return range(1, shape["max_vectors"] + 1)


@covers("gemm")
def test_gemm_of_every_tile(rng, isa, dtype, shape):
    lanes = shape["lanes"]
    for vectors in widths(shape):
        # Heights of one tile, and some that are made of several.
        for m in [*range(1, shape["tile_rows"][vectors - 1] + 1), 11, 17]:
            for tail in range(1, lanes + 1):
                gemm = Gemm(rng, isa, dtype, lanes, m=m, vectors=vectors, tail=tail, length=1 + (m + tail) % 4)
                gemm.check(gemm.product)


@pytest.mark.parametrize("step", [1, 3, -2])
@pytest.mark.parametrize("taps", [1, 2, 5])
def test_gemm_of_every_length(rng, isa, dtype, shape, taps, step):
    for vectors, length, tail in itertools.product(widths(shape), LENGTHS, (1, shape["lanes"])):
        for m in (1, 4, 9):
            gemm = Gemm(
                rng, isa, dtype, shape["lanes"], m=m, vectors=vectors, tail=tail, taps=taps, length=length, step=step
            )
            gemm.check(gemm.product)
            before = integers(rng, gemm.product.size, dtype).reshape(gemm.product.shape)
            gemm.check(gemm.product + before, before=before, accumulate=True)


def test_gemm_of_nothing(rng, isa, dtype, shape):
    gemm = Gemm(rng, isa, dtype, shape["lanes"], m=0, vectors=1, tail=1)
    gemm.check(gemm.product)
    no_taps = Gemm(rng, isa, dtype, shape["lanes"], m=3, vectors=1, tail=1, taps=0)
    no_taps.check(np.zeros((3, 1)))


@pytest.mark.parametrize("channel_rows", [False, True])
@pytest.mark.parametrize("finish", [False, True])
def test_gemm_finishes(rng, isa, dtype, shape, finish, channel_rows):
    """Every combination of accumulate, scale, shift, residual and clamp; before the last piece only accumulate."""
    clamps = {None: (0, 0), "relu": (1, (0, np.inf)), "relu6": (2, (0, 6)), "clip": (11, (-5, 9))}
    for vectors, tail in itertools.product(widths(shape), {1, shape["lanes"] - 1, shape["lanes"]}):
        for m, accumulate, use_scale, use_shift, use_residual, clamp in itertools.product(
            (1, 6, 9), *[(False, True)] * 4, clamps
        ):
            gemm = Gemm(rng, isa, dtype, shape["lanes"], m=m, vectors=vectors, tail=tail, length=3)
            block = gemm.product.shape
            options = {"finish": finish, "channel_rows": channel_rows, "accumulate": accumulate}
            before = integers(rng, gemm.product.size, dtype).reshape(block)
            expected = gemm.product + before if accumulate else gemm.product.copy()
            # Exactly as long as they need be, and NaN where another use of them would read.
            for name, used in (("scale", use_scale), ("shift", use_shift)):
                if used:
                    options[name] = integers(rng, m if channel_rows else gemm.columns, dtype)
            if use_residual:
                options["residual"] = integers(rng, gemm.product.size, dtype).reshape(block)
            if clamp:
                options["activation"], (options["a"], options["b"]) = clamps[clamp]
            if finish:
                axis = (slice(None), None) if channel_rows else (None, slice(None))
                if use_scale:
                    expected = expected * options["scale"][axis]
                if use_shift:
                    expected = expected + options["shift"][axis]
                if use_residual:
                    expected = expected + options["residual"]
                if clamp:
                    expected = np.clip(expected, options["a"], options["b"])
            gemm.check(expected, before=before, **options)


@pytest.mark.parametrize("kind", [3, 4, 5, 6, 7, 8, 9, 10])
def test_gemm_applies_every_activation(rng, isa, dtype, shape, kind):
    """The same bits as activate_run, which has a test of its own below."""
    for vectors, tail in itertools.product(widths(shape), range(1, shape["lanes"] + 1)):
        gemm = Gemm(rng, isa, dtype, shape["lanes"], m=7, vectors=vectors, tail=tail, length=2)
        scale = rng.normal(0, 0.1, gemm.columns).astype(dtype)
        options = {"activation": kind, "a": 0.25, "scale": scale}
        expected = (gemm.product.astype(dtype) * scale).ravel()
        _testing.activate_run(isa, x=expected, n=expected.size, kind=kind, a=0.25)
        gemm.check(expected.reshape(gemm.product.shape), finish=True, **options)
        gemm.check(gemm.product, finish=False, **options)


def test_gemm_rounds_alike_in_every_tile(rng, isa, dtype, shape):
    """An element has the same bits whatever tile it falls into, so that a result depends on no split."""
    lanes = shape["lanes"]
    for vectors in widths(shape):
        gemm = Gemm(rng, isa, dtype, lanes, m=19, vectors=vectors, tail=lanes, taps=2, length=33, values=normal)
        c = gemm.run()
        whole = np.array([c[s : s + gemm.columns] for s in gemm.c_starts])
        rounded = 2 * 33 * np.finfo(dtype).eps * np.abs(gemm.product).max()
        np.testing.assert_allclose(whole, gemm.product, rtol=0, atol=rounded)
        starts = np.array(gemm.arguments["row_starts"]).reshape(2, 19)
        for m, v in itertools.product(range(19), range(vectors)):
            alone = marked(lanes, dtype)
            panel = gemm.arguments["panel"][:, v * lanes : (v + 1) * lanes].copy()
            options = {**gemm.arguments, "panel": panel, "vectors": 1, "m": 1, "row_pitch": 1}
            options["row_starts"] = starts[:, m].tolist()
            _testing.gemm(isa, **options, c=alone, c_starts=[0])
            np.testing.assert_array_equal(alone, whole[m, v * lanes : (v + 1) * lanes])


def normal(rng, n, dtype):
    return rng.normal(size=n).astype(dtype)


@pytest.mark.parametrize("activation", [0, 1, 5])
@pytest.mark.parametrize("packs", [False, True], ids=["packed", "packs"])
def test_gemm_of_several_panels(rng, isa, dtype, shape, packs, activation):
    """Panels side by side give the bits that each gives alone, whether they are packed or read where they lie."""
    lanes, length = shape["lanes"], 9
    for vectors, m, panels in itertools.product(widths(shape), (1, 5, 8, 21), (1, 2, 5)):
        width = vectors * lanes
        gemm = Gemm(rng, isa, dtype, lanes, m=m, vectors=vectors, tail=lanes, length=length, values=normal)
        panel = normal(rng, panels * length * width, dtype).reshape(panels, length, width)
        starts, size = scattered(rng, m, panels * width)
        common = {"c_starts": starts, "shift": normal(rng, m, dtype), "channel_rows": True, "finish": True}
        common |= {"activation": activation, "a": 0.1, "b": 0.7}
        expected = marked(size, dtype)
        for p in range(panels):
            alone = gemm.arguments | {"panel": panel[p]} | common | {"c_offset": p * width}
            _testing.gemm(isa, c=expected, **alone)
        options = gemm.arguments | {"panels": panels, "panel": panel} | common
        if packs:
            # Row k of all panels is one run of the source.
            offsets, reach = scattered(rng, length, panels * width)
            source = np.full(reach, np.nan, dtype)
            for k, offset in enumerate(offsets):
                source[offset : offset + panels * width] = panel[:, k].ravel()
            options |= {"panel": np.full_like(panel, np.nan), "source": source, "source_offset": offsets}
        c = marked(size, dtype)
        _testing.gemm(isa, c=c, **options)
        np.testing.assert_array_equal(c, expected)
        if packs:
            np.testing.assert_array_equal(options["panel"], panel)


def test_gemm_of_few_rows_reads_weights_in_place(rng, isa, dtype, shape):
    """The bits of a packed panel, without one; nothing beyond the last column's last term is read."""
    lanes = shape["lanes"]
    vectors = 1
    for m, length in itertools.product(range(1, 5), (0, 1, 15, 16, 37, 64)):
        for tail in {1, lanes - 1, lanes}:
            columns = (vectors - 1) * lanes + tail
            gemm = Gemm(rng, isa, dtype, lanes, m=m, vectors=1, tail=1, length=length, values=normal)
            weights = np.full((columns, length + 3), np.nan, dtype)
            weights[:, :length] = normal(rng, columns * length, dtype).reshape(columns, length)
            starts, size = scattered(rng, m, columns)
            before = normal(rng, size, dtype)
            common = {"c_starts": starts, "accumulate": True, "finish": True, "activation": 5}
            expected, c = before.copy(), before.copy()
            for j in range(columns):
                panel = np.zeros((length, lanes), dtype)
                panel[:, 0] = weights[j, :length]
                scale = {"scale": np.array([1 + j], dtype), "c_offset": j}
                _testing.gemm(isa, c=expected, **gemm.arguments | {"panel": panel} | common | scale)
            options = gemm.arguments | {"vectors": vectors, "tail": tail}
            options["scale"] = np.arange(1, columns + 1, dtype=dtype)
            # The array ends where the last column does.
            flat = weights.ravel()[: max(weights.size - 3, 0)]
            _testing.gemm(isa, c=c, **options | common, weights=flat, weights_pitch=length + 3)
            np.testing.assert_array_equal(c, expected)


def test_gemm_hints_change_nothing(rng, isa, dtype, shape):
    gemm = Gemm(rng, isa, dtype, shape["lanes"], m=23, vectors=1, tail=1)
    gemm.check(gemm.product, next=np.ones(400, dtype), next_rows=7, next_pitch=50, next_width=40)


def test_gemm_passes_over_rows_of_zeros(rng, isa, dtype, shape):
    """A piece whose rows all lie in the padding is not even read; a tile with other rows reads the zeros."""
    for vectors, m in itertools.product(widths(shape), (1, 5, 8, 21)):
        gemm = Gemm(rng, isa, dtype, shape["lanes"], m=m, vectors=vectors, tail=1, taps=4, length=3)
        original = gemm.arguments
        panel = original["panel"].reshape(4, 3, -1)[:, :, : gemm.columns]
        starts = np.array(original["row_starts"]).reshape(4, m)
        everywhere = np.zeros((4, m), bool)
        everywhere[1:3] = True
        zero_row = original["rows"].size
        # The zero row is full of NaN where no tile may read it.
        for content, in_padding in ((np.nan, everywhere), (0, rng.integers(0, 2, (4, m)).astype(bool))):
            rows = np.append(original["rows"], np.full(5, content, dtype))
            gemm.arguments = {
                **original,
                "rows": rows,
                "row_starts": np.where(in_padding, zero_row, starts).ravel().tolist(),
            }
            terms = np.where(in_padding[:, :, None], 0, gemm.terms).astype(np.float64)
            gemm.check(np.einsum("tmk,tkn->mn", terms, panel.astype(np.float64)), zero_row=zero_row)


def test_gemm_propagates_nan(rng, isa, dtype, shape):
    gemm = Gemm(rng, isa, dtype, shape["lanes"], m=5, vectors=1, tail=shape["lanes"])
    before = np.full(gemm.product.shape, np.nan, dtype)
    for kind, (a, b) in itertools.product(range(12), [(0, 6)]):
        gemm.check(before, before=before, accumulate=True, finish=True, activation=kind, a=a, b=b)


# ---------------------------------------------------------------------------------------------------------- packing


def weight_cases(rng, dtype, lanes):
    """(taps, length, valid, strides): the orders of a forward, a transposed and a channels-last weight, and others."""
    for taps, length, valid in itertools.product((1, 2, 9), LENGTHS, (1, 2, lanes - 1, lanes, lanes + 3, 2 * lanes)):
        if valid < 1:
            continue
        columns = -(-valid // lanes) * lanes
        orders = {
            "column, channel, tap": (length * taps, taps, list(range(taps))),
            "column, channel, tap backwards": (length * taps, taps, list(range(taps))[::-1]),
            "column, tap, channel": (length * taps, 1, [t * length for t in range(taps)]),
            "channel, column, tap": (taps, valid * taps, list(range(taps))),
            "channel, column, tap backwards": (taps, valid * taps, list(range(taps))[::-1]),
            "channel, tap, column": (1, valid * taps, [t * valid for t in range(taps)]),
            "tap, channel, column": (1, valid, [t * valid * length for t in range(taps)]),
            "some columns of more": (length * taps + 5, taps, list(range(taps))),
        }
        for column_stride, channel_stride, tap_offset in orders.values():
            size = 1 + (valid - 1) * column_stride + max(length - 1, 0) * channel_stride + max(tap_offset)
            yield {
                "w": integers(rng, size, dtype, 100),
                "column_stride": column_stride,
                "channel_stride": channel_stride,
                "tap_offset": tap_offset,
                "length": length,
                "columns": columns,
                "valid": valid,
            }


def unpacked(case):
    """The weights of a case as (tap, channel, column)."""
    t, c, j = np.ogrid[: len(case["tap_offset"]), : case["length"], : case["valid"]]
    index = np.array(case["tap_offset"])[t] + c * case["channel_stride"] + j * case["column_stride"]
    return case["w"][index] if index.size else np.zeros(index.shape, case["w"].dtype)


@covers("pack_weights")
def test_pack_weights(rng, isa, dtype, shape):
    for case in weight_cases(rng, dtype, shape["lanes"]):
        for extra in (0, shape["lanes"]):  # whole vectors of zeros past the last column
            columns = case["columns"] + extra
            weights = unpacked(case)
            expected = marked(weights.shape[0] * weights.shape[1] * columns + 5, dtype)
            panel = expected.copy()
            expected[:-5] = np.pad(weights, [(0, 0), (0, 0), (0, columns - case["valid"])]).ravel()
            _testing.pack_weights(isa, panel=panel, **{**case, "columns": columns})
            np.testing.assert_array_equal(panel, expected)


def test_pack_weights_of_several_phases(rng, isa, dtype, shape):
    """Each tap's rows go where they are told."""
    for case in weight_cases(rng, dtype, shape["lanes"]):
        weights, columns, length = unpacked(case), case["columns"], case["length"]
        starts, size = scattered(rng, weights.shape[0], length * columns)
        expected = marked(size, dtype)
        for start, rows in zip(starts, weights, strict=True):
            padded = np.pad(rows, [(0, 0), (0, columns - case["valid"])])
            expected[start : start + length * columns] = padded.ravel()
        panel = marked(size, dtype)
        _testing.pack_weights(isa, panel=panel, **case, tap_starts=starts)
        np.testing.assert_array_equal(panel, expected)


@covers("pack_weight_rows")
def test_pack_weight_rows(rng, isa, dtype, shape):
    for case in weight_cases(rng, dtype, shape["lanes"]):
        weights = unpacked(case).transpose(2, 1, 0).reshape(case["valid"], -1)
        for pitch in (weights.shape[1], weights.shape[1] + 3):
            expected = marked((case["valid"], pitch), dtype)
            panel = expected.copy()
            expected[:, : weights.shape[1]] = weights
            _testing.pack_weight_rows(isa, panel=panel, **{**case, "columns": pitch})
            np.testing.assert_array_equal(panel, expected)


def runs(rng, columns):
    """Segments (column, offset, length) that follow each other from column 0 to `columns`."""
    cuts = np.unique(rng.integers(0, columns + 1, 3)).tolist()
    cuts = sorted({0, columns, *cuts})
    return [(a, int(rng.integers(0, 9)), b - a) for a, b in itertools.pairwise(cuts)]


@covers("pack_columns")
@pytest.mark.parametrize("exact", [False, True])
def test_pack_columns(rng, isa, dtype, shape, exact):
    lanes = shape["lanes"]
    for taps, channels, columns in itertools.product(
        (1, 3), (1, 2, 5), (1, 2, lanes - 1, lanes, 2 * lanes, 3 * lanes + 1)
    ):
        if columns < 1:
            continue
        pitch = -(-columns // lanes) * lanes
        channel_stride = 9 + columns + taps
        for segments in ([(0, 4, columns)], runs(rng, columns)):
            tap_offset = rng.integers(0, 3, taps).tolist()
            used = (channels - 1) * channel_stride + max(tap_offset) + max(o + n for _, o, n in segments)
            # The vectors that hang over an end are cut short by `exact` and find NaN otherwise.
            source = np.full(used + (0 if exact else lanes - 1), np.nan, dtype)
            source[:used] = integers(rng, used, dtype, 100)
            panel = marked(channels * taps * pitch + lanes - 1 + 3, dtype)
            _testing.pack_columns(
                isa,
                panel=panel,
                source=source,
                channel_stride=channel_stride,
                tap_offset=tap_offset,
                channels=channels,
                segments=segments,
                columns=pitch,
                exact=exact,
            )
            assert (panel[-3:] == MARK).all()
            rows = panel[: channels * taps * pitch].reshape(channels, taps, pitch)
            for column, offset, length in segments:
                c, t, i = np.ogrid[:channels, :taps, :length]
                index = c * channel_stride + np.array(tap_offset)[t] + offset + i
                np.testing.assert_array_equal(rows[:, :, column : column + length], source[index])


@covers("pack_transposed")
def test_pack_transposed(rng, isa, dtype, shape):
    lanes = shape["lanes"]
    for columns, rows in itertools.product((lanes, 3 * lanes), (1, 2, lanes - 1, lanes, 2 * lanes + 1)):
        if rows < 1:
            continue
        for segments in ([(0, 2, rows)], runs(rng, rows)):
            used = max(o + n for _, o, n in segments)
            starts, size = scattered(rng, columns, used, gap=lanes)
            source = integers(rng, size + used, dtype, 100)
            panel = marked((rows + lanes - 1 + 2, columns), dtype)
            _testing.pack_transposed(isa, panel=panel, source=source, starts=starts, segments=segments)
            assert (panel[-2:] == MARK).all()
            for column, offset, length in segments:
                i, j = np.ogrid[:length, :columns]
                expected = source[np.array(starts)[j] + offset + i]
                np.testing.assert_array_equal(panel[column : column + length], expected)


@covers("pack_rows")
def test_pack_rows(rng, isa, dtype, shape):
    lanes = shape["lanes"]
    for count, length, vectors in itertools.product(
        (0, 1, 2, 5), (0, 1, 2, lanes - 1, lanes, 2 * lanes + 1), (1, 3, 4)
    ):
        pitch = vectors * lanes
        if not 0 <= length <= pitch:
            continue
        starts, size = scattered(rng, count, length)
        source = np.full(size, np.nan, dtype)
        expected = marked(count * pitch + 3, dtype)
        panel = expected.copy()
        expected[: count * pitch] = 0
        for i, start in enumerate(starts):
            source[start : start + length] = expected[i * pitch : i * pitch + length] = integers(rng, length, dtype)
        _testing.pack_rows(
            isa, panel=panel, source=source, starts=[s + 3 for s in starts], offset=-3, length=length, pitch=pitch
        )
        np.testing.assert_array_equal(panel, expected)


# ------------------------------------------------------------------------------------------------------------ slabs


def mapped(x, mapping, channel_axis):
    """What a prologue makes of x: gate * act(scale * x + shift)."""
    if mapping is None:
        return x
    scale, shift, gate, gate_stride, kind, a, b = mapping
    axes = [-1 if i == channel_axis % x.ndim else 1 for i in range(x.ndim)]
    channels = x.shape[channel_axis]
    if scale is not None:
        x = x * scale.reshape(axes)
    if shift is not None:
        x = x + shift.reshape(axes)
    x = {0: lambda v: v, 1: lambda v: np.maximum(v, 0), 11: lambda v: np.clip(v, a, b)}[kind](x)
    if gate is not None:
        x = x * gate[: (channels - 1) * gate_stride + 1 : gate_stride].reshape(axes)
    return x


def mappings(rng, dtype, channels, gate_stride):
    one = integers(rng, channels, dtype)
    gate = np.full((channels - 1) * gate_stride + 1, np.nan, dtype)
    gate[::gate_stride] = integers(rng, channels, dtype)
    yield None
    yield one, None, None, 1, 0, 0, 0
    yield None, one, None, 1, 1, 0, 0
    yield None, None, gate, gate_stride, 0, 0, 0
    yield one, one[::-1].copy(), gate, gate_stride, 11, -3, 5


# Slab rows: image rows in any order, one beyond the padding and one that nothing reads.
ROWS = (3, "zero", 0, 1, "unused", 1)


def slab_rows(row_stride):
    marks = {"zero": _testing.ZERO_ROW, "unused": _testing.UNUSED_ROW}
    return [marks[r] if isinstance(r, str) else r * row_stride for r in ROWS]


def columns_of(image, column_axis, wanted):
    """Columns of an image by number, zero where there is none."""
    size = image.shape[column_axis]
    inside = np.array([0 <= w < size for w in wanted], bool)
    picked = np.take(image, np.clip(wanted, 0, size - 1).astype(int), axis=column_axis)
    axes = [-1 if i == column_axis % image.ndim else 1 for i in range(image.ndim)]
    return np.where(inside.reshape(axes), picked, 0), inside.reshape(axes)


@covers("fill_pixel_slab")
@pytest.mark.parametrize("order", ["dense", "gaps", "planar", "strided"])
def test_fill_pixel_slab(rng, isa, dtype, shape, order):
    lanes = shape["lanes"]
    sizes = ((6, 1), (6, 4), (6, 9), (6, 20), (2 * lanes + 3, 2 * lanes + 5))
    for channels, (size, columns), first in itertools.product(
        (1, 2, lanes - 1, lanes, 2 * lanes + 1), sizes, (-3, 0, 2)
    ):
        if channels < 1:
            continue
        # Strides of (row, column, channel), of an image of 4 rows.
        row, column, channel = {
            "dense": (size * channels, channels, 1),
            "gaps": (size * (channels + 3) + 1, channels + 3, 1),
            "planar": (size + 1, 1, 4 * (size + 1)),
            "strided": (2 * size + 1, 2, 4 * (2 * size + 1)),
        }[order]
        r, i, c = np.ogrid[:4, :size, :channels]
        index = r * row + i * column + c * channel
        source = np.full(index.max() + 1, np.nan, dtype)
        source[index] = integers(rng, index.size, dtype).reshape(index.shape)
        image = source[index]
        maps = (None, rng.integers(0, size, columns).tolist())
        for column_map, mapping in itertools.product(maps, mappings(rng, dtype, channels, 1)):
            wanted = np.arange(first, first + columns) if column_map is None else np.array(column_map)
            picked, inside = columns_of(image, 1, wanted)
            picked = np.where(inside, mapped(picked, mapping, 2), 0)
            expected = marked((len(ROWS), columns, channels), dtype)
            slab = np.append(expected.ravel(), marked(3, dtype))
            for to, row_name in zip(expected, ROWS, strict=True):
                if row_name != "unused":
                    to[:] = 0 if row_name == "zero" else picked[row_name]
            _testing.fill_pixel_slab(
                isa,
                slab=slab,
                source=source,
                channel_stride=channel,
                column_stride=column,
                channels=channels,
                row_offset=slab_rows(row),
                columns=columns,
                first=first,
                image_columns=size,
                column_map=column_map,
                map=mapping,
            )
            np.testing.assert_array_equal(slab[:-3].reshape(expected.shape), expected)
            assert (slab[-3:] == MARK).all()


@covers("fill_slab")
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("order", ["planar", "strided", "pixels"])
def test_fill_slab(rng, isa, dtype, shape, stride, order):
    lanes = shape["lanes"]
    for size, length, first in itertools.product(
        (1, 5, 2 * lanes, 5 * lanes + 3), (1, 2, lanes, 2 * lanes + 1), (-7, -1, 0, 3)
    ):
        channels = int(rng.choice([1, lanes - 1, lanes, 2 * lanes + 1])) if order == "pixels" else 2
        # Strides of (channel, row, column), of an image of 4 rows.
        channel, row, column = {
            "planar": (4 * (size + 1), size + 1, 1),
            "strided": (4 * (2 * size + 1), 2 * size + 1, 2),
            "pixels": (1, size * (channels + 2), channels + 2),
        }[order]
        c, r, i = np.ogrid[:channels, :4, :size]
        index = c * channel + r * row + i * column
        source = np.full(index.max() + 1, np.nan, dtype)
        source[index] = integers(rng, index.size, dtype).reshape(index.shape)
        image = source[index]
        phases = sorted({0, stride - 1})
        pitches = ((length + 1) * len(phases) * len(ROWS) + 2, (length + 1) * len(phases), length + 1)
        maps = (None, rng.integers(0, size, length * stride).tolist())
        for column_map, mapping in itertools.product(maps, mappings(rng, dtype, channels, 3)):
            expected = marked(channels * pitches[0], dtype)
            slab = expected.copy()
            for f, phase in enumerate(phases):
                wanted = np.arange(length) * stride + phase
                wanted = wanted + first if column_map is None else np.array(column_map)[wanted]
                picked, inside = columns_of(image, 2, wanted)
                picked = np.where(inside, mapped(picked, mapping, 0), 0)
                for (to_row, name), ch in itertools.product(enumerate(ROWS), range(channels)):
                    if name != "unused":
                        at = ch * pitches[0] + to_row * pitches[1] + f * pitches[2]
                        expected[at : at + length] = 0 if name == "zero" else picked[ch, name]
            _testing.fill_slab(
                isa,
                slab=slab,
                channel_pitch=pitches[0],
                row_pitch=pitches[1],
                phase_pitch=pitches[2],
                source=source,
                channel_stride=channel,
                column_stride=column,
                channels=channels,
                row_offset=slab_rows(row),
                phases=phases,
                phase_length=length,
                first=first,
                stride=stride,
                image_columns=size,
                column_map=column_map,
                map=mapping,
            )
            np.testing.assert_array_equal(slab, expected)


@pytest.mark.parametrize("kernel", ["slab", "slab_from_pixels", "pixel_slab", "pixel_slab_from_planes"])
def test_slabs_apply_every_activation(rng, isa, dtype, shape, kernel):
    """The same bits as activate_run."""
    size, channels = 2 * shape["lanes"] + 3, shape["lanes"] + 2
    x = rng.normal(0, 3, channels * size).astype(dtype)
    for kind in range(12):
        expected = x.copy()
        _testing.activate_run(isa, x=expected, n=x.size, kind=kind, a=-1, b=2)
        options = {"source": x, "channels": channels, "row_offset": [0], "first": 0, "image_columns": size}
        options |= {"slab": marked(x.size, dtype), "map": (None, None, None, 1, kind, -1, 2)}
        # x lies plane by plane or pixel by pixel.
        planes = kernel in ("slab", "pixel_slab_from_planes")
        options["channel_stride"], options["column_stride"] = (size, 1) if planes else (1, channels)
        if kernel.startswith("slab"):
            pitches = {"channel_pitch": size, "row_pitch": size, "phase_pitch": size}
            _testing.fill_slab(isa, **options, **pitches, phases=[0], phase_length=size, stride=1)
        else:
            _testing.fill_pixel_slab(isa, **options, columns=size)
        if "from" in kernel:
            expected = expected.reshape((channels, size) if planes else (size, channels)).T.ravel()
        np.testing.assert_array_equal(options["slab"], expected)


# ----------------------------------------------------------------------------------------------------------- blocks


def block_cases(rng, lanes):
    """(row offsets, column offsets, pitch): rows apart, rows that are neighbours, some of each."""
    for m, n in itertools.product((0, 1, 2, lanes - 1, lanes, 3 * lanes + 1), (1, 2, lanes, 2 * lanes + 1)):
        pitch = -(-n // lanes) * lanes
        columns = rng.permutation(n) * (2 * max(m, 1) + 9)
        yield (2 * np.arange(m)).tolist(), columns.tolist(), pitch
        yield (np.arange(m) + 1).tolist(), columns.tolist(), pitch + lanes
        yield (np.arange(m) + (np.arange(m) > lanes + 2) * 4).tolist(), columns.tolist(), pitch


@covers("gather_block", "scatter_block")
def test_blocks_move(rng, isa, dtype, shape):
    for rows, columns, pitch in block_cases(rng, shape["lanes"]):
        m, n = len(rows), len(columns)
        index = np.add.outer(np.array(rows, int), np.array(columns, int))
        tensor = integers(rng, int(index.max(initial=0)) + 5, dtype)
        options = {"pitch": pitch, "row_offset": rows, "column_offset": columns}

        expected = marked(m * pitch + 3, dtype)
        buffer = expected.copy()
        expected[: m * pitch].reshape(m, pitch)[:, :n] = tensor[index]
        _testing.gather_block(isa, tensor=tensor, buffer=buffer, **options)
        np.testing.assert_array_equal(buffer, expected)

        block = integers(rng, m * n, dtype).reshape(m, n)
        buffer = np.full(m * pitch, np.nan, dtype)
        buffer.reshape(m, pitch)[:, :n] = block
        for accumulate in (False, True):
            moved, expected = tensor.copy(), tensor.copy()
            expected[index] = block + tensor[index] if accumulate else block
            _testing.scatter_block(isa, tensor=moved, buffer=buffer, accumulate=accumulate, **options)
            np.testing.assert_array_equal(moved, expected)


# -------------------------------------------------------------------------------------------------- sums and copies


def lengths(lanes):
    return sorted({0, 1, 2, 3, lanes - 1, lanes, lanes + 1, 4 * lanes - 1, 4 * lanes, 9 * lanes + 1})


@covers("sum_run")
@pytest.mark.parametrize("step", [1, 2, 7])
def test_sum_run(rng, isa, dtype, shape, step):
    for n in lengths(shape["lanes"]):
        x = np.full(max(n - 1, 0) * step + 1, np.nan, dtype)
        x[: n * step : step] = integers(rng, n, dtype)
        assert _testing.sum_run(isa, x=x, n=n, step=step) == np.nansum(x)


@covers("sum_columns")
def test_sum_columns(rng, isa, dtype, shape):
    for columns, rows, gap in itertools.product(lengths(shape["lanes"]), LENGTHS, (0, 3)):
        x = integers(rng, rows * (columns + gap), dtype).reshape(rows, columns + gap)
        expected = marked(columns + 3, dtype)
        sums = expected.copy()
        expected[:columns] = x[:, :columns].sum(0)
        x[:, columns:] = np.nan
        _testing.sum_columns(isa, sum=sums, x=x, rows=rows, pitch=columns + gap, columns=columns)
        np.testing.assert_array_equal(sums, expected)


@covers("sum_rows", "fill_rows")
def test_sum_rows_and_fill_rows(rng, isa, dtype, shape):
    for n, rows, gap in itertools.product(lengths(shape["lanes"]), lengths(shape["lanes"]), (0, 3)):
        x = integers(rng, rows * (n + gap), dtype).reshape(rows, n + gap)
        expected = marked(rows + 3, dtype)
        sums = expected.copy()
        expected[:rows] = x[:, :n].sum(1)
        x[:, n:] = np.nan
        _testing.sum_rows(isa, sum=sums, x=x, rows=rows, pitch=n + gap, n=n)
        np.testing.assert_array_equal(sums, expected)
        y = marked(rows * (n + gap) + 3, dtype)
        filled = y.copy()
        filled[: rows * (n + gap)].reshape(rows, n + gap)[:, :n] = sums[:rows, None]
        _testing.fill_rows(isa, y=y, value=sums, rows=rows, pitch=n + gap, n=n)
        np.testing.assert_array_equal(y, filled)


def test_a_sum_of_a_row_does_not_depend_on_its_place(rng, isa, dtype, shape):
    x = rng.standard_normal((3 * shape["lanes"] + 1, 49)).astype(dtype)
    sums = np.empty(len(x), dtype)
    _testing.sum_rows(isa, sum=sums, x=x, rows=len(x), pitch=49, n=49)
    for r in range(len(x)):
        one = np.empty(1, dtype)
        _testing.sum_rows(isa, sum=one, x=x[r:], rows=1, pitch=49, n=49)
        assert one[0] == sums[r]


@covers("copy_run")
@pytest.mark.parametrize("streaming", [False, True])
def test_copy_run(rng, isa, dtype, shape, streaming):
    for n, offset in itertools.product(lengths(shape["lanes"]), (0, 1, 5)):
        source = integers(rng, n, dtype)
        expected = marked(n + offset + 3, dtype)
        target = expected.copy()
        expected[offset : offset + n] = source
        _testing.copy_run(isa, dst=target, src=source, offset=offset, n=n, streaming=streaming)
        np.testing.assert_array_equal(target, expected)


@covers("fma_loop")
def test_fma_loop_counts_its_flops(isa, dtype, shape):
    for rounds in (0, 1, 1000):
        flops = _testing.fma_loop(isa, dtype=np.dtype(dtype).name, rounds=rounds)
        assert flops == 2 * 12 * shape["lanes"] * rounds


# ------------------------------------------------------------------------------------------------------ activations


def _sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def _normal_distribution(x):
    """erfc(-x / sqrt 2) / 2: math.erfc of the rounded argument, and its derivative times what the rounding left out."""
    z = -x / np.sqrt(np.longdouble(2))
    rounded = z.astype(np.float64)
    rest = np.where(np.isfinite(x), z - rounded, 0)
    slope = -2 / np.sqrt(np.longdouble(math.pi)) * np.exp(-(rounded.astype(np.longdouble) ** 2))
    return (np.array([math.erfc(v) for v in rounded.tolist()], np.longdouble) + slope * rest) / 2


def _gelu_tanh_argument(x):
    return 2 * np.sqrt(2 / np.longdouble(math.pi)) * (x + np.longdouble("0.044715") * x**3)


SLOPE, LOWER, UPPER = 0.01, -1.25, 2.5

# The number of a kind (ActivationKind) by its name, the function in extended precision, and the bound that the test
# holds it to, in units of eps * |y|, where y is not denormal. About 1.3 times the worst that a dense grid has shown:
# hardswish 1.2, hardsigmoid 0.8, silu 2.1, sigmoid 1.5, tanh 2.0, gelu 3.5 (the polynomial of erfc alone is 1). The
# argument of gelu_tanh's sigmoid carries up to six roundings, and there the relative slope of sigmoid is its argument.
ACTIVATIONS = {
    "none": (0, lambda x: x, 0),
    "relu": (1, lambda x: np.maximum(x, 0), 0),
    "relu6": (2, lambda x: np.clip(x, 0, 6), 0),
    "leaky_relu": (3, lambda x: np.where(x < 0, x * np.longdouble(SLOPE), x), 0.75),
    "silu": (4, lambda x: x * _sigmoid(x), 2.75),
    "hardswish": (5, lambda x: x * np.clip(x + 3, 0, 6) / 6, 1.6),
    "sigmoid": (6, _sigmoid, 2),
    "hardsigmoid": (7, lambda x: np.clip(x + 3, 0, 6) / 6, 1),
    "tanh": (8, np.tanh, 2.6),
    "gelu": (9, lambda x: x * _normal_distribution(x), 4),
    "gelu_tanh": (10, lambda x: x * _sigmoid(_gelu_tanh_argument(x)), lambda x: 4 + 3 * np.abs(_gelu_tanh_argument(x))),
    "clip": (11, lambda x: np.clip(x, LOWER, UPPER), 0),
}


def parameters(name, dtype):
    return {"leaky_relu": {"a": SLOPE}, "clip": {"a": LOWER, "b": UPPER}}.get(name, {})


def test_activations_are_all_here(isa, dtype):
    assert [kind for kind, _, _ in ACTIVATIONS.values()] == list(range(12))
    names = {a if isinstance(a, str) else a[0] for a in testing.ACTIVATIONS if a is not None}
    assert names <= set(ACTIVATIONS)


def grid(dtype):
    """Dense where a function bends, then every magnitude from the denormals to the largest numbers, of both signs."""
    info = np.finfo(dtype)
    reach = 110 if dtype is np.float32 else 760  # exp is 0 beyond
    some = [np.linspace(0, r, 15001) for r in (0.5, 4, 20, reach)]
    some += [np.geomspace(float(info.smallest_subnormal), 1, 6001), np.geomspace(1, float(info.max) / 2, 6001)]
    x = np.concatenate(some).astype(dtype)
    return np.concatenate([x, -x])


@covers("activate_run")
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_accurate(isa, dtype, name):
    kind, function, bound = ACTIVATIONS[name]
    x = grid(dtype)
    y = x.copy()
    _testing.activate_run(isa, x=y, n=y.size, kind=kind, **parameters(name, dtype))
    exact = x.astype(np.longdouble)
    info = np.finfo(dtype)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        expected = function(exact)
        if callable(bound):
            bound = bound(exact)
    if name == "leaky_relu":  # the slope is a number of the dtype
        expected = np.where(x < 0, exact * np.longdouble(dtype(SLOPE)), exact)
    assert np.isfinite(y).all()
    # A factor that is a denormal has been rounded to a multiple of the smallest one; x multiplies that.
    denormal = np.longdouble(info.smallest_subnormal) * (1 + np.minimum(np.abs(exact), 1000))
    # Where gelu_tanh's bound has grown beyond use the function is 0 or x.
    relative = np.minimum(bound * np.longdouble(info.eps), 1)
    with np.errstate(under="ignore"):
        error = np.abs(y - expected)
        excess = error - relative * np.abs(expected) - denormal
    worst = np.argmax(excess)
    assert excess[worst] <= 0, f"{name}({x[worst]!r}) = {y[worst]!r}, not {expected[worst]!r}"


INF, NAN = np.inf, np.nan
# The values at -inf and inf are PyTorch's: a product of -inf and 0 is NaN.
LIMITS = {
    "none": (-INF, INF),
    "relu": (0, INF),
    "relu6": (0, 6),
    "leaky_relu": (-INF, INF),
    "silu": (NAN, INF),
    "hardswish": (NAN, INF),
    "sigmoid": (0, 1),
    "hardsigmoid": (0, 1),
    "tanh": (-1, 1),
    "gelu": (NAN, INF),
    "gelu_tanh": (NAN, INF),
    "clip": (LOWER, UPPER),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_of_special_values(isa, dtype, name, shape):
    kind, function, _ = ACTIVATIONS[name]
    most = np.finfo(dtype).max
    special = np.array([-INF, INF, NAN, 0.0, -0.0, -most, most], dtype)
    at_zero = float(function(np.zeros(1, np.longdouble))[0])
    far = {NAN: 0, -INF: -most}  # the limits that no finite argument reaches
    low, high = LIMITS[name]
    at_most = most if high == INF else high
    at_least = low if np.isfinite(low) else 0 if np.isnan(low) else far[low]
    if name == "leaky_relu":
        at_least = -most * dtype(SLOPE)
    expected = np.array([low, high, NAN, at_zero, at_zero, at_least, at_most], dtype)
    # In every lane, next to ordinary values.
    for before in range(shape["lanes"] + 1):
        x = np.concatenate([np.ones(before, dtype), special, np.ones(shape["lanes"], dtype)])
        _testing.activate_run(isa, x=x, n=x.size, kind=kind, **parameters(name, dtype))
        np.testing.assert_array_equal(x[before : before + special.size], expected)


def test_activate_run_of_every_length(rng, isa, dtype, shape):
    for n, (kind, _, _) in itertools.product(lengths(shape["lanes"]), ACTIVATIONS.values()):
        x = rng.normal(size=n + 3).astype(dtype)
        expected = x.copy()
        for i in range(n):
            one = x[i : i + 1].copy()
            _testing.activate_run(isa, x=one, n=1, kind=kind, a=-0.5, b=0.5)
            expected[i] = one[0]
        _testing.activate_run(isa, x=x, n=n, kind=kind, a=-0.5, b=0.5)
        np.testing.assert_array_equal(x, expected)


# ---------------------------------------------------------------------------------------------------------- pooling


def pool_runs(rng, dtype, taps, rows, n, *, values=integers):
    """(array, starts, pitch, runs): `taps` scattered sources of `rows` runs of n elements; what is between is NaN."""
    pitch = n + 3
    starts, size = scattered(rng, taps, rows * pitch)
    x = np.full(size, np.nan, dtype)
    runs = np.array([values(rng, rows * n, dtype).reshape(rows, n) for _ in range(taps)])
    for start, run in zip(starts, runs, strict=True):
        for i in range(rows):
            x[start + i * pitch :][:n] = run[i]
    return x, starts, pitch, runs


def pool_target(block, pitch, dtype, before=None):
    """The target that is expected to hold a block (rows, n), and what it held before."""
    rows, n = block.shape
    want = marked(rows * pitch, dtype)
    start = want.copy()
    for i in range(rows):
        want[i * pitch :][:n] = block[i]
        if before is not None:
            start[i * pitch :][:n] = before[i]
    return start, want


def pool_lengths(lanes):
    return (*range(1, lanes + 2), 3 * lanes + 1, 4 * lanes, 5 * lanes - 1, 9 * lanes + 2)


@covers("pool_combine")
def test_pool_combine(rng, isa, dtype, shape):
    for n, taps in itertools.product(pool_lengths(shape["lanes"]), (1, 2, 3, 4, 5, 6, 9, 11)):
        x, starts, pitch, runs = pool_runs(rng, dtype, taps, 3, n)
        before = integers(rng, 3 * n, dtype).reshape(3, n)
        squares = (runs.astype(np.float64) ** 2).sum(0)
        columns = rng.integers(1, 9, n).astype(dtype)
        for op, options, want in (
            (0, {}, runs.max(0)),
            (1, {}, runs.sum(0)),
            (2, {}, squares),
            (0, {"accumulate": True}, np.maximum(before, runs.max(0))),
            (1, {"accumulate": True}, before + runs.sum(0)),
            (1, {"finish": 1, "divisor": 8}, runs.sum(0) / dtype(8)),
            (1, {"finish": 1, "divisor": 9}, runs.sum(0) / dtype(9)),
            (1, {"finish": 1, "divisors": columns}, runs.sum(0) / columns),
            (2, {"finish": 2, "divisor": 4}, np.sqrt((4 * squares).astype(dtype))),
        ):
            dst, expected = pool_target(want, n + 2, dtype, before)
            _testing.pool_combine(
                isa, x=x, starts=starts, dst=dst, n=n, rows=3, src_pitch=pitch, dst_pitch=n + 2, op=op, **options
            )
            np.testing.assert_array_equal(dst, expected, err_msg=f"{n} {taps} {op} {options}")
    dst, expected = pool_target(np.zeros((2, 5)), 7, dtype)
    none = np.zeros(1, dtype)
    _testing.pool_combine(isa, x=none, starts=[], dst=dst, n=5, rows=2, src_pitch=0, dst_pitch=7, op=1)
    np.testing.assert_array_equal(dst, expected)


def test_pool_combine_of_nan(rng, isa, dtype, shape):
    for n, taps in itertools.product(pool_lengths(shape["lanes"]), (1, 2, 3, 4, 5, 9)):
        for _ in range(4):
            x, starts, pitch, runs = pool_runs(rng, dtype, taps, 2, n)
            tap, row, at = rng.integers(taps), rng.integers(2), rng.integers(n)
            runs[tap, row, at] = x[starts[tap] + row * pitch + at] = np.nan
            dst, expected = pool_target(runs.max(0), n, dtype)
            _testing.pool_combine(isa, x=x, starts=starts, dst=dst, n=n, rows=2, src_pitch=pitch, dst_pitch=n, op=0)
            np.testing.assert_array_equal(dst, expected)
            assert np.isnan(_testing.max_run(isa, x=np.ascontiguousarray(runs[tap, row]), n=n))


@covers("pool_slide")
def test_pool_slide(rng, isa, dtype, shape):
    lanes = shape["lanes"]
    for n, (stride, step), taps in itertools.product(
        (1, 2, lanes - 1, lanes, lanes + 1, 3 * lanes + 1),
        ((1, 1), (2, 1), (2, 2), (2, 3), (3, 1), (4, 2)),
        range(1, 7),
    ):
        pitch = (n + lanes) * stride + taps * step + 2 * lanes
        x = integers(rng, 2 * pitch, dtype)
        at = np.arange(n)[:, None] * stride + np.arange(taps) * step
        windows = x.reshape(2, pitch)[:, at]
        if rng.random() < 0.3:
            row, place = rng.integers(2), rng.integers(n)
            x[row * pitch + at[place, rng.integers(taps)]] = np.nan
            windows = x.reshape(2, pitch)[:, at]
        columns = rng.integers(1, 9, n).astype(dtype)
        for op, options, want in (
            (0, {}, windows.max(2)),
            (1, {}, windows.sum(2)),
            (1, {"finish": 1, "divisor": 3}, windows.sum(2) / dtype(3)),
            (1, {"finish": 1, "divisors": columns}, windows.sum(2) / columns),
        ):
            dst, expected = pool_target(want, n + 1, dtype)
            _testing.pool_slide(
                isa, x=x, dst=dst, n=n, rows=2, src_pitch=pitch, dst_pitch=n + 1, taps=taps, stride=stride, step=step,
                op=op, **options
            )  # fmt: skip
            np.testing.assert_array_equal(dst, expected, err_msg=f"{n} {stride} {step} {taps} {op}")


@covers("pool_argmax")
def test_pool_argmax(rng, isa, dtype, shape):
    for n, taps in itertools.product(pool_lengths(shape["lanes"]), (1, 2, 3, 9)):
        for share in (0, 0.05, 0.6):
            x, starts, pitch, runs = pool_runs(rng, dtype, taps, 2, n)
            spoiled = rng.random(runs.shape) < share
            runs[spoiled] = rng.choice([np.nan, np.inf, -np.inf], int(spoiled.sum()))
            for start, run in zip(starts, runs, strict=True):
                for i in range(2):
                    x[start + i * pitch :][:n] = run[i]
            codes = rng.permutation(50)[:taps].astype(dtype)
            dst, expected = pool_target(codes[np.argmax(runs, 0)], n, dtype)
            _testing.pool_argmax(
                isa, x=x, starts=starts, dst=dst, n=n, rows=2, src_pitch=pitch, dst_pitch=n, codes=codes.tolist()
            )
            np.testing.assert_array_equal(dst, expected)


@covers("pool_route")
def test_pool_route(rng, isa, dtype, shape):
    for n, taps in itertools.product(pool_lengths(shape["lanes"]), (0, 1, 2, 4, 9)):
        x, starts, pitch, runs = pool_runs(rng, dtype, max(taps, 1), 2, n)
        marks, marks_starts, marks_pitch, names = pool_runs(
            rng, dtype, max(taps, 1), 2, n, values=lambda r, size, d: r.integers(0, 3, size).astype(d)
        )
        codes = rng.integers(0, 3, taps).astype(dtype)
        hit = names[:taps] == codes[:, None, None]
        dst, expected = pool_target(np.where(hit, runs[:taps], 0).sum(0), n, dtype)
        _testing.pool_route(
            isa, x=x, starts=starts[:taps], marks=marks, marks_starts=marks_starts[:taps], dst=dst, n=n, rows=2,
            src_pitch=pitch, marks_pitch=marks_pitch, dst_pitch=n, codes=codes.tolist()
        )  # fmt: skip
        np.testing.assert_array_equal(dst, expected)


@covers("pool_split", "pool_merge")
def test_pool_split_and_merge(rng, isa, dtype, shape):
    for n, stride in itertools.product((*pool_lengths(shape["lanes"]), 6 * shape["lanes"] + 1), (1, 2, 3, 5)):
        x, room = integers(rng, 3 * n, dtype), -(-n // stride) + 2
        split = marked(3 * stride * room, dtype)
        expected = split.copy().reshape(3, stride, room)
        for f in range(min(stride, n)):
            expected[:, f, : len(range(f, n, stride))] = x.reshape(3, n)[:, f::stride]
        _testing.pool_split(
            isa, x=x, dst=split, n=n, rows=3, src_pitch=n, dst_pitch=stride * room, phase_pitch=room, stride=stride
        )
        np.testing.assert_array_equal(split, expected.reshape(-1))
        padded = np.concatenate([split, np.full(2 * shape["lanes"], np.nan, dtype)])
        merged, want = pool_target(x.reshape(3, n), n + 1, dtype)
        _testing.pool_merge(
            isa, x=padded, dst=merged, n=n, rows=3, src_pitch=stride * room, dst_pitch=n + 1, phase_pitch=room,
            stride=stride
        )  # fmt: skip
        np.testing.assert_array_equal(merged, want)


def planes_windows(x, *, taps, stride, first_row, first_column, out_rows, out_columns, outside):
    """The windows of planes (C, H, W) as (C, P, Q, taps * taps), `outside` where they leave the image."""
    channels, rows, columns = x.shape
    room = taps + stride
    padded = np.full((channels, rows + 2 * room + 4, columns + 2 * room + 4), outside, x.dtype)
    padded[:, room : room + rows, room : room + columns] = x
    r = room + first_row + stride * np.arange(out_rows)[:, None] + np.arange(taps)
    c = room + first_column + stride * np.arange(out_columns)[:, None] + np.arange(taps)
    return padded[:, r[:, None, :, None], c[None, :, None, :]].reshape(channels, out_rows, out_columns, -1)


@covers("pool_planes")
@pytest.mark.parametrize(("taps", "stride"), [(2, 2), (3, 1), (3, 2)])
def test_pool_planes(rng, isa, dtype, shape, taps, stride):
    lanes = shape["lanes"]
    lengths = (*range(1, 2 * lanes + 2), 3 * lanes + 1, 5 * lanes - 1)
    for out_columns, (first_row, first_column) in itertools.product(
        lengths, ((0, 0), (-1, -1), (0, -1), (1 - taps, 0))
    ):
        out_rows = int(rng.integers(1, 8))
        # The last window begins inside the image; anything from there on may be missing.
        begin = (out_rows - 1) * stride + first_row, (out_columns - 1) * stride + first_column
        rows, columns = (max(1, b + int(rng.integers(1, taps + 2))) for b in begin)
        geometry = {
            "first_row": first_row, "first_column": first_column, "out_rows": out_rows, "out_columns": out_columns,
            "taps": taps, "stride": stride,
        }  # fmt: skip
        x = integers(rng, 2 * rows * columns, dtype).reshape(2, rows, columns)
        nan = x.copy()
        nan[rng.integers(2), rng.integers(rows), rng.integers(columns)] = np.nan
        counts = [rng.integers(1, 4, n).astype(dtype) for n in (out_rows, out_columns)]
        sums = planes_windows(x, outside=0, **geometry).sum(3)
        for source, options, want in (
            (x, {"op": 0}, planes_windows(x, outside=-np.inf, **geometry).max(3)),
            (nan, {"op": 0}, planes_windows(nan, outside=-np.inf, **geometry).max(3)),
            (x, {"op": 1}, sums),
            (x, {"op": 1, "finish": 1, "divisor": 9}, sums / dtype(9)),
            (
                x,
                {"op": 1, "finish": 1, "row_counts": counts[0], "column_counts": counts[1]},
                sums / (counts[0][:, None] * counts[1]),
            ),
        ):
            dst = marked(want.size + 1, dtype)
            expected = np.append(want.reshape(-1), dst[-1])
            _testing.pool_planes(
                isa, x=source.reshape(-1), dst=dst, channels=2, rows=rows, columns=columns, **geometry, **options
            )
            np.testing.assert_array_equal(dst, expected, err_msg=f"{geometry} {rows} {columns} {options}")


@covers("pool_pixels")
@pytest.mark.parametrize(("taps", "stride"), [(2, 2), (3, 1), (3, 2)])
def test_pool_pixels(rng, isa, dtype, shape, taps, stride):
    lanes = shape["lanes"]
    counts_of_channels = (*range(1, 2 * lanes + 2), 4 * lanes, 5 * lanes + 1, 9 * lanes - 1)
    for channels, (first_row, first_column) in itertools.product(
        counts_of_channels, ((0, 0), (-1, -1), (0, -1), (1 - taps, 0))
    ):
        out_rows, out_columns = (int(v) for v in rng.integers(1, 8, 2))
        begin = (out_rows - 1) * stride + first_row, (out_columns - 1) * stride + first_column
        rows, columns = (max(1, b + int(rng.integers(1, taps + 2))) for b in begin)
        geometry = {
            "first_row": first_row, "first_column": first_column, "out_rows": out_rows, "out_columns": out_columns,
            "taps": taps, "stride": stride,
        }  # fmt: skip
        x = integers(rng, channels * rows * columns, dtype).reshape(channels, rows, columns)
        nan, infinite = x.copy(), x.copy()
        nan[rng.integers(channels), rng.integers(rows), rng.integers(columns)] = np.nan
        infinite[rng.integers(channels), rng.integers(rows), rng.integers(columns)] = np.inf
        counts = [rng.integers(1, 4, n).astype(dtype) for n in (out_rows, out_columns)]
        sums = planes_windows(x, outside=0, **geometry).sum(3)
        for source, options, want in (
            (x, {"op": 0}, planes_windows(x, outside=-np.inf, **geometry).max(3)),
            (nan, {"op": 0}, planes_windows(nan, outside=-np.inf, **geometry).max(3)),
            (x, {"op": 1}, sums),
            (x, {"op": 1, "finish": 1, "divisor": 4}, sums / dtype(4)),
            (x, {"op": 1, "finish": 1, "divisor": 9}, sums / dtype(9)),
            (
                infinite,
                {"op": 1, "finish": 1, "divisor": 9},
                planes_windows(infinite, outside=0, **geometry).sum(3) / dtype(9),
            ),
            (nan, {"op": 1, "finish": 1, "divisor": 3}, planes_windows(nan, outside=0, **geometry).sum(3) / dtype(3)),
            (
                x,
                {"op": 1, "finish": 1, "row_counts": counts[0], "column_counts": counts[1]},
                sums / (counts[0][:, None] * counts[1]),
            ),
        ):
            dst = marked(want.size + 1, dtype)
            expected = np.append(np.moveaxis(want, 0, -1).reshape(-1), dst[-1])
            _testing.pool_pixels(
                isa, x=np.moveaxis(source, 0, -1).reshape(-1), dst=dst, channels=channels, rows=rows, columns=columns,
                **geometry, **options
            )  # fmt: skip
            np.testing.assert_array_equal(dst, expected, err_msg=f"{geometry} {rows} {columns} {options}")


@covers("turn_block")
def test_turn_block(rng, isa, dtype, shape):
    lanes = shape["lanes"]
    sizes = (1, 2, 3, lanes - 1, lanes, lanes + 1, 2 * lanes, 3 * lanes + 2)
    for rows, n, gap in itertools.product(filter(None, sizes), filter(None, sizes), (0, 3)):
        src_pitch, dst_pitch = n + int(rng.integers(0, 5)), rows + gap
        x = integers(rng, (rows - 1) * src_pitch + n, dtype)
        dst = marked(n * dst_pitch + lanes, dtype)  # what lies beyond is not written
        want = dst.copy()
        for i, j in np.ndindex(rows, n):
            want[j * dst_pitch + i] = x[i * src_pitch + j]
        _testing.turn_block(isa, x=x, to=dst, rows=rows, n=n, from_pitch=src_pitch, to_pitch=dst_pitch)
        np.testing.assert_array_equal(dst, want, err_msg=f"{rows} {n}")


def backward_cases(rng, dtype, taps, stride, sizes):
    """(x, dy, dx, geometry) of maxima of planes (C, H, W), for some (channels, columns)."""
    for (channels, columns), nans in itertools.product(sizes, (0, 3)):
        rows = int(rng.choice([1, 2, 3, 4, 5, 40]))
        first = -rng.integers(0, taps, 2) if taps == 3 else np.zeros(2, int)
        most = (np.array([rows, columns]) - 1 - first) // stride + 1  # windows that begin inside
        out_rows, out_columns = (int(max(1, m - rng.integers(0, 3))) for m in most)
        x = rng.integers(-2, 3, (channels, rows, columns)).astype(dtype)  # many are equal
        if rng.random() < 0.3:
            x[rng.random(x.shape) < 0.7] = -np.inf
        x.reshape(-1)[rng.integers(x.size, size=nans)] = np.nan
        dy = integers(rng, channels * out_rows * out_columns, dtype).reshape(channels, out_rows, out_columns)
        want = np.zeros((channels, rows, columns), dtype)
        for c, p, q in np.ndindex(dy.shape):
            h, w = max(0, p * stride + first[0]), max(0, q * stride + first[1])
            window = x[c, h : p * stride + first[0] + taps, w : q * stride + first[1] + taps]
            i, j = np.unravel_index(np.argmax(window), window.shape)  # the first one; the first NaN
            want[c, h + i, w + j] += dy[c, p, q]
        geometry = {
            "channels": channels, "rows": rows, "columns": columns, "first_row": int(first[0]),
            "first_column": int(first[1]), "out_rows": out_rows, "out_columns": out_columns, "taps": taps,
            "stride": stride,
        }  # fmt: skip
        yield x, dy, want, geometry


@covers("pool_planes_backward")
@pytest.mark.parametrize(("taps", "stride"), [(2, 2), (3, 1), (3, 2)])
def test_pool_planes_backward(rng, isa, dtype, shape, taps, stride):
    lanes = shape["lanes"]
    sizes = [(2, columns) for columns in (*range(1, 4 * lanes + 3), 6 * lanes + 1)]
    for x, dy, want, geometry in backward_cases(rng, dtype, taps, stride, sizes):
        dst = marked(want.size + 1, dtype)
        expected = np.append(want.reshape(-1), dst[-1])
        _testing.pool_planes_backward(isa, x=x.reshape(-1), dy=dy.reshape(-1), dst=dst, **geometry)
        np.testing.assert_array_equal(dst, expected, err_msg=f"{geometry}")
        if taps == 2:
            mean = np.zeros_like(want)
            spread = np.repeat(np.repeat(dy / dtype(3), 2, axis=1), 2, axis=2)[:, : mean.shape[1], : mean.shape[2]]
            mean[:, : spread.shape[1], : spread.shape[2]] = spread
            _testing.pool_planes_backward(isa, x=x.reshape(-1), dy=dy.reshape(-1), dst=dst, **geometry, op=1, divisor=3)
            np.testing.assert_array_equal(dst, np.append(mean.reshape(-1), dst[-1]), err_msg=f"{geometry}")


@covers("pool_pixels_backward")
@pytest.mark.parametrize(("taps", "stride"), [(2, 2), (3, 1), (3, 2)])
def test_pool_pixels_backward(rng, isa, dtype, shape, taps, stride):
    lanes = shape["lanes"]
    sizes = [(c, int(rng.integers(1, 9))) for c in (*range(1, 2 * lanes + 2), 4 * lanes)]
    sizes += [(lanes + 1, columns) for columns in (1, 2, 3, 17, 40)]
    for x, dy, want, geometry in backward_cases(rng, dtype, taps, stride, sizes):
        dst = marked(want.size + 1, dtype)
        expected = np.append(np.moveaxis(want, 0, -1).reshape(-1), dst[-1])
        x, dy = (np.ascontiguousarray(np.moveaxis(a, 0, -1)).reshape(-1) for a in (x, dy))
        _testing.pool_pixels_backward(isa, x=x, dy=dy, dst=dst, **geometry)
        np.testing.assert_array_equal(dst, expected, err_msg=f"{geometry}")


@covers("pool_integers")
def test_pool_integers(rng, isa, dtype):
    # The dtype of the fixture does not matter here: the row is in both tables.
    for kind in (np.int8, np.uint8, np.int16, np.int32, np.int64):
        info = np.iinfo(kind)

        def draw(rng, size, d, info=info):
            return rng.integers(info.min, info.max, size, d, endpoint=True)

        for n, taps in itertools.product((1, 3, 15, 16, 31, 33, 64, 65, 257, 300), (1, 2, 3, 9)):
            pitch = n + 3
            x = draw(rng, taps * 2 * pitch, kind)
            starts = [k * 2 * pitch for k in range(taps)]
            runs = x.reshape(taps, 2, pitch)[:, :, :n]
            dst = np.zeros(2 * n, kind)
            _testing.pool_integers(isa, x=x, starts=starts, dst=dst, n=n, rows=2, src_pitch=pitch, dst_pitch=n)
            np.testing.assert_array_equal(dst.reshape(2, n), runs.max(0))
            wide = draw(rng, 3 * n + 2 * taps, kind)
            dst = np.zeros(n, kind)
            _testing.pool_integers(
                isa, x=wide, starts=[0], dst=dst, n=n, rows=1, src_pitch=0, dst_pitch=0, taps=taps, stride=3, step=2
            )
            np.testing.assert_array_equal(dst, wide[np.arange(n)[:, None] * 3 + np.arange(taps) * 2].max(1))


@covers("max_run")
def test_max_run_of_every_length(rng, isa, dtype, shape):
    for n in (*range(1, 5 * shape["lanes"] + 2), 301):
        x = np.append(rng.standard_normal(n), 99).astype(dtype)
        assert _testing.max_run(isa, x=x, n=n) == x[:n].max()
        assert _testing.max_run(isa, x=np.full(n, -np.inf, dtype), n=n) == -np.inf


# ------------------------------------------------------------------------------------------- norms and elementwise


def blocks(shape, heights=(1, 3, 4, 9)):
    """(rows, columns, pitch) of blocks with every tail."""
    lanes = shape["lanes"]
    widths = sorted({1, 2, lanes - 1, lanes, lanes + 1, 2 * lanes + 3, 4 * lanes, 6 * lanes - 1})
    return itertools.product(heights, widths, (0, 3))


def block_of(values, pitch, background=np.nan):
    """The rows of a block `pitch` apart, in an array that ends with the last one; between them `background`."""
    rows, columns = values.shape
    wide = np.full((rows, pitch), background, values.dtype)
    wide[:, :columns] = values
    return wide.ravel()[: (rows - 1) * pitch + columns].copy()


def ints(rng, shape, dtype, high=4):
    return rng.integers(-high, high + 1, shape).astype(dtype)


def moments(sums, count):
    """Mean and sum of squares about it, from sums about a shift."""
    shift, total, square = sums
    return shift + total / count, square - total**2 / count


@covers("norm_stats")
@pytest.mark.parametrize("mean", [0, 1.5, 1000])
@pytest.mark.parametrize("by_column", [False, True])
def test_norm_stats(rng, isa, dtype, shape, by_column, mean):
    """Sums about a shift near enough to the mean: as moments they have the digits of sums about the mean itself."""
    eps = np.finfo(dtype).eps
    for rows, columns, gap in blocks(shape):
        # More blocks than lanes, which are joined together.
        count = 1 if by_column else 2 * shape["lanes"] + 1 if rows == 1 else 3
        x = (mean + rng.standard_normal((count * rows, columns))).astype(dtype)
        sums = [marked(columns + 2 if by_column else count + 2, dtype) for _ in range(3)]
        _testing.norm_stats(
            isa,
            x=block_of(x, columns + gap),
            rows=rows,
            columns=columns,
            pitch=columns + gap,
            by_column=by_column,
            count=count,
            step=rows * (columns + gap),
            shift=sums[0],
            sum=sums[1],
            square=sums[2],
        )
        size = columns if by_column else count
        for s in sums:
            np.testing.assert_array_equal(s[size:], MARK)
        wide = np.float64 if dtype == np.float32 else np.longdouble
        exact = x.astype(wide).reshape(count, rows, columns)
        exact = exact[0].T if by_column else exact.reshape(count, -1)
        n = exact.shape[1]
        found, deviation = moments([s[:size].astype(wide) for s in sums], n)
        want = exact.var(1) * n
        # A shift may be 1.7 deviations off, so that there are four times the terms at most; a rounded mean that is the
        # shift is off by eps * mean.
        spread = np.sqrt(want / n) + np.abs(exact - exact.mean(1, keepdims=True)).max(1)
        slack = (n + 2) * eps * (2 * spread + eps * mean)
        assert np.all(np.abs(found - exact.mean(1)) <= slack)
        assert np.all(np.abs(deviation - want) <= 4 * (n + 4) * eps * (want + n * (eps * mean) ** 2))


@pytest.mark.parametrize("by_column", [False, True])
def test_norm_stats_of_one_block_leave_the_others_alone(rng, isa, dtype, shape, by_column):
    """A block far from 0, which is summed twice, costs its neighbours no bit."""
    lanes = shape["lanes"]
    n, length = lanes + 3, 2 * lanes + 1
    x = rng.standard_normal((n, length)).astype(dtype)
    results = []
    for far in (None, 0, lanes - 1, n - 1):
        changed = x.copy()
        if far is not None:
            changed[far] += 100
        rows, columns = (length, n) if by_column else (1, length)
        sums = [np.empty(n, dtype) for _ in range(3)]
        _testing.norm_stats(
            isa,
            x=np.ascontiguousarray(changed.T if by_column else changed).ravel(),
            rows=rows,
            columns=columns,
            pitch=columns,
            by_column=by_column,
            count=1 if by_column else n,
            step=length,
            shift=sums[0],
            sum=sums[1],
            square=sums[2],
        )
        results.append(np.array(sums))
        if far is not None:
            assert abs(sums[0][far] - 100) < 2
            others = np.arange(n) != far
            np.testing.assert_array_equal(results[-1][:, others], results[0][:, others])


def test_norm_stats_about_zero_where_the_mean_is_infinite(isa, dtype, shape):
    for columns in (1, shape["lanes"] + 1):
        x = np.ones((3, columns), dtype)
        x[1, 0] = np.inf
        for by_column in (False, True):
            shift, total, square = (marked(columns, dtype) for _ in range(3))
            _testing.norm_stats(
                isa,
                x=x,
                rows=3,
                columns=columns,
                pitch=columns,
                by_column=by_column,
                shift=shift,
                sum=total,
                square=square,
            )
            assert (shift[0], total[0], square[0]) == (0, np.inf, np.inf)


@covers("norm_apply")
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("by_column", [False, True])
def test_norm_apply(rng, isa, dtype, shape, by_column, streaming):
    for (rows, columns, gap), params, kind in itertools.product(blocks(shape), (False, True), (0, 1, 2, 11, 4)):
        pitch, offset = columns + gap, int(rng.integers(0, 4))
        x, residual = ints(rng, (2, rows, columns), dtype)
        mean, scale, shift = ints(rng, (3, columns if by_column else rows), dtype)
        weight, bias = ints(rng, (2, rows if by_column else columns), dtype)
        own, other = ((None, slice(None)), (slice(None), None))[:: 1 if by_column else -1]
        expected = (x - mean[own]) * scale[own] + shift[own]
        options = {}
        if params:
            expected = expected * weight[other] + bias[other] + residual
            options = {"weight": weight, "bias": bias, "residual": block_of(residual, pitch)}
        flat = np.ascontiguousarray(expected).ravel()
        _testing.activate_run(isa, x=flat, n=flat.size, kind=kind, a=-1, b=2)
        y = marked(offset + rows * pitch + 3, dtype)
        expected_y = y.copy()
        expected_y[offset : offset + (rows - 1) * pitch + columns] = block_of(flat.reshape(rows, columns), pitch, MARK)
        _testing.norm_apply(
            isa,
            y=y,
            offset=offset,
            x=block_of(x, pitch),
            pitch=pitch,
            rows=rows,
            columns=columns,
            by_column=by_column,
            mean=mean,
            scale=scale,
            shift=shift,
            activation=kind,
            a=-1,
            b=2,
            streaming=streaming,
            **options,
        )
        np.testing.assert_array_equal(y, expected_y)


def let_through(dy, y, lower, upper):
    return np.where((y <= lower) | (y >= upper), 0, dy)


@covers("norm_finish")
def test_norm_finish(rng, isa, dtype, shape):
    """Mean, deviation and a gradient's coefficients from sums about a shift, against float64 (float64: longdouble)."""
    eps = np.finfo(dtype).eps
    wide = np.float64 if dtype == np.float32 else np.longdouble
    for n, count, gradient in itertools.product((1, 5, 2 * shape["lanes"] + 3), (1, 7, 4096), (False, True)):
        shift, total, g, gt = rng.standard_normal((4, n)).astype(dtype) * dtype(count)
        shift *= dtype(100 / count)
        square = (total**2 / count + count * rng.uniform(0.5, 2, n)).astype(dtype)
        options = {"c": g.copy(), "b": gt.copy(), "low": marked(n, dtype)} if gradient else {}
        mean, scale, offset = shift.copy(), total.copy(), square.copy()
        _testing.norm_finish(isa, n=n, count=count, eps=1e-5, mean=mean, scale=scale, offset=offset, **options)
        e = total.astype(wide) / count
        exact = shift + e
        np.testing.assert_allclose(mean.astype(wide), exact, rtol=float(2 * eps), atol=float(eps))
        inv = 1 / np.sqrt((square.astype(wide) - total.astype(wide) * e) / count + wide(dtype(1e-5)))
        # The variance loses what the square exceeds it by.
        lost = 1 + square / (square - total.astype(wide) ** 2 / count)
        assert np.all(np.abs(scale - inv) <= 2 * eps * lost * inv)
        # What rounding took from the mean comes back to a few parts of it.
        low = exact - mean
        slack = 4 * max(eps * eps, np.finfo(wide).eps) * (np.abs(shift) + np.abs(e))
        if isa == "portable":  # has no fused multiplication, which what the quotient leaves takes
            slack = slack + 4 * eps * np.abs(e)
        assert np.all(np.abs(offset + low * inv) <= (slack + 4 * eps * lost * np.abs(low)) * inv)
        if gradient:
            assert np.all(np.abs(options["low"] - low) <= slack)
            np.testing.assert_allclose(options["c"], -inv * g / count, rtol=1, atol=float(8 * eps * np.max(lost)) * 4)
            want = -(inv**3) * (gt - e * g) / count
            size = inv**3 * (np.abs(gt) + np.abs(e * g)) / count
            assert np.all(np.abs(options["b"] - want) <= 16 * eps * lost * size)


@covers("norm_sums")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("by_column", [False, True])
def test_norm_sums(rng, isa, dtype, shape, by_column, masked):
    for (rows, columns, gap), merge in itertools.product(blocks(shape), (False, True)):
        if merge and by_column:
            continue
        pitch = columns + gap
        dy, x, y = ints(rng, (3, rows, columns), dtype)
        mean = ints(rng, columns if by_column else 1 if merge else rows, dtype)
        g, t = dy, x - (mean[None, :] if by_column else mean[:, None])
        options = {}
        if masked:
            g = let_through(dy, y, -1, 3)
            options = {"y": block_of(y, pitch), "lower": -1, "upper": 3}
        sums = [marked(max(rows, columns) + 2, dtype) for _ in range(3)]
        _testing.norm_sums(
            isa,
            dy=block_of(dy, pitch),
            x=block_of(x, pitch),
            pitch=pitch,
            rows=rows,
            columns=columns,
            by_column=by_column,
            merge=merge,
            mean=mean,
            sum_g=sums[0],
            sum_gt=sums[1],
            sum_t=sums[2],
            **options,
        )
        for s, terms in zip(sums, (g, g * t, t), strict=True):
            total = terms.sum(keepdims=True).ravel() if merge else terms.sum(0 if by_column else 1)
            np.testing.assert_array_equal(s[: total.size], total)
            np.testing.assert_array_equal(s[total.size :], MARK)


@pytest.mark.parametrize("far", [0, 64])
@pytest.mark.parametrize("by_column", [False, True])
def test_norm_sums_about_their_own_shift(rng, isa, dtype, shape, by_column, far):
    """On integers they are exact about 0, and about a mean that the reciprocal of a count of 2^k gives exactly."""
    for (rows, columns, gap), weighted in itertools.product(blocks(shape, (1, 3, 8, 33)), (False, True)):
        length, size = (rows, columns) if by_column else (columns, rows)
        if far and length & (length - 1):
            continue
        pitch, axis = columns + gap, 0 if by_column else 1
        dy, x = ints(rng, (2, rows, columns), dtype)
        # One block far off: an integral mean.
        first = (slice(None), 0) if by_column else (0, slice(None))
        if far:
            x[first] = far + ints(rng, length, dtype)
            x[first][-1] += -x[first].sum() % length
        weight = ints(rng, length, dtype)
        g = dy * (weight[:, None] if by_column else weight[None, :]) if weighted else dy
        sums = [marked(size + 2, dtype) for _ in range(5)]
        _testing.norm_sums(
            isa,
            dy=block_of(dy, pitch),
            x=block_of(x, pitch),
            pitch=pitch,
            rows=rows,
            columns=columns,
            by_column=by_column,
            weight=weight if weighted else None,
            sum_g=sums[0],
            sum_gt=sums[1],
            sum_t=sums[2],
            sum_tt=sums[3],
            shift=sums[4],
        )
        shift = sums[4][:size]
        mean = x.mean(axis)
        # Whatever it is, it is the mean or 0, and 0 only where that is near.
        assert np.all((shift == 0) | np.isclose(shift, mean, rtol=4 * np.finfo(dtype).eps, atol=0))
        assert np.all((shift != 0) | (mean**2 * length <= 0.75 * (x**2).sum(axis)))
        if length & (length - 1) and np.any(shift):
            continue
        t = x - (shift[None, :] if by_column else shift[:, None])
        for s, terms in zip(sums, (g, g * t, t, t * t), strict=False):
            np.testing.assert_array_equal(s[:size], terms.sum(axis))
            np.testing.assert_array_equal(s[size:], MARK)


@covers("norm_gradient")
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("by_column", [False, True])
def test_norm_gradient(rng, isa, dtype, shape, by_column, streaming):
    for (rows, columns, gap), use_x, full in itertools.product(blocks(shape), (False, True), (False, True)):
        pitch, offset = columns + gap, int(rng.integers(0, 4))
        dy, x, y = ints(rng, (3, rows, columns), dtype)
        mean, a, b, c = ints(rng, (4, columns if by_column else rows), dtype)
        own = (None, slice(None)) if by_column else (slice(None), None)
        g = let_through(dy, y, 0, np.inf) if full else dy
        options = {"y": block_of(y, pitch), "upper": np.inf} if full else {}
        expected = a[own] * g
        if use_x:
            expected = expected + b[own] * (x - mean[own]) + c[own]
            options["x"] = block_of(x, pitch)
        dx = marked(offset + rows * pitch + 3, dtype)
        expected_dx = dx.copy()
        expected_dx[offset : offset + (rows - 1) * pitch + columns] = block_of(expected.astype(dtype), pitch, MARK)
        _testing.norm_gradient(
            isa,
            dx=dx,
            offset=offset,
            dy=block_of(dy, pitch),
            pitch=pitch,
            rows=rows,
            columns=columns,
            by_column=by_column,
            mean=mean,
            a=a,
            b=b,
            c=c,
            streaming=streaming,
            **options,
        )
        np.testing.assert_array_equal(dx, expected_dx)


@covers("layer_gradient")
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("by_column", [False, True])
def test_layer_gradient(rng, isa, dtype, shape, by_column, streaming):
    for (rows, columns, gap), weighted, which in itertools.product(blocks(shape), (False, True), ("dx", "dw", "both")):
        pitch, offset = columns + gap, int(rng.integers(0, 4))
        dy, x = ints(rng, (2, rows, columns), dtype)
        mean, low, scale, b, c = ints(rng, (5, columns if by_column else rows), dtype)
        weight = ints(rng, rows if by_column else columns, dtype)
        own, other = ((None, slice(None)), (slice(None), None))[:: 1 if by_column else -1]
        t = x - mean[own] - low[own]
        e = dy * scale[own]
        expected = e * (weight[other] if weighted else 1) + b[own] * t + c[own]
        dx = marked(offset + rows * pitch + 3, dtype)
        expected_dx = dx.copy()
        of_w, of_b = marked(weight.size + 2, dtype), marked(weight.size + 2, dtype)
        options = {}
        if which != "dw":
            options |= {"dx": dx, "offset": offset}
            flat = block_of(expected.astype(dtype), pitch, MARK)
            expected_dx[offset : offset + (rows - 1) * pitch + columns] = flat
        if which != "dx":
            options |= {"dw": of_w, "db": of_b}
        _testing.layer_gradient(
            isa,
            dy=block_of(dy, pitch),
            x=block_of(x, pitch),
            pitch=pitch,
            rows=rows,
            columns=columns,
            by_column=by_column,
            mean=mean,
            low=low,
            scale=scale,
            b=b,
            c=c,
            weight=weight if weighted else None,
            streaming=streaming,
            **options,
        )
        np.testing.assert_array_equal(dx, expected_dx)
        # By row they are added to what is there.
        before = 0 if by_column else MARK
        for s, terms in ((of_w, e * t), (of_b, dy)):
            want = before + terms.sum(1 if by_column else 0) if which != "dx" else MARK
            np.testing.assert_array_equal(s[: weight.size], want)
            np.testing.assert_array_equal(s[weight.size :], MARK)


@covers("response")
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("by_column", [False, True])
def test_response(rng, isa, dtype, shape, by_column, backward):
    wide = np.float64 if dtype == np.float32 else np.longdouble
    eps = float(np.finfo(dtype).eps)
    lanes = shape["lanes"]
    sizes = [(1, 1), (3, 5), (lanes - 1, lanes + 1), (2 * lanes + 3, 4 * lanes), (5, 6 * lanes - 1)]
    for (rows, columns), gap, k in itertools.product(sizes, (0, 3), (1.0, 1e-30)):
        channels = rows if by_column else columns
        windows = {(0, 0), (min(2, channels - 1),) * 2, (channels - 1, 0), (channels // 2, channels // 3)}
        for before, after in windows:
            x, dy = rng.standard_normal((2, rows, columns)).astype(dtype)
            x += np.copysign(dtype(0.1), x)
            pitch, factor, gradient = columns + gap, 0.25, 0.375
            y = marked(rows * pitch + 3, dtype)
            expected_y = y.copy()
            size = before + after + 1
            _testing.response(
                isa,
                y=y,
                x=block_of(x, pitch),
                dy=block_of(dy, pitch) if backward else None,
                pitch=pitch,
                rows=rows,
                columns=columns,
                by_column=by_column,
                before=before,
                after=after,
                factor=factor,
                k=k,
                gradient=gradient,
                scratch=np.full(3 * size * 256 + 8 * (channels + size + 32), np.nan, dtype),
            )

            def window(v, low, high):
                v = v if by_column else v.T
                padded = np.pad(v, ((low, high), (0, 0)))
                total = sum(padded[i : i + len(v)] for i in range(low + high + 1))
                return total if by_column else total.T

            exact = x.astype(wide)
            d = wide(dtype(k)) + factor * window(exact**2, before, after)
            power = d ** wide(-0.75)
            want, size_of_terms = exact * power, np.abs(exact * power)
            if backward:
                share = dy * exact * power / d
                want = dy * power - gradient * exact * window(share, after, before)
                size_of_terms = np.abs(dy * power) + gradient * np.abs(exact) * window(np.abs(share), after, before)
            inside = np.zeros(y.size, bool)
            inside[: (rows - 1) * pitch + columns] = block_of(np.ones((rows, columns)), pitch, 0) == 1
            np.testing.assert_array_equal(y[~inside], expected_y[~inside])
            # The denominator has a term of one sign a channel of the window; its power about 3 roundings.
            assert np.all(np.abs(y[inside] - want.ravel()) <= (8 + 3 * size) * eps * size_of_terms.ravel())


@pytest.mark.parametrize("by_column", [False, True])
def test_response_beyond_the_range_of_its_estimates(isa, dtype, shape, by_column):
    """Denominators from the denormals to infinity, 0 and NaN: each is its own pixel's matter."""
    info = np.finfo(dtype)
    values = np.array([0, info.tiny, 1e-18, 1, 1e18, info.max, np.inf, np.nan, 2], dtype)
    x = np.ones((1, values.size), dtype) if by_column else np.ones((values.size, 1), dtype)
    for k in values:
        y = np.empty(values.size, dtype)
        x[:] = values.reshape(x.shape)
        with np.errstate(all="ignore"):
            d = (dtype(k) + (x * x).ravel()).astype(np.float64 if dtype == np.float32 else np.longdouble)
            want = (x.ravel() * d ** d.dtype.type(-0.75)).astype(dtype)
        rows, columns = x.shape
        scratch = np.empty(4096, dtype)
        _testing.response(
            isa, y=y, x=x.ravel(), pitch=columns, rows=rows, columns=columns, by_column=by_column, before=0, after=0,
            factor=1, k=k, scratch=scratch,
        )  # fmt: skip
        # A denormal result or a square that is one has fewer digits.
        np.testing.assert_allclose(y, want, rtol=float(16 * info.eps), atol=float(info.tiny))


@covers("map_run")
@pytest.mark.parametrize("streaming", [False, True])
def test_map_run_of_every_length(rng, isa, dtype, shape, streaming):
    """Element by element the function of a single one, and nothing beyond the end."""
    for n, offset, op, kind in itertools.product(lengths(shape["lanes"]), (0, 3), range(3), range(12)):
        x, z = rng.normal(0, 2, (2, n)).astype(dtype)
        options = {"op": op, "kind": kind, "a": -0.5, "b": 0.5}
        expected = marked(offset + n + 3, dtype)
        y = expected.copy()
        for i in range(0, n, max(1, n // 7)):
            _testing.map_run(isa, y=expected, offset=offset + i, x=x[i:].copy(), z=z[i:].copy(), n=1, **options)
        _testing.map_run(isa, y=y, offset=offset, x=x, z=z, n=n, streaming=streaming, **options)
        checked = [i + offset for i in range(0, n, max(1, n // 7))]
        np.testing.assert_array_equal(y[checked], expected[checked])
        np.testing.assert_array_equal(y[:offset], MARK)
        np.testing.assert_array_equal(y[offset + n :], MARK)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_map_run_forward_and_add_are_the_activation(rng, isa, dtype, name):
    kind = ACTIVATIONS[name][0]
    x, z = rng.normal(0, 4, (2, 1001)).astype(dtype)
    for op, argument in ((0, x), (1, x + z)):
        expected, y = argument.copy(), np.zeros_like(x)
        _testing.activate_run(isa, x=expected, n=x.size, kind=kind, **parameters(name, dtype))
        _testing.map_run(isa, y=y, offset=0, x=x, z=z, n=x.size, op=op, kind=kind, **parameters(name, dtype))
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("op", [0, 2], ids=["forward", "backward"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_element_does_not_see_its_neighbours(rng, isa, dtype, shape, name, op):
    """Its bits are those that it has alone, next to elements for which another formula serves, and next to NaN."""
    kind = ACTIVATIONS[name][0]
    some = np.concatenate([rng.normal(0, 1, 40), rng.normal(0, 6, 40), [np.nan, np.inf, -np.inf, 1e-30, -3.875, 3.75]])
    x = rng.permutation(some.astype(dtype))
    dy = rng.normal(size=x.size).astype(dtype)
    options = {"op": op, "kind": kind, **parameters(name, dtype)}
    alone, y = np.zeros_like(x), np.zeros_like(x)
    for i in range(x.size):
        _testing.map_run(isa, y=alone, offset=i, x=x[i:].copy(), z=dy[i:].copy(), n=1, **options)
    _testing.map_run(isa, y=y, offset=0, x=x, z=dy, n=x.size, **options)
    np.testing.assert_array_equal(y, alone)


@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_slopes_are_accurate(isa, dtype, name):
    x = grid(dtype)
    y = np.zeros_like(x)
    _testing.map_run(isa, y=y, offset=0, x=x, z=np.ones_like(x), n=x.size, op=2, kind=ACTIVATIONS[name][0])
    exact = x.astype(np.longdouble)
    with np.errstate(over="ignore", under="ignore"):
        if name == "silu":
            expected = _sigmoid(exact) * (1 + exact * _sigmoid(-exact))
        else:
            density = np.exp(-(exact**2) / 2) / np.sqrt(2 * np.longdouble(math.pi))
            expected = _normal_distribution(exact) + exact * density
    worst = np.argmax(np.abs(y - expected))
    assert np.abs(y - expected)[worst] <= 3 * np.finfo(dtype).eps, f"{name}'({x[worst]!r}) = {y[worst]!r}"


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
def test_slopes_of_infinities(isa, dtype, name):
    """A product of the infinity and 0, as in the reference."""
    x = np.array([1, -INF, INF, NAN, 0], dtype)
    y = np.zeros_like(x)
    _testing.map_run(isa, y=y, offset=0, x=x, z=np.ones_like(x), n=x.size, op=2, kind=ACTIVATIONS[name][0])
    np.testing.assert_array_equal(np.isnan(y), [False, True, True, True, False])
    assert y[4] == 0.5


@covers("softmax")
@pytest.mark.parametrize("by_column", [False, True])
def test_softmax(rng, isa, dtype, shape, by_column):
    eps = np.finfo(dtype).eps
    for rows, columns, gap in blocks(shape):
        pitch, axis, size = columns + gap, 0 if by_column else 1, columns if by_column else rows
        x = rng.normal(0, 5, (rows, columns)).astype(dtype)
        exact = np.exp(x.astype(np.longdouble) - x.max(axis, keepdims=True))
        common = {"x": block_of(x, pitch), "rows": rows, "columns": columns, "pitch": pitch, "by_column": by_column}
        maximum, total = marked(size + 2, dtype), marked(size + 2, dtype)
        y = block_of(np.zeros_like(x), pitch, MARK)
        _testing.softmax(isa, y=y, maximum=maximum, sum=total, **common)
        expected = exact / exact.sum(axis, keepdims=True)
        result = np.append(y, marked(pitch - columns, dtype)).reshape(rows, pitch)
        # x - maximum rounds by half an eps of itself, which exp makes a relative error of; exp and product round too.
        bound = (4 + np.ptp(x) / 2 + x.shape[axis] / 2) * eps
        np.testing.assert_allclose(result[:, :columns], expected.astype(np.float64), rtol=bound)
        np.testing.assert_array_equal(result[:, columns:], MARK)
        if not by_column:
            y = block_of(np.zeros_like(x), pitch, MARK)
            _testing.softmax(isa, y=y, maximum=maximum, sum=total, logarithm=True, **common)
            result = np.append(y, marked(pitch - columns, dtype)).reshape(rows, pitch)
            close = 4 * eps * (np.ptp(x) + 2)
            np.testing.assert_allclose(result[:, :columns], np.log(expected).astype(np.float64), rtol=0, atol=close)
            np.testing.assert_array_equal(result[:, columns:], MARK)
        _testing.softmax(isa, maximum=maximum, sum=total, **common)
        np.testing.assert_array_equal(maximum[:size], x.max(axis))
        np.testing.assert_allclose(total[:size], exact.sum(axis).astype(np.float64), rtol=bound)
        np.testing.assert_array_equal([maximum[size:], total[size:]], MARK)


def test_softmax_of_one_row_does_not_see_the_others(rng, isa, dtype, shape):
    """Its bits are those that it has alone: the loop has several rows in hand."""
    for rows, columns, gap in (*blocks(shape, (2, 3, 5)), (3, 1100, 2)):
        pitch = columns + gap
        x = rng.normal(0, 5, (rows, columns)).astype(dtype)
        x[0, 0], x[-1, -1] = np.nan, np.inf
        dy = rng.normal(size=x.shape).astype(dtype)
        both = []
        for first, high in [(0, rows)] + [(r, 1) for r in range(rows)]:
            part = block_of(x[first : first + high], pitch)
            common = {"rows": high, "columns": columns, "pitch": pitch, "by_column": False}
            y, dx = (block_of(np.zeros((high, columns), dtype), pitch, MARK) for _ in range(2))
            maximum, total = np.zeros(high, dtype), np.zeros(high, dtype)
            _testing.softmax(isa, y=y, x=part, maximum=maximum, sum=total, **common)
            _testing.softmax(isa, x=part, maximum=maximum, sum=total, **common)
            z = block_of(dy[first : first + high], pitch)
            results = [y.copy(), total, maximum]
            _testing.softmax(isa, y=y, x=part, maximum=maximum.copy(), sum=total.copy(), logarithm=True, **common)
            results.append(y)
            for logarithm in (False, True):
                _testing.softmax_gradient(isa, dx=dx, dy=z, y=part, sum=maximum.copy(), logarithm=logarithm, **common)
                results.append(dx.copy())
            both.append(results)
        for r in range(rows):
            for together, alone in zip(both[0], both[1 + r], strict=True):
                wide = np.append(together, marked(pitch, dtype))
                at = r * pitch if together.size > rows else r
                np.testing.assert_array_equal(wide[at : at + alone.size], alone)


@covers("softmax_gradient")
@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize("by_column", [False, True])
def test_softmax_gradient(rng, isa, dtype, shape, by_column, logarithm):
    for rows, columns, gap in blocks(shape):
        pitch, axis = columns + gap, 0 if by_column else 1
        # The logarithms of 1 and of 0 make the exponential exact.
        dy, y = ints(rng, (rows, columns), dtype), ints(rng, (rows, columns), dtype)
        if logarithm:
            y = np.where(y > 0, 0, -np.inf).astype(dtype)
            expected = dy - np.exp(y) * dy.sum(axis, keepdims=True)
        else:
            expected = y * (dy - (dy * y).sum(axis, keepdims=True))
        dx = block_of(np.zeros_like(dy), pitch, MARK)
        total = marked(columns + 2, dtype)
        _testing.softmax_gradient(
            isa,
            dx=dx,
            dy=block_of(dy, pitch),
            y=block_of(y, pitch),
            rows=rows,
            columns=columns,
            pitch=pitch,
            by_column=by_column,
            logarithm=logarithm,
            sum=total,
        )
        np.testing.assert_array_equal(dx, block_of(expected.astype(dtype), pitch, MARK))
        np.testing.assert_array_equal(total[columns:], MARK)


# -------------------------------------------------------------------------------------------------------- depthwise


class Depthwise:
    """Some output rows of a depthwise product and what they read; all else in the arrays is NaN.

    The image has `lines` rows; those in `zeros` lie in the padding. Its columns begin at `first` of the first pixel's
    first tap, and `beyond` more of them exist than the taps reach (or fewer).
    """

    def __init__(
        self,
        rng,
        isa,
        dtype,
        *,
        channels,
        pixels,
        out_rows=1,
        filter_rows=3,
        taps=3,
        stride=1,
        dilation=1,
        row_stride=1,
        row_dilation=1,
        first=-1,
        beyond=-1,
        zeros=(),
        values=integers,
        planes=False,
    ):
        self.rng, self.isa, self.dtype, self.values = rng, isa, dtype, values
        self.lanes = _testing.tile_shape(isa, np.dtype(dtype).name)["lanes"]
        self.channels, self.pixels, self.out_rows = channels, pixels, out_rows
        self.filter_rows, self.taps, self.planes = filter_rows, taps, planes
        self.stride, self.dilation, self.row_stride, self.row_dilation = stride, dilation, row_stride, row_dilation
        self.first = first
        reach = (pixels - 1) * stride + (taps - 1) * dilation + 1
        self.columns = max(first + reach + beyond, 0)
        line = np.add.outer(np.arange(out_rows) * row_stride, np.arange(filter_rows) * row_dilation)  # p, r
        column = np.add.outer(np.arange(pixels) * stride, np.arange(taps) * dilation) + first  # q, s
        lines = (out_rows - 1) * row_stride + (filter_rows - 1) * row_dilation + 1
        self.zeros = [i for i in zeros if i < lines]
        used_lines = np.isin(np.arange(lines), line)
        used = np.isin(np.arange(self.columns), column) & used_lines[:, None]
        self.image = np.full((lines, self.columns, channels), np.nan, dtype)
        self.image[used] = values(rng, int(used.sum()) * channels, dtype).reshape(-1, channels)
        self.image[self.zeros] = 0
        inside = (column >= 0) & (column < self.columns)
        clipped = np.clip(column, 0, max(self.columns - 1, 0))
        if self.columns:
            picked = self.image[line[:, :, None, None], clipped]  # p, r, q, s, c
            self.terms = np.where(inside[..., None], picked, 0).astype(np.float64)
        else:
            self.terms = np.zeros((out_rows, filter_rows, pixels, taps, channels))
        self.weights = values(rng, filter_rows * taps * channels, dtype).reshape(filter_rows, taps, channels)
        axes = (channels, out_rows, pixels) if planes else (out_rows, pixels, channels)
        # Room between the rows and the pixels (planes), which nothing may be written to.
        self.pitches = (
            (out_rows * (pixels + 3) + 1, pixels + 3, 1) if planes else (pixels * (channels + 2) + 1, channels + 2, 1)
        )
        self.index = 5 + sum(i * p for i, p in zip(np.ogrid[tuple(slice(n) for n in axes)], self.pitches, strict=True))

    def product(self):
        with np.errstate(invalid="ignore"):
            return np.einsum("prqsc,rsc->pqc", self.terms, self.weights.astype(np.float64))

    def gradient(self, dy):
        return np.einsum("prqsc,pqc->rsc", self.terms, dy.astype(np.float64))

    def spread(self, block, background=MARK):
        """(p, q, c) as the kernels read and write it."""
        array = np.full(int(self.index.max(initial=0)) + 6, background, self.dtype)
        array[self.index] = block.transpose(2, 0, 1) if self.planes else block
        return array

    def block(self):
        shape = (self.out_rows, self.pixels, self.channels)
        return self.values(self.rng, math.prod(shape), self.dtype).reshape(shape)

    def output(self, name, start):
        names = ("channel_pitch", "row_pitch") if self.planes else ("row_pitch", "pitch")
        return {start: 5, f"{name}_{names[0]}": self.pitches[0], f"{name}_{names[1]}": self.pitches[1]}

    def common(self):
        return {
            "taps": self.taps,
            "stride": self.stride,
            "first_column": self.first,
            "columns": self.columns,
            "channels": self.channels,
            "out_rows": self.out_rows,
            "pixels": self.pixels,
        }

    def rows_of_channels(self):
        pitch = self.channels + 2
        length = self.columns * pitch
        starts, size = scattered(self.rng, len(self.image), length)
        rows = np.full(size + self.channels, np.nan, self.dtype)
        pitches = [pitch] * len(starts)
        for i, start in enumerate(starts):
            rows[start : start + length].reshape(self.columns, pitch)[:, : self.channels] = self.image[i]
        rows[size:] = 0
        for i in self.zeros:
            starts[i], pitches[i] = size, 0
        both = {"row_stride": self.row_stride, "row_dilation": self.row_dilation, "dilation": self.dilation}
        return {**self.common(), **both, "rows": rows, "row_starts": starts, "row_pitch": pitches}

    def rows_of_planes(self):
        starts, size = scattered(self.rng, len(self.image), self.columns)
        rows = np.full(self.channels * size + self.columns, np.nan, self.dtype)
        for c, (i, start) in itertools.product(range(self.channels), enumerate(starts)):
            rows[c * size + start : c * size + start + self.columns] = self.image[i, :, c]
        rows[self.channels * size :] = 0
        for i in self.zeros:
            starts[i] = self.channels * size
        return {
            **self.common(),
            "rows": rows,
            "row_starts": starts,
            "zero_row": self.channels * size,
            "channel_pitch": size,
        }

    def rows_of_slab(self):
        """Columns by their residue of the stride, each padded; W - 1 elements follow a row."""
        length = self.pixels + (self.taps - 1) * self.dilation // self.stride
        residues = sorted({s * self.dilation % self.stride for s in range(self.taps)}, reverse=True)
        row_length = len(residues) * length + self.lanes
        starts, size = scattered(self.rng, len(self.image), row_length)
        rows = np.full(self.channels * size + self.lanes, np.nan, self.dtype)
        for f, residue in enumerate(residues):
            column = self.first + residue + np.arange(length) * self.stride
            inside = (column >= 0) & (column < self.columns)
            for i, start in enumerate(starts):
                for c in range(self.channels):
                    to = c * size + start + f * length
                    rows[to : to + length] = 0
                    rows[to : to + length][inside] = self.image[i, column[inside], c]
        options = self.common()
        del options["stride"]
        return {
            **options,
            "rows": rows,
            "row_starts": [s - 2 for s in starts],
            "offset": 2,
            "channel_pitch": size,
            "row_stride": self.row_stride,
            "row_offset": [r * self.row_dilation for r in range(self.filter_rows)],
            "column_offset": [
                residues.index(s * self.dilation % self.stride) * length + s * self.dilation // self.stride
                for s in range(self.taps)
            ],
        }

    def arguments(self, slab=False):
        if self.planes:
            rows = self.rows_of_slab() if slab else self.rows_of_planes()
            weights = np.ascontiguousarray(self.weights.transpose(2, 0, 1)).ravel()
            return {**rows, "filter_rows": self.filter_rows, "weights": weights}
        whole = -(-self.channels // self.lanes) * self.lanes
        starts, size = scattered(self.rng, self.filter_rows, self.taps * (whole + 1))
        weights = np.full(size, np.nan, self.dtype)
        for r, start in enumerate(starts):
            rows = weights[start : start + self.taps * (whole + 1)].reshape(self.taps, whole + 1)
            rows[:, : self.channels] = self.weights[r]
        return {
            **self.rows_of_channels(),
            "weights": weights,
            "weight_starts": starts,
            "weight_pitch": whole + 1,
        }

    def run(self, *, before=None, residual=None, slab=False, **options):
        out = self.spread(np.full((self.out_rows, self.pixels, self.channels), MARK) if before is None else before)
        if residual is not None:
            options |= {"residual": self.spread(residual, np.nan), **self.output("residual", "residual_start")}
        kernel = _testing.depthwise_planes if self.planes else _testing.depthwise_channels
        kernel(self.isa, **self.arguments(slab), out=out, **self.output("out", "out_start"), **options)
        return out

    def check(self, expected, **options):
        np.testing.assert_array_equal(self.run(**options), self.spread(expected))

    def run_gradient(self, dy, before=None):
        """(taps and their channels, everything around them)."""
        arguments = self.rows_of_planes() if self.planes else self.rows_of_channels()
        taps = self.filter_rows * self.taps
        if self.planes:
            kernel, index = _testing.filter_planes, 4 + np.add.outer(np.arange(taps), np.arange(self.channels) * taps)
        else:
            kernel, index = (
                _testing.filter_channels,
                4 + np.add.outer(np.arange(taps) * (self.channels + 3), np.arange(self.channels)),
            )
            arguments |= {"filter_rows": self.filter_rows, "sum_pitch": self.channels + 3}
        total = marked(int(index.max(initial=0)) + 5, self.dtype)
        if before is not None:
            total[index] = before.reshape(index.shape)
        kernel(
            self.isa,
            **arguments,
            dy=self.spread(dy, np.nan),
            **self.output("dy", "dy_start"),
            sum=total,
            sum_start=4,
            accumulate=before is not None,
        )
        sums = total[index].reshape(self.filter_rows, self.taps, self.channels)
        total[index] = MARK
        assert (total == MARK).all()
        return sums

    def check_gradient(self, dy):
        np.testing.assert_array_equal(self.run_gradient(dy), self.gradient(dy))
        before = self.values(self.rng, self.weights.size, self.dtype).reshape(self.weights.shape)
        np.testing.assert_array_equal(self.run_gradient(dy, before), self.gradient(dy) + before)


class Grouped(Depthwise):
    """Groups of as many channels out as in: weights are (filter rows, taps, channels of a group, channels)."""

    def __init__(self, rng, isa, dtype, *, group, **options):
        super().__init__(rng, isa, dtype, **options)
        self.group = group
        shape = (self.filter_rows, self.taps, group, self.channels)
        self.weights = self.values(rng, int(np.prod(shape)), dtype).reshape(shape)

    def product(self):
        c = np.arange(self.channels)
        terms = self.terms[..., (c // self.group * self.group)[:, None] + np.arange(self.group)]
        return np.einsum("prqsck,rskc->pqc", terms, self.weights.astype(np.float64))

    def arguments(self):
        whole = -(-self.channels // self.lanes) * self.lanes
        lines = self.taps * self.group
        starts, size = scattered(self.rng, self.filter_rows, lines * (whole + 1))
        weights = np.full(size, np.nan, self.dtype)
        for r, start in enumerate(starts):
            rows = weights[start : start + lines * (whole + 1)].reshape(lines, whole + 1)
            rows[:, : self.channels] = self.weights[r].reshape(lines, self.channels)
        more = {"weights": weights, "weight_starts": starts, "weight_pitch": whole + 1, "group": self.group}
        return {**self.rows_of_channels(), **more}

    def run(self, **options):
        out = self.spread(np.full((self.out_rows, self.pixels, self.channels), MARK))
        _testing.grouped_channels(self.isa, **self.arguments(), out=out, **self.output("out", "out_start"), **options)
        return out


# Every path of the kernels: (filter rows, taps, stride, dilation, row stride, row dilation, output rows).
CHANNEL_PATHS = [
    *[(3, 3, s, 1, s, 1, rows) for s in (1, 2) for rows in range(1, 10)],  # the window of AVX-512 from 2 rows on
    *[(1, taps, s, d, 1, 1, 1) for taps in (3, 5, 7) for s, d in ((1, 1), (1, 2), (1, 3), (2, 1), (2, 3), (3, 1))],
    (2, 1, 1, 1, 1, 1, 2),
    (3, 3, 1, 1, 2, 1, 2),
    (3, 3, 2, 1, 1, 1, 2),
    (3, 3, 1, 1, 1, 2, 3),
    (2, 4, 1, 2, 1, 3, 2),
    (1, 8, 2, 1, 1, 1, 2),
]
PLANE_PATHS = [(f, s, rows) for f, s in ((3, 1), (3, 2), (5, 1), (5, 2), (7, 1)) for rows in (1, 2, 3, 4, 7, 9, 16)]


def path_of_channels(path):
    names = ("filter_rows", "taps", "stride", "dilation", "row_stride", "row_dilation", "out_rows")
    return dict(zip(names, path, strict=True))


def path_of_planes(path):
    f, s, rows = path
    return {"filter_rows": f, "taps": f, "stride": s, "row_stride": s, "out_rows": rows, "planes": True}


def edges(rng, reach):
    """(first, beyond): inside, and outside on one side or both, up to all taps of a pixel."""
    return [
        (0, 0),
        (2, 3),
        (-1, 1),
        (int(-rng.integers(1, reach + 1)), int(-rng.integers(0, reach + 1))),
    ][int(rng.integers(4))]


def some_zeros(rng, lines=40):
    return np.flatnonzero(rng.integers(0, 4, lines) == 0).tolist()


@covers("depthwise_channels", "filter_channels")
@pytest.mark.parametrize("path", CHANNEL_PATHS, ids=str)
def test_depthwise_channels_of_every_tail_and_width(rng, isa, dtype, shape, path):
    lanes, options = shape["lanes"], path_of_channels(path)
    reach = (options["taps"] - 1) * options["dilation"] + 1
    cases = [(c, int(rng.integers(1, 18))) for c in range(1, 2 * lanes + 2)]
    cases += [(int(rng.integers(1, lanes + 3)), q) for q in range(1, 41)]
    for channels, pixels in cases:
        first, beyond = edges(rng, reach)
        job = Depthwise(
            rng,
            isa,
            dtype,
            channels=channels,
            pixels=pixels,
            first=first,
            beyond=beyond,
            zeros=some_zeros(rng),
            **options,
        )
        job.check(job.product(), skip_zeros=bool(rng.integers(2)))
        job.check_gradient(job.block())


@pytest.mark.parametrize("taps", range(1, 9))
def test_depthwise_channels_of_every_filter(rng, isa, dtype, shape, taps):
    for filter_rows, stride, dilation in itertools.product(range(1, 6), (1, 2, 3), (1, 2, 3)):
        first, beyond = edges(rng, (taps - 1) * dilation + 1)
        job = Depthwise(
            rng,
            isa,
            dtype,
            channels=shape["lanes"] + 1,
            pixels=int(rng.integers(1, 24)),
            out_rows=int(rng.integers(1, 5)),
            filter_rows=filter_rows,
            taps=taps,
            stride=stride,
            dilation=dilation,
            row_stride=int(rng.integers(1, 4)),
            row_dilation=int(rng.integers(1, 4)),
            first=first,
            beyond=beyond,
            zeros=some_zeros(rng),
        )
        job.check(job.product())
        job.check(job.product(), skip_zeros=True)
        job.check_gradient(job.block())


@covers("grouped_channels")
@pytest.mark.parametrize(("taps", "stride"), [(3, 1), (3, 2), (2, 1), (1, 1)])
@pytest.mark.parametrize("group", [2, 4, 8, 16])
def test_grouped_channels(rng, isa, dtype, shape, group, taps, stride):
    lanes = shape["lanes"]
    if not has_own_sizes(isa) or lanes % group:
        job = Grouped(rng, isa, dtype, group=group, channels=group, pixels=1, stride=stride)
        with pytest.raises(ValueError, match=r"on an ISA that has them|holds whole groups"):
            job.run()
        return
    for pixels, rows in itertools.product((*range(1, 12), 14, 17, 18), (1, 3, 9)):
        first, beyond = edges(rng, taps)
        channels = group * int(rng.integers(1, 3 * lanes // group + 1))
        job = Grouped(
            rng,
            isa,
            dtype,
            group=group,
            channels=channels,
            pixels=pixels,
            out_rows=rows,
            filter_rows=int(rng.integers(1, 4)),
            taps=taps,
            stride=stride,
            row_stride=int(rng.integers(1, 3)),
            row_dilation=int(rng.integers(1, 3)),
            first=first,
            beyond=beyond,
            zeros=some_zeros(rng),
        )
        job.check(job.product())
        job.check(job.product(), skip_zeros=True)


def has_own_sizes(isa):
    return isa != "portable"  # which computes all planes out of a slab


@covers("depthwise_planes", "filter_planes")
@pytest.mark.parametrize("path", PLANE_PATHS, ids=str)
def test_depthwise_planes_in_place(rng, isa, dtype, path):
    if not has_own_sizes(isa):
        job = Depthwise(rng, isa, dtype, channels=1, pixels=1, **path_of_planes(path))
        with pytest.raises(ValueError, match="on an ISA that has them"):
            job.run()
        with pytest.raises(ValueError, match="on an ISA that has them"):
            job.run_gradient(job.block())
        return
    for pixels in range(1, 41):
        first, beyond = edges(rng, path[0])
        options = {"channels": 1 + pixels % 3, "first": first, "beyond": beyond, "zeros": some_zeros(rng)}
        job = Depthwise(rng, isa, dtype, pixels=pixels, **options, **path_of_planes(path))
        job.check(job.product(), skip_zeros=bool(rng.integers(2)))
        job.check_gradient(job.block())


def spread_sum(dy, w, pad, columns, meets):
    """Rows of the gradient as (rows, C, W), from dy (C, P, Q) and w (C, R, S): what `meets` names, pairs (p, r)."""
    channels, _, dy_columns = dy.shape
    dx = np.zeros((len(meets), channels, columns), dy.dtype)
    for i, pairs in enumerate(meets):
        for p, r in pairs:
            for q, s in itertools.product(range(dy_columns), range(w.shape[2])):
                if 0 <= 2 * q + s - pad < columns:
                    dx[i, :, 2 * q + s - pad] += w[:, r, s] * dy[:, p, q]
    return dx


@covers("depthwise_spread")
@pytest.mark.parametrize("taps", [3, 5])
@pytest.mark.parametrize("planar", [False, True])
def test_depthwise_spread(rng, isa, dtype, shape, taps, planar):
    lanes = shape["lanes"]
    widths = (*range(1, 7), lanes, *range(2 * lanes - 3, 2 * lanes + 4), 4 * lanes, 4 * lanes + 1, 5 * lanes - 1)
    for columns, pad in itertools.product(widths, range(taps)):
        channels = int(rng.integers(1, 4)) if planar else int(rng.integers(1, 2 * lanes + 2))
        dy_columns = max(1, (columns + 2 * pad - taps) // 2 + 1 + int(rng.integers(-1, 2)))
        dy = integers(rng, channels * 3 * dy_columns, dtype).reshape(channels, 3, dy_columns)
        w = integers(rng, channels * taps * taps, dtype).reshape(channels, taps, taps)
        meets = [[], [(0, 1)], [(2, 0), (1, 2)], [(1, 1)], [(0, 0), (1, 2), (2, 1)]]
        expected = spread_sum(dy, w, pad, columns, meets)
        if planar:
            dy_of, w_of, order = dy, w, (0, 1, 2)
            sizes = {"dy_channel": 3 * dy_columns, "weight_channel": taps * taps, "weight_row": taps, "weight_tap": 1}
            sizes |= {"dx_row": channels * (columns + 2), "dx_channel": columns + 2}
            starts = [p * dy_columns for p in range(3)]
        else:
            dy_of, w_of, order = dy.transpose(1, 2, 0), w.transpose(1, 2, 0), (0, 2, 1)
            sizes = {"dy_pitch": channels, "weight_row": taps * channels, "weight_tap": channels}
            sizes |= {"dx_row": columns * (channels + 2), "dx_pitch": channels + 2}
            starts = [p * dy_columns * channels for p in range(3)]
        expected = np.pad(expected.transpose(order), [(0, 0), (0, 0), (0, 2)], constant_values=MARK)
        dx = marked(expected.size + 8, dtype)
        _testing.depthwise_spread(
            isa, planar=planar, rows=[[(starts[p], r) for p, r in pairs] for pairs in meets], taps=taps, pad=pad,
            columns=columns, dy_columns=dy_columns, channels=channels, dy=np.ascontiguousarray(dy_of), dx=dx,
            dx_start=4, weights=np.ascontiguousarray(w_of), **sizes
        )  # fmt: skip
        np.testing.assert_array_equal(dx[4:-4].reshape(expected.shape), expected)
        assert (dx[:4] == MARK).all()
        assert (dx[-4:] == MARK).all()


@pytest.mark.parametrize("taps", range(1, 9))
def test_depthwise_planes_out_of_a_slab(rng, isa, dtype, taps):
    for filter_rows, stride, dilation in itertools.product(range(1, 6), (1, 2, 3), (1, 2, 3)):
        first, beyond = edges(rng, (taps - 1) * dilation + 1)
        for out_rows in (int(rng.integers(1, 4)), 9):
            job = Depthwise(
                rng,
                isa,
                dtype,
                channels=2,
                pixels=int(rng.integers(1, 41)),
                out_rows=out_rows,
                filter_rows=filter_rows,
                taps=taps,
                stride=stride,
                dilation=dilation,
                row_stride=int(rng.integers(1, 4)),
                row_dilation=int(rng.integers(1, 4)),
                first=first,
                beyond=beyond,
                planes=True,
            )
            job.check(job.product(), slab=True)


def depthwise_forms(isa):
    """(options, slab) of one job for each form of the forward kernels."""
    common = {"first": -1, "beyond": -1}
    yield {**common, "out_rows": 1}, False
    yield {**common, "out_rows": 4}, False
    yield {**common, "out_rows": 3, "stride": 2, "row_stride": 2}, False
    yield {**common, "out_rows": 2, "taps": 4}, False
    yield {**common, "out_rows": 9, "planes": True}, True
    if has_own_sizes(isa):
        yield {**common, "out_rows": 10, "planes": True}, False
        yield {**common, "out_rows": 6, "stride": 2, "row_stride": 2, "planes": True}, False


def test_depthwise_of_nothing(rng, isa, dtype, shape):
    for options, slab in depthwise_forms(isa):
        for none in ("channels", "pixels", "out_rows"):
            job = Depthwise(rng, isa, dtype, **{"channels": 3, "pixels": 5, **options, none: 1})
            arguments = job.arguments(slab) | {none: 0}
            out = marked(100, dtype)
            kernel = _testing.depthwise_planes if job.planes else _testing.depthwise_channels
            kernel(isa, **arguments, out=out, **job.output("out", "out_start"))
            assert (out == MARK).all()
    # A sum of no terms: the epilogue of zero.
    job = Depthwise(rng, isa, dtype, channels=shape["lanes"] + 1, pixels=5)
    arguments = job.arguments() | {"weight_starts": []}
    out = job.spread(np.full((1, 5, job.channels), np.nan))
    _testing.depthwise_channels(isa, **arguments, out=out, **job.output("out", "out_start"))
    np.testing.assert_array_equal(out, job.spread(np.zeros((1, 5, job.channels))))
    job = Depthwise(rng, isa, dtype, channels=2, pixels=5, planes=True)
    arguments = job.arguments(slab=True) | {"filter_rows": 0, "row_offset": []}
    out = job.spread(np.full((1, 5, 2), np.nan))
    _testing.depthwise_planes(isa, **arguments, out=out, **job.output("out", "out_start"))
    np.testing.assert_array_equal(out, job.spread(np.zeros((1, 5, 2))))


def test_depthwise_finishes(rng, isa, dtype, shape):
    """Every combination of accumulate, scale, shift, residual and clamp."""
    clamps = {None: (0, 0), "relu": (1, (0, np.inf)), "relu6": (2, (0, 6)), "clip": (11, (-5, 9))}
    lanes = shape["lanes"]
    for options, slab in depthwise_forms(isa):
        for accumulate, use_scale, use_shift, use_residual, clamp in itertools.product(*[(False, True)] * 4, clamps):
            job = Depthwise(
                rng,
                isa,
                dtype,
                channels=3 if options.get("planes") else lanes + int(rng.integers(0, lanes + 1)),
                pixels=int(rng.integers(1, 2 * lanes + 3)) if options.get("planes") else int(rng.integers(1, 12)),
                **options,
            )
            expected = job.product()
            finish = {"accumulate": accumulate, "slab": slab, "before": job.block()}
            if accumulate:
                expected = expected + finish["before"]
            if use_scale:
                finish["scale"] = integers(rng, job.channels, dtype)
                expected = expected * finish["scale"]
            if use_shift:
                finish["shift"] = integers(rng, job.channels, dtype)
                expected = expected + finish["shift"]
            if use_residual:
                finish["residual"] = job.block()
                expected = expected + finish["residual"]
            if clamp:
                finish["activation"], (finish["a"], finish["b"]) = clamps[clamp]
                expected = np.clip(expected, finish["a"], finish["b"])
            job.check(expected, **finish)


@pytest.mark.parametrize("kind", [3, 4, 5, 6, 7, 8, 9, 10])
def test_depthwise_applies_every_activation(rng, isa, dtype, shape, kind):
    """The same bits as activate_run."""
    for (options, slab), n in itertools.product(depthwise_forms(isa), (1, 5, shape["lanes"], shape["lanes"] + 3)):
        channels, pixels = (2, n) if options.get("planes") else (n, 4)
        job = Depthwise(rng, isa, dtype, channels=channels, pixels=pixels, **options)
        scale = rng.normal(0, 0.1, channels).astype(dtype)
        expected = (job.product().astype(dtype) * scale).ravel()
        _testing.activate_run(isa, x=expected, n=expected.size, kind=kind, a=0.25)
        job.check(expected.reshape(job.product().shape), slab=slab, scale=scale, activation=kind, a=0.25)


def test_depthwise_propagates_infinite_weights(rng, isa, dtype, shape):
    """Against a zero of the padding, above, below or beside the image, an infinity is a NaN."""
    for (options, slab), r in itertools.product(depthwise_forms(isa), range(3)):
        zeros = () if slab else (0, 5)
        channels = 2 if options.get("planes") else shape["lanes"] + 2
        job = Depthwise(rng, isa, dtype, channels=channels, pixels=shape["lanes"] + 5, zeros=zeros, **options)
        job.weights[r, 0, 1] = np.inf  # whose column of the first pixel does not exist
        product = job.product()
        assert np.isnan(product).any()
        assert not np.isnan(np.delete(product, 1, 2)).any()
        job.check(product, slab=slab)


def test_depthwise_rounds_alike_everywhere(rng, isa, dtype, shape):
    """An output has the same bits alone as in any strip, block or window."""
    for options, slab in depthwise_forms(isa):
        planes = options.get("planes", False)
        job = Depthwise(
            rng,
            isa,
            dtype,
            channels=3 if planes else 2 * shape["lanes"] + 3,
            pixels=4 * shape["lanes"] + 5 if planes else 23,
            zeros=() if slab else (0, 4),
            values=normal,
            **options,
        )
        arguments = job.arguments(slab)
        finish = {"scale": normal(rng, job.channels, dtype), "shift": normal(rng, job.channels, dtype)}
        kernel = _testing.depthwise_planes if planes else _testing.depthwise_channels
        whole = job.run(slab=slab, **finish)[job.index]
        whole = whole.transpose(1, 2, 0) if planes else whole
        rounded = 16 * np.finfo(dtype).eps * np.abs(job.terms).max() * np.abs(job.weights).max()
        exact = job.product() * finish["scale"] + finish["shift"]
        np.testing.assert_allclose(whole, exact, rtol=0, atol=16 * rounded)
        # The same arrays, read where this run of the job placed them.
        again = marked(whole.size * 2 + 100, dtype)
        places = [tuple(int(rng.integers(n)) for n in whole.shape) for _ in range(60)]
        places += [(p, q, 0) for p in range(job.out_rows) for q in range(job.pixels)]
        for p, q, c in places:
            alone = arguments | {"channels": 1, "out_rows": 1, "pixels": 1}
            alone |= {name: vector[c : c + 1] for name, vector in finish.items()}
            alone["row_starts"] = alone["row_starts"][p * job.row_stride :]
            if planes:
                taps = job.filter_rows * job.taps
                alone["weights"] = alone["weights"][c * taps : (c + 1) * taps]
                alone["offset"] = alone.get("offset", 0) + c * alone["channel_pitch"]
                if slab:
                    alone["offset"] += q
                else:
                    alone["first_column"] += q * job.stride
                pitches = {"out_channel_pitch": 1, "out_row_pitch": 1}
            else:
                # The row of zeros is as good from its second channel on, as long as it has one.
                alone["row_starts"] = [
                    s + (c if n else 0)
                    for s, n in zip(alone["row_starts"], alone["row_pitch"][p * job.row_stride :], strict=True)
                ]
                alone["row_pitch"] = alone["row_pitch"][p * job.row_stride :]
                alone["weight_starts"] = [s + c for s in alone["weight_starts"]]
                alone["weights"] = np.append(alone["weights"], np.full(shape["lanes"], np.nan, dtype))
                alone["first_column"] += q * job.stride
                pitches = {"out_row_pitch": 1, "out_pitch": 1}
            kernel(isa, **alone, out=again, **pitches)
            assert again[0] == whole[p, q, c], (options, slab, p, q, c)


def test_filter_gradients_round_alike_everywhere(rng, isa, dtype, shape):
    """A channel's sums have the same bits alone as among others, and those of a tap in whatever block it lies."""
    paths = [{}, {"taps": 5}, {"taps": 7, "filter_rows": 4}, {"taps": 8, "filter_rows": 2}, {"stride": 2}]
    for options in paths:
        job = Depthwise(
            rng, isa, dtype, channels=shape["lanes"] + 3, pixels=29, out_rows=3, zeros=(0,), values=normal, **options
        )
        dy = job.block()
        whole = job.run_gradient(dy)
        bound = 100 * np.finfo(dtype).eps * np.einsum("prqsc,pqc->rsc", np.abs(job.terms), np.abs(dy))
        np.testing.assert_array_less(np.abs(whole - job.gradient(dy)), bound + np.finfo(dtype).tiny)
        for c in (0, shape["lanes"] - 1, shape["lanes"] + 2):
            alone = Depthwise(rng, isa, dtype, channels=1, pixels=29, out_rows=3, zeros=(0,), values=normal, **options)
            alone.image = job.image[..., c : c + 1]
            np.testing.assert_array_equal(alone.run_gradient(dy[..., c : c + 1])[..., 0], whole[..., c])
    if has_own_sizes(isa):
        for path in ((3, 1, 5), (3, 2, 5), (5, 1, 5), (5, 2, 5), (7, 1, 5)):
            options = {"pixels": 29, "zeros": (0,), "values": normal, **path_of_planes(path)}
            job = Depthwise(rng, isa, dtype, channels=3, **options)
            dy = job.block()
            whole = job.run_gradient(dy)
            bound = 100 * np.finfo(dtype).eps * np.einsum("prqsc,pqc->rsc", np.abs(job.terms), np.abs(dy))
            np.testing.assert_array_less(np.abs(whole - job.gradient(dy)), bound + np.finfo(dtype).tiny)
            for c in range(3):
                alone = Depthwise(rng, isa, dtype, channels=1, **options)
                alone.image = job.image[..., c : c + 1]
                np.testing.assert_array_equal(alone.run_gradient(dy[..., c : c + 1])[..., 0], whole[..., c])


# --------------------------------------------------------------------------------------------------------- winograd


def winograd_matrices(outputs):
    """A^T, G and B^T of F(m x m, 3 x 3), from the points of interpolation alone."""
    points = (0.0, 1.0, -1.0) if outputs == 2 else (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))
    n = outputs + 2
    a, g, b = np.zeros((outputs, n)), np.zeros((n, 3)), np.zeros((n, n))
    for j, p in enumerate(points):
        others = [q for q in points if q != p]
        a[:, j] = p ** np.arange(outputs)
        g[j] = p ** np.arange(3) / np.prod([p - q for q in others])
        b[j, : n - 1] = np.poly(others)[::-1]
    a[-1, -1] = g[-1, -1] = 1
    b[-1] = np.poly(points)[::-1]
    if outputs == 2:
        # Lavin's signs: -1 times the rows of 0 and -1 of B and G, and of infinity in A and B.
        b[[0, 3]], g[0], a[:, 3] = -b[[0, 3]], -g[0], -a[:, 3]
    return a, g, b


def both(matrix, array):
    """A matrix times the array times its transpose, over the first two axes."""
    return np.einsum("ai,bj,ij...->ab...", matrix, matrix, array)


@pytest.mark.parametrize("outputs", [2, 4])
def test_winograd_matrices_convolve(rng, isa, dtype, outputs):
    """Of the tests' own oracle."""
    a, g, b = winograd_matrices(outputs)
    d, w = rng.standard_normal((outputs + 2, outputs + 2)), rng.standard_normal((3, 3))
    windows = np.lib.stride_tricks.sliding_window_view(d, (3, 3))
    np.testing.assert_allclose(both(a, both(g, w) * both(b, d)), np.einsum("ijrs,rs->ij", windows, w), atol=1e-12)


def near(y, expected, size, dtype, roundings):
    """Within so many roundings of the sum of the absolute terms."""
    assert (np.abs(y - expected) <= roundings * np.finfo(dtype).eps * size).all()


@covers("winograd_input")
@pytest.mark.parametrize("outputs", [2, 4])
def test_winograd_input(rng, isa, dtype, shape, outputs):
    winograd_points(_testing.winograd_input, rng, isa, dtype, shape["lanes"], winograd_matrices(outputs)[2], outputs)


@covers("winograd_spread")
@pytest.mark.parametrize("outputs", [2, 4])
def test_winograd_spread(rng, isa, dtype, shape, outputs):
    matrix = winograd_matrices(outputs)[0].T
    winograd_points(_testing.winograd_spread, rng, isa, dtype, shape["lanes"], matrix, outputs)


def winograd_points(kernel, rng, isa, dtype, lanes, matrix, outputs):
    """The points of some tiles of pixels, as many as the matrix has columns."""
    n, side = matrix.shape
    for tiles, channels in itertools.product((0, 1, 3), (0, 1, lanes - 1, lanes, 2 * lanes + 1)):
        pixels = tiles * side * side
        starts, size = scattered(rng, pixels, channels)
        x = np.full(size, np.nan, dtype)
        d = integers(rng, pixels * channels, dtype).reshape(tiles, side, side, channels)
        for start, pixel in zip(starts, d.reshape(pixels, channels), strict=True):
            x[start : start + channels] = pixel
        padded = -(-channels // lanes) * lanes
        tile_pitch = padded + 3
        point_pitch = max(tiles, 1) * tile_pitch + 5
        points = marked(n * n * point_pitch, dtype)
        kernel(
            isa,
            x=x,
            patch=starts,
            tiles=tiles,
            channels=channels,
            points=points,
            point_pitch=point_pitch,
            tile_pitch=tile_pitch,
            outputs=outputs,
        )
        grid = points.reshape(n * n, point_pitch)
        for t in range(tiles):
            y = grid[:, t * tile_pitch : t * tile_pitch + padded]
            expected = both(matrix, d[t].astype(np.float64)).reshape(n * n, channels)
            if outputs == 2:
                np.testing.assert_array_equal(y[:, :channels], expected)
            else:
                near(y[:, :channels], expected, both(np.abs(matrix), np.abs(d[t])).reshape(n * n, channels), dtype, 8)
            assert not y[:, channels:].any()
            grid[:, t * tile_pitch : t * tile_pitch + padded] = MARK
        assert (grid == MARK).all()


@covers("winograd_taps")
@pytest.mark.parametrize("outputs", [2, 4])
def test_winograd_taps(rng, isa, dtype, shape, outputs):
    n, lanes, matrix = outputs + 2, shape["lanes"], winograd_matrices(outputs)[1].T
    for rows, channels in itertools.product((0, 1, 5), (0, lanes, 3 * lanes)):
        row_pitch = channels + 2
        point_pitch = max(rows, 1) * row_pitch + 3
        points = marked(n * n * point_pitch, dtype)
        grid = points.reshape(n * n, point_pitch)
        for k in range(rows):
            grid[:, k * row_pitch : k * row_pitch + channels] = 4 * integers(rng, n * n * channels, dtype).reshape(
                n * n, channels
            )
        before = grid.astype(np.float64)
        options = {"point_pitch": point_pitch, "row_pitch": row_pitch, "rows": rows, "channels": channels}
        assert _testing.winograd_taps(isa, points=points, **options, outputs=outputs) == [0] * rows
        for k in range(rows):
            at = np.s_[k * row_pitch : k * row_pitch + channels]
            sums = before[:, at].reshape(n, n, channels)
            expected = both(matrix, sums).reshape(9, channels)
            if outputs == 2:
                np.testing.assert_array_equal(grid[:9, at], expected)
            else:
                near(grid[:9, at], expected, both(np.abs(matrix), np.abs(sums)).reshape(9, channels), dtype, 10)
            grid[:9, at] = before[:9, at]
        np.testing.assert_array_equal(grid, before)


@pytest.mark.parametrize("outputs", [2, 4])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_winograd_taps_report_rows_that_are_not_finite(rng, isa, dtype, shape, value, outputs):
    channels = 2 * shape["lanes"]
    for point in range((outputs + 2) ** 2):
        points = integers(rng, (outputs + 2) ** 2 * 3 * channels, dtype)
        points[(point * 3 + 1) * channels + channels - 1] = value
        options = {"point_pitch": 3 * channels, "row_pitch": channels, "rows": 3, "channels": channels}
        assert _testing.winograd_taps(isa, points=points, **options, outputs=outputs) == [0, 1, 0]


@covers("winograd_filter")
@pytest.mark.parametrize("outputs", [2, 4])
def test_winograd_filter(rng, isa, dtype, shape, outputs):
    n, lanes, matrix = outputs + 2, shape["lanes"], winograd_matrices(outputs)[1]
    for channels, vectors in itertools.product((0, 1, 3), (1, 2)):
        columns = vectors * lanes
        w = 4 * integers(rng, 9 * channels * columns, dtype)
        point_pitch = channels * columns + 3
        points = marked(n * n * point_pitch, dtype)
        _testing.winograd_filter(
            isa, panel=w, channels=channels, columns=columns, points=points, point_pitch=point_pitch, outputs=outputs
        )
        grid = points.reshape(n * n, point_pitch)
        taps = w.reshape(3, 3, channels * columns).astype(np.float64)
        expected = both(matrix, taps).reshape(n * n, -1)
        if outputs == 2:
            np.testing.assert_array_equal(grid[:, : channels * columns], expected)
        else:
            size = both(np.abs(matrix), np.abs(taps)).reshape(n * n, -1)
            near(grid[:, : channels * columns], expected, size, dtype, 10)
        assert (grid[:, channels * columns :] == MARK).all()


class WinogradOutput:
    """Some tiles of sums, and where their pixels go."""

    def __init__(self, rng, isa, dtype, lanes, outputs, channels, **options):
        self.isa, self.dtype, self.outputs, self.channels, self.options = isa, dtype, outputs, channels, options
        self.n, m = outputs + 2, outputs
        self.rows, self.columns = [m, 1, m - 1, 0], [m, m, 1, 2]
        self.tiles = len(self.rows)
        self.padded = -(-channels // lanes) * lanes
        self.sums = 4 * integers(rng, self.n**2 * self.tiles * self.padded, dtype)
        self.sums = self.sums.reshape(self.n**2, self.tiles, self.padded)
        self.column_pitch = channels + 2
        self.row_pitch = m * self.column_pitch + 1
        self.starts, self.size = scattered(rng, self.tiles, m * self.row_pitch)

    def __call__(self, before=None):
        out = marked(self.size, self.dtype) if before is None else before.copy()
        bad = _testing.winograd_output(
            self.isa,
            points=self.sums,
            point_pitch=self.tiles * self.padded,
            tile_pitch=self.padded,
            channels=self.channels,
            rows=self.rows,
            columns=self.columns,
            out=out,
            out_starts=self.starts,
            row_pitch=self.row_pitch,
            column_pitch=self.column_pitch,
            outputs=self.outputs,
            **self.options,
        )
        return out, bad

    def pixels(self, flat, t):
        """(rows, columns, channels) of a tile."""
        at = self.starts[t] + np.arange(self.outputs)[:, None] * self.row_pitch
        at = at + np.arange(self.outputs) * self.column_pitch
        return flat[(at[: self.rows[t], : self.columns[t], None] + np.arange(self.channels)).astype(np.int64)]

    def expected(self, t):
        matrix = winograd_matrices(self.outputs)[0]
        s = self.sums[:, t, : self.channels].reshape(self.n, self.n, -1).astype(np.float64)
        cut = np.s_[: self.rows[t], : self.columns[t]]
        return both(matrix, s)[cut], both(np.abs(matrix), np.abs(s))[cut]


@covers("winograd_output")
@pytest.mark.parametrize("outputs", [2, 4])
def test_winograd_output(rng, isa, dtype, shape, outputs):
    lanes = shape["lanes"]
    for channels in (1, lanes, 2 * lanes + 1):
        job = WinogradOutput(rng, isa, dtype, lanes, outputs, channels)
        out, bad = job()
        assert bad == [0] * job.tiles
        for t in range(job.tiles):
            value, size = job.expected(t)
            if outputs == 2:
                np.testing.assert_array_equal(job.pixels(out, t), value)
            else:
                near(job.pixels(out, t), value, size, dtype, 10)
        written = sum(r * c for r, c in zip(job.rows, job.columns, strict=True)) * channels
        assert (out != MARK).sum() <= written


@pytest.mark.parametrize("outputs", [2, 4])
def test_winograd_epilogue(rng, isa, dtype, shape, outputs):
    """In the order of the other kernels: the plain sums have been checked."""
    channels = shape["lanes"] + 3
    plain = WinogradOutput(rng, isa, dtype, shape["lanes"], outputs, channels)
    sums, _ = plain()
    scale, shift = integers(rng, channels, dtype), integers(rng, channels, dtype)
    residual = integers(rng, plain.size, dtype)
    before = integers(rng, plain.size, dtype)
    given = {
        "scale": scale,
        "shift": shift,
        "residual": residual,
        "residual_starts": plain.starts,
        "residual_row_pitch": plain.row_pitch,
        "residual_column_pitch": plain.column_pitch,
    }
    for accumulate, activation in itertools.product((False, True), (0, 1, 3, 11)):
        plain.options = given | {"accumulate": accumulate, "activation": activation, "a": -3.0, "b": 5.0}
        if activation == 1:
            plain.options |= {"a": 0.0, "b": np.inf}
        if activation == 3:
            plain.options |= {"a": 0.5}
        out, _ = plain(before)
        for t in range(plain.tiles):
            v = plain.pixels(sums, t) + (plain.pixels(before, t) if accumulate else 0)
            v = (v * scale + shift + plain.pixels(residual, t)).astype(dtype)
            v = {0: v, 1: np.maximum(v, 0), 3: np.where(v > 0, v, v * dtype(0.5)), 11: np.clip(v, -3, 5)}[activation]
            np.testing.assert_allclose(plain.pixels(out, t), v, rtol=0, atol=1e3 * np.finfo(dtype).eps)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_winograd_reports_what_is_not_finite(rng, isa, dtype, shape, value, accumulate):
    lanes = shape["lanes"]
    job = WinogradOutput(rng, isa, dtype, lanes, 4, 3 * lanes, accumulate=accumulate)
    whole, _ = job()
    before = marked(job.size, dtype)
    job.sums[7, 1, lanes + 1] = value
    out, bad = job(before)
    assert bad == [0, 2, 0, 0]
    np.testing.assert_array_equal(job.pixels(out, 0), job.pixels(whole, 0))
    y, kept = job.pixels(out, 1), job.pixels(whole, 1)
    np.testing.assert_array_equal(y[..., lanes : 2 * lanes], MARK if accumulate else 0)
    np.testing.assert_array_equal(y[..., :lanes], kept[..., :lanes])
    np.testing.assert_array_equal(y[..., 2 * lanes :], kept[..., 2 * lanes :])


# -------------------------------------------------------------------------------------------------------------- fft


def radices_of(n, wide):
    """A length of the library's as radices, in any order that a test wants."""
    result = [3] if n % 3 == 0 else []
    n //= 3 if result else 1
    for radix in (8, 4, 2) if wide else (4, 2):
        while n % radix == 0 and n > 1:
            result.append(radix)
            n //= radix
    return result


class Fft:
    """W signals of rows x columns complex numbers, and filters of their size with some of their columns zero."""

    def __init__(self, rng, dtype, lanes, rows, columns, *, linear=False, wide=True, shared=False, reverse=False):
        self.dtype, self.lanes, self.shape, self.shared = dtype, lanes, (rows, columns), shared
        self.radices = [radices_of(n, wide)[:: -1 if reverse else 1] for n in (rows, columns)]
        self.options = {"twist": None}
        for name, radices, n in zip(("row", "column"), self.radices, self.shape, strict=True):
            table, m = [], n
            for r in radices:
                table += [j * q / m for j in range(m // r) for q in range(1, r) if m > r]
                m //= r
            self.options[f"{name}_radices"] = radices
            self.options[f"{name}_twiddles"] = self.roots(table)
        if linear and rows > 1:
            order = self.frequencies(self.radices[0])
            self.options["twist"] = self.roots(np.outer(np.arange(columns), order) / (rows * columns))
        self.linear = linear
        self.x = rng.standard_normal((2, rows, columns, lanes))
        self.w = rng.standard_normal((rows, columns, lanes))
        if shared:
            self.w[...] = self.w[..., :1]

    def roots(self, turns):
        angle = 2 * np.pi * np.asarray(turns, np.float64).reshape(-1)
        return np.stack([np.cos(angle), np.sin(angle)], -1).reshape(-1).astype(self.dtype)

    @staticmethod
    def frequencies(radices):
        """The order that decimation leaves the frequencies of an axis in."""
        order = np.zeros(1, np.int64)
        for r in reversed(radices):
            order = np.concatenate([q + r * order for q in range(r)])
        return order

    def flat(self, array):
        """As the kernels take it: followed by a guard."""
        return np.concatenate([array.reshape(-1), [MARK] * 3]).astype(self.dtype)

    def spectrum(self, isa, scale=1.0):
        n = math.prod(self.shape)
        re, im, out = self.flat(self.w), self.flat(0 * self.w), marked(2 * n * self.lanes + 3, self.dtype)
        _testing.fft_spectrum(
            isa, re=re, im=im, **self.options, spectrum=out, scale=scale, first_column=0, end_column=self.shape[1]
        )
        for array in (out, re, im):
            assert (array[-3:] == MARK).all()
        return out

    def convolve(self, isa, columns=None, out_columns=None, spectrum=None):
        first, end = columns or (0, self.shape[1])
        spectrum = self.spectrum(isa, 1 / math.prod(self.shape)) if spectrum is None else spectrum
        if self.shared:
            spectrum = spectrum[:-3].reshape(-1, self.lanes)[:, 0].copy()
        re, im = (self.flat(part) for part in self.x)
        finite = marked(2 * self.lanes + 3, self.dtype)
        _testing.fft_convolve(
            isa,
            re=re,
            im=im,
            **self.options,
            spectrum=spectrum,
            shared=self.shared,
            first_column=first,
            end_column=end,
            out_columns=self.shape[1] if out_columns is None else out_columns,
            finite=finite,
        )
        for array in (re, im, finite):
            assert (array[-3:] == MARK).all()
        return np.stack([a[:-3].reshape(self.x.shape[1:]) for a in (re, im)]), finite[:-3].reshape(2, self.lanes)

    def expected(self):
        """The circular correlation in double precision, by NumPy's transform."""
        axes = (0, 1)
        z, w = self.x[0] + 1j * self.x[1], self.w
        if self.linear:
            z, w = (a.reshape(1, -1, self.lanes) for a in (z, w))
        y = np.fft.ifft2(np.fft.fft2(z, axes=axes) * np.conj(np.fft.fft2(w, axes=axes)), axes=axes)
        return np.stack([y.real, y.imag]).reshape(self.x.shape)

    def assert_close(self, y, expected):
        # Rounding errors of a transform are relative to the norm of the signal.
        z = np.sqrt((self.x**2).sum((0, 1, 2))) * np.sqrt((self.w**2).sum((0, 1)))
        error = np.abs(y - expected) / (np.finfo(self.dtype).eps * z)
        assert error.max() <= (2 if self.dtype is np.float32 else 4)  # NumPy's own in double


FFT_LENGTHS = (1, 2, 8, 12, 16, 24, 32, 48, 64, 96, 128)


@covers("fft_convolve", "fft_spectrum")
@pytest.mark.parametrize("wide", [False, True])
def test_fft_of_every_length(rng, isa, dtype, shape, wide):
    for n in FFT_LENGTHS:
        for rows, columns in ((n, 4), (3, n)):
            for options in ({}, {"linear": True}, {"shared": True}, {"reverse": True}):
                job = Fft(rng, dtype, shape["lanes"], rows, columns, wide=wide, **options)
                y, finite = job.convolve(isa)
                job.assert_close(y, job.expected())
                np.testing.assert_array_equal(finite, 0)


def test_fft_spectrum_is_the_conjugate_in_order_of_decimation(rng, isa, dtype, shape):
    for options in ({}, {"linear": True}):
        job = Fft(rng, dtype, shape["lanes"], 12, 16, **options)
        made = job.spectrum(isa, 0.5)[:-3].reshape(12, 16, 2, -1)
        rows, columns = (job.frequencies(r) for r in job.radices)
        if options:
            full = np.fft.fft(job.w.reshape(-1, job.lanes), axis=0)
            expected = np.conj(full[rows[:, None] + 12 * columns])
        else:
            expected = np.conj(np.fft.fft2(job.w, axes=(0, 1))[rows][:, columns])
        error = np.abs(made[:, :, 0] + 1j * made[:, :, 1] - expected / 2)
        assert error.max() <= 4 * np.finfo(dtype).eps * np.sqrt((job.w**2).sum((0, 1))).max()


def test_fft_passes_over_columns_of_zeros_and_unwanted_ones(rng, isa, dtype, shape):
    job = Fft(rng, dtype, shape["lanes"], 8, 16)
    job.x[:, :, :3] = job.x[:, :, 11:] = 0
    whole, _ = job.convolve(isa)
    part, _ = job.convolve(isa, columns=(3, 11), out_columns=5)
    np.testing.assert_array_equal(part[:, :, :5], whole[:, :, :5])
    job.assert_close(part[:, :, :5], job.expected()[:, :, :5])


def test_fft_lanes_do_not_mix(rng, isa, dtype, shape):
    """What is not finite is found, in its lane alone: the others keep their bits."""
    job = Fft(rng, dtype, shape["lanes"], 16, 8)
    spectrum = job.spectrum(isa)
    clean, _ = job.convolve(isa, spectrum=spectrum)
    for value, (part, lane) in itertools.product(
        (np.nan, np.inf, -np.inf, np.finfo(dtype).max), itertools.product((0, 1), (0, shape["lanes"] - 1))
    ):
        dirty = Fft(np.random.default_rng(0), dtype, shape["lanes"], 16, 8)
        dirty.x, dirty.w = job.x.copy(), job.w
        dirty.x[part, 5, 3, lane] = value
        y, finite = dirty.convolve(isa, spectrum=spectrum)
        others = np.arange(shape["lanes"]) != lane
        np.testing.assert_array_equal(y[..., others], clean[..., others])
        np.testing.assert_array_equal(finite[:, others], 0)
        assert np.isnan(finite[:, lane]).any()
        assert not np.isfinite(value) or np.isnan(finite[:, lane]).any()
        if not np.isfinite(value):
            assert not np.isfinite(y[..., lane]).any()


def test_bounds_of_fft_kernels_are_checked(rng, isa, dtype, shape):
    job = Fft(rng, dtype, shape["lanes"], 8, 12)
    whole = {
        "re": job.flat(job.x[0])[:-3],
        "im": job.flat(job.x[1])[:-3],
        **job.options,
        "spectrum": job.spectrum(isa)[:-3],
        "shared": False,
        "first_column": 0,
        "end_column": 12,
        "out_columns": 12,
        "finite": marked(2 * job.lanes, dtype),
    }
    _testing.fft_convolve(isa, **whole)
    for name in ("re", "im", "spectrum", "finite", "column_twiddles"):
        with pytest.raises(ValueError, match="breaks the rule"):
            _testing.fft_convolve(isa, **whole | {name: whole[name][:-1].copy()})
    for name, wrong in (("end_column", 13), ("out_columns", 13), ("first_column", -1), ("row_radices", [5])):
        with pytest.raises(ValueError, match="breaks the rule"):
            _testing.fft_convolve(isa, **whole | {name: wrong})


# ------------------------------------------------------------------------------------------------------ the binding


def test_bounds_are_checked(isa, dtype, shape):
    lanes = shape["lanes"]
    x = np.zeros(4 * lanes, dtype)
    for wrong in (
        lambda: _testing.activate_run(isa, x=x, n=x.size + 1, kind=1),
        lambda: _testing.activate_run(isa, x=x, n=x.size, kind=12),
        lambda: _testing.sum_run(isa, x=x, n=3, step=x.size),
        lambda: _testing.pack_rows(isa, panel=x, source=x, starts=[x.size], offset=0, length=1, pitch=lanes),
        lambda: _testing.gather_block(isa, tensor=x, buffer=x, pitch=lanes, row_offset=[-1], column_offset=[0]),
    ):
        with pytest.raises(ValueError, match="breaks the rule"):
            wrong()
    other = np.zeros(4, np.float64 if dtype is np.float32 else np.float32)
    with pytest.raises(TypeError):
        _testing.sum_columns(isa, sum=other, x=x, rows=1, pitch=1, columns=1)


def test_bounds_of_depthwise_kernels_are_checked(rng, isa, dtype):
    for options, slab in depthwise_forms(isa):
        job = Depthwise(rng, isa, dtype, channels=3, pixels=9, **options)
        kernel = _testing.depthwise_planes if job.planes else _testing.depthwise_channels
        whole = job.arguments(slab) | {"out": marked(int(job.index.max()) + 1, dtype)} | job.output("out", "out_start")
        kernel(isa, **whole)
        for name in ("out", "weights"):
            used = whole[name].size - (0 if job.planes or name == "out" else 3)  # rows of weights end with a gap
            with pytest.raises(ValueError, match="breaks the rule"):
                kernel(isa, **whole | {name: whole[name][: used - 1 - (name == "weights" and not job.planes)].copy()})
        for name, wrong in (("row_starts", whole["row_starts"][:-1]), ("row_starts", [10**6] * 40), ("channels", 9)):
            with pytest.raises(ValueError, match="breaks the rule"):
                kernel(isa, **whole | {name: wrong})
        if slab:
            continue
        arguments = job.rows_of_planes() if job.planes else job.rows_of_channels()
        kernel = _testing.filter_planes if job.planes else _testing.filter_channels
        taps = job.filter_rows * job.taps
        if not job.planes:
            arguments |= {"filter_rows": job.filter_rows, "sum_pitch": 3}
        dy = job.spread(job.block())[: int(job.index.max()) + 1].copy()
        whole = arguments | {"dy": dy, **job.output("dy", "dy_start"), "sum": marked(3 * taps, dtype)}
        kernel(isa, **whole)
        for name in ("dy", "sum"):
            with pytest.raises(ValueError, match="breaks the rule"):
                kernel(isa, **whole | {name: whole[name][:-1].copy()})


def test_every_kernel_has_a_test(isa, dtype):
    """A row of kernels.inc without a test above fails here."""
    assert set(_testing.kernel_names()) == COVERED
    assert all(callable(getattr(_testing, name)) for name in COVERED)
