#include "threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace inazuma {
namespace {

class Pool {
 public:
  // False where another caller has the pool.
  bool run(int64_t tasks, int threads, void (*body)(void*, int64_t), void* context) {
    std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
    if (!mine) return false;
    {
      std::lock_guard<std::mutex> lock(state_);
      body_ = body, context_ = context, tasks_ = tasks, next_ = 0, failure_ = nullptr;
      wanted_ = std::min<int64_t>(threads, tasks) - 1;
      while (int(workers_.size()) < wanted_) {
        try {
          workers_.emplace_back([this, number = int(workers_.size())] { wait_for_work(number); });
        } catch (const std::system_error&) {  // the system gives no more threads: fewer do the same work
          wanted_ = int(workers_.size());
        }
      }
      running_ = wanted_;
      ++round_;
    }
    begin_.notify_all();
    work();
    std::unique_lock<std::mutex> lock(state_);
    done_.wait(lock, [this] { return running_ == 0; });
    if (failure_) std::rethrow_exception(failure_);
    return true;
  }

 private:
  void work() {
    try {
      for (int64_t task; (task = next_.fetch_add(1)) < tasks_;) body_(context_, task);
    } catch (...) {
      std::lock_guard<std::mutex> lock(state_);
      failure_ = std::current_exception();
      next_ = tasks_;
    }
  }

  void wait_for_work(int number) {
    int64_t seen = 0;
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(state_);
        begin_.wait(lock, [&] { return round_ != seen && number < wanted_; });
        seen = round_;
      }
      work();
      std::lock_guard<std::mutex> lock(state_);
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex busy_, state_;
  std::condition_variable begin_, done_;
  std::vector<std::thread> workers_;
  std::atomic<int64_t> next_{0};
  int64_t tasks_ = 0, round_ = 0;
  int wanted_ = 0, running_ = 0;
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
