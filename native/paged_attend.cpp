// Attention over pages: of several queries of a sequence over all that they see, or of one over what was selected.
//
// Keys are taken in blocks of 256, at fixed positions (of a selection: in its order). A block's softmax and sum have an
// order of their own, and blocks are added up one after another, so that it does not matter with which other queries,
// in which pieces and on how many threads a query is computed.
#include <cmath>
#include <cstring>
#include <new>

#include "paged.h"

namespace inazuma {
namespace {

constexpr int64_t BLOCK = 256;  // keys
constexpr int64_t ROWS = 96;    // rows of queries that share a block, at most
constexpr int64_t KEPT = 1 << 22;  // numbers of blocks' results that are kept, at most

struct Scratch {
  std::vector<float> q, products, keys, values, part, sums, largest, out, total;
  std::vector<uint32_t> packed;
};

Scratch& scratch() {
  static thread_local Scratch mine;
  return mine;
}

// What some keys give a row: the largest score, the sum of exponentials below it, and the values weighted with them.
struct Sum {
  float *largest, *total, *out;
};

class Attention {
 public:
  Attention(const InazumaQueries& queries, const InazumaPool& keys, const InazumaPool* values, const float* q, int64_t H,
            int64_t Dv, float scale, const int32_t* indices, int64_t K)
      : queries_(queries), keys_(keys), values_(values), q_(q), H_(H), Dv_(Dv), K_(K), scale_(scale),
        indices_(indices), heads_(H / keys.heads) {
    form_ = format_of(keys) == FP8 ? FLOAT32 : format_of(keys);
    width_ = packed_width(keys.width, form_);
  }

  int64_t heads() const { return heads_; }

  // The keys that a unit reads: positions, or places of its query's selection, which `chosen` has.
  int64_t count(const Unit& unit) const {
    if (!indices_) return unit.keys;
    int64_t n = 0;
    for (const int32_t* at = indices_ + unit.from * K_; at < indices_ + (unit.from + 1) * K_; ++at) {
      if (*at < -1 || *at > queries_.last[unit.from]) throw Misfit{INAZUMA_BAD_INDEX};
      n += *at >= 0;
    }
    return n;
  }

  // The blocks begin <= b < end of a unit for the key-value head g: each result goes to sink(block, row, sum).
  template <class Sink>
  void run(const Unit& unit, int64_t g, int64_t begin, int64_t end, int64_t keys, Sink sink) const {
    const PagedKernels& kernel = paged_kernels();
    Scratch& mine = scratch();
    const int64_t N = unit.to - unit.from, R = N * heads_;
    float* q = room(mine.q, R * width_);
    for (int64_t n = 0; n < N; ++n)
      for (int64_t h = 0; h < heads_; ++h)
        arrange(q_ + ((unit.from + n) * H_ + g * heads_ + h) * keys_.width, keys_.width, form_, scale_,
                q + (n * heads_ + h) * width_);
    float* products = room(mine.products, R * BLOCK);
    uint32_t* packed = room(mine.packed, int64_t(width_) * PAGE);
    float* out = room(mine.part, 4 * Dv_);
    float largest[4], sums[4];
    std::vector<int32_t> chosen;
    if (indices_)
      for (const int32_t* at = indices_ + unit.from * K_; at < indices_ + (unit.from + 1) * K_; ++at)
        if (*at >= 0) chosen.push_back(*at);
    const int32_t* table = queries_.tables + queries_.row[unit.from] * queries_.P;
    const uint8_t *key_rows[BLOCK], *value_rows[BLOCK];
    for (int64_t b = begin; b < end; ++b) {
      const int n = int(std::min(BLOCK, keys - b * BLOCK));
      for (int j = 0; j < n; ++j) {
        const int64_t slot = slot_of(table, indices_ ? chosen[b * BLOCK + j] : b * BLOCK + j);
        key_rows[j] = row_of(keys_, slot, g);
        if (values_) value_rows[j] = row_of(*values_, slot, g);
      }
      decode(keys_, keys_.width, n, key_rows, mine.keys);
      if (!values_) std::copy_n(key_rows, n, value_rows);
      if (values_) decode(*values_, values_->width, n, value_rows, mine.values);
      // The first query that sees something of the block; the later ones see more.
      int64_t first = 0;
      while (!indices_ && first < N && queries_.last[unit.from + first] < b * BLOCK) ++first;
      const int64_t row = first * heads_;
      for (int s = 0; s < n; s += PAGE) {
        kernel.pack(key_rows + s, std::min(n - s, PAGE), form_, keys_.width, packed);
        kernel.products(packed, form_, q + row * width_, int(R - row), width_, products + row * BLOCK + s, BLOCK);
      }
      for (int64_t i = first; i < N; ++i) {
        const int64_t last = queries_.last[unit.from + i];
        const int seen = indices_ ? n : int(std::min<int64_t>(n, last + 1 - b * BLOCK));
        if (seen <= 0) continue;
        for (int64_t h = 0; h < heads_; h += 4) {
          const int some = int(std::min<int64_t>(4, heads_ - h));
          float* x = products + (i * heads_ + h) * BLOCK;
          kernel.softmax(x, BLOCK, seen, some, largest);
          kernel.combine(value_rows, value_format(), seen, int(Dv_), x, BLOCK, some, out, sums);
          for (int r = 0; r < some; ++r) sink(b, i * heads_ + h + r, Sum{largest + r, sums + r, out + r * Dv_});
        }
      }
    }
  }

