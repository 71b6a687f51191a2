// The kernel table, for tests/test_kernels.py alone: each kernel as a function over contiguous arrays.
//
// A table of pointers is an array and the offsets into it of each pointer. Whatever a kernel may read or write is
// checked against the arrays first, so that a wrong test fails and does not crash.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "dispatch/kernel_table.h"
#include "fastconv/backend.h"
#include "fastconv/runtime.h"

namespace fastconv::bindings {
namespace {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style>;
template <class T>
using Optional = std::optional<Array<T>>;
using Indices = std::vector<int64_t>;

void require(bool holds, const char* rule) {
  if (!holds) throw py::value_error(std::string("a kernel's argument breaks the rule: ") + rule);
}

// Numbers small enough that sums and products of two never overflow.
int64_t small(int64_t value) {
  require(value > -(int64_t{1} << 30) && value < (int64_t{1} << 30), "numbers are below 2^30");
  return value;
}

int64_t natural(int64_t value) {
  require(value >= 0, "lengths are not negative");
  return small(value);
}

int64_t up_to_multiple(int64_t n, int64_t of) { return (n + of - 1) / of * of; }

// The least and the greatest of the offsets that a kernel touches, from sums of ranges.
struct Reach {
  int64_t low = 0, high = 0;
  bool empty = false;

  Reach& plus(int64_t offset) {
    low += small(offset), high += small(offset);
    return *this;
  }
  Reach& steps(int64_t count, int64_t step) {
    if (natural(count) == 0) {
      empty = true;
    } else {
      (step < 0 ? low : high) += (count - 1) * small(step);
    }
    return *this;
  }
  Reach& any_of(const int64_t* begin, int64_t count) {
    if (count == 0) {
      empty = true;
      return *this;
    }
    const auto [least, greatest] = std::minmax_element(begin, begin + count);
    low += small(*least), high += small(*greatest);
    return *this;
  }
  Reach& any_of(const Indices& offsets) { return any_of(offsets.data(), static_cast<int64_t>(offsets.size())); }

