// The path that a memory-bound operation takes, for explain(), the log and the tests. The run goes by the same object.
#pragma once
#include <cstdint>

namespace fastconv {

struct PathDecision {
  struct Passed { const char *path, *why; };
  static constexpr int kMost = 8;

  const char* path = "";
  const char* before = "";    // the path of a part that is computed first; empty: there is none
  const char* again = "";     // where an operand that is read twice is found the second time; empty: it is read once
  int64_t tasks = 0;          // of a single thread
  int64_t workspace = 0;      // bytes of scratch a thread
  int64_t shared = 0;         // bytes of scratch of the call
  bool streaming = false;     // the result is written past the caches
  Passed passed_over[kMost];  // the first `passed` of them: faster paths, and why they are not taken
  int32_t passed = 0;

  void pass(const char* name, const char* why) {
    if (passed < kMost) passed_over[passed++] = {name, why};
  }
};

// What such an operation, the last one of this thread, has run since this was asked before; else "". It is written
// where a path begins to run, not where it is chosen.
const char* take_path();

}  // namespace fastconv
