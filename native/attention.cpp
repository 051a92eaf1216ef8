// Softmax attention over a set of keys per query, forward and backward, gathered or over spans.
//
// A unit of work is some query rows that read the same keys: the heads of one query where keys are selected, the heads
// of several queries where they are spans. Keys come in tiles; products [n][P] have lanes over query rows, so maxima,
// exponentials and sums need nothing across lanes. Formulas as in inazuma/ops/reference.py.
#include <cmath>
#include <limits>
#include <new>

#include "rows.h"

namespace inazuma {
namespace {

constexpr float LOWEST = -std::numeric_limits<float>::infinity();
constexpr int DENSE_ROWS = 32;  // query rows to a unit over spans
constexpr int QUERIES = 16;     // queries to a task where keys are selected

int tile_keys(int P) { return std::max(64, std::min(512, 8192 / P)); }

struct Unit {
  int64_t b, g, t0, t1;
};

// What both passes do with a unit: its queries, its keys, and the products' mask.
class Worker {
 public:
  Worker(const InazumaProblem& problem, int64_t queries)
      : problem_(problem),
        heads_(int(problem.H / problem.G)),
        P_(padded(heads_ * int(queries))),
        tile_(tile_keys(P_)),
        products_(int64_t(tile_) * P_),
        keys_(problem.indices ? problem.K : 0) {}

 protected:
  // Rows [N][D] of x for the unit's queries and heads, times factor.
  void read_queries(const InazumaTensor& x, const Unit& unit, int D, float factor, std::vector<float>& out) {
    out.resize(int64_t(P_) * D);
    for (int r = 0; r < N_; ++r) {
      float* at = out.data() + int64_t(r) * D;
      const float* row = read_row(x, unit.b, unit.t0 + r / heads_, unit.g * heads_ + r % heads_, D, at);
      for (int d = 0; d < D; ++d) at[d] = row[d] * factor;
    }
  }

  int64_t head_at(const Unit& unit, int r) const {
    return (unit.b * problem_.T + unit.t0 + r / heads_) * problem_.H + unit.g * heads_ + r % heads_;
  }

  void begin(const Unit& unit) {
    N_ = int(unit.t1 - unit.t0) * heads_;
    const int64_t at = unit.b * problem_.T + unit.t0;
    from_ = 0;
    if (problem_.indices) {
      to_ = compact(problem_.indices + at * problem_.K, problem_.K, keys_.data());
      return;
    }
    from_ = problem_.S, to_ = 0;
    for (int64_t t = 0; t < unit.t1 - unit.t0; ++t)
      if (problem_.last[at + t] >= problem_.first[at + t]) {
        from_ = std::min<int64_t>(from_, problem_.first[at + t]);
        to_ = std::max<int64_t>(to_, problem_.last[at + t] + 1);
      }
  }

  Keys tile(int64_t from) const {
    const int n = int(std::min<int64_t>(tile_, to_ - from));
    return problem_.indices ? Keys{keys_.data() + from, 0, n} : Keys{nullptr, from, n};
  }

  // Sets to -inf what a query of the unit does not see of a tile.
  void hide(const Unit& unit, const Keys& keys) {
    if (problem_.indices) return;
    const int64_t at = unit.b * problem_.T + unit.t0;
    for (int64_t t = 0; t < unit.t1 - unit.t0; ++t) {
      const int64_t first = problem_.first[at + t] - keys.from, last = problem_.last[at + t] - keys.from;
      if (first <= 0 && last >= keys.n - 1) continue;
      for (int64_t j = 0; j < keys.n; ++j)
        if (j < first || j > last) std::fill_n(products_.data() + j * P_ + t * heads_, heads_, LOWEST);
    }
  }

  const InazumaProblem& problem_;
  const int heads_, P_, tile_;
  std::vector<float> products_;
  std::vector<int32_t> keys_;
  int N_ = 0;
  int64_t from_ = 0, to_ = 0;  // the unit's keys, or places in keys_
};

class Forward : Worker {
 public:
  using Worker::Worker;

