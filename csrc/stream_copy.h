// Copies that write past the caches.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu.h"

namespace fastdm {

// Copies `bytes` bytes past the caches and meanwhile prefetches the first `ahead_bytes` of what will be copied next.
// After the last of a series of copies, stream_fence() makes them visible to other threads.
using StreamCopy = void (*)(uint8_t* to, const uint8_t* from, int64_t bytes, const uint8_t* ahead, int64_t ahead_bytes);

constexpr int64_t kLine = 64;

// Into the second-level cache: the first level waits for too few lines at a time to keep the memory busy.
inline void prefetch_line(const uint8_t* line) { __builtin_prefetch(line, 0, 2); }

inline void prefetch(const uint8_t* from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += kLine) prefetch_line(from + i);
}

inline int64_t bytes_to_line(const uint8_t* to, int64_t bytes) {
    return std::min<int64_t>(bytes, -reinterpret_cast<uintptr_t>(to) & (kLine - 1));
}

inline void stream_copy_plain(uint8_t* to, const uint8_t* from, int64_t bytes, const uint8_t* ahead,
                              int64_t ahead_bytes) {
    prefetch(ahead, ahead_bytes);
    std::memcpy(to, from, static_cast<size_t>(bytes));
}

#if defined(__x86_64__)
FASTDM_AVX2 inline void stream_copy_avx2(uint8_t* to, const uint8_t* from, int64_t bytes, const uint8_t* ahead,
                                         int64_t ahead_bytes) {
    int64_t i = bytes_to_line(to, bytes);
    std::memcpy(to, from, static_cast<size_t>(i));
    for (int64_t seen = 0; i + kLine <= bytes; i += kLine, seen += kLine) {
        if (seen < ahead_bytes) prefetch_line(ahead + seen);
        const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
        const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i + 32));
        _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i), low);
        _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i + 32), high);
    }
    std::memcpy(to + i, from + i, static_cast<size_t>(bytes - i));
}

FASTDM_AVX512 inline void stream_copy_avx512(uint8_t* to, const uint8_t* from, int64_t bytes, const uint8_t* ahead,
                                             int64_t ahead_bytes) {
    int64_t i = bytes_to_line(to, bytes);
    std::memcpy(to, from, static_cast<size_t>(i));
    for (int64_t seen = 0; i + kLine <= bytes; i += kLine, seen += kLine) {
        if (seen < ahead_bytes) prefetch_line(ahead + seen);
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_loadu_si512(from + i));
    }
    std::memcpy(to + i, from + i, static_cast<size_t>(bytes - i));
}
#endif

inline StreamCopy stream_copy(Cpu cpu) {
#if defined(__x86_64__)
    if (cpu == Cpu::avx512) return stream_copy_avx512;
    if (cpu == Cpu::avx2) return stream_copy_avx2;
#endif
    (void)cpu;
    return stream_copy_plain;
}

inline void stream_fence() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

}  // namespace fastdm
