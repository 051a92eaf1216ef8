// The K best of scores that come in the order of their keys.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels.h"

namespace inazuma {

constexpr float LOWEST = -std::numeric_limits<float>::infinity();

// The best keys of one query so far, in ascending order of the keys.
struct Best {
  std::vector<float> scores;
  std::vector<int32_t> keys;
  int64_t n = 0;
  float threshold = LOWEST;
  bool full = false;   // K keys were found: from now on only scores above the threshold matter
  double slack = 0.0;  // how far the scores may be from those of float32

  // A score that K of the n scores reach, and no more than K + spare unless they equal it. The range of floats that
  // holds it is halved as integers in the same order; with few ties it is found long before one float is left.
  float bound(int64_t K, int64_t spare) const {
    const auto order = [](float x) {
      int32_t bits;
      std::memcpy(&bits, &x, 4);
      return bits < 0 ? int64_t(INT32_MIN) - bits : int64_t(bits);  // -0.0 is 0
    };
    const auto value = [](int64_t ordered) {
      const int32_t bits = int32_t(ordered < 0 ? INT32_MIN - ordered : ordered);
      float x;
      std::memcpy(&x, &bits, 4);
      return x;
    };
    // K scores reach `low`, fewer reach `high`.
    int64_t low = order(threshold), high = order(std::numeric_limits<float>::infinity());
    while (high - low > 1) {
      const int64_t middle = low + (high - low) / 2, reached = kernels().count(scores.data(), n, value(middle));
      (reached >= K ? low : high) = middle;
      if (reached >= K && reached <= K + spare) break;
    }
    return value(low);
  }

  // Cuts to the K best: what is above the bound, and of its equals the lowest keys that fit. Of rough scores, K keys
  // are at least the bound less the slack, and a key that with the slack is still below that is none of the K best.
  void cut(int64_t K) {
    if (n <= K) return;
    full = true;
    if (slack > 0.0) {
      threshold = std::nextafter(float(double(bound(K, K / 8)) - 2.0 * slack), LOWEST);
      n = kernels().keep_best(scores.data(), keys.data(), n, threshold, 0);
      return;
    }
    threshold = bound(K, 0);
    const int64_t above = kernels().count(scores.data(), n, std::nextafter(threshold, -LOWEST));
    n = kernels().keep_best(scores.data(), keys.data(), n, threshold, K - above);
    // The least of them is the K-th best; what only equals it comes too late.
    threshold = *std::min_element(scores.data(), scores.data() + n);
  }

  // Takes n scores of the keys from `key` on; there is room for them.
  void add(const float* x, int count, int32_t key) {
    if (full) {
      n += kernels().above(x, count, key, threshold, scores.data() + n, keys.data() + n);
      return;
    }
    // A score that is not finite is worth less than every finite one, but more than no key.
    kernels().take(x, count, key, scores.data() + n, keys.data() + n);
    n += count;
  }
};

}  // namespace inazuma
