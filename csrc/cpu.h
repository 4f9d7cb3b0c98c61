// Which instructions this processor has, and how large its cache is.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#if defined(__x86_64__)
#define FASTDM_AVX2 __attribute__((target("avx2")))
#define FASTDM_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#endif

namespace fastdm {

enum class Cpu { plain, avx2, avx512 };

// FASTDM_CPU=avx2 or plain keeps the core from using wider instructions.
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

// Half of the last-level cache. Larger results would be evicted before they are read; writing them past the caches
// saves fetching their lines from memory first.
inline int64_t cache_bytes() {
    static const int64_t bytes = [] {
        // Of one cache. sysconf(_SC_LEVEL3_CACHE_SIZE) adds up all of them where a processor has several.
        long kib = 0;
        if (std::FILE* size = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
            if (std::fscanf(size, "%ldK", &kib) != 1) kib = 0;
            std::fclose(size);
        }
        return kib > 0 ? int64_t{kib} << 9 : int64_t{8} << 20;
    }();
    return bytes;
}

}  // namespace fastdm
