// Threads, ISA choice, memory, floating-point mode: everything about the process rather than about a layer.
#pragma once
#include <cstddef>
#include <cstdint>

#include "fastconv/tensor.h"

namespace fastconv {

// --- threads -------------------------------------------------------------------------------------------------
// The default comes from FASTCONV_NUM_THREADS, then OMP_NUM_THREADS, then affinity and cgroup limits.
int num_threads();                  // what a call made now from this thread would use
void set_num_threads(int n);        // n >= 1; process-wide
int available_cores();              // affinity and cgroup quota
// A limit for calls made from the current thread; returns the previous one (0: none). Used by the Python scope.
int set_thread_limit(int n);
// Called on the calling thread between tasks, at most every 20 ms; returns true to stop the call.
using PollHook = bool (*)();
void set_poll_hook(PollHook hook);

// --- ISA -----------------------------------------------------------------------------------------------------
enum class Isa : int32_t { portable = 0, avx2 = 1, avx512 = 2 };
const char* isa_name(Isa isa);
bool isa_supported(Isa isa);        // compiled in, and this CPU and OS have it
Isa current_isa();                  // FASTCONV_ISA (read once) or the best supported
bool set_isa(Isa isa);              // false where not supported; calls made afterwards use it
// The error text of a FASTCONV_ISA that cannot be honoured, else null. Asked once by the module's import.
const char* isa_environment_error();
const char* cpu_name();
struct CacheSizes { int64_t l1d, l2, l3; };
CacheSizes cache_sizes();           // bytes, of the core this process started on

// --- memory --------------------------------------------------------------------------------------------------
// Blocks for outputs: 64-byte aligned, kept after use up to the cap (FASTCONV_CACHE_MB, default 256). Null when
// there is no memory. Thread-safe.
void* output_allocate(size_t bytes);
void output_release(void* block, size_t bytes);
struct CacheStats { int64_t cached_bytes, live_bytes, hits, misses, cap_bytes; };
CacheStats output_cache_stats();
void output_cache_clear();
void output_cache_set_cap(int64_t bytes);
// Bytes of scratch memory held by all threads, and the most one call has asked for since the last reset.
struct WorkspaceStats { int64_t held_bytes, peak_call_bytes_per_thread; };
WorkspaceStats workspace_stats(bool reset);

// --- floating point ------------------------------------------------------------------------------------------
// While on, tasks run with denormals flushed (FTZ and DAZ on x86); the caller's mode comes back after each call.
bool flush_denormals();
bool set_flush_denormals(bool on);  // returns the previous setting

// --- measuring -----------------------------------------------------------------------------------------------
// Runs `iterations` rounds of a register-only FMA loop on the calling thread and returns the flops done.
double run_fma_loop(DType dtype, int64_t iterations);
// Copies by the current ISA's vector loop: mode 0 memcpy, 1 plain stores, 2 non-temporal stores. All threads.
void run_copy(void* dst, const void* src, size_t bytes, int mode);
// x = act(x) elementwise over n contiguous elements: the epilogue's functions, exposed for their tests.

}  // namespace fastconv
