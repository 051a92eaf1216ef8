// The compiler's vector types, as wide as the instruction set that a file is compiled for, and what several files of
// inner loops compute with them. Everything has internal linkage: the linker could otherwise pick a function compiled
// for AVX-512 where a smaller machine calls it.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

namespace inazuma {
namespace {

// L lanes of float32 or int32; a load or store needs no alignment.
template <int L>
struct Lanes {
  typedef float F __attribute__((vector_size(L * 4)));
  typedef int32_t N __attribute__((vector_size(L * 4)));
  typedef float FU __attribute__((vector_size(L * 4), aligned(4), may_alias));
  static inline F load(const float* p) { return *reinterpret_cast<const FU*>(p); }
  static inline void store(float* p, F x) { *reinterpret_cast<FU*>(p) = x; }
  static inline F all(float x) { return x - F{}; }
};

constexpr int VL = LANES;
using V = Lanes<VL>;
using F = V::F;
constexpr float INFINITE = __builtin_inff();

// NaN stays NaN, as in torch.relu: the comparison is false for it.
template <class X>
inline X relu(X x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(X) == 64) return (X)_mm512_max_ps(_mm512_setzero_ps(), (__m512)x);
#endif
  return x < 0.0f ? X{} : x;
}

template <class X>
inline X maximum(X a, X b) {
  return a > b ? a : b;
}

// exp(x), relative error below 2e-7; 0 below -87.3 and for -inf, inf above 88.7. x = n ln 2 + r, and exp(r) by its
// Taylor polynomial of degree 7 on |r| <= ln 2 / 2, where the next term is below 2^-27.
template <int L>
inline typename Lanes<L>::F exponential(typename Lanes<L>::F x) {
  using X = typename Lanes<L>::F;
  using N = typename Lanes<L>::N;
  const X shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the nearest integer is in the low bits
  const X n = shifted - 12582912.0f;
  const X r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  X y = r * (1.0f / 5040) + 1.0f / 720;
  y = y * r + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  const X power = (X)(((N)shifted - 0x4B400000 + 126) << 23);  // 2^(n-1), so that n = 128 has a float too
  y = y * power * 2.0f;
  y = x < -87.3f ? X{} : y;
  return x > 88.7f ? Lanes<L>::all(INFINITE) : x != x ? x : y;
}

}  // namespace
}  // namespace inazuma
