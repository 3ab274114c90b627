// Group norm and SiLU in one, of bf16 pictures with channels last, forwards and backwards.
//
// PyTorch's own group norm is five times as slow with channels last as with channels first, and
// convolutions want them last. Built by kernels.py; x86 and ARM alike, vectorised by the compiler.

#include <torch/extension.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using bf16 = uint16_t;  // bits of at::BFloat16

inline float widen(bf16 bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

inline bf16 narrow(float value) {  // to nearest, ties to even; not for NaN
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<bf16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float sigmoid(float value) { return 1.0f / (1.0f + std::exp(-value)); }

const bf16* bits(const at::Tensor& tensor) {
  return reinterpret_cast<const bf16*>(tensor.const_data_ptr<at::BFloat16>());
}

bf16* bits_of(at::Tensor& tensor) {
  return reinterpret_cast<bf16*>(tensor.mutable_data_ptr<at::BFloat16>());
}

// The affine map of each channel of one picture: u = x * scale + shift.
void affine(const float* mean, const float* rstd, const float* weight, const float* bias,
            int64_t channels, int64_t per_group, float* scale, float* shift) {
  for (int64_t c = 0; c < channels; ++c) {
    scale[c] = weight[c] * rstd[c / per_group];
    shift[c] = bias[c] - mean[c / per_group] * scale[c];
  }
}

}  // namespace

// x: (B, C, H, W) bf16, channels last. weight, bias: (1, C) or, of each picture, (B, C) fp32.
// Returns silu(group_norm(x)), and mean and 1 / deviation of every group, (B, groups) fp32.
std::vector<at::Tensor> forward(const at::Tensor& x, const at::Tensor& weight,
                                const at::Tensor& bias, int64_t groups, double eps) {
  TORCH_CHECK(x.is_contiguous(at::MemoryFormat::ChannelsLast), "channels are not last");
  const int64_t batch = x.size(0), channels = x.size(1), places = x.size(2) * x.size(3);
  const int64_t per_group = channels / groups, own = weight.size(0) > 1 ? channels : 0;
  at::Tensor y = at::empty_like(x);
  at::Tensor means = at::empty({batch, groups}, weight.options()), rstds = at::empty_like(means);
  const float *w = weight.const_data_ptr<float>(), *b = bias.const_data_ptr<float>();
  const bf16* from = bits(x);
  bf16* to = bits_of(y);
  float *mean = means.mutable_data_ptr<float>(), *rstd = rstds.mutable_data_ptr<float>();
  at::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> sum(channels), square(channels), scale(channels), shift(channels);
    for (int64_t n = begin; n < end; ++n) {
      const bf16* in = from + n * places * channels;
      bf16* out = to + n * places * channels;
      std::fill(sum.begin(), sum.end(), 0.0f);
      std::fill(square.begin(), square.end(), 0.0f);
      float *s = sum.data(), *q = square.data(), *a = scale.data(), *h = shift.data();
      for (int64_t p = 0; p < places; ++p) {
        for (int64_t c = 0; c < channels; ++c) {
          const float value = widen(in[p * channels + c]);
          s[c] += value;
          q[c] += value * value;
        }
      }
      for (int64_t g = 0; g < groups; ++g) {
        double first = 0, second = 0;
        for (int64_t c = g * per_group; c < (g + 1) * per_group; ++c) {
          first += s[c];
          second += q[c];
        }
        const double count = static_cast<double>(places * per_group), middle = first / count;
        mean[n * groups + g] = static_cast<float>(middle);
        const double variance = std::max(0.0, second / count - middle * middle);
        rstd[n * groups + g] = static_cast<float>(1 / std::sqrt(variance + eps));
      }
      affine(mean + n * groups, rstd + n * groups, w + n * own, b + n * own, channels, per_group, a,
             h);
      for (int64_t p = 0; p < places; ++p) {
        for (int64_t c = 0; c < channels; ++c) {
          const float u = widen(in[p * channels + c]) * a[c] + h[c];
          out[p * channels + c] = narrow(u * sigmoid(u));
        }
      }
    }
  });
  return {y, means, rstds};
}

