// InstanceNorm → ReLU → 2×2 average pooling of a batch in float32 or bfloat16, computed in float32, on all threads.
#pragma once

#include <cstdint>
#include <vector>

#include "isa.h"
#include "shapes.h"
#include "thread_pool.h"

namespace fastdm {

// out: like x, with the pooled size; mean, rstd: [N, C].
template <class T>
void norm_relu_pool(ThreadPool& pool, const T* x, const Maps& maps, const Affine& affine, T* out, float* mean,
                    float* rstd, Cpu cpu = this_cpu()) {
    const int64_t channels = maps.channels, pixels = maps.size.pixels(), out_pixels = maps.size.pooled().pixels();
    if (maps.channels_last) {
        pool.run(maps.count, 1, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin; n < end; ++n) {
                FASTDM_CALL(cpu, norm_relu_pool_nhwc<false>, x + n * channels * pixels, maps.size, channels, channels,
                            affine, out + n * channels * out_pixels, channels, mean + n * channels,
                            rstd + n * channels);
            }
        });
        return;
    }
    pool.run(maps.count * channels, channels, [&](int64_t begin, int64_t end) {
        std::vector<float> row(static_cast<size_t>(maps.size.width));
        for (int64_t plane = begin; plane < end; ++plane) {
            const int64_t c = plane % channels;
            FASTDM_CALL(cpu, norm_relu_pool_plane<false>, x + plane * pixels, maps.size, affine.scale(c),
                        affine.shift(c), affine.eps, out + plane * out_pixels, mean + plane, rstd + plane, row.data());
        }
    });
}

// grad: like out; grad_x: like x; grad_weight, grad_bias: [C].
template <class T>
void norm_relu_pool_backward(ThreadPool& pool, const T* grad, const T* x, const Maps& maps, const float* mean,
                             const float* rstd, const Affine& affine, T* grad_x, float* grad_weight, float* grad_bias,
                             Cpu cpu = this_cpu()) {
    const int64_t channels = maps.channels, pixels = maps.size.pixels(), out_pixels = maps.size.pooled().pixels();
    // One share per image, summed in order afterwards, so that the sum does not depend on the number of threads.
    std::vector<float> shares(static_cast<size_t>(2 * maps.count * channels));
    float* share_weight = shares.data();
    float* share_bias = shares.data() + maps.count * channels;
    if (maps.channels_last) {
        pool.run(maps.count, 1, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin; n < end; ++n) {
                const int64_t at = n * channels;
                FASTDM_CALL(cpu, norm_relu_pool_nhwc_backward, grad + at * out_pixels, x + at * pixels, maps.size,
                            channels, mean + at, rstd + at, affine, grad_x + at * pixels, share_weight + at,
                            share_bias + at);
            }
        });
    } else {
        pool.run(maps.count * channels, channels, [&](int64_t begin, int64_t end) {
            std::vector<float> row(static_cast<size_t>(maps.size.width));
            for (int64_t plane = begin; plane < end; ++plane) {
                const int64_t c = plane % channels;
                FASTDM_CALL(cpu, norm_relu_pool_plane_backward, grad + plane * out_pixels, x + plane * pixels,
                            maps.size, mean[plane], rstd[plane], affine.scale(c), affine.shift(c),
                            grad_x + plane * pixels, share_weight + plane, share_bias + plane, row.data());
            }
        });
    }
    std::fill(grad_weight, grad_weight + channels, 0.0f);
    std::fill(grad_bias, grad_bias + channels, 0.0f);
    for (int64_t n = 0; n < maps.count; ++n) {
        for (int64_t c = 0; c < channels; ++c) {
            grad_weight[c] += share_weight[n * channels + c];
            grad_bias[c] += share_bias[n * channels + c];
        }
    }
}

// out: float32 [classes, C · H / 2 · W / 2], the mean over the images offsets[c] to offsets[c + 1] of each class, in
// the order (channel, row, column); 0 for a class without images.
template <class T>
void norm_relu_pool_mean(ThreadPool& pool, const T* x, const Maps& maps, const int64_t* offsets, int64_t classes,
                         const Affine& affine, float* out, Cpu cpu = this_cpu()) {
    // One task: 64 channels of one class, image by image. They fill two cache lines in bfloat16, so threads share none.
    constexpr int64_t kChannels = 64;
    const int64_t channels = maps.channels, pixels = maps.size.pixels(), out_pixels = maps.size.pooled().pixels();
    const int64_t blocks = (channels + kChannels - 1) / kChannels;
    pool.run(classes * blocks, 1, [&](int64_t begin, int64_t end) {
        float mean[kChannels], rstd[kChannels];
        std::vector<float> row(static_cast<size_t>(maps.size.width));
        std::vector<float> total(static_cast<size_t>(kChannels * out_pixels));
        for (int64_t task = begin; task < end; ++task) {
            const int64_t id = task / blocks, first = task % blocks * kChannels;
            const int64_t width = std::min(kChannels, channels - first);
            std::fill(total.begin(), total.end(), 0.0f);
            for (int64_t n = offsets[id]; n < offsets[id + 1]; ++n) {
                const T* image = x + n * channels * pixels;
                if (maps.channels_last) {
                    FASTDM_CALL(cpu, norm_relu_pool_nhwc<true>, image + first, maps.size, width, channels,
                                affine.from(first), total.data(), width, mean, rstd);
                    continue;
                }
                for (int64_t c = 0; c < width; ++c) {
                    FASTDM_CALL(cpu, norm_relu_pool_plane<true>, image + (first + c) * pixels, maps.size,
                                affine.scale(first + c), affine.shift(first + c), affine.eps,
                                total.data() + c * out_pixels, mean, rstd, row.data());
                }
            }
            const float share = 1.0f / static_cast<float>(std::max<int64_t>(1, offsets[id + 1] - offsets[id]));
            float* to = out + (id * channels + first) * out_pixels;
            for (int64_t c = 0; c < width; ++c) {
                for (int64_t pixel = 0; pixel < out_pixels; ++pixel) {
                    const int64_t from = maps.channels_last ? pixel * width + c : c * out_pixels + pixel;
                    to[c * out_pixels + pixel] = total[static_cast<size_t>(from)] * share;
                }
            }
        }
    });
}

}  // namespace fastdm
