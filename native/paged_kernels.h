// The inner loops over pages as they lie in a pool. `paged_kernels.cpp` is compiled once for every instruction set, and
// the table that fits `kernels()` is used with it.
//
// Every function does for a (query, key) pair, or a (query, column) pair, the same operations in the same order as any
// other that computes the same thing, here or in kernels.h, however many queries or keys it is given: products add up
// along the width, beginning with zero, sums over keys add up along the keys.
#pragma once

#include <cstdint>

namespace inazuma {

enum Format : int32_t { FLOAT32, BFLOAT16, FP8, INT16, INT8 };  // as Python numbers them

constexpr int PAGE = 64;  // tokens
constexpr int SCALED = 128;  // columns of fp8 that share a scale

// How many numbers a key has when it is packed: the width up to a whole unit of 4 bytes.
inline int packed_width(int C, Format format) {
  if (format == FLOAT32) return C;
  return format == INT8 ? (C + 3) / 4 * 4 : (C + 1) / 2 * 2;
}

// The largest whole number of keys of width C, and of the queries that meet them: C products fit an int32.
inline int largest_key(int C, Format format) {
  return format == INT8 ? 127 : int(__builtin_sqrt(2147483647.0 / packed_width(C, format)));
}
inline int largest_query(int C, Format format) {
  const int64_t most = 2147483647 / (int64_t(packed_width(C, format)) * largest_key(C, format));
  return int(most < 32767 ? most : 32767);
}

struct PagedKernels {
  // A row of D numbers, the last `plain` of which fp8 leaves in bfloat16, as float32 (no whole numbers) and back.
  void (*decode)(const uint8_t* row, Format format, int D, int plain, float* out);
  void (*encode)(const float* x, Format format, int D, int plain, uint8_t* row);

  // Lays n <= 64 keys of float32 or bfloat16 for `products`, lanes over keys, zeros behind the n-th: as [C][64], or as
  // pairs [C / 2][64][2].
  void (*pack)(const uint8_t* const* rows, int n, Format format, int C, uint32_t* out);

  // scores[s] = sum_i w[i] relu(q[i] . k[s]); 64 keys of float32. q [I][C].
  void (*score)(const float* keys, const float* q, const float* w, int I, int C, float* scores);

  // The whole numbers of x [C] up to `most` in size; returns their unit, 0 where x is as good as zero, NaN where it is not
  // finite.
  float (*whole)(const float* x, int C, float most, int16_t* out);

  // scores[s] = units[s] sum_i w[i] relu(q[i] . k[s]) of whole numbers, the units of q multiplied into w. 64 keys as they
  // lie: int16 as pairs [C / 2][64][2], q [I][C]; int8 [C / 4][64][4], and q has of four columns the second and third
  // exchanged. Meanwhile the keys at `next` come nearer. C is the packed width.
  void (*score_whole)(const uint32_t* keys, const uint32_t* next, Format format, const int16_t* q, const float* w, int I,
                      int C, const float* units, float* scores);

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
