// A non-owning view of an array: the only shape in which data enters the library.
#pragma once
#include <cstdint>

namespace fastconv {

// The integers are for max pooling and its indices alone; f16 and bf16 live on devices (`computes`).
enum class DType : int32_t { f32 = 0, f64 = 1, i8 = 2, u8 = 3, i16 = 4, i32 = 5, i64 = 6, f16 = 7, bf16 = 8 };
enum class Device : int32_t { cpu = 0, cuda = 1 };

inline constexpr int kMaxDims = 5;

struct TensorView {
  void* data = nullptr;  // null: the operand is absent
  DType dtype = DType::f32;
  Device device = Device::cpu;
  int32_t ndim = 0;
  int64_t shape[kMaxDims] = {};
  int64_t strides[kMaxDims] = {};  // in elements; may be negative or zero for operands that are only read
};

inline constexpr int64_t item_size(DType dtype) {
  switch (dtype) {
    case DType::i8:
    case DType::u8: return 1;
    case DType::i16:
    case DType::f16:
    case DType::bf16: return 2;
    case DType::f32:
    case DType::i32: return 4;
    case DType::f64:
    case DType::i64: break;
  }
  return 8;
}

// Whether a view's device computes with its dtype. All operands of a call have one dtype and one device.
inline constexpr bool computes(const TensorView& x) {
  if (x.dtype == DType::f32 || x.dtype == DType::f64) return true;
  return x.device == Device::cuda && (x.dtype == DType::f16 || x.dtype == DType::bf16);
}

// What every entry point returns. Nothing has been written when it is not `ok` or `cancelled`.
enum class Status : int32_t {
  ok = 0,
  bad_rank,        // a tensor's ndim does not fit the descriptor
  bad_dtype,       // dtypes differ or are not supported
  bad_shape,       // shapes contradict each other
  bad_groups,      // groups does not divide the channels
  bad_stride,      // a stride, dilation or size below its minimum
  bad_padding,     // padding outside what the mode allows
  bad_output,      // out has the wrong shape or overlaps an input
  empty_output,    // the (dilated) kernel is larger than the padded input
  overflow,        // a size does not fit in 63 bits
  bad_index,       // an index that points outside its image
  bad_device,      // operands on several devices, or on another one than the call's
  bad_algorithm,   // the algorithm that is asked for does not serve this layer
  unsupported,     // a combination that this build does not serve
  out_of_memory,
  cancelled,       // the poll hook asked to stop; the output is unspecified
  device_error,    // the device refused a launch; the backend's last_error() says why
};

}  // namespace fastconv