  template <class A>
  void within(const A& array, const char* rule) const {
    require(empty || (low >= 0 && high < static_cast<int64_t>(array.size())), rule);
  }
};

Isa isa_of(const std::string& name) {
  for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (name == isa_name(isa)) {
      if (!isa_supported(isa)) throw py::value_error("this CPU lacks isa='" + name + "'");
      return isa;
    }
  }
  throw py::value_error("isa (='" + name + "') is not known");
}

template <class T>
const KernelTable<T>& table(const std::string& isa) {
  return kernel_table<T>(isa_of(isa));
}

template <class T>
const T* data_or_null(const Optional<T>& array) {
  return array ? array->data() : nullptr;
}

template <class T>
std::vector<T*> pointers(T* base, const Indices& offsets) {
  std::vector<T*> result;
  for (const int64_t offset : offsets) result.push_back(base + offset);
  return result;
}

int32_t known_activation(int32_t kind) {
  require(kind >= 0 && kind <= 11, "an activation's kind is 0 to 11");
  return kind;
}

std::vector<Segment> segments_of(const std::vector<std::array<int64_t, 3>>& rows, int64_t column_limit) {
  std::vector<Segment> segments;
  for (const auto& [column, offset, length] : rows) {
    require(column >= 0 && natural(length) + small(column) <= column_limit, "segments lie within the panel");
    segments.push_back({column, small(offset), length});
  }
  return segments;
}

// The channel's scale, shift and gate and the activation of a prologue: (scale, shift, gate, gate_stride, kind, a, b).
template <class T>
using MapArgument = std::tuple<Optional<T>, Optional<T>, Optional<T>, int64_t, int32_t, T, T>;

template <class T>
InputMap<T> map_of(const std::optional<MapArgument<T>>& argument, int64_t channels) {
  InputMap<T> map{};
  if (!argument) return map;
  const auto& [scale, shift, gate, gate_stride, kind, a, b] = *argument;
  for (const auto* vector : {&scale, &shift}) {
    if (*vector) Reach().steps(channels, 1).within(**vector, "the prologue's vectors have an entry a channel");
  }
  if (gate) Reach().steps(channels, gate_stride).within(*gate, "the gate has an entry a channel");
  map.scale = data_or_null<T>(scale);
  map.shift = data_or_null<T>(shift);
  map.gate = data_or_null<T>(gate);
  map.gate_stride = gate_stride;
  map.activation = known_activation(kind);
  map.a = a, map.b = b;
  map.active = 1;
  return map;
}

// The offsets of rows that are read: without the two marks of SlabArgs.
Indices real_rows(const Indices& row_offset) {
  Indices rows;
  for (const int64_t offset : row_offset) {
    if (offset != kZeroRow && offset != kUnusedRow) rows.push_back(offset);
  }
  return rows;
}

// --- the kernels, in the order of kernels.inc ------------------------------------------------------------------

template <class T>
void gemm(const std::string& isa, const Array<T>& rows, const Indices& row_starts, int64_t row_pitch,
          int64_t row_offset, int64_t row_step, int64_t taps, int64_t length, std::optional<int64_t> zero_row,
          int64_t m, Array<T> panel, int32_t vectors, int32_t tail, Array<T> c, const Indices& c_starts,
          int64_t c_offset, const Optional<T>& residual, const Indices& residual_starts, int64_t residual_offset,
          bool accumulate, bool finish, bool channel_rows, const Optional<T>& scale, const Optional<T>& shift,
          int32_t activation, T a, T b, const Optional<T>& next, int64_t next_rows, int64_t next_pitch,
          int64_t next_width, int64_t panels, const Optional<T>& source, const Indices& source_offset,
          const Optional<T>& weights, int64_t weights_pitch) {
  const KernelTable<T>& kernels = table<T>(isa);
  require(vectors >= 1 && vectors <= (weights ? 1 : kernels.max_vectors), "a panel has 1 to max_vectors vectors");
  require(tail >= 1 && tail <= kernels.lanes, "the tail has 1 to W lanes");
  require(panels == 1 || (panels > 1 && tail == kernels.lanes), "panels are whole or one");
  require(!weights || (m <= kFewRows && taps == 1 && row_step == 1 && panels == 1), "few rows of one tap");
  const int64_t width = vectors * kernels.lanes, columns = panels * width - kernels.lanes + tail;
  natural(m), natural(taps), natural(length), natural(row_pitch);
  const auto starts = static_cast<int64_t>(row_starts.size());
  require(m == 0 || taps == 0 || (taps - 1) * row_pitch + m <= starts, "row_starts has an entry a tap and row");
  // A row's pointer is read whether or not it is used.
  if (m > 0) {
    for (int64_t t = 0; t < taps; ++t) {
      Reach()
          .any_of(row_starts.data() + t * row_pitch, m)
          .plus(row_offset)
          .steps(length, row_step)
          .within(rows, "rows lie within their array");
    }
    require(static_cast<int64_t>(c_starts.size()) >= m, "c_starts has an entry a row");
    Reach().any_of(c_starts.data(), m).plus(c_offset).steps(columns, 1).within(c, "C lies within its array");
    if (residual) {
      require(static_cast<int64_t>(residual_starts.size()) >= m, "residual_starts has an entry a row");
      Reach()
          .any_of(residual_starts.data(), m)
          .plus(residual_offset)
          .steps(columns, 1)
          .within(*residual, "the residual lies within its array");
    }
  }
  if (weights) {
    Reach().steps(columns, weights_pitch).steps(length, 1).within(*weights, "the weights lie within their array");
  } else {
    Reach().steps(panels * small(taps * length), width).steps(width, 1).within(panel, "the panel holds its rows");
  }
  if (source) {
    require(taps == 1 && static_cast<int64_t>(source_offset.size()) >= length, "source_offset has an entry a row");
    Reach().any_of(source_offset.data(), length).steps(panels * width, 1).within(*source, "the rows lie within source");
  }
  for (const auto* vector : {&scale, &shift}) {
    if (*vector) Reach().steps(channel_rows ? m : columns, 1).within(**vector, "scale and shift have an entry each");
  }
  if (next) Reach().steps(next_rows, next_pitch).steps(next_width, 1).within(*next, "next lies within its array");

  const std::vector<const T*> row_table = pointers(rows.data(), row_starts);
  const std::vector<T*> c_table = pointers(c.mutable_data(), c_starts);
  std::vector<const T*> residual_table;
  if (residual) residual_table = pointers(residual->data(), residual_starts);
  GemmArgs<T> g{};
  g.rows = row_table.data();
  g.row_pitch = row_pitch, g.row_offset = row_offset, g.row_step = row_step;
  g.taps = taps, g.length = length;
  g.zero_row = zero_row ? rows.data() + small(*zero_row) : nullptr;
  g.m = m;
  g.panel = panel.data();
  g.panels = panels, g.panel_pitch = taps * length * width;
  g.source = data_or_null<T>(source), g.source_offset = source_offset.data();
  g.pack = source ? panel.mutable_data() : nullptr;
  g.weights = data_or_null<T>(weights), g.weights_pitch = weights_pitch;
  g.vectors = vectors, g.tail = tail;
  g.c = c_table.data();
  g.c_offset = c_offset;
  g.residual = residual ? residual_table.data() : nullptr;
  g.residual_offset = residual_offset;
  g.accumulate = accumulate, g.finish = finish, g.channel_rows = channel_rows;
  g.scale = data_or_null<T>(scale), g.shift = data_or_null<T>(shift);
  g.activation = known_activation(activation);
  g.a = a, g.b = b;
  g.next = data_or_null<T>(next);
  if (next) g.next_rows = next_rows, g.next_pitch = next_pitch, g.next_width = next_width;
  kernels.gemm(g);
}

template <class T>
PackWeightsArgs<T> weights_args(Array<T>& panel, const Array<T>& w, int64_t column_stride, int64_t channel_stride,
                                const Indices& tap_offset, int64_t length, int64_t columns, int64_t valid) {
  Reach()
      .steps(valid, column_stride)
      .steps(length, channel_stride)
      .any_of(tap_offset)
      .within(w, "the weights lie within their array");
  const auto taps = static_cast<int64_t>(tap_offset.size());
  return {panel.mutable_data(), w.data(), column_stride, channel_stride, tap_offset.data(), taps, length, nullptr,
          natural(columns),     valid};
}

template <class T>
void pack_weights(const std::string& isa, Array<T> panel, const Array<T>& w, int64_t column_stride,
                  int64_t channel_stride, const Indices& tap_offset, int64_t length, int64_t columns, int64_t valid,
                  const Indices& tap_starts) {
  auto args = weights_args(panel, w, column_stride, channel_stride, tap_offset, length, columns, valid);
  require(columns % table<T>(isa).lanes == 0, "columns is a multiple of W");
  require(valid <= columns, "valid is at most columns");
  require(tap_starts.empty() || tap_starts.size() == tap_offset.size(), "tap_starts has an entry a tap");
  const std::vector<T*> tap_panel = pointers(panel.mutable_data(), tap_starts);
  if (tap_starts.empty()) {
    Reach().steps(small(args.taps * length), columns).steps(columns, 1).within(panel, "the panel holds its rows");
  } else {
    Reach().any_of(tap_starts).steps(length, columns).steps(columns, 1).within(panel, "the panel holds its rows");
    args.tap_panel = tap_panel.data();
  }
  table<T>(isa).pack_weights(args);
}

template <class T>
void pack_weight_rows(const std::string& isa, Array<T> panel, const Array<T>& w, int64_t column_stride,
                      int64_t channel_stride, const Indices& tap_offset, int64_t length, int64_t columns,
                      int64_t valid) {
  const auto args = weights_args(panel, w, column_stride, channel_stride, tap_offset, length, columns, valid);
  require(args.taps > 0, "there is a tap");
  Reach().steps(valid, columns).steps(small(args.taps * length), 1).within(panel, "the panel holds its rows");
  table<T>(isa).pack_weight_rows(args);
}

template <class T>
void pack_columns(const std::string& isa, Array<T> panel, const Array<T>& source, int64_t channel_stride,
                  const Indices& tap_offset, int64_t channels, const std::vector<std::array<int64_t, 3>>& segments,
                  int64_t columns, bool exact) {
  const std::vector<Segment> list = segments_of(segments, natural(columns));
  const int64_t lanes = table<T>(isa).lanes;
  require(list.size() != 1 || exact || list[0].column == 0, "a segment alone begins at column 0");
  const auto taps = static_cast<int64_t>(tap_offset.size());
  for (const Segment& segment : list) {
    if (segment.length == 0) continue;
    const int64_t whole = up_to_multiple(segment.length, lanes);
    Reach()
        .steps(channels, channel_stride)
        .any_of(tap_offset)
        .plus(segment.offset)
        .steps(exact ? segment.length : whole, 1)
        .within(source, "the source has W - 1 elements past a segment");
    Reach()
        .steps(small(channels * taps), columns)
        .plus(segment.column)
        .steps(whole, 1)
        .within(panel, "the panel has W - 1 elements past its end");
  }
  table<T>(isa).pack_columns({panel.mutable_data(), source.data(), channel_stride, tap_offset.data(), channels, taps,
                              list.data(), static_cast<int64_t>(list.size()), columns, exact});
}

template <class T>
void pack_transposed(const std::string& isa, Array<T> panel, const Array<T>& source, const Indices& starts,
                     const std::vector<std::array<int64_t, 3>>& segments) {
  const auto columns = static_cast<int64_t>(starts.size());
  const int64_t lanes = table<T>(isa).lanes;
  require(columns % lanes == 0, "columns is a multiple of W");
  const std::vector<Segment> list = segments_of(segments, int64_t{1} << 29);
  for (const Segment& segment : list) {
    const int64_t whole = up_to_multiple(segment.length, lanes);
    Reach()
        .any_of(starts)
        .plus(segment.offset)
        .steps(whole, 1)
        .within(source, "the source has W - 1 elements past a segment");
    Reach()
        .plus(small(segment.column * columns))
        .steps(whole, columns)
        .steps(columns, 1)
        .within(panel, "the panel has W - 1 rows past its end");
  }
  const std::vector<const T*> table_of_columns = pointers(source.data(), starts);
  table<T>(isa).pack_transposed(
      {panel.mutable_data(), table_of_columns.data(), list.data(), static_cast<int64_t>(list.size()), columns});
}

template <class T>
void pack_rows(const std::string& isa, Array<T> panel, const Array<T>& source, const Indices& starts, int64_t offset,
               int64_t length, int64_t pitch) {
  require(pitch % table<T>(isa).lanes == 0 && natural(length) <= pitch, "the pitch is a multiple of W");
  const auto count = static_cast<int64_t>(starts.size());
  Reach().any_of(starts).plus(offset).steps(length, 1).within(source, "rows lie within their array");
  Reach().steps(count, pitch).steps(pitch, 1).within(panel, "the panel holds its rows");
  const std::vector<const T*> rows = pointers(source.data(), starts);
  table<T>(isa).pack_rows({panel.mutable_data(), rows.data(), count, offset, length, pitch});
}

template <class T>
void fill_pixel_slab(const std::string& isa, Array<T> slab, const Array<T>& source, int64_t channel_stride,
                     int64_t column_stride, int64_t channels, const Indices& row_offset, int64_t columns, int64_t first,
                     int64_t image_columns, const std::optional<Indices>& column_map,
                     const std::optional<MapArgument<T>>& map) {
  const auto rows = static_cast<int64_t>(row_offset.size());
  Reach()
      .steps(rows, small(natural(columns) * natural(channels)))
      .steps(columns * channels, 1)
      .within(slab, "the slab holds its rows");
  Reach read;
  read.any_of(real_rows(row_offset)).steps(channels, channel_stride);
  if (column_map) {
    require(static_cast<int64_t>(column_map->size()) >= columns, "the column map has an entry a column");
    for (int64_t i = 0; i < columns; ++i) {
      Reach(read)
          .plus(small(small((*column_map)[i]) * small(column_stride)))
          .within(source, "columns lie in the image");
    }
  } else {
    read.steps(image_columns, column_stride).within(source, "rows lie in the image");
  }
  PixelSlabArgs<T> p{};
  p.slab = slab.mutable_data();
  p.source = source.data();
  p.channel_stride = channel_stride, p.column_stride = column_stride;
  p.channels = channels;
  p.row_offset = row_offset.data();
  p.rows = rows, p.columns = columns;
  p.first = small(first), p.image_columns = image_columns;
  p.column_map = column_map ? column_map->data() : nullptr;
  p.map = map_of<T>(map, channels);
  require(!p.map.gate || p.map.gate_stride == 1, "gates are neighbours");
  table<T>(isa).fill_pixel_slab(p);
}

template <class T>
void fill_slab(const std::string& isa, Array<T> slab, int64_t channel_pitch, int64_t row_pitch, int64_t phase_pitch,
               const Array<T>& source, int64_t channel_stride, int64_t column_stride, int64_t channels,
               const Indices& row_offset, const std::vector<int32_t>& phases, int64_t phase_length, int64_t first,
               int64_t stride, int64_t image_columns, const std::optional<Indices>& column_map,
               const std::optional<MapArgument<T>>& map) {
  const auto rows = static_cast<int64_t>(row_offset.size()), phase_count = static_cast<int64_t>(phases.size());
  require(small(stride) >= 1, "the stride is positive");
  Reach()
      .steps(channels, channel_pitch)
      .steps(rows, row_pitch)
      .steps(phase_count, phase_pitch)
      .steps(phase_length, 1)
      .within(slab, "the slab holds its rows");
  Reach read;
  read.any_of(real_rows(row_offset)).steps(channels, channel_stride);
  for (const int32_t phase : phases) require(phase >= 0 && phase < stride, "a phase is a residue of the stride");
  if (column_map) {
    for (const int32_t phase : phases) {
      Reach().plus(phase).steps(phase_length, stride).within(*column_map, "the column map has an entry a column");
    }
    Indices columns(*column_map);
    for (int64_t& column : columns) column = small(small(column) * small(column_stride));
    read.any_of(columns).within(source, "columns lie in the image");
  } else {
    read.steps(image_columns, column_stride).within(source, "rows lie in the image");
  }
  SlabArgs<T> p{};
  p.slab = slab.mutable_data();
  p.channel_pitch = channel_pitch, p.row_pitch = row_pitch, p.phase_pitch = phase_pitch;
  p.source = source.data();
  p.channel_stride = channel_stride, p.column_stride = column_stride;
  p.channels = channels;
  p.row_offset = row_offset.data();
  p.rows = rows;
  p.phases = phases.data();
  p.phase_count = phase_count, p.phase_length = phase_length;
  p.first = small(first), p.stride = stride;
  p.image_columns = image_columns;
  p.column_map = column_map ? column_map->data() : nullptr;
  p.map = map_of<T>(map, channels);
  table<T>(isa).fill_slab(p);
}

template <class T>
MoveBlockArgs<T> move_args(const KernelTable<T>& kernels, T* tensor, T* buffer, const Array<T>& tensor_array,
                           const Array<T>& buffer_array, int64_t pitch, const Indices& row_offset,
                           const Indices& column_offset) {
  const auto m = static_cast<int64_t>(row_offset.size()), n = static_cast<int64_t>(column_offset.size());
  require(natural(pitch) % kernels.lanes == 0 && n <= pitch, "the pitch is a multiple of W");
  require(std::adjacent_find(row_offset.begin(), row_offset.end(), std::greater_equal<>()) == row_offset.end(),
          "row offsets grow");
  Reach().any_of(row_offset).any_of(column_offset).within(tensor_array, "the block lies within the tensor");
  Reach().steps(m, pitch).steps(pitch, 1).within(buffer_array, "the buffer holds the block");
  return {tensor, buffer, pitch, row_offset.data(), column_offset.data(), m, n, 0};
}

template <class T>
void gather_block(const std::string& isa, const Array<T>& tensor, Array<T> buffer, int64_t pitch,
                  const Indices& row_offset, const Indices& column_offset) {
  // The struct serves both directions; this one only reads the tensor.
  const auto args = move_args(table<T>(isa), const_cast<T*>(tensor.data()), buffer.mutable_data(), tensor, buffer,
                              pitch, row_offset, column_offset);
  table<T>(isa).gather_block(args);
}

template <class T>
void scatter_block(const std::string& isa, Array<T> tensor, const Array<T>& buffer, int64_t pitch,
                   const Indices& row_offset, const Indices& column_offset, bool accumulate) {
  auto args = move_args(table<T>(isa), tensor.mutable_data(), const_cast<T*>(buffer.data()), tensor, buffer, pitch,
                        row_offset, column_offset);
  args.accumulate = accumulate;
  table<T>(isa).scatter_block(args);
}

template <class T>
T sum_run(const std::string& isa, const Array<T>& x, int64_t n, int64_t step) {
  require(step >= 0, "the step is not negative");
  Reach().steps(n, step).within(x, "the run lies within its array");
  return table<T>(isa).sum_run(x.data(), n, step);
}

template <class T>
void sum_columns(const std::string& isa, Array<T> sum, const Array<T>& x, int64_t rows, int64_t pitch,
                 int64_t columns) {
  Reach().steps(columns, 1).within(sum, "there is a sum a column");
  require(pitch >= 0, "the pitch is not negative");
  Reach().steps(rows, pitch).steps(columns, 1).within(x, "the rows lie within their array");
  table<T>(isa).sum_columns(sum.mutable_data(), x.data(), rows, pitch, columns);
}

template <class T>
void sum_rows(const std::string& isa, Array<T> sum, const Array<T>& x, int64_t rows, int64_t pitch, int64_t n) {
  require(pitch >= 0, "the pitch is not negative");
  Reach().steps(rows, 1).within(sum, "there is a sum a row");
  Reach().steps(rows, pitch).steps(n, 1).within(x, "the rows lie within their array");
  table<T>(isa).sum_rows(sum.mutable_data(), x.data(), rows, pitch, n);
}

template <class T>
void fill_rows(const std::string& isa, Array<T> y, const Array<T>& value, int64_t rows, int64_t pitch, int64_t n) {
  require(pitch >= 0, "the pitch is not negative");
  Reach().steps(rows, 1).within(value, "there is a value a row");
  Reach().steps(rows, pitch).steps(n, 1).within(y, "the rows lie within their array");
  table<T>(isa).fill_rows(y.mutable_data(), value.data(), rows, pitch, n);
}

template <class T>
double fma_loop(const KernelTable<T>& kernels, int64_t rounds) {
  return kernels.fma_loop(natural(rounds));
}

template <class T>
void copy_run(const std::string& isa, Array<T> dst, const Array<T>& src, int64_t offset, int64_t n, bool streaming) {
  require(offset >= 0, "the offset is not negative");
  Reach().plus(offset).steps(n, 1).within(dst, "the run lies within the target");
  Reach().steps(n, 1).within(src, "the run lies within the source");
  table<T>(isa).copy_run(dst.mutable_data() + offset, src.data(), n, streaming);
}

template <class T>
void activate_run(const std::string& isa, Array<T> x, int64_t n, int32_t kind, T a, T b) {
  Reach().steps(n, 1).within(x, "the run lies within its array");
  table<T>(isa).activate_run(x.mutable_data(), n, known_activation(kind), a, b);
}

// The pooling kernels share their arguments; each uses some. Runs begin at starts[k] of `x`, marks at marks_starts[k].
template <class T>
struct PoolCall {
  PoolArgs<T> args{};
  std::vector<const T*> src, marks;
};

template <class T>
PoolCall<T> pool_call(const Array<T>& x, const Indices& starts, Array<T>& dst, int64_t n, int64_t rows,
                      int64_t src_pitch, int64_t dst_pitch, int64_t phase_pitch, int64_t reach, int64_t phases) {
  PoolCall<T> call;
  PoolArgs<T>& a = call.args;
  require(starts.size() <= static_cast<size_t>(kPoolTaps), "a window has at most kPoolTaps runs");
  if (rows > 0) {
    Reach().any_of(starts).steps(rows, src_pitch).steps(reach, 1).within(x, "the runs lie within their array");
    Reach().steps(rows, dst_pitch).steps(phases, phase_pitch).steps(n, 1).within(dst, "the target holds the rows");
  }
  for (const int64_t start : starts) call.src.push_back(x.data() + start);
  a.src = call.src.data(), a.count = static_cast<int64_t>(starts.size());
  a.n = natural(n), a.rows = natural(rows), a.src_pitch = src_pitch, a.dst_pitch = dst_pitch;
  a.phase_pitch = phase_pitch, a.dst = dst.mutable_data(), a.divisor = T{1};
  return call;
}

template <class T>
void pool_combine(const std::string& isa, const Array<T>& x, const Indices& starts, Array<T> dst, int64_t n,
                  int64_t rows, int64_t src_pitch, int64_t dst_pitch, int32_t op, int32_t finish, bool accumulate,
                  T divisor, const Optional<T>& divisors) {
  require(op >= 0 && op <= 2 && finish >= 0 && finish <= 2, "op and finish are 0 to 2");
  require(!starts.empty() || !accumulate, "an accumulation adds something");
  PoolCall<T> call = pool_call(x, starts, dst, n, rows, src_pitch, dst_pitch, 0, n, 1);
  if (divisors) Reach().steps(n, 1).within(*divisors, "there is a divisor a column");
  call.args.op = op, call.args.finish = finish, call.args.accumulate = accumulate, call.args.divisor = divisor;
  call.args.divisors = data_or_null<T>(divisors);
  table<T>(isa).pool_combine(call.args);
}

template <class T>
void pool_slide(const std::string& isa, const Array<T>& x, Array<T> dst, int64_t n, int64_t rows, int64_t src_pitch,
                int64_t dst_pitch, int64_t taps, int64_t stride, int64_t step, int32_t op, int32_t finish, T divisor,
                const Optional<T>& divisors) {
  const KernelTable<T>& kernels = table<T>(isa);
  require((op == 0 || op == 1) && finish >= 0 && finish <= 2, "op is 0 or 1, finish 0 to 2");
  require(n >= 1 && taps >= 1 && stride >= 1 && step >= 1, "sizes are positive");
  const int64_t whole = up_to_multiple(n, kernels.lanes);
  const int64_t reach = (whole - 1) * small(stride) + (taps - 1) * small(step) + 2 + kernels.lanes;
  PoolCall<T> call = pool_call(x, {0}, dst, n, rows, src_pitch, dst_pitch, 0, reach, 1);
  if (divisors) Reach().steps(n, 1).within(*divisors, "there is a divisor a column");
  PoolArgs<T>& a = call.args;
  a.count = taps, a.stride = stride, a.step = step, a.op = op, a.finish = finish, a.divisor = divisor;
  a.divisors = data_or_null<T>(divisors);
  kernels.pool_slide(a);
}

template <class T>
void pool_argmax(const std::string& isa, const Array<T>& x, const Indices& starts, Array<T> dst, int64_t n,
                 int64_t rows, int64_t src_pitch, int64_t dst_pitch, const std::vector<T>& codes) {
  require(!starts.empty() && codes.size() == starts.size(), "each run has a code");
  PoolCall<T> call = pool_call(x, starts, dst, n, rows, src_pitch, dst_pitch, 0, n, 1);
  call.args.codes = codes.data();
  table<T>(isa).pool_argmax(call.args);
}

template <class T>
void pool_route(const std::string& isa, const Array<T>& x, const Indices& starts, const Array<T>& marks,
                const Indices& marks_starts, Array<T> dst, int64_t n, int64_t rows, int64_t src_pitch,
                int64_t marks_pitch, int64_t dst_pitch, const std::vector<T>& codes) {
  require(codes.size() == starts.size() && marks_starts.size() == starts.size(), "each run has marks and a code");
  PoolCall<T> call = pool_call(x, starts, dst, n, rows, src_pitch, dst_pitch, 0, n, 1);
  Reach().any_of(marks_starts).steps(rows, marks_pitch).steps(n, 1).within(marks, "the marks lie within their array");
  for (const int64_t start : marks_starts) call.marks.push_back(marks.data() + start);
  call.args.marks = call.marks.data(), call.args.codes = codes.data(), call.args.phase_pitch = marks_pitch;
  table<T>(isa).pool_route(call.args);
}

template <class T>
void pool_split(const std::string& isa, const Array<T>& x, Array<T> dst, int64_t n, int64_t rows, int64_t src_pitch,
                int64_t dst_pitch, int64_t phase_pitch, int64_t stride) {
  require(stride >= 1 && n >= 1 && phase_pitch >= 0, "sizes are positive");
  PoolCall<T> call =
      pool_call(x, {0}, dst, (n + stride - 1) / stride, rows, src_pitch, dst_pitch, phase_pitch, n, stride);
  call.args.n = n, call.args.stride = stride;
  table<T>(isa).pool_split(call.args);
}

template <class T>
void pool_merge(const std::string& isa, const Array<T>& x, Array<T> dst, int64_t n, int64_t rows, int64_t src_pitch,
                int64_t dst_pitch, int64_t phase_pitch, int64_t stride) {
  const KernelTable<T>& kernels = table<T>(isa);
  require(stride >= 1 && n >= 1 && phase_pitch >= 0, "sizes are positive");
  const int64_t reach = (stride - 1) * phase_pitch + up_to_multiple((n + stride - 1) / stride, kernels.lanes);
  PoolCall<T> call = pool_call(x, {0}, dst, n, rows, src_pitch, dst_pitch, 0, reach, 1);
  call.args.phase_pitch = phase_pitch, call.args.stride = stride;
  kernels.pool_merge(call.args);
}

template <class T>
void turn_block(const std::string& isa, const Array<T>& from, Array<T> to, int64_t rows, int64_t n, int64_t from_pitch,
                int64_t to_pitch) {
  require(n >= 1 && rows >= 1, "sizes are positive");
  Reach().steps(n, 1).steps(rows, from_pitch).within(from, "the rows lie within the array");
  Reach().steps(rows, 1).steps(n, to_pitch).within(to, "the target holds the columns");
  table<T>(isa).turn_block({from.data(), to.mutable_data(), rows, n, from_pitch, to_pitch});
}

// Planes lie one after the other: channels x rows x columns, channels x out_rows x out_columns; with `pixels` their
// channels are innermost instead.
template <class T>
void pool_planes(const std::string& isa, const Array<T>& x, Array<T> dst, int64_t channels, int64_t rows,
                 int64_t columns, int64_t first_row, int64_t first_column, int64_t out_rows, int64_t out_columns,
                 int32_t taps, int32_t stride, int32_t op, int32_t finish, T divisor, const Optional<T>& row_counts,
                 const Optional<T>& column_counts, bool pixels) {
  require((taps == 2 && stride == 2) || (taps == 3 && (stride == 1 || stride == 2)), "windows of 2/2, 3/1 or 3/2");
  require(op >= 0 && op <= 1 && finish >= 0 && finish <= 1, "op and finish are 0 or 1");
  require(first_row <= 0 && first_row > -taps && first_column <= 0 && first_column > -taps, "windows begin inside");
  require((out_rows - 1) * stride + first_row < rows && (out_columns - 1) * stride + first_column < columns,
          "windows begin before the end");
  Reach().steps(natural(channels) * natural(rows) * natural(columns), 1).within(x, "the planes lie within the array");
  Reach().steps(channels * natural(out_rows) * natural(out_columns), 1).within(dst, "the target holds the planes");
  require(!row_counts == !column_counts, "both counts or none");
  if (row_counts) Reach().steps(out_rows, 1).within(*row_counts, "there is a count a row");
  if (column_counts) Reach().steps(out_columns, 1).within(*column_counts, "there is a count a column");
  PoolPlanesArgs<T> a{};
  a.x = x.data(), a.y = dst.mutable_data(), a.channels = channels;
  a.x_channel = rows * columns, a.y_channel = out_rows * out_columns, a.x_pitch = columns, a.y_pitch = out_columns;
  a.rows = rows, a.columns = columns, a.first_row = first_row, a.first_column = first_column;
  a.out_rows = out_rows, a.out_columns = out_columns, a.taps = taps, a.stride = stride, a.op = op, a.finish = finish;
  a.divisor = divisor, a.row_counts = data_or_null<T>(row_counts), a.column_counts = data_or_null<T>(column_counts);
  if (!pixels) return table<T>(isa).pool_planes(a);
  a.x_channel = a.y_channel = 1, a.x_column = a.y_column = channels;
  a.x_pitch = columns * channels, a.y_pitch = out_columns * channels;
  table<T>(isa).pool_pixels(a);
}

template <class T>
void pool_planes_backward(const std::string& isa, const Array<T>& x, const Array<T>& dy, Array<T> dst, int64_t channels,
                          int64_t rows, int64_t columns, int64_t first_row, int64_t first_column, int64_t out_rows,
                          int64_t out_columns, int32_t taps, int32_t stride, int32_t op, T divisor, bool pixels) {
  require((taps == 2 && stride == 2) || (taps == 3 && (stride == 1 || stride == 2)), "windows of 2/2, 3/1 or 3/2");
  require(first_row <= 0 && first_column <= 0, "the first window begins at the image or before");
  require(taps == 2 ? first_row == 0 && first_column == 0 : first_row > -3 && first_column > -3, "and not far before");
  require((natural(out_rows) - 1) * stride + first_row < rows &&
              (natural(out_columns) - 1) * stride + first_column < columns,
          "windows begin before the end");
  require(columns <= 256, "the lines of a row fit");
  Reach().steps(natural(channels) * natural(rows) * natural(columns), 1).within(x, "the planes lie within the array");
  Reach().steps(channels * rows * columns, 1).within(dst, "the target holds the planes");
  Reach().steps(channels * out_rows * out_columns, 1).within(dy, "the gradients lie within their array");
  PoolPlanesArgs<T> a{};
  a.x = x.data(), a.dy = dy.data(), a.y = dst.mutable_data(), a.channels = channels;
  a.x_channel = a.y_channel = rows * columns, a.dy_channel = out_rows * out_columns;
  a.x_pitch = a.y_pitch = columns, a.dy_pitch = out_columns, a.rows = rows, a.columns = columns;
  a.first_row = first_row, a.first_column = first_column, a.out_rows = out_rows, a.out_columns = out_columns;
  a.taps = taps, a.stride = stride, a.op = op, a.divisor = divisor;
  require(op == 0 || (op == 1 && taps == 2 && !pixels), "means of 2/2 windows of planes");
  if (!pixels) return table<T>(isa).pool_planes_backward(a);
  // Ends at a page as far as the allocator lets it: the sanitizers see what lies behind.
  std::vector<T> scratch(static_cast<size_t>(12 * table<T>(isa).lanes * out_columns + 16));
  a.scratch = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64 / sizeof(T);
  a.x_channel = a.y_channel = a.dy_channel = 1, a.x_column = a.y_column = a.dy_column = channels;
  a.x_pitch = a.y_pitch = columns * channels, a.dy_pitch = out_columns * channels;
  table<T>(isa).pool_pixels_backward(a);
}

// Maxima of integers: `step` 0 combines the runs, else one run slides.
template <class E>
void pool_integers(const std::string& isa, const Array<E>& x, const Indices& starts, Array<E> dst, int64_t n,
                   int64_t rows, int64_t src_pitch, int64_t dst_pitch, int64_t taps, int64_t stride, int64_t step,
                   int32_t dtype) {
  require(!starts.empty() && n >= 1, "there is something to combine");
  const int64_t reach = step == 0 ? n : (n - 1) * small(stride) + (taps - 1) * small(step) + 1;
  PoolCall<E> call = pool_call(x, starts, dst, n, rows, src_pitch, dst_pitch, 0, reach, 1);
  if (step != 0) call.args.count = taps;
  call.args.stride = stride, call.args.step = step;
  table<float>(isa).pool_integers(&call.args, dtype);
  Array<E> again(dst.size());  // the row of the other table does the same
  call.args.dst = again.mutable_data();
  std::copy_n(dst.data(), dst.size(), again.mutable_data());
  table<double>(isa).pool_integers(&call.args, dtype);
  require(std::equal(dst.data(), dst.data() + dst.size(), again.data()), "both tables have the same kernel");
}

template <class T>
T max_run(const std::string& isa, const Array<T>& x, int64_t n) {
  require(n >= 1, "a maximum has an element");
  Reach().steps(n, 1).within(x, "the run lies within its array");
  return table<T>(isa).max_run(x.data(), n);
}

template <class T>
void norm_stats(const std::string& isa, const Array<T>& x, int64_t rows, int64_t columns, int64_t pitch, bool by_column,
                int64_t count, int64_t step, Array<T> shift, Array<T> sum, Array<T> square) {
  require(rows > 0 && columns > 0 && (!by_column || count == 1), "there is a block");
  Reach().steps(count, step).steps(rows, pitch).steps(columns, 1).within(x, "the blocks lie within their array");
  for (const auto* to : {&shift, &sum, &square}) {
    Reach().steps(by_column ? columns : count, 1).within(*to, "there is a sum each");
  }
  table<T>(isa).norm_stats({x.data(), rows, columns, pitch, by_column, count, step, shift.mutable_data(),
                            sum.mutable_data(), square.mutable_data()});
}

template <class T>
void within_block(const Optional<T>& array, int64_t rows, int64_t columns, int64_t pitch) {
  if (array) Reach().steps(rows, pitch).steps(columns, 1).within(*array, "the block lies within its array");
}

template <class T>
void norm_apply(const std::string& isa, Array<T> y, int64_t offset, const Array<T>& x, const Optional<T>& residual,
                int64_t pitch, int64_t rows, int64_t columns, bool by_column, const Array<T>& mean,
                const Array<T>& scale, const Array<T>& shift, const Optional<T>& weight, const Optional<T>& bias,
                int32_t activation, T a, T b, bool streaming) {
  Reach().plus(offset).steps(rows, pitch).steps(columns, 1).within(y, "the block lies within its array");
  within_block<T>(x, rows, columns, pitch);
  within_block<T>(residual, rows, columns, pitch);
  for (const auto* v : {&mean, &scale, &shift}) {
    Reach().steps(by_column ? columns : rows, 1).within(*v, "there is an entry each");
  }
  for (const auto* v : {&weight, &bias}) {
    if (*v) Reach().steps(by_column ? rows : columns, 1).within(**v, "there is an entry each");
  }
  table<T>(isa).norm_apply({y.mutable_data() + offset, x.data(), data_or_null<T>(residual), pitch, pitch, pitch, rows,
                            columns, by_column, mean.data(), scale.data(), shift.data(), data_or_null<T>(weight),
                            data_or_null<T>(bias), known_activation(activation), a, b, streaming});
}

template <class T>
void norm_finish(const std::string& isa, int64_t n, T count, T eps, Array<T> mean, Array<T> scale, Array<T> offset,
                 std::optional<Array<T>> c, std::optional<Array<T>> b, std::optional<Array<T>> low) {
  require(c.has_value() == b.has_value() && c.has_value() == low.has_value(), "all or none of a gradient's vectors");
  for (const auto& v :
       {std::optional<Array<T>>(mean), std::optional<Array<T>>(scale), std::optional<Array<T>>(offset), c, b, low}) {
    if (v) Reach().steps(n, 1).within(*v, "there is an entry each");
  }
  table<T>(isa).norm_finish({n, count, eps, mean.mutable_data(), scale.mutable_data(), offset.mutable_data(),
                             c ? c->mutable_data() : nullptr, b ? b->mutable_data() : nullptr,
                             low ? low->mutable_data() : nullptr});
}

template <class T>
void norm_sums(const std::string& isa, const Array<T>& dy, const Array<T>& x, const Optional<T>& y, int64_t pitch,
               int64_t rows, int64_t columns, bool by_column, bool merge, const Optional<T>& mean,
               const Optional<T>& weight, T lower, T upper, Array<T> sum_g, Array<T> sum_gt, Array<T> sum_t,
               std::optional<Array<T>> sum_tt, std::optional<Array<T>> shift) {
  require(rows > 0 && columns > 0, "there is a block");
  require(!merge || (!by_column && mean), "rows are merged about one mean");
  require(mean ? !weight : !y && sum_tt && shift, "without a mean there are two more sums, and there is no y");
  for (const auto& block : {Optional<T>(dy), Optional<T>(x), y}) within_block<T>(block, rows, columns, pitch);
  if (mean) Reach().steps(by_column ? columns : merge ? 1 : rows, 1).within(*mean, "there is an entry each");
  if (weight) Reach().steps(by_column ? rows : columns, 1).within(*weight, "there is an entry each");
  for (const auto& to : {std::optional<Array<T>>(sum_g), std::optional<Array<T>>(sum_gt),
                         std::optional<Array<T>>(sum_t), sum_tt, shift}) {
    if (to) Reach().steps(by_column ? columns : merge ? 1 : rows, 1).within(*to, "there is a sum each");
  }
  table<T>(isa).norm_sums({dy.data(), x.data(), data_or_null<T>(y), pitch, pitch, pitch, rows, columns, by_column,
                           merge, data_or_null<T>(mean), data_or_null<T>(weight), lower, upper, sum_g.mutable_data(),
                           sum_gt.mutable_data(), sum_t.mutable_data(), sum_tt ? sum_tt->mutable_data() : nullptr,
                           shift ? shift->mutable_data() : nullptr});
}

template <class T>
void norm_gradient(const std::string& isa, Array<T> dx, int64_t offset, const Array<T>& dy, const Optional<T>& x,
                   const Optional<T>& y, int64_t pitch, int64_t rows, int64_t columns, bool by_column,
                   const Array<T>& mean, const Array<T>& a, const Array<T>& b, const Array<T>& c, T lower, T upper,
                   bool streaming) {
  Reach().plus(offset).steps(rows, pitch).steps(columns, 1).within(dx, "the block lies within its array");
  for (const auto& block : {Optional<T>(dy), x, y}) within_block<T>(block, rows, columns, pitch);
  for (const auto* v : {&mean, &a, &b, &c}) {
    Reach().steps(by_column ? columns : rows, 1).within(*v, "there is an entry each");
  }
  table<T>(isa).norm_gradient({dx.mutable_data() + offset, dy.data(), data_or_null<T>(x), data_or_null<T>(y), pitch,
                               pitch, pitch, pitch, rows, columns, by_column, mean.data(), a.data(), b.data(), c.data(),
                               lower, upper, streaming});
}

template <class T>
void layer_gradient(const std::string& isa, std::optional<Array<T>> dx, int64_t offset, const Array<T>& dy,
                    const Array<T>& x, int64_t pitch, int64_t rows, int64_t columns, bool by_column,
                    const Array<T>& mean, const Array<T>& low, const Array<T>& scale, const Array<T>& b,
                    const Array<T>& c, const Optional<T>& weight, std::optional<Array<T>> dw,
                    std::optional<Array<T>> db, bool streaming) {
  require((dx || dw) && dw.has_value() == db.has_value(), "there is a result");
  if (dx) Reach().plus(offset).steps(rows, pitch).steps(columns, 1).within(*dx, "the block lies within its array");
  for (const auto* block : {&dy, &x}) within_block<T>(*block, rows, columns, pitch);
  for (const auto* v : {&mean, &low, &scale, &b, &c}) {
    Reach().steps(by_column ? columns : rows, 1).within(*v, "there is an entry each");
  }
  if (weight) Reach().steps(by_column ? rows : columns, 1).within(*weight, "there is an entry each");
  for (const auto* v : {&dw, &db}) {
    if (*v) Reach().steps(by_column ? rows : columns, 1).within(**v, "there is an entry each");
  }
  table<T>(isa).layer_gradient({dx ? dx->mutable_data() + offset : nullptr, dy.data(), x.data(), pitch, pitch, pitch,
                                rows, columns, by_column, mean.data(), low.data(), scale.data(), b.data(), c.data(),
                                data_or_null<T>(weight), dw ? dw->mutable_data() : nullptr,
                                db ? db->mutable_data() : nullptr, streaming});
}

template <class T>
void response(const std::string& isa, Array<T> y, const Array<T>& x, const Optional<T>& dy, int64_t pitch, int64_t rows,
              int64_t columns, bool by_column, int64_t before, int64_t after, T factor, T k, T gradient,
              Array<T> scratch) {
  const int64_t channels = by_column ? rows : columns;
  require(before >= 0 && after >= 0 && before < channels && after < channels, "a window reaches over channels");
  require(!by_column || columns <= kResponseColumns, "a strip is not too wide");
  Reach().steps(rows, pitch).steps(columns, 1).within(y, "the block lies within its array");
  for (const auto& block : {Optional<T>(x), dy}) within_block<T>(block, rows, columns, pitch);
  Reach().steps(response_scratch(channels, before + after + 1, by_column), 1).within(scratch, "there is room");
  table<T>(isa).response({y.mutable_data(), x.data(), data_or_null<T>(dy), pitch, pitch, pitch, rows, columns,
                          by_column, before, after, factor, k, gradient, scratch.mutable_data()});
}

template <class T>
void map_run(const std::string& isa, Array<T> y, int64_t offset, const Array<T>& x, const Optional<T>& z, int64_t n,
             int32_t op, int32_t kind, T a, T b, bool streaming) {
  require(op >= 0 && op <= 2 && (op == 0 || z), "op is 0 to 2, and has its operands");
  Reach().plus(offset).steps(n, 1).within(y, "the run lies within its array");
  Reach().steps(n, 1).within(x, "the run lies within its array");
  if (z) Reach().steps(n, 1).within(*z, "the run lies within its array");
  table<T>(isa).map_run({y.mutable_data() + offset, x.data(), data_or_null<T>(z), n, static_cast<MapOp>(op),
                         known_activation(kind), a, b, streaming});
}

template <class T>
void softmax(const std::string& isa, std::optional<Array<T>> y, const Array<T>& x, int64_t rows, int64_t columns,
             int64_t pitch, bool by_column, Array<T> maximum, Array<T> sum, bool logarithm) {
  if (y) within_block<T>(*y, rows, columns, pitch);
  within_block<T>(x, rows, columns, pitch);
  for (const auto* v : {&maximum, &sum}) {
    Reach().steps(by_column ? columns : rows, 1).within(*v, "there is an entry each");
  }
  table<T>(isa).softmax({y ? y->mutable_data() : nullptr, x.data(), rows, columns, pitch, by_column, logarithm,
                         maximum.mutable_data(), sum.mutable_data()});
}

template <class T>
void softmax_gradient(const std::string& isa, Array<T> dx, const Array<T>& dy, const Array<T>& y, int64_t rows,
                      int64_t columns, int64_t pitch, bool by_column, bool logarithm, Array<T> sum) {
  within_block<T>(dx, rows, columns, pitch);
  within_block<T>(dy, rows, columns, pitch);
  within_block<T>(y, rows, columns, pitch);
  if (by_column) Reach().steps(columns, 1).within(sum, "there is an entry each");
  table<T>(isa).softmax_gradient(
      {dx.mutable_data(), dy.data(), y.data(), rows, columns, pitch, by_column, logarithm, sum.mutable_data()});
}

// The columns of one input row that a depthwise kernel reads: those of `pixels` outputs and all taps that exist.
Reach& columns_read(Reach& reach, int64_t first, int64_t columns, int64_t pixels, int64_t stride, int64_t taps,
                    int64_t dilation, int64_t pitch) {
  require(small(stride) >= 1 && small(dilation) >= 1, "strides and dilations are positive");
  int64_t last = small(first);
  if (natural(pixels) > 0) last += small(small(pixels - 1) * stride);
  if (natural(taps) > 0) last += small((taps - 1) * dilation);
  const int64_t low = std::max<int64_t>(first, 0), high = std::min(last, natural(columns) - 1);
  return reach.plus(small(low * small(pitch))).steps(std::max<int64_t>(0, high - low + 1), pitch);
}

// The rows that both kernels with channels innermost read.
template <class T>
void channel_rows_within(const Array<T>& rows, const Indices& starts, const Indices& pitches, int64_t lines,
                         int64_t first, int64_t columns, int64_t pixels, int64_t stride, int64_t taps, int64_t dilation,
                         int64_t channels) {
  require(lines <= static_cast<int64_t>(starts.size()) && starts.size() == pitches.size(),
          "the tables have an entry a row");
  for (size_t i = 0; i < starts.size(); ++i) {
    Reach reach;
    reach.plus(starts[i]).steps(channels, 1);
    columns_read(reach, first, columns, pixels, stride, taps, dilation, pitches[i]);
    reach.within(rows, "rows lie within their array");
    // A column outside the image is read as channel 0 of a row of zeros.
    if (pitches[i] == 0) Reach().plus(starts[i]).steps(channels, 1).within(rows, "a row of zeros has all channels");
  }
}

int64_t lines_read(int64_t out_rows, int64_t row_stride, int64_t filter_rows, int64_t row_dilation) {
  if (natural(out_rows) == 0 || natural(filter_rows) == 0) return 0;
  return small((out_rows - 1) * natural(row_stride)) + small((filter_rows - 1) * natural(row_dilation)) + 1;
}

template <class T>
void depthwise_channels(const std::string& isa, const Array<T>& rows, const Indices& row_starts,
                        const Indices& row_pitch, const Array<T>& weights, const Indices& weight_starts,
                        int64_t row_stride, int64_t row_dilation, int64_t weight_pitch, int64_t taps, int64_t stride,
                        int64_t dilation, int64_t first_column, int64_t columns, int64_t channels, int64_t out_rows,
                        int64_t pixels, bool skip_zeros, Array<T> out, int64_t out_start, int64_t out_row_pitch,
                        int64_t out_pitch, const Optional<T>& residual, int64_t residual_start,
                        int64_t residual_row_pitch, int64_t residual_pitch, const Optional<T>& scale,
                        const Optional<T>& shift, int32_t activation, T a, T b, bool accumulate, int64_t group) {
  const KernelTable<T>& kernels = table<T>(isa);
  const auto filter_rows = static_cast<int64_t>(weight_starts.size());
  require(group == 1 || (taps <= 3 && (stride == 1 || (stride == 2 && taps == 3)) && dilation == 1 &&
                         isa_of(isa) != Isa::portable),
          "groups have up to 3 taps with stride 1, or 3 and 2, on an ISA that has them");
  require(group >= 1 && kernels.lanes % group == 0 && channels % group == 0, "a vector holds whole groups");
  channel_rows_within(rows, row_starts, row_pitch, lines_read(out_rows, row_stride, filter_rows, row_dilation),
                      first_column, columns, pixels, stride, taps, dilation, channels);
  Reach()
      .any_of(weight_starts)
      .steps(taps * group, weight_pitch)
      .steps(up_to_multiple(natural(channels), kernels.lanes), 1)
      .within(weights, "rows of weights hold whole vectors");
  Reach()
      .plus(out_start)
      .steps(out_rows, out_row_pitch)
      .steps(pixels, out_pitch)
      .steps(channels, 1)
      .within(out, "the output holds its rows");
  if (residual) {
    Reach()
        .plus(residual_start)
        .steps(out_rows, residual_row_pitch)
        .steps(pixels, residual_pitch)
        .steps(channels, 1)
        .within(*residual, "the residual holds its rows");
  }
  for (const auto* vector : {&scale, &shift}) {
    if (*vector) Reach().steps(channels, 1).within(**vector, "scale and shift have an entry a channel");
  }
  const std::vector<const T*> row_table = pointers(rows.data(), row_starts);
  const std::vector<const T*> weight_table = pointers(weights.data(), weight_starts);
  DepthwiseChannelsArgs<T> g{};
  g.rows = row_table.data(), g.row_pitch = row_pitch.data(), g.weights = weight_table.data();
  g.filter_rows = filter_rows, g.row_stride = row_stride, g.row_dilation = row_dilation;
  g.weight_pitch = weight_pitch, g.taps = taps, g.stride = stride, g.dilation = dilation;
  g.first_column = first_column, g.columns = columns;
  g.channels = channels, g.out_rows = out_rows, g.pixels = pixels;
  g.skip_zeros = skip_zeros;
  g.out = out.mutable_data() + out_start, g.out_row_pitch = out_row_pitch, g.out_pitch = out_pitch;
  g.residual = residual ? residual->data() + residual_start : nullptr;
  g.residual_row_pitch = residual_row_pitch, g.residual_pitch = residual_pitch;
  g.scale = data_or_null<T>(scale), g.shift = data_or_null<T>(shift);
  g.activation = known_activation(activation);
  g.a = a, g.b = b;
  g.accumulate = accumulate;
  g.group = group;
  group > 1 ? kernels.grouped_channels(g) : kernels.depthwise_channels(g);
}

// The rows that both kernels with columns innermost read where they lie.
template <class T>
void plane_rows_within(const std::string& isa, const Array<T>& rows, const Indices& starts,
                       std::optional<int64_t> zero_row, int64_t offset, int64_t channel_pitch, int64_t taps,
                       int64_t stride, int64_t first, int64_t columns, int64_t channels, int64_t out_rows,
                       int64_t pixels) {
  require(isa_of(isa) != Isa::portable &&
              (((taps == 3 || taps == 5) && (stride == 1 || stride == 2)) || (taps == 7 && stride == 1)),
          "3 or 5 taps with stride 1 or 2, or 7 with stride 1, on an ISA that has them");
  require(lines_read(out_rows, stride, taps, 1) <= static_cast<int64_t>(starts.size()),
          "row_starts has an entry a row");
  for (const int64_t start : starts) {
    Reach reach;
    reach.plus(start);
    if (start != zero_row) reach.plus(offset).steps(channels, channel_pitch);
    columns_read(reach, first, columns, pixels, stride, taps, 1, 1).within(rows, "rows lie within their array");
  }
}

template <class T>
void depthwise_planes(const std::string& isa, const Array<T>& rows, const Indices& row_starts,
                      std::optional<int64_t> zero_row, int64_t offset, int64_t channel_pitch, int64_t filter_rows,
                      int64_t taps, int64_t stride, int64_t first_column, int64_t columns,
                      const std::optional<Indices>& column_offset, const Indices& row_offset, int64_t row_stride,
                      const Array<T>& weights, int64_t channels, int64_t out_rows, int64_t pixels, bool skip_zeros,
                      Array<T> out, int64_t out_start, int64_t out_channel_pitch, int64_t out_row_pitch,
                      const Optional<T>& residual, int64_t residual_start, int64_t residual_channel_pitch,
                      int64_t residual_row_pitch, const Optional<T>& scale, const Optional<T>& shift,
                      int32_t activation, T a, T b, bool accumulate) {
  const KernelTable<T>& kernels = table<T>(isa);
  natural(channels), natural(out_rows), natural(filter_rows), natural(taps);
  if (column_offset) {
    require(static_cast<int64_t>(column_offset->size()) >= taps, "column_offset has an entry a tap");
    require(static_cast<int64_t>(row_offset.size()) >= filter_rows, "row_offset has an entry a filter row");
    Reach lines;
    lines.steps(out_rows, natural(row_stride)).any_of(row_offset.data(), filter_rows);
    lines.within(row_starts, "row_starts has an entry a row");
    Reach()
        .any_of(row_starts)
        .plus(offset)
        .steps(channels, channel_pitch)
        .any_of(column_offset->data(), lines.empty ? 0 : taps)
        .steps(up_to_multiple(natural(pixels), kernels.lanes), 1)
        .within(rows, "the slab has W - 1 elements past a row");
  } else {
    require(filter_rows == taps, "the filter is square");
    plane_rows_within(isa, rows, row_starts, zero_row, offset, channel_pitch, taps, stride, first_column, columns,
                      channels, out_rows, pixels);
  }
  Reach().steps(small(channels * small(filter_rows * taps)), 1).within(weights, "the weights lie within their array");
  Reach()
      .plus(out_start)
      .steps(channels, out_channel_pitch)
      .steps(out_rows, out_row_pitch)
      .steps(pixels, 1)
      .within(out, "the output holds its rows");
  if (residual) {
    Reach()
        .plus(residual_start)
        .steps(channels, residual_channel_pitch)
        .steps(out_rows, residual_row_pitch)
        .steps(pixels, 1)
        .within(*residual, "the residual holds its rows");
  }
  for (const auto* vector : {&scale, &shift}) {
    if (*vector) Reach().steps(channels, 1).within(**vector, "scale and shift have an entry a channel");
  }
  const std::vector<const T*> row_table = pointers(rows.data(), row_starts);
  DepthwisePlanesArgs<T> g{};
  g.rows = row_table.data();
  g.zero_row = zero_row ? rows.data() + small(*zero_row) : nullptr;
  g.offset = offset, g.channel_pitch = channel_pitch;
  g.filter_rows = filter_rows, g.taps = taps, g.stride = stride;
  g.first_column = first_column, g.columns = columns;
  g.column_offset = column_offset ? column_offset->data() : nullptr;
  g.row_offset = row_offset.data(), g.row_stride = row_stride;
  g.weights = weights.data();
  g.channels = channels, g.out_rows = out_rows, g.pixels = pixels;
  g.skip_zeros = skip_zeros;
  g.out = out.mutable_data() + out_start, g.out_channel_pitch = out_channel_pitch, g.out_row_pitch = out_row_pitch;
  g.residual = residual ? residual->data() + residual_start : nullptr;
  g.residual_channel_pitch = residual_channel_pitch, g.residual_row_pitch = residual_row_pitch;
  g.scale = data_or_null<T>(scale), g.shift = data_or_null<T>(shift);
  g.activation = known_activation(activation);
  g.a = a, g.b = b;
  g.accumulate = accumulate;
  kernels.depthwise_planes(g);
}

int64_t patch_size(int32_t outputs) {
  require(outputs == 2 || outputs == 4, "a tile has 2 or 4 outputs along an axis");
  return outputs + 2;
}

// Of patches, or of the pixels of tiles.
template <class T, bool Tiles>
void winograd_points(const std::string& isa, const Array<T>& x, const Indices& patch, int64_t tiles, int64_t channels,
                     Array<T> points, int64_t point_pitch, int64_t tile_pitch, int32_t outputs) {
  const KernelTable<T>& kernels = table<T>(isa);
  const int64_t n = patch_size(outputs), side = Tiles ? outputs : n;
  require(static_cast<int64_t>(patch.size()) == natural(tiles) * side * side, "a patch has n x n pixels, a tile m x m");
  Reach().any_of(patch).steps(channels, 1).within(x, "pixels lie in x");
  Reach()
      .steps(n * n, point_pitch)
      .steps(tiles, tile_pitch)
      .steps(up_to_multiple(natural(channels), kernels.lanes), 1)
      .within(points, "whole vectors of all points are written");
  const std::vector<const T*> pixels = pointers<const T>(x.data(), patch);
  WinogradInputArgs<T> g{};
  g.patch = pixels.data(), g.tiles = tiles, g.channels = channels;
  g.points = points.mutable_data(), g.point_pitch = point_pitch, g.tile_pitch = tile_pitch, g.outputs = outputs;
  Tiles ? kernels.winograd_spread(g) : kernels.winograd_input(g);
}

// Returns the rows' `bad`.
template <class T>
std::vector<int32_t> winograd_taps(const std::string& isa, Array<T> points, int64_t point_pitch, int64_t row_pitch,
                                   int64_t rows, int64_t channels, int32_t outputs) {
  const KernelTable<T>& kernels = table<T>(isa);
  const int64_t n = patch_size(outputs);
  require(natural(channels) % kernels.lanes == 0, "channels are whole vectors");
  Reach()
      .steps(n * n, point_pitch)
      .steps(natural(rows), row_pitch)
      .steps(channels, 1)
      .within(points, "points lie in points");
  std::vector<int32_t> bad(static_cast<size_t>(rows), -1);
  kernels.winograd_taps({points.mutable_data(), point_pitch, row_pitch, rows, channels, bad.data(), outputs});
  return bad;
}

template <class T>
void winograd_filter(const std::string& isa, const Array<T>& panel, int64_t channels, int64_t columns, Array<T> points,
                     int64_t point_pitch, int32_t outputs) {
  const KernelTable<T>& kernels = table<T>(isa);
  const int64_t n = patch_size(outputs);
  require(natural(columns) % kernels.lanes == 0, "columns are whole vectors");
  Reach().steps(9, natural(channels) * columns).steps(channels, columns).steps(columns, 1).within(panel, "nine taps");
  Reach().steps(n * n, point_pitch).steps(channels, columns).steps(columns, 1).within(points, "points lie in points");
  WinogradFilterArgs<T> g{};
  g.panel = panel.data(), g.channels = channels, g.columns = columns;
  g.points = points.mutable_data(), g.point_pitch = point_pitch, g.outputs = outputs;
  kernels.winograd_filter(g);
}

// Returns the tiles' `bad`.
template <class T>
std::vector<uint64_t> winograd_output(const std::string& isa, const Array<T>& points, int64_t point_pitch,
                                      int64_t tile_pitch, int64_t channels, const std::vector<int32_t>& rows,
                                      const std::vector<int32_t>& columns, Array<T> out, const Indices& out_starts,
                                      int64_t row_pitch, int64_t column_pitch, const Optional<T>& residual,
                                      const Indices& residual_starts, int64_t residual_row_pitch,
                                      int64_t residual_column_pitch, const Optional<T>& scale, const Optional<T>& shift,
                                      int32_t activation, T a, T b, bool accumulate, int32_t outputs) {
  const KernelTable<T>& kernels = table<T>(isa);
  const int64_t n = patch_size(outputs), W = kernels.lanes, tiles = static_cast<int64_t>(rows.size());
  require(columns.size() == rows.size() && out_starts.size() == rows.size(),
          "every tile has rows, columns and a place");
  require(!residual || residual_starts.size() == rows.size(), "every tile has a residual");
  require(natural(channels) <= 64 * W, "there are at most 64 vectors of channels");
  Reach()
      .steps(n * n, point_pitch)
      .steps(tiles, tile_pitch)
      .steps(up_to_multiple(channels, W), 1)
      .within(points, "whole vectors of all points are read");
  for (int64_t t = 0; t < tiles; ++t) {
    require(rows[t] >= 0 && rows[t] <= outputs && columns[t] >= 0 && columns[t] <= outputs, "a tile has m x m pixels");
    auto reach = [&](int64_t start, int64_t row, int64_t column) {
      return Reach().plus(start).steps(rows[t], row).steps(columns[t], column).steps(channels, 1);
    };
    reach(out_starts[t], row_pitch, column_pitch).within(out, "pixels lie in out");
    if (residual)
      reach(residual_starts[t], residual_row_pitch, residual_column_pitch).within(*residual, "pixels lie in residual");
  }
  for (const auto* vector : {&scale, &shift})
    if (*vector) Reach().steps(channels, 1).within(**vector, "vectors have an entry a channel");
  const std::vector<T*> to = pointers<T>(out.mutable_data(), out_starts);
  std::vector<const T*> from;
  if (residual) from = pointers<const T>(residual->data(), residual_starts);
  std::vector<uint64_t> bad(rows.size());
  WinogradOutputArgs<T> g{};
  g.points = points.data(), g.point_pitch = point_pitch, g.tile_pitch = tile_pitch;
  g.tiles = tiles, g.channels = channels;
  g.rows = rows.data(), g.columns = columns.data();
  g.out = to.data(), g.row_pitch = row_pitch, g.column_pitch = column_pitch;
  g.residual = residual ? from.data() : nullptr;
  g.residual_row_pitch = residual_row_pitch, g.residual_column_pitch = residual_column_pitch;
  g.scale = data_or_null<T>(scale), g.shift = data_or_null<T>(shift);
  g.activation = known_activation(activation), g.a = a, g.b = b;
  g.accumulate = accumulate, g.bad = bad.data(), g.outputs = outputs;
  kernels.winograd_output(g);
  return bad;
}

template <class T>
FftAxis<T> fft_axis(const std::vector<int32_t>& radices, const Array<T>& twiddles) {
  FftAxis<T> axis{};
  axis.n = 1;
  int64_t entries = 0;
  require(radices.size() <= static_cast<size_t>(kFftRadices), "a length has at most kFftRadices radices");
  for (const int32_t radix : radices) {
    require(radix == 2 || radix == 3 || radix == 4 || radix == 8, "a radix is 2, 3, 4 or 8");
    axis.n = small(axis.n * radix);
    axis.radix[axis.radices++] = radix;
  }
  require(axis.n <= kFftLength, "a length is at most kFftLength");
  for (int64_t m = axis.n, i = 0; i < axis.radices; m /= axis.radix[i++])
    if (m > axis.radix[i]) entries += m / axis.radix[i] * (axis.radix[i] - 1) * 2;
  Reach().steps(entries, 1).within(twiddles, "twiddles are those of all radices but the last");
  axis.twiddles = twiddles.data();
  return axis;
}

// Both kernels of the Fourier transform: `made` is given for the one that makes a spectrum.
template <class T>
void run_fft(const std::string& isa, Array<T> re, Array<T> im, const std::vector<int32_t>& row_radices,
             const Array<T>& row_twiddles, const std::vector<int32_t>& column_radices, const Array<T>& column_twiddles,
             const Optional<T>& twist, Array<T> spectrum, bool shared, T scale, int64_t first_column,
             int64_t end_column, int64_t out_columns, Array<T>* finite) {
  const KernelTable<T>& kernels = table<T>(isa);
  FftArgs<T> g{};
  g.rows = fft_axis(row_radices, row_twiddles), g.columns = fft_axis(column_radices, column_twiddles);
  const int64_t n = g.rows.n * g.columns.n, W = kernels.lanes;
  for (const auto* part : {&re, &im}) Reach().steps(n * W, 1).within(*part, "a signal has W lanes");
  if (twist) Reach().steps(2 * n, 1).within(*twist, "the twist has a root an element");
  Reach().steps(shared ? 2 * n : 2 * n * W, 1).within(spectrum, "the spectrum has all points");
  require(first_column >= 0 && small(first_column) <= small(end_column) && end_column <= g.columns.n,
          "columns lie within the signal");
  require(out_columns >= 0 && small(out_columns) <= g.columns.n, "columns lie within the signal");
  std::vector<T> line(static_cast<size_t>(2 * g.rows.n * W));
  g.re = re.mutable_data(), g.im = im.mutable_data();
  g.twist = data_or_null<T>(twist);
  g.spectrum = spectrum.mutable_data(), g.shared = shared, g.scale = scale;
  g.first_column = first_column, g.end_column = end_column, g.out_columns = out_columns;
  g.line = line.data();
  if (finite) {
    Reach().steps(2 * W, 1).within(*finite, "there are 2 W sums");
    g.finite = finite->mutable_data();
    kernels.fft_convolve(g);
  } else {
    kernels.fft_spectrum(g);
  }
}

template <class T>
void fft_convolve(const std::string& isa, Array<T> re, Array<T> im, const std::vector<int32_t>& row_radices,
                  const Array<T>& row_twiddles, const std::vector<int32_t>& column_radices,
                  const Array<T>& column_twiddles, const Optional<T>& twist, Array<T> spectrum, bool shared,
                  int64_t first_column, int64_t end_column, int64_t out_columns, Array<T> finite) {
  run_fft<T>(isa, re, im, row_radices, row_twiddles, column_radices, column_twiddles, twist, spectrum, shared, T{1},
             first_column, end_column, out_columns, &finite);
}

template <class T>
void fft_spectrum(const std::string& isa, Array<T> re, Array<T> im, const std::vector<int32_t>& row_radices,
                  const Array<T>& row_twiddles, const std::vector<int32_t>& column_radices,
                  const Array<T>& column_twiddles, const Optional<T>& twist, Array<T> spectrum, T scale,
                  int64_t first_column, int64_t end_column) {
  run_fft<T>(isa, re, im, row_radices, row_twiddles, column_radices, column_twiddles, twist, spectrum, false, scale,
             first_column, end_column, 0, nullptr);
}

template <class T>
void filter_channels(const std::string& isa, const Array<T>& rows, const Indices& row_starts, const Indices& row_pitch,
                     int64_t filter_rows, int64_t row_stride, int64_t row_dilation, int64_t taps, int64_t stride,
                     int64_t dilation, int64_t first_column, int64_t columns, int64_t channels, int64_t out_rows,
                     int64_t pixels, const Array<T>& dy, int64_t dy_start, int64_t dy_row_pitch, int64_t dy_pitch,
                     Array<T> sum, int64_t sum_start, int64_t sum_pitch, bool accumulate) {
  channel_rows_within(rows, row_starts, row_pitch, lines_read(out_rows, row_stride, filter_rows, row_dilation),
                      first_column, columns, pixels, stride, taps, dilation, channels);
  Reach()
      .plus(dy_start)
      .steps(out_rows, dy_row_pitch)
      .steps(pixels, dy_pitch)
      .steps(channels, 1)
      .within(dy, "dy holds its rows");
  Reach()
      .plus(sum_start)
      .steps(small(filter_rows * taps), sum_pitch)
      .steps(channels, 1)
      .within(sum, "there is a sum a tap and channel");
  const std::vector<const T*> row_table = pointers(rows.data(), row_starts);
  FilterChannelsArgs<T> g{};
  g.rows = row_table.data(), g.row_pitch = row_pitch.data();
  g.filter_rows = filter_rows, g.row_stride = row_stride, g.row_dilation = row_dilation;
  g.taps = taps, g.stride = stride, g.dilation = dilation;
  g.first_column = first_column, g.columns = columns;
  g.channels = channels, g.out_rows = out_rows, g.pixels = pixels;
  g.dy = dy.data() + dy_start, g.dy_row_pitch = dy_row_pitch, g.dy_pitch = dy_pitch;
  g.sum = sum.mutable_data() + sum_start, g.sum_pitch = sum_pitch;
  g.accumulate = accumulate;
  table<T>(isa).filter_channels(g);
}

template <class T>
void filter_planes(const std::string& isa, const Array<T>& rows, const Indices& row_starts,
                   std::optional<int64_t> zero_row, int64_t channel_pitch, int64_t taps, int64_t stride,
                   int64_t first_column, int64_t columns, int64_t channels, int64_t out_rows, int64_t pixels,
                   const Array<T>& dy, int64_t dy_start, int64_t dy_channel_pitch, int64_t dy_row_pitch, Array<T> sum,
                   int64_t sum_start, bool accumulate) {
  plane_rows_within(isa, rows, row_starts, zero_row, 0, channel_pitch, taps, stride, first_column, columns, channels,
                    out_rows, pixels);
  Reach()
      .plus(dy_start)
      .steps(channels, dy_channel_pitch)
      .steps(out_rows, dy_row_pitch)
      .steps(pixels, 1)
      .within(dy, "dy holds its rows");
  Reach()
      .plus(sum_start)
      .steps(small(natural(channels) * taps * taps), 1)
      .within(sum, "there is a sum a channel and tap");
  const std::vector<const T*> row_table = pointers(rows.data(), row_starts);
  FilterPlanesArgs<T> g{};
  g.rows = row_table.data();
  g.zero_row = zero_row ? rows.data() + small(*zero_row) : nullptr;
  g.channel_pitch = channel_pitch;
  g.taps = taps, g.stride = stride;
  g.first_column = first_column, g.columns = columns;
  g.channels = channels, g.out_rows = out_rows, g.pixels = pixels;
  g.dy = dy.data() + dy_start, g.dy_channel_pitch = dy_channel_pitch, g.dy_row_pitch = dy_row_pitch;
  g.sum = sum.mutable_data() + sum_start;
  g.accumulate = accumulate;
  table<T>(isa).filter_planes(g);
}

// Each row as pairs: where its row of dy begins, and the filter row that meets it.
template <class T>
void depthwise_spread(const std::string& isa, bool planar,
                      const std::vector<std::vector<std::pair<int64_t, int64_t>>>& rows, int64_t taps, int64_t pad,
                      int64_t columns, int64_t dy_columns, int64_t channels, const Array<T>& dy, int64_t dy_channel,
                      int64_t dy_pitch, Array<T> dx, int64_t dx_start, int64_t dx_row, int64_t dx_channel,
                      int64_t dx_pitch, const Array<T>& weights, int64_t weight_row, int64_t weight_tap,
                      int64_t weight_channel) {
  require(taps == 3 || taps == 5, "taps is 3 or 5");
  require(pad >= 0 && pad < taps, "pad is less than taps");
  std::vector<SpreadRow> list;
  for (const auto& row : rows) {
    require(row.size() <= static_cast<size_t>(kSpreadRows), "a row meets three rows at most");
    SpreadRow& to = list.emplace_back();
    for (const auto& [start, filter] : row) {
      Reach()
          .plus(start)
          .steps(channels, planar ? dy_channel : 1)
          .steps(dy_columns, planar ? 1 : dy_pitch)
          .within(dy, "dy holds its rows");
      Reach()
          .plus(small(natural(filter) * natural(weight_row)))
          .steps(taps, weight_tap)
          .steps(channels, planar ? weight_channel : 1)
          .within(weights, "the weights lie within their array");
      to.dy[to.count] = start, to.filter[to.count++] = filter;
    }
  }
  Reach()
      .plus(dx_start)
      .steps(static_cast<int64_t>(rows.size()), dx_row)
      .steps(channels, planar ? dx_channel : 1)
      .steps(columns, planar ? 1 : dx_pitch)
      .within(dx, "dx holds its rows");
  SpreadArgs<T> g{};
  g.row = list.data(), g.rows = static_cast<int64_t>(list.size()), g.taps = taps, g.pad = pad;
  g.columns = columns, g.dy_columns = dy_columns, g.channels = channels, g.planar = planar;
  g.dy = dy.data(), g.dy_channel = dy_channel, g.dy_pitch = dy_pitch;
  g.dx = dx.mutable_data() + dx_start, g.dx_row = dx_row, g.dx_channel = dx_channel, g.dx_pitch = dx_pitch;
  g.weights = weights.data();
  g.weight_row = weight_row, g.weight_tap = weight_tap, g.weight_channel = weight_channel;
  table<T>(isa).depthwise_spread(g);
}

// --- the module --------------------------------------------------------------------------------------------------

bool is_float(const std::string& dtype) {
  if (dtype != "float32" && dtype != "float64") {
    throw py::type_error("dtype (='" + dtype + "') must be float32 or float64");
  }
  return dtype == "float32";
}

template <class T>
py::dict shape_of(const KernelTable<T>& kernels) {
  py::list tile_rows;
  for (int32_t v = 1; v <= kernels.max_vectors; ++v) tile_rows.append(kernels.tile_rows[v]);
  return py::dict(py::arg("lanes") = kernels.lanes, py::arg("max_vectors") = kernels.max_vectors,
                  py::arg("tile_rows") = tile_rows);
}

// An array's dtype picks the overload: nothing is converted.
template <class T>
void bind_kernels(py::module_& m) {
  const auto array = [](const char* name) { return py::arg(name).noconvert(); };
  const auto absent = [](const char* name) { return py::arg(name).noconvert() = py::none(); };
  const auto isa = py::arg("isa");
  const py::kw_only options;
  m.def("gemm", &gemm<T>, isa, options, array("rows"), py::arg("row_starts"), py::arg("row_pitch"),
        py::arg("row_offset") = 0, py::arg("row_step") = 1, py::arg("taps") = 1, py::arg("length"),
        py::arg("zero_row") = py::none(), py::arg("m"), array("panel"), py::arg("vectors"), py::arg("tail"), array("c"),
        py::arg("c_starts"), py::arg("c_offset") = 0, absent("residual"), py::arg("residual_starts") = Indices(),
        py::arg("residual_offset") = 0, py::arg("accumulate") = false, py::arg("finish") = false,
        py::arg("channel_rows") = false, absent("scale"), absent("shift"), py::arg("activation") = 0,
        py::arg("a") = T{0}, py::arg("b") = T{0}, absent("next"), py::arg("next_rows") = 0, py::arg("next_pitch") = 0,
        py::arg("next_width") = 0, py::arg("panels") = 1, absent("source"), py::arg("source_offset") = Indices(),
        absent("weights"), py::arg("weights_pitch") = 0);
  m.def("pack_weights", &pack_weights<T>, isa, options, array("panel"), array("w"), py::arg("column_stride"),
        py::arg("channel_stride"), py::arg("tap_offset"), py::arg("length"), py::arg("columns"), py::arg("valid"),
        py::arg("tap_starts") = Indices());
  m.def("pack_weight_rows", &pack_weight_rows<T>, isa, options, array("panel"), array("w"), py::arg("column_stride"),
        py::arg("channel_stride"), py::arg("tap_offset"), py::arg("length"), py::arg("columns"), py::arg("valid"));
  m.def("pack_columns", &pack_columns<T>, isa, options, array("panel"), array("source"), py::arg("channel_stride"),
        py::arg("tap_offset"), py::arg("channels"), py::arg("segments"), py::arg("columns"), py::arg("exact"));
  m.def("pack_transposed", &pack_transposed<T>, isa, options, array("panel"), array("source"), py::arg("starts"),
        py::arg("segments"));
  m.def("pack_rows", &pack_rows<T>, isa, options, array("panel"), array("source"), py::arg("starts"), py::arg("offset"),
        py::arg("length"), py::arg("pitch"));
  m.def("fill_pixel_slab", &fill_pixel_slab<T>, isa, options, array("slab"), array("source"), py::arg("channel_stride"),
        py::arg("column_stride"), py::arg("channels"), py::arg("row_offset"), py::arg("columns"), py::arg("first"),
        py::arg("image_columns"), py::arg("column_map") = py::none(), py::arg("map").noconvert() = py::none());
  m.def("fill_slab", &fill_slab<T>, isa, options, array("slab"), py::arg("channel_pitch"), py::arg("row_pitch"),
        py::arg("phase_pitch"), array("source"), py::arg("channel_stride"), py::arg("column_stride"),
        py::arg("channels"), py::arg("row_offset"), py::arg("phases"), py::arg("phase_length"), py::arg("first"),
        py::arg("stride"), py::arg("image_columns"), py::arg("column_map") = py::none(),
        py::arg("map").noconvert() = py::none());
  m.def("gather_block", &gather_block<T>, isa, options, array("tensor"), array("buffer"), py::arg("pitch"),
        py::arg("row_offset"), py::arg("column_offset"));
  m.def("scatter_block", &scatter_block<T>, isa, options, array("tensor"), array("buffer"), py::arg("pitch"),
        py::arg("row_offset"), py::arg("column_offset"), py::arg("accumulate"));
  m.def("sum_run", &sum_run<T>, isa, options, array("x"), py::arg("n"), py::arg("step"));
  m.def("sum_columns", &sum_columns<T>, isa, options, array("sum"), array("x"), py::arg("rows"), py::arg("pitch"),
        py::arg("columns"));
  m.def("sum_rows", &sum_rows<T>, isa, options, array("sum"), array("x"), py::arg("rows"), py::arg("pitch"),
        py::arg("n"));
  m.def("fill_rows", &fill_rows<T>, isa, options, array("y"), array("value"), py::arg("rows"), py::arg("pitch"),
        py::arg("n"));
  m.def("copy_run", &copy_run<T>, isa, options, array("dst"), array("src"), py::arg("offset"), py::arg("n"),
        py::arg("streaming"));
  m.def("pool_combine", &pool_combine<T>, isa, options, array("x"), py::arg("starts"), array("dst"), py::arg("n"),
        py::arg("rows"), py::arg("src_pitch"), py::arg("dst_pitch"), py::arg("op"), py::arg("finish") = 0,
        py::arg("accumulate") = false, py::arg("divisor") = T{1}, absent("divisors"));
  m.def("pool_slide", &pool_slide<T>, isa, options, array("x"), array("dst"), py::arg("n"), py::arg("rows"),
        py::arg("src_pitch"), py::arg("dst_pitch"), py::arg("taps"), py::arg("stride"), py::arg("step"), py::arg("op"),
        py::arg("finish") = 0, py::arg("divisor") = T{1}, absent("divisors"));
  m.def("pool_argmax", &pool_argmax<T>, isa, options, array("x"), py::arg("starts"), array("dst"), py::arg("n"),
        py::arg("rows"), py::arg("src_pitch"), py::arg("dst_pitch"), py::arg("codes"));
  m.def("pool_route", &pool_route<T>, isa, options, array("x"), py::arg("starts"), array("marks"),
        py::arg("marks_starts"), array("dst"), py::arg("n"), py::arg("rows"), py::arg("src_pitch"),
        py::arg("marks_pitch"), py::arg("dst_pitch"), py::arg("codes"));
  m.def("pool_split", &pool_split<T>, isa, options, array("x"), array("dst"), py::arg("n"), py::arg("rows"),
        py::arg("src_pitch"), py::arg("dst_pitch"), py::arg("phase_pitch"), py::arg("stride"));
  m.def("pool_merge", &pool_merge<T>, isa, options, array("x"), array("dst"), py::arg("n"), py::arg("rows"),
        py::arg("src_pitch"), py::arg("dst_pitch"), py::arg("phase_pitch"), py::arg("stride"));
  m.def("pool_planes", &pool_planes<T>, isa, options, array("x"), array("dst"), py::arg("channels"), py::arg("rows"),
        py::arg("columns"), py::arg("first_row"), py::arg("first_column"), py::arg("out_rows"), py::arg("out_columns"),
        py::arg("taps"), py::arg("stride"), py::arg("op"), py::arg("finish") = 0, py::arg("divisor") = T{1},
        absent("row_counts"), absent("column_counts"), py::arg("pixels") = false);
  m.def("pool_pixels", &pool_planes<T>, isa, options, array("x"), array("dst"), py::arg("channels"), py::arg("rows"),
        py::arg("columns"), py::arg("first_row"), py::arg("first_column"), py::arg("out_rows"), py::arg("out_columns"),
        py::arg("taps"), py::arg("stride"), py::arg("op"), py::arg("finish") = 0, py::arg("divisor") = T{1},
        absent("row_counts"), absent("column_counts"), py::arg("pixels") = true);
  m.def("turn_block", &turn_block<T>, isa, options, array("x"), array("to"), py::arg("rows"), py::arg("n"),
        py::arg("from_pitch"), py::arg("to_pitch"));
  m.def("pool_planes_backward", &pool_planes_backward<T>, isa, options, array("x"), array("dy"), array("dst"),
        py::arg("channels"), py::arg("rows"), py::arg("columns"), py::arg("first_row"), py::arg("first_column"),
        py::arg("out_rows"), py::arg("out_columns"), py::arg("taps"), py::arg("stride"), py::arg("op") = 0,
        py::arg("divisor") = T{1}, py::arg("pixels") = false);
  m.def("pool_pixels_backward", &pool_planes_backward<T>, isa, options, array("x"), array("dy"), array("dst"),
        py::arg("channels"), py::arg("rows"), py::arg("columns"), py::arg("first_row"), py::arg("first_column"),
        py::arg("out_rows"), py::arg("out_columns"), py::arg("taps"), py::arg("stride"), py::arg("op") = 0,
        py::arg("divisor") = T{1}, py::arg("pixels") = true);
  m.def("max_run", &max_run<T>, isa, options, array("x"), py::arg("n"));
  m.def("activate_run", &activate_run<T>, isa, options, array("x"), py::arg("n"), py::arg("kind"), py::arg("a") = T{0},
        py::arg("b") = T{0});
  for (const char* name : {"depthwise_channels", "grouped_channels"})  // the one without groups, the other with them
    m.def(name, &depthwise_channels<T>, isa, options, array("rows"), py::arg("row_starts"), py::arg("row_pitch"),
          array("weights"), py::arg("weight_starts"), py::arg("row_stride") = 1, py::arg("row_dilation") = 1,
          py::arg("weight_pitch"), py::arg("taps"), py::arg("stride") = 1, py::arg("dilation") = 1,
          py::arg("first_column"), py::arg("columns"), py::arg("channels"), py::arg("out_rows"), py::arg("pixels"),
          py::arg("skip_zeros") = false, array("out"), py::arg("out_start") = 0, py::arg("out_row_pitch"),
          py::arg("out_pitch"), absent("residual"), py::arg("residual_start") = 0, py::arg("residual_row_pitch") = 0,
          py::arg("residual_pitch") = 0, absent("scale"), absent("shift"), py::arg("activation") = 0,
          py::arg("a") = T{0}, py::arg("b") = T{0}, py::arg("accumulate") = false, py::arg("group") = 1);
  m.def("depthwise_planes", &depthwise_planes<T>, isa, options, array("rows"), py::arg("row_starts"),
        py::arg("zero_row") = py::none(), py::arg("offset") = 0, py::arg("channel_pitch"), py::arg("filter_rows"),
        py::arg("taps"), py::arg("stride") = 1, py::arg("first_column") = 0, py::arg("columns") = 0,
        py::arg("column_offset") = py::none(), py::arg("row_offset") = Indices(), py::arg("row_stride") = 1,
        array("weights"), py::arg("channels"), py::arg("out_rows"), py::arg("pixels"), py::arg("skip_zeros") = false,
        array("out"), py::arg("out_start") = 0, py::arg("out_channel_pitch"), py::arg("out_row_pitch"),
        absent("residual"), py::arg("residual_start") = 0, py::arg("residual_channel_pitch") = 0,
        py::arg("residual_row_pitch") = 0, absent("scale"), absent("shift"), py::arg("activation") = 0,
        py::arg("a") = T{0}, py::arg("b") = T{0}, py::arg("accumulate") = false);
  m.def("winograd_input", &winograd_points<T, false>, isa, options, array("x"), py::arg("patch"), py::arg("tiles"),
        py::arg("channels"), array("points"), py::arg("point_pitch"), py::arg("tile_pitch"), py::arg("outputs"));
  m.def("winograd_spread", &winograd_points<T, true>, isa, options, array("x"), py::arg("patch"), py::arg("tiles"),
        py::arg("channels"), array("points"), py::arg("point_pitch"), py::arg("tile_pitch"), py::arg("outputs"));
  m.def("winograd_taps", &winograd_taps<T>, isa, options, array("points"), py::arg("point_pitch"), py::arg("row_pitch"),
        py::arg("rows"), py::arg("channels"), py::arg("outputs"));
  m.def("winograd_filter", &winograd_filter<T>, isa, options, array("panel"), py::arg("channels"), py::arg("columns"),
        array("points"), py::arg("point_pitch"), py::arg("outputs"));
  m.def("winograd_output", &winograd_output<T>, isa, options, array("points"), py::arg("point_pitch"),
        py::arg("tile_pitch"), py::arg("channels"), py::arg("rows"), py::arg("columns"), array("out"),
        py::arg("out_starts"), py::arg("row_pitch"), py::arg("column_pitch"), absent("residual"),
        py::arg("residual_starts") = Indices(), py::arg("residual_row_pitch") = 0, py::arg("residual_column_pitch") = 0,
        absent("scale"), absent("shift"), py::arg("activation") = 0, py::arg("a") = T{0}, py::arg("b") = T{0},
        py::arg("accumulate") = false, py::arg("outputs"));
  m.def("fft_convolve", &fft_convolve<T>, isa, options, array("re"), array("im"), py::arg("row_radices"),
        array("row_twiddles"), py::arg("column_radices"), array("column_twiddles"), absent("twist"), array("spectrum"),
        py::arg("shared"), py::arg("first_column"), py::arg("end_column"), py::arg("out_columns"), array("finite"));
  m.def("fft_spectrum", &fft_spectrum<T>, isa, options, array("re"), array("im"), py::arg("row_radices"),
        array("row_twiddles"), py::arg("column_radices"), array("column_twiddles"), absent("twist"), array("spectrum"),
        py::arg("scale"), py::arg("first_column"), py::arg("end_column"));
  m.def("filter_channels", &filter_channels<T>, isa, options, array("rows"), py::arg("row_starts"),
        py::arg("row_pitch"), py::arg("filter_rows"), py::arg("row_stride") = 1, py::arg("row_dilation") = 1,
        py::arg("taps"), py::arg("stride") = 1, py::arg("dilation") = 1, py::arg("first_column"), py::arg("columns"),
        py::arg("channels"), py::arg("out_rows"), py::arg("pixels"), array("dy"), py::arg("dy_start") = 0,
        py::arg("dy_row_pitch"), py::arg("dy_pitch"), array("sum"), py::arg("sum_start") = 0, py::arg("sum_pitch"),
        py::arg("accumulate") = false);
  m.def("depthwise_spread", &depthwise_spread<T>, isa, options, py::arg("planar"), py::arg("rows"), py::arg("taps"),
        py::arg("pad"), py::arg("columns"), py::arg("dy_columns"), py::arg("channels"), array("dy"),
        py::arg("dy_channel") = 0, py::arg("dy_pitch") = 0, array("dx"), py::arg("dx_start"), py::arg("dx_row"),
        py::arg("dx_channel") = 0, py::arg("dx_pitch") = 0, array("weights"), py::arg("weight_row"),
        py::arg("weight_tap"), py::arg("weight_channel") = 0);
  m.def("filter_planes", &filter_planes<T>, isa, options, array("rows"), py::arg("row_starts"),
        py::arg("zero_row") = py::none(), py::arg("channel_pitch"), py::arg("taps"), py::arg("stride") = 1,
        py::arg("first_column"), py::arg("columns"), py::arg("channels"), py::arg("out_rows"), py::arg("pixels"),
        array("dy"), py::arg("dy_start") = 0, py::arg("dy_channel_pitch"), py::arg("dy_row_pitch"), array("sum"),
        py::arg("sum_start") = 0, py::arg("accumulate") = false);
  m.def("norm_stats", &norm_stats<T>, isa, options, array("x"), py::arg("rows"), py::arg("columns"), py::arg("pitch"),
        py::arg("by_column"), py::arg("count") = 1, py::arg("step") = 0, array("shift"), array("sum"), array("square"));
  m.def("norm_apply", &norm_apply<T>, isa, options, array("y"), py::arg("offset"), array("x"),
        py::arg("residual") = py::none(), py::arg("pitch"), py::arg("rows"), py::arg("columns"), py::arg("by_column"),
        array("mean"), array("scale"), array("shift"), py::arg("weight") = py::none(), py::arg("bias") = py::none(),
        py::arg("activation") = 0, py::arg("a") = T{0}, py::arg("b") = T{0}, py::arg("streaming") = false);
  m.def("norm_finish", &norm_finish<T>, isa, options, py::arg("n"), py::arg("count"), py::arg("eps"), array("mean"),
        array("scale"), array("offset"), py::arg("c") = py::none(), py::arg("b") = py::none(),
        py::arg("low") = py::none());
  m.def("norm_sums", &norm_sums<T>, isa, options, array("dy"), array("x"), py::arg("y") = py::none(), py::arg("pitch"),
        py::arg("rows"), py::arg("columns"), py::arg("by_column"), py::arg("merge") = false,
        py::arg("mean") = py::none(), py::arg("weight") = py::none(), py::arg("lower") = T{0}, py::arg("upper") = T{0},
        array("sum_g"), array("sum_gt"), array("sum_t"), py::arg("sum_tt") = py::none(), py::arg("shift") = py::none());
  m.def("norm_gradient", &norm_gradient<T>, isa, options, array("dx"), py::arg("offset"), array("dy"),
        py::arg("x") = py::none(), py::arg("y") = py::none(), py::arg("pitch"), py::arg("rows"), py::arg("columns"),
        py::arg("by_column"), array("mean"), array("a"), array("b"), array("c"), py::arg("lower") = T{0},
        py::arg("upper") = T{0}, py::arg("streaming") = false);
  m.def("layer_gradient", &layer_gradient<T>, isa, options, py::arg("dx") = py::none(), py::arg("offset") = 0,
        array("dy"), array("x"), py::arg("pitch"), py::arg("rows"), py::arg("columns"), py::arg("by_column"),
        array("mean"), array("low"), array("scale"), array("b"), array("c"), py::arg("weight") = py::none(),
        py::arg("dw") = py::none(), py::arg("db") = py::none(), py::arg("streaming") = false);
  m.def("response", &response<T>, isa, options, array("y"), array("x"), py::arg("dy") = py::none(), py::arg("pitch"),
        py::arg("rows"), py::arg("columns"), py::arg("by_column"), py::arg("before"), py::arg("after"),
        py::arg("factor"), py::arg("k"), py::arg("gradient") = T{0}, array("scratch"));
  m.def("map_run", &map_run<T>, isa, options, array("y"), py::arg("offset"), array("x"), py::arg("z") = py::none(),
        py::arg("n"), py::arg("op"), py::arg("kind"), py::arg("a") = T{0}, py::arg("b") = T{0},
        py::arg("streaming") = false);
  m.def("softmax", &softmax<T>, isa, options, py::arg("y") = py::none(), array("x"), py::arg("rows"),
        py::arg("columns"), py::arg("pitch"), py::arg("by_column"), array("maximum"), array("sum"),
        py::arg("logarithm") = false);
  m.def("softmax_gradient", &softmax_gradient<T>, isa, options, array("dx"), array("dy"), array("y"), py::arg("rows"),
        py::arg("columns"), py::arg("pitch"), py::arg("by_column"), py::arg("logarithm"), array("sum"));
}

template <class E>
void bind_integers(py::module_& m, DType dtype) {
  m.def(
      "pool_integers",
      [dtype](const std::string& isa, const Array<E>& x, const Indices& starts, Array<E> dst, int64_t n, int64_t rows,
              int64_t src_pitch, int64_t dst_pitch, int64_t taps, int64_t stride, int64_t step) {
        pool_integers<E>(isa, x, starts, std::move(dst), n, rows, src_pitch, dst_pitch, taps, stride, step,
                         static_cast<int32_t>(dtype));
      },
      py::arg("isa"), py::kw_only(), py::arg("x").noconvert(), py::arg("starts"), py::arg("dst").noconvert(),
      py::arg("n"), py::arg("rows"), py::arg("src_pitch"), py::arg("dst_pitch"), py::arg("taps") = 0,
      py::arg("stride") = 1, py::arg("step") = 0);
}

}  // namespace

