// The random numbers of one row, and the draw from one class. No include guard: see isa.h.
//
// Philox4x32-10 is a counter-based random generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011): a value depends on its key and counter alone. There is no state, so any thread can compute any part of a
// draw, and a vector can hold one block of four words per lane.

namespace fastdm::FASTDM_ISA {

// A word of 32 bits in the lower half of each lane; the upper half is not used.
#if FASTDM_VECTOR_BYTES == 16
typedef uint64_t Words;  // one lane: 128-bit vectors gain nothing
#else
typedef uint64_t Words __attribute__((vector_size(FASTDM_VECTOR_BYTES)));
#endif
constexpr int kBlocks = sizeof(Words) / sizeof(uint64_t);
constexpr int kVectors = 2;  // at a time, because every round waits for the products of the one before
constexpr int64_t kWords = 4 * kBlocks * kVectors;

// The products of the lower halves, of 64 bits.
inline Words product(Words a, uint32_t b) {
    const Words factor = Words{} + b;
#if FASTDM_VECTOR_BYTES == 64
    // With a mask of ones: without one, GCC 12 warns of its own header.
    return (Words)_mm512_maskz_mul_epu32(0xFF, (__m512i)a, (__m512i)factor);
#elif FASTDM_VECTOR_BYTES == 32
    return (Words)_mm256_mul_epu32((__m256i)a, (__m256i)factor);
#else
    return (a & 0xFFFFFFFF) * factor;
#endif
}

// Replaces counters by their random words.
inline void philox4x32_10(uint64_t key, Words (&counter)[kVectors][4]) {
    uint32_t low = static_cast<uint32_t>(key), high = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round, low += 0x9E3779B9, high += 0xBB67AE85) {
        for (int v = 0; v < kVectors; ++v) {
            Words(&c)[4] = counter[v];
            const Words even = product(c[0], 0xD2511F53), odd = product(c[2], 0xCD9E8D57);
            c[0] = (odd >> 32) ^ c[1] ^ low;
            c[1] = odd;
            c[2] = (even >> 32) ^ c[3] ^ high;
            c[3] = even;
        }
    }
}

// out: kWords random words of a row (an image or a class) of a stream (one use of random numbers), from number
// 4 · block on.
inline void random_words(RandomKey key, uint32_t row, uint32_t stream, int64_t block, uint32_t* out) {
    uint64_t lane[kBlocks];
    Words words[kVectors][4];
    for (int v = 0; v < kVectors; ++v) {
        for (int b = 0; b < kBlocks; ++b) lane[b] = static_cast<uint64_t>(block + v * kBlocks + b);
        words[v][0] = Words{} + key.step;
        words[v][1] = Words{} + row;
        words[v][2] = Words{} + stream;
        std::memcpy(&words[v][3], lane, sizeof lane);
    }
    philox4x32_10(key.seed, words);
    for (int v = 0; v < kVectors; ++v) {
        uint64_t halves[2][kBlocks], blocks[2 * kBlocks];
        for (int w = 0; w < 2; ++w) {
            const Words both = (words[v][2 * w] & 0xFFFFFFFF) | words[v][2 * w + 1] << 32;
            std::memcpy(halves[w], &both, sizeof both);
        }
        for (int b = 0; b < 2 * kBlocks; ++b) blocks[b] = halves[b % 2][b / 2];
        std::memcpy(out + 4 * v * kBlocks, blocks, sizeof blocks);
    }
}

// out[i] uniform in [0, 1): the upper 24 bits of word i, so that every value is exact in float32.
inline void uniform_row(RandomKey key, uint32_t row, uint32_t stream, int64_t n, float* out) {
    uint32_t words[kWords];
    for (int64_t i = 0; i < n; i += kWords) {
        random_words(key, row, stream, i / 4, words);
        const int64_t count = std::min(kWords, n - i);
        for (int64_t j = 0; j < count; ++j) out[i + j] = static_cast<float>(words[j] >> 8) * 0x1p-24f;
    }
}

