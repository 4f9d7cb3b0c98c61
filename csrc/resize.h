// Box filter resize with the arithmetic of Pillow's Image.BOX, byte for byte.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu.h"

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
void box_narrow_plain(const uint8_t* from, int64_t row_bytes, int64_t height, const std::vector<BoxWindow>& columns,
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

#if defined(__x86_64__)
// The same for 3 channels, two rows at a time and four pixels of each. Returns how many rows it has narrowed: the last
// ones are left, behind which there may be nothing to read.
FASTDM_AVX2 inline int64_t box_narrow_avx2(const uint8_t* from, int64_t row_bytes, int64_t height,
                                           const std::vector<BoxWindow>& columns, uint8_t* to) {
    constexpr int64_t kRead = 16;         // bytes of a row at a time, of which up to 12 count
    alignas(16) uint8_t order[5][kRead];  // of 0 to 4 pixels: the first channel of all, then the second and the third
    for (int pixels = 0; pixels < 5; ++pixels) {
        for (int i = 0; i < kRead; ++i) {
            order[pixels][i] = static_cast<uint8_t>(i < 12 && i % 4 < pixels ? i % 4 * 3 + i / 4 : 0x80);  // 0x80: a 0
        }
    }
    const __m256i ones8 = _mm256_set1_epi8(1), ones16 = _mm256_set1_epi16(1);
    const __m256i half = _mm256_set1_epi32(1 << (kBoxBits - 1));
    const int64_t to_row = static_cast<int64_t>(columns.size()) * 3;
    int64_t y = 0;
    for (; (height - 2 - y) * row_bytes >= kRead; y += 2, from += 2 * row_bytes, to += 2 * to_row) {
        uint8_t* pixel_to = to;
        for (const BoxWindow& window : columns) {
            __m256i sum = _mm256_setzero_si256();
            for (int64_t x = window.begin; x < window.end; x += 4) {
                const uint8_t* at = from + x * 3;
                const __m128i row0 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
                const __m128i row1 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + row_bytes));
                const __m128i taken =
                    _mm_load_si128(reinterpret_cast<const __m128i*>(order[std::min<int64_t>(4, window.end - x)]));
                const __m256i sorted =
                    _mm256_shuffle_epi8(_mm256_set_m128i(row1, row0), _mm256_broadcastsi128_si256(taken));
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(sorted, ones8), ones16));
            }
            // box_value: packing takes what is above 255 to 255.
            const __m256i weight = _mm256_set1_epi32(static_cast<int>(window.weight));
            const __m256i values = _mm256_srli_epi32(_mm256_add_epi32(_mm256_mullo_epi32(sum, weight), half), kBoxBits);
            const __m256i words = _mm256_packus_epi32(values, values), bytes = _mm256_packus_epi16(words, words);
            const int pair[] = {_mm256_extract_epi32(bytes, 0), _mm256_extract_epi32(bytes, 4)};
            std::memcpy(pixel_to, &pair[0], 3);
            std::memcpy(pixel_to + to_row, &pair[1], 3);
            pixel_to += 3;
        }
    }
    return y;
}
#endif

template <int kChannels>
void box_narrow(const uint8_t* from, int64_t row_bytes, int64_t height, const std::vector<BoxWindow>& columns,
                uint8_t* to, Cpu cpu) {
    int64_t done = 0;
#if defined(__x86_64__)
    if (kChannels == 3 && cpu != Cpu::plain) done = box_narrow_avx2(from, row_bytes, height, columns, to);
#endif
    (void)cpu;
    to += done * static_cast<int64_t>(columns.size()) * kChannels;
    box_narrow_plain<kChannels>(from + done * row_bytes, row_bytes, height - done, columns, to);
}

// Shortens columns to rows.size() rows; every byte of a row of `bytes` bytes belongs to a column of its own.
__attribute__((always_inline)) inline void box_shorten_body(const uint8_t* from, int64_t row_bytes, int64_t bytes,
                                                            const std::vector<BoxWindow>& rows, uint8_t* to) {
    std::vector<uint32_t> sums(static_cast<size_t>(bytes));
    for (const BoxWindow& window : rows) {
        std::fill(sums.begin(), sums.end(), 0);
        for (int64_t y = window.begin; y < window.end; ++y) {
            for (int64_t i = 0; i < bytes; ++i) sums[i] += from[y * row_bytes + i];
        }
        for (int64_t i = 0; i < bytes; ++i) *to++ = box_value(sums[i], window.weight);
    }
}

inline void box_shorten_plain(const uint8_t* from, int64_t row_bytes, int64_t bytes, const std::vector<BoxWindow>& rows,
                              uint8_t* to) {
    box_shorten_body(from, row_bytes, bytes, rows, to);
}

#if defined(__x86_64__)
FASTDM_AVX2 inline void box_shorten_avx2(const uint8_t* from, int64_t row_bytes, int64_t bytes,
                                         const std::vector<BoxWindow>& rows, uint8_t* to) {
    box_shorten_body(from, row_bytes, bytes, rows, to);
}
#endif

inline void box_shorten(const uint8_t* from, int64_t row_bytes, int64_t bytes, const std::vector<BoxWindow>& rows,
                        uint8_t* to, Cpu cpu) {
#if defined(__x86_64__)
    if (cpu != Cpu::plain) return box_shorten_avx2(from, row_bytes, bytes, rows, to);
#endif
    (void)cpu;
    box_shorten_plain(from, row_bytes, bytes, rows, to);
}

// Resizes height × width pixels of interleaved channels, whose rows are `row_bytes` apart, to out [kChannels, size,
// size]. Values are rounded to bytes between the passes, so the result depends on which comes first.
template <int kChannels>
void resize_box(const uint8_t* pixels, int64_t row_bytes, int64_t height, int64_t width, int64_t size,
                bool shorten_first, uint8_t* out, Cpu cpu = this_cpu()) {
    const std::vector<BoxWindow> columns = box_windows(width, size), rows = box_windows(height, size);
    std::vector<uint8_t> half(static_cast<size_t>(size * (shorten_first ? width : height) * kChannels));
    std::vector<uint8_t> square(static_cast<size_t>(size * size * kChannels));
    if (shorten_first) {
        box_shorten(pixels, row_bytes, width * kChannels, rows, half.data(), cpu);
        box_narrow<kChannels>(half.data(), width * kChannels, size, columns, square.data(), cpu);
    } else {
        box_narrow<kChannels>(pixels, row_bytes, height, columns, half.data(), cpu);
        box_shorten(half.data(), size * kChannels, size * kChannels, rows, square.data(), cpu);
    }
    for (int c = 0; c < kChannels; ++c) {
        for (int64_t i = 0; i < size * size; ++i) out[c * size * size + i] = square[i * kChannels + c];
    }
}

}  // namespace fastdm
