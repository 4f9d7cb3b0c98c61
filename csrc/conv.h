// 3×3 convolution → InstanceNorm → ReLU → 2×2 average pooling of a batch of float32 images, channels-last, on all
// threads. A thread takes an image (or a few small ones) from the input to the pooled output, in buffers that stay in
// its cache.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "each_cpu.h"
#include "maps.h"
#include "thread_pool.h"

namespace fastdm {

// Which convolutions are done here.
inline bool can_convolve(int64_t in, int64_t out) { return out % 32 == 0 && (9 * in <= kDirectTaps || in % 32 == 0); }
inline bool is_direct(const ConvShape& s) { return 9 * s.in <= kDirectTaps; }

// A buffer that grows and is kept: an allocation of this size would be given back to the system after every use.
class Room {
public:
    Room() = default;
    ~Room() { std::free(data_); }
    Room(const Room&) = delete;
    Room& operator=(const Room&) = delete;

    float* take(int64_t numbers) {
        if (numbers > numbers_) {
            std::free(data_);
            // In large pages: the transforms touch 36 places at a time, more than a core has entries for small ones.
            const size_t page = size_t{2} << 20;
            const size_t bytes = (static_cast<size_t>(numbers) * sizeof(float) + page - 1) / page * page;
            data_ = static_cast<float*>(std::aligned_alloc(page, bytes));
            numbers_ = data_ ? numbers : 0;
            if (!data_) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
            madvise(data_, bytes, MADV_HUGEPAGE);
#endif
        }
        return data_;
    }

private:
    float* data_ = nullptr;
    int64_t numbers_ = 0;
};

inline Room& weights_room() {
    thread_local Room room;
    return room;
}

inline Room& images_room() {
    thread_local Room room;
    return room;
}

inline int64_t winograd_room(const ConvShape& s) {
    return s.in + 36 * (kWinogradTiles * (s.in + kWinogradColumns) + 2 * 16);
}

// Images that fill a round of tiles, unless that left a thread without work.
inline int64_t images_per_task(const ThreadPool& pool, int64_t count, const ConvShape& s) {
    const int64_t tiles = ((s.out_size().height + 3) / 4) * ((s.out_size().width + 3) / 4);
    const int64_t share = (count + pool.threads() - 1) / pool.threads();
    return std::max<int64_t>(1, std::min(kWinogradTiles / tiles, share));
}

inline const float* transform_weights(ThreadPool& pool, const Weights& w, Cpu cpu) {
    float* transformed = weights_room().take(36 * w.in * w.out);
    const int64_t panel = FASTDM_CALL(cpu, panel_columns);
    pool.run(w.out / panel, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) FASTDM_CALL(cpu, winograd_weights, w, i, transformed);
    });
    return transformed;
}

// Copies the image into the middle of a larger one of zeros, [H' + 2, W' + 2, in].
inline void pad_image(const float* x, const ConvShape& s, float* padded) {
    const int64_t height = s.out_size().height + 2, width = s.out_size().width + 2, row = s.in_size.width * s.in;
    std::fill(padded, padded + height * width * s.in, 0.0f);
    for (int64_t i = 0; i < s.in_size.height; ++i) {
        std::copy(x + i * row, x + (i + 1) * row, padded + ((i + s.padding) * width + s.padding) * s.in);
    }
}

