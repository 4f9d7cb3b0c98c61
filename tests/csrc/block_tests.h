// The network's blocks and the augmentation give the same bits on any number of threads, and write all of their results
// and nothing else; tests/kernels tests what they compute.
#pragma once

#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "conv_backward.h"
#include "dsa.h"
#include "norm_relu_pool.h"

namespace {

// A buffer of NaN, exactly as large as needed: a result overwrites all of it, and a sanitizer reports an element too
// many.
template <class T>
std::vector<T> unwritten(int64_t elements) {
    const T nan = from_float<T>(std::numeric_limits<float>::quiet_NaN());
    return std::vector<T>(static_cast<size_t>(elements), nan);
}

template <class T>
std::vector<T> random_values(int64_t count, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<T> values(static_cast<size_t>(count));
    for (T& value : values) value = from_float<T>(static_cast<float>(random() % 2001) / 1000.0f - 1.0f);
    return values;
}

template <class T>
void append(const std::vector<T>& values, std::vector<uint8_t>& results) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(values.data());
    results.insert(results.end(), bytes, bytes + values.size() * sizeof(T));
}

// Appends a result, none of whose elements may be left unwritten.
template <class T>
void append_written(const std::vector<T>& values, std::vector<uint8_t>& results) {
    const std::vector<T> nan = unwritten<T>(1);
    for (const T& value : values) CHECK(std::memcmp(&value, nan.data(), sizeof(T)) != 0);
    append(values, results);
}

// Checks that one thread and four give the same bits.
template <class Run>
void compare_thread_counts(const Run& run) {
    ThreadPool one(1), many(4);
    for (const Cpu cpu : cpus()) CHECK(run(one, cpu) == run(many, cpu));
}

template <class T>
void compare_norms(const Maps& maps) {
    const int64_t channels = maps.channels, statistics = maps.count * channels, elements = maps.count * maps.elements();
    const int64_t pooled = statistics * maps.size.pooled().pixels();
    const std::vector<T> x = random_values<T>(elements, 1), grad = random_values<T>(pooled, 2);
    const std::vector<float> weight = random_values<float>(channels, 3), bias = random_values<float>(channels, 4);
    const Affine affine{weight.data(), bias.data(), 1e-5f};
    const std::vector<int64_t> offsets{0, maps.count - 1, maps.count - 1, maps.count};
    compare_thread_counts([&](ThreadPool& pool, Cpu cpu) {
        std::vector<T> out = unwritten<T>(pooled), grad_x = unwritten<T>(elements);
        std::vector<float> mean = unwritten<float>(statistics), rstd = mean;
        std::vector<float> grad_weight = unwritten<float>(channels), grad_bias = grad_weight;
        std::vector<float> means = unwritten<float>(3 * pooled / maps.count);
        norm_relu_pool(pool, x.data(), maps, affine, out.data(), mean.data(), rstd.data(), cpu);
        norm_relu_pool_backward(pool, grad.data(), x.data(), maps, mean.data(), rstd.data(), affine, grad_x.data(),
                                grad_weight.data(), grad_bias.data(), cpu);
        norm_relu_pool_mean(pool, x.data(), maps, offsets.data(), 3, affine, means.data(), cpu);
        std::vector<uint8_t> results;
        append_written(out, results);
        append_written(grad_x, results);
        for (const auto& floats : {mean, rstd, grad_weight, grad_bias, means}) append_written(floats, results);
        return results;
    });
}

void test_norms_do_not_depend_on_threads() {
    for (const bool last : {false, true}) {
        for (const Maps& maps : {Maps{3, 37, {7, 9}, last}, Maps{5, 80, {8, 6}, last}, Maps{2, 3, {2, 33}, last}}) {
            compare_norms<float>(maps);
            compare_norms<bfloat16>(maps);
        }
    }
}

