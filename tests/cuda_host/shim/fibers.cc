#include "fibers.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef __x86_64__
#error "the fibers are switched by x86-64 code"
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// Leaves the caller's callee-saved registers on its stack and goes on where the other stack was left.
asm(R"(
.text
.globl fastconv_switch_stack
.type fastconv_switch_stack, @function
fastconv_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastconv_switch_stack, .-fastconv_switch_stack
)");
extern "C" void fastconv_switch_stack(void** leave, void* enter);

namespace fastconv::cuda_host {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStack = 1 << 18;
#else
constexpr size_t kStack = 1 << 16;
#endif
constexpr size_t kPage = 4096;
constexpr unsigned kMostThreads = 1024;
constexpr size_t kGuard = 256;
constexpr char kGuardByte = 0x5A;
constexpr size_t kMostShared = 227 << 10;  // of sm_90; a launch that asks for more fails there too

struct Copy {
  char* to;
  const char* from;
  size_t bytes, read_bytes;
};

enum class State { ready, at_block, at_warp, done };

struct Fiber {
  char* stack = nullptr;
  void* pointer = nullptr;  // its stack's top while it does not run
  void* fake_stack = nullptr;
  State state = State::done;
  Site site;
  Exchange kind = Exchange::sync;
  unsigned mask = 0;
  uint64_t value = 0, received = 0;
  int operand = 0, width = 32;
  Together together = nullptr;
  std::vector<Copy> copies;              // not committed yet
  std::deque<std::vector<Copy>> groups;  // committed, the oldest first
};

struct Machine {
  std::mutex lock;
  std::vector<Fiber> fibers{kMostThreads};
  void* scheduler = nullptr;
  void* scheduler_fake = nullptr;
  const void* scheduler_bottom = nullptr;
  size_t scheduler_size = 0;
  Fiber* current = nullptr;
  int running = 0;  // index of current
  const std::function<void()>* body = nullptr;
  std::unique_ptr<char[]> shared;
  char* shared_begin = nullptr;
  std::string error;
  size_t most_shared = 0;
  std::vector<const char*> launches;
  std::mt19937_64 order;
  uint64_t seed = 0;
  bool seeded = false;
};

Machine& machine() {
  static Machine m;
  return m;
}

void leave_fiber() {
  Machine& m = machine();
  Fiber& f = *m.current;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(f.state == State::done ? nullptr : &f.fake_stack, m.scheduler_bottom,
                                 m.scheduler_size);
#endif
  fastconv_switch_stack(&f.pointer, m.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(f.fake_stack, &m.scheduler_bottom, &m.scheduler_size);
#endif
}

// The first code of a fiber.
void begin_fiber() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine().scheduler_bottom, &machine().scheduler_size);
#endif
  (*machine().body)();
  machine().current->state = State::done;
  leave_fiber();
  std::abort();
}

