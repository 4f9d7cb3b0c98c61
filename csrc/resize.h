// Box filter resize with the arithmetic of Pillow's Image.BOX, byte for byte.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace fastdm {

// The input pixels whose centres lie within one output pixel, and the weight of each in units of 2^-22.
struct BoxWindow {
    int64_t begin;
    int64_t end;
    uint32_t weight;
};

constexpr int kBoxBits = 22;

inline std::vector<BoxWindow> box_windows(int64_t in, int64_t out) {
    const double scale = static_cast<double>(in) / static_cast<double>(out);
    const double width = std::max(scale, 1.0);  // enlarging: the nearest pixel
    std::vector<BoxWindow> windows;
    for (int64_t i = 0; i < out; ++i) {
        const double center = (static_cast<double>(i) + 0.5) * scale;
        const auto inside = [&](int64_t x) {
            const double distance = (static_cast<double>(x) - center + 0.5) * (1.0 / width);
            return distance > -0.5 && distance <= 0.5;
        };
        int64_t begin = std::max<int64_t>(0, static_cast<int64_t>(center - 0.5 * width + 0.5));
        int64_t end = std::min(in, static_cast<int64_t>(center + 0.5 * width + 0.5));
        while (begin < end && !inside(begin)) ++begin;
        while (begin < end && !inside(end - 1)) --end;
        const double weight = begin < end ? 1.0 / static_cast<double>(end - begin) : 0.0;
        windows.push_back({begin, end, static_cast<uint32_t>(0.5 + weight * (1 << kBoxBits))});
    }
    return windows;
}

// sum · weight is at most about 255 · 2^22.
inline uint8_t box_value(uint32_t sum, uint32_t weight) {
    return static_cast<uint8_t>(std::min((sum * weight + (1u << (kBoxBits - 1))) >> kBoxBits, 255u));
}

// Four adjacent bytes, and sums of them: a pixel of 3 channels is added at once, together with a byte of the next.
using Bytes4 = uint8_t __attribute__((vector_size(4)));
using Sums4 = uint32_t __attribute__((vector_size(16)));

// Narrows each of `height` rows of interleaved channels to columns.size() pixels.
template <int kChannels>
void box_narrow(const uint8_t* from, int64_t row_bytes, int64_t height, const std::vector<BoxWindow>& columns,
                uint8_t* to) {
    for (int64_t y = 0; y < height; ++y, from += row_bytes) {
        for (const BoxWindow& window : columns) {
            Sums4 sum = {};
            const uint8_t* pixel = from + window.begin * kChannels;
            // Past the last pixel of the last row there may be nothing to read.
            const int64_t last_safe = y + 1 < height ? window.end : window.end - 1;
            const int64_t wide = kChannels < 3 ? window.begin : std::max(window.begin, last_safe);
            for (int64_t x = window.begin; x < wide; ++x, pixel += kChannels) {
                Bytes4 bytes;
                std::memcpy(&bytes, pixel, sizeof bytes);
                sum += __builtin_convertvector(bytes, Sums4);
            }
            for (int64_t x = wide; x < window.end; ++x) {
                for (int c = 0; c < kChannels; ++c) sum[c] += *pixel++;
            }
            for (int c = 0; c < kChannels; ++c) *to++ = box_value(sum[c], window.weight);
        }
    }
}

// Shortens columns to rows.size() rows; every byte of a row of `bytes` bytes belongs to a column of its own.
inline void box_shorten(const uint8_t* from, int64_t row_bytes, int64_t bytes, const std::vector<BoxWindow>& rows,
                        uint8_t* to) {
    std::vector<uint32_t> sums(static_cast<size_t>(bytes));
    for (const BoxWindow& window : rows) {
        std::fill(sums.begin(), sums.end(), 0);
        for (int64_t y = window.begin; y < window.end; ++y) {
            for (int64_t i = 0; i < bytes; ++i) sums[i] += from[y * row_bytes + i];
        }
        for (int64_t i = 0; i < bytes; ++i) *to++ = box_value(sums[i], window.weight);
    }
}

// Resizes height × width pixels of interleaved channels, whose rows are `row_bytes` apart, to out [kChannels, size,
// size]. Values are rounded to bytes between the passes, so the result depends on which comes first.
template <int kChannels>
void resize_box(const uint8_t* pixels, int64_t row_bytes, int64_t height, int64_t width, int64_t size,
                bool shorten_first, uint8_t* out) {
    const std::vector<BoxWindow> columns = box_windows(width, size), rows = box_windows(height, size);
    std::vector<uint8_t> half(static_cast<size_t>(size * (shorten_first ? width : height) * kChannels));
    std::vector<uint8_t> square(static_cast<size_t>(size * size * kChannels));
    if (shorten_first) {
        box_shorten(pixels, row_bytes, width * kChannels, rows, half.data());
        box_narrow<kChannels>(half.data(), width * kChannels, size, columns, square.data());
    } else {
        box_narrow<kChannels>(pixels, row_bytes, height, columns, half.data());
        box_shorten(half.data(), size * kChannels, size * kChannels, rows, square.data());
    }
    for (int c = 0; c < kChannels; ++c) {
        for (int64_t i = 0; i < size * size; ++i) out[c * size * size + i] = square[i * kChannels + c];
    }
}

}  // namespace fastdm
