#include "ops/parallel.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <string>
#include <system_error>
#include <thread>

#include "dispatch/cpu_features.h"

namespace fastconv {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;
using std::chrono::milliseconds;

// --- how many threads ----------------------------------------------------------------------------------------

// The first number of a variable ("4" or, for OpenMP, "4,2"); 0 where it is not a positive one.
int positive_from_environment(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr) return 0;
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (end == text || (*end != 0 && *end != ',')) return 0;
  return value >= 1 && value <= 1 << 16 ? static_cast<int>(value) : 0;
}

int affinity_cores() {
  cpu_set_t usual;
  if (sched_getaffinity(0, sizeof usual, &usual) == 0) return CPU_COUNT(&usual);
  // Machines with more than 1024 CPUs need a larger mask than cpu_set_t.
  for (int cpus = 4096; cpus <= 1 << 16; cpus *= 4) {
    cpu_set_t* mask = CPU_ALLOC(cpus);
    if (mask == nullptr) break;
    const size_t size = CPU_ALLOC_SIZE(cpus);
    const int count = sched_getaffinity(0, size, mask) == 0 ? CPU_COUNT_S(size, mask) : 0;
    CPU_FREE(mask);
    if (count > 0) return count;
  }
  return std::max(1u, std::thread::hardware_concurrency());
}

std::atomic<int> configured_threads{0};  // set_num_threads; 0: not called
thread_local int thread_limit = 0;

// What the user asked for, 0 where nothing.
int requested_threads() {
  if (thread_limit > 0) return thread_limit;
  const int configured = configured_threads.load(std::memory_order_relaxed);
  if (configured > 0) return configured;
  static const int environment = [] {
    const int own = positive_from_environment("FASTCONV_NUM_THREADS");
    return own > 0 ? own : positive_from_environment("OMP_NUM_THREADS");
  }();
  return environment;
}

std::atomic<PollHook> poll_hook{nullptr};
std::atomic<bool> flush_setting{false};

// --- the pool ------------------------------------------------------------------------------------------------

// Idle workers and waiting callers look at their flag this long before they sleep: a woken sleeper costs tens of
// microseconds, which is what the next call of a small network takes.
constexpr microseconds kWorkerSpin{30};
constexpr microseconds kCallerSpin{100};
constexpr milliseconds kPollInterval{20};
// In nanoseconds: what pays for one more thread, and what is done on the caller alone. Measured with two threads on two
// Zen 3 cores of a virtual machine: from a spinning worker 10 us of work take 6, from a sleeping one 20 us take 28, 50
// us take 46 and 200 us take 132. The cut-off lies between the two break-evens.
constexpr double kWorkPerThread = 10'000, kShortWork = 2 * kWorkPerThread;

thread_local bool inside_call = false;  // this thread runs tasks: a parallel_for made now is a nested one

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  asm volatile("pause");
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits for ready() by looking; false when the time is over.
template <class Ready>
bool spin_until(Ready ready, microseconds limit) {
  if (ready()) return true;
  if (limit.count() == 0) return false;
  const Clock::time_point end = Clock::now() + limit;
  do {
    for (int i = 0; i < 16; ++i) {
      pause();
      if (ready()) return true;
    }
  } while (Clock::now() < end);
  return false;
}

struct Worker;

// One parallel_for in progress. Jobs are recycled and never freed, since a worker may still be about to notify `done`
// when the caller has already gone.
struct alignas(64) Job {
  ops::TaskBody body;
  void* context;
  int64_t tasks;
  bool flush;
  bool fits;  // no more threads than cores
  Worker* team = nullptr;  // the workers given to this job
  Job* next_free = nullptr;
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<int> running{0};  // members of the team that have not ended
  std::atomic<bool> caller_asleep{false};
  std::mutex mutex;
  std::condition_variable done;

  void work(int worker) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) body(context, task, worker);
  }
  void stop() { next.store(tasks, std::memory_order_relaxed); }

  void leave() {
    // Sequentially consistent against the caller's store to caller_asleep: one of the two sees the other.
    if (running.fetch_sub(1) != 1 || !caller_asleep.load()) return;
    { const std::lock_guard lock(mutex); }
    done.notify_one();
  }
};

