// InstanceNorm → ReLU → 2×2 average pooling of one image, forward and backward. No include guard: see isa.h.
//
// With m and r the mean and 1 / deviation of a channel, d = x − m, z = d · scale + shift, scale = r · weight and
// shift = bias, an output is the mean of relu(z) over its four pixels. The gradient, with g = its share of the output's
// gradient where z > 0 and 0 elsewhere (including an odd last row or column), is
//     scale · (g − Σg / n − d · r² · Σ(g · d) / n), summed over the n pixels of the channel.
// The variance is computed about the mean, in a second pass, unless `merge_tile` has found both already.

namespace fastdm::FASTDM_ISA {

constexpr int kBlock = kLanes == 16 ? 4 : 2;  // vectors of channels at a time, as many as fit into registers

// --- NHWC: pixels are `stride` elements apart; B vectors of channels at a time ---------------------------------------

// squares: the sum of squares about the mean.
template <class V, int B, class T>
inline void statistics(const T* x, MapSize size, int64_t stride, float* mean, float* squares) {
    constexpr int64_t kStep = sizeof(V) / sizeof(float);
    const float per_pixel = 1.0f / static_cast<float>(size.pixels());
    V m[B] = {}, square[B] = {};
    // Row by row: shorter chains of additions round less.
    for (int64_t i = 0; i < size.height; ++i) {
        V row[B] = {};
        for (int64_t j = 0; j < size.width; ++j) {
            for (int b = 0; b < B; ++b) row[b] += load<V>(x + (i * size.width + j) * stride + b * kStep);
        }
        for (int b = 0; b < B; ++b) m[b] += row[b];
    }
    for (int b = 0; b < B; ++b) m[b] *= per_pixel;
    for (int64_t i = 0; i < size.height; ++i) {
        V row[B] = {};
        for (int64_t j = 0; j < size.width; ++j) {
            for (int b = 0; b < B; ++b) {
                const V d = load<V>(x + (i * size.width + j) * stride + b * kStep) - m[b];
                row[b] = multiply_add(d, d, row[b]);
            }
        }
        for (int b = 0; b < B; ++b) square[b] += row[b];
    }
    for (int b = 0; b < B; ++b) {
        store(mean + b * kStep, m[b]);
        store(squares + b * kStep, square[b]);
    }
}

// The constants of B vectors of channels.
template <class V, int B>
struct Scaling {
    V mean[B], scale[B], shift[B];

