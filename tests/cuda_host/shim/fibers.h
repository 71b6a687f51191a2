// A CUDA device made of fibers: the threads of a block run one at a time on the calling thread, each on a stack of its
// own, and change places only where they wait for each other.
//
// What a GPU leaves open is drawn by a seed: the order of blocks, and of threads between two rendezvous. Shared memory
// and new device memory hold NaN until they are written, an asynchronous copy lands when its thread waits for it, and a
// rendezvous that some named thread never reaches ends the launch with an error that says who waits where.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <vector>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct uint3 { unsigned x, y, z; };

// Those of the fiber that runs. (Thread-local in effect: a launch holds a lock.)
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace fastconv::cuda_host {

using Site = std::source_location;

// Runs a kernel over a grid; false and the launch error where a rendezvous failed or a bound was passed.
bool run_grid(const dim3& grid, const dim3& block, size_t shared_bytes, const std::function<void()>& body);
// What went wrong in the last launch that failed.
const char* launch_error();
// The most shared memory that a launch has asked for since this was last called.
size_t take_most_shared();
// What has been launched since this was last called: launch() and its kernel's types, the first of them. A kernel is
// known by what it takes.
std::vector<const char*> take_launches();
void note_launch(const char* what);
// The seed of the orders; FASTCONV_CUDA_HOST_SEED sets the first.
void set_seed(uint64_t seed);

void* shared_memory();
void wait_for_block(const Site& site);

enum class Exchange { sync, index, up, down, across, ballot, any, all, meet };
// A rendezvous of the lanes that `mask` names; returns the value that this lane receives.
uint64_t wait_for_warp(Exchange kind, unsigned mask, uint64_t value, int operand, int width, const Site& site);

// A rendezvous of all lanes of a warp, at which `together` runs once, on what each of them brings.
using Together = void (*)(void* const (&brought)[32]);
void meet_warp(void* mine, Together together, const Site& site);

// ldmatrix of four 8 x 8 matrices: lane l names row l % 8 of matrix l / 8, in shared memory, and receives word l % 4 of
// row l / 4 of each.
void load_matrices(uint32_t* to, const void* row, const Site& site = Site::current());

void copy_async(void* to, const void* from, size_t bytes, size_t read_bytes);
void commit_copies();
void wait_for_copies(int groups_left);

// Ends the launch with an error unless the address is a multiple of `bytes`.
void check_aligned(const void* address, size_t bytes, const Site& site = Site::current());

}  // namespace fastconv::cuda_host
