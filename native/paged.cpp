// Pools: writing them, and token selection over them.
//
// Keys are scored a page at a time, for up to 32 queries of a sequence, with lanes over the page's tokens, which in a
// pool by column lie side by side. What each query keeps, best.h decides, and in the total order of scores and indices it
// does not matter how the pages were shared out.
#include "paged.h"

#include <atomic>
#include <new>

#include "best.h"

namespace inazuma {

std::vector<Unit> units_of(const InazumaQueries& queries, int64_t most, int64_t pages) {
  std::vector<Unit> units;
  for (int64_t n = 0; n < queries.N; ++n) {
    const int64_t row = queries.row[n], last = queries.last[n];
    if (row < 0 || row >= queries.B) throw Misfit{INAZUMA_BAD_ROW};
    if (last < -1 || last >= queries.P * PAGE) throw Misfit{INAZUMA_BAD_LAST};
    const bool same = n > 0 && queries.row[n - 1] == row;
    if (!same || n - units.back().from >= most) units.push_back({n, n, 0});
    Unit& unit = units.back();
    unit.to = n + 1;
    // Pages that an earlier query of the unit sees have been looked at; so have, mostly, those of the unit before.
    int64_t known = unit.keys;
    if (n == unit.from && same) known = std::min<int64_t>(units[units.size() - 2].keys, last + 1);
    const int32_t* table = queries.tables + row * queries.P;
    for (int64_t page = known / PAGE; page * PAGE <= last; ++page)
      if (table[page] < 0 || table[page] >= pages) throw Misfit{INAZUMA_BAD_PAGE};
    unit.keys = std::max(unit.keys, last + 1);
  }
  return units;
}

namespace {

constexpr int64_t QUERIES = 32;  // share a page while it is in the nearest cache

struct Scratch {
  std::vector<int16_t> q;
  std::vector<float> weights;
  std::vector<Best> best;
};

Scratch& scratch() {
  static thread_local Scratch mine;
  return mine;
}

class Selection {
 public:
  Selection(const InazumaQueries& queries, const InazumaPool& pool, const float* q, const float* weights, int I,
            int64_t K)
      : queries_(queries), pool_(pool), q_(q), weights_(weights), I_(I), C_(pool.width), K_(K),
        format_(format_of(pool)), width_(packed_width(C_, format_)), reached_(queries.N) {
    for (std::atomic<float>& reached : reached_) reached.store(LOWEST, std::memory_order_relaxed);
  }

  bool keeps_all(int64_t n) const { return queries_.last[n] < K_; }

  // Finds the best keys of the pages begin <= p < end, for the queries of a unit that do not keep all.
  void scan(const Unit& unit, int64_t begin, int64_t end, Best* best) const {
    const PagedKernels& kernel = paged_kernels();
    Scratch& mine = scratch();
    const int64_t heads = format_ == FLOAT32 ? 0 : (unit.to - unit.from) * I_;
    int16_t* q = room(mine.q, heads * width_);
    float* weights = room(mine.weights, heads);
    float scores[PAGE];
    const int64_t capacity = std::min(std::max<int64_t>(4 * K_, 4 * PAGE), (end - begin) * PAGE) + ROOM;
    for (int64_t n = unit.from; n < unit.to; ++n) {
      Best& one = best[n - unit.from];
      one.n = 0, one.full = false, one.threshold = LOWEST, one.slack = 0.0;
      if (keeps_all(n)) continue;
      one.scores.resize(capacity), one.keys.resize(capacity);
      const int64_t at = (n - unit.from) * I_;
      for (int i = 0; i < I_ && format_ != FLOAT32; ++i)
        weights[at + i] = weights_[n * I_ + i] * whole(q_ + (n * I_ + i) * C_, q + (at + i) * width_);
    }
    const int32_t* table = queries_.tables + queries_.row[unit.from] * queries_.P;
    for (int64_t page = begin; page < end; ++page) {
      const uint32_t* keys = page_of(pool_, table[page]);
      // Two pages are on their way while one is worked on: memory takes that long.
      const uint32_t* next = page_of(pool_, table[std::min(page + 2, end - 1)]);
      const int count = int(std::min<int64_t>(PAGE, unit.keys - page * PAGE));
      for (int64_t n = unit.from; n < unit.to; ++n) {
        const int seen = int(std::min<int64_t>(count, queries_.last[n] + 1 - page * PAGE));
        if (seen <= 0 || keeps_all(n)) continue;
        const int64_t at = (n - unit.from) * I_;
        if (format_ == FLOAT32)
          kernel.score(reinterpret_cast<const float*>(keys), q_ + n * I_ * C_, weights_ + n * I_, I_, C_, scores);
        else
          kernel.score_whole(keys, next, format_, q + at * width_, weights + at, I_, width_, units_of_keys(keys), scores);
        Best& one = best[n - unit.from];
        const float reached = reached_[n].load(std::memory_order_relaxed);
        if (reached > one.threshold) one.full = true, one.threshold = reached;
        one.add(scores, seen, int32_t(page * PAGE));
        if (one.n + ROOM > capacity) cut(n, one);
      }
    }
  }

