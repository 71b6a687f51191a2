// Where the paths of the memory-bound operations say that they run.
#pragma once
#include "fastconv/path.h"

namespace fastconv::ops {

extern constinit thread_local const char* running_path;

inline void begin_path(const char* path) { running_path = path; }
// Begins the path that a decision has named.
inline void begin(const PathDecision& d) { begin_path(d.path); }

}  // namespace fastconv::ops