struct alignas(64) Worker {
  std::atomic<Job*> inbox{nullptr};
  std::atomic<bool> asleep{false};
  std::mutex mutex;
  std::condition_variable wake;
  pthread_t thread;
  cpu_set_t cores = {};    // where it may run, as last set by place()
  int number = 0;          // within the team
  Worker* next = nullptr;  // in the pool's idle list, or in the team

  Job* take() { return inbox.load(std::memory_order_relaxed) == nullptr ? nullptr : inbox.exchange(nullptr); }

  void give(Job* job) {
    inbox.store(job);
    if (!asleep.load()) return;
    { const std::lock_guard lock(mutex); }
    wake.notify_one();
  }

  // The life of a worker's thread.
  void run() {
    pthread_setname_np(pthread_self(), "fastconv");
    inside_call = true;
    microseconds spin = kWorkerSpin;
    for (;;) {
      Job* job = nullptr;
      if (!spin_until([&] { return (job = take()) != nullptr; }, spin)) {
        std::unique_lock lock(mutex);
        asleep.store(true);
        wake.wait(lock, [&] { return (job = inbox.exchange(nullptr)) != nullptr; });
        asleep.store(false);
      }
      // Where there are more threads than cores, one that spins takes the core of one that works.
      spin = job->fits ? kWorkerSpin : microseconds{0};
      {
        const dispatch::FpModeScope mode(job->flush);
        job->work(number);
      }
      job->leave();
    }
  }
};

// Never destroyed: its threads outlive main(), asleep, and end with the process.
class Pool {
 public:
  // A job with a team of up to `wanted` workers that are idle or can be started. Null where there is no memory.
  Job* assemble(int wanted) {
    const std::lock_guard lock(mutex_);
    Job* job = free_jobs_;
    if (job != nullptr) {
      free_jobs_ = job->next_free;
    } else if ((job = new (std::nothrow) Job) == nullptr) {
      return nullptr;
    }
    while (started_ < wanted && start_worker()) {}
    for (int number = 1; number <= wanted && idle_ != nullptr; ++number) {
      Worker* worker = idle_;
      idle_ = worker->next;
      worker->number = number;
      worker->next = job->team;
      job->team = worker;
    }
    return job;
  }

  void dissolve(Job* job) {
    const std::lock_guard lock(mutex_);
    while (Worker* worker = job->team) {
      job->team = worker->next;
      worker->next = idle_;
      idle_ = worker;
    }
    job->next_free = free_jobs_;
    free_jobs_ = job;
  }

 private:
  bool start_worker() {
    Worker* worker = new (std::nothrow) Worker;
    if (worker == nullptr) return false;
    // Signals belong to the caller's threads; those that a fault raises stay with the thread that caused it.
    sigset_t blocked, before;
    sigfillset(&blocked);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP}) sigdelset(&blocked, fault);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    bool created = true;
    try {
      std::thread thread([worker] { worker->run(); });
      worker->thread = thread.native_handle();
      thread.detach();
    } catch (const std::exception&) {  // no thread or no memory to be had: the job runs with those there are
      created = false;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (!created) {
      delete worker;
      return false;
    }
    worker->next = idle_;
    idle_ = worker;
    ++started_;
    return true;
  }

  std::mutex mutex_;
  Worker* idle_ = nullptr;  // the last one in is the first one out: it may still be spinning
  Job* free_jobs_ = nullptr;
  int started_ = 0;
};

std::atomic<Pool*> the_pool{nullptr};
std::atomic<uint64_t> forks{0};  // how many forks lie between the first process and this one

// A forked child has the caller's thread alone. The pool it inherits, with locks that other threads may have held,
// is left as it is.
void forget_pool() {
  the_pool.store(nullptr);
  forks.fetch_add(1);
}
[[maybe_unused]] const int fork_handler = pthread_atfork(nullptr, nullptr, forget_pool);

Pool* pool() {
  Pool* current = the_pool.load(std::memory_order_acquire);
  if (current != nullptr) return current;
  Pool* fresh = new (std::nothrow) Pool;
  if (fresh == nullptr || the_pool.compare_exchange_strong(current, fresh)) return fresh;
  delete fresh;
  return current;
}

