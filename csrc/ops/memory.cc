#include "ops/memory.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <type_traits>
#include <utility>

#include "fastconv/runtime.h"

namespace fastconv {
namespace {

constexpr size_t kAlignment = 64;

// --- output cache --------------------------------------------------------------------------------------------

// Eight size classes an octave, so that a block is at most an eighth larger than asked for.
constexpr int kClassBits = 3;
constexpr int kClasses = (63 - 6) << kClassBits;

struct SizeClass {
  int index;
  size_t bytes;  // 0: no such block can exist
};

SizeClass size_class(size_t bytes) {
  bytes = std::max(bytes, kAlignment);
  if (bytes > PTRDIFF_MAX / 2) return {0, 0};
  const int octave = std::bit_width(bytes - 1) - 1;  // 2^octave < bytes <= 2^(octave + 1)
  const int shift = std::max(octave - kClassBits, 6);
  const size_t steps = ((bytes - 1) >> shift) + 1;
  // Up to 1 KiB a step is the alignment: classes 0 to 15. Then eight an octave, of 9 to 16 steps each.
  const int below = octave <= 9 ? 1 : 9 - ((octave - 8) << kClassBits);
  return {static_cast<int>(steps) - below, steps << shift};
}

// A freed block carries its own links: a list a class, newest first, and one of all blocks by age.
struct FreeBlock {
  FreeBlock *newer_in_class, *older_in_class;
  FreeBlock *newer, *older;
  SizeClass size;
};
static_assert(sizeof(FreeBlock) <= kAlignment);

// A block that the process has not got yet. Large ones ask for huge pages, as NumPy's own do: a stream over small pages
// waits for the TLB (a dense layer on one row ran 1.2 times as long). Others begin at a page: NumPy's large arrays
// begin 16 bytes into one, and where a result began at the line after that, each load waited for the store before it,
// whose lower 12 bits are the same (batch norm's normalisation ran 1.5 times as long, its gradient 1.6 times).
void* new_block(size_t bytes) {
  constexpr size_t kHugePage = size_t{2} << 20, kPage = 4096;
  if (bytes < 2 * kHugePage) return std::aligned_alloc(bytes < 16 * kPage ? kAlignment : kPage, bytes);
  void* block = std::aligned_alloc(kHugePage, bytes);
#ifdef MADV_HUGEPAGE
  if (block != nullptr) madvise(block, bytes, MADV_HUGEPAGE);  // where it is refused, small pages serve
#endif
  return block;
}

class OutputCache {
 public:
  void* allocate(size_t bytes) {
    const SizeClass size = size_class(bytes);
    if (size.bytes == 0) return nullptr;
    {
      const std::lock_guard lock(mutex_);
      if (FreeBlock* block = newest_in_class_[size.index]) {
        unlink(block);
        ++hits_;
        live_ += static_cast<int64_t>(size.bytes);
        return block;
      }
      ++misses_;
    }
    void* block = new_block(size.bytes);
    if (block == nullptr) {
      // What is kept for later may be what is missing now.
      clear();
      block = new_block(size.bytes);
    }
    if (block == nullptr) return nullptr;
    const std::lock_guard lock(mutex_);
    live_ += static_cast<int64_t>(size.bytes);
    return block;
  }

  void release(void* memory, size_t bytes) {
    if (memory == nullptr) return;
    const SizeClass size = size_class(bytes);
    FreeBlock* surplus;
    {
      const std::lock_guard lock(mutex_);
      live_ -= static_cast<int64_t>(size.bytes);
      link(static_cast<FreeBlock*>(memory), size);
      surplus = evict(cap());
    }
    free_all(surplus);
  }

  void clear() {
    FreeBlock* all;
    {
      const std::lock_guard lock(mutex_);
      all = evict(0);
    }
    free_all(all);
  }

  void set_cap(int64_t bytes) {
    FreeBlock* surplus;
    {
      const std::lock_guard lock(mutex_);
      cap_ = std::max<int64_t>(bytes, 0);
      surplus = evict(cap_);
    }
    free_all(surplus);
  }

  CacheStats stats() {
    const std::lock_guard lock(mutex_);
    return {cached_, live_, hits_, misses_, cap()};
  }

  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  static constexpr int64_t kUnset = -1, kDefaultMegabytes = 256;

  int64_t cap() {
    if (cap_ == kUnset) {
      int64_t megabytes = kDefaultMegabytes;
      if (const char* text = std::getenv("FASTCONV_CACHE_MB")) {
        char* end = nullptr;
        const int64_t value = std::strtoll(text, &end, 10);
        if (end != text && *end == 0 && value >= 0 && value < int64_t{1} << 40) megabytes = value;
      }
      cap_ = megabytes << 20;
    }
    return cap_;
  }

  void link(FreeBlock* block, SizeClass size) {
    FreeBlock*& head = newest_in_class_[size.index];
    *block = {nullptr, head, nullptr, newest_, size};
    if (head != nullptr) head->newer_in_class = block;
    head = block;
    if (newest_ != nullptr) newest_->newer = block;
    newest_ = block;
    if (oldest_ == nullptr) oldest_ = block;
    cached_ += static_cast<int64_t>(size.bytes);
  }

  void unlink(FreeBlock* block) {
    if (block->newer_in_class != nullptr) {
      block->newer_in_class->older_in_class = block->older_in_class;
    } else {
      newest_in_class_[block->size.index] = block->older_in_class;
    }
    if (block->older_in_class != nullptr) block->older_in_class->newer_in_class = block->newer_in_class;
    (block->newer != nullptr ? block->newer->older : newest_) = block->older;
    (block->older != nullptr ? block->older->newer : oldest_) = block->newer;
    cached_ -= static_cast<int64_t>(block->size.bytes);
  }