  // Adds a later block's result to those before it; the first has total = 0.
  void add(Sum all, Sum one) const {
    if (*all.total == 0.0f) {
      *all.largest = *one.largest, *all.total = *one.total;
      std::copy_n(one.out, Dv_, all.out);
      return;
    }
    const float most = std::max(*all.largest, *one.largest);
    const float a = std::exp(*all.largest - most), b = std::exp(*one.largest - most);
    *all.largest = most;
    *all.total = *all.total * a + *one.total * b;
    paged_kernels().merge(all.out, a, one.out, b, Dv_);
  }

  void write(int64_t n, int64_t head, Sum all, float* out) const {
    out += (n * H_ + head) * Dv_;
    for (int64_t d = 0; d < Dv_; ++d) out[d] = *all.total == 0.0f ? 0.0f : all.out[d] / *all.total;
  }

 private:
  Format value_format() const {
    const Format format = format_of(values_ ? *values_ : keys_);
    return format == FP8 ? FLOAT32 : format;
  }

  // Rows of fp8 become rows of float32.
  static void decode(const InazumaPool& pool, int D, int n, const uint8_t** rows, std::vector<float>& buffer) {
    if (format_of(pool) != FP8) return;
    float* decoded = room(buffer, int64_t(BLOCK) * D);
    for (int j = 0; j < n; ++j) {
      paged_kernels().decode(rows[j], FP8, D, pool.plain, decoded + int64_t(j) * D);
      rows[j] = reinterpret_cast<const uint8_t*>(decoded + int64_t(j) * D);
    }
  }

