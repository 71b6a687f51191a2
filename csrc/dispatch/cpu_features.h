// What the CPU can do, and the floating-point mode of a thread. The ISA choice itself is in fastconv/runtime.h.
#pragma once
#include <cstdint>

namespace fastconv::dispatch {

// Bits of CpuFeatures: the CPU has the instructions and the operating system saves the registers they use.
enum CpuFeature : uint32_t {
  kAvx2 = 1u << 0,
  kFma = 1u << 1,
  kAvx512f = 1u << 2,
  kAvx512bw = 1u << 3,
  kAvx512dq = 1u << 4,
  kAvx512vl = 1u << 5,
};
uint32_t cpu_features();

// The floating-point control word of the calling thread: MXCSR on x86, FPCR on aarch64.
#if defined(__x86_64__) || defined(__i386__)
using FpMode = uint32_t;
inline constexpr FpMode kFpModeIeee = 0x1F80;    // round to nearest, every exception masked, denormals honoured
inline constexpr FpMode kFpModeFlush = 0x9FC0;   // FTZ (bit 15) and DAZ (bit 6) besides
inline constexpr FpMode kFpControlMask = 0xFFC0;  // bits 0 to 5 are sticky exception flags
inline FpMode fp_mode() {
  FpMode mode;
  asm volatile("stmxcsr %0" : "=m"(mode));
  return mode;
}
inline void set_fp_mode(FpMode mode) { asm volatile("ldmxcsr %0" : : "m"(mode) : "memory"); }
#elif defined(__aarch64__)
using FpMode = uint64_t;
inline constexpr FpMode kFpModeIeee = 0;
inline constexpr FpMode kFpModeFlush = uint64_t{1} << 24;  // FZ
inline constexpr FpMode kFpControlMask = 0x07F79F00;  // AHP, DN, FZ, RMode, Stride, FZ16, Len and the trap enables
inline FpMode fp_mode() {
  FpMode mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
inline void set_fp_mode(FpMode mode) { asm volatile("msr fpcr, %0" : : "r"(mode) : "memory"); }
#else
using FpMode = uint32_t;
inline constexpr FpMode kFpModeIeee = 0, kFpModeFlush = 0, kFpControlMask = 0;
inline FpMode fp_mode() { return 0; }
inline void set_fp_mode(FpMode) {}
#endif

// Gives the thread the library's own mode for its lifetime, then the caller's again. The rounding mode is part of it:
// were it the caller's, a result would depend on which thread computed it.
class FpModeScope {
 public:
  explicit FpModeScope(bool flush) : callers_(fp_mode()) {
    const FpMode wanted = flush ? kFpModeFlush : kFpModeIeee;
    changed_ = (callers_ & kFpControlMask) != wanted;
    if (changed_) set_fp_mode(wanted);
  }
  ~FpModeScope() {
    if (changed_) set_fp_mode(callers_);
  }
  FpModeScope(const FpModeScope&) = delete;
  FpModeScope& operator=(const FpModeScope&) = delete;

 private:
  FpMode callers_;
  bool changed_;
};

}  // namespace fastconv::dispatch
