// conv.h for bfloat16: 3×3 convolution → InstanceNorm → ReLU → 2×2 average pooling of a batch of images, NHWC, through
// tiles, and its gradient to the images, on all threads. A thread takes an image (or a few small ones) from the input
// to the pooled output, in a workspace that stays in its cache.
//
// All sums are float32, and the norm reads the convolution's as they are. What is kept of them for a backward pass, and
// what it hands on, is rounded to bfloat16, as PyTorch's convolutions round.
#pragma once

#include <algorithm>
#include <cstdint>

#include "conv.h"
#include "conv_backward.h"
#include "tile_conv.h"

namespace fastdm {

// Tiles of rows that are worked on together, so that the weights, read from the second cache, serve several.
constexpr int64_t kTilesTogether = 20;

inline int64_t images_per_task(const ThreadPool& pool, int64_t count, const TileConv& conv) {
    return std::min(std::max<int64_t>(1, kTilesTogether / conv.tiles()),
                    std::max<int64_t>(1, (count + pool.threads() - 1) / pool.threads()));
}

// The float32 that take as much memory as so many bfloat16.
inline int64_t halves(int64_t elements) { return (elements + 1) / 2; }

// A workspace of bfloat16.
inline bfloat16* reserve(Workspace& workspace, int64_t elements) {
    return reinterpret_cast<bfloat16*>(workspace.reserve(halves(elements)));
}

inline const bfloat16* pack_weights(ThreadPool& pool, const TileConv& conv, const WeightsOf<bfloat16>& w) {
    bfloat16* packed = reserve(weights_workspace(), conv.packed_elements());
    pool.run(conv.columns(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t column = begin; column < end; ++column) conv.pack(w, column, packed);
    });
    return packed;
}

// x: [N, H, W, in]; out: [N, H' / 2, W' / 2, out]; mean, rstd: [N, out].
// conv_out: [N, H', W', out], the result of the convolution, or nullptr if no backward pass will need it.
inline void conv_norm_relu_pool(ThreadPool& pool, const bfloat16* x, int64_t count, const ConvShape& s,
                                const WeightsOf<bfloat16>& w, const Affine& affine, bfloat16* out, bfloat16* conv_out,
                                float* mean, float* rstd, TileForm form, Cpu cpu = this_cpu()) {
    const TileConv conv(s);
    const MapSize size = s.out_size();
    const int64_t in_elements = s.in_size.pixels() * s.in, elements = size.pixels() * s.out;
    const int64_t out_elements = size.pooled().pixels() * s.out;
    const int64_t images = images_per_task(pool, count, conv);
    // A block of channels at a time, so that the norm finds the result of the convolution in the cache.
    const int64_t block = std::min<int64_t>(64, s.out), results = images * size.pixels() * block;
    const bfloat16* packed = pack_weights(pool, conv, w);
    pool.run(count, images, [&](int64_t begin, int64_t end) {
        float* y = images_workspace().reserve(results + halves(images * conv.laid_elements()) +
                                              halves(conv.scratch_elements()));
        bfloat16* laid = reinterpret_cast<bfloat16*>(y + results);
        bfloat16* scratch = laid + images * conv.laid_elements();
        with_tiles(form, [&](auto& tiles) {
            for (int64_t first = begin; first < end; first += images) {
                const int64_t batch = std::min(images, end - first);
                for (int64_t i = 0; i < batch; ++i) {
                    conv.lay(x + (first + i) * in_elements, laid + i * conv.laid_elements(), scratch);
                }
                for (int64_t c = 0; c < s.out; c += block) {
                    const int64_t channels = std::min(block, s.out - c);
                    const Pixels<bfloat16> kept{conv_out ? conv_out + first * elements + c : nullptr, s.out};
                    conv.run(tiles, laid, batch, c, channels, packed, {y, block}, kept, cpu);
                    for (int64_t i = 0; i < batch; ++i) {
                        const int64_t n = first + i;
                        FASTDM_CALL(cpu, norm_relu_pool_nhwc<false>, y + i * size.pixels() * block, size, channels,
                                    block, affine.from(c), out + n * out_elements + c, s.out, mean + n * s.out + c,
                                    rstd + n * s.out + c);
                    }
                }
            }
        });
    });
}

// grad: of the pooled output; conv_out, mean, rstd: from the forward pass; grad_x: like x, grad_scale, grad_shift:
// [out]; nullptr for one that is not needed.
inline void conv_norm_relu_pool_backward(ThreadPool& pool, const bfloat16* grad, const bfloat16* conv_out,
                                         const float* mean, const float* rstd, int64_t count, const ConvShape& s,
                                         const WeightsOf<bfloat16>& w, const Affine& affine, bfloat16* grad_x,
                                         float* grad_scale, float* grad_shift, TileForm form, Cpu cpu = this_cpu()) {
    const TileConv back(s.backward());
    const MapSize size = s.out_size();
    const int64_t elements = size.pixels() * s.out, in_elements = s.in_size.pixels() * s.in;
    const int64_t images = images_per_task(pool, count, back);
    // One share per image, summed in order afterwards, so that the sum does not depend on the number of threads.
    float* shares = shares_workspace().reserve(2 * count * s.out);
    const bfloat16* packed = grad_x ? pack_weights(pool, back, w.backward()) : nullptr;
    pool.run(count, images, [&](int64_t begin, int64_t end) {
        bfloat16* laid = reserve(images_workspace(), images * back.laid_elements() + elements);
        bfloat16* grad_y = laid + images * back.laid_elements();
        with_tiles(form, [&](auto& tiles) {
            for (int64_t first = begin; first < end; first += images) {
                const int64_t batch = std::min(images, end - first);
                for (int64_t i = 0; i < batch; ++i) {
                    const int64_t n = first + i;
                    float* share = shares + 2 * n * s.out;
                    FASTDM_CALL(cpu, norm_relu_pool_nhwc_backward, grad + n * size.pooled().pixels() * s.out,
                                conv_out + n * elements, size, s.out, mean + n * s.out, rstd + n * s.out, affine,
                                grad_y, share, share + s.out);
                    if (grad_x) back.lay(grad_y, laid + i * back.laid_elements(), nullptr);
                }
                if (!grad_x) continue;
                back.run(tiles, laid, batch, 0, s.in, packed, {nullptr, 0}, {grad_x + first * in_elements, s.in}, cpu);
            }
        });
    });
    if (grad_scale) add_up(shares, 2 * s.out, count, s.out, grad_scale);
    if (grad_shift) add_up(shares + s.out, 2 * s.out, count, s.out, grad_shift);
}

}  // namespace fastdm
