// The inner loops of the operators. `kernels.cpp` is compiled once for every instruction set; `kernels()` is the table
// of the best one that this machine runs.
//
// Letters as in inazuma/ops/contract.py. "Rows" are keys or values: an array of pointers, so that gathered and
// contiguous keys are read alike. N is how many query rows are worked on together (the heads of one query, or of
// several), P is N padded for the lanes: `padded(N)`. All arrays are float32 and need no alignment.
#pragma once

#include <cstdint>

namespace inazuma {

struct Kernels {
  // How many keys `score` works on at once.
  int panel;

  // Lays n <= panel keys of width C out for `score`, lanes over keys: out [C][panel], zeros behind the n-th.
  void (*pack)(const float* const* rows, int n, int C, float* out);

  // scores[s] = sum_i w[i] relu(q[i] . k[s]) for a panel's keys; q [I][C]. The order of additions is the same for every
  // key, so that equal keys tie wherever they stand.
  void (*score)(const float* keys, const float* q, const float* w, int I, int C, float* scores);

  // Null but where the machine multiplies pairs of int16: the scores of a panel whose keys and q [I][C] are whole
  // numbers times a unit. C is even, keys are [C / 2][panel][2]; q's units are in w, those of the keys in units.
  void (*score_roughly)(const int16_t* keys, const float* units, const int16_t* q, const float* w, int I, int C,
                        float* scores);

  // Null where that is: the scores of n keys, to the bit those of `score`; q transposed, [C][P], room for products
  // [n][P].
  void (*score_rows)(const float* const* rows, int n, const float* q, int P, const float* w, int I, int C,
                     float* products, float* scores);

  // Appends n scores with the numbers key, key + 1, ...; one that is not finite becomes -inf.
  void (*take)(const float* scores, int n, int32_t key, float* kept, int32_t* kept_keys);

  // Appends those of n scores that are finite and above `threshold`, with the numbers key, key + 1, ... Needs room for
  // `panel` more than it appends; returns how many it appended.
  int (*above)(const float* scores, int n, int32_t key, float threshold, float* kept, int32_t* kept_keys);

  // How many of n scores are >= x.
  int64_t (*count)(const float* scores, int64_t n, float x);

  // Leaves of n scores and their keys, in their order, what is above the threshold and the first `room` that equal it;
  // returns how many. The arrays have space for 16 more.
  int64_t (*keep_best)(float* scores, int32_t* keys, int64_t n, float threshold, int64_t room);

  // Widens n bfloat16 to float32.
  void (*widen)(const uint16_t* in, int64_t n, float* out);

  // products[s][r] = rows[s] . q[r] for r < P; q transposed, [D][P].
  void (*dots)(const float* const* rows, int n, int D, const float* q, int P, float* products);

  // out[r] += sum_s weights[s][r] rows[s] for r < N; weights [n][P], out [N][D].
  void (*combine)(const float* const* rows, int n, int D, const float* weights, int N, int P, float* out);

  // rows[s] += sum_r weights[s][r] q[r]; q [N][D]. No row may be there twice.
  void (*scatter)(float* const* rows, int n, int D, const float* weights, int N, int P, const float* q);

  // largest[r] = max(largest[r], max_s x[s][r]).
  void (*largest)(const float* x, int n, int P, float* largest);

  // x[s][r] = exp(x[s][r] - shift[r]), and, where sums is given, sums[r] += sum_s of it.
  void (*exponentials)(float* x, int n, int P, const float* shift, float* sums);

  // x[s][r] = p[s][r] (x[s][r] - delta[r]).
  void (*softmax_gradient)(float* x, const float* p, int n, int P, const float* delta);

  // out[s] += factor * sum_r x[s][r].
  void (*add_sums)(const float* x, int n, int P, float factor, float* out);

  // The indexer's scores from its products [n][P], which are rectified in place: scores[s] = sum_r w[r] products[s][r].
  void (*index_scores)(float* products, int n, int P, const float* w, float* scores);

  // From g [n] and rectified products: dw[r] += sum_s g[s] products[s][r], then products[s][r] = g[s] w[r] 1[it > 0].
  void (*index_gradient)(float* products, int n, int P, const float* g, const float* w, float* dw);
};

// Widths of query rows that the kernels take: 4, 8, and multiples of 16.
inline int padded(int N) { return N <= 4 ? 4 : N <= 8 ? 8 : (N + 15) / 16 * 16; }

const Kernels& kernels();

// The name of the instruction set in use.
const char* kernels_name();

// Uses the instruction set of that name from now on; false where this machine or this build has none such.
bool use_kernels(const char* name);

}  // namespace inazuma
