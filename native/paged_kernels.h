// The inner loops over pages as they lie in a pool. `paged_kernels.cpp` is compiled once for every instruction set, and
// the table that fits `kernels()` is used with it.
//
// Every function does for a (query, key) pair, or a (query, column) pair, the same operations in the same order as any
// other that computes the same thing, here or in kernels.h, however many queries or keys it is given: products add up
// along the width, beginning with zero, sums over keys add up along the keys.
#pragma once

#include <cstdint>

namespace inazuma {

enum Format : int32_t { FLOAT32, BFLOAT16, FP8 };  // as Python numbers them

constexpr int PAGE = 64;  // tokens
constexpr int SCALED = 128;  // columns of fp8 that share a scale

// How many numbers a key has when it is packed: the width up to a whole unit of 4 bytes.
inline int packed_width(int C, Format format) {
  return format == FLOAT32 ? C : format == BFLOAT16 ? (C + 1) / 2 * 2 : (C + 3) / 4 * 4;
}

struct PagedKernels {
  // A row of D numbers, the last `plain` of which fp8 leaves in bfloat16, as float32 and back.
  void (*decode)(const uint8_t* row, Format format, int D, int plain, float* out);
  void (*encode)(const float* x, Format format, int D, int plain, uint8_t* row);

  // Lays n <= 64 keys for `score` and `products`, lanes over keys, zeros behind the n-th: float32 as [C][64], bfloat16
  // as pairs [C / 2][64][2]. fp8 of one group and no plain columns becomes pairs too, its scale goes to scales [64]; of
  // four columns, the first and third are a pair and the second and fourth (`arrange` orders queries likewise).
  void (*pack)(const uint8_t* const* rows, int n, Format format, int C, uint32_t* out, float* scales);

  // scores[s] = sum_i w[i] relu(q[i] . k[s]), times scales[s] where they are given; 64 keys. q [I][packed width].
  void (*score)(const uint32_t* keys, Format format, const float* q, const float* w, int I, int C, const float* scales,
                float* scores);

  // products[r * stride + s] = q[r] . k[s] for r < N; 64 keys. No fp8. q [N][packed width].
  void (*products)(const uint32_t* keys, Format format, const float* q, int N, int C, float* products, int stride);

  // For r < N: largest[r] = the largest of x[r * stride + s], and x = exp(x - that), s < n; up to a whole vector of
  // lanes x may be written, as zeros.
  void (*softmax)(float* x, int stride, int n, int N, float* largest);

  // sums[r] = sum_s w[r * stride + s], out[r] = sum_s w[r * stride + s] rows[s], [N][D]; N <= 4, no fp8.
  void (*combine)(const uint8_t* const* rows, Format format, int n, int D, const float* w, int stride, int N,
                  float* out, float* sums);

  // out = a out + b x, n numbers.
  void (*merge)(float* out, float a, const float* x, float b, int64_t n);
};

const PagedKernels& paged_kernels();

}  // namespace inazuma
