// What the kernels compute with: the four dtypes, their accumulators, and vectors of 16 bytes.
//
// Every source here is compiled twice: by nvcc for a GPU, and by the host's compiler over tests/cuda_host/shim, where
// the threads of a block are fibers. So a kernel is launched by launch() and takes its shared memory from
// shared_memory(), and whatever differs between the two stands in this file and in async.cuh.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cuda/runtime.h"
#include "fastconv/backend.h"

namespace fastconv::cuda {

using half = __half;
using bfloat16 = __nv_bfloat16;

template <class T>
struct Accumulator {
  using type = std::conditional_t<std::is_integral_v<T> || sizeof(T) == 8, T, float>;
};
// float for the floating-point types up to 32 bits, double for double; integers are compared as they are.
template <class T>
using Acc = typename Accumulator<T>::type;

template <class T>
__device__ __forceinline__ T widen(T x) {
  return x;
}
__device__ __forceinline__ float widen(half x) { return __half2float(x); }
__device__ __forceinline__ float widen(bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T narrow(Acc<T> x) {
  if constexpr (std::is_integral_v<T> || sizeof(T) >= 4)
    return x;
  else if constexpr (std::is_same_v<T, half>)
    return __float2half_rn(x);
  else
    return __float2bfloat16_rn(x);
}

// 1 / x to an ulp or two, of x from 1 to infinity, without the call that a correctly rounded quotient makes for
// denormals: around one a kernel spills.
__device__ __forceinline__ float reciprocal(float x) {
#ifdef __CUDACC__
  float r;
  asm("rcp.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
#else
  return 1.0f / x;
#endif
}
__device__ __forceinline__ double reciprocal(double x) {
#ifdef __CUDACC__
  double r;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(r) : "d"(x));
  // 20 bits, 40, 80.
  double next = fma(fma(-x, r, 1.0), r, r);
  next = fma(fma(-x, next, 1.0), next, next);
  return next == next ? next : r;
#else
  return 1.0 / x;
#endif
}

// a / b given reciprocal(b), of 1 <= b: rounded as a quotient is, but for denormals.
template <class A>
__device__ __forceinline__ A quotient(A a, A b, A inverse) {
  const A q = a * inverse, better = fma(fma(-q, b, a), inverse, q);
  return better == better ? better : q;
}

// 16 bytes of elements: what a thread loads or stores by one instruction, LDG.E.128 or STG.E.128.
template <class T>
struct alignas(16) Vector {
  static constexpr int kLength = 16 / static_cast<int>(sizeof(T));
  T at[kLength];
};

template <class T>
__device__ __forceinline__ Vector<T> load_vector(const T* p) {
#ifndef __CUDACC__
  cuda_host::check_aligned(p, 16);
#endif
  return *reinterpret_cast<const Vector<T>*>(p);
}

template <class T>
__device__ __forceinline__ void store_vector(T* p, const Vector<T>& v) {
#ifndef __CUDACC__
  cuda_host::check_aligned(p, 16);
#endif
  *reinterpret_cast<Vector<T>*>(p) = v;
}

// The block's dynamic shared memory, which is all that there is: its size is stated at the launch.
template <class T>
__device__ __forceinline__ T* shared_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(1024) unsigned char fastconv_shared[];
  return reinterpret_cast<T*>(fastconv_shared);
#else
  return static_cast<T*>(cuda_host::shared_memory());
#endif
}

// Launches a kernel on the queue's stream. Kernels of more than 48 KB of shared memory have to ask for it.
template <class... P, class... A>
Status launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, const Queue& queue, const A&... args) {
#ifdef __CUDACC__
  if (shared_bytes > 48 << 10) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return status_of(error);
  }
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(queue.stream)>>>(static_cast<P>(args)...);
  return status_of(cudaGetLastError());
#else
  (void)queue;
  if (const cudaError_t failure = cuda_host_take_failure(); failure != cudaSuccess) return status_of(failure);
  cuda_host::note_launch(__PRETTY_FUNCTION__);
  const bool ok = cuda_host::run_grid(grid, block, shared_bytes, [&] { kernel(static_cast<P>(args)...); });
  return status_of(ok ? cudaSuccess : cudaErrorLaunchFailure);
#endif
}

// Calls f with a null pointer of the dtype's type.
template <class F>
Status for_dtype(DType dtype, F f) {
  switch (dtype) {
    case DType::f32: return f(static_cast<float*>(nullptr));
    case DType::f64: return f(static_cast<double*>(nullptr));
    case DType::f16: return f(static_cast<half*>(nullptr));
    case DType::bf16: return f(static_cast<bfloat16*>(nullptr));
    default: return Status::bad_dtype;
  }
}
// As for_dtype, with the integers.
template <class F>
Status for_any_dtype(DType dtype, F f) {
  switch (dtype) {
    case DType::i8: return f(static_cast<int8_t*>(nullptr));
    case DType::u8: return f(static_cast<uint8_t*>(nullptr));
    case DType::i16: return f(static_cast<int16_t*>(nullptr));
    case DType::i32: return f(static_cast<int32_t*>(nullptr));
    case DType::i64: return f(static_cast<int64_t*>(nullptr));
    default: return for_dtype(dtype, f);
  }
}
template <class Pointer>
using Pointee = std::remove_pointer_t<Pointer>;

}  // namespace fastconv::cuda
