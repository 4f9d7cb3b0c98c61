// Philox4x32-10, a counter-based random generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011). A value depends on its key and counter alone. There is no state, so any thread can compute any part of a
// draw.
#pragma once

#include <array>
#include <cstdint>

namespace fastdm {

using PhiloxKey = std::array<uint32_t, 2>;
using PhiloxWords = std::array<uint32_t, 4>;

inline PhiloxWords philox4x32_10(PhiloxKey key, PhiloxWords counter) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t even = uint64_t{0xD2511F53} * counter[0];
        const uint64_t odd = uint64_t{0xCD9E8D57} * counter[2];
        counter = {static_cast<uint32_t>(odd >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(odd),
                   static_cast<uint32_t>(even >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(even)};
        key[0] += 0x9E3779B9;
        key[1] += 0xBB67AE85;
    }
    return counter;
}

// The key of a run's random numbers: its seed and the step.
struct RandomKey {
    uint64_t seed;
    uint32_t step;

    // Four random words for a row (an image or a class) of a stream (one use of random numbers).
    PhiloxWords words(uint32_t row, uint32_t stream, uint32_t block) const {
        return philox4x32_10({static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)},
                             {step, row, stream, block});
    }
};

}  // namespace fastdm
