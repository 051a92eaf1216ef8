// The inner loops of linear.h, compiled once for every instruction set, which INAZUMA_ISA names. Everything here but
// the table has internal linkage (see lanes.h).
#include "linear.h"

#include "lanes.h"

namespace inazuma {
namespace {

using N = V::N;
typedef uint32_t U __attribute__((vector_size(VL * 4)));
typedef uint32_t UU __attribute__((vector_size(VL * 4), aligned(1), may_alias));
typedef uint16_t Half __attribute__((vector_size(VL * 2)));
typedef uint16_t HalfU __attribute__((vector_size(VL * 2), aligned(1), may_alias));
typedef uint32_t Word __attribute__((aligned(1), may_alias));

constexpr int VECTORS = PANEL / VL;
enum Kind { FLOAT32, BFLOAT16, INT8, INT4 };

inline U load(const uint8_t* p) { return *reinterpret_cast<const UU*>(p); }
inline U all(uint32_t x) { return x - U{}; }
inline uint32_t word(const void* p) { return *static_cast<const Word*>(p); }
inline F widen(const uint8_t* p) {
  return (F)(__builtin_convertvector(*reinterpret_cast<const HalfU*>(p), U) << 16);
}

// a * b + c, rounded once where the machine can: said outright, because what the compiler fuses by itself it may fuse in
// the code for one number of rows and not in that for another.
inline F fused(F a, F b, F c) {
#if defined(__AVX512F__)
  return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (F)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

// Inputs as they lie in a block: K / STEP groups of STEP for each row.
#if defined(__AVX512VNNI__)
using Whole = int8_t;
#elif defined(__SSE2__)
using Whole = int16_t;  // inputs 0, 2, 1, 3 of each four
#else
using Whole = int32_t;
#endif
#if defined(__AVX512BF16__)
using Brain = uint16_t;
#else
using Brain = float;
#endif

// How many rows leave the sums, and what they are made of, in the registers.
constexpr int ROWS[] = {VL == 16 ? 12 : 6, VL == 16 ? 12 : 4, VL == 16 ? 12 : 4, VL == 16 ? 6 : 2};

// The number of rows that a block of n is laid out for: one that there is code for.
inline int fit(int n) { return n <= 4 ? n : n <= 6 ? 6 : n <= 8 ? 8 : 12; }

constexpr int64_t round64(int64_t n) { return (n + 63) / 64 * 64; }

// Inputs that share a scale, and their integer sums an addition in float32.
constexpr int shared(int kind) { return kind == INT4 ? GROUP : 4 * GROUP; }

// A block of whole numbers begins with the groups' scales, [group][row], and behind them the groups' sums.
inline int64_t sums_bytes(int kind, int64_t K) { return (K + shared(kind) - 1) / shared(kind) * ROWS[kind] * 4; }

inline int64_t head_bytes(int kind, int64_t K) {
  return kind == INT8 || kind == INT4 ? round64(2 * sums_bytes(kind, K)) : 0;
}

int64_t block_bytes(int kind, int64_t K) {
  const int64_t item = kind == FLOAT32 ? 4 : kind == BFLOAT16 ? sizeof(Brain) : sizeof(Whole);
  return head_bytes(kind, K) + round64(K * ROWS[kind] * item);
}

// ---------------------------------------------------------------------------------------------------------------------
// Inputs
// ---------------------------------------------------------------------------------------------------------------------

// VL inputs from k on; zeros behind the last.
inline F load_inputs(const float* x, int64_t k, int64_t width) {
  if (k + VL <= width) return V::load(x + k);
  float some[VL] = {};
  for (int64_t i = k; i < width; ++i) some[i - k] = x[i];
  return V::load(some);
}

// The nearest integers, ties to even.
inline N nearest(F x) {
#if defined(__AVX512F__)
  return (N)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
  return (N)_mm256_cvtps_epi32((__m256)x);
#elif defined(__SSE2__)
  return (N)_mm_cvtps_epi32((__m128)x);
#elif defined(__aarch64__)
  return (N)vcvtnq_s32_f32((float32x4_t)x);
#else
  return (N)(x + 12582912.0f) - 0x4B400000;
#endif
}

// Puts VL whole numbers, of row r from input k on, into a block of R rows.
inline void place(N q, int64_t k, int64_t K, int R, int r, Whole* block) {
  const int fours = int(K - k < VL ? (K - k) / 4 : VL / 4);
  Whole* at = block + (k * R + 4 * r);
#if defined(__AVX512VNNI__)
  typedef int32_t Four __attribute__((vector_size(16)));
  const Four bytes = (Four)_mm512_cvtepi32_epi8((__m512i)q);
  if (fours == 4) {
    for (int i = 0; i < 4; ++i) *reinterpret_cast<Word*>(at + 4 * i * R) = bytes[i];
  } else {
    for (int i = 0; i < fours; ++i) *reinterpret_cast<Word*>(at + 4 * i * R) = bytes[i];
  }
#elif defined(__SSE2__)
  for (int i = 0; i < fours; ++i, at += 4 * R)
    at[0] = q[4 * i], at[1] = q[4 * i + 2], at[2] = q[4 * i + 1], at[3] = q[4 * i + 3];
#else
  for (int i = 0; i < fours; ++i, at += 4 * R)
    for (int j = 0; j < 4; ++j) at[j] = q[4 * i + j];
#endif
}

inline int32_t add_lanes(N x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)x);
#else
  int32_t total = 0;
  for (int j = 0; j < VL; ++j) total += x[j];
  return total;
#endif
}

inline int32_t largest_lane(N x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epi32((__m512i)x);
#else
  int32_t most = x[0];
  for (int j = 1; j < VL; ++j) most = x[j] > most ? x[j] : most;
  return most;
#endif
}

// Inputs in int8, -127 to 127: each group of a row has a scale, its largest magnitude by 127. One with a number that is
// not finite has the scale NaN, and so will be the row's outputs.
template <int KIND>
void quantize(const float* x, int n, int64_t width, int64_t K, char* block) {
  const int R = fit(n);
  float* scales = reinterpret_cast<float*>(block);
  char* sums = block + sums_bytes(KIND, K);
  Whole* items = reinterpret_cast<Whole*>(block + head_bytes(KIND, K));
  for (int r = 0; r < R; ++r, x += width)
    for (int64_t start = 0, g = r; start < K; start += shared(KIND), g += R) {
      const int64_t end = start + shared(KIND) < K ? start + shared(KIND) : K;
      N most = {};
      for (int64_t k = start; r < n && k < end; k += VL) {
        const N bits = (N)load_inputs(x, k, width) & 0x7FFFFFFF;  // as integers, magnitudes have the same order
        most = bits > most ? bits : most;
      }
      const int32_t bits = largest_lane(most);
      float largest;
      __builtin_memcpy(&largest, &bits, 4);
      const bool finite = bits < 0x7F800000;
      largest = largest < 1e-35f ? 1e-35f : largest;  // so that 127 / largest is finite
      scales[g] = finite ? largest / 127.0f : __builtin_nanf("");
      const F inverse = V::all(127.0f / largest);
      N total = {};
      for (int64_t k = start; k < end; k += VL) {
        const N q = r < n && finite ? nearest(load_inputs(x, k, width) * inverse) : N{};
        place(q, k, K, R, r, items);
        total += q;
      }
      const int32_t sum = add_lanes(total);
      if (KIND == INT8) reinterpret_cast<uint32_t*>(sums)[g] = 128u * uint32_t(sum);
      if (KIND == INT4) reinterpret_cast<float*>(sums)[g] = float(sum) * scales[g];
    }
}

// float32 to the nearest bfloat16, ties to even, NaN staying NaN; the low 16 bits are left empty.
inline U round_bfloat16(F x) {
  const U bits = (U)x, rounded = bits + 0x7FFF + ((bits >> 16) & 1);
  return (x == x ? rounded : bits | 0x400000) & 0xFFFF0000;
}

void lay_out_bfloat16(const float* x, int n, int64_t width, int64_t K, char* block) {
  const int R = fit(n);
  Brain* items = reinterpret_cast<Brain*>(block + head_bytes(BFLOAT16, K));
  for (int r = 0; r < R; ++r, x += width)
    for (int64_t k = 0; k < K; k += VL) {
      const U bits = r < n ? round_bfloat16(load_inputs(x, k, width)) : U{};
      const int pairs = int(K - k < VL ? (K - k) / 2 : VL / 2);
      Brain* at = items + (k * R + 2 * r);
#if defined(__AVX512BF16__)
      typedef uint32_t Pairs __attribute__((vector_size(VL * 2)));
      const Pairs packed = (Pairs)__builtin_convertvector(bits >> 16, Half);
      for (int i = 0; i < pairs; ++i, at += 2 * R) *reinterpret_cast<Word*>(at) = packed[i];
#else
      const F wide = (F)bits;
      for (int i = 0; i < pairs; ++i, at += 2 * R) at[0] = wide[2 * i], at[1] = wide[2 * i + 1];
#endif
    }
}

void lay_out_float32(const float* x, int n, int64_t width, int64_t K, char* block) {
  const int R = fit(n);
  float* items = reinterpret_cast<float*>(block + head_bytes(FLOAT32, K));
  for (int r = 0; r < R; ++r, x += width)
    for (int64_t k = 0; k < K; ++k) items[k * R + r] = r < n ? x[k] : 0.0f;
}

void lay_out(int kind, const float* x, int n, int64_t width, int64_t K, void* block) {
  char* at = static_cast<char*>(block);
  if (kind == FLOAT32) return lay_out_float32(x, n, width, K, at);
  if (kind == BFLOAT16) return lay_out_bfloat16(x, n, width, K, at);
  kind == INT8 ? quantize<INT8>(x, n, width, K, at) : quantize<INT4>(x, n, width, K, at);
}

// ---------------------------------------------------------------------------------------------------------------------
// Products: R rows by J vectors of outputs. `w` is the panel from the first of these vectors on.
// ---------------------------------------------------------------------------------------------------------------------

// sum[r][j] += four inputs of row r times their unsigned weights, which are a byte each in a lane of w[j].
template <int R, int J>
inline void add_fours(const U (&w)[J], const Whole* x, U (&sum)[R][J]) {
#if defined(__AVX512VNNI__)
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const U four = all(word(x + 4 * r));
    // Around the intrinsic, GCC 12 copies every accumulator to another register and back.
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) asm("vpdpbusd %2, %1, %0" : "+v"(sum[r][j]) : "v"(w[j]), "v"(four));
  }
