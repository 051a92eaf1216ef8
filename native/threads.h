// A pool of threads that lasts as long as the process.
#pragma once

#include <cstdint>

namespace inazuma {

// Calls body(context, 0) ... body(context, tasks - 1) on up to `threads` threads, the caller's among them, and returns
// when all are done. Which thread takes which task is a matter of chance: a task must write only what is its own.
void run_tasks(int64_t tasks, int threads, void (*body)(void*, int64_t), void* context);

template <class Body>
void parallel(int64_t tasks, int threads, Body&& body) {
  run_tasks(tasks, threads, [](void* context, int64_t task) { (*static_cast<Body*>(context))(task); }, &body);
}

}  // namespace inazuma
