// The inner loops, written once with the compiler's vector types and compiled once for every instruction set, which
// INAZUMA_ISA names. Everything here but the table has internal linkage (see lanes.h).
#include "kernels.h"

#include "lanes.h"

namespace inazuma {
namespace {

// How many accumulators fit the registers beside what they are made of.
constexpr int BLOCK = VL == 16 ? 12 : 6;
constexpr int ROWS = VL == 16 ? 8 : 4;
constexpr int AHEAD = 64;  // gathered rows are nowhere near each other: one is asked for so many before its turn

// ---------------------------------------------------------------------------------------------------------------------
// The indexer's scoring: a matrix product whose lanes run over keys
// ---------------------------------------------------------------------------------------------------------------------

constexpr int WIDE = VL == 16 ? 6 : 2;  // vectors of keys to a panel
constexpr int HEADS = 4;                // index heads at once: WIDE * HEADS accumulators

void pack(const float* const* rows, int n, int C, float* out) {
  constexpr int panel = WIDE * VL;
  using X = Lanes<4>::F;
  int s = 0;
  for (; s + 4 <= n; s += 4) {
    int c = 0;
    for (; c + 4 <= C; c += 4) {  // four keys by four numbers, which shuffles transpose
      const X a = Lanes<4>::load(rows[s] + c), b = Lanes<4>::load(rows[s + 1] + c);
      const X d = Lanes<4>::load(rows[s + 2] + c), e = Lanes<4>::load(rows[s + 3] + c);
      const X ab = X{a[0], b[0], a[1], b[1]}, de = X{d[0], e[0], d[1], e[1]};
      const X AB = X{a[2], b[2], a[3], b[3]}, DE = X{d[2], e[2], d[3], e[3]};
      float* at = out + int64_t(c) * panel + s;
      Lanes<4>::store(at, X{ab[0], ab[1], de[0], de[1]});
      Lanes<4>::store(at + panel, X{ab[2], ab[3], de[2], de[3]});
      Lanes<4>::store(at + 2 * panel, X{AB[0], AB[1], DE[0], DE[1]});
      Lanes<4>::store(at + 3 * panel, X{AB[2], AB[3], DE[2], DE[3]});
    }
    for (; c < C; ++c)
      for (int j = s; j < s + 4; ++j) out[c * panel + j] = rows[j][c];
  }
  for (; s < n; ++s)
    for (int c = 0; c < C; ++c) out[c * panel + s] = rows[s][c];
  for (; s < panel; ++s)
    for (int c = 0; c < C; ++c) out[c * panel + s] = 0.0f;
}

// Adds what H heads give to the scores of a panel.
template <int H>
inline void score_heads(const float* keys, const float* q, const float* w, int C, F* total) {
  F sum[H][WIDE] = {};
  for (int c = 0; c < C; ++c) {
    F key[WIDE];
    for (int j = 0; j < WIDE; ++j) key[j] = V::load(keys + (c * WIDE + j) * VL);
    for (int h = 0; h < H; ++h) {
      const F x = V::all(q[h * C + c]);
      for (int j = 0; j < WIDE; ++j) sum[h][j] += x * key[j];
    }
  }
  for (int h = 0; h < H; ++h)
    for (int j = 0; j < WIDE; ++j) total[j] += relu(sum[h][j]) * w[h];
}

void score(const float* keys, const float* q, const float* w, int I, int C, float* scores) {
  F total[WIDE] = {};
  int i = 0;
  for (; i + HEADS <= I; i += HEADS) score_heads<HEADS>(keys, q + int64_t(i) * C, w + i, C, total);
  for (; i < I; ++i) score_heads<1>(keys, q + int64_t(i) * C, w + i, C, total);
  for (int j = 0; j < WIDE; ++j) V::store(scores + j * VL, total[j]);
}

#if defined(__AVX512VNNI__)
template <int H>
inline void score_heads_roughly(const int16_t* keys, const int16_t* q, const float* w, int C, F* total) {
  __m512i sum[H][WIDE];
  for (int h = 0; h < H; ++h)
    for (int j = 0; j < WIDE; ++j) sum[h][j] = _mm512_setzero_si512();
  for (int c = 0; c < C; c += 2) {
    __m512i key[WIDE];
    for (int j = 0; j < WIDE; ++j) key[j] = _mm512_loadu_si512(keys + (c / 2 * WIDE + j) * 2 * VL);
    for (int h = 0; h < H; ++h) {
      int32_t pair;
      __builtin_memcpy(&pair, q + h * C + c, 4);
      const __m512i x = _mm512_set1_epi32(pair);
      // Around the intrinsic, GCC 12 copies every accumulator to another register and back.
      for (int j = 0; j < WIDE; ++j) asm("vpdpwssd %2, %1, %0" : "+v"(sum[h][j]) : "v"(x), "v"(key[j]));
    }
  }
  for (int h = 0; h < H; ++h)
    for (int j = 0; j < WIDE; ++j)
      total[j] += (F)_mm512_cvtepi32_ps(_mm512_max_epi32(sum[h][j], _mm512_setzero_si512())) * w[h];
}

void score_roughly(const int16_t* keys, const float* units, const int16_t* q, const float* w, int I, int C,
                   float* scores) {
  F total[WIDE] = {};
  int i = 0;
  for (; i + HEADS <= I; i += HEADS) score_heads_roughly<HEADS>(keys, q + int64_t(i) * C, w + i, C, total);
  for (; i < I; ++i) score_heads_roughly<1>(keys, q + int64_t(i) * C, w + i, C, total);
  for (int j = 0; j < WIDE; ++j) V::store(scores + j * VL, total[j] * V::load(units + j * VL));
}
#endif

void take(const float* scores, int n, int32_t key, float* kept, int32_t* kept_keys) {
  for (int s = 0; s < n; ++s) {
    kept[s] = scores[s] - scores[s] == 0.0f ? scores[s] : -INFINITE;
    kept_keys[s] = key + s;
  }
}

int above(const float* scores, int n, int32_t key, float threshold, float* kept, int32_t* kept_keys) {
  int found = 0, s = 0;
#if defined(__AVX512F__)
  const __m512 least = _mm512_set1_ps(threshold), infinite = _mm512_set1_ps(INFINITE);
  const __m512i count = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (; s + 16 <= n; s += 16) {
    const __m512 x = _mm512_loadu_ps(scores + s);
    __mmask16 in = _mm512_cmp_ps_mask(x, least, _CMP_GT_OQ);
    if (in == 0) continue;
    in &= _mm512_cmp_ps_mask(x, infinite, _CMP_LT_OQ);
    // A compressed register and a full store: compressing into memory is microcode on some machines.
    const __m512i keys = _mm512_add_epi32(count, _mm512_set1_epi32(key + s));
    _mm512_storeu_ps(kept + found, _mm512_maskz_compress_ps(in, x));
    _mm512_storeu_si512(kept_keys + found, _mm512_maskz_compress_epi32(in, keys));
    found += __builtin_popcount(in);
  }
#else
  for (; s + VL <= n; s += VL) {
    const F x = V::load(scores + s);
    const V::N in = (x > threshold) & (x < INFINITE);
    bool any = false;
    for (int j = 0; j < VL; ++j) any |= in[j] != 0;
    if (!any) continue;
    for (int j = 0; j < VL; ++j) {
      kept[found] = x[j];
      kept_keys[found] = key + s + j;
      found += in[j] != 0;
    }
  }
#endif
  for (; s < n; ++s)
    if (scores[s] > threshold && scores[s] < INFINITE) {
      kept[found] = scores[s];
      kept_keys[found++] = key + s;
    }
  return found;
}

int64_t count(const float* scores, int64_t n, float x) {
  V::N even = {}, odd = {};
  int64_t s = 0, found = 0;
  for (; s + 2 * VL <= n; s += 2 * VL) {
    even -= V::load(scores + s) >= x;
    odd -= V::load(scores + s + VL) >= x;
  }
  for (int j = 0; j < VL; ++j) found += even[j] + odd[j];
  for (; s < n; ++s) found += scores[s] >= x;
  return found;
}

int64_t keep_best(float* scores, int32_t* keys, int64_t n, float threshold, int64_t room) {
  int64_t found = 0, s = 0;
#if defined(__AVX512F__)
  const __m512 least = _mm512_set1_ps(threshold);
  for (; s + 16 <= n; s += 16) {
    const __m512 x = _mm512_loadu_ps(scores + s);
    const __m512i key = _mm512_loadu_si512(keys + s);
    __mmask16 in = _mm512_cmp_ps_mask(x, least, _CMP_GT_OQ);
    for (unsigned equal = _mm512_cmp_ps_mask(x, least, _CMP_EQ_OQ); equal && room > 0; equal &= equal - 1, --room)
      in |= __mmask16(equal & -equal);
    _mm512_storeu_ps(scores + found, _mm512_maskz_compress_ps(in, x));
    _mm512_storeu_si512(keys + found, _mm512_maskz_compress_epi32(in, key));
    found += __builtin_popcount(in);
  }
#endif
  for (; s < n; ++s) {
    const float x = scores[s];
    const bool equal = x == threshold;
    scores[found] = x;
    keys[found] = keys[s];
    found += x > threshold || (equal && room > 0);
    room -= equal;
  }
  return found;
}

void widen(const uint16_t* in, int64_t n, float* out) {
  int32_t* bits = reinterpret_cast<int32_t*>(out);
  for (int64_t i = 0; i < n; ++i) {
    const int32_t x = int32_t(uint32_t(in[i]) << 16);
    __builtin_memcpy(bits + i, &x, 4);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Attention over rows: lanes over query rows for the products, over the width for the sums
// ---------------------------------------------------------------------------------------------------------------------

template <int L, int K>
inline void dots_block(const float* const* rows, int D, const float* q, int P, float* products) {
  using X = Lanes<L>;
  typename X::F sum[K] = {};
  const float* row[K];
  for (int s = 0; s < K; ++s) row[s] = rows[s];
  for (int d = 0; d < D; ++d) {
    const typename X::F x = X::load(q + int64_t(d) * P);
    for (int s = 0; s < K; ++s) sum[s] += x * row[s][d];
  }
  for (int s = 0; s < K; ++s) X::store(products + int64_t(s) * P, sum[s]);
}

template <int L>
inline void dots_lanes(const float* const* rows, int n, int D, const float* q, int P, float* products) {
  for (int r = 0; r < P; r += L) {
    int s = 0;
    for (; s + BLOCK <= n; s += BLOCK) {
      // Gathered rows are nowhere near each other: the next ones are asked for while these are worked on.
      if (r == 0)
        for (int j = s + AHEAD; j < n && j < s + AHEAD + BLOCK; ++j)
          for (int d = 0; d < D; d += 16) __builtin_prefetch(rows[j] + d);
      dots_block<L, BLOCK>(rows + s, D, q + r, P, products + int64_t(s) * P + r);
    }
    for (; s + 4 <= n; s += 4) dots_block<L, 4>(rows + s, D, q + r, P, products + int64_t(s) * P + r);
    for (; s < n; ++s) dots_block<L, 1>(rows + s, D, q + r, P, products + int64_t(s) * P + r);
  }
}

void dots(const float* const* rows, int n, int D, const float* q, int P, float* products) {
  if constexpr (VL == 16)
    if (P % 16 == 0) return dots_lanes<16>(rows, n, D, q, P, products);
  if constexpr (VL >= 8)
    if (P % 8 == 0) return dots_lanes<8>(rows, n, D, q, P, products);
  dots_lanes<4>(rows, n, D, q, P, products);
}

#if defined(__AVX512VNNI__)
void score_rows(const float* const* rows, int n, const float* q, int P, const float* w, int I, int C, float* products,
                float* scores) {
  dots(rows, n, C, q, P, products);
  for (int s = 0; s < n; ++s) {
    float total = 0.0f;
    for (int i = 0; i < I; ++i) total = __builtin_fmaf(relu(products[int64_t(s) * P + i]), w[i], total);
    scores[s] = total;
  }
}
#endif

template <int R, int W>
inline void combine_block(const float* const* rows, int n, int D, int d, const float* weights, int P, float* out) {
  F sum[R][W];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < W; ++j) sum[r][j] = V::load(out + int64_t(r) * D + d + j * VL);
  for (int s = 0; s < n; ++s) {
    if (s + AHEAD < n)
      for (int j = 0; j < W * VL; j += 16) __builtin_prefetch(rows[s + AHEAD] + d + j);
    F row[W];
    for (int j = 0; j < W; ++j) row[j] = V::load(rows[s] + d + j * VL);
    for (int r = 0; r < R; ++r) {
      const F x = V::all(weights[int64_t(s) * P + r]);
      for (int j = 0; j < W; ++j) sum[r][j] += x * row[j];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < W; ++j) V::store(out + int64_t(r) * D + d + j * VL, sum[r][j]);
}

template <int R>
inline void combine_rows(const float* const* rows, int n, int D, const float* weights, int P, float* out) {
  int d = 0;
  for (; d + 2 * VL <= D; d += 2 * VL) combine_block<R, 2>(rows, n, D, d, weights, P, out);
  for (; d + VL <= D; d += VL) combine_block<R, 1>(rows, n, D, d, weights, P, out);
  for (; d < D; ++d)
    for (int r = 0; r < R; ++r) {
      float sum = out[int64_t(r) * D + d];
      for (int s = 0; s < n; ++s) sum += weights[int64_t(s) * P + r] * rows[s][d];
      out[int64_t(r) * D + d] = sum;
    }
}

void combine(const float* const* rows, int n, int D, const float* weights, int N, int P, float* out) {
  int r = 0;
  for (; r + ROWS <= N; r += ROWS) combine_rows<ROWS>(rows, n, D, weights + r, P, out + int64_t(r) * D);
  for (; r < N; ++r) combine_rows<1>(rows, n, D, weights + r, P, out + int64_t(r) * D);
}

template <int K, int W>
inline void scatter_block(float* const* rows, int D, int d, const float* weights, int N, int P, const float* q) {
  F sum[K][W];
  for (int s = 0; s < K; ++s)
    for (int j = 0; j < W; ++j) sum[s][j] = V::load(rows[s] + d + j * VL);
  for (int r = 0; r < N; ++r) {
    F x[W];
    for (int j = 0; j < W; ++j) x[j] = V::load(q + int64_t(r) * D + d + j * VL);
    for (int s = 0; s < K; ++s) {
      const F weight = V::all(weights[int64_t(s) * P + r]);
      for (int j = 0; j < W; ++j) sum[s][j] += weight * x[j];
    }
  }
  for (int s = 0; s < K; ++s)
    for (int j = 0; j < W; ++j) V::store(rows[s] + d + j * VL, sum[s][j]);
}

template <int K>
inline void scatter_rows(float* const* rows, int D, const float* weights, int N, int P, const float* q) {
  int d = 0;
  for (; d + 2 * VL <= D; d += 2 * VL) scatter_block<K, 2>(rows, D, d, weights, N, P, q);
  for (; d + VL <= D; d += VL) scatter_block<K, 1>(rows, D, d, weights, N, P, q);
  for (; d < D; ++d)
    for (int s = 0; s < K; ++s) {
      float sum = rows[s][d];
      for (int r = 0; r < N; ++r) sum += weights[int64_t(s) * P + r] * q[int64_t(r) * D + d];
      rows[s][d] = sum;
    }
}

void scatter(float* const* rows, int n, int D, const float* weights, int N, int P, const float* q) {
  int s = 0;
  for (; s + ROWS <= n; s += ROWS) {
    if (s + 2 * ROWS <= n)
      for (int j = 0; j < ROWS; ++j)
        for (int d = 0; d < D; d += 16) __builtin_prefetch(rows[s + ROWS + j] + d, 1);
    scatter_rows<ROWS>(rows + s, D, weights + int64_t(s) * P, N, P, q);
  }
  for (; s < n; ++s) scatter_rows<1>(rows + s, D, weights + int64_t(s) * P, N, P, q);
}

// ---------------------------------------------------------------------------------------------------------------------
// Elementwise work on products [n][P]. L lanes run over query rows; P is a multiple of L.
// ---------------------------------------------------------------------------------------------------------------------

// Calls f with the widest lanes that divide P.
template <class Body>
inline void by_lanes(int P, Body f) {
  if constexpr (VL == 16)
    if (P % 16 == 0) return f(Lanes<16>{});
  if constexpr (VL >= 8)
    if (P % 8 == 0) return f(Lanes<8>{});
  f(Lanes<4>{});
}

template <class X>
struct width;
template <int L>
struct width<Lanes<L>> {
  static constexpr int value = L;
};

void largest(const float* x, int n, int P, float* most) {
  by_lanes(P, [=](auto lanes) {
    using X = decltype(lanes);
    for (int r = 0; r < P; r += width<X>::value) {
      auto a = X::load(most + r), b = a;
      int s = 0;
      for (; s + 2 <= n; s += 2) {
        a = maximum(a, X::load(x + int64_t(s) * P + r));
        b = maximum(b, X::load(x + int64_t(s + 1) * P + r));
      }
      if (s < n) a = maximum(a, X::load(x + int64_t(s) * P + r));
      X::store(most + r, maximum(a, b));
    }
  });
}

void exponentials(float* x, int n, int P, const float* shift, float* sums) {
  by_lanes(P, [=](auto lanes) {
    using X = decltype(lanes);
    constexpr int L = width<X>::value;
    for (int r = 0; r < P; r += L) {
      const auto minus = X::load(shift + r);
      typename X::F a = {}, b = {};
      int s = 0;
      for (; s + 2 <= n; s += 2) {
        float* at = x + int64_t(s) * P + r;
        const auto first = exponential<L>(X::load(at) - minus), second = exponential<L>(X::load(at + P) - minus);
        X::store(at, first);
        X::store(at + P, second);
        a += first;
        b += second;
      }
      if (s < n) {
        float* at = x + int64_t(s) * P + r;
        const auto first = exponential<L>(X::load(at) - minus);
        X::store(at, first);
        a += first;
      }
      if (sums) X::store(sums + r, X::load(sums + r) + (a + b));
    }
  });
}

void softmax_gradient(float* x, const float* p, int n, int P, const float* delta) {
  by_lanes(P, [=](auto lanes) {
    using X = decltype(lanes);
    for (int s = 0; s < n; ++s)
      for (int r = 0; r < P; r += width<X>::value) {
        float* at = x + int64_t(s) * P + r;
        X::store(at, X::load(p + int64_t(s) * P + r) * (X::load(at) - X::load(delta + r)));
      }
  });
}

template <class X>
inline float sum_lanes(typename X::F x) {
  float total = 0.0f;
  for (int j = 0; j < width<X>::value; ++j) total += x[j];
  return total;
}

void add_sums(const float* x, int n, int P, float factor, float* out) {
  by_lanes(P, [=](auto lanes) {
    using X = decltype(lanes);
    for (int s = 0; s < n; ++s) {
      typename X::F total = {};
      for (int r = 0; r < P; r += width<X>::value) total += X::load(x + int64_t(s) * P + r);
      out[s] += factor * sum_lanes<X>(total);
    }
  });
}

void index_scores(float* products, int n, int P, const float* w, float* scores) {
  by_lanes(P, [=](auto lanes) {
    using X = decltype(lanes);
    for (int s = 0; s < n; ++s) {
      typename X::F total = {};
      for (int r = 0; r < P; r += width<X>::value) {
        float* at = products + int64_t(s) * P + r;
        const auto x = relu(X::load(at));
        X::store(at, x);
        total += x * X::load(w + r);
      }
      scores[s] = sum_lanes<X>(total);
    }
  });
}

void index_gradient(float* products, int n, int P, const float* g, const float* w, float* dw) {
  by_lanes(P, [=](auto lanes) {
    using X = decltype(lanes);
    using Y = typename X::F;
    for (int r = 0; r < P; r += width<X>::value) {
      const Y weight = X::load(w + r);
      Y total = X::load(dw + r);
      for (int s = 0; s < n; ++s) {
        float* at = products + int64_t(s) * P + r;
        const Y x = X::load(at);
        total += x * g[s];
        X::store(at, x > 0.0f ? weight * g[s] : Y{});
      }
      X::store(dw + r, total);
    }
  });
}

}  // namespace

#define JOINED(a, b) a##b
#define TABLE(isa) JOINED(kernels_, isa)

#if !defined(__AVX512VNNI__)
constexpr decltype(Kernels::score_roughly) score_roughly = nullptr;
constexpr decltype(Kernels::score_rows) score_rows = nullptr;
#endif

extern const Kernels TABLE(INAZUMA_ISA) = {
    WIDE * VL,           pack,      score,        score_roughly,    score_rows,    take,
    above,               count,     keep_best,    widen,            dots,          combine,      scatter,
    largest,             exponentials, softmax_gradient, add_sums,  index_scores,  index_gradient,
};

}  // namespace inazuma
