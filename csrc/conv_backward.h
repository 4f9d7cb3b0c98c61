// The backward pass of conv.h: from the gradient of the pooled output to those of the images, of the convolution's
// weights, and of the norm's scale and shift, image by image in a workspace that stays in a thread's cache.
#pragma once

#include "conv.h"

namespace fastdm {

// What the backward pass of a block reads. grad: of the pooled output; x: the images, for the gradient to the weights
// only; conv, mean, rstd: from the forward pass.
template <class T>
struct BlockResultsOf {
    const T* grad;
    const T* x;
    const T* conv;
    const float* mean;
    const float* rstd;
};
using BlockResults = BlockResultsOf<float>;

// Where its gradients go, nullptr for one that is not needed. x: like the images; weight: [3, 3, in, out]; scale,
// shift: [out].
template <class T>
struct BlockGradientsOf {
    T* x;
    float* weight;
    float* scale;
    float* shift;
};
using BlockGradients = BlockGradientsOf<float>;

// The gradient of image n to the result of the convolution, and its shares of those to scale and shift, which lie in
// shares, [N, 2, out].
template <class T>
void norm_backward(const BlockResultsOf<T>& from, int64_t n, const ConvShape& s, const Affine& affine, T* grad_y,
                   float* shares, Cpu cpu) {
    const MapSize size = s.out_size();
    float* share = shares + 2 * n * s.out;
    FASTDM_CALL(cpu, norm_relu_pool_nhwc_backward, from.grad + n * size.pooled().pixels() * s.out,
                from.conv + n * size.pixels() * s.out, size, s.out, from.mean + n * s.out, from.rstd + n * s.out,
                affine, grad_y, share, share + s.out);
}

inline Workspace& shares_workspace() {
    thread_local Workspace workspace;
    return workspace;
}

// Adds up shares that are `stride` elements apart, in their order.
inline void add_up(const float* shares, int64_t stride, int64_t count, int64_t elements, float* to) {
    std::fill(to, to + elements, 0.0f);
    for (int64_t share = 0; share < count; ++share) {
        for (int64_t i = 0; i < elements; ++i) to[i] += shares[share * stride + i];
    }
}

// How many of `count` images add up to a share of the gradient to the weights: a multiple of `images`, which are worked
// on together. Not few: every share is as large as the weights, and is added to the others.
inline int64_t images_per_share(int64_t count, int64_t images) {
    constexpr int64_t kShareImages = 8, kMostShares = 32;
    const int64_t wanted = std::max<int64_t>(kShareImages, (count + kMostShares - 1) / kMostShares);
    return (wanted + images - 1) / images * images;
}

// Sums over images are made of shares, added in their order afterwards: they do not depend on the number of threads.
class BlockBackward {
public:
    BlockBackward(ThreadPool& pool, const BlockResults& from, int64_t count, const ConvShape& s, const Weights& w,
                  const Affine& affine, const BlockGradients& to, Cpu cpu)
        : pool_(pool), from_(from), count_(count), s_(s), w_(w), affine_(affine), to_(to), cpu_(cpu) {
        images_ = is_direct(s) ? 1 : images_per_round(s);
        if (to.weight) {
            share_ = images_per_share(count, images_);
        } else {
            share_ = images_ = is_direct(s) ? 1 : images_per_task(pool, count, s.backward());
        }
        const int64_t shares = to.weight ? (count + share_ - 1) / share_ : 0;
        norm_shares_ = shares_workspace().reserve(2 * count * s.out + shares * weights());
        weight_shares_ = norm_shares_ + 2 * count * s.out;
    }

    void run() {
        is_direct(s_) ? run_direct() : run_winograd();
        if (to_.scale) add_up(norm_shares_, 2 * s_.out, count_, s_.out, to_.scale);
        if (to_.shift) add_up(norm_shares_ + s_.out, 2 * s_.out, count_, s_.out, to_.shift);
        if (to_.weight) add_up(weight_shares_, weights(), (count_ + share_ - 1) / share_, weights(), to_.weight);
    }

private:
    int64_t weights() const { return 9 * s_.in * s_.out; }
    int64_t elements() const { return s_.out_size().pixels() * s_.out; }
    int64_t in_elements() const { return s_.in_size.pixels() * s_.in; }

