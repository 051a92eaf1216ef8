// The inner loops over pages, compiled once for every instruction set as kernels.cpp is.
#include "paged_kernels.h"

#include "lanes.h"

namespace inazuma {
namespace {

typedef uint16_t Halves __attribute__((vector_size(VL * 2)));
typedef uint32_t Words __attribute__((vector_size(VL * 4)));
typedef uint16_t Pairs __attribute__((vector_size(VL * 4)));

template <class X>
inline X read(const void* p) {
  X x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}

template <class X>
inline void write(void* p, X x) {
  __builtin_memcpy(p, &x, sizeof x);
}

inline float wide(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  return read<float>(&bits);
}

// VL numbers from column d of a row, and one of them.
template <Format format>
inline F load(const uint8_t* row, int d) {
  if constexpr (format == FLOAT32) return read<F>(row + 4 * d);
  return (F)(__builtin_convertvector(read<Halves>(row + 2 * d), Words) << 16);
}

template <Format format>
inline float load_one(const uint8_t* row, int d) {
  if constexpr (format == FLOAT32) return read<float>(row + 4 * d);
  return wide(read<uint16_t>(row + 2 * d));
}

// ---------------------------------------------------------------------------------------------------------------------
// Rows in and out. e4m3 is a sign, four bits of exponent e and three of mantissa m: (8 + m) 2^(e - 10), for e = 0
// m 2^-9; all ones is no number.
// ---------------------------------------------------------------------------------------------------------------------

inline float e4m3(uint8_t code) {
  const uint32_t size = code & 0x7F, sign = uint32_t(code & 0x80) << 24;
  const uint32_t normal = (size << 20) + (120u << 23);
  const float small = float(int32_t(size)) * 0.001953125f;
  uint32_t bits = size < 8 ? read<uint32_t>(&small) : normal;
  bits = size == 0x7F ? 0x7FC00000u : bits;
  bits |= sign;
  return read<float>(&bits);
}

void decode_group(const uint8_t* in, int n, float scale, float* out) {
  int i = 0;
#if defined(__AVX512F__)
  // As float16, which has one more bit of exponent in front, a number is 2^-8 of itself. All ones would be 480 here: the
  // slow way is taken where there may be one, that is where the scale came of a number that is not finite.
  if (scale - scale == 0.0f) {
    const __m512 each = _mm512_set1_ps(scale * 256.0f);
    for (; i + 32 <= n; i += 32) {
      const __m512i wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i)));
      const __m512i half = _mm512_and_si512(_mm512_slli_epi16(wide, 7), _mm512_set1_epi16(int16_t(0xBFFF)));
      _mm512_storeu_ps(out + i, _mm512_mul_ps(_mm512_cvtph_ps(_mm512_castsi512_si256(half)), each));
      _mm512_storeu_ps(out + i + 16, _mm512_mul_ps(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1)), each));
    }
  }
#endif
  for (; i < n; ++i) out[i] = e4m3(in[i]) * scale;
}

void decode(const uint8_t* row, Format format, int D, int plain, float* out) {
  if (format == FLOAT32) {
    __builtin_memcpy(out, row, D * sizeof(float));
    return;
  }
  int d = 0;
  const uint8_t* halves = row;
  if (format == FP8) {
    const int coded = D - plain;
    const uint8_t* scales = row + coded;
    for (; d < coded; d += SCALED, scales += 4)
      decode_group(row + d, coded - d < SCALED ? coded - d : SCALED, read<float>(scales), out + d);
    d = coded, halves = scales - 2 * coded;
  }
  for (; d + VL <= D; d += VL) V::store(out + d, load<BFLOAT16>(halves, d));
  for (; d < D; ++d) out[d] = load_one<BFLOAT16>(halves, d);
}