#elif defined(__SSE2__)
  const auto dots = [](U a, U b) {
#if defined(__AVX512F__)
    return (U)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (U)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    return (U)_mm_madd_epi16((__m128i)a, (__m128i)b);
#endif
  };
  U even[J], odd[J];
#pragma GCC unroll 16
  for (int j = 0; j < J; ++j) even[j] = w[j] & 0x00FF00FF, odd[j] = (w[j] >> 8) & 0x00FF00FF;
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const U first = all(word(x + 4 * r)), second = all(word(x + 4 * r + 2));
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) sum[r][j] += dots(even[j], first) + dots(odd[j], second);
  }
#else
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) {
      const U byte = (w[j] >> (8 * i)) & 0xFF;
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sum[r][j] += byte * uint32_t(x[4 * r + i]);
    }
#endif
}

template <int R, int J>
inline void float32_sums(const uint8_t* w, const Product& product, F (&sum)[R][J]) {
  const float* x = reinterpret_cast<const float*>(static_cast<const char*>(product.block) + head_bytes(FLOAT32, product.K));
  for (int64_t k = 0; k < product.K; ++k, w += 4 * PANEL, x += R) {
    F weight[J];
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) weight[j] = (F)load(w + j * VL * 4);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int j = 0; j < J; ++j) sum[r][j] = fused(weight[j], V::all(x[r]), sum[r][j]);
  }
}

