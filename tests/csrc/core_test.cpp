// Tests of the headers of csrc/ without Python: test_core.py runs them as they are, sanitize.sh under sanitizers.
// Every check compares with an independent computation, or between instruction sets and thread counts.
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "conv_backward.h"
#include "draw.h"
#include "dsa.h"
#include "gather.h"
#include "norm_relu_pool.h"
#include "record_file.h"
#include "resize.h"

namespace {

using namespace fastdm;

#define CHECK(condition)                                                                 \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                                \
        }                                                                                \
    } while (false)

std::vector<uint8_t> random_bytes(int64_t count, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<uint8_t> bytes(static_cast<size_t>(count));
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    return bytes;
}

std::vector<int64_t> random_index(int64_t count, int64_t below, unsigned seed) {
    std::mt19937_64 random(seed);
    std::vector<int64_t> index(static_cast<size_t>(count));
    for (int64_t& row : index) row = static_cast<int64_t>(random() % static_cast<uint64_t>(below));
    return index;
}

void test_every_block_runs_once() {
    for (const int threads : {1, 2, 5}) {
        ThreadPool pool(threads);
        for (const int64_t count : {0, 1, 7, 1000}) {
            std::vector<std::atomic<int>> runs(static_cast<size_t>(count));
            pool.run(count, 3, [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; ++i) ++runs[static_cast<size_t>(i)];
            });
            for (const auto& times : runs) CHECK(times == 1);
        }
    }
}

void test_an_exception_reaches_the_caller_and_the_pool_still_works() {
    ThreadPool pool(4);
    for (int round = 0; round < 50; ++round) {
        std::string caught;
        try {
            pool.run(1000, 1, [](int64_t begin, int64_t) {
                if (begin % 10 == 3) throw std::runtime_error("block");
            });
        } catch (const std::runtime_error& error) {
            caught = error.what();
        }
        CHECK(caught == "block");
        std::atomic<int64_t> sum{0};
        pool.run(100, 7, [&](int64_t begin, int64_t end) { sum += end - begin; });
        CHECK(sum == 100);
    }
}

void test_concurrent_and_nested_calls() {
    ThreadPool pool(3);
    std::atomic<int64_t> sum{0};
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; ++caller) {
        callers.emplace_back([&] {
            for (int round = 0; round < 100; ++round) {
                pool.run(10, 1, [&](int64_t, int64_t) { pool.run(5, 1, [&](int64_t a, int64_t b) { sum += b - a; }); });
            }
        });
    }
    for (std::thread& caller : callers) caller.join();
    // A caller that works alone gets all blocks in one call, so an outer run makes between one and ten inner runs.
    CHECK(sum >= 4 * 100 * 5 && sum <= 4 * 100 * 50);
}

void test_draws_are_distinct_ascending_and_independent_of_threads() {
    const std::vector<int64_t> offsets{0, 300, 556, 5000, 5064};
    const std::vector<int64_t> classes{3, 0, 1, 2};
    const int64_t n = 64;
    std::vector<int64_t> alone(classes.size() * n), together(alone.size());
    ThreadPool one(1), many(4);
    for (const bool replace : {true, false}) {
        draw(one, {7, 9}, offsets.data(), classes.data(), 4, n, replace, alone.data());
        draw(many, {7, 9}, offsets.data(), classes.data(), 4, n, replace, together.data());
        CHECK(alone == together);
    }
    for (size_t row = 0; row < classes.size(); ++row) {
        const size_t id = static_cast<size_t>(classes[row]);
        for (int64_t i = 0; i < n; ++i) {
            const int64_t pick = alone[row * n + static_cast<size_t>(i)];
            CHECK(offsets[id] <= pick && pick < offsets[id + 1]);
            CHECK(i == 0 || alone[row * n + static_cast<size_t>(i) - 1] < pick);
        }
    }
}

std::vector<Cpu> cpus() {
    std::vector<Cpu> known;
    for (const Cpu cpu : {Cpu::plain, Cpu::avx2, Cpu::avx512}) {
        if (cpu <= this_cpu()) known.push_back(cpu);
    }
    return known;
}

