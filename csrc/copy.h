// Which instructions this processor has, and copies that go past the caches.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

#if defined(__x86_64__)
#include <immintrin.h>
#define FASTDM_AVX2 __attribute__((target("avx2")))
#define FASTDM_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#endif

namespace fastdm {

enum class Cpu { plain, avx2, avx512 };

// FASTDM_CPU=avx2 or plain leaves the wider instructions alone.
inline Cpu detect_cpu() {
    const char* wanted = std::getenv("FASTDM_CPU");
    const std::string_view limit = wanted ? wanted : "";
    if (limit == "plain") return Cpu::plain;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (limit != "avx2" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        return Cpu::avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Cpu::avx2;
#endif
    return Cpu::plain;
}

inline Cpu this_cpu() {
    static const Cpu cpu = detect_cpu();
    return cpu;
}

// Half of the last-level cache: results larger than this do not stay in it until they are read, and writing them past
// the caches saves reading their lines from memory first.
inline int64_t cache_bytes() {
    static const int64_t bytes = [] {
        // What cores share. sysconf(_SC_LEVEL3_CACHE_SIZE) would add up all caches of a processor that has several.
        long kib = 0;
        if (std::FILE* size = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
            if (std::fscanf(size, "%ldK", &kib) != 1) kib = 0;
            std::fclose(size);
        }
        return kib > 0 ? int64_t{kib} << 9 : int64_t{8} << 20;
    }();
    return bytes;
}

// Copies `bytes` past the caches; meanwhile asks for the first `ahead_bytes` of what will be copied next.
// Finish a run of such copies with stream_fence() before another thread reads them.
using StreamCopy = void (*)(uint8_t* to, const uint8_t* from, int64_t bytes, const uint8_t* ahead, int64_t ahead_bytes);

constexpr int64_t kLine = 64;

inline int64_t bytes_to_line(const uint8_t* to, int64_t bytes) {
    return std::min<int64_t>(bytes, -reinterpret_cast<uintptr_t>(to) & (kLine - 1));
}

inline void stream_copy_plain(uint8_t* to, const uint8_t* from, int64_t bytes, const uint8_t* ahead,
                              int64_t ahead_bytes) {
    for (int64_t i = 0; i < ahead_bytes; i += kLine) __builtin_prefetch(ahead + i);
    std::memcpy(to, from, static_cast<size_t>(bytes));
}

#if defined(__x86_64__)
FASTDM_AVX2 inline void stream_copy_avx2(uint8_t* to, const uint8_t* from, int64_t bytes, const uint8_t* ahead,
                                         int64_t ahead_bytes) {
    int64_t i = bytes_to_line(to, bytes);
    std::memcpy(to, from, static_cast<size_t>(i));
    for (int64_t seen = 0; i + kLine <= bytes; i += kLine, seen += kLine) {
        if (seen < ahead_bytes) __builtin_prefetch(ahead + seen);
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
        if (seen < ahead_bytes) __builtin_prefetch(ahead + seen);
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
