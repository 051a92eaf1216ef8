// The C++ engine without Python: every function of native/interface.h on random inputs, beside plain loops in double.
//
// Built with nothing but interface.h and the library, so that it runs where no PyTorch is: `make arm` cross-compiles
// both and runs them in an emulator. Prints one line and exits with 0, or says what is wrong and exits with 1.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "interface.h"

namespace {

using Reals = std::vector<double>;
constexpr double LOWEST = -std::numeric_limits<double>::infinity();

int checks = 0, failures = 0;
std::string where;

void expect(bool right, const std::string& what, double actual = 0.0, double wanted = 0.0) {
  ++checks;
  if (right || ++failures > 20) return;
  std::printf("%s: %s: %.9g instead of %.9g\n", where.c_str(), what.c_str(), actual, wanted);
}

// A contiguous tensor [B][rows][groups][width] whose elements, rounded to its dtype, are also there in double.
struct Tensor {
  int64_t B, rows, groups, width;
  bool bfloat16;
  std::vector<float> floats;
  std::vector<uint16_t> halves;
  Reals exact;

  Tensor(int64_t b, int64_t r, int64_t g, int64_t w, bool half)
      : B(b), rows(r), groups(g), width(w), bfloat16(half), floats(b * r * g * w), halves(half ? b * r * g * w : 0),
        exact(b * r * g * w) {}

  template <class Draw>
  Tensor& fill(Draw draw) {
    for (size_t i = 0; i < floats.size(); ++i) {
      floats[i] = draw();
      if (bfloat16) {  // cut off: what is left is exact in both
        uint32_t bits;
        std::memcpy(&bits, &floats[i], 4);
        halves[i] = uint16_t(bits >> 16);
        bits &= 0xFFFF0000u;
        std::memcpy(&floats[i], &bits, 4);
      }
      exact[i] = floats[i];
    }
    return *this;
  }

  const double* at(int64_t b, int64_t row, int64_t group) const {
    return exact.data() + ((b * rows + row) * groups + group) * width;
  }
  void* data() { return bfloat16 ? static_cast<void*>(halves.data()) : floats.data(); }
  InazumaTensor view() { return {data(), rows * groups * width, groups * width, width, bfloat16}; }
  double read(size_t i) const {
    if (!bfloat16) return floats[i];
    const uint32_t bits = uint32_t(halves[i]) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  }
};

// Every element within `tolerance` of the largest wanted one, and equal where that is infinite.
void close(const std::string& what, const Tensor& actual, const Reals& wanted, double tolerance) {
  double most = 1e-3;
  for (double x : wanted)
    if (std::isfinite(x)) most = std::max(most, std::abs(x));
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double x = actual.read(i);
    expect(x == wanted[i] || std::abs(x - wanted[i]) <= tolerance * most, what, x, wanted[i]);
  }
}