// --- one call ------------------------------------------------------------------------------------------------

class CallScope {
 public:
  CallScope() : nested_(inside_call) { inside_call = true; }
  ~CallScope() { inside_call = nested_; }
  CallScope(const CallScope&) = delete;
  CallScope& operator=(const CallScope&) = delete;
  bool nested() const { return nested_; }

 private:
  const bool nested_;
};

// Asks the hook when it is due.
class Poll {
 public:
  bool asks_to_stop() {
    if (hook_ == nullptr) return false;
    const Clock::time_point now = Clock::now();
    if (now < due_) return false;
    const bool stop = hook_();
    due_ = Clock::now() + kPollInterval;
    return stop;
  }

 private:
  const PollHook hook_ = poll_hook.load(std::memory_order_relaxed);
  Clock::time_point due_ = Clock::now() + kPollInterval;
};

Status run_alone(int64_t tasks, ops::TaskBody body, void* context, bool poll_between) {
  if (!poll_between) {
    for (int64_t task = 0; task < tasks; ++task) body(context, task, 0);
    return Status::ok;
  }
  Poll poll;
  for (int64_t task = 0; task < tasks; ++task) {
    body(context, task, 0);
    if (poll.asks_to_stop()) return Status::cancelled;
  }
  return Status::ok;
}

// Linux wakes a sleeper on the core of the thread that wakes it where cores share no cache (in virtual machines above
// all), even if the others are idle: the two then take turns, and a call of 200 us in two threads took 210 us instead
// of 130. So a team may run on all of the caller's cores but the one that the caller is on. A system call a worker,
// only after the caller has moved. Returns the size of the team.
int place(Job& job) {
  int members = 0;
  for (const Worker* worker = job.team; worker != nullptr; worker = worker->next) ++members;
  cpu_set_t cores;
  job.fits = false;
  if (sched_getaffinity(0, sizeof cores, &cores) != 0) return members;
  job.fits = members < CPU_COUNT(&cores);
  if (job.fits) CPU_CLR(sched_getcpu(), &cores);
  for (Worker* worker = job.team; worker != nullptr; worker = worker->next) {
    if (CPU_EQUAL(&worker->cores, &cores)) continue;
    worker->cores = cores;
    pthread_setaffinity_np(worker->thread, sizeof cores, &cores);
  }
  return members;
}

// The caller's part of a job whose team has been assembled.
Status run_shared(Job& job) {
  const uint64_t process = forks.load();
  const int members = place(job);
  job.next.store(0, std::memory_order_relaxed);
  job.running.store(members);
  for (Worker* worker = job.team; worker != nullptr; worker = worker->next) worker->give(&job);

  Poll poll;
  Status status = Status::ok;
  // The hook runs Python's signal handlers. In a child that one of them forked there is no team to wait for, and the
  // tasks it had taken are lost.
  const auto poll_once = [&] {
    if (status == Status::ok && poll.asks_to_stop()) {
      job.stop();
      status = Status::cancelled;
    }
    return forks.load(std::memory_order_relaxed) == process;
  };
  for (int64_t task; (task = job.next.fetch_add(1, std::memory_order_relaxed)) < job.tasks;) {
    job.body(job.context, task, 0);
    if (!poll_once()) return Status::cancelled;
  }
  // Who has not woken yet need not: no task is left.
  for (Worker* worker = job.team; worker != nullptr; worker = worker->next) {
    Job* unread = &job;
    if (worker->inbox.compare_exchange_strong(unread, nullptr)) job.running.fetch_sub(1);
  }
  const auto ended = [&] { return job.running.load() == 0; };
  while (!spin_until(ended, job.fits ? kCallerSpin : microseconds{0})) {
    {
      std::unique_lock lock(job.mutex);
      job.caller_asleep.store(true);
      job.done.wait_for(lock, kPollInterval, ended);
      job.caller_asleep.store(false);
    }
    if (!poll_once()) return Status::cancelled;
  }
  return status;
}

}  // namespace

int available_cores() {
  static const int quota = ops::cgroup_cores("/proc/self/cgroup", "/sys/fs/cgroup");
  const int cores = affinity_cores();
  return quota > 0 ? std::min(cores, quota) : cores;
}

