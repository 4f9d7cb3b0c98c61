// uint8 planes of an image → another layout and element type, one piece at a time.
// The loop is written once and compiled for AVX-512, AVX2 and the plain target, all with bit-identical results (the
// build forbids contracting x * scale + shift into a single rounding).
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu.h"

namespace fastdm {

struct bfloat16 {
    uint16_t bits;
};

template <class Out>
inline Out from_float(float value);

template <>
inline float from_float<float>(float value) {
    return value;
}

// Rounds to nearest, ties to even. The value must be finite.
template <>
inline bfloat16 from_float<bfloat16>(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

inline float to_float(uint8_t value) { return value; }
inline float to_float(float value) { return value; }
inline float to_float(bfloat16 value) {
    const uint32_t bits = uint32_t{value.bits} << 16;
    float converted;
    std::memcpy(&converted, &bits, sizeof converted);
    return converted;
}

// Layout of the output: NCHW = [C, H, W], NHWC = [H, W, C], RGBX = [H, W, 4] with X = 0.
enum class Layout { NCHW, NHWC, RGBX };

// A normalised pixel is x * scale + shift, rounded to float32 after each.
struct Normalisation {
    float scale[4];
    float shift[4];
};

// Writes `count` pixels of kStride elements. The first kChannels of each come from planes that are `plane` bytes apart,
// the rest are 0.
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
                out[i * kStride + c] = from_float<Out>(static_cast<float>(from[c * plane + i]) * scale[c] + shift[c]);
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