// x: [N, H, W, in]; out: [N, H' / 2, W' / 2, out]; mean, rstd: [N, out].
// conv_out: [N, H', W', out], the convolution's result, or nullptr if no gradient will be asked for.
inline void conv_norm_relu_pool(ThreadPool& pool, const float* x, int64_t count, const ConvShape& s,
                                const Weights& w, float eps, float* out, float* conv_out, float* mean, float* rstd,
                                Cpu cpu = this_cpu()) {
    const MapSize size = s.out_size();
    const int64_t in_numbers = s.in_size.pixels() * s.in, numbers = size.pixels() * s.out;
    const int64_t out_numbers = size.pooled().pixels() * s.out;
    const Affine affine{nullptr, nullptr, eps};

    if (is_direct(s)) {
        const int64_t padded_numbers = (size.height + 2) * (size.width + 2) * s.in;
        float* packed = weights_room().take(9 * s.in * s.out);
        FASTDM_CALL(cpu, direct_weights, w, packed);
        pool.run(count, 1, [&](int64_t begin, int64_t end) {
            // Few channels at a time, so that the convolution's result is still in the cache for the norm.
            const int64_t block = std::min<int64_t>(64, s.out);
            float* room = images_room().take(padded_numbers + size.pixels() * block);
            for (int64_t n = begin; n < end; ++n) {
                pad_image(x + n * in_numbers, s, room);
                for (int64_t c = 0; c < s.out; c += block) {
                    const int64_t channels = std::min(block, s.out - c), stride = conv_out ? s.out : block;
                    float* y = conv_out ? conv_out + n * numbers + c : room + padded_numbers;
                    FASTDM_CALL(cpu, direct_conv, room, s, packed + c * 9 * s.in, channels, y, stride);
                    FASTDM_CALL(cpu, norm_relu_pool_last<false>, y, size, channels, stride, affine,
                                out + n * out_numbers + c, s.out, mean + n * s.out + c, rstd + n * s.out + c);
                }
            }
        });
        return;
    }

    const float* transformed = transform_weights(pool, w, cpu);
    const int64_t images = images_per_task(pool, count, s);
    pool.run(count, images, [&](int64_t begin, int64_t end) {
        float* room = images_room().take(winograd_room(s) + images * numbers);
        for (int64_t first = begin; first < end; first += images) {
            const int64_t batch = std::min(images, end - first);
            float* y = conv_out ? conv_out + first * numbers : room + winograd_room(s);
            FASTDM_CALL(cpu, winograd_conv, x + first * in_numbers, batch, s, transformed, room, y);
            for (int64_t n = first; n < first + batch; ++n) {
                FASTDM_CALL(cpu, norm_relu_pool_last<false>, y + (n - first) * numbers, size, s.out, s.out, affine,
                            out + n * out_numbers, s.out, mean + n * s.out, rstd + n * s.out);
            }
        }
    });
}

// grad: like out; grad_x: like x; the others as the forward left them.
inline void conv_norm_relu_pool_backward(ThreadPool& pool, const float* grad, const float* conv_out, const float* mean,
                                         const float* rstd, int64_t count, const ConvShape& s, const Weights& w,
                                         float* grad_x, Cpu cpu = this_cpu()) {
    const MapSize size = s.out_size();
    const int64_t in_numbers = s.in_size.pixels() * s.in, numbers = size.pixels() * s.out;
    const int64_t out_numbers = size.pooled().pixels() * s.out;
    const Affine affine{nullptr, nullptr, 0.0f};

    const auto norm_backward = [&](int64_t n, float* grad_y, float* unused) {
        FASTDM_CALL(cpu, norm_relu_pool_last_backward, grad + n * out_numbers, conv_out + n * numbers, size, s.out,
                    mean + n * s.out, rstd + n * s.out, affine, grad_y, unused, unused + s.out);
    };

    if (is_direct(s)) {
        const int64_t width = size.width + 2, padded_numbers = (size.height + 2) * width * s.in;
        float* packed = weights_room().take(kDirectTaps * s.out);
        FASTDM_CALL(cpu, direct_backward_weights, w, packed);
        pool.run(count, 1, [&](int64_t begin, int64_t end) {
            float* padded = images_room().take(padded_numbers + numbers + 2 * s.out);
            float* grad_y = padded + padded_numbers;
            for (int64_t n = begin; n < end; ++n) {
                norm_backward(n, grad_y, grad_y + numbers);
                std::fill(padded, padded + padded_numbers, 0.0f);
                FASTDM_CALL(cpu, direct_conv_backward, grad_y, s, packed, padded);
                for (int64_t i = 0; i < s.in_size.height; ++i) {
                    const float* from = padded + ((i + s.padding) * width + s.padding) * s.in;
                    std::copy(from, from + s.in_size.width * s.in, grad_x + n * in_numbers + i * s.in_size.width * s.in);
                }
            }
        });
        return;
    }

    const ConvShape back = s.backward();
    const float* transformed = transform_weights(pool, w.backward(), cpu);
    const int64_t images = images_per_task(pool, count, back);
    pool.run(count, images, [&](int64_t begin, int64_t end) {
        float* room = images_room().take(winograd_room(back) + images * numbers + 2 * s.out);
        float* grad_y = room + winograd_room(back);
        for (int64_t first = begin; first < end; first += images) {
            const int64_t batch = std::min(images, end - first);
            for (int64_t i = 0; i < batch; ++i) norm_backward(first + i, grad_y + i * numbers, grad_y + images * numbers);
            FASTDM_CALL(cpu, winograd_conv, grad_y, batch, back, transformed, room, grad_x + first * in_numbers);
        }
    });
}

}  // namespace fastdm
