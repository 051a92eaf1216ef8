// What selection and attention over pages share: where rows lie, which queries go together, who does what.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "interface.h"
#include "kernels.h"
#include "paged_kernels.h"
#include "threads.h"

namespace inazuma {

// A call that does not fit the pools; `code` is what it returns.
struct Misfit {
  int code;
};

inline Format format_of(const InazumaPool& pool) { return Format(pool.format); }

inline const uint8_t* row_of(const InazumaPool& pool, int64_t slot, int64_t head) {
  return static_cast<const uint8_t*>(pool.data) + (slot * pool.heads + head) * pool.head_bytes;
}

// A page of a pool by column: [head_bytes / 4][PAGE] units of 4 bytes.
inline uint32_t* page_of(const InazumaPool& pool, int64_t page) {
  return reinterpret_cast<uint32_t*>(static_cast<uint8_t*>(pool.data) + page * PAGE * pool.head_bytes);
}

inline int64_t slot_of(const int32_t* table, int64_t position) {
  return int64_t(table[position / PAGE]) * PAGE + position % PAGE;
}

// Queries from <= n < to of one sequence, whose positions are below `keys`.
struct Unit {
  int64_t from, to, keys;
};

// Units of at most `most` queries that stand together. Throws where a row, position or page is none of the pools'.
std::vector<Unit> units_of(const InazumaQueries& queries, int64_t most, int64_t pages);

// A unit's blocks of keys begin <= b < end, which one thread works off.
struct Task {
  int64_t unit, begin, end;
  bool whole;  // all blocks of its unit
};

// Shares out the units' blocks: whole units where there are enough, so many parts of them otherwise that the threads
// have about four tasks each. blocks(u) is how many a unit has; each costs `cost`, in multiplications. Lowers `threads`
// to 1 where waking others would take longer than the work. How it is cut changes no result.
template <class Blocks>
std::vector<Task> tasks_of(int64_t units, Blocks blocks, double cost, int& threads) {
  int64_t total = 0;
  for (int64_t u = 0; u < units; ++u) total += blocks(u);
  if (double(total) * cost < 3e5) threads = 1;
  const int64_t piece = threads == 1 ? total : std::max<int64_t>(1, total / (threads * 4));
  std::vector<Task> tasks;
  for (int64_t u = 0; u < units; ++u) {
    const int64_t all = blocks(u), parts = std::max<int64_t>(1, (all + piece - 1) / std::max<int64_t>(1, piece));
    for (int64_t part = 0; part < parts; ++part)
      tasks.push_back({u, all * part / parts, all * (part + 1) / parts, parts == 1});
  }
  // The longest first, so that no thread ends up with one alone.
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& a, const Task& b) { return a.end - a.begin > b.end - b.begin; });
  return tasks;
}

// Makes room for n elements, and keeps it for the next call: fresh memory costs more than many a call.
template <class X>
X* room(std::vector<X>& vector, int64_t n) {
  if (int64_t(vector.size()) < n) vector.resize(n);
  return vector.data();
}

// A row of a query as packed keys want it (paged_kernels.h).
inline void arrange(const float* q, int C, Format format, float factor, float* out) {
  const int width = packed_width(C, format);
  for (int c = 0; c < width; ++c) out[c] = c < C ? q[c] * factor : 0.0f;
}

// Runs an operator; what it returns.
template <class Body>
int guarded(Body body) {
  try {
    body();
    return 0;
  } catch (const Misfit& misfit) {
    return misfit.code;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

}  // namespace inazuma
