// uint8 planes of an image → another layout and number type, a piece at a time.
// The loop is written once; the compiler makes it for AVX-512, AVX2 and the plain target, with the same bits from each
// (the build forbids contracting x * scale + shift into one rounding).
#pragma once

#include <cstdint>
#include <cstring>

#include "copy.h"

namespace fastdm {

struct bfloat16 {
    uint16_t bits;
};

template <class Out>
inline Out to_number(float value);

template <>
inline float to_number<float>(float value) {
    return value;
}

// Rounds to nearest, ties to even; value is finite.
template <>
inline bfloat16 to_number<bfloat16>(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

// Where one channel's numbers come to stand: planar = [C, H, W], last = [H, W, C], rgbx = [H, W, 4] with x = 0.
enum class Layout { planar, last, rgbx };

// A normalised pixel is x * scale + shift, rounded to float32 after each.
struct Normalisation {
    float scale[4];
    float shift[4];
};

// Writes `count` pixels, kStride numbers each, of which the first kChannels come from planes that lie `plane` bytes apart.
template <class Out, int kChannels, int kStride>
__attribute__((always_inline)) inline void convert_pixels(const uint8_t* from, int64_t plane, int64_t count,
                                                          const float* scale, const float* shift, void* to) {
    Out* __restrict out = static_cast<Out*>(to);
    for (int64_t i = 0; i < count; ++i) {
        for (int c = 0; c < kStride; ++c) {
            if (c >= kChannels) {
                out[i * kStride + c] = Out{};
            } else if constexpr (sizeof(Out) == 1) {
                out[i * kStride + c] = from[c * plane + i];
            } else {
                out[i * kStride + c] = to_number<Out>(static_cast<float>(from[c * plane + i]) * scale[c] + shift[c]);
            }
        }
    }
}

using ConvertPixels = void (*)(const uint8_t* from, int64_t plane, int64_t count, const float* scale,
                               const float* shift, void* to);

template <class Out, int kChannels, int kStride>
void convert_pixels_plain(const uint8_t* from, int64_t plane, int64_t count, const float* scale, const float* shift,
                          void* to) {
    convert_pixels<Out, kChannels, kStride>(from, plane, count, scale, shift, to);
}

#if defined(__x86_64__)
template <class Out, int kChannels, int kStride>
FASTDM_AVX2 void convert_pixels_avx2(const uint8_t* from, int64_t plane, int64_t count, const float* scale,
                                     const float* shift, void* to) {
    convert_pixels<Out, kChannels, kStride>(from, plane, count, scale, shift, to);
}

template <class Out, int kChannels, int kStride>
FASTDM_AVX512 void convert_pixels_avx512(const uint8_t* from, int64_t plane, int64_t count, const float* scale,
                                         const float* shift, void* to) {
    convert_pixels<Out, kChannels, kStride>(from, plane, count, scale, shift, to);
}
#endif

template <class Out, int kChannels, int kStride>
ConvertPixels convert_pixels_for(Cpu cpu) {
#if defined(__x86_64__)
    if (cpu == Cpu::avx512) return convert_pixels_avx512<Out, kChannels, kStride>;
    if (cpu == Cpu::avx2) return convert_pixels_avx2<Out, kChannels, kStride>;
#endif
    (void)cpu;
    return convert_pixels_plain<Out, kChannels, kStride>;
}

}  // namespace fastdm
