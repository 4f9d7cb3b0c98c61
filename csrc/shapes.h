// Shapes of feature maps and convolutions.
#pragma once

#include <cstdint>

namespace fastdm {

// Rows and columns of a feature map.
struct MapSize {
    int64_t height;
    int64_t width;

    int64_t pixels() const { return height * width; }
    MapSize pooled() const { return {height / 2, width / 2}; }
};

// A batch of feature maps: [N, H, W, C] if channels_last, else [N, C, H, W].
struct Maps {
    int64_t count;
    int64_t channels;
    MapSize size;
    bool channels_last;

    int64_t elements() const { return channels * size.pixels(); }  // per image
};

// Scale and shift of each channel (nullptr for 1 and 0), and the epsilon added to the variance.
struct Affine {
    const float* weight;
    const float* bias;
    float eps;

    const float* weight_at(int64_t c) const { return weight ? weight + c : nullptr; }
    const float* bias_at(int64_t c) const { return bias ? bias + c : nullptr; }
    Affine from(int64_t c) const { return {weight_at(c), bias_at(c), eps}; }
    float scale(int64_t c) const { return weight ? weight[c] : 1.0f; }
    float shift(int64_t c) const { return bias ? bias[c] : 0.0f; }
};

// A 3×3 convolution of images [H, W, in] to [H', W', out]. A negative padding crops.
struct ConvShape {
    int64_t in;
    int64_t out;
    MapSize in_size;
    int64_t padding;

    MapSize out_size() const { return {in_size.height + 2 * padding - 2, in_size.width + 2 * padding - 2}; }
    // The convolution from the output's gradient to the input's, with the weights rotated by 180°.
    ConvShape backward() const { return {out, in, out_size(), 2 - padding}; }
};

// Weights [out, in, 3, 3], in any memory layout.
template <class T>
struct WeightsOf {
    const T* data;
    int64_t out, in;
    int64_t out_stride, in_stride, row_stride, column_stride;

    T at(int64_t to, int64_t from, int tap) const {
        return data[to * out_stride + from * in_stride + tap / 3 * row_stride + tap % 3 * column_stride];
    }
    // For the backward convolution: in and out exchanged, the taps rotated by 180°.
    WeightsOf backward() const {
        const T* last = data + 2 * row_stride + 2 * column_stride;
        return {last, in, out, in_stride, out_stride, -row_stride, -column_stride};
    }
};
using Weights = WeightsOf<float>;

constexpr int64_t kWinogradTiles = 48;    // per round, so that their transforms and products stay in a core's cache
constexpr int64_t kWinogradColumns = 64;  // output channels per round
constexpr int64_t kDirectTaps = 64;       // at least 9 · in, rounded up to a panel

}  // namespace fastdm
