// The indexer's loss KL(p || softmax(I)) and its gradient, in one call: nothing downstream changes but a factor.
//
// A block of queries goes over its keys twice, in tiles. The first time each query's index scores I and its target p
// are laid down in a row of their own; then I - log sum exp I, the loss and g = softmax(I) - p are known; the second
// time g meets the indexer's inputs. Queries that read contiguous keys go through a tile one after the other while it
// is in the cache. Formulas as in inazuma/ops/reference.py.
#include <cmath>
#include <limits>
#include <new>
#include <numeric>

#include "rows.h"

namespace inazuma {
namespace {

constexpr float LOWEST = -std::numeric_limits<float>::infinity();
constexpr int QUERIES = 8;  // to a block over spans: so many rows of S scores and S targets exist for each thread
constexpr int TILE = 256;

struct Tensors {
  const InazumaTensor &index_q, &index_k, &q, &k;
  const float *weights, *lse;
};

// Where gradients go; index_q is null where nobody wants them.
struct Gradients {
  void* index_q;
  float *index_k, *weights;
};

// One query: its rows as the kernels want them, and what is known of its keys.
struct Query {
  std::vector<float> q_columns, lse, index_q, index_columns, weights;
  int64_t first, n;                  // its keys, or places among the selected ones
  std::vector<float> scores, target; // [n]; the scores become g
};

// x [n] = exp(x - shift); returns the sum.
float exponentials(float* x, int64_t n, float shift) {
  // The kernel's lanes run over 16 query rows: here they are 16 keys of one.
  const int whole = int(n / 16), rest = int(n % 16);
  float shifts[16], sums[16] = {}, tail[16];
  std::fill_n(shifts, 16, shift);
  std::fill_n(tail, 16, LOWEST);
  std::copy_n(x + 16 * whole, rest, tail);
  kernels().exponentials(x, whole, 16, shifts, sums);
  kernels().exponentials(tail, 1, 16, shifts, sums);
  std::copy_n(tail, rest, x + 16 * whole);
  float total = 0.0f;
  for (float sum : sums) total += sum;
  return total;
}

class Worker {
 public:
  Worker(const InazumaProblem& problem, const Tensors& in, int64_t queries)
      : problem_(problem),
        in_(in),
        share_(1.0f / float(queries)),
        heads_(int(problem.H / problem.G)),
        P_(padded(heads_)),
        IP_(padded(int(problem.I))),
        products_(TILE * std::max(P_, IP_)),
        keys_(problem.indices ? problem.K : 0) {}

  // Queries t0 <= t < t1, which are one where keys are selected; losses [B][T].
  void run(int64_t b, int64_t t0, int64_t t1, double* losses, const Gradients& out) {
    queries_.resize(t1 - t0);
    int64_t from = std::numeric_limits<int64_t>::max(), to = 0;
    for (int64_t t = t0; t < t1; ++t) {
      Query& query = queries_[t - t0];
      begin(b, t, query);
      if (query.n == 0) continue;
      from = std::min(from, query.first);
      to = std::max(to, query.first + query.n);
    }
    const auto every_tile = [&](auto work) {
      for (int64_t s = from; s < to; s += TILE)
        for (Query& query : queries_) {
          const int64_t low = std::max(s, query.first), high = std::min({s + TILE, to, query.first + query.n});
          if (low >= high) continue;
          const int n = int(high - low);
          work(query, low - query.first, problem_.indices ? Keys{keys_.data() + low, 0, n} : Keys{nullptr, low, n});
        }
    };
    every_tile([&](Query& query, int64_t at, const Keys& keys) { score(b, query, at, keys); });
    for (int64_t t = t0; t < t1; ++t) losses[b * problem_.T + t] = judge(queries_[t - t0]);
    if (!out.index_q) return;
    const int64_t I = problem_.I, C = problem_.C;
    dindex_q_.assign((t1 - t0) * I * C, 0.0f), dweights_.assign((t1 - t0) * IP_, 0.0f);
    every_tile([&](Query& query, int64_t at, const Keys& keys) { learn(b, query, at, keys, out.index_k); });
    for (int64_t t = t0; t < t1; ++t) {
      const int64_t at = b * problem_.T + t;
      write_row(out.index_q, in_.index_q.bfloat16, at * I * C, dindex_q_.data() + (t - t0) * I * C, I * C);
      std::copy_n(dweights_.data() + (t - t0) * IP_, I, out.weights + at * I);
    }
  }

