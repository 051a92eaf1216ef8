// The inner loops of linear layers and of the small operators between them. `linear_kernels.cpp` is compiled once for
// every instruction set; `linear_kernels()` is the table of the one in use.
//
// Weights lie in panels of PANEL outputs (interface.h), inputs in blocks of a few rows that a panel is multiplied with
// at once. Every sum of products is added up in the same order however many rows a block has, so that what a row gets
// depends on nothing but that row.
#pragma once

#include <cstdint>

#include "interface.h"

namespace inazuma {

constexpr int PANEL = INAZUMA_PANEL;
constexpr int GROUP = INAZUMA_GROUP;

// One panel times one block.
struct Product {
  const uint8_t* panel;
  const float *scales, *bias;  // of the panel's outputs, or null
  int64_t K;                   // inputs, padded
  const void* block;
  int rows;        // of the block
  int outputs;     // of the panel that are wanted
  float* out;      // [rows][outputs], a row every `stride`
  int64_t stride;
};

struct LinearKernels {
  // By kind: how many rows a block has at most.
  int rows[4];

  // By kind: bytes of a block of K inputs (padded).
  int64_t (*block_bytes)(int kind, int64_t K);

  // Lays n rows of `width` inputs out as a block of K: rounded or quantised as the kind wants them, zeros behind them.
  void (*lay_out)(int kind, const float* x, int n, int64_t width, int64_t K, void* block);

  void (*multiply)(int kind, const Product&);

  // One row: x += y where y is given, then out = x / sqrt(mean(x^2) + eps) * weight. out may be x.
  void (*rms_norm)(float* x, const float* y, const float* weight, float eps, int64_t n, float* out);

  // out = silu(x[0..n)) * x[n..2n).
  void (*silu_mul)(const float* x, int64_t n, float* out);

  // Turns the pairs of x [2P]: neighbours where interleaved, else i and i + P; the result lies in halves. Room for 2P.
  void (*rotate)(float* x, const float* cos, const float* sin, int64_t P, bool interleaved, float* room);
};

const LinearKernels& linear_kernels();

}  // namespace inazuma
