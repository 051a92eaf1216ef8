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

// The instruction set in use, and to use another one (0 where this machine or build does not have it).
INAZUMA_API const char* inazuma_kernels(void);
INAZUMA_API int inazuma_use_kernels(const char* name);

#ifdef __cplusplus
}
#endif