    void run_direct() {
        const int64_t width = s_.out_size().width + 2, padded_elements = (s_.out_size().height + 2) * width * s_.in;
        float* packed = nullptr;
        if (to_.x) {
            packed = weights_workspace().reserve(kDirectTaps * s_.out);
            FASTDM_CALL(cpu_, direct_backward_weights, w_, packed);
        }
        pool_.run(count_, share_, [&](int64_t begin, int64_t end) {
            float* padded = images_workspace().reserve(padded_elements + elements());
            float* grad_y = padded + padded_elements;
            for (int64_t n = begin; n < end; ++n) {
                norm_backward(from_, n, s_, affine_, grad_y, norm_shares_, cpu_);
                if (to_.weight) {
                    float* share = weight_shares_ + n / share_ * weights();
                    if (n % share_ == 0) std::fill(share, share + weights(), 0.0f);
                    pad_image(from_.x + n * in_elements(), s_, padded);
                    FASTDM_CALL(cpu_, direct_add_gradient, padded, grad_y, s_, share);
                }
                if (!to_.x) continue;
                std::fill(padded, padded + padded_elements, 0.0f);
                FASTDM_CALL(cpu_, direct_conv_backward, grad_y, s_, packed, padded);
                for (int64_t i = 0; i < s_.in_size.height; ++i) {
                    const float* from = padded + ((i + s_.padding) * width + s_.padding) * s_.in;
                    std::copy(from, from + s_.in_size.width * s_.in,
                              to_.x + n * in_elements() + i * s_.in_size.width * s_.in);
                }
            }
        });
    }

    void run_winograd() {
        const ConvShape back = s_.backward();
        const float* transformed = to_.x ? transform_weights(pool_, w_.backward(), cpu_) : nullptr;
        const int64_t scratch = std::max(winograd_workspace_elements(back), winograd_workspace_elements(s_));
        const int64_t sums_elements = to_.weight ? 36 * s_.in * s_.out : 0;
        pool_.run(count_, share_, [&](int64_t begin, int64_t end) {
            float* workspace = images_workspace().reserve(scratch + sums_elements + images_ * elements());
            float* sums = workspace + scratch;
            float* grad_y = sums + sums_elements;
            for (int64_t first = begin; first < end; first += images_) {
                const int64_t batch = std::min(images_, end - first);
                for (int64_t i = 0; i < batch; ++i) {
                    norm_backward(from_, first + i, s_, affine_, grad_y + i * elements(), norm_shares_, cpu_);
                }
                if (to_.x) {
                    FASTDM_CALL(cpu_, winograd_conv, grad_y, batch, back, transformed, workspace,
                                to_.x + first * in_elements());
                }
                if (!to_.weight) continue;
                if (first % share_ == 0) std::fill(sums, sums + sums_elements, 0.0f);
                FASTDM_CALL(cpu_, winograd_add_gradient, from_.x + first * in_elements(), grad_y, batch, s_, workspace,
                            sums);
                if (first + batch == end || (first + batch) % share_ == 0) {
                    FASTDM_CALL(cpu_, winograd_weight_gradient, sums, s_, weight_shares_ + first / share_ * weights());
                }
            }
        });
    }

    ThreadPool& pool_;
    const BlockResults from_;
    const int64_t count_;
    const ConvShape s_;
    const Weights w_;
    const Affine affine_;
    const BlockGradients to_;
    const Cpu cpu_;
    int64_t images_;  // that are worked on together
    int64_t share_;   // images of a share, a multiple of images_
    float* norm_shares_;
    float* weight_shares_;
};

inline void conv_norm_relu_pool_backward(ThreadPool& pool, const BlockResults& from, int64_t count, const ConvShape& s,
                                         const Weights& w, const Affine& affine, const BlockGradients& to,
                                         Cpu cpu = this_cpu()) {
    BlockBackward(pool, from, count, s, w, affine, to, cpu).run();
}

}  // namespace fastdm