void compare_convolutions(const ConvShape& s, int64_t count) {
    const int64_t conv_elements = count * s.out_size().pixels() * s.out;
    const int64_t pooled = count * s.out_size().pooled().pixels() * s.out;
    const std::vector<float> x = random_values<float>(count * s.in_size.pixels() * s.in, 1);
    const std::vector<float> grad = random_values<float>(pooled, 2);
    const std::vector<float> weight = random_values<float>(9 * s.in * s.out, 3);
    const std::vector<float> norm = random_values<float>(2 * s.out, 4);
    const Weights weights{weight.data(), s.out, s.in, 9 * s.in, 9, 3, 1};
    const Affine affine{norm.data(), norm.data() + s.out, 1e-5f};
    compare_thread_counts([&](ThreadPool& pool, Cpu cpu) {
        std::vector<float> out = unwritten<float>(pooled), without = out, conv = unwritten<float>(conv_elements);
        std::vector<float> mean = unwritten<float>(count * s.out), rstd = mean;
        std::vector<float> grad_x = unwritten<float>(static_cast<int64_t>(x.size()));
        conv_norm_relu_pool(pool, x.data(), count, s, weights, affine, without.data(), nullptr, mean.data(),
                            rstd.data(), cpu);
        conv_norm_relu_pool(pool, x.data(), count, s, weights, affine, out.data(), conv.data(), mean.data(),
                            rstd.data(), cpu);
        CHECK(out == without);
        const BlockResults from{grad.data(), x.data(), conv.data(), mean.data(), rstd.data()};
        std::vector<float> grad_weight = unwritten<float>(9 * s.in * s.out), grad_norm = unwritten<float>(2 * s.out);
        const BlockGradients to{grad_x.data(), grad_weight.data(), grad_norm.data(), grad_norm.data() + s.out};
        conv_norm_relu_pool_backward(pool, from, count, s, weights, affine, to, cpu);
        std::vector<float> only = unwritten<float>(static_cast<int64_t>(x.size()));
        conv_norm_relu_pool_backward(pool, from, count, s, weights, affine, {only.data(), nullptr, nullptr, nullptr},
                                     cpu);
        CHECK(only == grad_x);
        std::vector<uint8_t> results;
        for (const auto& floats : {out, conv, mean, rstd, grad_x, grad_weight, grad_norm})
            append_written(floats, results);
        return results;
    });
}

void test_convolutions_do_not_depend_on_threads() {
    for (const int64_t padding : {0, 1, 3}) {
        // More images than a share of the weights' gradient has.
        compare_convolutions({3, 32, {5, 9}, padding}, 19);   // few input channels
        compare_convolutions({32, 96, {7, 6}, padding}, 19);  // Winograd: several rounds of images, 1½ of channels
    }
}

// Rows that use every family, alone and together, and one with values that no table should contain.
std::vector<float> augmentations() {
    const float nan = std::numeric_limits<float>::quiet_NaN(), huge = 1e30f;
    // clang-format off: a table.
    return {
        // brightness, saturation, contrast, shifts, cutout, flip, scale, rotation
        0,    1,    1,    0,    0,     0,    -1,   0,    -1,   0,    1,    1,    1,    0,    0, 0,
        0.5f, 0.3f, 1.4f, 0,    0,     0,    -1,   0,    -1,   0,    1,    1,    1,    0,    0, 0,
        0,    1,    1,    2,    -1,    1,    3,    0,    2,    1,    1,    1,    1,    0,    0, 0,
        0,    1,    1,    0,    0,     0,    -1,   0,    -1,   0,    0.8f, 1.2f, 1,    0,    0, 0,
        0,    1,    1,    0,    0,     0,    -1,   0,    -1,   0,    1,    1,    0.8f, 0.6f, 0, 0,
        0.5f, 0.3f, 1.4f, 2,    -1,    1,    3,    0,    2,    1,    0.8f, 1.2f, 0.8f, 0.6f, 0, 0,
        0,    1,    1,    huge, -huge, -huge, huge, huge, nan, huge, huge, -huge, huge, nan, 0, 0,
    };
    // clang-format on
}

template <class Pixel, class In, class Out>
void compare_augmentations(bool last) {
    const std::vector<float> table = augmentations();
    const int64_t rows = static_cast<int64_t>(table.size()) / kDsaColumns, count = 40, records = 9;
    const Maps maps{count, kChannels<Pixel>, {5, 7}, last};
    const std::vector<int64_t> index = random_index(count, records, 1), group = random_index(count, rows, 2);
    const std::vector<uint8_t> bytes = random_bytes(records * maps.elements(), 3);
    const std::vector<In> images(bytes.begin(), bytes.end());
    const std::vector<Out> grad = random_values<Out>(count * maps.elements(), 4);
    const Normalisation norm{{0.01f, 0.02f, 0.03f}, {-1, 0, 1}};
    compare_thread_counts([&](ThreadPool& pool, Cpu) {
        std::vector<Out> out(grad.size());
        std::vector<float> grad_images(grad.size());
        const DsaTable of_groups{table.data(), rows, group.data()};
        dsa<Pixel>(pool, images.data(), index.data(), norm, of_groups, maps, out.data());
        dsa_backward<Pixel>(pool, grad.data(), of_groups, maps, grad_images.data());
        std::vector<uint8_t> results;
        append(out, results);
        append(grad_images, results);
        return results;
    });
}

void test_augmentations_do_not_depend_on_threads() {
    for (const bool last : {false, true}) {
        compare_augmentations<Rgb, uint8_t, bfloat16>(last);
        compare_augmentations<Rgb, float, float>(last);
        compare_augmentations<float, uint8_t, float>(last);
        compare_augmentations<float, float, bfloat16>(last);
    }
}

}  // namespace