double dot(const double* a, const double* b, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

struct Case {
  const char* name;
  int64_t B, T, S, H, G, Dk, Dv, I, C, K;
  bool bfloat16, ties;  // ties: whole numbers, whose scores are exact and often equal, and zeros of both signs
  bool spans;           // random ones, empty ones among them, instead of causal
  int threads;
};

void check(const Case& c, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> whole(-2, 2);
  const auto draw = [&] { return normal(random); };
  const auto draw_index = [&] {
    if (!c.ties) return normal(random);
    const int x = whole(random);
    return x ? float(x) : whole(random) < 0 ? -0.0f : 0.0f;
  };
  const int64_t rows = c.B * c.T, N = c.H / c.G;
  Tensor q(c.B, c.T, c.H, c.Dk, c.bfloat16), k(c.B, c.S, c.G, c.Dk, c.bfloat16), v(c.B, c.S, c.G, c.Dv, c.bfloat16);
  Tensor dout(c.B, c.T, c.H, c.Dv, c.bfloat16);
  Tensor index_q(c.B, c.T, c.I, c.C, c.bfloat16), index_k(c.B, c.S, 1, c.C, c.bfloat16), w(c.B, c.T, c.I, 1, false);
  q.fill(draw), k.fill(draw), v.fill(draw), dout.fill(draw);
  index_q.fill(draw_index), index_k.fill(draw_index), w.fill(draw_index);

  std::vector<int32_t> first(rows), last(rows);
  std::uniform_int_distribution<int> any(0, int(c.S) - 1);
  for (int64_t r = 0; r < rows; ++r) {
    first[r] = c.spans ? any(random) : 0;
    last[r] = c.spans ? any(random) : int32_t(c.S - c.T + r % c.T);
    if (last[r] < first[r]) first[r] = 0, last[r] = -1;
  }
  InazumaProblem problem{};
  problem.B = c.B, problem.T = c.T, problem.S = c.S, problem.H = c.H, problem.G = c.G, problem.Dk = c.Dk;
  problem.Dv = c.Dv, problem.I = c.I, problem.C = c.C, problem.K = c.K;
  problem.first = first.data(), problem.last = last.data();
  problem.scale = 1.0f / std::sqrt(float(c.Dk)), problem.threads = c.threads;

  // Selection, against a sort of all visible keys by (score, key). Without ties no two scores are as near to each other
  // as rounding brings them, or hardly any: then the sets may differ in scores that are equal to rounding.
  std::vector<int32_t> indices(rows * c.K);
  expect(inazuma_select(&problem, index_q.view(), index_k.view(), w.floats.data(), indices.data()) == 0, "select ran");
  Reals scores(rows * c.S);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t b = r / c.T, t = r % c.T;
    double* I = scores.data() + r * c.S;
    for (int64_t s = 0; s < c.S; ++s)
      for (int64_t i = 0; i < c.I; ++i)
        I[s] += w.exact[r * c.I + i] * std::max(0.0, dot(index_q.at(b, t, i), index_k.at(b, s, 0), c.C));
    std::vector<int32_t> best;
    for (int32_t s = first[r]; s <= last[r]; ++s) best.push_back(s);
    std::stable_sort(best.begin(), best.end(), [&](int32_t a, int32_t z) { return I[a] > I[z]; });
    if (int64_t(best.size()) > c.K) best.resize(c.K);
    const double least = best.empty() ? 0.0 : I[best.back()];
    std::sort(best.begin(), best.end());
    best.resize(c.K, -1);
    for (int64_t j = 0; j < c.K; ++j) {
      const int32_t got = indices[r * c.K + j];
      const bool near = !c.ties && got >= first[r] && got <= last[r] && I[got] >= least - 1e-4 * (1 + std::abs(least));
      const bool ascending = j == 0 || got == -1 || got > indices[r * c.K + j - 1];
      expect((got == best[j] || near) && ascending, "selected key", got, best[j]);
    }
  }

  // Attention and the indexer's loss over the selected keys, and over the spans.
  for (const bool selected : {true, false}) {
    where = std::string(inazuma_kernels()) + ", " + c.name + (selected ? ", selected" : ", spans");
    std::vector<std::vector<int32_t>> keys(rows);
    for (int64_t r = 0; r < rows; ++r) {
      for (int32_t s = first[r]; s <= last[r] && !selected; ++s) keys[r].push_back(s);
      for (int64_t j = 0; j < c.K && selected; ++j)
        if (indices[r * c.K + j] >= 0) keys[r].push_back(indices[r * c.K + j]);
    }
    problem.indices = selected ? indices.data() : nullptr;
    problem.first = selected ? nullptr : first.data(), problem.last = selected ? nullptr : last.data();

    std::vector<float> sink(c.spans ? 0 : c.H);  // without one, a query that sees nothing has lse -inf
    for (float& x : sink) x = draw();
    Reals out(rows * c.H * c.Dv), lse(rows * c.H), plain(rows * c.H), target(rows * c.S);
    Reals dq(rows * c.H * c.Dk), dk(k.exact.size()), dv(v.exact.size()), delta(rows * c.H);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t h = 0; h < c.H; ++h) {
        const int64_t b = r / c.T, t = r % c.T, g = h / N, at = r * c.H + h;
        Reals logits;
        double most = LOWEST, total = 0.0;
        for (int32_t s : keys[r]) logits.push_back(problem.scale * dot(q.at(b, t, h), k.at(b, s, g), c.Dk));
        for (double x : logits) most = std::max(most, x);
        for (double x : logits) total += std::exp(x - most);
        plain[at] = logits.empty() ? LOWEST : most + std::log(total);
        lse[at] = plain[at];
        if (!sink.empty()) {
          const double high = std::max(plain[at], double(sink[h]));
          lse[at] = high + std::log(std::exp(plain[at] - high) + std::exp(sink[h] - high));
        }
        for (size_t j = 0; j < keys[r].size(); ++j) {
          target[r * c.S + keys[r][j]] += std::exp(logits[j] - plain[at]) / double(c.H);
          for (int64_t d = 0; d < c.Dv; ++d)
            out[at * c.Dv + d] += std::exp(logits[j] - lse[at]) * v.at(b, keys[r][j], g)[d];
        }
        delta[at] = dot(dout.at(b, t, h), out.data() + at * c.Dv, c.Dv);
        for (size_t j = 0; j < keys[r].size(); ++j) {
          const int64_t s = (b * c.S + keys[r][j]) * c.G + g;
          const double p = std::exp(logits[j] - lse[at]);
          const double dscore = p * (dot(dout.at(b, t, h), v.at(b, keys[r][j], g), c.Dv) - delta[at]) * problem.scale;
          for (int64_t d = 0; d < c.Dv; ++d) dv[s * c.Dv + d] += p * dout.at(b, t, h)[d];
          for (int64_t d = 0; d < c.Dk; ++d) dk[s * c.Dk + d] += dscore * q.at(b, t, h)[d];
          for (int64_t d = 0; d < c.Dk; ++d) dq[at * c.Dk + d] += dscore * k.at(b, keys[r][j], g)[d];
        }
      }
    const double values = c.bfloat16 ? 1e-2 : 2e-5, fine = 2e-5;
    Tensor out_(c.B, c.T, c.H, c.Dv, c.bfloat16), lse_(c.B, c.T, c.H, 1, false), delta_(c.B, c.T, c.H, 1, false);
    Tensor dq_(q), dk_(k), dv_(v);
    expect(inazuma_attention(&problem, q.view(), k.view(), v.view(), sink.empty() ? nullptr : sink.data(), out_.data(),
                             lse_.floats.data()) == 0,
           "attention ran");
    close("out", out_, out, values), close("lse", lse_, lse, fine);
    std::copy(delta.begin(), delta.end(), delta_.floats.begin());
    expect(inazuma_attention_backward(&problem, q.view(), k.view(), v.view(), dout.view(), lse_.floats.data(),
                                      delta_.floats.data(), dq_.data(), dk_.data(), dv_.data()) == 0,
           "the attention's gradient ran");
    close("dq", dq_, dq, values), close("dk", dk_, dk, values), close("dv", dv_, dv, values);

    double loss = 0.0;
    int64_t queries = 0;
    for (const auto& row : keys) queries += !row.empty();
    Reals dindex_q(index_q.exact.size()), dindex_k(index_k.exact.size()), dw(w.exact.size());
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t b = r / c.T, t = r % c.T;
      const double* I = scores.data() + r * c.S;
      double most = LOWEST, total = 0.0;
      for (int32_t s : keys[r]) most = std::max(most, I[s]);
      for (int32_t s : keys[r]) total += std::exp(I[s] - most);
      for (int32_t s : keys[r]) {
        const double p = target[r * c.S + s], log = I[s] - most - std::log(total);
        loss += p > 0.0 ? p * (std::log(p) - log) / double(queries) : 0.0;
        const double score = (std::exp(log) - p) / double(queries);
        for (int64_t i = 0; i < c.I; ++i) {
          const double product = dot(index_q.at(b, t, i), index_k.at(b, s, 0), c.C);
          if (product <= 0.0) continue;
          dw[r * c.I + i] += score * product;
          for (int64_t d = 0; d < c.C; ++d) {
            dindex_q[(r * c.I + i) * c.C + d] += score * w.exact[r * c.I + i] * index_k.at(b, s, 0)[d];
            dindex_k[(b * c.S + s) * c.C + d] += score * w.exact[r * c.I + i] * index_q.at(b, t, i)[d];
          }
        }
      }
    }
    Tensor dindex_q_(index_q), dindex_k_(index_k), dw_(w);
    float loss_ = NAN;
    std::copy(plain.begin(), plain.end(), lse_.floats.begin());
    expect(inazuma_index_loss(&problem, index_q.view(), index_k.view(), w.floats.data(), q.view(), k.view(),
                              lse_.floats.data(), &loss_, dindex_q_.data(), dindex_k_.data(), dw_.floats.data()) == 0,
           "the loss ran");
    expect(std::abs(loss_ - loss) <= 1e-5 * (1.0 + loss), "loss", loss_, loss);
    close("dindex_q", dindex_q_, dindex_q, c.bfloat16 ? 1e-2 : 1e-4);
    close("dindex_k", dindex_k_, dindex_k, c.bfloat16 ? 1e-2 : 1e-4);
    close("dw", dw_, dw, 1e-4);
  }
}

