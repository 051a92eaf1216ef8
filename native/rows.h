// Rows of tensors as the kernels want them: float32, by pointer.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "interface.h"
#include "kernels.h"
#include "threads.h"

namespace inazuma {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The row of width D at (b, s, g) in float32, through `copy` where it has to be widened.
inline const float* read_row(const InazumaTensor& x, int64_t b, int64_t s, int64_t g, int D, float* copy) {
  const int64_t at = b * x.batch + s * x.row + g * x.group;
  if (!x.bfloat16) return static_cast<const float*>(x.data) + at;
  kernels().widen(static_cast<const uint16_t*>(x.data) + at, D, copy);
  return copy;
}

// Writes n float32 to element `at` of an output; to bfloat16 they are rounded to the nearest, ties to even.
inline void write_row(void* out, bool bfloat16, int64_t at, const float* x, int64_t n) {
  if (!bfloat16) {
    std::memcpy(static_cast<float*>(out) + at, x, n * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, 4);
    const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    static_cast<uint16_t*>(out)[at + i] = uint16_t(x[i] != x[i] ? 0x7FC0 : rounded);
  }
}

// A tile's keys: numbers `at[0..n)` or, where at is null, from, from + 1, ...
struct Keys {
  const int32_t* at;
  int64_t from;
  int n;
  int64_t operator[](int j) const { return at ? at[j] : from + j; }
};

// Pointers to the float32 rows of a tile's keys, and copies of them where the tensor is bfloat16.
class Tile {
 public:
  const float* const* read(const InazumaTensor& x, int64_t b, int64_t g, int D, const Keys& keys) {
    rows_.resize(keys.n);
    if (!x.bfloat16) {
      const float* data = static_cast<const float*>(x.data) + b * x.batch + g * x.group;
      for (int j = 0; j < keys.n; ++j) rows_[j] = data + keys[j] * x.row;
      return rows_.data();
    }
    copies_.resize(int64_t(keys.n) * D);
    for (int j = 0; j < keys.n; ++j) rows_[j] = read_row(x, b, keys[j], g, D, copies_.data() + int64_t(j) * D);
    return rows_.data();
  }

 private:
  std::vector<const float*> rows_;
  std::vector<float> copies_;
};

// Pointers into an accumulator [S][D].
class Targets {
 public:
  float* const* at(float* sums, int D, const Keys& keys) {
    rows_.resize(keys.n);
    for (int j = 0; j < keys.n; ++j) rows_[j] = sums + keys[j] * D;
    return rows_.data();
  }

 private:
  std::vector<float*> rows_;
};

// The keys of one query that are there, in the order of `indices`; room for K. Returns how many.
inline int compact(const int32_t* indices, int64_t K, int32_t* out) {
  int n = 0;
  for (int64_t j = 0; j < K; ++j) {
    out[n] = indices[j];
    n += indices[j] >= 0;
  }
  return n;
}

// Rows [N][D] as [D][P], zeros in the padding.
inline void transpose(const float* rows, int N, int D, int P, float* out) {
  std::memset(out, 0, sizeof(float) * D * P);
  for (int r = 0; r < N; ++r)
    for (int d = 0; d < D; ++d) out[int64_t(d) * P + r] = rows[int64_t(r) * D + d];
}

// n zeros, which cost no memory before they are written.
class Zeros {
 public:
  explicit Zeros(int64_t n) : data_(static_cast<float*>(std::calloc(std::max<int64_t>(n, 1), sizeof(float)))) {
    if (!data_) throw std::bad_alloc();
  }
  ~Zeros() { std::free(data_); }
  Zeros(const Zeros&) = delete;
  Zeros& operator=(const Zeros&) = delete;
  float* data() const { return data_; }

 private:
  float* data_;
};

// Into how many parts the queries are divided where gradients of keys are summed: each part has sums of its own, and
// these are added in their order. It follows from the shapes alone, so that the number of threads changes no bit.
inline int64_t query_parts(int64_t B, int64_t G, int64_t blocks) {
  return std::max<int64_t>(1, std::min(ceil_div(8, B * G), blocks));
}

// out [B][S][G][D] = the sum over parts of sums [B][G][parts][S][D], in their order.
inline void add_parts(int64_t B, int64_t G, int64_t S, int D, int64_t parts, int threads, const float* sums,
                      bool bfloat16, void* out) {
  constexpr int64_t KEYS = 256;
  const int64_t blocks = ceil_div(S, KEYS);
  parallel(B * G * blocks, threads, [&](int64_t task) {
    const int64_t b = task / blocks / G, g = task / blocks % G, s0 = task % blocks * KEYS;
    std::vector<float> total(D);
    for (int64_t s = s0; s < std::min(S, s0 + KEYS); ++s) {
      std::fill(total.begin(), total.end(), 0.0f);
      for (int64_t part = 0; part < parts; ++part) {
        const float* row = sums + (((b * G + g) * parts + part) * S + s) * D;
        for (int d = 0; d < D; ++d) total[d] += row[d];
      }
      write_row(out, bfloat16, ((b * S + s) * G + g) * D, total.data(), D);
    }
  });
}

}  // namespace inazuma