 private:
  void begin(int64_t b, int64_t t, Query& query) {
    const int Dk = int(problem_.Dk), C = int(problem_.C), I = int(problem_.I);
    const int64_t at = b * problem_.T + t;
    rows_.resize(int64_t(heads_) * Dk);
    query.q_columns.resize(problem_.G * P_ * Dk);
    query.lse.assign(problem_.G * P_, -LOWEST);  // padding: exp(0 - inf) = 0
    for (int64_t g = 0; g < problem_.G; ++g) {
      for (int r = 0; r < heads_; ++r) {
        float* copy = rows_.data() + int64_t(r) * Dk;
        const float* row = read_row(in_.q, b, t, g * heads_ + r, Dk, copy);
        for (int d = 0; d < Dk; ++d) copy[d] = row[d] * problem_.scale;
        const float lse = in_.lse[at * problem_.H + g * heads_ + r];
        query.lse[g * P_ + r] = lse == LOWEST ? 0.0f : lse;
      }
      transpose(rows_.data(), heads_, Dk, P_, query.q_columns.data() + g * P_ * Dk);
    }
    query.index_q.resize(int64_t(I) * C), query.index_columns.resize(int64_t(IP_) * C);
    for (int i = 0; i < I; ++i) {
      float* copy = query.index_q.data() + int64_t(i) * C;
      const float* row = read_row(in_.index_q, b, t, i, C, copy);
      if (row != copy) std::memcpy(copy, row, C * sizeof(float));
    }
    transpose(query.index_q.data(), I, C, IP_, query.index_columns.data());
    query.weights.assign(IP_, 0.0f);
    std::copy_n(in_.weights + at * I, I, query.weights.data());
    query.first = problem_.indices ? 0 : problem_.first[at];
    query.n = problem_.indices ? compact(problem_.indices + at * problem_.K, problem_.K, keys_.data())
                               : std::max<int64_t>(0, int64_t(problem_.last[at]) + 1 - problem_.first[at]);
    query.scores.resize(query.n);
    query.target.assign(query.n, 0.0f);
  }

  // The rectified products of a tile's keys with the indexer's queries, in products_; returns the keys' rows.
  const float* const* index_products(int64_t b, const Query& query, const Keys& keys, float* scores) {
    const float* const* rows = index_tile_.read(in_.index_k, b, 0, int(problem_.C), keys);
    kernels().dots(rows, keys.n, int(problem_.C), query.index_columns.data(), IP_, products_.data());
    kernels().index_scores(products_.data(), keys.n, IP_, query.weights.data(), scores);
    return rows;
  }

  void score(int64_t b, Query& query, int64_t at, const Keys& keys) {
    const int Dk = int(problem_.Dk);
    index_products(b, query, keys, query.scores.data() + at);
    for (int64_t g = 0; g < problem_.G; ++g) {
      const float* const* rows = k_tile_.read(in_.k, b, g, Dk, keys);
      kernels().dots(rows, keys.n, Dk, query.q_columns.data() + g * P_ * Dk, P_, products_.data());
      kernels().exponentials(products_.data(), keys.n, P_, query.lse.data() + g * P_, nullptr);
      kernels().add_sums(products_.data(), keys.n, P_, 1.0f / float(problem_.H), query.target.data() + at);
    }
  }