// To the nearest, ties to even.
inline uint16_t bfloat16(float x) {
  const uint32_t bits = read<uint32_t>(&x);
  return x != x ? 0x7FC0 : uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// Of a number that is at most 448 in size.
inline uint8_t to_e4m3(float x) {
  const uint32_t bits = read<uint32_t>(&x), size = bits & 0x7FFFFFFF;
  const uint32_t normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3);
  const float shifted = read<float>(&size) + 16384.0f;  // its last bit is 2^-9
  const uint32_t small = read<uint32_t>(&shifted) - 0x46800000u;
  uint32_t code = size < 0x3C800000u ? small : normal;  // 2^-6
  code = size > 0x7F800000u ? 0x7F : code;
  return uint8_t(code | bits >> 31 << 7);
}

// The largest size of n numbers. As whole numbers sizes keep their order, and NaN is the largest.
inline float largest_of(const float* x, int n) {
  int32_t most = 0;
  for (int i = 0; i < n; ++i) {
    const int32_t size = read<int32_t>(x + i) & 0x7FFFFFFF;
    most = size > most ? size : most;
  }
  return read<float>(&most);
}

// How a row becomes whole numbers: 0 for `each` makes all of them zero.
struct Rounding {
  float each, unit;

  Rounding(const float* x, int n, float most) {
    const float largest = largest_of(x, n);
    each = most / largest, unit = largest / most;
    if (each - each != 0.0f) each = unit = 0.0f;                            // as good as zero
    if (largest - largest != 0.0f) each = 0.0f, unit = __builtin_nanf("");  // not finite
  }
  int16_t operator()(float x) const { return each == 0.0f ? int16_t(0) : int16_t(__builtin_rintf(x * each)); }
};

float whole(const float* x, int C, float most, int16_t* out) {
  const Rounding round(x, C, most);
  for (int c = 0; c < C; ++c) out[c] = round(x[c]);
  return round.unit;
}

// Whole numbers, zeros up to the packed width, and their unit.
void encode_whole(const float* x, Format format, int D, uint8_t* row) {
  const Rounding round(x, D, float(largest_key(D, format)));
  const int width = packed_width(D, format), bytes = format == INT16 ? 2 : 1;
  for (int d = 0; d < width; ++d) {
    const int16_t number = d < D ? round(x[d]) : int16_t(0);
    __builtin_memcpy(row + bytes * d, &number, bytes);  // the low byte is the first
  }
  write(row + bytes * width, round.unit);
}

void encode(const float* x, Format format, int D, int plain, uint8_t* row) {
  if (format == FLOAT32) {
    __builtin_memcpy(row, x, D * sizeof(float));
    return;
  }
  if (format == INT16 || format == INT8) return encode_whole(x, format, D, row);
  int d = 0;
  uint8_t* halves = row;
  if (format == FP8) {
    const int coded = D - plain;
    uint8_t* scales = row + coded;
    for (; d < coded; d += SCALED, scales += 4) {
      const int n = coded - d < SCALED ? coded - d : SCALED;
      float scale = largest_of(x + d, n) / 448.0f;
      scale = scale < 1.17549435e-38f ? 1.17549435e-38f : scale;
      for (int i = 0; i < n; ++i) row[d + i] = to_e4m3(x[d + i] / scale);
      write(scales, scale);
    }
    d = coded, halves = scales - 2 * coded;
  }
  for (; d < D; ++d) write(halves + 2 * d, bfloat16(x[d]));
}

// ---------------------------------------------------------------------------------------------------------------------
// Products with lanes over keys
// ---------------------------------------------------------------------------------------------------------------------

