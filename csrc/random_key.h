// What random numbers depend on.
#pragma once

#include <cstdint>

namespace fastdm {

struct RandomKey {
    uint64_t seed;
    uint32_t step;
};

constexpr uint32_t kDrawStream = 1;  // the stream of random numbers that draws are made of

}  // namespace fastdm
