// Token selection: the lightning indexer's scores, and the K best of each query, in one pass over the keys.
//
// Only a panel of scores exists at a time. A query keeps the scores above its threshold in a buffer, in the order of
// their keys; when the buffer is full it is cut to the K best, and the K-th becomes the threshold. Because keys come in
// ascending order, a later key that equals the threshold has lost to K others already: ties go to the lower index.
//
// Where the machine can, the scores are rough ones (rough.h): a cut then keeps whatever may be among the K best, and
// only what is left at the end is scored in float32 and cut exactly.
#include <cmath>
#include <new>

#include "best.h"
#include "rough.h"
#include "rows.h"

namespace inazuma {
namespace {

constexpr int QUERIES = 32;     // share a panel of keys while it is in the nearest cache
constexpr int64_t PART = 8192;  // keys to a task where there are few queries
constexpr int64_t PACKING_PAYS = 4 * QUERIES;  // queries from which on the keys are packed once for all tasks

struct Selection {
  const InazumaProblem& problem;
  const InazumaTensor &index_q, &index_k;
  const float* weights;
  const float* packed;                 // panels of all keys [B][panels][C][panel], or null
  const std::vector<RoughKeys>& rough;  // [B], or empty

  // Finds the best keys in [from, to) of the queries t0 <= t < t1.
  void scan(int64_t b, int64_t t0, int64_t t1, int64_t from, int64_t to, Best* best) const {
    const Kernels& kernel = kernels();
    const int panel = kernel.panel, I = int(problem.I), C = int(problem.C);
    const int64_t K = problem.K;
    const int32_t *first = problem.first + b * problem.T, *last = problem.last + b * problem.T;
    std::vector<float> q((t1 - t0) * I * C), scores(panel), own(packed ? 0 : panel * C);
    std::vector<RoughQuery> rough_queries;
    Tile tile;
    int64_t low = to, high = from;
    for (int64_t t = t0; t < t1; ++t) {
      for (int i = 0; i < I; ++i) {
        float* at = q.data() + ((t - t0) * I + i) * C;
        const float* row = read_row(index_q, b, t, i, C, at);
        if (row != at) std::memcpy(at, row, C * sizeof(float));
      }
      Best& mine = best[t - t0];
      if (!rough.empty()) {
        const float* w = weights + (b * problem.T + t) * I;
        rough_queries.emplace_back(q.data() + (t - t0) * I * C, w, I, C, rough[b].most);
        if (std::isfinite(rough_queries.back().slack)) mine.slack = rough_queries.back().slack;
      }
      if (last[t] - first[t] < K) continue;  // keeps all it sees, unscored
      low = std::min<int64_t>(low, std::max<int64_t>(first[t], from));
      high = std::max<int64_t>(high, std::min<int64_t>(last[t] + 1, to));
      const int64_t capacity = std::min(std::max<int64_t>(4 * K, 4 * panel), to - from) + 2 * panel;
      mine.scores.resize(capacity);
      mine.keys.resize(capacity);
    }
    for (int64_t s0 = low / panel * panel; s0 < high; s0 += panel) {
      const float* keys = packed;
      const int n = int(std::min<int64_t>(panel, problem.S - s0));
      const int64_t number = s0 / panel;
      if (packed) keys += (b * ceil_div(problem.S, panel) + number) * panel * C;
      for (int64_t t = t0; t < t1; ++t) {
        const int64_t begin = std::max({s0, int64_t(first[t]), from});
        const int64_t end = std::min({s0 + n, int64_t(last[t]) + 1, to});
        if (begin >= end || last[t] - first[t] < K) continue;
        const float *one = q.data() + (t - t0) * I * C, *w = weights + (b * problem.T + t) * I;
        Best& mine = best[t - t0];
        if (mine.slack > 0.0) {
          const RoughQuery& query = rough_queries[t - t0];
          const int16_t* numbers = rough[b].numbers.data() + number * panel * even(C);
          kernel.score_roughly(numbers, rough[b].units.data() + s0, query.numbers.data(), query.weights.data(), I,
                               even(C), scores.data());
        } else {
          if (!keys) {
            kernel.pack(tile.read(index_k, b, 0, C, {nullptr, s0, n}), n, C, own.data());
            keys = own.data();
          }
          kernel.score(keys, one, w, I, C, scores.data());
        }
        mine.add(scores.data() + (begin - s0), int(end - begin), int32_t(begin));
        if (mine.n + 2 * panel <= int64_t(mine.scores.size())) continue;
        mine.cut(K);
        // Many ties, or one key of enormous norm: rough scores rule out too little.
        if (mine.slack > 0.0 && 2 * mine.n > int64_t(mine.scores.size())) settle(b, one, w, mine);
      }
    }
    for (int64_t t = t0; t < t1; ++t) {
      best[t - t0].cut(K);
      if (best[t - t0].slack > 0.0)
        settle(b, q.data() + (t - t0) * I * C, weights + (b * problem.T + t) * I, best[t - t0]);
    }
  }

