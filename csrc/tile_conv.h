// A 3×3 convolution of bfloat16 images [H, W, channels] as a product of tiles (tiles.h), one thread's share.
//
// Rows of A are positions of the padded image, 16 to a tile; columns of B are output channels. With many input channels
// nothing is copied but the padding: the positions are those of the padded rows, one after the other, so that a tap
// moves all 16 by the same distance; the two positions at the end of each row are computed in vain, unless tiles end
// with the pixels of a row. With few, the up to 64 values of a pixel's 3×3 neighbours are gathered into a row of one or
// two tiles.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "amx.h"
#include "conv.h"
#include "isa.h"
#include "shapes.h"

namespace fastdm {

// Where results go: [images, H', W', stride], from the first of their channels on.
template <class T>
struct Pixels {
    T* data;
    int64_t stride;
};

// What `merge_tile` has found of the channels of some images: [images, stride].
struct MergedStatistics {
    float* mean;
    float* squares;
    int64_t stride;
};

class TileConv {
public:
    explicit TileConv(const ConvShape& s) : s_(s), gathers_(is_direct(s)) {
        const MapSize size = s.out_size();
        padded_row_ = size.width + 2;
        row_ = gathers_ || size.width % kTileSide == 0 ? size.width : padded_row_;
        steps_ = gathers_ ? (9 * s.in + kTileDepth - 1) / kTileDepth : 9 * s.in / kTileDepth;
        stride_ = gathers_ ? steps_ * kTileDepth : s.in;
        tiles_ = ((size.height - 1) * row_ + size.width + kTileSide - 1) / kTileSide;
        offsets_.reserve(static_cast<size_t>(steps_));
        for (int64_t step = 0; step < steps_; ++step) {
            const int64_t tap = step * kTileDepth / s.in, channel = step * kTileDepth % s.in;
            offsets_.push_back(gathers_ ? step * kTileDepth : (tap / 3 * padded_row_ + tap % 3) * s.in + channel);
        }
    }

    // Tiles of rows of an image.
    int64_t tiles() const { return tiles_; }
    // Tiles of columns.
    int64_t columns() const { return (s_.out + kTileSide - 1) / kTileSide; }
    int64_t packed_elements() const { return columns() * steps_ * kTileElements; }
    // Of one image as `lay` writes it: the rows that the last tile reads are there too.
    int64_t laid_elements() const {
        const int64_t tap = gathers_ ? 0 : 2 * padded_row_ + 2;
        return (begin_of(tiles_ - 1) + kTileSide + tap) * stride_;
    }
    // What `lay` needs in addition.
    int64_t scratch_elements() const { return gathers_ ? (s_.out_size().height + 2) * padded_row_ * s_.in : 0; }

    // Packs the weights of one tile of columns, zeros where there is no channel or value.
    void pack(const WeightsOf<bfloat16>& w, int64_t column, bfloat16* packed) const {
        bfloat16* to = packed + column * steps_ * kTileElements;
        const int64_t outs = std::min(kTileSide, s_.out - column * kTileSide);
        std::fill(to, to + steps_ * kTileElements, bfloat16{0});
        for (int64_t k = 0; k < 9 * s_.in; ++k) {
            const int64_t tap = k / s_.in, channel = k % s_.in;
            const bfloat16* from = w.data + column * kTileSide * w.out_stride + channel * w.in_stride +
                                   tap / 3 * w.row_stride + tap % 3 * w.column_stride;
            bfloat16* pairs = to + k / 2 * kTileDepth + k % 2;
            for (int64_t n = 0; n < outs; ++n) pairs[2 * n] = from[n * w.out_stride];
        }
    }

    // Writes the image x as rows of A.
    void lay(const bfloat16* x, bfloat16* laid, bfloat16* scratch) const {
        if (!gathers_) return pad(x, laid, laid_elements());
        pad(x, scratch, scratch_elements());
        s_.in == 1 ? gather<1>(scratch, laid) : s_.in == 3 ? gather<3>(scratch, laid) : gather<0>(scratch, laid);
    }

    // Whether the tiles hold nothing but pixels, and are stored in their place.
    bool fills_tiles(int64_t channels) const {
        return tiles_ * kTileSide == s_.out_size().pixels() && channels % (2 * kTileSide) == 0;
    }