// n indices from [first, first + size), drawn independently and uniformly, in the order of the words. Requires
// 0 < size < 2^32.
inline void draw_with_repeats(RandomKey key, uint32_t class_id, int64_t first, int64_t size, int64_t n, int64_t* out) {
    uint32_t words[kWords];
    for (int64_t i = 0; i < n; i += kWords) {
        random_words(key, class_id, kDrawStream, i / 4, words);
        const int64_t count = std::min(kWords, n - i);
        for (int64_t j = 0; j < count; ++j) {
            out[i + j] = first + static_cast<int64_t>((words[j] * static_cast<uint64_t>(size)) >> 32);
        }
    }
}

// out: the numbers of the n bits that are set among `size`, plus `first`, ascending.
inline void list_bits(const uint64_t* bitmap, int64_t first, int64_t size, int64_t n, int64_t* out) {
    int64_t place = first;
    const int64_t* const end = out + n;
#if FASTDM_VECTOR_BYTES == 64
    if (16 * n > size) {
        // Eight bits at a time, of whose numbers those that are set move together.
        const auto* eights = reinterpret_cast<const uint8_t*>(bitmap);
        __m512i places = _mm512_add_epi64(_mm512_set1_epi64(first), _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
        for (; end - out >= 8; ++eights, place += 8, places = _mm512_add_epi64(places, _mm512_set1_epi64(8))) {
            _mm512_storeu_si512(out, _mm512_maskz_compress_epi64(*eights, places));
            out += __builtin_popcount(*eights);
        }
        for (; out < end; ++eights, place += 8) {
            for (uint32_t bits = *eights; bits != 0; bits &= bits - 1) *out++ = place + __builtin_ctz(bits);
        }
        return;
    }
#endif
    constexpr int kAtOnce = 4;  // written whether so many are set or not: a branch for each would not be predictable
    const bool dense = 64 * n > size;
    for (; out < end; ++bitmap, place += 64) {
        uint64_t bits = *bitmap;
        if (!dense || end - out < kAtOnce) {
            for (; bits != 0; bits &= bits - 1) *out++ = place + __builtin_ctzll(bits);
            continue;
        }
        int64_t* const next = out + __builtin_popcountll(bits);
        for (int i = 0; i < kAtOnce; ++i, bits &= bits - 1) *out++ = place + __builtin_ctzll(bits | uint64_t{1} << 63);
        for (; bits != 0; bits &= bits - 1) *out++ = place + __builtin_ctzll(bits);
        out = next;
    }
}

// A class to draw from: the row of its random numbers, its first image, and how many it has, below 2^32.
struct DrawnClass {
    uint32_t id;
    int64_t first, size;
};

// Sets the bits of the n numbers that Floyd's algorithm draws, where few are drawn: the branch for one that is there
// already is rarely taken.
inline void draw_bits(RandomKey key, const DrawnClass& from, int64_t n, uint64_t* bitmap) {
    uint32_t words[kWords];
    uint64_t last = static_cast<uint64_t>(from.size - n);
    for (int64_t i = 0; i < n; i += kWords) {
        random_words(key, from.id, kDrawStream, i / 4, words);
        const int64_t count = std::min(kWords, n - i);
        for (int64_t j = 0; j < count; ++j, ++last) {
            uint64_t pick = (words[j] * (last + 1)) >> 32;
            if (bitmap[pick / 64] >> (pick % 64) & 1) pick = last;
            bitmap[pick / 64] |= uint64_t{1} << (pick % 64);
        }
    }
}

// Sets the bytes of the n numbers that it draws from each of some classes, where many are drawn: without a branch,
// which would not be predictable. A processor does not look a number up before it knows where the one before it went,
// so that several classes in step take little longer than one.
template <int kClasses>
inline void draw_bytes(RandomKey key, const DrawnClass* from, int64_t n, uint8_t* const* bytes) {
    uint32_t words[kClasses][kWords];
    uint8_t* set[kClasses];
    uint64_t spare[kClasses];
    for (int c = 0; c < kClasses; ++c) set[c] = bytes[c];
    for (int c = 0; c < kClasses; ++c) spare[c] = static_cast<uint64_t>(from[c].size - n);
    for (int64_t i = 0; i < n; i += kWords) {
        for (int c = 0; c < kClasses; ++c) random_words(key, from[c].id, kDrawStream, i / 4, words[c]);
        const int64_t count = std::min(kWords, n - i);
        for (int64_t j = 0; j < count; ++j) {
            uint64_t picks[kClasses];
            for (int c = 0; c < kClasses; ++c) {
                const uint64_t last = spare[c] + static_cast<uint64_t>(i + j), pick = (words[c][j] * (last + 1)) >> 32;
                const uint64_t taken = set[c][pick];  // as a number: compilers would make a condition a branch
                picks[c] = pick ^ ((pick ^ last) & -taken);
            }
            for (int c = 0; c < kClasses; ++c) set[c][picks[c]] = 1;
        }
    }
}

// Each bit is a byte's, which is 0 or 1.
inline uint64_t bits_of_bytes(const uint8_t* bytes) {
#if FASTDM_VECTOR_BYTES == 64
    const __m512i every = _mm512_loadu_si512(bytes);
    return _mm512_test_epi8_mask(every, every);
#else
    uint64_t bits = 0;
    for (int i = 0; i < 8; ++i) {
        uint64_t eight;
        std::memcpy(&eight, bytes + 8 * i, sizeof eight);
        bits |= (eight * 0x0102040810204080) >> 56 << (8 * i);
    }
    return bits;
#endif
}

// Words of scratch for a draw from classes of at most so many images: a bit for each, and bytes for kTogether classes.
constexpr int kTogether = 4;
inline int64_t draw_scratch(int64_t size) { return (1 + 8 * kTogether) * ((size + 63) / 64); }

// out: [rows, n], n distinct indices of each class, ascending, uniform over all n-subsets: Floyd's algorithm (Bentley &
// Floyd, "A sample of brilliance", CACM 1987). Reading the set out sorts it.
// scratch: draw_scratch words for the largest class. Requires n <= size < 2^32.
inline void draw_distinct(RandomKey key, const int64_t* offsets, const int64_t* class_ids, int64_t rows, int64_t n,
                          uint64_t* scratch, int64_t* out) {
    constexpr int64_t kFew = 8;  // one in so many
    for (int64_t row = 0; row < rows;) {
        DrawnClass group[kTogether];
        int many = 0;  // classes of which many images are drawn, one after the other
        for (; many < kTogether && row + many < rows; ++many) {
            const int64_t id = class_ids[row + many], first = offsets[id], size = offsets[id + 1] - first;
            group[many] = {static_cast<uint32_t>(id), first, size};
            if (kFew * n < size) break;
        }
        if (many == 0) {
            const int64_t count = (group[0].size + 63) / 64;
            std::memset(scratch, 0, static_cast<size_t>(count) * sizeof *scratch);
            draw_bits(key, group[0], n, scratch);
            list_bits(scratch, group[0].first, group[0].size, n, out + n * row++);
            continue;
        }
        uint8_t* bytes[kTogether];
        auto* next = reinterpret_cast<uint8_t*>(scratch);
        for (int c = 0; c < many; ++c) {
            const int64_t size = (group[c].size + 63) / 64 * 64;
            bytes[c] = next;
            std::memset(next, 0, static_cast<size_t>(size));
            next += size;
        }
        if (many == kTogether) {
            draw_bytes<kTogether>(key, group, n, bytes);
        } else {
            for (int c = 0; c < many; ++c) draw_bytes<1>(key, group + c, n, bytes + c);
        }
        auto* const bitmap = reinterpret_cast<uint64_t*>(next);
        for (int c = 0; c < many; ++c, ++row) {
            const int64_t count = (group[c].size + 63) / 64;
            for (int64_t i = 0; i < count; ++i) bitmap[i] = bits_of_bytes(bytes[c] + 64 * i);
            list_bits(bitmap, group[c].first, group[c].size, n, out + n * row);
        }
    }
}

}  // namespace fastdm::FASTDM_ISA