// Random123's known answers (kat_vectors, philox4x32, 10 rounds). Other instructions are compared with these below.
void test_philox() {
    const uint32_t ones = 0xFFFFFFFF, pi[] = {0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344};
    const auto check = [](uint64_t key, const std::vector<uint32_t>& counter, const std::vector<uint32_t>& answer) {
        plain::Words words[plain::kVectors][4];
        for (auto& each : words) std::copy(counter.begin(), counter.end(), each);
        plain::philox4x32_10(key, words);
        for (const auto& each : words) {
            for (size_t w = 0; w < 4; ++w) CHECK(static_cast<uint32_t>(each[w]) == answer[w]);
        }
    };
    check(0, {0, 0, 0, 0}, {0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8});
    check(~uint64_t{0}, {ones, ones, ones, ones}, {0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD});
    check(0x299F31D0'A4093822, {pi, pi + 4}, {0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1});
}

void test_random_numbers_do_not_depend_on_the_instructions() {
    const std::vector<int64_t> rows{0, 3, 0xFFFFFFFF}, offsets{0, 300, 556, 5000, 105064}, classes{3, 0, 1, 2};
    ThreadPool pool(1);
    for (const size_t n : {1, 31, 32, 33, 64, 65, 256}) {
        std::vector<std::vector<float>> numbers;
        std::vector<std::vector<int64_t>> drawn[2];
        for (const Cpu cpu : cpus()) {
            numbers.emplace_back(3 * n);
            uniform(pool, {~uint64_t{7}, 7}, rows.data(), 3, 9, n, numbers.back().data(), cpu);
            for (const bool replace : {true, false}) {
                drawn[replace].emplace_back(4 * n);
                draw(pool, {~uint64_t{7}, 7}, offsets.data(), classes.data(), 4, n, replace,
                     drawn[replace].back().data(), cpu);
                CHECK(drawn[replace].back() == drawn[replace].front());
            }
            CHECK(numbers.back() == numbers.front());
        }
    }
}

void test_streaming_copies_write_nothing_outside() {
    const std::vector<uint8_t> from = random_bytes(1000, 1);
    for (const Cpu cpu : cpus()) {
        for (int64_t offset = 0; offset < 70; offset += 3) {
            for (const int64_t bytes : {0, 1, 63, 64, 65, 200, 800}) {
                std::vector<uint8_t> to(1000, 0xEE);
                stream_copy(cpu)(to.data() + offset, from.data() + 1, bytes, from.data(), 1000);
                stream_fence();
                for (int64_t i = 0; i < 1000; ++i) {
                    const bool inside = offset <= i && i < offset + bytes;
                    CHECK(to[static_cast<size_t>(i)] == (inside ? from[static_cast<size_t>(i - offset + 1)] : 0xEE));
                }
            }
        }
    }
}

constexpr int64_t kCaches[] = {0, INT64_MAX};  // every result is written past the caches, or none is

template <class Out>
void compare_instruction_sets(ThreadPool& pool, const Records& records, Layout layout) {
    const int64_t n = 50, stride = layout == Layout::RGBX ? 4 : records.channels;
    const Normalisation norm{{0.013f, 0.017f, 0.019f}, {-1.5f, 0.25f, 2.0f}};
    const std::vector<int64_t> index = random_index(n, records.count, 3);
    std::vector<Out> expected(static_cast<size_t>(n * records.pixels * stride));
    gather_convert(pool, records, norm, layout, index.data(), n, expected.data(), 1, Cpu::plain, INT64_MAX);
    for (const Cpu cpu : cpus()) {
        for (const int64_t cache : kCaches) {
            std::vector<Out> out(expected.size());
            gather_convert(pool, records, norm, layout, index.data(), n, out.data(), 0, cpu, cache);
            CHECK(std::memcmp(out.data(), expected.data(), out.size() * sizeof(Out)) == 0);
        }
    }
}

void test_instruction_sets_give_the_same_bits() {
    ThreadPool pool(2);
    const std::vector<uint8_t> data = random_bytes(20 * 3 * 33 * 35, 2);
    const Records records{data.data(), 20, 3, 33 * 35};
    for (const Layout layout : {Layout::NCHW, Layout::NHWC, Layout::RGBX}) {
        compare_instruction_sets<uint8_t>(pool, records, layout);
        compare_instruction_sets<float>(pool, records, layout);
        compare_instruction_sets<bfloat16>(pool, records, layout);
    }
    const int64_t n = 300;
    const std::vector<int64_t> index = random_index(n, records.count, 4);
    for (const Cpu cpu : cpus()) {
        for (const int64_t cache : kCaches) {
            std::vector<uint8_t> out(static_cast<size_t>(n * records.bytes()));
            gather(pool, records, index.data(), n, out.data(), 0, cpu, cache);
            for (int64_t i = 0; i < n; ++i) {
                CHECK(std::memcmp(out.data() + i * records.bytes(), records[index[static_cast<size_t>(i)]],
                                  static_cast<size_t>(records.bytes())) == 0);
            }
        }
    }
}

void test_bfloat16_rounds_to_nearest_even() {
    CHECK(from_float<bfloat16>(1.0f).bits == 0x3F80);
    CHECK(from_float<bfloat16>(1.0f + 0x1p-8f).bits == 0x3F80);             // half way: to even
    CHECK(from_float<bfloat16>(1.0f + 0x1p-7f + 0x1p-8f).bits == 0x3F82);   // half way: to even
    CHECK(from_float<bfloat16>(1.0f + 0x1p-8f + 0x1p-20f).bits == 0x3F81);  // above half way
}

void test_box_windows_cover_every_pixel() {
    for (int64_t in = 1; in < 200; ++in) {
        for (const int64_t out : {int64_t{1}, int64_t{7}, int64_t{64}, in}) {
            const std::vector<BoxWindow> windows = box_windows(in, out);
            CHECK(windows.front().begin == 0 && windows.back().end == in);
            for (size_t i = 0; i < windows.size(); ++i) {
                CHECK(windows[i].begin < windows[i].end);
                CHECK(in < out || i == 0 || windows[i].begin == windows[i - 1].end);
            }
        }
    }
}

void test_resizing_reads_nothing_outside() {
    for (const int64_t width : {1, 2, 5, 64, 100}) {
        for (const int64_t height : {1, 3, 70}) {
            // Exactly as large as needed, so that AddressSanitizer reports a byte too many.
            const std::vector<uint8_t> pixels(static_cast<size_t>(width * height * 3), 200);
            for (const bool shorten_first : {false, true}) {
                std::vector<uint8_t> out(3 * 16 * 16);
                resize_box<3>(pixels.data(), width * 3, height, width, 16, shorten_first, out.data());
                for (const uint8_t value : out) CHECK(value == 200);
                resize_box<1>(pixels.data(), width, height, width, 16, shorten_first, out.data());
                CHECK(out[255] == 200);
            }
        }
    }
}

void test_records_are_read_from_a_file() {
    char path[] = "/tmp/fastdm-core-test-XXXXXX";
    const int handle = mkstemp(path);
    CHECK(handle >= 0);
    close(handle);
    const std::vector<uint8_t> bytes = random_bytes(4096 + 100 * 189, 5);
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<long>(bytes.size()));
    {
        RecordFile file(path);
        const std::vector<int64_t> index = random_index(1000, 100, 6);
        std::vector<uint8_t> out(1000 * 189);
        file.read(4096, 189, index.data(), 1000, out.data());
        for (size_t i = 0; i < index.size(); ++i) {
            CHECK(std::memcmp(out.data() + i * 189, bytes.data() + 4096 + index[i] * 189, 189) == 0);
        }
        const int64_t behind = 100;
        bool refused = false;
        try {
            file.read(4096, 189, &behind, 1, out.data());
        } catch (const ReadError&) {
            refused = true;
        }
        CHECK(refused);
    }
    unlink(path);
}

// --- the network's blocks; tests/kernels/test_native.py tests what they compute --------------------------------------

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

int main() {
    test_philox();
    test_random_numbers_do_not_depend_on_the_instructions();
    test_every_block_runs_once();
    test_an_exception_reaches_the_caller_and_the_pool_still_works();
    test_concurrent_and_nested_calls();
    test_draws_are_distinct_ascending_and_independent_of_threads();
    test_streaming_copies_write_nothing_outside();
    test_instruction_sets_give_the_same_bits();
    test_bfloat16_rounds_to_nearest_even();
    test_box_windows_cover_every_pixel();
    test_resizing_reads_nothing_outside();
    test_records_are_read_from_a_file();
    test_norms_do_not_depend_on_threads();
    test_convolutions_do_not_depend_on_threads();
    test_augmentations_do_not_depend_on_threads();
    std::puts("ok");
}
