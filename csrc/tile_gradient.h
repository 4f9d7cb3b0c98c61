// The gradient of a 3×3 convolution of bfloat16 images to its weights as a product of tiles (tiles.h), one thread's
// share.
//
// For every tap, input channel and output channel it is the sum, over the positions of an image, of the padded image's
// value, moved by the tap, times the gradient of the convolution's result. The depth of the product is those positions,
// of the padded rows of one image after the other: A is the transposed images, a row for each input channel, which a
// tap moves all by the same distance (the loads of tiles need no alignment); B is the result's gradient, 0 at the two
// positions at the end of each row. With few input channels, a row of A is one of the up to 64 values of a pixel's 3×3
// neighbours, so that the rows fill the tiles.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "conv.h"
#include "isa.h"
#include "shapes.h"

namespace fastdm {

class TileGradient {
public:
    explicit TileGradient(const ConvShape& s)
        : s_(s), gathers_(is_direct(s)), zeros_(static_cast<size_t>(std::max(s.in, s.out)), bfloat16{0}) {
        const MapSize size = s.out_size();
        row_ = size.width + 2;
        rows_ = gathers_ ? (9 * s.in + kTileSide - 1) / kTileSide * kTileSide : s.in;
        steps_ = ((size.height - 1) * row_ + size.width + kTileDepth - 1) / kTileDepth;
        images_ = std::max<int64_t>(1, kStepsTogether / steps_);
        moved_ = (steps_ * kTileDepth + 2 * row_ + 2 + 3) / 4 * 4;
        positions_ = gathers_ ? steps_ * kTileDepth : moved_;
        // An odd number of cache lines: rows of A begin in different sets of the cache.
        stride_ = ((images_ * positions_ + kTileDepth - 1) / kTileDepth | 1) * kTileDepth;
        for (int64_t step = 0; step < images_ * steps_; ++step) {
            offsets_.push_back(step / steps_ * positions_ + step % steps_ * kTileDepth);
        }
    }

    // Images that are worked on together, so that the sums are read and written once for several small ones.
    int64_t images() const { return images_; }
    // What `lay` writes, of all of these, and what it needs in addition.
    int64_t laid_elements() const { return rows_ * stride_; }
    int64_t scratch_elements() const { return gathers_ ? s_.in * moved_ : 0; }
    // What `pack` writes, of all of these.
    int64_t packed_elements() const { return s_.out / kTileSide * columns_stride(); }
    // The sums, float32 [3, 3, in, out]; with few input channels, rows that mean nothing follow.
    int64_t sums_elements() const { return (gathers_ ? 1 : 9) * rows_ * s_.out; }

    // Writes x, one of the images that are worked on together, as columns of A.
    void lay(const bfloat16* x, int64_t image, bfloat16* laid, bfloat16* scratch, Cpu cpu) const {
        bfloat16* to = laid + image * positions_;
        const bfloat16* zeros = zeros_.data();
        if (!gathers_) {
            FASTDM_CALL(cpu, transpose_pixels, {x, s_.in_size, s_.in, s_.padding, row_, zeros}, moved_, s_.in, to,
                        stride_);
            return;
        }
        FASTDM_CALL(cpu, transpose_pixels, {x, s_.in_size, s_.in, s_.padding, row_, zeros}, moved_, s_.in, scratch,
                    moved_);
        for (int64_t row = 0; row < 9 * s_.in; ++row, to += stride_) {
            const bfloat16* from = scratch + row % s_.in * moved_ + distance(row / s_.in);
            std::copy(from, from + positions_, to);
        }
        for (int64_t row = 9 * s_.in; row < rows_; ++row, to += stride_) std::fill(to, to + positions_, bfloat16{0});
    }

    // Writes the gradient of the convolution's result for one of these images, [H', W', out], as rows of B.
    void pack(const bfloat16* grad_y, int64_t image, bfloat16* packed, Cpu cpu) const {
        FASTDM_CALL(cpu, pack_pixels, {grad_y, s_.out_size(), s_.out, 0, row_, zeros_.data()}, steps_, s_.out,
                    packed + image * steps_ * kTileElements, columns_stride());
    }

    // The gradient of the first `images` of these images, added to the sums or written in their place.
    template <class Tiles>
    void run(Tiles& tiles, const bfloat16* laid, const bfloat16* packed, int64_t images, bool adds, float* sums) const {
        const int64_t steps = images * steps_;
        for (int64_t first = 0; first < steps; first += kStepsTogether) {
            const TileProduct product{std::min(kStepsTogether, steps - first), stride_, offsets_.data() + first,
                                      columns_stride(), adds || first > 0};
            for (int64_t row = 0; row < rows_; row += 2 * kTileSide) {
                for (int64_t column = 0; column < s_.out; column += 2 * kTileSide) {
                    const bfloat16* b = packed + column / kTileSide * columns_stride() + first * kTileElements;
                    multiply(tiles, product, laid + row * stride_, b, row, sums + row * s_.out + column);
                }
            }
        }
    }

private:
    // Two tiles of rows and two of columns of so many steps, which all taps read, take 40 KiB: the first cache.
    static constexpr int64_t kStepsTogether = 10;

    // Of the rows from `row` on, one or two tiles of them, and of two tiles of columns: the products of all taps.
    template <class Tiles>
    void multiply(Tiles& tiles, const TileProduct& product, const bfloat16* from, const bfloat16* b, int64_t row,
                  float* sums) const {
        const bool two = row + kTileSide < rows_;
        for (int64_t tap = 0; tap < (gathers_ ? 1 : 9); ++tap, sums += rows_ * s_.out) {
            const bfloat16* const a[2] = {from + distance(tap), from + distance(tap) + (two ? kTileSide * stride_ : 0)};
            two ? multiply_tiles<2, 2>(tiles, product, a, b, sums, s_.out)
                : multiply_tiles<1, 2>(tiles, product, a, b, sums, s_.out);
        }
    }

    int64_t columns_stride() const { return images_ * steps_ * kTileElements; }
    // By which a tap moves the positions.
    int64_t distance(int64_t tap) const { return tap / 3 * row_ + tap % 3; }

    ConvShape s_;
    bool gathers_;
    std::vector<bfloat16> zeros_;
    int64_t row_;                // positions in a row of the padded image
    int64_t rows_;               // of A, a multiple of 16
    int64_t steps_;              // tiles of positions of an image
    int64_t images_;             // that are worked on together
    int64_t moved_, positions_;  // of an image: all that the taps move over, and those that are in A
    int64_t stride_;
    std::vector<int64_t> offsets_;
};

}  // namespace fastdm