  void run(const Unit& unit, const InazumaTensor& q, const InazumaTensor& k, const InazumaTensor& v, const float* sink,
           void* out, float* lse) {
    const Kernels& kernel = kernels();
    const int Dk = int(problem_.Dk), Dv = int(problem_.Dv);
    begin(unit);
    read_queries(q, unit, Dk, problem_.scale, rows_);
    columns_.resize(int64_t(P_) * Dk);
    transpose(rows_.data(), N_, Dk, P_, columns_.data());
    sums_.assign(int64_t(P_) * Dv, 0.0f);
    most_.assign(P_, LOWEST), total_.assign(P_, 0.0f);
    for (int64_t from = from_; from < to_; from += tile_) {
      const Keys keys = tile(from);
      kernel.dots(k_tile_.read(k, unit.b, unit.g, Dk, keys), keys.n, Dk, columns_.data(), P_, products_.data());
      hide(unit, keys);
      before_ = most_;
      kernel.largest(products_.data(), keys.n, P_, most_.data());
      for (int r = 0; r < P_; ++r) {  // a row that has seen nothing yet: any finite shift will do
        before_[r] = before_[r] == LOWEST ? 0.0f : std::exp(before_[r] - most_[r]);
        shift_.resize(P_);
        shift_[r] = most_[r] == LOWEST ? 0.0f : most_[r];
        total_[r] *= before_[r];
        if (before_[r] != 1.0f && r < N_)
          for (int d = 0; d < Dv; ++d) sums_[int64_t(r) * Dv + d] *= before_[r];
      }
      kernel.exponentials(products_.data(), keys.n, P_, shift_.data(), total_.data());
      kernel.combine(v_tile_.read(v, unit.b, unit.g, Dv, keys), keys.n, Dv, products_.data(), N_, P_, sums_.data());
    }
    for (int r = 0; r < N_; ++r) {
      const int64_t at = head_at(unit, r);
      float result = total_[r] > 0.0f || total_[r] != total_[r] ? most_[r] + std::log(total_[r]) : LOWEST;
      float share = result == LOWEST ? 0.0f : 1.0f / total_[r];
      if (sink) {  // one more logit in the denominator, with no value behind it
        const float extra = sink[at % problem_.H], high = std::max(result, extra), own = result;
        if (high != LOWEST) result = high + std::log(std::exp(own - high) + std::exp(extra - high));
        if (own != LOWEST) share *= std::exp(own - result);
      }
      for (int d = 0; d < Dv; ++d) sums_[int64_t(r) * Dv + d] *= share;
      lse[at] = result;
      write_row(out, q.bfloat16, at * Dv, sums_.data() + int64_t(r) * Dv, Dv);
    }
  }

 private:
  std::vector<float> rows_, columns_, sums_, most_, before_, shift_, total_;
  Tile k_tile_, v_tile_;
};

class Backward : Worker {
 public:
  using Worker::Worker;

  // dk [S][Dk] and dv [S][Dv] are the sums of the unit's part of the queries.
  void run(const Unit& unit, const InazumaTensor& q, const InazumaTensor& k, const InazumaTensor& v,
           const InazumaTensor& dout, const float* lse, const float* delta, void* dq, float* dk, float* dv) {
    const Kernels& kernel = kernels();
    const int Dk = int(problem_.Dk), Dv = int(problem_.Dv);
    begin(unit);
    read_queries(q, unit, Dk, problem_.scale, q_rows_);
    read_queries(dout, unit, Dv, 1.0f, dout_rows_);
    q_columns_.resize(int64_t(P_) * Dk), dout_columns_.resize(int64_t(P_) * Dv);
    transpose(q_rows_.data(), N_, Dk, P_, q_columns_.data());
    transpose(dout_rows_.data(), N_, Dv, P_, dout_columns_.data());
    dq_.assign(int64_t(P_) * Dk, 0.0f), dproducts_.resize(products_.size());
    // Padding has probability exp(0 - inf) = 0; so has everything of a row that sees nothing.
    lse_.assign(P_, -LOWEST), delta_.assign(P_, 0.0f);
    for (int r = 0; r < N_; ++r) {
      const int64_t at = head_at(unit, r);
      lse_[r] = lse[at] == LOWEST ? -LOWEST : lse[at];
      delta_[r] = delta[at];
    }
    for (int64_t from = from_; from < to_; from += tile_) {
      const Keys keys = tile(from);
      const float* const* k_rows = k_tile_.read(k, unit.b, unit.g, Dk, keys);
      const float* const* v_rows = v_tile_.read(v, unit.b, unit.g, Dv, keys);
      kernel.dots(k_rows, keys.n, Dk, q_columns_.data(), P_, products_.data());
      hide(unit, keys);
      kernel.exponentials(products_.data(), keys.n, P_, lse_.data(), nullptr);
      kernel.dots(v_rows, keys.n, Dv, dout_columns_.data(), P_, dproducts_.data());
      kernel.softmax_gradient(dproducts_.data(), products_.data(), keys.n, P_, delta_.data());
      kernel.combine(k_rows, keys.n, Dk, dproducts_.data(), N_, P_, dq_.data());
      kernel.scatter(targets_.at(dv, Dv, keys), keys.n, Dv, products_.data(), N_, P_, dout_rows_.data());
      kernel.scatter(targets_.at(dk, Dk, keys), keys.n, Dk, dproducts_.data(), N_, P_, q_rows_.data());
    }
    for (int r = 0; r < N_; ++r) {
      float* row = dq_.data() + int64_t(r) * Dk;
      for (int d = 0; d < Dk; ++d) row[d] *= problem_.scale;
      write_row(dq, q.bfloat16, head_at(unit, r) * Dk, row, Dk);
    }
  }

