// Tests of the headers of csrc/ without Python: test_core.py runs them as they are, sanitize.sh under sanitizers.
// Every check compares with an independent computation, or between instruction sets and thread counts.
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <fstream>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "block_tests.h"
#include "check.h"
#include "draw.h"
#include "gather.h"
#include "record_file.h"
#include "resize.h"
#include "tile_tests.h"

namespace {

using namespace fastdm;

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

void test_records_of_whole_lines_are_gathered_in_turns() {
    ThreadPool pool(2);
    const std::vector<uint8_t> data = random_bytes(20 * 3 * 320, 7);  // records of 15 lines: turns of 4, 4, 4 and 3
    const Records records{data.data(), 20, 3, 320};
    for (const int64_t n : {1, 3, 4, 5, 601}) {
        const std::vector<int64_t> index = random_index(n, records.count, 8);
        for (const Cpu cpu : cpus()) {
            std::vector<uint8_t> room(static_cast<size_t>((n + 1) * records.bytes()));
            uint8_t* out = room.data() + bytes_to_line(room.data(), kLine);
            gather(pool, records, index.data(), n, out, 0, cpu, 0);
            for (int64_t i = 0; i < n; ++i) {
                CHECK(std::memcmp(out + i * records.bytes(), records[index[static_cast<size_t>(i)]],
                                  static_cast<size_t>(records.bytes())) == 0);
            }
        }
    }
}

void test_instruction_sets_resize_to_the_same_bytes() {
    constexpr int64_t kSizes[][3] = {{1, 1, 3}, {9, 1, 4}, {2, 40, 5}, {33, 57, 16}, {40, 8, 64}, {301, 210, 7}};
    for (const auto& [height, width, size] : kSizes) {
        const std::vector<uint8_t> pixels = random_bytes(height * width * 3, 9);
        for (const bool shorten_first : {false, true}) {
            std::vector<uint8_t> expected(static_cast<size_t>(3 * size * size));
            resize_box<3>(pixels.data(), width * 3, height, width, size, shorten_first, expected.data(), Cpu::plain);
            for (const Cpu cpu : cpus()) {
                std::vector<uint8_t> out(expected.size());
                resize_box<3>(pixels.data(), width * 3, height, width, size, shorten_first, out.data(), cpu);
                CHECK(out == expected);
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
    test_records_of_whole_lines_are_gathered_in_turns();
    test_instruction_sets_resize_to_the_same_bytes();
    test_bfloat16_rounds_to_nearest_even();
    test_box_windows_cover_every_pixel();
    test_resizing_reads_nothing_outside();
    test_records_are_read_from_a_file();
    test_norms_do_not_depend_on_threads();
    test_convolutions_do_not_depend_on_threads();
    test_augmentations_do_not_depend_on_threads();
    test_tiles();
    std::puts("ok");
}
