// Random numbers and class-conditional draws, keyed by (seed, step, row): identical on every platform, for any number
// of threads, and to what the other implementations of fastdm.kernels.uniform and fastdm.kernels.draw return.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "philox.h"
#include "thread_pool.h"

namespace fastdm {

constexpr uint32_t kDrawStream = 1;

// out[j] uniform in [0, 1): the upper 24 bits of word j % 4 of block j / 4, so that every value is exact in float32.
inline void uniform_row(RandomKey key, uint32_t row, uint32_t stream, int64_t n, float* out) {
    for (int64_t j = 0; j < n; j += 4) {
        const PhiloxWords words = key.words(row, stream, static_cast<uint32_t>(j / 4));
        for (int64_t i = j; i < n && i < j + 4; ++i) out[i] = static_cast<float>(words[i - j] >> 8) * 0x1p-24f;
    }
}

// n distinct indices from [first, first + size), ascending, uniform over all n-subsets: Floyd's algorithm (Bentley &
// Floyd, "A sample of brilliance", CACM 1987). The drawn set is a bitmap, so reading it out sorts it.
// Requires n <= size < 2^32.
inline void draw_class(RandomKey key, uint32_t class_id, int64_t first, int64_t size, int64_t n,
                       std::vector<uint64_t>& drawn, int64_t* out) {
    drawn.assign(static_cast<size_t>((size + 63) / 64), 0);
    PhiloxWords words{};
    for (int64_t i = 0; i < n; ++i) {
        if (i % 4 == 0) words = key.words(class_id, kDrawStream, static_cast<uint32_t>(i / 4));
        const uint64_t last = static_cast<uint64_t>(size - n + i);
        uint64_t pick = (words[i % 4] * (last + 1)) >> 32;
        if (drawn[pick / 64] >> (pick % 64) & 1) pick = last;
        drawn[pick / 64] |= uint64_t{1} << (pick % 64);
    }
    for (size_t word = 0; word < drawn.size(); ++word) {
        for (uint64_t bits = drawn[word]; bits != 0; bits &= bits - 1) {
            *out++ = first + static_cast<int64_t>(word) * 64 + __builtin_ctzll(bits);
        }
    }
}

// n indices from [first, first + size), drawn independently and uniformly, ascending. Requires 0 < size < 2^32.
inline void draw_class_with_repeats(RandomKey key, uint32_t class_id, int64_t first, int64_t size, int64_t n,
                                    int64_t* out) {
    PhiloxWords words{};
    for (int64_t i = 0; i < n; ++i) {
        if (i % 4 == 0) words = key.words(class_id, kDrawStream, static_cast<uint32_t>(i / 4));
        out[i] = first + static_cast<int64_t>((words[i % 4] * static_cast<uint64_t>(size)) >> 32);
    }
    std::sort(out, out + n);
}

// Rows that take about half a millisecond. Less is not worth waking a thread for, or waiting for it on a busy machine.
inline int64_t rows_per_block(int64_t n) { return 1 + 65536 / (n + 1); }

// out: [rows, n], a uniform_row for each of row_ids.
inline void uniform(ThreadPool& pool, RandomKey key, const int64_t* row_ids, int64_t rows, uint32_t stream, int64_t n,
                    float* out) {
    pool.run(rows, rows_per_block(n), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            uniform_row(key, static_cast<uint32_t>(row_ids[row]), stream, n, out + row * n);
        }
    });
}

// out: [classes, n], a draw_class (or draw_class_with_repeats if `replace`) for each of class_ids. offsets: the first
// image of every class of the pool, then the number of images.
inline void draw(ThreadPool& pool, RandomKey key, const int64_t* offsets, const int64_t* class_ids, int64_t classes,
                 int64_t n, bool replace, int64_t* out) {
    pool.run(classes, rows_per_block(n), [&](int64_t begin, int64_t end) {
        std::vector<uint64_t> drawn;
        for (int64_t row = begin; row < end; ++row) {
            const int64_t id = class_ids[row], first = offsets[id], size = offsets[id + 1] - first;
            if (replace) {
                draw_class_with_repeats(key, static_cast<uint32_t>(id), first, size, n, out + row * n);
            } else {
                draw_class(key, static_cast<uint32_t>(id), first, size, n, drawn, out + row * n);
            }
        }
    });
}

}  // namespace fastdm
