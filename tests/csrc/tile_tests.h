// Tiles: the plain form computes what the manual says, AMX's instructions the same bits, natively or emulated, and
// blocks of them do not depend on the number of threads; tests/kernels tests what they compute.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "amx_emulator.h"
#include "block_tests.h"
#include "check.h"
#include "tile_block.h"

namespace {

// Any bits: NaN, infinities, denormals; or those of numbers whose products and sums are about as small as a float32 can
// be, so that roundings and flushing matter.
std::vector<bfloat16> any_bits(size_t count, bool small, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<bfloat16> values(count);
    for (bfloat16& value : values) {
        const unsigned sign_and_digits = random() & 0x807F, exponent = small ? 62 + random() % 4 : random() % 256;
        value.bits = static_cast<uint16_t>(sign_and_digits | exponent << 7);
    }
    return values;
}

bool same_or_both_nan(const std::vector<float>& a, const std::vector<float>& b) {
    for (size_t i = 0; i < a.size(); ++i) {
        const bool same = std::memcmp(&a[i], &b[i], sizeof(float)) == 0;
        if (!same && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
    }
    return true;
}

void test_tiles_multiply_whole_numbers_exactly() { CHECK(tiles_multiply_exactly<PlainTiles>()); }

#if defined(__x86_64__) && defined(__linux__)

void test_plain_tiles_compute_what_the_manual_says() {
    if (!__builtin_cpu_supports("fma")) return;
    int flushed = 0, finite = 0;
    for (unsigned seed = 0; seed < 40; ++seed) {
        const bool small = seed % 4 != 0;
        const auto a = any_bits(512, small, 3 * seed), b = any_bits(512, small, 3 * seed + 1);
        std::vector<float> c(256), expected(256);
        const auto start = any_bits(256, small, 3 * seed + 2);
        for (size_t i = 0; i < c.size(); ++i) c[i] = seed % 2 == 0 ? to_float(start[i]) : 0.0f;
        expected = c;
        using Rows = uint8_t (*)[64];
        using ConstRows = const uint8_t (*)[64];
        amx_emulator::multiply(reinterpret_cast<Rows>(expected.data()), reinterpret_cast<ConstRows>(a.data()),
                               reinterpret_cast<ConstRows>(b.data()));
        PlainTiles tiles;
        tiles.load<2>(c.data(), 64);
        tiles.load<0>(a.data(), 64);
        tiles.load<1>(b.data(), 64);
        tiles.multiply_add<2, 0, 1>();
        tiles.store<2>(c.data(), 64);
        CHECK(same_or_both_nan(c, expected));
        for (const float value : c) {
            flushed += value == 0.0f;
            finite += std::isfinite(value) && value != 0.0f;
        }
    }
    CHECK(flushed > 100 && finite > 1000);
}

#endif

// A form of the tiles on some threads: all results of a block of any size, none of whose elements may be left
// unwritten.
std::vector<uint8_t> results_of_tiles(ThreadPool& pool, const ConvShape& s, int64_t count, TileForm form, Cpu cpu) {
    const int64_t pooled = count * s.out_size().pooled().pixels() * s.out;
    const auto x = random_values<bfloat16>(count * s.in_size.pixels() * s.in, 1);
    const auto grad = random_values<bfloat16>(pooled, 2), weight = random_values<bfloat16>(9 * s.in * s.out, 3);
    const auto norm = random_values<float>(2 * s.out, 4);
    const WeightsOf<bfloat16> weights{weight.data(), s.out, s.in, 9 * s.in, 9, 3, 1};
    const Affine affine{norm.data(), norm.data() + s.out, 1e-5f};
    auto out = unwritten<bfloat16>(pooled), without = out;
    auto conv = unwritten<bfloat16>(count * s.out_size().pixels() * s.out);
    auto mean = unwritten<float>(count * s.out), rstd = mean;
    conv_norm_relu_pool(pool, x.data(), count, s, weights, affine, without.data(), nullptr, mean.data(), rstd.data(),
                        form, cpu);
    conv_norm_relu_pool(pool, x.data(), count, s, weights, affine, out.data(), conv.data(), mean.data(), rstd.data(),
                        form, cpu);
    CHECK(std::memcmp(out.data(), without.data(), out.size() * sizeof(bfloat16)) == 0);
    auto grad_x = unwritten<bfloat16>(static_cast<int64_t>(x.size()));
    auto grad_weight = unwritten<float>(9 * s.in * s.out), grad_norm = unwritten<float>(2 * s.out);
    const BlockResultsOf<bfloat16> from{grad.data(), x.data(), conv.data(), mean.data(), rstd.data()};
    const BlockGradientsOf<bfloat16> to{grad_x.data(), grad_weight.data(), grad_norm.data(), grad_norm.data() + s.out};
    conv_norm_relu_pool_backward(pool, from, count, s, weights, affine, to, form, cpu);
    auto only = unwritten<bfloat16>(static_cast<int64_t>(x.size()));
    conv_norm_relu_pool_backward(pool, from, count, s, weights, affine, {only.data(), nullptr, nullptr, nullptr}, form,
                                 cpu);
    CHECK(only.empty() || std::memcmp(only.data(), grad_x.data(), only.size() * sizeof(bfloat16)) == 0);
    std::vector<uint8_t> results;
    for (const auto& values : {out, conv, grad_x}) append_written(values, results);
    for (const auto& values : {mean, rstd, grad_weight, grad_norm}) append_written(values, results);
    return results;
}

// Both ways of making rows, one and two tiles of rows and of columns, several images together, cropped images, rows of
// one and of two whole tiles.
const ConvShape kTileShapes[] = {
    {0, 32, {4, 4}, 1},  {3, 96, {4, 8}, 1},   {3, 32, {4, 9}, 1},   {1, 96, {5, 4}, 3},   {7, 32, {4, 4}, 0},
    {32, 64, {4, 4}, 1}, {64, 32, {2, 19}, 3}, {32, 96, {3, 16}, 1}, {64, 32, {5, 34}, 0},
};

void test_tiles_do_not_depend_on_threads() {
    for (const ConvShape& s : kTileShapes) {
        compare_thread_counts(
            [&](ThreadPool& pool, Cpu cpu) { return results_of_tiles(pool, s, 19, TileForm::plain, cpu); });
    }
}

#if FASTDM_AMX

void test_both_forms_of_tiles_give_the_same_bits() {
    const bool native = cpu_has_amx() && may_use_amx();
    if (!native) {
        if (!__builtin_cpu_supports("fma")) return;
        amx_emulator::install();
    }
    CHECK(tiles_multiply_exactly<AmxTiles>());
    ThreadPool one(1), many(3);
    for (const ConvShape& s : kTileShapes) {
        const auto plain = results_of_tiles(one, s, 5, TileForm::plain, this_cpu());
        CHECK(results_of_tiles(one, s, 5, TileForm::amx, this_cpu()) == plain);
        CHECK(results_of_tiles(many, s, 5, TileForm::amx, this_cpu()) == plain);
    }
    // Every thread has released its tiles.
    CHECK(amx_emulator::configured == 0 && (native || amx_emulator::multiplications > 1000));
}

#endif

void test_tiles() {
    test_tiles_multiply_whole_numbers_exactly();
#if defined(__x86_64__) && defined(__linux__)
    test_plain_tiles_compute_what_the_manual_says();
#endif
    test_tiles_do_not_depend_on_threads();
#if FASTDM_AMX
    test_both_forms_of_tiles_give_the_same_bits();
#endif
}

}  // namespace