template <int R, int J>
inline void bfloat16_sums(const uint8_t* w, const Product& product, F (&sum)[R][J]) {
  const Brain* x = reinterpret_cast<const Brain*>(static_cast<const char*>(product.block) + head_bytes(BFLOAT16, product.K));
  for (int64_t k = 0; k < product.K; k += 2, w += 4 * PANEL, x += 2 * R) {
    U pair[J];
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) pair[j] = load(w + j * VL * 4);
#if defined(__AVX512BF16__)
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const U inputs = all(word(x + 2 * r));
#pragma GCC unroll 16
      for (int j = 0; j < J; ++j) asm("vdpbf16ps %2, %1, %0" : "+v"(sum[r][j]) : "v"(pair[j]), "v"(inputs));
    }
#else
    F even[J], odd[J];
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) even[j] = (F)(pair[j] << 16), odd[j] = (F)(pair[j] & 0xFFFF0000);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int j = 0; j < J; ++j) {
        sum[r][j] = fused(even[j], V::all(x[2 * r]), sum[r][j]);
        sum[r][j] = fused(odd[j], V::all(x[2 * r + 1]), sum[r][j]);
      }
#endif
  }
}

// Integers are exact in any order; a group's become float32 and are added group after group. A weight w is there as
// w + 128, so 128 times the inputs' sum is too much.
template <int R, int J>
inline void int8_sums(const uint8_t* w, const Product& product, int from, F (&sum)[R][J]) {
  const char* block = static_cast<const char*>(product.block);
  const float* scales = reinterpret_cast<const float*>(block);
  const uint32_t* surplus = reinterpret_cast<const uint32_t*>(block + sums_bytes(INT8, product.K));
  const Whole* x = reinterpret_cast<const Whole*>(block + head_bytes(INT8, product.K));
  for (int64_t start = 0; start < product.K; start += shared(INT8), scales += R, surplus += R) {
    const int64_t end = start + shared(INT8) < product.K ? start + shared(INT8) : product.K;
    U whole[R][J] = {};
    for (int64_t k = start; k < end; k += 4, w += 4 * PANEL, x += 4 * R) {
      U weight[J];
#pragma GCC unroll 16
      for (int j = 0; j < J; ++j) weight[j] = load(w + j * VL * 4);
      add_fours<R, J>(weight, x, whole);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int j = 0; j < J; ++j)
        sum[r][j] = fused(__builtin_convertvector((N)(whole[r][j] - surplus[r]), F), V::all(scales[r]), sum[r][j]);
  }
#pragma GCC unroll 16
  for (int j = 0; j < J; ++j) {
    const F scale = V::load(product.scales + from + j * VL);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r][j] = sum[r][j] * scale;
  }
}

