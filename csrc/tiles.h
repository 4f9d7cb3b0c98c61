// Matrix products of bfloat16 tiles: eight registers of 16 rows of 64 bytes, as AMX has them, and two forms of its
// instructions.
//
// AmxTiles issues them; PlainTiles computes the same bits on any processor, far slower, so that what is written for
// tiles can be tested without AMX. An object stands for a thread's tile registers: it lives on one thread, for one task
// of a pool.
//
// TDPBF16PS as Intel's Software Developer's Manual defines it (volume 2, "TDPBF16PS", Operation; the emulator Bochs
// computes the same in cpu/avx/amx.cc): for every element of C, the products of the even elements of a row of A and a
// column of B, and those of the odd ones, are added up from 0 by two chains of fused multiply-adds in the order of k;
// the two sums are added, and their sum is added to C. Each of these operations rounds to nearest even, takes
// denormals for 0 and flushes a denormal result to 0, whatever the processor's control register says. Which payload a
// NaN has is not defined; whoever compares bits must not depend on it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "convert.h"

#if defined(__x86_64__) && defined(__linux__) && \
    ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 11))
#define FASTDM_AMX 1  // Older compilers and their assemblers do not know the instructions.
#else
#define FASTDM_AMX 0
#endif

namespace fastdm {

constexpr int64_t kTileSide = 16;                              // rows of a tile, and float32 in one
constexpr int64_t kTileDepth = 32;                             // bfloat16 in a row
constexpr int64_t kTileElements = kTileSide * kTileDepth;      // bfloat16
constexpr int64_t kTileBytes = kTileDepth * sizeof(uint16_t);  // of a row

// A tile of B holds the rows 2k and 2k + 1 of a [32, 16] matrix in its row k, their elements alternating.

// The functions of both forms are those of the instructions; registers are numbered from 0 to 7, strides are in bytes.
class PlainTiles {
public:
    template <int kTile>
    void zero() {
        std::memset(tiles_[kTile], 0, sizeof tiles_[kTile]);
    }

    template <int kTile>
    void load(const void* from, int64_t stride) {
        for (int64_t row = 0; row < kTileSide; ++row) {
            std::memcpy(tiles_[kTile][row], static_cast<const char*>(from) + row * stride, kTileBytes);
        }
    }

    template <int kTile>
    void store(float* to, int64_t stride) const {
        for (int64_t row = 0; row < kTileSide; ++row) {
            std::memcpy(reinterpret_cast<char*>(to) + row * stride, tiles_[kTile][row], kTileBytes);
        }
    }

    // C += A · B.
    template <int kC, int kA, int kB>
    void multiply_add() {
        static_assert(kC != kA && kC != kB && kA != kB, "The instruction refuses equal registers.");
        float a[kTileDepth], b[kTileSide][kTileDepth], c[kTileSide];
        for (int64_t k = 0; k < kTileSide; ++k) widen(tiles_[kB][k], b[k]);
        for (int64_t row = 0; row < kTileSide; ++row) {
            widen(tiles_[kA][row], a);
            float sums[kTileDepth] = {};  // even, odd, even, …
            for (int64_t k = 0; k < kTileSide; ++k) {
                for (int64_t n = 0; n < kTileDepth; ++n) sums[n] = fused(a[2 * k + n % 2], b[k][n], sums[n]);
            }
            std::memcpy(c, tiles_[kC][row], sizeof c);
            for (int64_t n = 0; n < kTileSide; ++n) {
                c[n] = flushed(double{nonzero(c[n])} + flushed(double{sums[2 * n]} + sums[2 * n + 1]));
            }
            std::memcpy(tiles_[kC][row], c, sizeof c);
        }
    }

private:
    static constexpr float kSmallest = 0x1p-126f;  // that is not denormal

    static float nonzero(float value) { return std::fabs(value) < kSmallest ? std::copysign(0.0f, value) : value; }

    static void widen(const unsigned char* row, float* to) {
        bfloat16 values[kTileDepth];
        std::memcpy(values, row, sizeof values);
        for (int64_t i = 0; i < kTileDepth; ++i) to[i] = nonzero(to_float(values[i]));
    }

    // Rounds to float32. A result is denormal if it is one after rounding to 24 bits: up to half a unit less than the
    // smallest normal number rounds to that.
    static float flushed(double value) {
        const bool tiny = std::fabs(value) < 0x1p-126 - 0x1p-151;
        return tiny ? std::copysign(0.0f, static_cast<float>(value)) : static_cast<float>(value);
    }

    // The product is exact in float64. So is that of rounding the sum to 53 bits first: a sum of two numbers of at most
    // 24 bits is rounded to 24 bits as if it had been exact (Figueroa, "When is double rounding innocuous?", 1995).
    static float fused(float a, float b, float sum) { return flushed(double{a} * double{b} + double{sum}); }