    // Computes `channels` output channels, from channel `first` on, a multiple of 16, of some images that `lay` has
    // written one after the other: to y, and rounded to `rounded`, unless one of them is nowhere. Where they fill the
    // tiles, their statistics are merged with y's tiles still in the first cache; these must be 0 before.
    template <class Tiles>
    void run(Tiles& tiles, const bfloat16* laid, int64_t images, int64_t first, int64_t channels,
             const bfloat16* packed, const Pixels<float>& y, const Pixels<bfloat16>& rounded,
             const MergedStatistics& statistics, Cpu cpu) const {
        alignas(64) float products[2 * kTileSide * 2 * kTileSide];
        const int64_t all = images * tiles_;
        const bool in_place = y.data && fills_tiles(channels);
        const int64_t stride = in_place ? y.stride : 2 * kTileSide;
        for (int64_t channel = 0; channel < channels; channel += 2 * kTileSide) {
            const int64_t wide = std::min(2 * kTileSide, channels - channel);
            const bfloat16* b = packed + (first + channel) / kTileSide * steps_ * kTileElements;
            for (int64_t tile = 0; tile < all; tile += 2) {
                const int64_t rows = std::min<int64_t>(2, all - tile);
                const bfloat16* const a[2] = {row_of(laid, tile), row_of(laid, tile + rows - 1)};
                float* c = in_place ? y.data + tile * kTileSide * stride + channel : products;
                multiply(tiles, rows, wide, a, b, c, stride);
                for (int64_t t = tile; t < tile + rows; ++t, c += kTileSide * stride) {
                    if (in_place) {
                        const int64_t at = t / tiles_ * statistics.stride + channel;
                        FASTDM_CALL(cpu, merge_tile, c, stride, wide, t % tiles_ * kTileSide, statistics.mean + at,
                                    statistics.squares + at);
                    } else if (y.data) {
                        store(c, stride, t, channel, wide, y, cpu);
                    }
                    if (rounded.data) store(c, stride, t, channel, wide, rounded, cpu);
                }
            }
        }
    }

private:
    // Pads the image to [H' + 2, W' + 2, in], and with zeros to `elements`. A negative padding crops.
    void pad(const bfloat16* x, bfloat16* padded, int64_t elements) const {
        std::fill(padded, padded + elements, bfloat16{0});
        const int64_t first = std::max<int64_t>(0, s_.padding);
        const int64_t end = std::min(padded_row_, s_.in_size.width + s_.padding);
        for (int64_t i = first; i < std::min(s_.out_size().height + 2, s_.in_size.height + s_.padding); ++i) {
            const bfloat16* from = x + ((i - s_.padding) * s_.in_size.width + first - s_.padding) * s_.in;
            std::copy(from, from + (end - first) * s_.in, padded + (i * padded_row_ + first) * s_.in);
        }
    }

    // Gathers the 3×3 neighbours of every pixel. kIn: the input channels, 0 for any number; known, they make copies of
    // a few instructions.
    template <int64_t kIn>
    void gather(const bfloat16* padded, bfloat16* laid) const {
        const MapSize size = s_.out_size();
        const int64_t in = kIn ? kIn : s_.in, stride = kIn ? kTileDepth : stride_;
        const int64_t run = 3 * in, row = padded_row_ * in;  // values of neighbours in a row, and of a whole row
        const size_t run_bytes = static_cast<size_t>(run) * sizeof(bfloat16);
        const size_t other_bytes = static_cast<size_t>(stride - 3 * run) * sizeof(bfloat16);
        bfloat16* to = laid;
        for (int64_t i = 0; i < size.height; ++i) {
            for (int64_t j = 0; j < size.width; ++j, to += stride) {
                const bfloat16* from = padded + i * row + j * in;
                for (int64_t k = 0; k < 3; ++k) std::memcpy(to + k * run, from + k * row, run_bytes);
                std::memset(to + 3 * run, 0, other_bytes);
            }
        }
        std::fill(to, laid + laid_elements(), bfloat16{0});
    }

    // The row of A that a tile of an image begins with.
    int64_t begin_of(int64_t tile) const {
        const int64_t position = tile * kTileSide;
        return gathers_ ? position : position / row_ * padded_row_ + position % row_;
    }

    const bfloat16* row_of(const bfloat16* laid, int64_t tile) const {
        return laid + tile / tiles_ * laid_elements() + begin_of(tile % tiles_) * stride_;
    }

    template <class T>
    void store(const float* c, int64_t c_stride, int64_t tile, int64_t channel, int64_t channels, const Pixels<T>& to,
               Cpu cpu) const {
        T* image = to.data + tile / tiles_ * s_.out_size().pixels() * to.stride + channel;
        FASTDM_CALL(cpu, store_products, c, c_stride, tile % tiles_ * kTileSide, row_, s_.out_size(), channels, image,
                    to.stride);
    }

    template <class Tiles>
    void multiply(Tiles& tiles, int64_t rows, int64_t wide, const bfloat16* const a[2], const bfloat16* b, float* c,
                  int64_t c_stride) const {
        const TileProduct product{steps_, stride_, offsets_.data(), steps_ * kTileElements};
        if (rows == 2) {
            wide > kTileSide ? multiply_tiles<2, 2>(tiles, product, a, b, c, c_stride)
                             : multiply_tiles<2, 1>(tiles, product, a, b, c, c_stride);
        } else {
            wide > kTileSide ? multiply_tiles<1, 2>(tiles, product, a, b, c, c_stride)
                             : multiply_tiles<1, 1>(tiles, product, a, b, c, c_stride);
        }
    }

    ConvShape s_;
    bool gathers_;
    int64_t padded_row_, row_;  // positions in a row of the padded image, and in one of what is computed
    int64_t steps_, stride_, tiles_;
    std::vector<int64_t> offsets_;
};

}  // namespace fastdm