// A weight is step * scale + zero.
template <int R, int J>
inline void int4_sums(const Product& product, int from, F (&sum)[R][J]) {
  const char* block = static_cast<const char*>(product.block);
  const float* inputs = reinterpret_cast<const float*>(block);
  const float* totals = reinterpret_cast<const float*>(block + sums_bytes(INT4, product.K));
  const Whole* x = reinterpret_cast<const Whole*>(block + head_bytes(INT4, product.K));
  const uint8_t* w = product.panel;
  for (int64_t g = 0; g < product.K / GROUP; ++g, inputs += R, totals += R) {
    const uint8_t* scales = w + 2 * from;
    w += 4 * PANEL;  // scales and zeros, two bytes each
    U whole[R][J] = {};
    for (int k = 0; k < GROUP; k += 8, w += 4 * PANEL, x += 8 * R) {
      U steps[J];
#pragma GCC unroll 16
      for (int j = 0; j < J; ++j) steps[j] = load(w + 4 * from + j * VL * 4) & 0x0F0F0F0F;
      add_fours<R, J>(steps, x, whole);
#pragma GCC unroll 16
      for (int j = 0; j < J; ++j) steps[j] = (load(w + 4 * from + j * VL * 4) >> 4) & 0x0F0F0F0F;
      add_fours<R, J>(steps, x + 4 * R, whole);
    }
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) {
      const F scale = widen(scales + j * VL * 2), zero = widen(scales + 2 * PANEL + j * VL * 2);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        sum[r][j] = fused(__builtin_convertvector((N)whole[r][j], F) * scale, V::all(inputs[r]), sum[r][j]);
        sum[r][j] = fused(zero, V::all(totals[r]), sum[r][j]);
      }
    }
  }
}

