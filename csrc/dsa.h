// Differentiable Siamese augmentation of images with 1 or 3 channels, on all threads.
//
// Everything but color samples the input: an output pixel is a weighted sum of input pixels. Which ones, and their
// weights, depends on the row of the table alone, so it is computed once per row (usually one class, hence many images)
// and used by the backward pass too. Images are processed with interleaved channels, so that a pixel is one vector.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "convert.h"
#include "shapes.h"
#include "thread_pool.h"

namespace fastdm {

// Columns of the table: see kernels/table.py.
enum DsaColumn {
    kBrightness,
    kSaturation,
    kContrast,
    kShiftRows,
    kShiftCols,
    kCutoutTop,
    kCutoutBottom,
    kCutoutLeft,
    kCutoutRight,
    kFlip,
    kScaleX,
    kScaleY,
    kRotateCos,
    kRotateSin,
    kDsaColumns = 16,
};

// float32 [rows, 16]; group: the row of each image, or nullptr if each has its own or all share a single one.
struct DsaTable {
    const float* data;
    int64_t rows;
    const int64_t* group;

    int64_t row_of(int64_t image) const { return group ? group[image] : rows == 1 ? 0 : image; }
    const float* operator[](int64_t row) const { return data + row * kDsaColumns; }
};

// --- pixels: float for 1 channel, Rgb for 3 (the last of its four elements is unused) --------------------------------

typedef float Rgb __attribute__((vector_size(16)));

template <class Pixel>
constexpr int kChannels = sizeof(Pixel) == sizeof(float) ? 1 : 3;

template <class Pixel>
inline float channel_sum(Pixel pixel) {
    if constexpr (kChannels<Pixel> == 1) {
        return pixel;
    } else {
        return pixel[0] + pixel[1] + pixel[2];
    }
}

// Rounds to nearest, ties to even. NaN stays NaN.
inline void round_pixel(float pixel, bfloat16* out) {
    *out = pixel == pixel ? from_float<bfloat16>(pixel) : bfloat16{0x7FC0};
}

inline void round_pixel(Rgb pixel, bfloat16* out) {
    typedef uint32_t Words __attribute__((vector_size(16)));
    Words words;
    std::memcpy(&words, &pixel, sizeof words);
    words = pixel == pixel ? (words + 0x7FFF + (words >> 16 & 1)) >> 16 : Words{} + 0x7FC0;
    for (int c = 0; c < 3; ++c) out[c].bits = static_cast<uint16_t>(words[c]);
}

inline void round_pixel(float pixel, float* out) { *out = pixel; }

inline void round_pixel(Rgb pixel, float* out) {
    for (int c = 0; c < 3; ++c) out[c] = pixel[c];
}

// Reads an image [C, pixels], or [pixels, C] if channels_last, as x * scale + shift.
template <class Pixel, class In>
inline void read_image(const In* from, int64_t pixels, bool channels_last, const Normalisation& norm, Pixel* to) {
    constexpr int kC = kChannels<Pixel>;
    const int64_t next_pixel = channels_last ? kC : 1, next_channel = channels_last ? 1 : pixels;
    if constexpr (kC == 1) {
        for (int64_t p = 0; p < pixels; ++p) to[p] = to_float(from[p]) * norm.scale[0] + norm.shift[0];
    } else {
        const Rgb scale{norm.scale[0], norm.scale[1], norm.scale[2]};
        const Rgb shift{norm.shift[0], norm.shift[1], norm.shift[2]};
        for (int64_t p = 0; p < pixels; ++p) {
            const In* pixel = from + p * next_pixel;
            const Rgb raw{to_float(pixel[0]), to_float(pixel[next_channel]), to_float(pixel[2 * next_channel])};
            to[p] = raw * scale + shift;
        }
    }
}

template <class Pixel, class Out>
inline void write_pixel(Pixel value, int64_t p, int64_t pixels, bool channels_last, Out* out) {
    constexpr int kC = kChannels<Pixel>;
    Out elements[kC];
    round_pixel(value, elements);
    for (int c = 0; c < kC; ++c) out[channels_last ? p * kC + c : c * pixels + p] = elements[c];
}

// --- color ----------------------------------------------------------------------------------------------------------

inline bool is_colored(const float* row) {
    return row[kBrightness] != 0 || row[kSaturation] != 1 || row[kContrast] != 1;
}

// The mean over all channels and pixels. Short runs are summed in float, the runs in double, so that large images lose
// no precision.
template <class Pixel>
inline float image_mean(const Pixel* image, int64_t pixels) {
    constexpr int64_t kRun = 64;
    double total = 0;
    for (int64_t start = 0; start < pixels; start += kRun) {
        Pixel sum{};
        for (int64_t p = start; p < std::min(start + kRun, pixels); ++p) sum += image[p];
        total += channel_sum(sum);
    }
    return static_cast<float>(total / static_cast<double>(pixels * kChannels<Pixel>));
}

template <class Pixel>
inline void color(Pixel* image, int64_t pixels, const float* row) {
    const float b = row[kBrightness], s = row[kSaturation], k = row[kContrast];
    for (int64_t p = 0; p < pixels; ++p) {
        const Pixel x = image[p] + b;
        const float mean = channel_sum(x) / kChannels<Pixel>;
        image[p] = (x - mean) * s + mean;
    }
    const float mean = image_mean(image, pixels);
    for (int64_t p = 0; p < pixels; ++p) image[p] = (image[p] - mean) * k + mean;
}

template <class Pixel>
inline void color_backward(Pixel* grad, int64_t pixels, const float* row) {
    const float s = row[kSaturation], k = row[kContrast];
    const float common = (1 - k) * image_mean(grad, pixels);
    for (int64_t p = 0; p < pixels; ++p) {
        const float mean = channel_sum(grad[p]) / kChannels<Pixel>;
        grad[p] = grad[p] * (k * s) + (k * (1 - s) * mean + common);
    }
}

// --- crop, cutout, flip, scale and rotation --------------------------------------------------------------------------

// Sampling indices and weights: every output pixel is a weighted sum of `taps` input pixels. With 0 taps the image
// stays as it is, and 1 tap has the weight 1. Outside the image, the index is that of the pixel after the last one,
// which is 0.
struct Sampling {
    int taps = 0;
    std::vector<int32_t> index;
    std::vector<float> weight;

