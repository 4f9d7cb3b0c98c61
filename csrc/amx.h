// Whether this process may use AMX's tiles, and which form of tiles bfloat16 convolutions use.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "cpu.h"
#include "tiles.h"

#if FASTDM_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastdm {

// none: PyTorch's convolutions are used instead.
enum class TileForm { none, plain, amx };

#if FASTDM_AMX

// Whether processor and system have tiles of bfloat16 of the size that tiles.h is written for.
inline bool cpu_has_amx() {
    unsigned a, b, c, d;
    if (__get_cpuid_max(0, nullptr) < 0x1E) return false;
    __cpuid(1, a, b, c, d);
    if ((c >> 27 & 1) == 0) return false;  // The system does not save extended registers.
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    constexpr unsigned kTileState = 3u << 17;  // the configuration and the data
    if ((low & kTileState) != kTileState) return false;
    __cpuid_count(7, 0, a, b, c, d);
    if ((d >> 22 & 1) == 0 || (d >> 24 & 1) == 0) return false;  // AMX-BF16, AMX-TILE
    __cpuid_count(0x1D, 1, a, b, c, d);                          // palette 1
    if (a >> 16 != 1024 || (b & 0xFFFF) != 64 || b >> 16 != 8 || (c & 0xFFFF) != 16) return false;
    __cpuid_count(0x1E, 0, a, b, c, d);  // the multiplier
    return (b & 0xFF) >= 16 && (b >> 8 & 0xFFFF) >= 64;
}

// Asks Linux (5.16 or newer) for the tiles' memory: once for the process, whose threads, those that run already too,
// get it when they first use a tile. Refused by older kernels, by some sandboxes, and where a thread has a stack for
// signals that is too small.
inline bool may_use_amx() {
    constexpr long kAsk = 0x1023, kGet = 0x1022, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, ARCH_GET_XCOMP_PERM
    uint64_t granted = 0;
    return syscall(SYS_arch_prctl, kAsk, kTileData) == 0 && syscall(SYS_arch_prctl, kGet, &granted) == 0 &&
           (granted >> kTileData & 1) == 1;
}

#endif

// Multiplies small whole numbers, whose sums are exact in any order: whether registers, strides and layouts are as
// expected.
template <class Tiles>
bool tiles_multiply_exactly() {
    constexpr int64_t kSteps = 2, kStride = kSteps * kTileDepth + 32;
    bfloat16 a[2 * kTileSide * kStride], b[2 * kSteps * kTileElements];
    float c[2 * kTileSide * 2 * kTileSide];
    const auto left = [](int64_t row, int64_t k) { return (7 * row + 3 * k) % 17 - 8; };
    const auto right = [](int64_t k, int64_t column) { return (5 * k + 11 * column) % 13 - 6; };
    for (bfloat16& value : a) value = from_float<bfloat16>(99.0f);  // between the rows
    for (int64_t row = 0; row < 2 * kTileSide; ++row) {
        for (int64_t k = 0; k < kSteps * kTileDepth; ++k) {
            a[row * kStride + k] = from_float<bfloat16>(static_cast<float>(left(row, k)));
        }
    }
    for (int64_t column = 0; column < 2 * kTileSide; ++column) {
        for (int64_t k = 0; k < kSteps * kTileDepth; ++k) {
            const int64_t tile = column / kTileSide * kSteps + k / kTileDepth, row = k % kTileDepth / 2;
            b[tile * kTileElements + row * kTileDepth + column % kTileSide * 2 + k % 2] =
                from_float<bfloat16>(static_cast<float>(right(k, column)));
        }
    }
    const int64_t offsets[kSteps] = {0, kTileDepth};
    const bfloat16* const rows[2] = {a, a + kTileSide * kStride};
    {
        Tiles tiles;
        multiply_tiles<2, 2>(tiles, {kSteps, kStride, offsets, kSteps * kTileElements}, rows, b, c, 2 * kTileSide);
    }
    for (int64_t row = 0; row < 2 * kTileSide; ++row) {
        for (int64_t column = 0; column < 2 * kTileSide; ++column) {
            int64_t sum = 0;
            for (int64_t k = 0; k < kSteps * kTileDepth; ++k) sum += left(row, k) * right(k, column);
            if (c[row * 2 * kTileSide + column] != static_cast<float>(sum)) return false;
        }
    }
    return true;
}

// FASTDM_TILES=none keeps the core from using AMX, as FASTDM_CPU=avx2 or plain does; FASTDM_TILES=plain makes it use
// the plain form, for tests: it is slower than PyTorch's convolutions. There is no form for AVX512-BF16: VDPBF16PS
// multiplies at most twice as fast as float32 instructions do, and Winograd's float32 (conv_kernels.h) multiplies a
// quarter as often. On a Zen 4, the plain sum at the full rate of VDPBF16PS took 1.7 times as long.
inline TileForm detect_tiles() {
    const char* wanted = std::getenv("FASTDM_TILES");
    const std::string_view limit = wanted ? wanted : "";
    if (limit == "plain") return TileForm::plain;
#if FASTDM_AMX
    if (limit != "none" && this_cpu() == Cpu::avx512 && cpu_has_amx() && may_use_amx() &&
        tiles_multiply_exactly<AmxTiles>()) {
        return TileForm::amx;
    }
#endif
    return TileForm::none;
}

// What the processor and the system allow.
inline TileForm available_tiles() {
    static const TileForm form = detect_tiles();
    return form;
}

// What the process uses: what is available, unless a test sets another form.
inline std::atomic<TileForm>& used_tiles() {
    static std::atomic<TileForm> form{available_tiles()};
    return form;
}

// Calls body with an object of the form's class, which is the calling thread's until body returns.
template <class Body>
void with_tiles(TileForm form, const Body& body) {
#if FASTDM_AMX
    if (form == TileForm::amx) {
        AmxTiles tiles;
        return body(tiles);
    }
#endif
    (void)form;
    PlainTiles tiles;
    body(tiles);
}

}  // namespace fastdm
