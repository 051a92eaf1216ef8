// What Python calls through ctypes. Letters as in inazuma/ops/contract.py; the callers have checked shapes and indices.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define INAZUMA_API __attribute__((visibility("default")))

// x[b][row][group][...]: strides in elements, the last dimension contiguous. bfloat16 or float32.
typedef struct {
  const void* data;
  int64_t batch, row, group;
  int32_t bfloat16;
} InazumaTensor;

// The keys each query reads: int32 indices [B][T][K] (-1: none), or, where indices is null, first..last [B][T], which
// lie in 0..S-1 (a query that reads none has last < first).
typedef struct {
  int64_t B, T, S, H, G, Dk, Dv, I, C, K;
  const int32_t *indices, *first, *last;
  float scale;
  int32_t threads;
} InazumaProblem;

// Each returns 0, or 1 where memory ran out. Outputs are contiguous, in the dtype of what they are the gradient of.

// indices [B][T][K], ascending, -1 behind them. weights [B][T][I].
INAZUMA_API int inazuma_select(const InazumaProblem*, InazumaTensor index_q, InazumaTensor index_k,
                               const float* weights, int32_t* indices);

// out [B][T][H][Dv] in q's dtype, lse [B][T][H]; sink [H] or null.
INAZUMA_API int inazuma_attention(const InazumaProblem*, InazumaTensor q, InazumaTensor k, InazumaTensor v,
                                  const float* sink, void* out, float* lse);

// delta = rowsum(dout * out) - dlse, [B][T][H]; dout [B][T][H][Dv] in q's dtype.
INAZUMA_API int inazuma_attention_backward(const InazumaProblem*, InazumaTensor q, InazumaTensor k, InazumaTensor v,
                                           InazumaTensor dout, const float* lse, const float* delta, void* dq,
                                           void* dk, void* dv);

// loss: the mean over queries that read a key; the gradients' pointers are null where nobody wants them. dweights is
// float32.
INAZUMA_API int inazuma_index_loss(const InazumaProblem*, InazumaTensor index_q, InazumaTensor index_k,
                                   const float* weights, InazumaTensor q, InazumaTensor k, const float* lse,
                                   float* loss, void* dindex_q, void* dindex_k, float* dweights);

// A linear layer y = x W^T + b whose weights lie in panels of INAZUMA_PANEL outputs, zeros where N or K is not whole.
//   float32   [panel][K][output]
//   bfloat16  [panel][K / 2][output][2]
//   int8      [panel][K / 4][output][4], each weight plus 128; a weight is that whole number times its output's scale
//   int4      [panel][K / INAZUMA_GROUP]: a group's scales [output] and zeros [output] in bfloat16, then
//             [INAZUMA_GROUP / 8][output][4] bytes of two steps: the low half is input i of eight, the high half i + 4.
//             A weight is its step times its scale, plus its zero
// Inputs of int8 and int4 become int8, with a scale for every 4 * INAZUMA_GROUP or INAZUMA_GROUP of a row. A row's
// outputs depend on nothing but that row.
#define INAZUMA_PANEL 32
#define INAZUMA_GROUP 32
enum { INAZUMA_FLOAT32, INAZUMA_BFLOAT16, INAZUMA_INT8, INAZUMA_INT4 };
typedef struct {
  const uint8_t* panels;
  const float* scales;  // int8: of the outputs, as many as the panels have; otherwise null
  const float* bias;    // likewise, or null
  int64_t N, K;
  int32_t kind;
} InazumaLinear;

// x [rows][K], out [rows][N].
INAZUMA_API int inazuma_linear(const InazumaLinear*, const float* x, int64_t rows, float* out, int32_t threads);

// x [rows][width] += y where y is given; out = x / sqrt(mean(x^2) + eps) * weight.
INAZUMA_API int inazuma_rms_norm(float* x, const float* y, const float* weight, float eps, int64_t rows, int64_t width,
                                 float* out, int32_t threads);

// x [rows][2][width], out [rows][width] = silu(x[0]) * x[1].
INAZUMA_API int inazuma_silu_mul(const float* x, int64_t rows, int64_t width, float* out, int32_t threads);

// Turns pairs of x[row][head][0..2P) by the angles at the row's position, in place: neighbours where interleaved, else
// i and i + P; the result lies in halves. Positions are int64 where wide, else int32; cos and sin [S][P]. 2: a position
// is not in 0..S-1, and nothing was done.
INAZUMA_API int inazuma_rotate(float* x, int64_t rows, int64_t row_stride, int64_t heads, int64_t head_stride,
                               const void* positions, int32_t wide, const float* cos, const float* sin, int64_t S,
                               int64_t P, int32_t interleaved, int32_t threads);

// A pool of pages (inazuma/ops/paged.py): `heads` rows of `head_bytes` to a token; where by_column, of one head, a page is
// [head_bytes / 4][tokens][4]. format: 0 float32, 1 bfloat16, 2 fp8; of pools by column 0,
// 3 int16 or 4 int8.
typedef struct {
  void* data;
  int64_t pages, head_bytes;
  int32_t heads, width, plain, format, by_column;
} InazumaPool;

// N queries of the sequences row [N], whose pages are rows of tables [B][P], at the positions last [N].
typedef struct {
  int64_t N, B, P;
  const int32_t *tables, *row, *last;
  int32_t threads;
} InazumaQueries;

// What the functions on pools return: 0, 1 where memory ran out, or what does not fit the pools.
enum { INAZUMA_BAD_SLOT = 2, INAZUMA_BAD_ROW, INAZUMA_BAD_LAST, INAZUMA_BAD_PAGE, INAZUMA_BAD_INDEX };

// x [N][heads][width] into slots [N].
INAZUMA_API int inazuma_paged_write(const InazumaPool*, const int64_t* slots, const float* x, int64_t N,
                                    int32_t threads);

// indices [N][K], ascending, -1 behind them. q [N][I][C], weights [N][I]; a pool by_column.
INAZUMA_API int inazuma_paged_select(const InazumaQueries*, const InazumaPool*, const float* q, const float* weights,
                                     int64_t I, int64_t K, int32_t* indices);

// out [N][H][Dv]; q [N][H][D]; pools by row. values may be null: the keys' first Dv columns. indices [N][K] or null: every position.
INAZUMA_API int inazuma_paged_attend(const InazumaQueries*, const InazumaPool* keys, const InazumaPool* values,
                                     const float* q, int64_t H, int64_t Dv, float scale, const int32_t* indices,
                                     int64_t K, float* out);

// What is above, numbered: whoever changes a structure or what a function takes counts up here and in
// inazuma/ops/cpu/library.py, so that a library built from other sources is not called.
#define INAZUMA_INTERFACE 2
INAZUMA_API int inazuma_interface(void);

// The instruction set in use, and to use another one (0 where this machine or build does not have it).
INAZUMA_API const char* inazuma_kernels(void);
INAZUMA_API int inazuma_use_kernels(const char* name);

#ifdef __cplusplus
}
#endif