    void resize(int taps_per_pixel, int64_t pixels) {
        taps = taps_per_pixel;
        index.resize(static_cast<size_t>(taps * pixels));
        weight.resize(static_cast<size_t>(taps == 1 ? 0 : taps * pixels));
    }
};

// Crop, cutout and flip: the input pixel that an output pixel shows.
class Displacement {
public:
    Displacement(const float* row, MapSize size)
        : size_(size),
          shift_rows_(whole(row[kShiftRows])),
          shift_cols_(whole(row[kShiftCols])),
          top_(whole(row[kCutoutTop])),
          bottom_(whole(row[kCutoutBottom])),
          left_(whole(row[kCutoutLeft])),
          right_(whole(row[kCutoutRight])),
          flip_(row[kFlip] != 0) {}

    bool is_identity() const { return shift_rows_ == 0 && shift_cols_ == 0 && bottom_ < top_ && !flip_; }

    int32_t source(int64_t i, int64_t j) const {
        const int32_t outside = static_cast<int32_t>(size_.pixels());
        if (!contains(i, j)) return outside;
        if (flip_) j = size_.width - 1 - j;
        if (top_ <= i && i <= bottom_ && left_ <= j && j <= right_) return outside;
        i += shift_rows_, j += shift_cols_;
        return contains(i, j) ? static_cast<int32_t>(i * size_.width + j) : outside;
    }

private:
    bool contains(int64_t i, int64_t j) const { return 0 <= i && i < size_.height && 0 <= j && j < size_.width; }

    // An integer stored as a float, clamped to beyond any image.
    static int64_t whole(float value) {
        constexpr float kFar = 1 << 30;
        return value >= kFar ? int64_t{1} << 31 : value > -kFar ? static_cast<int64_t>(value) : -(int64_t{1} << 31);
    }