int num_threads() {
  const int requested = requested_threads();
  return requested > 0 ? requested : available_cores();
}

void set_num_threads(int n) { configured_threads.store(std::max(n, 1), std::memory_order_relaxed); }

int set_thread_limit(int n) {
  const int previous = thread_limit;
  thread_limit = std::max(n, 0);
  return previous;
}

void set_poll_hook(PollHook hook) { poll_hook.store(hook, std::memory_order_relaxed); }

bool flush_denormals() { return flush_setting.load(std::memory_order_relaxed); }

bool set_flush_denormals(bool on) { return flush_setting.exchange(on, std::memory_order_relaxed); }

namespace ops {

int planned_threads(int64_t tasks, double work) {
  if (tasks <= 1 || !(work >= kShortWork) || inside_call) return 1;
  const double fed = std::min(work / kWorkPerThread, 1e6);
  return static_cast<int>(std::min({static_cast<int64_t>(num_threads()), tasks, static_cast<int64_t>(fed)}));
}

Status parallel_for(int64_t tasks, double work, TaskBody body, void* context) {
  if (tasks <= 0) return Status::ok;
  const bool flush = flush_denormals();
  const dispatch::FpModeScope mode(flush);
  const int threads = planned_threads(tasks, work);
  const CallScope call;
  Pool* const workers = threads > 1 ? pool() : nullptr;
  Job* const job = workers != nullptr ? workers->assemble(threads - 1) : nullptr;
  if (job == nullptr) {
    // Short work is not worth a look at the clock, and a nested call leaves the hook to the outer one.
    return run_alone(tasks, body, context, work >= kShortWork && !call.nested());
  }

  const uint64_t process = forks.load();
  job->body = body;
  job->context = context;
  job->tasks = tasks;
  job->flush = flush;
  const Status status = run_shared(*job);
  if (forks.load() == process) workers->dissolve(job);
  return status;
}

// --- control groups ------------------------------------------------------------------------------------------

namespace {

std::string read_file(const std::string& path) {
  std::string text;
  if (FILE* file = std::fopen(path.c_str(), "r")) {
    char block[4096];
    for (size_t n; (n = std::fread(block, 1, sizeof block, file)) > 0;) text.append(block, n);
    std::fclose(file);
  }
  return text;
}

int whole_cores(double quota, double period) {
  return quota > 0 && period > 0 ? std::max(1, static_cast<int>(std::ceil(quota / period))) : 0;
}

// Version 2: "max 100000" or "150000 100000". Version 1: two files, a quota of -1 for none.
int cores_of_group(const std::string& directory, bool unified) {
  if (unified) {
    double quota = 0, period = 0;
    const std::string text = read_file(directory + "/cpu.max");
    return std::sscanf(text.c_str(), "%lf %lf", &quota, &period) == 2 ? whole_cores(quota, period) : 0;
  }
  return whole_cores(std::atof(read_file(directory + "/cpu.cfs_quota_us").c_str()),
                     std::atof(read_file(directory + "/cpu.cfs_period_us").c_str()));
}

}  // namespace

int cgroup_cores(const char* membership, const char* mount) {
  int least = 0;
  const std::string lines = read_file(membership);
  for (size_t begin = 0; begin < lines.size();) {
    const size_t end = std::min(lines.find('\n', begin), lines.size());
    const std::string line = lines.substr(begin, end - begin);
    begin = end + 1;
    // "<hierarchy>:<controllers>:<path>"; version 2 has no controllers.
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool unified = controllers == ",,";
    if (!unified && controllers.find(",cpu,") == std::string::npos) continue;
    const std::string root = unified ? mount : std::string(mount) + "/cpu";
    // Every group above limits this one as well. In a container the path may name groups outside its mount: the walk
    // ends at the root of the mount, which then is the container's own group.
    for (std::string path = line.substr(second + 1);;) {
      const int cores = cores_of_group(root + (path == "/" ? "" : path), unified);
      if (cores > 0) least = least == 0 ? cores : std::min(least, cores);
      if (path.empty() || path == "/") break;
      path.erase(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
    }
  }
  return least;
}

}  // namespace ops
}  // namespace fastconv
