// What the tests of the headers share: CHECK, random numbers, and the instruction sets of this processor.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "cpu.h"

#define CHECK(condition)                                                                 \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                                \
        }                                                                                \
    } while (false)

namespace {

using namespace fastdm;

std::vector<uint8_t> random_bytes(int64_t count, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<uint8_t> bytes(static_cast<size_t>(count));
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    return bytes;
}

std::vector<int64_t> random_index(int64_t count, int64_t below, unsigned seed) {
    std::mt19937_64 random(seed);
    std::vector<int64_t> index(static_cast<size_t>(count));
    for (int64_t& row : index) row = static_cast<int64_t>(random() % static_cast<uint64_t>(below));
    return index;
}

std::vector<Cpu> cpus() {
    std::vector<Cpu> known;
    for (const Cpu cpu : {Cpu::plain, Cpu::avx2, Cpu::avx512}) {
        if (cpu <= this_cpu()) known.push_back(cpu);
    }
    return known;
}

}  // namespace