 private:
  std::vector<float> q_rows_, q_columns_, dout_rows_, dout_columns_, dq_, dproducts_, lse_, delta_;
  Tile k_tile_, v_tile_;
  Targets targets_;
};

// Queries to a unit: one where each has keys of its own, so many that the lanes are full where they share them.
int64_t unit_queries(const InazumaProblem& problem) {
  return problem.indices ? 1 : std::max<int64_t>(1, DENSE_ROWS / (problem.H / problem.G));
}

// Calls work with the queries t0 <= t < t1, `step` at a time; one at a time where their spans leave keys between them that
// nobody reads: such a key may hold NaN, and 0 * NaN is NaN.
template <class Work>
void for_units(const InazumaProblem& problem, int64_t b, int64_t g, int64_t t0, int64_t t1, int64_t step, Work work) {
  for (int64_t from = t0; from < t1; from += step) {
    const int64_t to = std::min(t1, from + step);
    int64_t low = 0, high = -1;
    bool gap = false;
    for (int64_t t = from; t < to && !problem.indices; ++t) {
      const int64_t first = problem.first[b * problem.T + t], last = problem.last[b * problem.T + t];
      if (last < first) continue;
      gap |= low <= high && (first > high + 1 || last < low - 1);
      low = low > high ? first : std::min(low, first), high = std::max(high, last);
    }
    for (int64_t t = from; t < to; t += gap ? 1 : step) work(Unit{b, g, t, gap ? t + 1 : to});
  }
}

void forward(const InazumaProblem& problem, const InazumaTensor& q, const InazumaTensor& k, const InazumaTensor& v,
             const float* sink, void* out, float* lse) {
  const int64_t step = unit_queries(problem), block = std::max<int64_t>(step, problem.T < 256 ? 1 : QUERIES);
  const int64_t blocks = ceil_div(problem.T, block);
  parallel(problem.B * blocks * problem.G, problem.threads, [&](int64_t task) {
    // Late queries see the most keys: they go first.
    const int64_t g = task % problem.G, b = task / problem.G / blocks, t = task / problem.G % blocks;
    const int64_t t0 = (blocks - 1 - t) * block, t1 = std::min(problem.T, t0 + block);
    Forward worker(problem, step);
    for_units(problem, b, g, t0, t1, step, [&](const Unit& unit) { worker.run(unit, q, k, v, sink, out, lse); });
  });
}

void backward(const InazumaProblem& problem, const InazumaTensor& q, const InazumaTensor& k, const InazumaTensor& v,
              const InazumaTensor& dout, const float* lse, const float* delta, void* dq, void* dk, void* dv) {
  const int64_t B = problem.B, G = problem.G, T = problem.T, S = problem.S, Dk = problem.Dk, Dv = problem.Dv;
  const int64_t step = unit_queries(problem), blocks = ceil_div(T, step), parts = query_parts(B, G, blocks);
  const Zeros dk_sums(B * G * parts * S * Dk), dv_sums(B * G * parts * S * Dv);
  parallel(B * G * parts, problem.threads, [&](int64_t task) {
    const int64_t part = task % parts, g = task / parts % G, b = task / parts / G;
    Backward worker(problem, step);
    // A part takes every so many-th block: late queries, which see more keys, are shared out evenly.
    for (int64_t block = part; block < blocks; block += parts)
      for_units(problem, b, g, block * step, std::min(T, (block + 1) * step), step, [&](const Unit& unit) {
        worker.run(unit, q, k, v, dout, lse, delta, dq, dk_sums.data() + task * S * Dk,
                   dv_sums.data() + task * S * Dv);
      });
  });
  add_parts(B, G, S, int(Dk), parts, problem.threads, dk_sums.data(), k.bfloat16, dk);
  add_parts(B, G, S, int(Dv), parts, problem.threads, dv_sums.data(), v.bfloat16, dv);
}

}  // namespace
}  // namespace inazuma

int inazuma_attention(const InazumaProblem* problem, InazumaTensor q, InazumaTensor k, InazumaTensor v,
                      const float* sink, void* out, float* lse) {
  try {
    inazuma::forward(*problem, q, k, v, sink, out, lse);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

int inazuma_attention_backward(const InazumaProblem* problem, InazumaTensor q, InazumaTensor k, InazumaTensor v,
                               InazumaTensor dout, const float* lse, const float* delta, void* dq, void* dk, void* dv) {
  try {
    inazuma::backward(*problem, q, k, v, dout, lse, delta, dq, dk, dv);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