  const InazumaQueries& queries_;
  const InazumaPool& keys_;
  const InazumaPool* values_;
  const float* q_;
  const int64_t H_, Dv_, K_;
  const float scale_;
  const int32_t* indices_;
  const int64_t heads_;
  Format form_;
  int width_;
};

void attend(const InazumaQueries& queries, const InazumaPool& keys, const InazumaPool* values, const float* q,
            int64_t H, int64_t Dv, float scale, const int32_t* indices, int64_t K, float* out) {
  const int64_t pages = values ? std::min(keys.pages, values->pages) : keys.pages, G = keys.heads;
  const Attention attention(queries, keys, values, q, H, Dv, scale, indices, K);
  const int64_t heads = attention.heads();
  const std::vector<Unit> units = units_of(queries, indices ? 1 : std::max<int64_t>(1, ROWS / heads), pages);
  std::vector<int64_t> counts(units.size());
  for (size_t u = 0; u < units.size(); ++u) counts[u] = attention.count(units[u]);
  // What a task works off: a unit's blocks for one key-value head.
  const auto blocks = [&](int64_t i) { return (counts[i / G] + BLOCK - 1) / BLOCK; };
  const double each = double(heads) * double(queries.N) / double(std::max<size_t>(1, units.size()));
  int threads = queries.threads;
  std::vector<Task> tasks =
      tasks_of(int64_t(units.size()) * G, blocks, BLOCK * (each + 1.0) * double(keys.width + Dv), threads);
  // Parts of a unit keep what each block gave, and are added up afterwards; a unit whose blocks would be too much to
  // keep is worked off by one thread.
  const auto rows_of = [&](int64_t i) { return (units[i / G].to - units[i / G].from) * heads; };
  std::vector<int64_t> place(units.size() * G, -1);
  int64_t kept = 0;
  std::vector<Task> work;
  for (const Task& task : tasks) {
    const int64_t size = rows_of(task.unit) * blocks(task.unit) * (Dv + 2);
    if (!task.whole && size > KEPT) {
      if (task.begin == 0) work.push_back({task.unit, 0, blocks(task.unit), true});
      continue;
    }
    if (!task.whole && place[task.unit] < 0) place[task.unit] = kept, kept += size;
    work.push_back(task);
  }
  static thread_local std::vector<float> results;
  float* saved = room(results, kept);
  const auto at = [&](int64_t i, int64_t block, int64_t row) {
    float* entry = saved + place[i] + (block * rows_of(i) + row) * (Dv + 2);
    return Sum{entry, entry + 1, entry + 2};
  };
  const auto write = [&](int64_t i, const std::vector<Sum>& sums) {
    for (int64_t row = 0; row < rows_of(i); ++row)
      attention.write(units[i / G].from + row / heads, i % G * heads + row % heads, sums[row], out);
  };
  const auto fresh = [&](int64_t i) {
    const int64_t R = rows_of(i);
    Scratch& mine = scratch();
    float* largest = room(mine.largest, R);
    float* total = room(mine.total, R);
    float* all = room(mine.out, R * Dv);
    std::fill_n(total, R, 0.0f);
    std::vector<Sum> sums(R);
    for (int64_t row = 0; row < R; ++row) sums[row] = {largest + row, total + row, all + row * Dv};
    return sums;
  };
  parallel(int64_t(work.size()), threads, [&](int64_t t) {
    const Task& task = work[t];
    const int64_t i = task.unit;
    if (!task.whole) {
      for (int64_t b = task.begin; b < task.end; ++b)
        for (int64_t row = 0; row < rows_of(i); ++row) *at(i, b, row).total = 0.0f;
      attention.run(units[i / G], i % G, task.begin, task.end, counts[i / G], [&](int64_t b, int64_t row, Sum one) {
        const Sum to = at(i, b, row);
        *to.largest = *one.largest, *to.total = *one.total;
        std::copy_n(one.out, Dv, to.out);
      });
      return;
    }
    const std::vector<Sum> sums = fresh(i);
    attention.run(units[i / G], i % G, task.begin, task.end, counts[i / G],
                  [&](int64_t, int64_t row, Sum one) { attention.add(sums[row], one); });
    write(i, sums);
  });
  if (kept == 0) return;
  parallel(int64_t(place.size()), threads, [&](int64_t i) {
    if (place[i] < 0) return;
    const std::vector<Sum> sums = fresh(i);
    for (int64_t b = 0; b < blocks(i); ++b)
      for (int64_t row = 0; row < rows_of(i); ++row)
        if (*at(i, b, row).total != 0.0f) attention.add(sums[row], at(i, b, row));
    write(i, sums);
  });
}

}  // namespace
}  // namespace inazuma

int inazuma_paged_attend(const InazumaQueries* queries, const InazumaPool* keys, const InazumaPool* values,
                         const float* q, int64_t H, int64_t Dv, float scale, const int32_t* indices, int64_t K,
                         float* out) {
  return inazuma::guarded(
      [&] { inazuma::attend(*queries, *keys, values, q, H, Dv, scale, indices, K, out); });
}
