// From the tiles of a convolution to its result. No include guard: see isa.h.

namespace fastdm::FASTDM_ISA {

// Writes the products of 16 positions, rows of c, as pixels of y [H, W, y_stride], rounded if T is bfloat16. first: the
// first position, counted row by row in rows of `row` positions, of which those beyond the map's width, and beyond its
// last row, are not pixels.
template <class T>
void store_products(const float* c, int64_t c_stride, int64_t first, int64_t row, MapSize size, int64_t channels, T* y,
                    int64_t y_stride) {
    int64_t i = first / row, j = first % row;
    for (int64_t position = 0; position < kTileSide; ++position, c += c_stride) {
        if (i < size.height && j < size.width) {
            T* to = y + (i * size.width + j) * y_stride;
            int64_t channel = 0;
            for (; channel + kLanes <= channels; channel += kLanes) store(to + channel, load<Vec>(c + channel));
            for (; channel < channels; ++channel) store(to + channel, load<float>(c + channel));
        }
        if (++j == row) ++i, j = 0;
    }
}

}  // namespace fastdm::FASTDM_ISA