    MapSize size_;
    int64_t shift_rows_, shift_cols_, top_, bottom_, left_, right_;
    bool flip_;
};

// The position in [-1, 1] of the centre of pixel i along an axis, and back, rounded like PyTorch's affine_grid and
// grid_sample so that the results are the same.
inline float to_grid(int64_t i, int64_t size) {
    if (size == 1) return 0;
    const double step = 2.0f / static_cast<float>(size - 1);  // rounded to float, its multiples are not
    const double far = step * static_cast<double>(i < size / 2 ? i : size - 1 - i) - 1;
    return static_cast<float>(i < size / 2 ? far : -far) * static_cast<float>(size - 1) / static_cast<float>(size);
}

inline float from_grid(float position, int64_t size) { return (position + 1) * (static_cast<float>(size) / 2) - 0.5f; }

// The four pixels around (y, x), with weights 0 if all lie outside. source(i, j): the index of a pixel.
template <class Source>
inline void bilinear_taps(float y, float x, MapSize size, const Source& source, int32_t outside, int32_t* indices,
                          float* weights) {
    if (!(y > -1 && y < static_cast<float>(size.height) && x > -1 && x < static_cast<float>(size.width))) {
        std::fill(indices, indices + 4, outside);
        std::fill(weights, weights + 4, 0.0f);
        return;
    }
    const float top = std::floor(y), left = std::floor(x);
    const float lower = y - top, right = x - left;
    for (int tap = 0; tap < 4; ++tap) {
        indices[tap] = source(static_cast<int64_t>(top) + tap / 2, static_cast<int64_t>(left) + tap % 2);
        weights[tap] = (tap / 2 ? lower : 1 - lower) * (tap % 2 ? right : 1 - right);
    }
}

// Two samplings: rotation comes last and reads the image that the others leave, which is cut off at the image's border.
inline void compute_samplings(const float* row, MapSize size, Sampling& moved, Sampling& rotated) {
    const Displacement displacement(row, size);
    const float sx = row[kScaleX], sy = row[kScaleY], cos = row[kRotateCos], sin = row[kRotateSin];
    const int32_t outside = static_cast<int32_t>(size.pixels());
    const auto displaced = [&](int64_t i, int64_t j) { return displacement.source(i, j); };
    const auto in_place = [&](int64_t i, int64_t j) {
        const bool inside = 0 <= i && i < size.height && 0 <= j && j < size.width;
        return inside ? static_cast<int32_t>(i * size.width + j) : outside;
    };
    const bool is_scaled = sx != 1 || sy != 1, is_rotated = cos != 1 || sin != 0;
    moved.resize(is_scaled ? 4 : displacement.is_identity() ? 0 : 1, size.pixels());
    rotated.resize(is_rotated ? 4 : 0, size.pixels());
    int64_t p = 0;
    for (int64_t i = 0; i < size.height; ++i) {
        const float y = to_grid(i, size.height);
        for (int64_t j = 0; j < size.width; ++j, ++p) {
            const float x = to_grid(j, size.width);
            if (is_scaled) {
                bilinear_taps(from_grid(sy * y, size.height), from_grid(sx * x, size.width), size, displaced, outside,
                              &moved.index[4 * p], &moved.weight[4 * p]);
            } else if (moved.taps == 1) {
                moved.index[p] = displacement.source(i, j);
            }
            if (is_rotated) {
                bilinear_taps(from_grid(sin * x + cos * y, size.height), from_grid(cos * x - sin * y, size.width), size,
                              in_place, outside, &rotated.index[4 * p], &rotated.weight[4 * p]);
            }
        }
    }
}

// Calls write(p, value) for every output pixel. in: pixels + 1, the last one 0.
template <class Pixel, class Write>
inline void sample(const Pixel* in, int64_t pixels, const Sampling& sampling, const Write& write) {
    const int32_t* index = sampling.index.data();
    const float* weight = sampling.weight.data();
    if (sampling.taps == 0) {
        for (int64_t p = 0; p < pixels; ++p) write(p, in[p]);
    } else if (sampling.taps == 1) {
        for (int64_t p = 0; p < pixels; ++p) write(p, in[index[p]]);
    } else {
        for (int64_t p = 0; p < pixels; ++p, index += 4, weight += 4) {
            write(p, in[index[0]] * weight[0] + in[index[1]] * weight[1] +
                         (in[index[2]] * weight[2] + in[index[3]] * weight[3]));
        }
    }
}

// The transpose of `sample`, from grad to grad_in, both of pixels + 1.
template <class Pixel>
inline void scatter_add(const Pixel* grad, int64_t pixels, const Sampling& sampling, Pixel* grad_in) {
    std::fill(grad_in, grad_in + pixels + 1, Pixel{});
    for (int64_t p = 0; p < pixels; ++p) {
        for (int tap = 0; tap < sampling.taps; ++tap) {
            const int64_t at = p * sampling.taps + tap;
            grad_in[sampling.index[at]] += sampling.taps == 1 ? grad[p] : grad[p] * sampling.weight[at];
        }
    }
}

// --- batches ---------------------------------------------------------------------------------------------------------

// What a thread reuses from image to image.
template <class Pixel>
struct DsaWorkspace {
    Sampling moved, rotated;
    std::vector<Pixel> image, other;  // pixels + 1

