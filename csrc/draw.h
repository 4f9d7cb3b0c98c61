// Random numbers and class-conditional draws, keyed by (seed, step, row): identical on every platform, for any number
// of threads, and to what the other implementations of fastdm.kernels.uniform and fastdm.kernels.draw return.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "isa.h"
#include "random_key.h"
#include "thread_pool.h"

namespace fastdm {

// Rows that take about a quarter of a millisecond. Less is not worth waking a thread for, or waiting for it on a busy
// machine.
inline int64_t rows_per_block(int64_t n) { return 1 + 131072 / (n + 1); }

// out: [rows, n], a uniform_row for each of row_ids.
inline void uniform(ThreadPool& pool, RandomKey key, const int64_t* row_ids, int64_t rows, uint32_t stream, int64_t n,
                    float* out, Cpu cpu = this_cpu()) {
    pool.run(rows, rows_per_block(n), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            FASTDM_CALL(cpu, uniform_row, key, static_cast<uint32_t>(row_ids[row]), stream, n, out + row * n);
        }
    });
}

// out: [classes, n], indices of each of class_ids, distinct unless `replace`, ascending. offsets: the first image of
// every class of the pool, then the number of images.
inline void draw(ThreadPool& pool, RandomKey key, const int64_t* offsets, const int64_t* class_ids, int64_t classes,
                 int64_t n, bool replace, int64_t* out, Cpu cpu = this_cpu()) {
    pool.run(classes, rows_per_block(n), [&](int64_t begin, int64_t end) {
        const int64_t* const ids = class_ids + begin;
        const int64_t rows = end - begin;
        int64_t* to = out + begin * n;
        if (!replace) {
            int64_t largest = 0;
            for (int64_t row = 0; row < rows; ++row) {
                largest = std::max(largest, offsets[ids[row] + 1] - offsets[ids[row]]);
            }
            // Not set to zero, because only what is needed of it is touched.
            const std::unique_ptr<uint64_t[]> scratch(new uint64_t[static_cast<size_t>(plain::draw_scratch(largest))]);
            FASTDM_CALL(cpu, draw_distinct, key, offsets, ids, rows, n, scratch.get(), to);
            return;
        }
        for (int64_t row = 0; row < rows; ++row, to += n) {
            const int64_t id = ids[row], first = offsets[id], size = offsets[id + 1] - first;
            FASTDM_CALL(cpu, draw_with_repeats, key, static_cast<uint32_t>(id), first, size, n, to);
            std::sort(to, to + n);
        }
    });
}

}  // namespace fastdm
