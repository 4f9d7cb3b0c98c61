// conv.h and conv_backward.h for bfloat16: 3×3 convolution → InstanceNorm → ReLU → 2×2 average pooling of a batch of
// images, NHWC, and its gradients, through tiles, on all threads. A thread takes an image (or a few small ones) from
// the input to the pooled output, or back, in a workspace that stays in its cache.
//
// All sums are float32, and the norm reads the convolution's as they are. What is kept of them for a backward pass, and
// the gradients that it hands on to both convolutions, are rounded to bfloat16, as PyTorch's convolutions round.
#pragma once

#include <algorithm>
#include <cstdint>

#include "conv.h"
#include "conv_backward.h"
#include "tile_conv.h"
#include "tile_gradient.h"

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
                std::fill_n(mean + first * s.out, batch * s.out, 0.0f);
                std::fill_n(rstd + first * s.out, batch * s.out, 0.0f);
                for (int64_t i = 0; i < batch; ++i) {
                    conv.lay(x + (first + i) * in_elements, laid + i * conv.laid_elements(), scratch);
                }
                for (int64_t c = 0; c < s.out; c += block) {
                    const int64_t channels = std::min(block, s.out - c);
                    const Pixels<bfloat16> kept{conv_out ? conv_out + first * elements + c : nullptr, s.out};
                    const MergedStatistics statistics{mean + first * s.out + c, rstd + first * s.out + c, s.out};
                    conv.run(tiles, laid, batch, c, channels, packed, {y, block}, kept, statistics, cpu);
                    for (int64_t i = 0; i < batch; ++i) {
                        const int64_t n = first + i;
                        FASTDM_CALL(cpu, norm_relu_pool_nhwc<false>, y + i * size.pixels() * block, size, channels,
                                    block, affine.from(c), out + n * out_elements + c, s.out, mean + n * s.out + c,
                                    rstd + n * s.out + c, conv.fills_tiles(channels));
                    }
                }
            }
        });
    });
}

// The backward pass, as BlockBackward has it for float32.
class TileBackward {
public:
    TileBackward(ThreadPool& pool, const BlockResultsOf<bfloat16>& from, int64_t count, const ConvShape& s,
                 const Affine& affine, const BlockGradientsOf<bfloat16>& to, TileForm form, Cpu cpu)
        : pool_(pool),
          from_(from),
          count_(count),
          s_(s),
          affine_(affine),
          to_(to),
          form_(form),
          cpu_(cpu),
          back_(s.backward()),
          gradient_(s) {
        images_ = to.weight ? gradient_.images() : images_per_task(pool, count, back_);
        share_ = to.weight ? images_per_share(count, images_) : images_;
        shares_ = to.weight ? (count + share_ - 1) / share_ : 0;
        // One share of the norm's sums per image.
        norm_shares_ = shares_workspace().reserve(2 * count * s.out + shares_ * gradient_.sums_elements());
        weight_shares_ = norm_shares_ + 2 * count * s.out;
    }

    void run(const WeightsOf<bfloat16>& w) {
        const bfloat16* packed = to_.x ? pack_weights(pool_, back_, w.backward()) : nullptr;
        pool_.run(count_, share_, [&](int64_t begin, int64_t end) { run_images(begin, end, packed); });
        if (to_.scale) add_up(norm_shares_, 2 * s_.out, count_, s_.out, to_.scale);
        if (to_.shift) add_up(norm_shares_ + s_.out, 2 * s_.out, count_, s_.out, to_.shift);
        if (to_.weight) add_up(weight_shares_, gradient_.sums_elements(), shares_, 9 * s_.in * s_.out, to_.weight);
    }

private:
    int64_t elements() const { return s_.out_size().pixels() * s_.out; }
    int64_t in_elements() const { return s_.in_size.pixels() * s_.in; }

    // packed: the weights for the gradient to the images.
    void run_images(int64_t begin, int64_t end, const bfloat16* packed) const {
        const int64_t of_weights = to_.weight ? gradient_.packed_elements() + gradient_.laid_elements() : 0;
        const int64_t of_images = to_.x ? images_ * back_.laid_elements() : 0;
        bfloat16* packed_y =
            reserve(images_workspace(), of_weights + elements() + of_images + gradient_.scratch_elements());
        bfloat16* laid_x = packed_y + gradient_.packed_elements();
        bfloat16* grad_y = packed_y + of_weights;
        bfloat16* laid_y = grad_y + elements();
        bfloat16* scratch = laid_y + of_images;
        with_tiles(form_, [&](auto& tiles) {
            for (int64_t first = begin; first < end; first += images_) {
                const int64_t batch = std::min(images_, end - first);
                for (int64_t i = 0; i < batch; ++i) {
                    norm_backward(from_, first + i, s_, affine_, grad_y, norm_shares_, cpu_);
                    if (to_.x) back_.lay(grad_y, laid_y + i * back_.laid_elements(), nullptr);
                    if (!to_.weight) continue;
                    gradient_.lay(from_.x + (first + i) * in_elements(), i, laid_x, scratch, cpu_);
                    gradient_.pack(grad_y, i, packed_y, cpu_);
                }
                if (to_.x) {
                    const Pixels<bfloat16> grad_x{to_.x + first * in_elements(), s_.in};
                    back_.run(tiles, laid_y, batch, 0, s_.in, packed, {nullptr, 0}, grad_x, {}, cpu_);
                }
                if (to_.weight) {
                    float* share = weight_shares_ + first / share_ * gradient_.sums_elements();
                    gradient_.run(tiles, laid_x, packed_y, batch, first % share_ != 0, share);
                }
            }
        });
    }

    ThreadPool& pool_;
    const BlockResultsOf<bfloat16> from_;
    const int64_t count_;
    const ConvShape s_;
    const Affine affine_;
    const BlockGradientsOf<bfloat16> to_;
    const TileForm form_;
    const Cpu cpu_;
    const TileConv back_;
    const TileGradient gradient_;
    int64_t images_;  // that are worked on together
    int64_t share_;   // images of a share, a multiple of images_
    int64_t shares_;  // of the gradient to the weights
    float* norm_shares_;
    float* weight_shares_;
};

inline void conv_norm_relu_pool_backward(ThreadPool& pool, const BlockResultsOf<bfloat16>& from, int64_t count,
                                         const ConvShape& s, const WeightsOf<bfloat16>& w, const Affine& affine,
                                         const BlockGradientsOf<bfloat16>& to, TileForm form, Cpu cpu = this_cpu()) {
    TileBackward(pool, from, count, s, affine, to, form, cpu).run(w);
}

}  // namespace fastdm