// A linear layer of every kind, and that each of its rows comes out the same alone and on two threads; then the
// operators between linear layers. The weights are whole numbers that every kind keeps exactly.
void check_linear(int64_t N, int64_t K, int64_t rows, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> step(0, 15);
  std::normal_distribution<float> normal;
  const int64_t panels = (N + 31) / 32, groups = (K + 31) / 32;
  std::vector<int> weight(panels * 32 * groups * 32);
  const auto at = [&](int64_t n, int64_t k) -> int& { return weight[n * groups * 32 + k]; };
  for (int64_t n = 0; n < N; ++n)
    for (int64_t k = 0; k < K; ++k) at(n, k) = step(random) - 7;
  std::vector<float> bias(panels * 32), scales(panels * 32, 1.0f), x(rows * K);
  for (int64_t n = 0; n < N; ++n) bias[n] = normal(random);
  for (float& value : x) value = normal(random);
  const auto half = [](float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return uint16_t(bits >> 16);
  };
  for (const int kind : {INAZUMA_FLOAT32, INAZUMA_BFLOAT16, INAZUMA_INT8, INAZUMA_INT4}) {
    where = std::string(inazuma_kernels()) + ", linear " + std::to_string(kind) + ", K = " + std::to_string(K);
    std::vector<uint8_t> bytes;
    const auto put = [&](auto value) {
      uint8_t raw[sizeof value];
      std::memcpy(raw, &value, sizeof value);
      bytes.insert(bytes.end(), raw, raw + sizeof value);
    };
    const int64_t together = kind == INAZUMA_FLOAT32 ? 1 : kind == INAZUMA_BFLOAT16 ? 2 : kind == INAZUMA_INT8 ? 4 : 32;
    for (int64_t panel = 0; panel < panels; ++panel)
      for (int64_t k = 0; k < K; k += together) {
        if (kind == INAZUMA_INT4) {
          for (int n = 0; n < 32; ++n) put(half(1.0f));
          for (int n = 0; n < 32; ++n) put(half(-7.0f));
          for (int e = 0; e < 32; e += 8)
            for (int n = 0; n < 32; ++n)
              for (int i = 0; i < 4; ++i) {
                const int low = at(panel * 32 + n, k + e + i) + 7, high = at(panel * 32 + n, k + e + i + 4) + 7;
                put(uint8_t(low | high << 4));
              }
          continue;
        }
        for (int n = 0; n < 32; ++n)
          for (int i = 0; i < together; ++i) {
            const int w = at(panel * 32 + n, k + i);
            if (kind == INAZUMA_FLOAT32) put(float(w));
            if (kind == INAZUMA_BFLOAT16) put(half(float(w)));
            if (kind == INAZUMA_INT8) put(uint8_t(w + 128));
          }
      }
    const InazumaLinear layer{bytes.data(), kind == INAZUMA_INT8 ? scales.data() : nullptr, bias.data(), N, K, kind};
    std::vector<float> y(rows * N), again(rows * N);
    expect(inazuma_linear(&layer, x.data(), rows, y.data(), 1) == 0, "linear ran");
    const int64_t shared = kind == INAZUMA_INT8 ? 128 : kind == INAZUMA_INT4 ? 32 : K;
    const double bound = kind == INAZUMA_FLOAT32 ? 1e-5 : 0.01;  // of rounded inputs
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t n = 0; n < N; ++n) {
        double sum = bias[n], size = 1.0;
        for (int64_t start = 0; start < K; start += shared) {
          double most = 0.0;
          const int64_t end = std::min(K, start + shared);
          for (int64_t k = start; k < end; ++k) most = std::max(most, std::abs(double(x[r * K + k])));
          for (int64_t k = start; k < end; ++k) {
            const double value = x[r * K + k], whole = kind >= INAZUMA_INT8 ? std::nearbyint(value / most * 127) : 0;
            sum += at(n, k) * (kind >= INAZUMA_INT8 ? whole * most / 127 : value);
            size += std::abs(at(n, k) * value);
          }
        }
        expect(std::abs(y[r * N + n] - sum) <= bound * size, "output", y[r * N + n], sum);
      }
    expect(inazuma_linear(&layer, x.data(), rows, again.data(), 2) == 0 && y == again, "two threads, the same bits");
    for (int64_t r = 0; r < rows; ++r) inazuma_linear(&layer, x.data() + r * K, 1, again.data() + r * N, 1);
    expect(y == again, "one row at a time, the same bits");
  }
  where = std::string(inazuma_kernels()) + ", between layers, width " + std::to_string(K);
  std::vector<float> normed(rows * K), gated(rows * (K / 2)), turned(x), cos(4 * (K / 2)), sin(4 * (K / 2)), one(K, 1.5f);
  std::vector<int32_t> position(rows);
  for (size_t i = 0; i < cos.size(); ++i) cos[i] = std::cos(float(i)), sin[i] = std::sin(float(i));
  for (int64_t r = 0; r < rows; ++r) position[r] = int32_t(r % 4);
  inazuma_rms_norm(x.data(), nullptr, one.data(), 1e-5f, rows, K, normed.data(), 2);
  inazuma_silu_mul(x.data(), rows, K / 2, gated.data(), 2);
  const int64_t P = K / 2, stride = 2 * P;
  expect(inazuma_rotate(turned.data(), rows, stride, 1, stride, position.data(), 0, cos.data(), sin.data(), 4, P, 1, 2) == 0,
         "rotate ran");
  for (int64_t r = 0; r < rows; ++r) {
    double square = 0.0;
    for (int64_t k = 0; k < K; ++k) square += double(x[r * K + k]) * x[r * K + k];
    for (int64_t k = 0; k < K; ++k) {
      const double wanted = x[r * K + k] / std::sqrt(square / K + 1e-5) * 1.5;
      expect(std::abs(normed[r * K + k] - wanted) < 1e-5 * (1 + std::abs(wanted)), "norm", normed[r * K + k], wanted);
    }
    for (int64_t i = 0; i < P; ++i) {
      const double gate = x[r * stride + i], wanted = gate / (1 + std::exp(-gate)) * x[r * stride + P + i];
      expect(std::abs(gated[r * P + i] - wanted) < 1e-5, "gated", gated[r * P + i], wanted);
      const double a = x[r * stride + 2 * i], b = x[r * stride + 2 * i + 1], c = cos[r % 4 * P + i], s = sin[r % 4 * P + i];
      expect(std::abs(turned[r * stride + i] - (a * c - b * s)) < 1e-5, "turned", turned[r * stride + i], a * c - b * s);
      expect(std::abs(turned[r * stride + P + i] - (b * c + a * s)) < 1e-5, "turned, second half");
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Pages
// ---------------------------------------------------------------------------------------------------------------------

enum { FLOAT32, BFLOAT16, FP8, INT16, INT8 };

template <class X>
X read(const uint8_t* p) {
  X x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

// A pool of `pages` pages of `heads` rows of `width` in a format, whose rows can be read back in double.
struct Pages {
  InazumaPool pool;
  std::vector<uint8_t> bytes;

  Pages(int format, bool by_column, int64_t pages, int heads, int width, int plain) {
    const bool whole = format == INT16 || format == INT8;
    int64_t row = (format == FLOAT32 ? 4 : format == INT8 ? 1 : 2) * width;
    if (format == FP8) row = width - plain + (width - plain + 127) / 128 * 4 + 2 * plain;
    if (whole) row = (row + 3) / 4 * 4 + 4;
    bytes.assign(pages * 64 * heads * row, 0xFF);
    pool = {bytes.data(), pages, row, heads, width, plain, format, by_column};
  }

  Reals row(int64_t slot, int head) const {
    std::vector<uint8_t> own(pool.head_bytes);
    for (int64_t i = 0; i < pool.head_bytes; ++i)
      own[i] = pool.by_column ? bytes[((slot / 64 * pool.head_bytes / 4 + i / 4) * 64 + slot % 64) * 4 + i % 4]
                              : bytes[(slot * pool.heads + head) * pool.head_bytes + i];
    const auto half = [&](int64_t at) {
      const uint32_t bits = uint32_t(read<uint16_t>(&own[at])) << 16;
      return double(read<float>(reinterpret_cast<const uint8_t*>(&bits)));
    };
    Reals out(pool.width);
    const int coded = pool.width - pool.plain, scales = coded, halves = scales + (coded + 127) / 128 * 4;
    for (int d = 0; d < pool.width; ++d) {
      if (pool.format == FLOAT32) out[d] = read<float>(&own[4 * d]);
      if (pool.format == BFLOAT16) out[d] = half(2 * d);
      if (pool.format == INT16) out[d] = double(read<int16_t>(&own[2 * d])) * read<float>(&own[pool.head_bytes - 4]);
      if (pool.format == INT8) out[d] = double(int8_t(own[d])) * read<float>(&own[pool.head_bytes - 4]);
      if (pool.format != FP8) continue;
      if (d >= coded) {
        out[d] = half(halves + 2 * (d - coded));
        continue;
      }
      const int code = own[d] & 127, e = code >> 3, m = code & 7;
      const double size = e == 0 ? std::ldexp(m, -9) : std::ldexp(8 + m, e - 10);
      out[d] = (own[d] & 128 ? -size : size) * read<float>(&own[scales + d / 128 * 4]);
    }
    return out;
  }
};

// A query's head as it meets whole numbers.
Reals met(const float* q, int C, int format) {
  Reals out(q, q + C);
  if (format == FLOAT32) return out;
  const int64_t width = format == INT8 ? (C + 3) / 4 * 4 : (C + 1) / 2 * 2;
  const int64_t key = format == INT8 ? 127 : int64_t(std::sqrt(2147483647.0 / width));
  const float bound = float(std::min<int64_t>(32767, 2147483647 / (width * key)));
  float largest = 0.0f;
  for (int c = 0; c < C; ++c) largest = std::max(largest, std::abs(q[c]));
  for (int c = 0; c < C; ++c) out[c] = double(std::nearbyint(q[c] * (bound / largest))) * (largest / bound);
  return out;
}

// Two sequences whose pages are mixed, queries in one and the other: selection, attention over it, and dense attention.
void check_pages(int index_format, int format, int H, int G, int D, int I, int C, int64_t K, unsigned seed) {
  where = std::string(inazuma_kernels()) + ", pages, formats " + std::to_string(index_format) + " and " +
          std::to_string(format) + ", width " + std::to_string(C);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const auto draw = [&](size_t n) {
    std::vector<float> x(n);
    for (float& one : x) one = normal(random);
    return x;
  };
  const int64_t lengths[] = {700, 130}, P = 11, pages = 16;
  std::vector<int32_t> table(2 * P, -9), order(pages);
  for (int i = 0; i < pages; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), random);
  for (int64_t b = 0, next = 0; b < 2; ++b)
    for (int64_t page = 0; page * 64 < lengths[b]; ++page) table[b * P + page] = order[next++];
  const auto slot = [&](int64_t b, int64_t s) { return table[b * P + s / 64] * int64_t(64) + s % 64; };
  Pages index(index_format, true, pages, 1, C, 0), keys(format, false, pages, G, D, format == FP8 ? 2 : 0);
  for (int64_t b = 0; b < 2; ++b) {
    std::vector<int64_t> slots(lengths[b]);
    for (int64_t s = 0; s < lengths[b]; ++s) slots[s] = slot(b, s);
    const std::vector<float> own = draw(lengths[b] * C), rows = draw(lengths[b] * G * D);
    expect(inazuma_paged_write(&index.pool, slots.data(), own.data(), lengths[b], 2) == 0, "index keys written");
    expect(inazuma_paged_write(&keys.pool, slots.data(), rows.data(), lengths[b], 2) == 0, "keys written");
    for (int64_t s = 0; s < lengths[b]; s += 13) {
      const Reals back = index.row(slots[s], 0), row = keys.row(slots[s], G - 1);
      for (int c = 0; c < C; ++c)
        expect(std::abs(back[c] - own[s * C + c]) < 0.02, "index key", back[c], own[s * C + c]);
      for (int d = 0; d < D; ++d) {
        const double wanted = rows[(s * G + G - 1) * D + d];
        expect(std::abs(row[d] - wanted) <= std::abs(wanted) / 16 + 1e-4, "key", row[d], wanted);
      }
    }
  }
  const std::vector<int32_t> row = {0, 0, 0, 1, 1, 0}, last = {5, 698, 699, 129, -1, 64};
  const int64_t N = int64_t(row.size());
  const std::vector<float> index_q = draw(N * I * C), weights = draw(N * I), q = draw(N * H * D);
  std::vector<int32_t> chosen(N * K), again(N * K);
  InazumaQueries queries = {N, 2, P, table.data(), row.data(), last.data(), 1};
  const auto select = [&](int threads, std::vector<int32_t>& into) {
    queries.threads = threads;
    return inazuma_paged_select(&queries, &index.pool, index_q.data(), weights.data(), I, K, into.data());
  };
  expect(select(1, chosen) == 0 && select(2, again) == 0, "select ran");
  expect(chosen == again, "two threads, the same selection");
  for (int64_t n = 0; n < N; ++n) {
    Reals scores(last[n] + 1);
    for (int64_t i = 0; i < I; ++i) {
      const Reals head = met(&index_q[(n * I + i) * C], C, index_format);
      for (int64_t s = 0; s <= last[n]; ++s) {
        const Reals key = index.row(slot(row[n], s), 0);
        double product = 0.0;
        for (int c = 0; c < C; ++c) product += head[c] * key[c];
        scores[s] += weights[n * I + i] * std::max(product, 0.0);
      }
    }
    Reals sorted(scores);
    std::sort(sorted.rbegin(), sorted.rend());
    const int64_t count = std::min<int64_t>(K, last[n] + 1);
    std::vector<bool> kept(scores.size());
    for (int64_t j = 0; j < K; ++j) {
      const int32_t at = chosen[n * K + j];
      const bool right = j < count ? at > (j ? chosen[n * K + j - 1] : -1) && at <= last[n] : at == -1;
      expect(right, "place of a selection", at);
      if (right && at >= 0) kept[at] = true;
    }
    for (size_t s = 0; s < scores.size(); ++s) {
      const double least = sorted[count - 1];
      expect(kept[s] ? scores[s] > least - 1e-4 : scores[s] < least + 1e-4, "score of a selection", scores[s], least);
    }
  }
  std::vector<float> out(N * H * D), same(N * H * D);
  for (const bool sparse : {true, false}) {
    const int32_t* indices = sparse ? chosen.data() : nullptr;
    const auto attend = [&](int threads, std::vector<float>& into) {
      queries.threads = threads;
      return inazuma_paged_attend(&queries, &keys.pool, &keys.pool, q.data(), H, D, 0.3f, indices, K, into.data());
    };
    expect(attend(1, out) == 0 && attend(2, same) == 0, "attend ran");
    expect(out == same, "two threads, the same bits");
    for (int64_t n = 0; n < N; ++n)
      for (int64_t h = 0; h < H; ++h) {
        double total = 0.0;
        Reals sum(D);
        for (int64_t j = 0; j < (sparse ? K : last[n] + 1); ++j) {
          const int64_t s = sparse ? chosen[n * K + j] : j;
          if (s < 0) break;
          const Reals key = keys.row(slot(row[n], s), int(h / (H / G)));
          double product = 0.0;
          for (int d = 0; d < D; ++d) product += q[(n * H + h) * D + d] * key[d];
          const double weight = std::exp(0.3 * product);
          total += weight;
          for (int d = 0; d < D; ++d) sum[d] += weight * key[d];
        }
        for (int d = 0; d < D; ++d) {
          const double wanted = total == 0.0 ? 0.0 : sum[d] / total, actual = out[(n * H + h) * D + d];
          expect(std::abs(actual - wanted) < 2e-5 * (1 + std::abs(wanted)), "attention over pages", actual, wanted);
        }
      }
  }
}

}  // namespace

int main() {
  const Case cases[] = {
      //                     B   T    S   H  G  Dk  Dv  I   C   K  bfloat16 ties spans threads
      {"causal",             2, 37,  61,  8, 1, 24, 16, 4, 32, 12, false, false, false, 2},
      {"ties and zeros",     2, 37,  61,  4, 2,  9,  7, 3,  5, 12, false, true, false, 1},
      {"spans",              2, 33,  90,  6, 3, 17, 20, 5, 19,  9, false, true, true, 2},
      {"many queries",       1, 140, 300, 2, 1,  8,  8, 4, 16, 20, false, false, true, 1},
      {"many, with ties",    1, 140, 300, 2, 1,  8,  8, 4, 16, 20, false, true, false, 2},
      {"wide",               1,  5,  40, 36, 1, 80, 64, 9, 64,  8, false, false, false, 1},
      {"decoding",           2,  1, 9000, 4, 1, 16, 16, 4, 16, 64, false, false, false, 2},
      {"decoding with ties", 2,  1, 9000, 4, 4, 16, 16, 2,  3, 64, false, true, true, 1},
      {"bfloat16",           2, 37,  61,  8, 1, 24, 16, 4, 32, 12, true, false, false, 2},
      {"bfloat16 ties",      1, 140, 200, 4, 2, 10,  6, 3,  6, 15, true, true, true, 1},
      {"least",              1,  1,   1,  1, 1,  1,  1, 1,  1,  3, false, false, false, 1},
  };
  std::string names;
  for (const char* name : {"avx512bf16", "avx512vnni", "avx512", "avx2", "portable"}) {
    if (!inazuma_use_kernels(name)) continue;
    names += std::string(names.empty() ? "" : ", ") + name;
    unsigned seed = 1;
    for (const Case& one : cases) {
      where = std::string(name) + ", " + one.name;
      check(one, seed++);
    }
    check_linear(70, 330, 30, seed++);
    check_linear(1, 2, 3, seed++);
    check_pages(FLOAT32, FLOAT32, 4, 2, 24, 3, 20, 40, seed++);
    check_pages(INT16, BFLOAT16, 9, 1, 40, 8, 64, 100, seed++);
    check_pages(INT8, FP8, 2, 2, 150, 5, 13, 64, seed++);
  }
  std::printf("%s: %d checks, %d failures\n", names.c_str(), checks, failures);
  return failures != 0;
}