namespace fastconv::bindings {
namespace {

// What each of the CPU's operations answers to operands of this dtype and device, over one zeroed block of memory.
std::vector<std::tuple<std::string, int>> cpu_statuses(int dtype, int device) {
  static double memory[4096];
  auto view = [&](std::initializer_list<int64_t> shape) {
    TensorView v;
    v.data = memory;
    v.dtype = static_cast<DType>(dtype), v.device = static_cast<Device>(device);
    int64_t stride = 1;
    v.ndim = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), v.shape);
    for (int i = v.ndim - 1; i >= 0; --i) v.strides[i] = stride, stride *= v.shape[i];
    return v;
  };
  const TensorView x = view({1, 2, 4, 4}), y = view({1, 2, 4, 4}), w = view({2, 2, 1, 1}), c = view({2});
  const TensorView depthwise = view({2, 1, 1, 1});
  std::vector<std::tuple<std::string, int>> all;
  auto put = [&](const char* name, Status s) { all.emplace_back(name, static_cast<int>(s)); };
  put("map_forward", map_forward({}, x, y));
  put("map_add", map_add({}, x, x, y));
  put("map_backward", map_backward({}, x, x, y));
  put("softmax_run", softmax_run(1, false, x, y));
  put("softmax_backward", softmax_backward(1, false, x, x, y));
  PoolDesc pool;
  pool.kind = PoolKind::average;
  put("pool_forward", pool_forward(pool, x, y, {}));
  put("pool_forward of max", pool_forward(PoolDesc{}, x, y, {}));
  put("pool_backward", pool_backward(pool, x, x, {}, y));
  TensorView indices = view({1, 2, 4, 4});
  indices.dtype = DType::i64;
  put("unpool_forward", unpool_forward(2, false, x, indices, y));
  put("unpool_backward", unpool_backward(2, false, x, indices, y));
  NormDesc norm;
  norm.kind = NormKind::group;
  NormOperands forward;
  forward.x = x, forward.y = y;
  put("norm_run", norm_run(norm, forward));
  NormGradients backward;
  backward.dy = backward.x = x, backward.dx = y;
  put("norm_backward", norm_backward(norm, backward));
  put("response_run", response_run({}, x, y));
  put("response_backward", response_backward({}, x, x, y));
  ConvOperands conv;
  conv.x = x, conv.w = w, conv.y = y;
  for (const Pass pass : {Pass::forward, Pass::backward_input, Pass::backward_weight}) {
    put("conv_run", conv_run({}, pass, conv));
    Decision decision;
    put("conv_decide", conv_decide({}, pass, conv, &decision));
  }
  Status s = Status::ok;
  conv_plan({}, conv, &s);
  put("conv_plan", s);
  put("conv_backward_bias", conv_backward_bias({}, y, c, false));
  ConvDesc by_channel;
  by_channel.groups = 2;
  SeparableOperands separable;
  separable.x = x, separable.y = y, separable.depthwise_weight = depthwise, separable.pointwise_weight = w;
  put("separable_run", separable_run(by_channel, separable));
  separable_plan(by_channel, separable, &s);
  put("separable_plan", s);
  InvertedOperands inverted;
  inverted.x = x, inverted.y = y, inverted.expand_weight = w, inverted.depthwise_weight = depthwise;
  inverted.project_weight = w;
  put("inverted_run", inverted_run(by_channel, inverted));
  inverted_plan(by_channel, inverted, &s);
  put("inverted_plan", s);
  return all;
}

}  // namespace
}  // namespace fastconv::bindings

