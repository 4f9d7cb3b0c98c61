// Differentiable Siamese augmentation of images with 1 or 3 channels, on all threads.
//
// Everything but the colours weighs and adds input pixels, by weights that depend on the row of the table alone: they
// are listed once per row (as a rule that of a class, hence of many images), and the backward pass adds along the same
// lists. An image is worked on with its channels side by side, so that a pixel is one vector.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "convert.h"
#include "maps.h"
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

// float32 [rows, 16]; group: the row of each image, or nullptr if each has its own, or the only row serves all.
struct DsaTable {
    const float* data;
    int64_t rows;
    const int64_t* group;

    int64_t row_of(int64_t image) const { return group ? group[image] : rows == 1 ? 0 : image; }
    const float* operator[](int64_t row) const { return data + row * kDsaColumns; }
};

// --- pixels: float for 1 channel, Rgb for 3 (the last of its four numbers means nothing) ------------------------------

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

inline float dsa_number(uint8_t value) { return value; }
inline float dsa_number(float value) { return value; }
inline float dsa_number(bfloat16 value) {
    const uint32_t bits = uint32_t{value.bits} << 16;
    float number;
    std::memcpy(&number, &bits, sizeof number);
    return number;
}

// Rounded to nearest, ties to even; what is no number stays none.
inline void round_pixel(float pixel, bfloat16* out) {
    *out = pixel == pixel ? to_number<bfloat16>(pixel) : bfloat16{0x7FC0};
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

// Reads an image, [C, pixels] or [pixels, C] if channels_last, as x * scale + shift.
template <class Pixel, class In>
inline void read_image(const In* from, int64_t pixels, bool channels_last, const Normalisation& norm, Pixel* to) {
    constexpr int kC = kChannels<Pixel>;
    const int64_t next_pixel = channels_last ? kC : 1, next_channel = channels_last ? 1 : pixels;
    if constexpr (kC == 1) {
        for (int64_t p = 0; p < pixels; ++p) to[p] = dsa_number(from[p]) * norm.scale[0] + norm.shift[0];
    } else {
        const Rgb scale{norm.scale[0], norm.scale[1], norm.scale[2]}, shift{norm.shift[0], norm.shift[1], norm.shift[2]};
        for (int64_t p = 0; p < pixels; ++p) {
            const In* pixel = from + p * next_pixel;
            const Rgb raw{dsa_number(pixel[0]), dsa_number(pixel[next_channel]), dsa_number(pixel[2 * next_channel])};
            to[p] = raw * scale + shift;
        }
    }
}

template <class Pixel, class Out>
inline void write_pixel(Pixel value, int64_t p, int64_t pixels, bool channels_last, Out* out) {
    constexpr int kC = kChannels<Pixel>;
    Out numbers[kC];
    round_pixel(value, numbers);
    for (int c = 0; c < kC; ++c) out[channels_last ? p * kC + c : c * pixels + p] = numbers[c];
}

// --- colours ----------------------------------------------------------------------------------------------------------

inline bool is_coloured(const float* row) {
    return row[kBrightness] != 0 || row[kSaturation] != 1 || row[kContrast] != 1;
}

// The mean over all channels and pixels; float sums of short runs, so that no digits are lost in large images.
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
inline void colour(Pixel* image, int64_t pixels, const float* row) {
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
inline void colour_backward(Pixel* grad, int64_t pixels, const float* row) {
    const float s = row[kSaturation], k = row[kContrast];
    const float common = (1 - k) * image_mean(grad, pixels);
    for (int64_t p = 0; p < pixels; ++p) {
        grad[p] = grad[p] * (k * s) + (k * (1 - s) * (channel_sum(grad[p]) / kChannels<Pixel>) + common);
    }
}

// --- crop, cutout, flip, scale and rotation ---------------------------------------------------------------------------

// For every output pixel the input pixels that it adds up, `per_pixel` of them, and their weights (1 where it is one);
// per_pixel 0 leaves the image as it is. A place outside of the image is the pixel after its last one, which is 0.
struct Taps {
    int per_pixel = 0;
    std::vector<int32_t> place;
    std::vector<float> weight;

    void resize(int taps, int64_t pixels) {
        per_pixel = taps;
        place.resize(static_cast<size_t>(taps * pixels));
        weight.resize(static_cast<size_t>(taps == 1 ? 0 : taps * pixels));
    }
};

// Crop, cutout and flip: where in the input pixel (i, j) comes from.
class Moves {
public:
    Moves(const float* row, MapSize size)
        : size_(size),
          shift_rows_(whole(row[kShiftRows])),
          shift_cols_(whole(row[kShiftCols])),
          top_(whole(row[kCutoutTop])),
          bottom_(whole(row[kCutoutBottom])),
          left_(whole(row[kCutoutLeft])),
          right_(whole(row[kCutoutRight])),
          flip_(row[kFlip] != 0) {}

    bool any() const { return shift_rows_ != 0 || shift_cols_ != 0 || bottom_ >= top_ || flip_; }

    int32_t place(int64_t i, int64_t j) const {
        const int32_t outside = static_cast<int32_t>(size_.pixels());
        if (!contains(i, j)) return outside;
        if (flip_) j = size_.width - 1 - j;
        if (top_ <= i && i <= bottom_ && left_ <= j && j <= right_) return outside;
        i += shift_rows_, j += shift_cols_;
        return contains(i, j) ? static_cast<int32_t>(i * size_.width + j) : outside;
    }

private:
    bool contains(int64_t i, int64_t j) const { return 0 <= i && i < size_.height && 0 <= j && j < size_.width; }

    // An integer that was stored as a float. Beyond any image it makes no difference how far.
    static int64_t whole(float value) {
        constexpr float kFar = 1 << 30;
        return value >= kFar ? int64_t{1} << 31 : value > -kFar ? static_cast<int64_t>(value) : -(int64_t{1} << 31);
    }

    MapSize size_;
    int64_t shift_rows_, shift_cols_, top_, bottom_, left_, right_;
    bool flip_;
};

// Where the centres of an axis' pixels lie between -1 and 1, and back: rounded as PyTorch's affine_grid and grid_sample
// round, so that the results are theirs.
inline float to_grid(int64_t i, int64_t size) {
    if (size == 1) return 0;
    const double step = 2.0f / static_cast<float>(size - 1);  // rounded to float, its multiples are not
    const double far = step * static_cast<double>(i < size / 2 ? i : size - 1 - i) - 1;
    return static_cast<float>(i < size / 2 ? far : -far) * static_cast<float>(size - 1) / static_cast<float>(size);
}

inline float from_grid(float place, int64_t size) { return (place + 1) * (static_cast<float>(size) / 2) - 0.5f; }

// The four pixels round (y, x), none where all lie outside; place(i, j) says where a pixel is.
template <class Place>
inline void bilinear_taps(float y, float x, MapSize size, const Place& place, int32_t outside, int32_t* places,
                          float* weights) {
    if (!(y > -1 && y < static_cast<float>(size.height) && x > -1 && x < static_cast<float>(size.width))) {
        std::fill(places, places + 4, outside);
        std::fill(weights, weights + 4, 0.0f);
        return;
    }
    const float top = std::floor(y), left = std::floor(x);
    const float lower = y - top, right = x - left;
    for (int tap = 0; tap < 4; ++tap) {
        places[tap] = place(static_cast<int64_t>(top) + tap / 2, static_cast<int64_t>(left) + tap % 2);
        weights[tap] = (tap / 2 ? lower : 1 - lower) * (tap % 2 ? right : 1 - right);
    }
}

// Rotation comes after all others and reads the image that they leave, which ends where the image ends: two lists.
inline void list_taps(const float* row, MapSize size, Taps& moved, Taps& rotated) {
    const Moves moves(row, size);
    const float sx = row[kScaleX], sy = row[kScaleY], cos = row[kRotateCos], sin = row[kRotateSin];
    const int32_t outside = static_cast<int32_t>(size.pixels());
    const auto move = [&](int64_t i, int64_t j) { return moves.place(i, j); };
    const auto stay = [&](int64_t i, int64_t j) {
        const bool inside = 0 <= i && i < size.height && 0 <= j && j < size.width;
        return inside ? static_cast<int32_t>(i * size.width + j) : outside;
    };
    const bool is_scaled = sx != 1 || sy != 1, is_rotated = cos != 1 || sin != 0;
    moved.resize(is_scaled ? 4 : moves.any() ? 1 : 0, size.pixels());
    rotated.resize(is_rotated ? 4 : 0, size.pixels());
    int64_t p = 0;
    for (int64_t i = 0; i < size.height; ++i) {
        const float y = to_grid(i, size.height);
        for (int64_t j = 0; j < size.width; ++j, ++p) {
            const float x = to_grid(j, size.width);
            if (is_scaled) {
                bilinear_taps(from_grid(sy * y, size.height), from_grid(sx * x, size.width), size, move, outside,
                              &moved.place[4 * p], &moved.weight[4 * p]);
            } else if (moved.per_pixel == 1) {
                moved.place[p] = move(i, j);
            }
            if (is_rotated) {
                bilinear_taps(from_grid(sin * x + cos * y, size.height), from_grid(cos * x - sin * y, size.width), size,
                              stay, outside, &rotated.place[4 * p], &rotated.weight[4 * p]);
            }
        }
    }
}

// Calls write(p, value) with the sum of every output pixel's taps. in: pixels + 1, the last one 0.
template <class Pixel, class Write>
inline void sample(const Pixel* in, int64_t pixels, const Taps& taps, const Write& write) {
    const int32_t* place = taps.place.data();
    const float* weight = taps.weight.data();
    if (taps.per_pixel == 0) {
        for (int64_t p = 0; p < pixels; ++p) write(p, in[p]);
    } else if (taps.per_pixel == 1) {
        for (int64_t p = 0; p < pixels; ++p) write(p, in[place[p]]);
    } else {
        for (int64_t p = 0; p < pixels; ++p, place += 4, weight += 4) {
            write(p, in[place[0]] * weight[0] + in[place[1]] * weight[1] +
                         (in[place[2]] * weight[2] + in[place[3]] * weight[3]));
        }
    }
}

// The transpose of `sample`, from grad to grad_in, both pixels + 1.
template <class Pixel>
inline void spread(const Pixel* grad, int64_t pixels, const Taps& taps, Pixel* grad_in) {
    std::fill(grad_in, grad_in + pixels + 1, Pixel{});
    for (int64_t p = 0; p < pixels; ++p) {
        for (int tap = 0; tap < taps.per_pixel; ++tap) {
            const int64_t at = p * taps.per_pixel + tap;
            grad_in[taps.place[at]] += taps.per_pixel == 1 ? grad[p] : grad[p] * taps.weight[at];
        }
    }
}

// --- batches ----------------------------------------------------------------------------------------------------------

// What a thread keeps from image to image.
template <class Pixel>
struct DsaRoom {
    Taps moved, rotated;
    std::vector<Pixel> image, other;  // pixels + 1

    void resize(int64_t pixels) {
        image.resize(static_cast<size_t>(pixels + 1));
        other.resize(static_cast<size_t>(pixels + 1));
    }

    static DsaRoom& of_this_thread() {
        thread_local DsaRoom room;
        return room;
    }
};

// Calls body(image, row of the table, room), with the room's taps being those of the row.
template <class Pixel, class Body>
void for_each_image(ThreadPool& pool, const Maps& out, const DsaTable& table, const Body& body) {
    // Blocks that leave every thread a few, of many images each: they share the lists of their row.
    const int64_t block = std::clamp<int64_t>(out.count / (4 * pool.threads()), 1, 64);
    pool.run(out.count, block, [&](int64_t begin, int64_t end) {
        auto& room = DsaRoom<Pixel>::of_this_thread();
        room.resize(out.size.pixels());
        int64_t listed = -1;
        for (int64_t n = begin; n < end; ++n) {
            const int64_t row = table.row_of(n);
            if (row != listed) list_taps(table[row], out.size, room.moved, room.rotated);
            listed = row;
            body(n, table[row], room);
        }
    });
}

// images: [M, C, H, W]; index: which of them each output shows, or nullptr for all in order.
template <class Pixel, class In, class Out>
void dsa(ThreadPool& pool, const In* images, const int64_t* index, const Normalisation& norm, const DsaTable& table,
         const Maps& out_maps, Out* out) {
    const int64_t pixels = out_maps.size.pixels(), numbers = out_maps.numbers();
    for_each_image<Pixel>(pool, out_maps, table, [&](int64_t n, const float* row, DsaRoom<Pixel>& room) {
        Pixel *image = room.image.data(), *other = room.other.data();
        image[pixels] = other[pixels] = Pixel{};
        read_image(images + (index ? index[n] : n) * numbers, pixels, false, norm, image);
        if (is_coloured(row)) colour(image, pixels, row);
        if (room.rotated.per_pixel && room.moved.per_pixel) {
            sample(image, pixels, room.moved, [&](int64_t p, Pixel value) { other[p] = value; });
            std::swap(image, other);
        }
        const Taps& last = room.rotated.per_pixel ? room.rotated : room.moved;
        Out* to = out + n * numbers;
        if (out_maps.channels_last) {
            sample(image, pixels, last, [&](int64_t p, Pixel value) { write_pixel(value, p, pixels, true, to); });
        } else {
            sample(image, pixels, last, [&](int64_t p, Pixel value) { write_pixel(value, p, pixels, false, to); });
        }
    });
}

// grad: as `grad_maps` says; grad_images: [N, C, H, W].
template <class Pixel, class In>
void dsa_backward(ThreadPool& pool, const In* grad, const DsaTable& table, const Maps& grad_maps, float* grad_images) {
    const int64_t pixels = grad_maps.size.pixels(), numbers = grad_maps.numbers();
    const Normalisation none{{1, 1, 1, 1}, {0, 0, 0, 0}};
    for_each_image<Pixel>(pool, grad_maps, table, [&](int64_t n, const float* row, DsaRoom<Pixel>& room) {
        Pixel *image = room.image.data(), *other = room.other.data();
        read_image(grad + n * numbers, pixels, grad_maps.channels_last, none, image);
        for (const Taps* taps : {&room.rotated, &room.moved}) {
            if (taps->per_pixel == 0) continue;
            spread(image, pixels, *taps, other);
            std::swap(image, other);
        }
        if (is_coloured(row)) colour_backward(image, pixels, row);
        for (int64_t p = 0; p < pixels; ++p) write_pixel(image[p], p, pixels, false, grad_images + n * numbers);
    });
}

}  // namespace fastdm