  // The query's loss; its scores become g.
  double judge(Query& query) {
    if (query.n == 0) return 0.0;
    const float most = *std::max_element(query.scores.begin(), query.scores.end());
    logs_ = query.scores;
    const float lse = most + std::log(exponentials(query.scores.data(), query.n, most));
    double loss = 0.0, sum = 0.0;
    for (int64_t s = 0; s < query.n; ++s) {
      const float p = query.target[s], log = logs_[s] - lse;
      sum += p;
      if (p != 0.0f) loss += double(p) * (std::log(p) - log);
    }
    // The target sums to 1 up to rounding; counted as it is, g sums to 0, and one visible key gives g = 0.
    exponentials(logs_.data(), query.n, lse);
    for (int64_t s = 0; s < query.n; ++s) query.scores[s] = share_ * (logs_[s] * float(sum) - query.target[s]);
    return loss;
  }

  void learn(int64_t b, Query& query, int64_t at, const Keys& keys, float* dindex_k) {
    const int C = int(problem_.C), I = int(problem_.I);
    const int64_t place = &query - queries_.data();
    unused_.resize(TILE);
    const float* const* rows = index_products(b, query, keys, unused_.data());
    kernels().index_gradient(products_.data(), keys.n, IP_, query.scores.data() + at, query.weights.data(),
                             dweights_.data() + place * IP_);
    kernels().combine(rows, keys.n, C, products_.data(), I, IP_, dindex_q_.data() + place * I * C);
    kernels().scatter(targets_.at(dindex_k, C, keys), keys.n, C, products_.data(), I, IP_, query.index_q.data());
  }

  const InazumaProblem& problem_;
  const Tensors& in_;
  const float share_;  // of one query in the mean
  const int heads_, P_, IP_;
  std::vector<float> products_, rows_, logs_, unused_, dindex_q_, dweights_;
  std::vector<int32_t> keys_;
  std::vector<Query> queries_;
  Tile k_tile_, index_tile_;
  Targets targets_;
};

// How many queries read a key; at least 1.
int64_t count_queries(const InazumaProblem& problem) {
  int64_t queries = 0;
  for (int64_t at = 0; at < problem.B * problem.T; ++at) {
    if (!problem.indices) {
      queries += problem.last[at] >= problem.first[at];
      continue;
    }
    const int32_t* row = problem.indices + at * problem.K;
    queries += std::any_of(row, row + problem.K, [](int32_t s) { return s >= 0; });
  }
  return std::max<int64_t>(1, queries);
}

void index_loss(const InazumaProblem& problem, const Tensors& in, float* loss, void* dindex_q, void* dindex_k,
                float* dweights) {
  const int64_t B = problem.B, T = problem.T, S = problem.S, C = problem.C;
  const int64_t step = problem.indices ? 1 : QUERIES, blocks = ceil_div(T, step), parts = query_parts(B, 1, blocks);
  const int64_t queries = count_queries(problem);
  std::vector<double> losses(B * T);
  const Zeros sums(dindex_q ? B * parts * S * C : 0);
  parallel(B * parts, problem.threads, [&](int64_t task) {
    const int64_t b = task / parts, part = task % parts;
    Worker worker(problem, in, queries);
    for (int64_t block = part; block < blocks; block += parts)
      worker.run(b, block * step, std::min(T, (block + 1) * step), losses.data(),
                 {dindex_q, dindex_q ? sums.data() + task * S * C : nullptr, dweights});
  });
  *loss = float(std::accumulate(losses.begin(), losses.end(), 0.0) / double(queries));
  if (dindex_q) add_parts(B, 1, S, int(C), parts, problem.threads, sums.data(), in.index_k.bfloat16, dindex_k);
}

}  // namespace
}  // namespace inazuma

int inazuma_index_loss(const InazumaProblem* problem, InazumaTensor index_q, InazumaTensor index_k,
                       const float* weights, InazumaTensor q, InazumaTensor k, const float* lse, float* loss,
                       void* dindex_q, void* dindex_k, float* dweights) {
  try {
    inazuma::index_loss(*problem, {index_q, index_k, q, k, weights, lse}, loss, dindex_q, dindex_k, dweights);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
