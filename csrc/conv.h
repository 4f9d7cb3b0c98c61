// 3×3 convolution → InstanceNorm → ReLU → 2×2 average pooling of a batch of float32 images, NHWC, on all threads. A
// thread takes an image (or a few small ones) from the input to the pooled output, in a workspace that stays in its
// cache.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "isa.h"
#include "shapes.h"
#include "thread_pool.h"

namespace fastdm {

// Which convolutions are implemented.
inline bool can_convolve(int64_t in, int64_t out) { return out % 32 == 0 && (9 * in <= kDirectTaps || in % 32 == 0); }
inline bool is_direct(const ConvShape& s) { return 9 * s.in <= kDirectTaps; }

// A buffer that grows and is kept: malloc would return an allocation of this size to the system after every use.
class Workspace {
public:
    Workspace() = default;
    ~Workspace() { std::free(data_); }
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

    float* reserve(int64_t elements) {
        if (elements > capacity_) {
            std::free(data_);
            // In huge pages: the transforms touch 36 locations at a time, too many for a core's TLB with small pages.
            const size_t page = size_t{2} << 20;
            const size_t bytes = (static_cast<size_t>(elements) * sizeof(float) + page - 1) / page * page;
            data_ = static_cast<float*>(std::aligned_alloc(page, bytes));
            capacity_ = data_ ? elements : 0;
            if (!data_) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
            madvise(data_, bytes, MADV_HUGEPAGE);
#endif
        }
        return data_;
    }

private:
    float* data_ = nullptr;
    int64_t capacity_ = 0;
};

inline Workspace& weights_workspace() {
    thread_local Workspace workspace;
    return workspace;
}

inline Workspace& images_workspace() {
    thread_local Workspace workspace;
    return workspace;
}

inline int64_t winograd_workspace_elements(const ConvShape& s) {
    return s.in + 36 * (kWinogradTiles * (s.in + kWinogradColumns) + 2 * 16);
}

// Enough images for a round of tiles.
inline int64_t images_per_round(const ConvShape& s) {
    const int64_t tiles = ((s.out_size().height + 3) / 4) * ((s.out_size().width + 3) / 4);
    return std::max<int64_t>(1, kWinogradTiles / tiles);
}

// The same, but not so many that a thread has none.
inline int64_t images_per_task(const ThreadPool& pool, int64_t count, const ConvShape& s) {
    return std::min(images_per_round(s), std::max<int64_t>(1, (count + pool.threads() - 1) / pool.threads()));
}

inline const float* transform_weights(ThreadPool& pool, const Weights& w, Cpu cpu) {
    float* transformed = weights_workspace().reserve(36 * w.in * w.out);
    const int64_t panel = FASTDM_CALL(cpu, panel_columns);
    pool.run(w.out / panel, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) FASTDM_CALL(cpu, winograd_weights, w, i, transformed);
    });
    return transformed;
}

// Pads the image with zeros to [H' + 2, W' + 2, in].
inline void pad_image(const float* x, const ConvShape& s, float* padded) {
    const int64_t height = s.out_size().height + 2, width = s.out_size().width + 2, row = s.in_size.width * s.in;
    std::fill(padded, padded + height * width * s.in, 0.0f);
    for (int64_t i = 0; i < s.in_size.height; ++i) {
        std::copy(x + i * row, x + (i + 1) * row, padded + ((i + s.padding) * width + s.padding) * s.in);
    }
}

// x: [N, H, W, in]; out: [N, H' / 2, W' / 2, out]; mean, rstd: [N, out].
// conv_out: [N, H', W', out], the result of the convolution, or nullptr if no backward pass will need it.
inline void conv_norm_relu_pool(ThreadPool& pool, const float* x, int64_t count, const ConvShape& s, const Weights& w,
                                const Affine& affine, float* out, float* conv_out, float* mean, float* rstd,
                                Cpu cpu = this_cpu()) {
    const MapSize size = s.out_size();
    const int64_t in_elements = s.in_size.pixels() * s.in, elements = size.pixels() * s.out;
    const int64_t out_elements = size.pooled().pixels() * s.out;

    if (is_direct(s)) {
        const int64_t padded_elements = (size.height + 2) * (size.width + 2) * s.in;
        float* packed = weights_workspace().reserve(9 * s.in * s.out);
        FASTDM_CALL(cpu, direct_weights, w, packed);
        pool.run(count, 1, [&](int64_t begin, int64_t end) {
            // A block of channels at a time, so that the norm finds the result of the convolution in the cache.
            const int64_t block = std::min<int64_t>(64, s.out);
            float* workspace = images_workspace().reserve(padded_elements + size.pixels() * block);
            for (int64_t n = begin; n < end; ++n) {
                pad_image(x + n * in_elements, s, workspace);
                for (int64_t c = 0; c < s.out; c += block) {
                    const int64_t channels = std::min(block, s.out - c), stride = conv_out ? s.out : block;
                    float* y = conv_out ? conv_out + n * elements + c : workspace + padded_elements;
                    FASTDM_CALL(cpu, direct_conv, workspace, s, packed + c * 9 * s.in, channels, y, stride);
                    FASTDM_CALL(cpu, norm_relu_pool_nhwc<false>, y, size, channels, stride, affine.from(c),
                                out + n * out_elements + c, s.out, mean + n * s.out + c, rstd + n * s.out + c);
                }
            }
        });
        return;
    }

    const float* transformed = transform_weights(pool, w, cpu);
    const int64_t images = images_per_task(pool, count, s);
    pool.run(count, images, [&](int64_t begin, int64_t end) {
        float* workspace = images_workspace().reserve(winograd_workspace_elements(s) + images * elements);
        for (int64_t first = begin; first < end; first += images) {
            const int64_t batch = std::min(images, end - first);
            float* y = conv_out ? conv_out + first * elements : workspace + winograd_workspace_elements(s);
            FASTDM_CALL(cpu, winograd_conv, x + first * in_elements, batch, s, transformed, workspace, y);
            for (int64_t n = first; n < first + batch; ++n) {
                FASTDM_CALL(cpu, norm_relu_pool_nhwc<false>, y + (n - first) * elements, size, s.out, s.out, affine,
                            out + n * out_elements, s.out, mean + n * s.out, rstd + n * s.out);
            }
        }
    });
}

}  // namespace fastdm