// n rows of whole units of 4 bytes as [units][64], and `rest` bytes of one more.
void transpose_units(const uint8_t* const* rows, int n, int units, int rest, uint32_t* out) {
  typedef uint32_t X __attribute__((vector_size(16)));
  int s = 0;
  for (; s + 4 <= n; s += 4) {
    for (int j = s + 8; j < n && j < s + 12; ++j)
      for (int at = 0; at < 4 * units; at += 64) __builtin_prefetch(rows[j] + at);
    int u = 0;
    for (; u + 4 <= units; u += 4) {  // four keys by four units, which shuffles transpose
      const X a = read<X>(rows[s] + 4 * u), b = read<X>(rows[s + 1] + 4 * u);
      const X d = read<X>(rows[s + 2] + 4 * u), e = read<X>(rows[s + 3] + 4 * u);
      const X ab = X{a[0], b[0], a[1], b[1]}, de = X{d[0], e[0], d[1], e[1]};
      const X AB = X{a[2], b[2], a[3], b[3]}, DE = X{d[2], e[2], d[3], e[3]};
      uint32_t* at = out + u * PAGE + s;
      write(at, X{ab[0], ab[1], de[0], de[1]});
      write(at + PAGE, X{ab[2], ab[3], de[2], de[3]});
      write(at + 2 * PAGE, X{AB[0], AB[1], DE[0], DE[1]});
      write(at + 3 * PAGE, X{AB[2], AB[3], DE[2], DE[3]});
    }
    for (; u < units; ++u)
      for (int j = s; j < s + 4; ++j) out[u * PAGE + j] = read<uint32_t>(rows[j] + 4 * u);
  }
  for (; s < n; ++s)
    for (int u = 0; u < units; ++u) out[u * PAGE + s] = read<uint32_t>(rows[s] + 4 * u);
  for (; s < PAGE; ++s)
    for (int u = 0; u < units; ++u) out[u * PAGE + s] = 0;
  if (rest == 0) return;
  for (s = 0; s < PAGE; ++s) {
    uint32_t last = 0;
    if (s < n) __builtin_memcpy(&last, rows[s] + 4 * units, rest);
    out[units * PAGE + s] = last;
  }
}

void pack(const uint8_t* const* rows, int n, Format format, int C, uint32_t* out) {
  if (format == FLOAT32) return transpose_units(rows, n, C, 0, out);
  transpose_units(rows, n, C / 2, C % 2 * 2, out);
}

// The products of H rows with W vectors of keys; C is the packed width.
template <bool pairs, int H, int W>
inline void dot(const uint32_t* keys, const float* q, int C, F (&sum)[H][W]) {
  for (int h = 0; h < H; ++h)
    for (int j = 0; j < W; ++j) sum[h][j] = F{};
  for (int c = 0; c < C; c += pairs ? 2 : 1) {
    Words key[W];
    for (int j = 0; j < W; ++j) key[j] = read<Words>(keys + (pairs ? c / 2 : c) * PAGE + j * VL);
    if constexpr (pairs) {
      F low[W];
      for (int j = 0; j < W; ++j) low[j] = (F)(key[j] << 16);
      for (int h = 0; h < H; ++h)
        for (int j = 0; j < W; ++j) sum[h][j] += low[j] * q[h * C + c];
      for (int j = 0; j < W; ++j) key[j] &= 0xFFFF0000u;
    }
    const int at = c + (pairs ? 1 : 0);
    for (int h = 0; h < H; ++h)
      for (int j = 0; j < W; ++j) sum[h][j] += (F)key[j] * q[h * C + at];
  }
}

constexpr int MANY = VL == 16 ? 8 : 4;  // rows that share a key while it is in registers

// Calls out(row, first key, products) for all rows and keys, a key's rows in ascending order.
template <bool pairs, int H, int W, class Out>
inline void dot_rows(const uint32_t* keys, const float* q, int C, int row, Out out) {
  for (int s = 0; s < PAGE; s += W * VL) {
    F sum[H][W];
    dot<pairs, H, W>(keys + s, q + int64_t(row) * C, C, sum);
    for (int h = 0; h < H; ++h)
      for (int j = 0; j < W; ++j) out(row + h, s + j * VL, sum[h][j]);
  }
}

template <bool pairs, class Out>
inline void dot_all(const uint32_t* keys, const float* q, int N, int C, Out out) {
  int r = 0;
  for (; r + MANY <= N; r += MANY) dot_rows<pairs, MANY, 2>(keys, q, C, r, out);
  for (; MANY > 4 && r + 4 <= N; r += 4) dot_rows<pairs, 4, 4>(keys, q, C, r, out);
  constexpr int W = VL == 16 ? 4 : 2;
  for (; r + 3 <= N; r += 3) dot_rows<pairs, 3, W>(keys, q, C, r, out);
  for (; r + 2 <= N; r += 2) dot_rows<pairs, 2, W>(keys, q, C, r, out);
  for (; r < N; ++r) dot_rows<pairs, 1, 4>(keys, q, C, r, out);
}