  // Takes the oldest blocks out until the rest fits in the cap; they are freed outside the lock, since returning a
  // large one to the system takes long.
  FreeBlock* evict(int64_t cap) {
    FreeBlock* surplus = nullptr;
    while (cached_ > cap) {
      FreeBlock* block = oldest_;
      unlink(block);
      block->newer = surplus;
      surplus = block;
    }
    return surplus;
  }

  static void free_all(FreeBlock* block) {
    while (block != nullptr) {
      FreeBlock* next = block->newer;
      std::free(block);
      block = next;
    }
  }

  std::mutex mutex_;
  FreeBlock* newest_in_class_[kClasses] = {};
  FreeBlock *newest_ = nullptr, *oldest_ = nullptr;
  int64_t cached_ = 0, live_ = 0, hits_ = 0, misses_ = 0, cap_ = kUnset;
};

// Neither built nor destroyed at run time: arrays may be released after the last static destructor has run.
constinit OutputCache output_cache;
static_assert(std::is_trivially_destructible_v<OutputCache>);

// --- workspace -----------------------------------------------------------------------------------------------

std::atomic<int64_t> held_bytes{0};
std::atomic<int64_t> peak_bytes{0};

constexpr size_t kKeptBytes = 4 << 20;
constexpr size_t kGranularity = 4096;

// The scratch blocks that a thread keeps between calls.
class ThreadScratch {
 public:
  ThreadScratch() = default;
  ~ThreadScratch() {
    for (Block& block : free_) drop(block);
  }
  ThreadScratch(const ThreadScratch&) = delete;
  ThreadScratch& operator=(const ThreadScratch&) = delete;

  // The smallest block that holds this much.
  void* take(size_t bytes, size_t* capacity) {
    Block* best = nullptr;
    for (Block& block : free_) {
      const bool fits = block.data != nullptr && block.bytes >= bytes;
      if (fits && (best == nullptr || block.bytes < best->bytes)) best = &block;
    }
    void* data;
    if (best != nullptr) {
      data = best->data;
      *capacity = best->bytes;
      kept_ -= best->bytes;
      *best = {};
    } else {
      if (bytes > PTRDIFF_MAX / 2) return nullptr;
      *capacity = (std::max<size_t>(bytes, 1) + kGranularity - 1) / kGranularity * kGranularity;
      data = std::aligned_alloc(kAlignment, *capacity);
      if (data == nullptr) return nullptr;
      owned_ += *capacity;
      held_bytes.fetch_add(static_cast<int64_t>(*capacity), std::memory_order_relaxed);
    }
    in_use_ += bytes;
    int64_t peak = peak_bytes.load(std::memory_order_relaxed);
    const int64_t now = static_cast<int64_t>(in_use_);
    while (now > peak && !peak_bytes.compare_exchange_weak(peak, now, std::memory_order_relaxed)) {}
    return data;
  }

  void put_back(void* data, size_t capacity, size_t requested) {
    in_use_ -= requested;
    Block returned = {data, capacity};
    // Smaller blocks make room: the larger one serves their callers as well.
    for (Block& block : free_) {
      if (block.bytes < capacity && (kept_ + capacity > kKeptBytes || full())) drop(block);
    }
    if (kept_ + capacity > kKeptBytes || full()) {
      drop_owned(returned);
      return;
    }
    for (Block& block : free_) {
      if (block.data != nullptr) continue;
      block = returned;
      kept_ += capacity;
      return;
    }
  }

  size_t owned() const { return owned_; }

 private:
  struct Block {
    void* data = nullptr;
    size_t bytes = 0;
  };

  bool full() const {
    return std::all_of(std::begin(free_), std::end(free_), [](const Block& block) { return block.data != nullptr; });
  }

  void drop(Block& block) {
    kept_ -= block.bytes;
    drop_owned(block);
  }

  void drop_owned(Block& block) {
    std::free(block.data);
    owned_ -= block.bytes;
    held_bytes.fetch_sub(static_cast<int64_t>(block.bytes), std::memory_order_relaxed);
    block = {};
  }

  Block free_[4];
  size_t kept_ = 0;    // bytes in free_
  size_t owned_ = 0;   // those and what is borrowed
  size_t in_use_ = 0;  // bytes asked for by the Workspace objects alive
};

thread_local ThreadScratch scratch;

// --- fork ----------------------------------------------------------------------------------------------------

// Another thread may be inside the cache when this one forks; the lists have to be whole in the child. The scratch of
// the other threads is unreachable there.
[[maybe_unused]] const int fork_handlers = pthread_atfork([] { output_cache.lock(); }, [] { output_cache.unlock(); },
                                                          [] {
                                                            output_cache.unlock();
                                                            held_bytes.store(static_cast<int64_t>(scratch.owned()));
                                                          });

}  // namespace

void* output_allocate(size_t bytes) { return output_cache.allocate(bytes); }
void output_release(void* block, size_t bytes) { output_cache.release(block, bytes); }
CacheStats output_cache_stats() { return output_cache.stats(); }
void output_cache_clear() { output_cache.clear(); }
void output_cache_set_cap(int64_t bytes) { output_cache.set_cap(bytes); }

WorkspaceStats workspace_stats(bool reset) {
  const int64_t held = held_bytes.load(std::memory_order_relaxed);
  return {held, reset ? peak_bytes.exchange(0, std::memory_order_relaxed) : peak_bytes.load(std::memory_order_relaxed)};
}

namespace ops {

Workspace::Workspace(size_t bytes) : requested_(bytes), data_(scratch.take(bytes, &capacity_)) {}

Workspace::~Workspace() {
  if (data_ != nullptr) scratch.put_back(data_, capacity_, requested_);
}

}  // namespace ops

}  // namespace fastconv