  // Cuts to the K best, and tells the other tasks of this query: what is below the least of them is not wanted any more.
  void cut(int64_t n, Best& best) const {
    best.cut(K_);
    if (!best.full) return;
    const float below = std::nextafter(best.threshold, LOWEST);
    float reached = reached_[n].load(std::memory_order_relaxed);
    while (reached < below && !reached_[n].compare_exchange_weak(reached, below, std::memory_order_relaxed)) {
    }
  }

  void write(int64_t n, Best& best, int32_t* out) const {
    out += n * K_;
    int64_t count = 0;
    if (keeps_all(n)) {
      for (; count <= queries_.last[n]; ++count) out[count] = int32_t(count);
    } else {
      best.cut(K_);
      std::copy_n(best.keys.data(), best.n, out);
      count = best.n;
    }
    std::fill(out + count, out + K_, -1);
  }

 private:
  static constexpr int64_t ROOM = 2 * PAGE + 96;  // for a page of scores and what the kernels write behind them

  // The last four bytes of a page's keys.
  const float* units_of_keys(const uint32_t* keys) const {
    return reinterpret_cast<const float*>(keys + (pool_.head_bytes / 4 - 1) * PAGE);
  }

  // A head of a query as it meets the keys; its unit.
  float whole(const float* head, int16_t* out) const {
    const float unit = paged_kernels().whole(head, C_, float(largest_query(C_, format_)), out);
    std::fill(out + C_, out + width_, int16_t(0));
    for (int c = 0; c < width_ && format_ == INT8; c += 4) std::swap(out[c + 1], out[c + 2]);
    return unit;
  }

