// Means of consecutive rows, and what their difference sends back. No include guard: see isa.h.

namespace fastdm::FASTDM_ISA {

// total[i] + the numbers i of kRows rows, added one after the other; a row is `stride` elements.
template <int kRows, class V, class T>
inline void add_rows(const T* rows, int64_t stride, float* total) {
    V sum = load<V>(total);
    for (int row = 0; row < kRows; ++row) sum += load<V>(rows + row * stride);
    store(total, sum);
}

template <int kRows, class T>
inline void add_rows(const T* rows, int64_t stride, int64_t width, float* total) {
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) add_rows<kRows, Vec>(rows + i, stride, total + i);
    for (; i < width; ++i) add_rows<kRows, float>(rows + i, stride, total + i);
}

// mean: float32 [width] of `count` rows, added in their order, whatever the instructions; 0 if there are none.
template <class T>
void mean_of_rows(const T* rows, int64_t count, int64_t stride, int64_t width, float* mean) {
    constexpr int kTogether = 8;  // rows, to load and store the sums less often
    std::fill(mean, mean + width, 0.0f);
    int64_t row = 0;
    for (; row + kTogether <= count; row += kTogether) add_rows<kTogether>(rows + row * stride, stride, width, mean);
    for (; row < count; ++row) add_rows<1>(rows + row * stride, stride, width, mean);
    const float divisor = static_cast<float>(std::max<int64_t>(1, count));
    for (int64_t i = 0; i < width; ++i) mean[i] /= divisor;
}

// Writes numbers times a factor to each of `count` rows.
template <class T>
void scale_into_rows(const float* numbers, float factor, int64_t count, int64_t stride, int64_t width, T* rows) {
    for (int64_t row = 0; row < count; ++row) {
        T* to = rows + row * stride;
        int64_t i = 0;
        for (; i + kLanes <= width; i += kLanes) store(to + i, load<Vec>(numbers + i) * factor);
        for (; i < width; ++i) store(to + i, numbers[i] * factor);
    }
}

}  // namespace fastdm::FASTDM_ISA