    void resize(int64_t pixels) {
        image.resize(static_cast<size_t>(pixels + 1));
        other.resize(static_cast<size_t>(pixels + 1));
    }

    static DsaWorkspace& of_this_thread() {
        thread_local DsaWorkspace workspace;
        return workspace;
    }
};

// Calls body(image, row of the table, workspace with the samplings of that row).
template <class Pixel, class Body>
void for_each_image(ThreadPool& pool, const Maps& out, const DsaTable& table, const Body& body) {
    // Several blocks per thread, each of many images, which share the samplings of their row. To wake a thread takes as
    // long as a few thousand pixels, so a small batch is the caller's alone.
    constexpr int64_t kPixelsPerThread = 1 << 14;
    const int64_t block = std::clamp<int64_t>(out.count / (4 * pool.threads()), 1, 64);
    const int64_t limit = std::clamp<int64_t>(out.count * out.size.pixels() / kPixelsPerThread, 1, pool.threads());
    pool.run(
        out.count, block,
        [&](int64_t begin, int64_t end) {
            auto& workspace = DsaWorkspace<Pixel>::of_this_thread();
            workspace.resize(out.size.pixels());
            int64_t current = -1;
            for (int64_t n = begin; n < end; ++n) {
                const int64_t row = table.row_of(n);
                if (row != current) compute_samplings(table[row], out.size, workspace.moved, workspace.rotated);
                current = row;
                body(n, table[row], workspace);
            }
        },
        static_cast<int>(limit));
}

// images: [M, C, H, W]; index: the input image of each output image, or nullptr for all in order.
template <class Pixel, class In, class Out>
void dsa(ThreadPool& pool, const In* images, const int64_t* index, const Normalisation& norm, const DsaTable& table,
         const Maps& out_maps, Out* out) {
    const int64_t pixels = out_maps.size.pixels(), elements = out_maps.elements();
    for_each_image<Pixel>(pool, out_maps, table, [&](int64_t n, const float* row, DsaWorkspace<Pixel>& workspace) {
        Pixel *image = workspace.image.data(), *other = workspace.other.data();
        image[pixels] = other[pixels] = Pixel{};
        read_image(images + (index ? index[n] : n) * elements, pixels, false, norm, image);
        if (is_colored(row)) color(image, pixels, row);
        if (workspace.rotated.taps && workspace.moved.taps) {
            sample(image, pixels, workspace.moved, [&](int64_t p, Pixel value) { other[p] = value; });
            std::swap(image, other);
        }
        const Sampling& last = workspace.rotated.taps ? workspace.rotated : workspace.moved;
        Out* to = out + n * elements;
        if (out_maps.channels_last) {
            sample(image, pixels, last, [&](int64_t p, Pixel value) { write_pixel(value, p, pixels, true, to); });
        } else {
            sample(image, pixels, last, [&](int64_t p, Pixel value) { write_pixel(value, p, pixels, false, to); });
        }
    });
}

// grad: shaped like grad_maps; grad_images: [N, C, H, W].
template <class Pixel, class In>
void dsa_backward(ThreadPool& pool, const In* grad, const DsaTable& table, const Maps& grad_maps, float* grad_images) {
    const int64_t pixels = grad_maps.size.pixels(), elements = grad_maps.elements();
    const Normalisation identity{{1, 1, 1, 1}, {0, 0, 0, 0}};
    for_each_image<Pixel>(pool, grad_maps, table, [&](int64_t n, const float* row, DsaWorkspace<Pixel>& workspace) {
        Pixel *image = workspace.image.data(), *other = workspace.other.data();
        read_image(grad + n * elements, pixels, grad_maps.channels_last, identity, image);
        for (const Sampling* sampling : {&workspace.rotated, &workspace.moved}) {
            if (sampling->taps == 0) continue;
            scatter_add(image, pixels, *sampling, other);
            std::swap(image, other);
        }
        if (is_colored(row)) color_backward(image, pixels, row);
        for (int64_t p = 0; p < pixels; ++p) write_pixel(image[p], p, pixels, false, grad_images + n * elements);
    });
}

}  // namespace fastdm