  const InazumaQueries& queries_;
  const InazumaPool& pool_;
  const float *q_, *weights_;
  const int I_, C_;
  const int64_t K_;
  const Format format_;
  const int width_;
  mutable std::vector<std::atomic<float>> reached_;  // of each query: K keys are known to be above it
};

void select(const InazumaQueries& queries, const InazumaPool& pool, const float* q, const float* weights, int64_t I,
            int64_t K, int32_t* out) {
  const std::vector<Unit> units = units_of(queries, QUERIES, pool.pages);
  const Selection selection(queries, pool, q, weights, int(I), K);
  const auto pages = [&](int64_t u) { return units[u].keys <= K ? 0 : (units[u].keys + PAGE - 1) / PAGE; };
  int threads = queries.threads;
  const double each = double(std::min(queries.N, QUERIES));
  const std::vector<Task> tasks = tasks_of(int64_t(units.size()), pages, PAGE * pool.width * (I * each + 4.0), threads);
  // What the parts of a unit have found, in their order; kept from call to call, as all scratch is.
  std::vector<int64_t> place(tasks.size(), -1);
  int64_t places = 0;
  for (size_t i = 0; i < tasks.size(); ++i)
    if (!tasks[i].whole) place[i] = places, places += units[tasks[i].unit].to - units[tasks[i].unit].from;
  static thread_local std::vector<Best> found;
  Best* saved = room(found, places);
  parallel(int64_t(tasks.size()), threads, [&](int64_t i) {
    const Task& task = tasks[i];
    const Unit& unit = units[task.unit];
    Best* best = task.whole ? room(scratch().best, QUERIES) : saved + place[i];
    selection.scan(unit, task.begin, task.end, best);
    if (!task.whole) {
      for (int64_t n = unit.from; n < unit.to; ++n) selection.cut(n, best[n - unit.from]);
      return;
    }
    for (int64_t n = unit.from; n < unit.to; ++n) selection.write(n, best[n - unit.from], out);
  });
  if (places == 0) return;
  std::vector<std::vector<int64_t>> of(units.size());  // the tasks of each unit that was shared out
  for (size_t i = 0; i < tasks.size(); ++i)
    if (!tasks[i].whole) of[tasks[i].unit].push_back(int64_t(i));
  std::vector<std::pair<int64_t, int64_t>> shared;  // query, unit
  for (size_t u = 0; u < units.size(); ++u) {
    std::sort(of[u].begin(), of[u].end(), [&](int64_t a, int64_t b) { return tasks[a].begin < tasks[b].begin; });
    for (int64_t n = units[u].from; n < units[u].to && !of[u].empty(); ++n) shared.push_back({n, int64_t(u)});
  }
  parallel(int64_t(shared.size()), threads, [&](int64_t i) {
    const auto [n, u] = shared[i];
    Best& all = *room(scratch().best, 1);
    int64_t total = 0;
    for (const int64_t task : of[u]) total += saved[place[task] + n - units[u].from].n;
    all.scores.resize(std::max<int64_t>(all.scores.size(), total + 16));
    all.keys.resize(std::max<int64_t>(all.keys.size(), total + 16));
    all.n = 0, all.full = false, all.threshold = LOWEST, all.slack = 0.0;
    for (const int64_t task : of[u]) {
      const Best& one = saved[place[task] + n - units[u].from];
      std::copy_n(one.scores.data(), one.n, all.scores.data() + all.n);
      std::copy_n(one.keys.data(), one.n, all.keys.data() + all.n);
      all.n += one.n;
    }
    selection.write(n, all, out);
  });
}

}  // namespace
}  // namespace inazuma

int inazuma_paged_write(const InazumaPool* pool, const int64_t* slots, const float* x, int64_t N, int32_t threads) {
  using namespace inazuma;
  return guarded([&] {
    for (int64_t n = 0; n < N; ++n)
      if (slots[n] < 0 || slots[n] >= pool->pages * PAGE) throw Misfit{INAZUMA_BAD_SLOT};
    constexpr int64_t ROWS = 32;
    const int64_t numbers = N * pool->heads * pool->width;
    parallel((N + ROWS - 1) / ROWS, numbers < 1 << 17 ? 1 : threads, [&](int64_t task) {
      std::vector<uint32_t> row(pool->by_column ? pool->head_bytes / 4 : 0);
      for (int64_t n = task * ROWS; n < std::min(N, (task + 1) * ROWS); ++n)
        for (int64_t head = 0; head < pool->heads; ++head) {
          uint8_t* const to = pool->by_column ? reinterpret_cast<uint8_t*>(row.data())
                                              : const_cast<uint8_t*>(row_of(*pool, slots[n], head));
          paged_kernels().encode(x + (n * pool->heads + head) * pool->width, format_of(*pool), pool->width,
                                 pool->plain, to);
          if (!pool->by_column) continue;
          uint32_t* const page = page_of(*pool, slots[n] / PAGE) + slots[n] % PAGE;
          for (size_t u = 0; u < row.size(); ++u) page[u * PAGE] = row[u];
        }
    });
  });
}

int inazuma_paged_select(const InazumaQueries* queries, const InazumaPool* pool, const float* q, const float* weights,
                         int64_t I, int64_t K, int32_t* indices) {
  return inazuma::guarded([&] { inazuma::select(*queries, *pool, q, weights, I, K, indices); });
}