void score(const float* keys, const float* q, const float* w, int I, int C, float* scores) {
  for (int s = 0; s < PAGE; ++s) scores[s] = 0.0f;
  dot_all<false>(reinterpret_cast<const uint32_t*>(keys), q, I, C, [=](int i, int s, F product) {
    V::store(scores + s, V::load(scores + s) + relu(product) * w[i]);
  });
}

// sum + the products of pairs of int16.
inline V::N add_pairs(V::N sum, Words key, uint32_t q) {
  const Words all = q - Words{};
#if defined(__AVX512VNNI__)
  // Around the intrinsic, GCC 12 copies every accumulator to another register and back.
  asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(all), "v"(key));
  return sum;
#elif defined(__AVX512BW__)
  return sum + (V::N)_mm512_madd_epi16((__m512i)key, (__m512i)all);
#elif defined(__AVX2__)
  return sum + (V::N)_mm256_madd_epi16((__m256i)key, (__m256i)all);
#elif defined(__SSE2__)
  return sum + (V::N)_mm_madd_epi16((__m128i)key, (__m128i)all);
#else
  return sum + ((V::N)(key << 16) >> 16) * ((V::N)(all << 16) >> 16) + ((V::N)key >> 16) * ((V::N)all >> 16);
#endif
}

// 2 or, of int8, 4 numbers of a key, as pairs of int16.
template <Format format>
inline void widen(Words key, Words* out) {
  typedef int16_t Shorts __attribute__((vector_size(VL * 4)));
  if constexpr (format == INT16) {
    out[0] = key;
  } else {
    out[0] = (Words)((Shorts)(key << 8) >> 8), out[1] = (Words)((Shorts)key >> 8);
  }
}

template <Format format, int H, int W, bool fetch>
inline void score_heads(const uint32_t* keys, const uint32_t* next, const int16_t* q, const float* w, int C,
                        F (&total)[W]) {
  constexpr int PAIRS = format == INT16 ? 1 : 2;
  V::N sum[H][W] = {};
  for (int u = 0; u < C / (2 * PAIRS); ++u) {
    Words key[W][PAIRS];
    for (int j = 0; j < W; ++j) widen<format>(read<Words>(keys + u * PAGE + j * VL), key[j]);
    for (int j = 0; fetch && j < W * VL; j += 16) __builtin_prefetch(next + u * PAGE + j);
    for (int p = 0; p < PAIRS; ++p)
      for (int h = 0; h < H; ++h) {
        const uint32_t pair = read<uint32_t>(q + h * C + 2 * (PAIRS * u + p));
        for (int j = 0; j < W; ++j) sum[h][j] = add_pairs(sum[h][j], key[j][p], pair);
      }
  }
  for (int h = 0; h < H; ++h)
    for (int j = 0; j < W; ++j) total[j] += relu(__builtin_convertvector(sum[h][j], F)) * w[h];
}

template <Format format>
void score_format(const uint32_t* keys, const uint32_t* next, const int16_t* q, const float* w, int I, int C,
                  const float* units, float* scores) {
  constexpr int W = 2;
  for (int s = 0; s < PAGE; s += W * VL) {
    F total[W] = {};
    int i = 0;
    for (; i + MANY <= I; i += MANY)
      i == 0 ? score_heads<format, MANY, W, true>(keys + s, next + s, q, w, C, total)
             : score_heads<format, MANY, W, false>(keys + s, next + s, q + i * C, w + i, C, total);
    for (; i < I; ++i) score_heads<format, 1, W, false>(keys + s, next + s, q + i * C, w + i, C, total);
    for (int j = 0; j < W; ++j) V::store(scores + s + j * VL, total[j] * V::load(units + s + j * VL));
  }
}

void score_whole(const uint32_t* keys, const uint32_t* next, Format format, const int16_t* q, const float* w, int I,
                 int C, const float* units, float* scores) {
  if (format == INT16) return score_format<INT16>(keys, next, q, w, I, C, units, scores);
  score_format<INT8>(keys, next, q, w, I, C, units, scores);
}