    unsigned char tiles_[8][kTileSide][kTileBytes];
};

#if FASTDM_AMX

// The instructions are written out because GCC's intrinsics before version 14 do not say which memory they read: stores
// to a tile's memory could move behind its load.
class AmxTiles {
public:
    AmxTiles() {
        // Palette 1: eight tiles. All have their full size.
        struct alignas(64) Configuration {
            uint8_t palette, start_row, reserved[14];
            uint16_t row_bytes[16];
            uint8_t rows[16];
        };
        static_assert(sizeof(Configuration) == 64, "The instruction reads 64 bytes.");
        static const Configuration full{1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
        asm volatile("ldtilecfg %0" : : "m"(full) : "memory");
    }
    ~AmxTiles() { asm volatile("tilerelease" : : : "memory"); }
    AmxTiles(const AmxTiles&) = delete;
    AmxTiles& operator=(const AmxTiles&) = delete;

    template <int kTile>
    void zero() {
        asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
    }

    template <int kTile>
    void load(const void* from, int64_t stride) {
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
    }

    template <int kTile>
    void store(float* to, int64_t stride) const {
        asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
    }

    template <int kC, int kA, int kB>
    void multiply_add() {
        static_assert(kC != kA && kC != kB && kA != kB, "The instruction refuses equal registers.");
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
    }
};

#endif

// What a product of tiles is: rows of A are `stride` elements apart, those of step k begin offsets[k] elements further;
// B is packed, a tile for each step, its columns `columns_stride` elements apart. adds: to what is there already.
struct TileProduct {
    int64_t steps;
    int64_t stride;
    const int64_t* offsets;
    int64_t columns_stride;
    bool adds = false;
};

// The first values of the accumulators 0 to 3: what c holds, or 0.
template <int kRows, int kColumns, class Tiles>
void start_sums(Tiles& tiles, bool adds, const float* c, int64_t c_stride) {
    const int64_t c_bytes = c_stride * static_cast<int64_t>(sizeof(float));
    if (adds) {
        tiles.template load<0>(c, c_bytes);
        if constexpr (kColumns == 2) tiles.template load<1>(c + kTileSide, c_bytes);
        if constexpr (kRows == 2) tiles.template load<2>(c + kTileSide * c_stride, c_bytes);
        if constexpr (kRows == 2 && kColumns == 2) tiles.template load<3>(c + kTileSide * (c_stride + 1), c_bytes);
    } else {
        tiles.template zero<0>();
        if constexpr (kColumns == 2) tiles.template zero<1>();
        if constexpr (kRows == 2) tiles.template zero<2>();
        if constexpr (kRows == 2 && kColumns == 2) tiles.template zero<3>();
    }
}

// c: float32 [16 · kRows, c_stride] = A · B, or c += A · B, for kRows tiles of rows that begin at a[0] and a[1], and
// kColumns tiles of columns: 2 × 2 of them need as many loads as multiplications.
template <int kRows, int kColumns, class Tiles>
void multiply_tiles(Tiles& tiles, const TileProduct& product, const bfloat16* const a[2], const bfloat16* b, float* c,
                    int64_t c_stride) {
    static_assert(1 <= kRows && kRows <= 2 && 1 <= kColumns && kColumns <= 2, "There are eight registers.");
    const int64_t stride = product.stride * static_cast<int64_t>(sizeof(bfloat16));
    const int64_t c_bytes = c_stride * static_cast<int64_t>(sizeof(float));
    start_sums<kRows, kColumns>(tiles, product.adds, c, c_stride);
    for (int64_t k = 0; k < product.steps; ++k, b += kTileElements) {
        tiles.template load<4>(a[0] + product.offsets[k], stride);
        tiles.template load<6>(b, kTileBytes);
        tiles.template multiply_add<0, 4, 6>();
        if constexpr (kColumns == 2) {
            tiles.template load<7>(b + product.columns_stride, kTileBytes);
            tiles.template multiply_add<1, 4, 7>();
        }
        if constexpr (kRows == 2) {
            tiles.template load<5>(a[1] + product.offsets[k], stride);
            tiles.template multiply_add<2, 5, 6>();
            if constexpr (kColumns == 2) tiles.template multiply_add<3, 5, 7>();
        }
    }
    tiles.template store<0>(c, c_bytes);
    if constexpr (kColumns == 2) tiles.template store<1>(c + kTileSide, c_bytes);
    if constexpr (kRows == 2) tiles.template store<2>(c + kTileSide * c_stride, c_bytes);
    if constexpr (kRows == 2 && kColumns == 2) tiles.template store<3>(c + kTileSide * (c_stride + 1), c_bytes);
}

}  // namespace fastdm