void prepare_fiber(Fiber& f) {
  if (!f.stack) {
    void* memory = mmap(nullptr, kStack + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    mprotect(memory, kPage, PROT_NONE);  // what overflows faults
    f.stack = static_cast<char*>(memory) + kPage;
  }
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(f.stack, kStack);  // of a fiber that a failed launch left behind
  f.fake_stack = nullptr;
#endif
  auto* top = reinterpret_cast<void**>(f.stack + kStack);
  *--top = nullptr;  // the frame above begin_fiber's: aligned as after a call
  *--top = reinterpret_cast<void*>(&begin_fiber);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  f.pointer = top;
  f.state = State::ready;
  f.copies.clear();
  f.groups.clear();
}

void set_thread(int i) {
  threadIdx.x = static_cast<unsigned>(i) % blockDim.x;
  threadIdx.y = static_cast<unsigned>(i) / blockDim.x % blockDim.y;
  threadIdx.z = static_cast<unsigned>(i) / blockDim.x / blockDim.y;
}

void enter_fiber(int i) {
  Machine& m = machine();
  m.current = &m.fibers[static_cast<size_t>(i)];
  m.running = i;
  set_thread(i);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&m.scheduler_fake, m.current->stack, kStack);
#endif
  fastconv_switch_stack(&m.scheduler, m.current->pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(m.scheduler_fake, nullptr, nullptr);
#endif
}

std::string place(const Site& site) {
  const char* name = std::strrchr(site.file_name(), '/');
  return std::string(name ? name + 1 : site.file_name()) + ":" + std::to_string(site.line());
}

std::string thread_name(int i) {
  return "thread " + std::to_string(i) + " of block (" + std::to_string(blockIdx.x) + ", " +
         std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + ")";
}

bool same_site(const Site& a, const Site& b) { return a.line() == b.line() && a.column() == b.column(); }

// Lets the lanes of a warp go on whose exchange is complete; 1 where there were some, -1 where one can never be.
int resolve_warp(int threads, int warp) {
  Machine& m = machine();
  int released = 0;
  for (int lane = 0; lane < 32 && warp * 32 + lane < threads; ++lane) {
    const Fiber& first = m.fibers[static_cast<size_t>(warp * 32 + lane)];
    if (first.state != State::at_warp) continue;
    if (!(first.mask >> lane & 1)) {
      m.error = thread_name(warp * 32 + lane) + " takes part at " + place(first.site) + " in an exchange of others";
      return -1;
    }
    bool complete = true;
    for (int l = 0; l < 32; ++l) {
      if (!(first.mask >> l & 1)) continue;
      if (warp * 32 + l >= threads || m.fibers[static_cast<size_t>(warp * 32 + l)].state == State::done) {
        m.error = thread_name(warp * 32 + lane) + " waits at " + place(first.site) + " for lane " + std::to_string(l) +
                  ", which has ended or does not exist";
        return -1;
      }
      const Fiber& other = m.fibers[static_cast<size_t>(warp * 32 + l)];
      if (other.state != State::at_warp || other.mask != first.mask || other.kind != first.kind ||
          !same_site(other.site, first.site))
        complete = false;
    }
    if (!complete) continue;
    const unsigned mask = first.mask;
    if (first.kind == Exchange::meet) {
      void* brought[32];
      for (int l = 0; l < 32; ++l)
        brought[l] = reinterpret_cast<void*>(m.fibers[static_cast<size_t>(warp * 32 + l)].value);
      first.together(brought);
    }
    uint64_t ballot = 0;
    for (int l = 0; l < 32; ++l)
      if (mask >> l & 1 && m.fibers[static_cast<size_t>(warp * 32 + l)].value) ballot |= uint64_t{1} << l;
    for (int l = 0; l < 32; ++l) {
      if (!(mask >> l & 1)) continue;
      Fiber& f = m.fibers[static_cast<size_t>(warp * 32 + l)];
      const int base = l / f.width * f.width;
      int from = l;
      switch (f.kind) {
        case Exchange::index: from = base + (f.operand & (f.width - 1)); break;
        case Exchange::up: from = l - f.operand >= base ? l - f.operand : l; break;
        case Exchange::down: from = l + f.operand < base + f.width ? l + f.operand : l; break;
        case Exchange::across: from = (l ^ f.operand) < base + f.width ? l ^ f.operand : l; break;
        default: break;
      }
      if (!(mask >> from & 1)) {
        m.error = thread_name(warp * 32 + l) + " reads at " + place(f.site) + " from lane " + std::to_string(from) +
                  ", which does not take part";
        return -1;
      }
      f.received = m.fibers[static_cast<size_t>(warp * 32 + from)].value;
      if (f.kind == Exchange::ballot) f.received = ballot;
      if (f.kind == Exchange::any) f.received = ballot != 0;
      if (f.kind == Exchange::all) f.received = ballot == mask;
    }
    for (int l = 0; l < 32; ++l)
      if (mask >> l & 1) m.fibers[static_cast<size_t>(warp * 32 + l)].state = State::ready, released = 1;
  }
  return released;
}

// Lets the threads of a block go on where all have arrived; false where some never will.
bool resolve_block(int threads) {
  Machine& m = machine();
  int first = -1;
  for (int i = 0; i < threads && first < 0; ++i)
    if (m.fibers[static_cast<size_t>(i)].state != State::done) first = i;
  if (first < 0) return true;
  const Fiber& f = m.fibers[static_cast<size_t>(first)];
  for (int i = 0; i < threads; ++i) {
    const Fiber& other = m.fibers[static_cast<size_t>(i)];
    if (f.state == State::at_block && other.state == State::at_block && same_site(f.site, other.site)) continue;
    m.error = thread_name(first) + " waits at " + place(f.site) + ", thread " + std::to_string(i);
    m.error += other.state == State::done ? " has ended" : " at " + place(other.site);
    return false;
  }
  for (int i = 0; i < threads; ++i) m.fibers[static_cast<size_t>(i)].state = State::ready;
  return true;
}

// By Fisher and Yates, which the standard leaves to the library otherwise: one seed is one order everywhere.
void shuffle(std::vector<int>& order) {
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[machine().order() % i]);
}

