// 3×3 convolutions of float32 images [H, W, channels], one thread's share. No include guard: see isa.h.
//
// Two algorithms. Few input channels: direct, the sum over the 3×3 taps, as a matrix product over rows of a padded
// image. Many: Winograd's F(4×4, 3×3) (Lavin and Gray, "Fast algorithms for convolutional neural networks", 2015): 6×6
// patches of the image and the 3×3 weights are transformed, multiplied (a matrix product over the channels for each of
// the 36 coordinates) and transformed back to 4×4 pixels, with a quarter of the multiplications.

namespace fastdm::FASTDM_ISA {

// --- matrix product --------------------------------------------------------------------------------------------------

// A tile of the product is kTileRows × kPanel elements, all in registers; B is packed in panels of kPanel columns.
constexpr int kTileRows = kLanes == 16 ? 8 : 4;
constexpr int64_t kPanel = 2 * kLanes;

inline int64_t panel_columns() { return kPanel; }

// Row r of A: `segments` segments of `length` elements, `segment_stride` apart; rows are `row_stride` apart.
struct Rows {
    const float* data;
    int64_t row_stride;
    int64_t segments;
    int64_t segment_stride;
    int64_t length;

    Rows from(int64_t row) const { return {data + row * row_stride, row_stride, segments, segment_stride, length}; }
};

// R rows of A times one panel of B, [segments · length, kPanel].
template <int R>
inline void multiply_tile(const Rows& a, const float* panel, float* c, int64_t c_stride) {
    Vec sums[R][2] = {};
    for (int64_t segment = 0; segment < a.segments; ++segment) {
        const float* from = a.data + segment * a.segment_stride;
        for (int64_t k = 0; k < a.length; ++k, panel += kPanel) {
            const Vec left = load<Vec>(panel), right = load<Vec>(panel + kLanes);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const Vec factor = all<Vec>(from[r * a.row_stride + k]);
                sums[r][0] = multiply_add(factor, left, sums[r][0]);
                sums[r][1] = multiply_add(factor, right, sums[r][1]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        store(c + r * c_stride, sums[r][0]);
        store(c + r * c_stride + kLanes, sums[r][1]);
    }
}

inline void multiply(const Rows& a, int64_t rows, const float* panel, float* c, int64_t c_stride) {
    int64_t r = 0;
    for (; r + kTileRows <= rows; r += kTileRows) {
        multiply_tile<kTileRows>(a.from(r), panel, c + r * c_stride, c_stride);
    }
    for (; r + 2 <= rows; r += 2) multiply_tile<2>(a.from(r), panel, c + r * c_stride, c_stride);
    for (; r < rows; ++r) multiply_tile<1>(a.from(r), panel, c + r * c_stride, c_stride);
}

// --- Winograd --------------------------------------------------------------------------------------------------------

// Elements between the transforms of two coordinates. Not a power of two, whose lines would map to one set of the
// cache.
inline int64_t coordinate_stride(int64_t channels) { return kWinogradTiles * channels + 16; }

inline void transform_input(const Vec d0, const Vec d1, const Vec d2, const Vec d3, const Vec d4, const Vec d5, Vec* to,
                            int step) {
    const Vec even = d4 - 4.0f * d2, odd = d3 - 4.0f * d1;
    const Vec even2 = d4 - d2, odd2 = 2.0f * (d3 - d1);
    to[0] = 4.0f * d0 - 5.0f * d2 + d4;
    to[step] = even + odd;
    to[2 * step] = even - odd;
    to[3 * step] = even2 + odd2;
    to[4 * step] = even2 - odd2;
    to[5 * step] = 4.0f * d1 - 5.0f * d3 + d5;
}

inline void transform_output(const Vec* m, int step, Vec* to, int to_step) {
    const Vec sum1 = m[step] + m[2 * step], difference1 = m[step] - m[2 * step];
    const Vec sum2 = m[3 * step] + m[4 * step], difference2 = m[3 * step] - m[4 * step];
    to[0] = m[0] + sum1 + sum2;
    to[to_step] = difference1 + 2.0f * difference2;
    to[2 * to_step] = sum1 + 4.0f * sum2;
    to[3 * to_step] = difference1 + 8.0f * difference2 + m[5 * step];
}

inline void transform_weight(const Vec g0, const Vec g1, const Vec g2, Vec* to, int step) {
    const Vec even = g0 + g2;
    const Vec even2 = g0 * (1.0f / 24) + g2 * (1.0f / 6), odd2 = g1 * (1.0f / 12);
    to[0] = g0 * 0.25f;
    to[step] = (even + g1) * (-1.0f / 6);
    to[2 * step] = (even - g1) * (-1.0f / 6);
    to[3 * step] = even2 + odd2;
    to[4 * step] = even2 - odd2;
    to[5 * step] = g2;
}

// Transforms one panel of output channels: to[coordinate][panel][in][kPanel].
void winograd_weights(const Weights& w, int64_t panel, float* to) {
    for (int64_t in = 0; in < w.in; ++in) {
        for (int64_t half = 0; half < kPanel; half += kLanes) {
            Vec taps[9], rows[18], u[36];
            for (int tap = 0; tap < 9; ++tap) {
                for (int64_t lane = 0; lane < kLanes; ++lane) {
                    taps[tap][lane] = w.at(panel * kPanel + half + lane, in, tap);
                }
            }
            for (int j = 0; j < 3; ++j) transform_weight(taps[j], taps[3 + j], taps[6 + j], rows + j, 3);
            for (int i = 0; i < 6; ++i) transform_weight(rows[3 * i], rows[3 * i + 1], rows[3 * i + 2], u + 6 * i, 1);
            for (int64_t coordinate = 0; coordinate < 36; ++coordinate) {
                store(to + (coordinate * w.out + panel * kPanel) * w.in + in * kPanel + half, u[coordinate]);
            }
        }
    }
}

// Transforms the 6×6 patch whose upper left pixel is (top, left): to[coordinate · stride + channel].
inline void winograd_patch(const float* x, const ConvShape& s, int64_t top, int64_t left, const float* zeros, float* to,
                           int64_t stride) {
    const float* pixel[36];
    for (int64_t i = 0; i < 6; ++i) {
        for (int64_t j = 0; j < 6; ++j) {
            const bool inside =
                0 <= top + i && top + i < s.in_size.height && 0 <= left + j && left + j < s.in_size.width;
            pixel[6 * i + j] = inside ? x + ((top + i) * s.in_size.width + left + j) * s.in : zeros;
        }
    }
    for (int64_t c = 0; c < s.in; c += kLanes) {
        Vec columns[36], v[6];
#pragma GCC unroll 6
        for (int j = 0; j < 6; ++j) {
            transform_input(load<Vec>(pixel[j] + c), load<Vec>(pixel[6 + j] + c), load<Vec>(pixel[12 + j] + c),
                            load<Vec>(pixel[18 + j] + c), load<Vec>(pixel[24 + j] + c), load<Vec>(pixel[30 + j] + c),
                            columns + j, 6);
        }
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) {
            const Vec* row = columns + 6 * i;
            transform_input(row[0], row[1], row[2], row[3], row[4], row[5], v, 1);
#pragma GCC unroll 6
            for (int j = 0; j < 6; ++j) store(to + (6 * i + j) * stride + c, v[j]);
        }
    }
}

// Transforms back `channels` channels of the 4×4 pixels whose upper left one is (top, left), clipped to the image.
inline void winograd_pixels(const float* m, int64_t stride, int64_t channels, const ConvShape& s, int64_t top,
                            int64_t left, float* y) {
    const MapSize size = s.out_size();
    const int64_t rows = std::min<int64_t>(4, size.height - top), columns = std::min<int64_t>(4, size.width - left);
    y += (top * size.width + left) * s.out;
    for (int64_t c = 0; c < channels; c += kLanes) {
        Vec half[24], v[36], pixels[16];
#pragma GCC unroll 36
        for (int k = 0; k < 36; ++k) v[k] = load<Vec>(m + k * stride + c);
#pragma GCC unroll 6
        for (int j = 0; j < 6; ++j) transform_output(v + j, 6, half + j, 6);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) transform_output(half + 6 * i, 1, pixels + 4 * i, 1);
        if (rows == 4 && columns == 4) {
#pragma GCC unroll 16
            for (int k = 0; k < 16; ++k) store(y + (k / 4 * size.width + k % 4) * s.out + c, pixels[k]);
        } else {
            for (int64_t i = 0; i < rows; ++i) {
                for (int64_t j = 0; j < columns; ++j) store(y + (i * size.width + j) * s.out + c, pixels[4 * i + j]);
            }
        }
    }
}

// y [images, H', W', out] = conv(x [images, H, W, in]). transformed: the weights; workspace:
// winograd_workspace_elements(s).
void winograd_conv(const float* x, int64_t images, const ConvShape& s, const float* transformed, float* workspace,
                   float* y) {
    const int64_t v_stride = coordinate_stride(s.in), m_stride = coordinate_stride(kWinogradColumns);
    float* zeros = workspace;
    float* v = zeros + s.in;
    float* m = v + 36 * v_stride;
    std::fill(zeros, zeros + s.in, 0.0f);

    const MapSize size = s.out_size();
    const int64_t across = (size.width + 3) / 4, per_image = (size.height + 3) / 4 * across;
    for (int64_t first = 0; first < images * per_image; first += kWinogradTiles) {
        const int64_t tiles = std::min(kWinogradTiles, images * per_image - first);
        for (int64_t t = 0; t < tiles; ++t) {
            const int64_t image = (first + t) / per_image, tile = (first + t) % per_image;
            winograd_patch(x + image * s.in_size.pixels() * s.in, s, tile / across * 4 - s.padding,
                           tile % across * 4 - s.padding, zeros, v + t * s.in, v_stride);
        }
        for (int64_t column = 0; column < s.out; column += kWinogradColumns) {
            const int64_t columns = std::min(kWinogradColumns, s.out - column);
            for (int64_t coordinate = 0; coordinate < 36; ++coordinate) {
                const Rows rows{v + coordinate * v_stride, s.in, 1, 0, s.in};
                for (int64_t c = 0; c < columns; c += kPanel) {
                    multiply(rows, tiles, transformed + (coordinate * s.out + column + c) * s.in,
                             m + coordinate * m_stride + c, kWinogradColumns);
                }
            }
            for (int64_t t = 0; t < tiles; ++t) {
                const int64_t image = (first + t) / per_image, tile = (first + t) % per_image;
                winograd_pixels(m + t * kWinogradColumns, m_stride, columns, s, tile / across * 4, tile % across * 4,
                                y + image * size.pixels() * s.out + column);
            }
        }
    }
}

// --- direct, for few input channels ----------------------------------------------------------------------------------

// Packs the weights: to[panel][tap · in][kPanel], taps and channels in the order of an image's row.
void direct_weights(const Weights& w, float* to) {
    for (int64_t panel = 0; panel < w.out / kPanel; ++panel) {
        for (int tap = 0; tap < 9; ++tap) {
            for (int64_t in = 0; in < w.in; ++in) {
                for (int64_t lane = 0; lane < kPanel; ++lane) *to++ = w.at(panel * kPanel + lane, in, tap);
            }
        }
    }
}

// Convolves one image to `channels` output channels. padded: [H' + 2, W' + 2, in]; packed: the panels of these
// channels; y: [H', W', y_stride].
void direct_conv(const float* padded, const ConvShape& s, const float* packed, int64_t channels, float* y,
                 int64_t y_stride) {
    const MapSize size = s.out_size();
    const int64_t row = (size.width + 2) * s.in;
    for (int64_t i = 0; i < size.height; ++i) {
        const Rows rows{padded + i * row, s.in, 3, row, 3 * s.in};
        for (int64_t c = 0; c < channels; c += kPanel) {
            multiply(rows, size.width, packed + c * 9 * s.in, y + i * size.width * y_stride + c, y_stride);
        }
    }
}

// Packs panels over the 9 · in taps, padded with zeros: to[panel][out][kPanel].
void direct_backward_weights(const Weights& w, float* to) {
    for (int64_t first = 0; first < 9 * w.in; first += kPanel) {
        for (int64_t out = 0; out < w.out; ++out) {
            for (int64_t k = first; k < first + kPanel; ++k) {
                *to++ = k < 9 * w.in ? w.at(out, k % w.in, static_cast<int>(k / w.in)) : 0.0f;
            }
        }
    }
}

// Adds the input gradient of one image to padded [H' + 2, W' + 2, in]; grad: [H', W', out].
void direct_conv_backward(const float* grad, const ConvShape& s, const float* packed, float* padded) {
    const MapSize size = s.out_size();
    const int64_t taps = 9 * s.in, run = 3 * s.in, row = (size.width + 2) * s.in;
    float products[kTileRows][kDirectTaps];
    for (int64_t i = 0; i < size.height; ++i) {
        for (int64_t j = 0; j < size.width; j += kTileRows) {
            const int64_t pixels = std::min<int64_t>(kTileRows, size.width - j);
            const Rows rows{grad + (i * size.width + j) * s.out, s.out, 1, 0, s.out};
            for (int64_t k = 0; k < taps; k += kPanel) {
                multiply(rows, pixels, packed + k * s.out, products[0] + k, kDirectTaps);
            }
            for (int64_t pixel = 0; pixel < pixels; ++pixel) {
                for (int64_t k = 0; k < 3; ++k) {
                    float* to = padded + (i + k) * row + (j + pixel) * s.in;
                    for (int64_t tap = 0; tap < run; ++tap) to[tap] += products[pixel][k * run + tap];
                }
            }
        }
    }
}

}  // namespace fastdm::FASTDM_ISA