template <int KIND, int R, int J>
inline void multiply_vectors(const Product& product, int from) {
  const uint8_t* w = product.panel + 4 * from;
  F sum[R][J] = {};
  if constexpr (KIND == FLOAT32) float32_sums<R, J>(w, product, sum);
  if constexpr (KIND == BFLOAT16) bfloat16_sums<R, J>(w, product, sum);
  if constexpr (KIND == INT8) int8_sums<R, J>(w, product, from, sum);
  if constexpr (KIND == INT4) int4_sums<R, J>(product, from, sum);
#pragma GCC unroll 16
  for (int j = 0; j < J; ++j) {
    const int n = from + j * VL;
    const F bias = product.bias ? V::load(product.bias + n) : F{};
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      if (r >= product.rows) break;
      const F y = sum[r][j] + bias;
      float* out = product.out + r * product.stride + n;
      if (n + VL <= product.outputs) {
        V::store(out, y);
      } else {
        float some[VL];
        V::store(some, y);
        for (int i = 0; i < product.outputs - n; ++i) out[i] = some[i];
      }
    }
  }
}

template <int KIND, int R>
void multiply_rows(const Product& product) {
  if constexpr (R <= ROWS[KIND]) {
    constexpr int J = R == 1 ? VECTORS : 2;  // one row reads the panel from beginning to end
    for (int from = 0; from < PANEL; from += J * VL) multiply_vectors<KIND, R, J>(product, from);
  }
}

template <int KIND>
void multiply_kind(const Product& product) {
  switch (fit(product.rows)) {
    case 1: return multiply_rows<KIND, 1>(product);
    case 2: return multiply_rows<KIND, 2>(product);
    case 3: return multiply_rows<KIND, 3>(product);
    case 4: return multiply_rows<KIND, 4>(product);
    case 6: return multiply_rows<KIND, 6>(product);
    case 8: return multiply_rows<KIND, 8>(product);
    default: return multiply_rows<KIND, 12>(product);
  }
}

void multiply(int kind, const Product& product) {
  switch (kind) {
    case FLOAT32: return multiply_kind<FLOAT32>(product);
    case BFLOAT16: return multiply_kind<BFLOAT16>(product);
    case INT8: return multiply_kind<INT8>(product);
    default: return multiply_kind<INT4>(product);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Between linear layers, one row at a time
// ---------------------------------------------------------------------------------------------------------------------

void rms_norm(float* x, const float* y, const float* weight, float eps, int64_t n, float* out) {
  F sum[4] = {};
  for (int64_t i = 0; y && i < n; ++i) x[i] += y[i];
  int64_t i = 0;
  for (; i + 4 * VL <= n; i += 4 * VL)
    for (int j = 0; j < 4; ++j) sum[j] += V::load(x + i + j * VL) * V::load(x + i + j * VL);
  const F lanes = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  float total = 0.0f;
  for (int j = 0; j < VL; ++j) total += lanes[j];
  for (; i < n; ++i) total += x[i] * x[i];
  const float inverse = 1.0f / __builtin_sqrtf(total / float(n) + eps);
  for (i = 0; i < n; ++i) out[i] = x[i] * inverse * weight[i];
}

inline F silu_mul_lanes(F gate, F up) { return gate / (exponential<VL>(-gate) + 1.0f) * up; }

void silu_mul(const float* x, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + VL <= n; i += VL) V::store(out + i, silu_mul_lanes(V::load(x + i), V::load(x + n + i)));
  if (i == n) return;
  float some[VL];
  V::store(some, silu_mul_lanes(load_inputs(x, i, n), load_inputs(x + n, i, n)));
  for (int j = 0; i + j < n; ++j) out[i + j] = some[j];
}

void rotate(float* x, const float* cos, const float* sin, int64_t P, bool interleaved, float* room) {
  const int64_t next = interleaved ? 2 : 1, other = interleaved ? 1 : P;
  __builtin_memcpy(room, x, 2 * P * sizeof(float));
  for (int64_t i = 0; i < P; ++i) {
    const float a = room[next * i], b = room[next * i + other];
    x[i] = a * cos[i] - b * sin[i];
    x[P + i] = b * cos[i] + a * sin[i];
  }
}

}  // namespace

#define JOINED(a, b) a##b
#define TABLE(isa) JOINED(linear_, isa)

extern const LinearKernels TABLE(INAZUMA_ISA) = {
    {ROWS[0], ROWS[1], ROWS[2], ROWS[3]}, block_bytes, lay_out, multiply, rms_norm, silu_mul, rotate};

}  // namespace inazuma