bool run_block(int threads, size_t shared_bytes) {
  Machine& m = machine();
  std::memset(m.shared_begin, 0xFF, shared_bytes);
  std::vector<int> order(static_cast<size_t>(threads));
  for (int i = 0; i < threads; ++i) order[static_cast<size_t>(i)] = i, prepare_fiber(m.fibers[static_cast<size_t>(i)]);
  for (;;) {
    shuffle(order);
    bool moved = false;
    for (const int i : order) {
      if (m.fibers[static_cast<size_t>(i)].state != State::ready) continue;
      enter_fiber(i);
      moved = true;
      if (!m.error.empty()) return false;
    }
    bool exchanged = false;
    for (int warp = 0; warp * 32 < threads; ++warp) {
      const int released = resolve_warp(threads, warp);
      if (released < 0) return false;
      exchanged = exchanged || released > 0;
    }
    if (exchanged) continue;
    if (!moved && std::all_of(order.begin(), order.end(),
                              [&](int i) { return m.fibers[static_cast<size_t>(i)].state == State::done; }))
      return true;
    if (std::any_of(order.begin(), order.end(),
                    [&](int i) { return m.fibers[static_cast<size_t>(i)].state == State::ready; }))
      continue;
    if (!resolve_block(threads)) return false;
  }
}

void land(const std::vector<Copy>& copies) {
  for (const Copy& c : copies) {
    if (c.read_bytes) std::memcpy(c.to, c.from, c.read_bytes);
    std::memset(c.to + c.read_bytes, 0, c.bytes - c.read_bytes);
  }
}

}  // namespace

void set_seed(uint64_t seed) {
  Machine& m = machine();
  const std::lock_guard<std::mutex> guard(m.lock);
  m.seed = seed;
  m.seeded = true;
}

size_t take_most_shared() { return std::exchange(machine().most_shared, 0); }

// Enough for a call, where what was there before has been taken.
constexpr size_t kMostNoted = 64;
std::vector<const char*> take_launches() {
  const std::lock_guard<std::mutex> guard(machine().lock);
  return std::exchange(machine().launches, {});
}
void note_launch(const char* what) {
  const std::lock_guard<std::mutex> guard(machine().lock);
  if (machine().launches.size() < kMostNoted) machine().launches.push_back(what);
}

const char* launch_error() { return machine().error.c_str(); }

