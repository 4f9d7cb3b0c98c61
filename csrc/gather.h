// Gathers records of a pool by index into a caller's buffer: as uint8, or converted on the way.
#pragma once

#include <cstdint>
#include <cstring>

#include "convert.h"
#include "stream_copy.h"
#include "thread_pool.h"

namespace fastdm {

// uint8 [count, channels, pixels]; pixels = height · width.
struct Records {
    const uint8_t* data;
    int64_t count;
    int64_t channels;
    int64_t pixels;

    int64_t bytes() const { return channels * pixels; }
    const uint8_t* operator[](int64_t index) const { return data + index * bytes(); }
};

// The position of the first index outside [0, count), or -1.
inline int64_t find_out_of_range(const int64_t* index, int64_t n, int64_t count) {
    for (int64_t i = 0; i < n; ++i) {
        if (index[i] < 0 || index[i] >= count) return i;
    }
    return -1;
}

// Enough records to be worth waking a thread for.
inline int64_t records_per_block(int64_t out_bytes) { return 1 + (int64_t{256} << 10) / (out_bytes + 1); }

// Records that are copied in turns, so many bytes of each: more of them are on their way from memory at a time.
constexpr int64_t kTogether = 4;
constexpr int64_t kTurn = 4 * kLine;

// out[i] = records[index[i]]. A result of more than `cache` bytes is written past the caches.
inline void gather(ThreadPool& pool, const Records& records, const int64_t* index, int64_t n, uint8_t* out,
                   int threads = 0, Cpu cpu = this_cpu(), int64_t cache = cache_bytes()) {
    const int64_t bytes = records.bytes();
    const bool past_caches = n * bytes > cache;
    const StreamCopy copy = stream_copy(past_caches ? cpu : Cpu::plain);
    // Only whole lines are written past the caches.
    const bool whole_lines = bytes % kLine == 0 && reinterpret_cast<uintptr_t>(out) % kLine == 0;
    const bool in_turns = past_caches && whole_lines;
    const int64_t together = in_turns ? kTogether : 1, turn = in_turns ? kTurn : bytes;
    pool.run(
        n, records_per_block(bytes),
        [&](int64_t begin, int64_t end) {
            for (int64_t first = begin; first < end; first += together) {
                const int64_t last = std::min(first + together, end);
                for (int64_t at = 0; at < bytes; at += turn) {
                    const int64_t count = std::min(turn, bytes - at);
                    for (int64_t i = first; i < last; ++i) {
                        const bool more = i + together < end;
                        copy(out + i * bytes + at, records[index[i]] + at, count,
                             more ? records[index[i + together]] + at : nullptr, more ? count : 0);
                    }
                }
            }
            stream_fence();
        },
        threads);
}

// out[i] = records[index[i]] in the given layout: the pixels where Out is uint8_t, normalised where it is float or
// bfloat16. Records have 1 or 3 channels; RGBX needs 3.
template <class Out>
void gather_convert(ThreadPool& pool, const Records& records, const Normalisation& norm, Layout layout,
                    const int64_t* index, int64_t n, Out* out, int threads = 0, Cpu cpu = this_cpu(),
                    int64_t cache = cache_bytes()) {
    // Planes are converted one at a time, interleaved channels together.
    const bool planar = layout == Layout::NCHW || records.channels == 1;
    const int64_t stride = planar ? 1 : layout == Layout::RGBX ? 4 : 3;
    const int64_t planes = planar ? records.channels : 1;
    const ConvertPixels convert = planar                   ? convert_pixels_for<Out, 1, 1>(cpu)
                                  : layout == Layout::RGBX ? convert_pixels_for<Out, 3, 4>(cpu)
                                                           : convert_pixels_for<Out, 3, 3>(cpu);
    const int64_t record_elements = planes * stride * records.pixels;
    const bool past_caches = n * record_elements * static_cast<int64_t>(sizeof(Out)) > cache;
    const StreamCopy copy = stream_copy(cpu);
    constexpr int64_t kPiece = 1024;  // pixels: 16 KB of float32 RGBx at most, which stays in the nearest cache

    pool.run(
        n, records_per_block(record_elements * static_cast<int64_t>(sizeof(Out))),
        [&](int64_t begin, int64_t end) {
            alignas(kLine) Out piece[kPiece * 4];
            for (int64_t i = begin; i < end; ++i) {
                const uint8_t* from = records[index[i]];
                const uint8_t* ahead = i + 1 < end ? records[index[i + 1]] : nullptr;
                for (int64_t plane = 0; plane < planes; ++plane) {
                    for (int64_t pixel = 0; pixel < records.pixels; pixel += kPiece) {
                        const int64_t count = std::min(kPiece, records.pixels - pixel);
                        const int64_t at = plane * records.pixels + pixel;
                        Out* to = out + i * record_elements + at * stride;
                        if (ahead) prefetch(ahead + at, count);
                        convert(from + at, records.pixels, count, norm.scale + plane, norm.shift + plane,
                                past_caches ? piece : to);
                        if (past_caches) {
                            copy(reinterpret_cast<uint8_t*>(to), reinterpret_cast<const uint8_t*>(piece),
                                 count * stride * static_cast<int64_t>(sizeof(Out)), nullptr, 0);
                        }
                    }
                }
            }
            stream_fence();
        },
        threads);
}

}  // namespace fastdm
