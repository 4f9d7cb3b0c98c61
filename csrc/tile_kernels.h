// From images to the tiles of a product, and from these to a result. No include guard: see isa.h.

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

// Merges the statistics of the 16 rows of a tile into those of the `before` rows before them: a mean, and the sum of
// squares about it (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
// variances", 1979). c: [16, c_stride]; mean, squares: [channels], a multiple of kLanes, 0 before the first row.
void merge_tile(const float* c, int64_t c_stride, int64_t channels, int64_t before, float* mean, float* squares) {
    const float earlier = static_cast<float>(before), share = kTileSide / (earlier + kTileSide);
    for (int64_t channel = 0; channel < channels; channel += kLanes, c += kLanes) {
        Vec rows[kTileSide], sum[4] = {}, square[4] = {};
        for (int64_t i = 0; i < kTileSide; ++i) {
            rows[i] = load<Vec>(c + i * c_stride);
            sum[i % 4] += rows[i];
        }
        const Vec m = ((sum[0] + sum[1]) + (sum[2] + sum[3])) * (1.0f / kTileSide);
        for (int64_t i = 0; i < kTileSide; ++i) {
            const Vec d = rows[i] - m;
            square[i % 4] = multiply_add(d, d, square[i % 4]);
        }
        const Vec old = load<Vec>(mean + channel), delta = m - old;
        const Vec within = (square[0] + square[1]) + (square[2] + square[3]);
        store(mean + channel, old + delta * share);
        store(squares + channel, load<Vec>(squares + channel) + within + delta * delta * (earlier * share));
    }
}

// The pixels of an image [H, W, channels], in the order of the positions of a padded one, whose rows have `row`
// positions; zeros, as many as there are channels, where there is no pixel.
class PaddedPixels {
public:
    PaddedPixels(const bfloat16* image, MapSize size, int64_t channels, int64_t padding, int64_t row,
                 const bfloat16* zeros)
        : image_(image),
          size_(size),
          channels_(channels),
          padding_(padding),
          row_(row),
          zeros_(zeros),
          i_(-padding),
          j_(-padding) {}

    const bfloat16* next() {
        const bool inside = 0 <= i_ && i_ < size_.height && 0 <= j_ && j_ < size_.width;
        const bfloat16* pixel = inside ? image_ + (i_ * size_.width + j_) * channels_ : zeros_;
        if (++j_ == row_ - padding_) ++i_, j_ = -padding_;
        return pixel;
    }

private:
    const bfloat16* image_;
    MapSize size_;
    int64_t channels_, padding_, row_;
    const bfloat16* zeros_;
    int64_t i_, j_;
};

typedef uint64_t VecLongs __attribute__((vector_size(2 * FASTDM_VECTOR_BYTES)));

// Words of two elements each, that of `even` at the lower address, as on any little-endian processor.
inline VecWords pairs(const bfloat16* even, const bfloat16* odd) {
    VecHalves first, second;
    std::memcpy(&first, even, sizeof first);
    std::memcpy(&second, odd, sizeof second);
    return __builtin_convertvector(first, VecWords) | __builtin_convertvector(second, VecWords) << 16;
}

// Writes pixels as rows of B (tiles.h), 32 to a tile, which are those of 16 of the `channels` channels;
// `columns_stride` elements further are those of the next 16. channels: a multiple of 16.
void pack_pixels(PaddedPixels pixels, int64_t tiles, int64_t channels, bfloat16* to, int64_t columns_stride) {
    for (int64_t pair = 0; pair < tiles * kTileSide; ++pair, to += kTileDepth) {
        const bfloat16* even = pixels.next();
        const bfloat16* odd = pixels.next();
        for (int64_t c = 0; c < channels; c += kLanes) {
            const VecWords words = pairs(even + c, odd + c);
            std::memcpy(to + c / kTileSide * columns_stride + c % kTileSide * 2, &words, sizeof words);
        }
    }
}

// Writes `count` pixels, a multiple of 4, as columns; rows, one for each channel, are `stride` elements apart.
void transpose_pixels(PaddedPixels pixels, int64_t count, int64_t channels, bfloat16* to, int64_t stride) {
    for (int64_t pixel = 0; pixel < count; pixel += 4, to += 4) {
        const bfloat16* from[4];
        for (int k = 0; k < 4; ++k) from[k] = pixels.next();
        int64_t c = 0;
        for (; c + kLanes <= channels; c += kLanes) {
            const VecLongs first = __builtin_convertvector(pairs(from[0] + c, from[1] + c), VecLongs);
            const VecLongs second = __builtin_convertvector(pairs(from[2] + c, from[3] + c), VecLongs);
            const VecLongs fours = first | second << 32;
            uint64_t lanes[kLanes];
            std::memcpy(lanes, &fours, sizeof lanes);
            for (int64_t lane = 0; lane < kLanes; ++lane) std::memcpy(to + (c + lane) * stride, lanes + lane, 8);
        }
        for (; c < channels; ++c) {
            for (int k = 0; k < 4; ++k) to[c * stride + k] = from[k][c];
        }
    }
}

}  // namespace fastdm::FASTDM_ISA
