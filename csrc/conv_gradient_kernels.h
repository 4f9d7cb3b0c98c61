// Gradients of 3×3 convolutions to their weights, one thread's share. No include guard: see isa.h.
//
// The same two algorithms as in conv_kernels.h, transposed. Winograd's: the gradient to the transformed weights is, for
// each of the 36 coordinates, the product of the transformed patches of the images and of the transformed tiles of the
// output's gradient; it is transformed back once, when all images are in the sum.

namespace fastdm::FASTDM_ISA {

// --- matrix product --------------------------------------------------------------------------------------------------

// A and B of a product Aᵀ · B: `depth` rows, a_stride and b_stride apart.
struct Transposed {
    const float* a;
    int64_t a_stride;
    const float* b;
    int64_t b_stride;
    int64_t depth;

    Transposed at(int64_t row, int64_t column) const { return {a + row, a_stride, b + column, b_stride, depth}; }
};

// Adds R rows and kPanel columns of Aᵀ · B to c.
template <int R>
inline void add_tile(const Transposed& product, float* c, int64_t c_stride) {
    Vec sums[R][2] = {};
    const float *a = product.a, *b = product.b;
    for (int64_t k = 0; k < product.depth; ++k, a += product.a_stride, b += product.b_stride) {
        const Vec left = load<Vec>(b), right = load<Vec>(b + kLanes);
#pragma GCC unroll 9
        for (int r = 0; r < R; ++r) {
            const Vec factor = all<Vec>(a[r]);
            sums[r][0] = multiply_add(factor, left, sums[r][0]);
            sums[r][1] = multiply_add(factor, right, sums[r][1]);
        }
    }
#pragma GCC unroll 9
    for (int r = 0; r < R; ++r) {
        store(c + r * c_stride, load<Vec>(c + r * c_stride) + sums[r][0]);
        store(c + r * c_stride + kLanes, load<Vec>(c + r * c_stride + kLanes) + sums[r][1]);
    }
}

// Adds Aᵀ · B to c [rows, columns]: tiles of R rows, then of `Rest`, of which `rows` is a multiple.
template <int R, int Rest>
inline void add_product(const Transposed& product, int64_t rows, int64_t columns, float* c, int64_t c_stride) {
    for (int64_t column = 0; column < columns; column += kPanel) {
        int64_t row = 0;
        for (; row + R <= rows; row += R) {
            add_tile<R>(product.at(row, column), c + row * c_stride + column, c_stride);
        }
        for (; row < rows; row += Rest) {
            add_tile<Rest>(product.at(row, column), c + row * c_stride + column, c_stride);
        }
    }
}

// --- Winograd --------------------------------------------------------------------------------------------------------

// The transposes of transform_output and transform_weight.
inline void transform_output_gradient(const Vec y0, const Vec y1, const Vec y2, const Vec y3, Vec* to, int step) {
    const Vec even = y0 + y2, odd = y1 + y3, even2 = y0 + 4.0f * y2, odd2 = 2.0f * y1 + 8.0f * y3;
    to[0] = y0;
    to[step] = even + odd;
    to[2 * step] = even - odd;
    to[3 * step] = even2 + odd2;
    to[4 * step] = even2 - odd2;
    to[5 * step] = y3;
}

inline void transform_weight_gradient(const Vec* u, int step, Vec* to, int to_step) {
    const Vec sum1 = (u[step] + u[2 * step]) * (1.0f / 6), difference1 = (u[2 * step] - u[step]) * (1.0f / 6);
    const Vec sum2 = u[3 * step] + u[4 * step], difference2 = u[3 * step] - u[4 * step];
    to[0] = u[0] * 0.25f - sum1 + sum2 * (1.0f / 24);
    to[to_step] = difference1 + difference2 * (1.0f / 12);
    to[2 * to_step] = sum2 * (1.0f / 6) - sum1 + u[5 * step];
}

// Transforms `channels` channels of the 4×4 gradients whose upper left one is (top, left), zero beyond the edge.
inline void winograd_output_gradient(const float* grad, const ConvShape& s, int64_t channels, int64_t top, int64_t left,
                                     float* to, int64_t stride) {
    const MapSize size = s.out_size();
    const int64_t rows = std::min<int64_t>(4, size.height - top), columns = std::min<int64_t>(4, size.width - left);
    grad += (top * size.width + left) * s.out;
    for (int64_t c = 0; c < channels; c += kLanes) {
        Vec y[16] = {}, half[24], m[6];
        if (rows == 4 && columns == 4) {
#pragma GCC unroll 16
            for (int k = 0; k < 16; ++k) y[k] = load<Vec>(grad + (k / 4 * size.width + k % 4) * s.out + c);
        } else {
            for (int64_t i = 0; i < rows; ++i) {
                for (int64_t j = 0; j < columns; ++j) y[4 * i + j] = load<Vec>(grad + (i * size.width + j) * s.out + c);
            }
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) transform_output_gradient(y[j], y[4 + j], y[8 + j], y[12 + j], half + j, 4);
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) {
            const Vec* row = half + 4 * i;
            transform_output_gradient(row[0], row[1], row[2], row[3], m, 1);
#pragma GCC unroll 6
            for (int j = 0; j < 6; ++j) store(to + (6 * i + j) * stride + c, m[j]);
        }
    }
}

