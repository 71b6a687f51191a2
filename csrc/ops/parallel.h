// The split over threads: a small pool of std::thread, no OpenMP.
#pragma once
#include <cstdint>
#include <memory>
#include <type_traits>

#include "fastconv/runtime.h"

namespace fastconv::ops {

// Tasks may not throw. `worker` is below planned_threads(tasks, work); nothing that a task computes may depend on it.
using TaskBody = void (*)(void* context, int64_t task, int worker);

// The threads that parallel_for uses for this many tasks: never more than num_threads() or than the work (an estimate
// of nanoseconds on one core) feeds.
int planned_threads(int64_t tasks, double work);

// Runs body(context, task, worker) for every task in [0, tasks) and returns when all have ended. The caller is worker
// 0; each worker takes the next task from one counter. Workers that are busy with another caller's tasks are not waited
// for: the call then runs with fewer, down to the caller alone. A nested call runs on its own thread.
// Returns ok, or cancelled once the poll hook has asked to stop and every worker has let go of the tasks.
Status parallel_for(int64_t tasks, double work, TaskBody body, void* context);

// The same for a callable f(task, worker).
template <class F>
  requires std::is_invocable_v<F&, int64_t, int>
Status parallel_for(int64_t tasks, double work, F&& f) {
  using Callable = std::remove_reference_t<F>;
  const TaskBody body = [](void* context, int64_t task, int worker) {
    (*static_cast<Callable*>(context))(task, worker);
  };
  return parallel_for(tasks, work, body, const_cast<void*>(static_cast<const void*>(std::addressof(f))));
}

// Whole cores that the CPU quota of this process's control groups allows, 0 where there is none. `membership` is
// /proc/self/cgroup and `mount` /sys/fs/cgroup, except in tests.
int cgroup_cores(const char* membership, const char* mount);

}  // namespace fastconv::ops