bool run_grid(const dim3& grid, const dim3& block, size_t shared_bytes, const std::function<void()>& body) {
  Machine& m = machine();
  const std::lock_guard<std::mutex> guard(m.lock);
  if (!m.seeded) {
    const char* text = std::getenv("FASTCONV_CUDA_HOST_SEED");
    m.seed = text ? std::strtoull(text, nullptr, 10) : 0;
    m.seeded = true;
  }
  m.error.clear();
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads < 1 || threads > kMostThreads || grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 0x7FFFFFFFu ||
      grid.y > 65535 || grid.z > 65535 || block.z > 64 || shared_bytes > kMostShared) {
    m.error = "a launch of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
              std::to_string(grid.z) + " blocks of " + std::to_string(threads) + " threads and " +
              std::to_string(shared_bytes) + " bytes of shared memory";
    return false;
  }
  m.most_shared = std::max(m.most_shared, shared_bytes);
  m.order.seed(m.seed);
  m.body = &body;
  gridDim = grid, blockDim = block;
  // At a multiple of 1024 bytes, with a guard behind it.
  m.shared.reset(new char[shared_bytes + 2048]);
  m.shared_begin = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(m.shared.get()) + 1023) & ~uintptr_t{1023});
  std::memset(m.shared_begin + shared_bytes, kGuardByte, kGuard);
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(m.shared_begin + shared_bytes, kGuard);
#endif
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  // A permutation of the blocks that takes no memory: steps of a size that has no divisor in common with their number.
  uint64_t step = blocks > 2 ? m.order() % blocks : 1;
  auto common = [](uint64_t a, uint64_t b) {
    while (b) a %= b, std::swap(a, b);
    return a;
  };
  while (step == 0 || common(step, blocks) != 1) ++step;
  uint64_t at = m.order() % blocks;
  bool ok = true;
  for (uint64_t i = 0; i < blocks && ok; ++i) {
    blockIdx = {static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
                static_cast<unsigned>(at / grid.x / grid.y)};
    ok = run_block(static_cast<int>(threads), shared_bytes);
    at = (at + step % blocks) % blocks;
  }
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(m.shared_begin + shared_bytes, kGuard);
#endif
  if (ok && !std::all_of(m.shared_begin + shared_bytes, m.shared_begin + shared_bytes + kGuard,
                         [](char c) { return c == kGuardByte; })) {
    m.error = "a store beyond the " + std::to_string(shared_bytes) + " bytes of shared memory";
    ok = false;
  }
  return ok;
}

void* shared_memory() { return machine().shared_begin; }

void wait_for_block(const Site& site) {
  Fiber& f = *machine().current;
  f.state = State::at_block;
  f.site = site;
  leave_fiber();
}

uint64_t wait_for_warp(Exchange kind, unsigned mask, uint64_t value, int operand, int width, const Site& site) {
  Fiber& f = *machine().current;
  f.state = State::at_warp;
  f.site = site;
  f.kind = kind;
  f.mask = mask;
  f.value = value;
  f.operand = operand;
  f.width = width;
  leave_fiber();
  return f.received;
}

void meet_warp(void* mine, Together together, const Site& site) {
  machine().current->together = together;
  wait_for_warp(Exchange::meet, 0xFFFFFFFFu, reinterpret_cast<uintptr_t>(mine), 0, 32, site);
}

void load_matrices(uint32_t* to, const void* row, const Site& site) {
  check_aligned(row, 16, site);
  struct Brought {
    uint32_t* to;
    const char* row;
  } mine{to, static_cast<const char*>(row)};
  meet_warp(
      &mine,
      [](void* const(&brought)[32]) {
        for (int matrix = 0; matrix < 4; ++matrix)
          for (int lane = 0; lane < 32; ++lane)
            std::memcpy(static_cast<Brought*>(brought[lane])->to + matrix,
                        static_cast<Brought*>(brought[8 * matrix + lane / 4])->row + lane % 4 * 4, 4);
      },
      site);
}

void copy_async(void* to, const void* from, size_t bytes, size_t read_bytes) {
  check_aligned(to, bytes);
  if (read_bytes) check_aligned(from, bytes);
  machine().current->copies.push_back({static_cast<char*>(to), static_cast<const char*>(from), bytes, read_bytes});
}

void commit_copies() {
  Fiber& f = *machine().current;
  f.groups.push_back(std::move(f.copies));
  f.copies.clear();
}

void wait_for_copies(int groups_left) {
  Fiber& f = *machine().current;
  while (f.groups.size() > static_cast<size_t>(groups_left)) {
    land(f.groups.front());
    f.groups.pop_front();
  }
}

void check_aligned(const void* address, size_t bytes, const Site& site) {
  if (reinterpret_cast<uintptr_t>(address) % bytes == 0) return;
  Machine& m = machine();
  m.error = thread_name(m.running) + " is at " + place(site) + " with an address that is no multiple of " +
            std::to_string(bytes);
  m.current->state = State::at_block;  // for ever: the scheduler ends the launch
  leave_fiber();
}

}  // namespace fastconv::cuda_host
