// Linear layers with packed weights, and the small operators between them: how the work is divided.
//
// The rows of inputs are laid out in blocks, some blocks at a time, so that they stay in the cache; then every panel of
// weights is multiplied with all of them. For a few rows that reads the weights once, from beginning to end.
#include "linear.h"

#include <algorithm>
#include <memory>

#include "rows.h"

namespace inazuma {
namespace {

constexpr int64_t CACHE = 512 << 10;  // bytes of inputs at a time
constexpr int64_t SHORT = 48 << 10;   // bytes of weights and inputs for which another thread is not worth waking
constexpr int TASKS = 8;              // to a thread: who is late leaves the rest to the others
constexpr int64_t NUMBERS = 32768;    // of a small operator, to a task

int64_t inputs_padded(int kind, int64_t K) {
  const int64_t step = kind == INAZUMA_FLOAT32 ? 1 : kind == INAZUMA_BFLOAT16 ? 2 : kind == INAZUMA_INT8 ? 4 : GROUP;
  return ceil_div(K, step) * step;
}

int64_t panel_bytes(int kind, int64_t K) {
  if (kind == INAZUMA_INT4) return K / GROUP * (GROUP / 2 + 4) * PANEL;
  return K * PANEL * (kind == INAZUMA_FLOAT32 ? 4 : kind == INAZUMA_BFLOAT16 ? 2 : 1);
}

// The caller's room for blocks, which lasts as long as its thread.
char* room(int64_t bytes) {
  thread_local std::unique_ptr<char[]> memory;
  thread_local int64_t size = 0;
  if (size < bytes) {
    memory.reset();
    size = 0;
    memory.reset(new char[bytes + 64]);
    size = bytes;
  }
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory.get()) + 63) / 64 * 64);
}

void linear(const InazumaLinear& layer, const float* x, int64_t rows, float* out, int threads) {
  const LinearKernels& kernel = linear_kernels();
  const int kind = layer.kind, R = kernel.rows[kind];
  const int64_t K = inputs_padded(kind, layer.K), panels = ceil_div(layer.N, PANEL), bytes = panel_bytes(kind, K);
  const int64_t block = kernel.block_bytes(kind, K);
  const int64_t most = std::min(std::max<int64_t>(CACHE / block, 1), ceil_div(rows, R));  // blocks at a time
  char* blocks = room(most * block);
  for (int64_t start = 0; start < rows; start += most * R) {
    const int64_t end = std::min(rows, start + most * R), count = ceil_div(end - start, R);
    const auto rows_of = [&](int64_t i) { return int(std::min<int64_t>(R, end - start - i * R)); };
    parallel(count, count * block < SHORT ? 1 : threads, [&](int64_t i) {
      kernel.lay_out(kind, x + (start + i * R) * layer.K, rows_of(i), layer.K, K, blocks + i * block);
    });
    const int workers = panels * bytes * count < SHORT ? 1 : threads;
    const int64_t tasks = std::min<int64_t>(panels, workers * TASKS);
    parallel(tasks, workers, [&](int64_t task) {
      for (int64_t p = task * panels / tasks; p < (task + 1) * panels / tasks; ++p) {
        const int64_t n = p * PANEL;
        Product product{layer.panels + p * bytes, layer.scales ? layer.scales + n : nullptr,
                  layer.bias ? layer.bias + n : nullptr, K, nullptr, 0,
                  int(std::min<int64_t>(PANEL, layer.N - n)), nullptr, layer.N};
        for (int64_t i = 0; i < count; ++i) {
          product.block = blocks + i * block;
          product.rows = rows_of(i);
          product.out = out + (start + i * R) * layer.N + n;
          kernel.multiply(kind, product);
        }
      }
    });
  }
}

// Calls body(row) for all rows, on one thread where they are few.
template <class Body>
void each_row(int64_t rows, int64_t numbers, int threads, Body body) {
  const int64_t step = std::max<int64_t>(1, NUMBERS / std::max<int64_t>(1, numbers));
  parallel(ceil_div(rows, step), threads, [&](int64_t task) {
    for (int64_t row = task * step; row < std::min(rows, (task + 1) * step); ++row) body(row);
  });
}

}  // namespace
}  // namespace inazuma

int inazuma_linear(const InazumaLinear* layer, const float* x, int64_t rows, float* out, int32_t threads) {
  try {
    inazuma::linear(*layer, x, rows, out, threads);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

int inazuma_rms_norm(float* x, const float* y, const float* weight, float eps, int64_t rows, int64_t width, float* out,
                     int32_t threads) {
  const auto& kernel = inazuma::linear_kernels();
  inazuma::each_row(rows, width, threads, [&](int64_t row) {
    kernel.rms_norm(x + row * width, y ? y + row * width : nullptr, weight, eps, width, out + row * width);
  });
  return 0;
}

int inazuma_silu_mul(const float* x, int64_t rows, int64_t width, float* out, int32_t threads) {
  const auto& kernel = inazuma::linear_kernels();
  inazuma::each_row(rows, 2 * width, threads,
                    [&](int64_t row) { kernel.silu_mul(x + row * 2 * width, width, out + row * width); });
  return 0;
}

int inazuma_rotate(float* x, int64_t rows, int64_t row_stride, int64_t heads, int64_t head_stride, const void* positions,
                   int32_t wide, const float* cos, const float* sin, int64_t S, int64_t P, int32_t interleaved,
                   int32_t threads) {
  const auto position = [&](int64_t row) -> int64_t {
    return wide ? static_cast<const int64_t*>(positions)[row] : static_cast<const int32_t*>(positions)[row];
  };
  for (int64_t row = 0; row < rows; ++row)
    if (position(row) < 0 || position(row) >= S) return 2;
  try {
    const auto& kernel = inazuma::linear_kernels();
    inazuma::each_row(rows, heads * 2 * P, threads, [&](int64_t row) {
      thread_local std::vector<float> room;
      if (int64_t(room.size()) < 2 * P) room.resize(2 * P);
      for (int64_t h = 0; h < heads; ++h)
        kernel.rotate(x + row * row_stride + h * head_stride, cos + position(row) * P, sin + position(row) * P, P,
                      interleaved, room.data());
    });
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