PYBIND11_MODULE(_testing, m, py::mod_gil_not_used()) {
  m.def("cpu_statuses", &fastconv::bindings::cpu_statuses);
  m.attr("ZERO_ROW") = kZeroRow;
  m.attr("UNUSED_ROW") = kUnusedRow;
  m.def("kernel_names", [] {
    return std::vector<std::string>{
#define FASTCONV_KERNEL(name, result, parameters) #name,
#include "dispatch/kernels.inc"
#undef FASTCONV_KERNEL
    };
  });
  m.def("isas", [] {
    std::vector<std::string> names;
    for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
      if (isa_supported(isa)) names.push_back(isa_name(isa));
    }
    return names;
  });
  m.def(
      "tile_shape",
      [](const std::string& isa, const std::string& dtype) {
        return is_float(dtype) ? shape_of(table<float>(isa)) : shape_of(table<double>(isa));
      },
      py::arg("isa"), py::arg("dtype"));
  m.def(
      "fma_loop",
      [](const std::string& isa, const std::string& dtype, int64_t rounds) {
        return is_float(dtype) ? fma_loop(table<float>(isa), rounds) : fma_loop(table<double>(isa), rounds);
      },
      py::arg("isa"), py::kw_only(), py::arg("dtype"), py::arg("rounds"));
  bind_kernels<float>(m);
  bind_kernels<double>(m);
  bind_integers<int8_t>(m, DType::i8);
  bind_integers<uint8_t>(m, DType::u8);
  bind_integers<int16_t>(m, DType::i16);
  bind_integers<int32_t>(m, DType::i32);
  bind_integers<int64_t>(m, DType::i64);
}

}  // namespace fastconv::bindings