    Scaling(const float* mean_, const float* rstd, const float* weight, const float* bias, float factor) {
        constexpr int64_t kStep = sizeof(V) / sizeof(float);
        for (int b = 0; b < B; ++b) {
            mean[b] = load<V>(mean_ + b * kStep);
            scale[b] = load<V>(rstd + b * kStep) * factor;
            if (weight) scale[b] *= load<V>(weight + b * kStep);
            shift[b] = bias ? load<V>(bias + b * kStep) * factor : V{};
        }
    }
};

// Adds to `out` if kAdd, otherwise overwrites it.
template <bool kAdd, class V, int B, class T, class Out>
inline void relu_pool(const T* x, MapSize size, int64_t stride, const Scaling<V, B>& s, Out* out, int64_t out_stride) {
    constexpr int64_t kStep = sizeof(V) / sizeof(float);
    const int64_t corner[4] = {0, stride, size.width * stride, (size.width + 1) * stride};
    for (int64_t i = 0; i < size.height / 2; ++i) {
        for (int64_t j = 0; j < size.width / 2; ++j, out += out_stride) {
            const T* from = x + (2 * i * size.width + 2 * j) * stride;
            for (int b = 0; b < B; ++b) {
                V total = kAdd ? load<V>(out + b * kStep) : V{};
                for (int k = 0; k < 4; ++k) {
                    const V d = load<V>(from + corner[k] + b * kStep) - s.mean[b];
                    total += relu(multiply_add(d, s.scale[b], s.shift[b]));
                }
                store(out + b * kStep, total);
            }
        }
    }
}

template <bool kAdd, class V, int B, class T, class Out>
inline void norm_relu_pool_nhwc(const T* x, MapSize size, int64_t stride, Affine affine, Out* out, int64_t out_stride,
                                float* mean, float* rstd, bool merged, int64_t c) {
    if (!merged) statistics<V, B>(x + c, size, stride, mean + c, rstd + c);
    const float per_pixel = 1.0f / static_cast<float>(size.pixels());
    for (int64_t i = c; i < c + B * static_cast<int64_t>(sizeof(V) / sizeof(float)); ++i) {
        rstd[i] = 1.0f / std::sqrt(rstd[i] * per_pixel + affine.eps);
    }
    // The pooling's factor ¼ commutes with the ReLU and is exact.
    const Scaling<V, B> scaling(mean + c, rstd + c, affine.weight_at(c), affine.bias_at(c), 0.25f);
    relu_pool<kAdd>(x + c, size, stride, scaling, out + c, out_stride);
}

// x: [H, W, stride], the first `channels` channels of each pixel; out: [H / 2, W / 2, out_stride]; mean, rstd:
// [channels]. merged: mean and rstd hold the mean and the sum of squares that `merge_tile` gives.
template <bool kAdd, class T, class Out>
void norm_relu_pool_nhwc(const T* x, MapSize size, int64_t channels, int64_t stride, Affine affine, Out* out,
                         int64_t out_stride, float* mean, float* rstd, bool merged = false) {
    int64_t c = 0;
    for (; c + kBlock * kLanes <= channels; c += kBlock * kLanes) {
        norm_relu_pool_nhwc<kAdd, Vec, kBlock>(x, size, stride, affine, out, out_stride, mean, rstd, merged, c);
    }
    for (; c + kLanes <= channels; c += kLanes) {
        norm_relu_pool_nhwc<kAdd, Vec, 1>(x, size, stride, affine, out, out_stride, mean, rstd, merged, c);
    }
    for (; c < channels; ++c) {
        norm_relu_pool_nhwc<kAdd, float, 1>(x, size, stride, affine, out, out_stride, mean, rstd, merged, c);
    }
}

template <class V, int B, class T>
inline void norm_relu_pool_nhwc_backward(const T* grad, const T* x, MapSize size, int64_t stride, const float* mean,
                                         const float* rstd, Affine affine, T* grad_x, float* grad_weight,
                                         float* grad_bias, int64_t c) {
    constexpr int64_t kStep = sizeof(V) / sizeof(float);
    const Scaling<V, B> s(mean + c, rstd + c, affine.weight_at(c), affine.bias_at(c), 1.0f);
    const int64_t height = size.height / 2, width = size.width / 2;
    x += c, grad += c, grad_x += c;

    V sum_g[B] = {}, sum_gd[B] = {};
    for (int64_t i = 0; i < 2 * height; ++i) {
        for (int64_t j = 0; j < 2 * width; ++j) {
            for (int b = 0; b < B; ++b) {
                const V d = load<V>(x + (i * size.width + j) * stride + b * kStep) - s.mean[b];
                const V quarter = load<V>(grad + (i / 2 * width + j / 2) * stride + b * kStep) * 0.25f;
                const V g = multiply_add(d, s.scale[b], s.shift[b]) > V{} ? quarter : V{};
                sum_g[b] += g;
                sum_gd[b] = multiply_add(g, d, sum_gd[b]);
            }
        }
    }
    const float per_pixel = 1.0f / static_cast<float>(size.pixels());
    V mean_g[B], slope[B];
    for (int b = 0; b < B; ++b) {
        const V r = load<V>(rstd + c + b * kStep);
        mean_g[b] = sum_g[b] * per_pixel;
        slope[b] = sum_gd[b] * per_pixel * r * r;
        store(grad_weight + c + b * kStep, sum_gd[b] * r);
        store(grad_bias + c + b * kStep, sum_g[b]);
    }
    for (int64_t i = 0; i < size.height; ++i) {
        for (int64_t j = 0; j < size.width; ++j) {
            const bool pooled = i < 2 * height && j < 2 * width;
            for (int b = 0; b < B; ++b) {
                const int64_t at = (i * size.width + j) * stride + b * kStep;
                const V d = load<V>(x + at) - s.mean[b];
                const V quarter = pooled ? load<V>(grad + (i / 2 * width + j / 2) * stride + b * kStep) * 0.25f : V{};
                const V g = multiply_add(d, s.scale[b], s.shift[b]) > V{} ? quarter : V{};
                store(grad_x + at, s.scale[b] * (g - mean_g[b] - d * slope[b]));
            }
        }
    }
}

// grad: [H / 2, W / 2, channels]; x, grad_x: [H, W, channels]; all others: [channels].
template <class T>
void norm_relu_pool_nhwc_backward(const T* grad, const T* x, MapSize size, int64_t channels, const float* mean,
                                  const float* rstd, Affine affine, T* grad_x, float* grad_weight, float* grad_bias) {
    int64_t c = 0;
    for (; c + kBlock * kLanes <= channels; c += kBlock * kLanes) {
        norm_relu_pool_nhwc_backward<Vec, kBlock>(grad, x, size, channels, mean, rstd, affine, grad_x, grad_weight,
                                                  grad_bias, c);
    }
    for (; c + kLanes <= channels; c += kLanes) {
        norm_relu_pool_nhwc_backward<Vec, 1>(grad, x, size, channels, mean, rstd, affine, grad_x, grad_weight,
                                             grad_bias, c);
    }
    for (; c < channels; ++c) {
        norm_relu_pool_nhwc_backward<float, 1>(grad, x, size, channels, mean, rstd, affine, grad_x, grad_weight,
                                               grad_bias, c);
    }
}

// --- NCHW: one channel [H, W] at a time ------------------------------------------------------------------------------

// Σ (x − about), or the sum of its squares if kSquare.
template <bool kSquare, class T>
inline float sum_about(const T* x, int64_t pixels, float about) {
    Vec total[4] = {};
    int64_t i = 0;
    for (; i + 4 * kLanes <= pixels; i += 4 * kLanes) {
        for (int k = 0; k < 4; ++k) {
            const Vec d = load<Vec>(x + i + k * kLanes) - about;
            total[k] = kSquare ? multiply_add(d, d, total[k]) : total[k] + d;
        }
    }
    float rest = sum(total[0] + total[1] + (total[2] + total[3]));
    for (; i < pixels; ++i) {
        const float d = load<float>(x + i) - about;
        rest += kSquare ? d * d : d;
    }
    return rest;
}

// row_sum: scratch for one row of x.
template <bool kAdd, class T, class Out>
void norm_relu_pool_plane(const T* x, MapSize size, float weight, float bias, float eps, Out* out, float* mean,
                          float* rstd, float* row_sum) {
    const float pixels = static_cast<float>(size.pixels());
    const float m = *mean = sum_about<false>(x, size.pixels(), 0.0f) / pixels;
    *rstd = 1.0f / std::sqrt(sum_about<true>(x, size.pixels(), m) / pixels + eps);
    const float scale = 0.25f * *rstd * weight, shift = 0.25f * bias;
    for (int64_t i = 0; i < size.height / 2; ++i) {
        const T* upper = x + 2 * i * size.width;
        const T* lower = upper + size.width;
        int64_t j = 0;
        for (; j + kLanes <= size.width; j += kLanes) {
            store(row_sum + j, relu(multiply_add(load<Vec>(upper + j) - m, all<Vec>(scale), all<Vec>(shift))) +
                                   relu(multiply_add(load<Vec>(lower + j) - m, all<Vec>(scale), all<Vec>(shift))));
        }
        for (; j < size.width; ++j) {
            row_sum[j] =
                relu((load<float>(upper + j) - m) * scale + shift) + relu((load<float>(lower + j) - m) * scale + shift);
        }
        for (j = 0; j < size.width / 2; ++j, ++out) {
            const float before = kAdd ? load<float>(out) : 0.0f;
            store(out, before + row_sum[2 * j] + row_sum[2 * j + 1]);
        }
    }
}

// The two sums over one row of a plane that its gradient needs; backward_write then uses them.
template <class V, class T>
inline void backward_sums(const T* x, const float* quarter, float m, float scale, float shift, V& sum_g, V& sum_gd) {
    const V d = load<V>(x) - m;
    const V g = multiply_add(d, all<V>(scale), all<V>(shift)) > V{} ? load<V>(quarter) : V{};
    sum_g += g;
    sum_gd = multiply_add(g, d, sum_gd);
}

template <class V, class T>
inline void backward_write(const T* x, const float* quarter, float m, float scale, float shift, float mean_g,
                           float slope, T* grad_x) {
    const V d = load<V>(x) - m;
    const V g = multiply_add(d, all<V>(scale), all<V>(shift)) > V{} ? load<V>(quarter) : V{};
    store(grad_x, (g - mean_g - d * slope) * scale);
}

// Upsamples a row of the output's gradient to the input's width, times ¼; 0 in an odd last column.
template <class T>
inline void upsample_row(const T* grad, int64_t width, float* quarter) {
    for (int64_t j = 0; j < width / 2; ++j) quarter[2 * j] = quarter[2 * j + 1] = 0.25f * load<float>(grad + j);
    if (width % 2) quarter[width - 1] = 0;
}

// quarter: scratch for one row of x.
template <class T>
void norm_relu_pool_plane_backward(const T* grad, const T* x, MapSize size, float m, float rstd, float weight,
                                   float bias, T* grad_x, float* grad_weight, float* grad_bias, float* quarter) {
    const float scale = rstd * weight, shift = bias;
    const int64_t width = size.width;
    Vec sum_g{}, sum_gd{};
    float rest_g = 0, rest_gd = 0;
    for (int64_t i = 0; i < size.height / 2 * 2; ++i) {
        const T* row = x + i * width;
        upsample_row(grad + i / 2 * (width / 2), width, quarter);
        int64_t j = 0;
        for (; j + kLanes <= width; j += kLanes) {
            backward_sums(row + j, quarter + j, m, scale, shift, sum_g, sum_gd);
        }
        for (; j < width; ++j) backward_sums(row + j, quarter + j, m, scale, shift, rest_g, rest_gd);
    }
    rest_g += sum(sum_g);
    rest_gd += sum(sum_gd);
    *grad_weight = rest_gd * rstd;
    *grad_bias = rest_g;
    const float pixels = static_cast<float>(size.pixels());
    const float mean_g = rest_g / pixels, slope = rest_gd / pixels * rstd * rstd;
    for (int64_t i = 0; i < size.height; ++i) {
        const T* row = x + i * width;
        T* to = grad_x + i * width;
        if (i < size.height / 2 * 2) {
            upsample_row(grad + i / 2 * (width / 2), width, quarter);
        } else {
            std::fill(quarter, quarter + width, 0.0f);
        }
        int64_t j = 0;
        for (; j + kLanes <= width; j += kLanes) {
            backward_write<Vec>(row + j, quarter + j, m, scale, shift, mean_g, slope, to + j);
        }
        for (; j < width; ++j) backward_write<float>(row + j, quarter + j, m, scale, shift, mean_g, slope, to + j);
    }
}

}  // namespace fastdm::FASTDM_ISA
