// Class means of features, the difference of those of two sets, and the gradient of its square, on all threads. A
// thread computes whole classes, or whole blocks of their features, so that nothing depends on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "isa.h"
#include "thread_pool.h"

namespace fastdm {

constexpr int64_t kFeatures = 2048;  // of one task: their sums stay in the nearest cache

// Features [N, D] and the first row of every class, then N; without offsets, one row for each class.
template <class T>
struct Classes {
    const T* features;
    const int64_t* offsets;

    int64_t first(int64_t id) const { return offsets ? offsets[id] : id; }
    int64_t size(int64_t id) const { return offsets ? offsets[id + 1] - offsets[id] : 1; }
};

// body(class, first feature, number of features), on all threads.
template <class Body>
void for_each_class(ThreadPool& pool, int64_t classes, int64_t width, const Body& body) {
    const int64_t blocks = (width + kFeatures - 1) / kFeatures;
    pool.run(classes * blocks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
            const int64_t start = task % blocks * kFeatures;
            body(task / blocks, start, std::min(kFeatures, width - start));
        }
    });
}

// means: float32 [classes, D], 0 for a class without rows.
template <class T>
void class_means(ThreadPool& pool, const Classes<T>& from, int64_t classes, int64_t width, float* means,
                 Cpu cpu = this_cpu()) {
    for_each_class(pool, classes, width, [&](int64_t id, int64_t start, int64_t count) {
        FASTDM_CALL(cpu, mean_of_rows, from.features + from.first(id) * width + start, from.size(id), width, count,
                    means + id * width + start);
    });
}

// difference: float32 [classes, D], the mean of real minus that of synthetic; 0 where either has no rows.
template <class Real, class Synthetic>
void class_mean_difference(ThreadPool& pool, const Classes<Real>& real, const Classes<Synthetic>& synthetic,
                           int64_t classes, int64_t width, float* difference, Cpu cpu = this_cpu()) {
    for_each_class(pool, classes, width, [&](int64_t id, int64_t start, int64_t count) {
        float* to = difference + id * width + start;
        float mean[kFeatures];
        if (real.size(id) == 0 || synthetic.size(id) == 0) return std::fill(to, to + count, 0.0f);
        FASTDM_CALL(cpu, mean_of_rows, real.features + real.first(id) * width + start, real.size(id), width, count, to);
        FASTDM_CALL(cpu, mean_of_rows, synthetic.features + synthetic.first(id) * width + start, synthetic.size(id),
                    width, count, mean);
        for (int64_t i = 0; i < count; ++i) to[i] -= mean[i];
    });
}

// out: [M, D], the gradient to each synthetic row of its class's squared difference times grad.
template <class T>
void class_mean_difference_backward(ThreadPool& pool, float grad, const float* difference, const int64_t* offsets,
                                    int64_t classes, int64_t width, T* out, Cpu cpu = this_cpu()) {
    for_each_class(pool, classes, width, [&](int64_t id, int64_t start, int64_t count) {
        const int64_t size = offsets[id + 1] - offsets[id];
        const float factor = -2 * grad / static_cast<float>(std::max<int64_t>(1, size));
        FASTDM_CALL(cpu, scale_into_rows, difference + id * width + start, factor, size, width, count,
                    out + offsets[id] * width + start);
    });
}

}  // namespace fastdm