// Gradients to x (bf16, channels last), weight and bias (of each picture: (B, C) fp32), given that
// to the output.
std::vector<at::Tensor> backward(const at::Tensor& gradient, const at::Tensor& x,
                                 const at::Tensor& weight, const at::Tensor& bias,
                                 const at::Tensor& means, const at::Tensor& rstds) {
  TORCH_CHECK(gradient.is_contiguous(at::MemoryFormat::ChannelsLast), "channels are not last");
  const int64_t batch = x.size(0), channels = x.size(1), places = x.size(2) * x.size(3);
  const int64_t groups = means.size(1), per_group = channels / groups;
  const int64_t own = weight.size(0) > 1 ? channels : 0;
  at::Tensor to_x = at::empty_like(x);
  at::Tensor to_weights = at::empty({batch, channels}, weight.options());
  at::Tensor to_biases = at::empty_like(to_weights);
  const float *w = weight.const_data_ptr<float>(), *b = bias.const_data_ptr<float>();
  const float *mean = means.const_data_ptr<float>(), *rstd = rstds.const_data_ptr<float>();
  const bf16 *dy = bits(gradient), *from = bits(x);
  bf16* to = bits_of(to_x);
  float* dw = to_weights.mutable_data_ptr<float>();
  float* db = to_biases.mutable_data_ptr<float>();
  at::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scale(channels), shift(channels), first(channels), second(channels);
    std::vector<float> through(places * channels);  // gradient to the normalised and scaled
    for (int64_t n = begin; n < end; ++n) {
      const bf16 *in = from + n * places * channels, *out = dy + n * places * channels;
      bf16* result = to + n * places * channels;
      float *a = scale.data(), *h = shift.data(), *t = through.data();
      float *sum = db + n * channels, *product = dw + n * channels;
      affine(mean + n * groups, rstd + n * groups, w + n * own, b + n * own, channels, per_group, a,
             h);
      std::fill(sum, sum + channels, 0.0f);
      std::fill(product, product + channels, 0.0f);
      for (int64_t p = 0; p < places; ++p) {
        for (int64_t c = 0; c < channels; ++c) {
          const int64_t at = p * channels + c;
          const float value = widen(in[at]), u = value * a[c] + h[c], s = sigmoid(u);
          const float d = widen(out[at]) * s * (1.0f + u * (1.0f - s));
          t[at] = d;
          sum[c] += d;
          product[c] += d * value;
        }
      }
      // product: from sums of d * x to sums of d * normalised x.
      for (int64_t g = 0; g < groups; ++g) {
        const float m = mean[n * groups + g], r = rstd[n * groups + g];
        float mean_d = 0, mean_dx = 0;
        for (int64_t c = g * per_group; c < (g + 1) * per_group; ++c) {
          product[c] = (product[c] - m * sum[c]) * r;
          mean_d += w[n * own + c] * sum[c];
          mean_dx += w[n * own + c] * product[c];
        }
        const float count = static_cast<float>(places * per_group);
        mean_d /= count;
        mean_dx /= count;
        // dx = r (w d - mean_d - (x - m) r mean_dx), as one map of d and x for each channel
        for (int64_t c = g * per_group; c < (g + 1) * per_group; ++c) {
          first[c] = -r * r * mean_dx;
          second[c] = -r * mean_d - m * first[c];
        }
      }
      const float *f = first.data(), *k = second.data();
      for (int64_t p = 0; p < places; ++p) {
        for (int64_t c = 0; c < channels; ++c) {
          const int64_t at = p * channels + c;
          result[at] = narrow(a[c] * t[at] + f[c] * widen(in[at]) + k[c]);
        }
      }
    }
  });
  return {to_x, to_weights, to_biases};
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("forward", &forward);
  module.def("backward", &backward);
}