  // Scores what is left of a query's keys in float32, and goes on with that.
  void settle(int64_t b, const float* q, const float* w, Best& best) const {
    const int I = int(problem.I), C = int(problem.C), P = padded(I), n = int(best.n);
    std::vector<float> columns(P * C), products(int64_t(n) * P);
    transpose(q, I, C, P, columns.data());
    Tile tile;
    kernels().score_rows(tile.read(index_k, b, 0, C, {best.keys.data(), 0, n}), n, columns.data(), P, w, I, C,
                         products.data(), best.scores.data());
    best.slack = 0.0, best.threshold = LOWEST;
    best.cut(problem.K);
  }

  void write(int64_t b, int64_t t, const Best& best, int32_t* out) const {
    const int64_t K = problem.K, at = b * problem.T + t;
    const int64_t first = problem.first[at], last = problem.last[at];
    out += at * K;
    int64_t n = 0;
    if (last - first < K)
      for (int64_t s = first; s <= last; ++s) out[n++] = int32_t(s);
    else
      for (; n < best.n; ++n) out[n] = best.keys[n];
    std::fill(out + n, out + K, -1);
  }
};

void select(const InazumaProblem& problem, const InazumaTensor& index_q, const InazumaTensor& index_k,
            const float* weights, int32_t* out) {
  const int64_t B = problem.B, T = problem.T, S = problem.S;
  const int panel = kernels().panel, C = int(problem.C);
  const int64_t blocks = ceil_div(T, QUERIES), panels = ceil_div(S, panel);
  std::vector<float> packed;
  std::vector<RoughKeys> rough;
  if (T >= PACKING_PAYS && kernels().score_roughly) {
    for (int64_t b = 0; b < B; ++b) rough.emplace_back(problem, index_k, b);
  } else if (T >= PACKING_PAYS) {
    packed.resize(B * panels * panel * C);
    parallel(B * panels, problem.threads, [&](int64_t task) {
      const int64_t b = task / panels, s0 = task % panels * panel;
      const int n = int(std::min<int64_t>(panel, S - s0));
      Tile tile;
      kernels().pack(tile.read(index_k, b, 0, C, {nullptr, s0, n}), n, C, packed.data() + task * panel * C);
    });
  }
  const Selection selection{problem, index_q, index_k, weights, packed.empty() ? nullptr : packed.data(), rough};
  // Few queries over many keys (decoding): the keys are shared out, and the parts' best cut to the best of all.
  const int64_t parts = T < PACKING_PAYS ? std::max<int64_t>(1, ceil_div(S, PART)) : 1;
  std::vector<Best> best(parts == 1 ? 0 : B * T * parts);
  parallel(B * blocks * parts, problem.threads, [&](int64_t task) {
    // The last queries of a causal sequence see the most keys: they go first, so that no thread ends up with one alone.
    const int64_t b = task / parts / blocks, block = blocks - 1 - task / parts % blocks, part = task % parts;
    const int64_t t0 = block * QUERIES, t1 = std::min(T, t0 + QUERIES);
    if (parts == 1) {
      std::vector<Best> mine(t1 - t0);
      selection.scan(b, t0, t1, 0, S, mine.data());
      for (int64_t t = t0; t < t1; ++t) selection.write(b, t, mine[t - t0], out);
      return;
    }
    std::vector<Best> mine(t1 - t0);
    selection.scan(b, t0, t1, part * PART, std::min(S, (part + 1) * PART), mine.data());
    for (int64_t t = t0; t < t1; ++t) best[(b * T + t) * parts + part] = std::move(mine[t - t0]);
  });
  if (parts == 1) return;
  for (int64_t row = 0; row < B * T; ++row) {
    Best all;
    for (int64_t part = 0; part < parts; ++part) {
      const Best& one = best[row * parts + part];
      all.scores.insert(all.scores.end(), one.scores.begin(), one.scores.begin() + one.n);
      all.keys.insert(all.keys.end(), one.keys.begin(), one.keys.begin() + one.n);
    }
    all.n = int64_t(all.keys.size());
    all.scores.resize(all.n + 16), all.keys.resize(all.n + 16);
    all.cut(problem.K);
    selection.write(row / T, row % T, all, out);
  }
}

}  // namespace
}  // namespace inazuma

int inazuma_select(const InazumaProblem* problem, InazumaTensor index_q, InazumaTensor index_k, const float* weights,
                   int32_t* indices) {
  try {
    inazuma::select(*problem, index_q, index_k, weights, indices);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