// Adds the gradient to the transformed weights, sums [36, in, out], of some images. grad: [images, H', W', out], of the
// convolution's result; workspace: winograd_workspace_elements(s).
void winograd_add_gradient(const float* x, const float* grad, int64_t images, const ConvShape& s, float* workspace,
                           float* sums) {
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
            for (int64_t t = 0; t < tiles; ++t) {
                const int64_t image = (first + t) / per_image, tile = (first + t) % per_image;
                winograd_output_gradient(grad + image * size.pixels() * s.out + column, s, columns, tile / across * 4,
                                         tile % across * 4, m + t * kWinogradColumns, m_stride);
            }
            for (int64_t coordinate = 0; coordinate < 36; ++coordinate) {
                const Transposed product{v + coordinate * v_stride, s.in, m + coordinate * m_stride, kWinogradColumns,
                                         tiles};
                add_product<kTileRows, kTileRows>(product, s.in, columns, sums + coordinate * s.in * s.out + column,
                                                  s.out);
            }
        }
    }
}

// Transforms the sums of winograd_add_gradient to the gradient to the weights: to[tap][in][out].
void winograd_weight_gradient(const float* sums, const ConvShape& s, float* to) {
    const int64_t elements = s.in * s.out;
    for (int64_t at = 0; at < elements; at += kLanes) {
        Vec u[36], half[18], taps[9];
        for (int k = 0; k < 36; ++k) u[k] = load<Vec>(sums + k * elements + at);
        for (int j = 0; j < 6; ++j) transform_weight_gradient(u + j, 6, half + j, 6);
        for (int i = 0; i < 3; ++i) transform_weight_gradient(half + 6 * i, 1, taps + 3 * i, 1);
        for (int tap = 0; tap < 9; ++tap) store(to + tap * elements + at, taps[tap]);
    }
}

// --- direct, for few input channels ----------------------------------------------------------------------------------

// Adds the gradient of one image to `sums` [3, 3, in, out]. padded: [H' + 2, W' + 2, in]; grad: [H', W', out].
void direct_add_gradient(const float* padded, const float* grad, const ConvShape& s, float* sums) {
    constexpr int kRows = kLanes == 16 ? 9 : 3;  // a multiple of 3, as are the rows; as many as fit into registers
    const MapSize size = s.out_size();
    const int64_t row = (size.width + 2) * s.in, run = 3 * s.in;
    for (int64_t i = 0; i < size.height; ++i) {
        for (int64_t k = 0; k < 3; ++k) {
            const Transposed product{padded + (i + k) * row, s.in, grad + i * size.width * s.out, s.out, size.width};
            add_product<kRows, 3>(product, run, s.out, sums + k * run * s.out, s.out);
        }
    }
}

}  // namespace fastdm::FASTDM_ISA
