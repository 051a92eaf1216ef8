// Scores in whole numbers, roughly right and several times faster, with a bound on how far they are from the float32
// scores: what they rule out need not be scored again.
//
// A row x is u n + r with whole numbers n, |n| <= limit(C), a unit u and a rest r. Products of such rows are exact in
// int32, and relu moves no two numbers apart, so that with norms and heads i
//     |score - rough| <= sum_i |w_i| (|q_i| |r_k| + |r_i| (|k| + |r_k|)) + rounding.
#pragma once

#include <cmath>
#include <limits>

#include "rows.h"

namespace inazuma {

inline int even(int C) { return (C + 1) / 2 * 2; }

// The largest whole number of which C squares fit an int32.
inline int limit(int C) { return int(std::min(32767.0, std::floor(std::sqrt(2147483647.0 / even(C))))); }

struct Rest {
  float unit = 0.0f;
  double norm = 0.0, rest = 0.0;  // |x| and |r|
};

// Writes the whole numbers of x [C], zeros up to an even width.
inline Rest whole_numbers(const float* x, int C, int16_t* out) {
  Rest row;
  float largest = 0.0f;
  double squares = 0.0, rests = 0.0;
  for (int c = 0; c < C; ++c) {
    largest = std::max(largest, std::abs(x[c]));
    squares += double(x[c]) * x[c];
  }
  row.norm = std::sqrt(squares);
  std::fill_n(out, even(C), int16_t(0));
  const float each = float(limit(C)) / largest;
  if (std::isfinite(row.norm) && std::isfinite(each)) {
    row.unit = largest / float(limit(C));
    for (int c = 0; c < C; ++c) out[c] = int16_t(std::lrintf(x[c] * each));
  }
  for (int c = 0; c < C; ++c) {
    const double r = x[c] - double(row.unit) * out[c];
    rests += r * r;
  }
  row.rest = std::sqrt(rests);
  return row;
}

// All keys of a batch row in panels [panel number][C / 2][panel][2], and the largest of their units, norms and rests.
struct RoughKeys {
  std::vector<int16_t> numbers;
  std::vector<float> units;
  Rest most;

  RoughKeys(const InazumaProblem& problem, const InazumaTensor& index_k, int64_t b) {
    const int panel = kernels().panel, C = int(problem.C), width = even(C);
    const int64_t panels = ceil_div(problem.S, panel);
    numbers.resize(panels * panel * width), units.resize(panels * panel);
    std::vector<Rest> mosts(panels);
    parallel(panels, problem.threads, [&](int64_t task) {
      const int n = int(std::min<int64_t>(panel, problem.S - task * panel));
      int16_t* out = numbers.data() + task * panel * width;
      std::vector<int16_t> row(width);
      Tile tile;
      const float* const* keys = tile.read(index_k, b, 0, C, {nullptr, task * panel, n});
      for (int s = 0; s < n; ++s) {
        const Rest key = whole_numbers(keys[s], C, row.data());
        units[task * panel + s] = key.unit;
        for (int c = 0; c < width; ++c) out[(c / 2 * panel + s) * 2 + c % 2] = row[c];
        include(mosts[task], key);
      }
    });
    for (const Rest& one : mosts) include(most, one);
  }

 private:
  static void include(Rest& most, const Rest& one) {
    const auto larger = [](double a, double b) { return a >= b ? a : b == b ? b : INFINITY; };  // NaN: no bound at all
    most.unit = std::max(most.unit, one.unit);
    most.norm = larger(most.norm, one.norm), most.rest = larger(most.rest, one.rest);
  }
};

// One query's heads in whole numbers [I][even(C)], their weights times their units, and its bound.
struct RoughQuery {
  std::vector<int16_t> numbers;
  std::vector<float> weights;
  double slack = INFINITY;  // of every finite score of these keys; infinite where nothing can be promised

  RoughQuery(const float* q, const float* w, int I, int C, const Rest& keys) : numbers(I * even(C)), weights(I) {
    double reach = 0.0, sums = 0.0, rests = 0.0, total = 0.0, most = 0.0;
    for (int i = 0; i < I; ++i) {
      const Rest row = whole_numbers(q + i * C, C, numbers.data() + i * even(C));
      const double size = std::abs(double(w[i]));
      weights[i] = w[i] * row.unit;
      total += size, sums += size * row.unit * 2147483648.0, most = std::max(most, row.norm);
      reach += size * (row.norm + row.rest) * (keys.norm + keys.rest);
      rests += size * (row.norm * keys.rest + row.rest * (keys.norm + keys.rest));
    }
    // Each of some C + 2 I + 8 operations on either side rounds by 2^-24 of at most `reach`, or, where the caller has
    // denormal numbers taken for zero, by the least normal one.
    const double small = 1.0 + total * (1.0 + most + keys.norm) + 2147483648.0 * keys.unit;
    const double rounding = (C + 2 * I + 8) * (reach / (1 << 23) + std::numeric_limits<float>::min() * small);
    // No operation may overflow: a score that is not finite obeys no bound.
    const bool finite = reach < 1e37 && sums < 1e37 && most * keys.norm < 1e37;
    if (finite) slack = 1.001 * (rests + rounding);
  }
};

}  // namespace inazuma
