#include "threads.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace inazuma {
namespace {

// A language model that writes makes a call every few microseconds, and a thread that sleeps takes longer to wake: who
// waits looks out for so long before it goes to sleep.
constexpr std::chrono::microseconds LOOK_OUT{80};
const int CORES = int(std::thread::hardware_concurrency());

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Looks until `seen` is true, at most for LOOK_OUT; returns what it saw last. Now and then it offers its core to others:
// the one that it waits for may have no other.
template <class Seen>
bool look_out(Seen seen) {
  const auto end = std::chrono::steady_clock::now() + LOOK_OUT;
  do {
    for (int i = 0; i < 16; ++i) {
      if (seen()) return true;
      pause();
    }
    sched_yield();
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

class Pool {
 public:
  // False where another caller has the pool.
  bool run(int64_t tasks, int threads, void (*body)(void*, int64_t), void* context) {
    std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
    if (!mine) return false;
    const uint64_t helpers = uint64_t(hire(int(std::min<int64_t>(threads, tasks) - 1)));
    body_ = body, context_ = context, tasks_ = tasks, failure_ = nullptr;
    next_.store(0, std::memory_order_relaxed);
    spins_ = threads <= CORES;
    const uint64_t round = (state_.load(std::memory_order_relaxed) / ROUND + 1) * ROUND;
    state_.store(round | OPEN | helpers * PLACE);
    if (sleeping_.load() > 0) {
      std::lock_guard<std::mutex> lock(sleep_);
      begin_.notify_all();
    }
    work();
    // No task is left. Whoever has not joined by now, because it sleeps or another program has its core, need not.
    state_.fetch_and(~OPEN);
    const auto done = [this] { return (state_.load() & JOINED) == 0; };
    if (!done() && !(spins_ && look_out(done))) {
      std::unique_lock<std::mutex> lock(sleep_);
      waiting_ = true;
      done_.wait(lock, done);
      waiting_ = false;
    }
    if (failure_) std::rethrow_exception(failure_);
    return true;
  }

 private:
  // The state, in one word, so that joining is one step: how many have joined, for how many there is a place, whether
  // one may still join, and the number of the round.
  static constexpr uint64_t JOINED = 0xFFFF, PLACE = 1 << 16, PLACES = 0xFFFF0000, OPEN = uint64_t(1) << 32;
  static constexpr uint64_t ROUND = uint64_t(1) << 33;

  // Sees to it that so many threads are there; the number of those that are.
  int hire(int wanted) {
    wanted = std::min(wanted, 0xFFFF);
    while (int(workers_.size()) < wanted) {
      try {
        workers_.emplace_back([this] { serve(); });
      } catch (const std::system_error&) {  // the system gives no more threads: fewer do the same work
        return int(workers_.size());
      }
    }
    return wanted;
  }

  void work() {
    try {
      for (int64_t task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;) body_(context_, task);
    } catch (...) {
      std::lock_guard<std::mutex> lock(sleep_);
      failure_ = std::current_exception();
      next_ = tasks_;
    }
  }

  // Whether there is a round, other than the one it was in last, with a place; then it has joined.
  bool join(uint64_t& last) {
    uint64_t state = state_.load();
    while ((state & OPEN) && state / ROUND != last && (state & JOINED) < (state & PLACES) / PLACE)
      if (state_.compare_exchange_weak(state, state + 1)) {
        last = state / ROUND;
        return true;
      }
    return false;
  }

  void serve() {
    uint64_t last = 0;
    for (;;) {
      if (!(spins_ && look_out([&] { return join(last); }))) {
        std::unique_lock<std::mutex> lock(sleep_);
        ++sleeping_;
        begin_.wait(lock, [&] { return join(last); });
        --sleeping_;
      }
      work();
      if (((state_.fetch_sub(1) - 1) & JOINED) == 0 && waiting_) {
        std::lock_guard<std::mutex> lock(sleep_);
        done_.notify_one();
      }
    }
  }

  std::mutex busy_, sleep_;
  std::condition_variable begin_, done_;
  std::vector<std::thread> workers_;
  std::atomic<uint64_t> state_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<bool> waiting_{false}, spins_{true};
  int64_t tasks_ = 0;
  void (*body_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  std::exception_ptr failure_;
};

// Never destroyed: threads that wait for work would have to be stopped while the process ends.
Pool* pool = new Pool;

// A forked child has none of the threads, and perhaps a lock that nobody will open: it begins with a new pool.
const int at_fork = pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });

}  // namespace

void run_tasks(int64_t tasks, int threads, void (*body)(void*, int64_t), void* context) {
  (void)at_fork;
  if (tasks > 1 && threads > 1 && pool->run(tasks, threads, body, context)) return;
  for (int64_t task = 0; task < tasks; ++task) body(context, task);
}

}  // namespace inazuma