void products(const uint32_t* keys, Format format, const float* q, int N, int C, float* products, int stride) {
  const auto put = [=](int r, int s, F product) { V::store(products + int64_t(r) * stride + s, product); };
  format == FLOAT32 ? dot_all<false>(keys, q, N, C, put) : dot_all<true>(keys, q, N, C, put);
}

// ---------------------------------------------------------------------------------------------------------------------
// Softmax and sums
// ---------------------------------------------------------------------------------------------------------------------

void softmax(float* x, int stride, int n, int N, float* largest) {
  for (int r = 0; r < N; ++r) {
    float* row = x + int64_t(r) * stride;
    const int end = (n + VL - 1) / VL * VL;
    for (int s = n; s < end; ++s) row[s] = -INFINITE;
    F most = V::all(-INFINITE);
    for (int s = 0; s < end; s += VL) most = maximum(most, V::load(row + s));
    float one = most[0];
    for (int j = 1; j < VL; ++j) one = maximum(one, float(most[j]));
    largest[r] = one;
    const F shift = V::all(one == -INFINITE ? 0.0f : one);
    for (int s = 0; s < end; s += VL) V::store(row + s, exponential<VL>(V::load(row + s) - shift));
  }
}

template <Format format, int R, int W>
inline void combine_columns(const uint8_t* const* rows, int n, int D, int d, const float* w, int stride, float* out,
                            float* sums) {
  F sum[R][W] = {};
  float total[R] = {};
  for (int s = 0; s < n; ++s) {
    F row[W];
    for (int j = 0; j < W; ++j) row[j] = load<format>(rows[s], d + j * VL);
    for (int r = 0; r < R; ++r) {
      const float weight = w[r * stride + s];
      total[r] += weight;
      for (int j = 0; j < W; ++j) sum[r][j] += weight * row[j];
    }
  }
  for (int r = 0; r < R; ++r) {
    sums[r] = total[r];
    for (int j = 0; j < W; ++j) V::store(out + r * D + d + j * VL, sum[r][j]);
  }
}

template <Format format, int R>
void combine_rows(const uint8_t* const* rows, int n, int D, const float* w, int stride, float* out, float* sums) {
  int d = 0;
  for (; d + 4 * VL <= D; d += 4 * VL) combine_columns<format, R, 4>(rows, n, D, d, w, stride, out, sums);
  for (; d + VL <= D; d += VL) combine_columns<format, R, 1>(rows, n, D, d, w, stride, out, sums);
  for (int r = 0; r < R; ++r) {
    float total = 0.0f;
    for (int s = 0; s < n && D < VL; ++s) total += w[r * stride + s];
    if (D < VL) sums[r] = total;
    for (int e = d; e < D; ++e) {
      float sum = 0.0f;
      for (int s = 0; s < n; ++s) sum += w[r * stride + s] * load_one<format>(rows[s], e);
      out[r * D + e] = sum;
    }
  }
}

template <Format format>
void combine_format(const uint8_t* const* rows, int n, int D, const float* w, int stride, int N, float* out,
                    float* sums) {
  if (N == 1) combine_rows<format, 1>(rows, n, D, w, stride, out, sums);
  if (N == 2) combine_rows<format, 2>(rows, n, D, w, stride, out, sums);
  if (N == 3) combine_rows<format, 3>(rows, n, D, w, stride, out, sums);
  if (N == 4) combine_rows<format, 4>(rows, n, D, w, stride, out, sums);
}

void combine(const uint8_t* const* rows, Format format, int n, int D, const float* w, int stride, int N, float* out,
             float* sums) {
  if (format == FLOAT32) return combine_format<FLOAT32>(rows, n, D, w, stride, N, out, sums);
  combine_format<BFLOAT16>(rows, n, D, w, stride, N, out, sums);
}

void merge(float* out, float a, const float* x, float b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = out[i] * a + x[i] * b;
}

}  // namespace

#define JOINED(a, b) a##b
#define TABLE(isa) JOINED(paged_kernels_, isa)

extern const PagedKernels TABLE(INAZUMA_ISA) = {
    decode, encode, pack, score, whole, score_whole, products, softmax, combine, merge,
};

}  // namespace inazuma
