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
        for (int w = 0; w < 4; ++w) {
            std::memcpy(lane, &words[v][w], sizeof lane);
            for (int b = 0; b < kBlocks; ++b) out[4 * (v * kBlocks + b) + w] = static_cast<uint32_t>(lane[b]);
        }
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

// The numbers that Floyd's algorithm draws, as a set: bits, where the branch for a number that is there already is
// rarely taken; or bytes without a branch, since a bit's word would have to wait for the bit before.
struct BitSet {
    uint64_t* words;

    void add(uint64_t pick, uint64_t otherwise) {
        if (words[pick / 64] >> (pick % 64) & 1) pick = otherwise;
        words[pick / 64] |= uint64_t{1} << (pick % 64);
    }
};

struct ByteSet {
    uint8_t* bytes;

    void add(uint64_t pick, uint64_t otherwise) {
        const uint64_t taken = bytes[pick];  // as a number: compilers would make a condition a branch
        bytes[pick ^ ((pick ^ otherwise) & -taken)] = 1;
    }
};

template <class Set>
inline void draw_into(Set set, RandomKey key, uint32_t class_id, int64_t size, int64_t n) {
    uint32_t words[kWords];
    uint64_t last = static_cast<uint64_t>(size - n);
    for (int64_t i = 0; i < n; i += kWords) {
        random_words(key, class_id, kDrawStream, i / 4, words);
        const int64_t count = std::min(kWords, n - i);
        for (int64_t j = 0; j < count; ++j, ++last) set.add((words[j] * (last + 1)) >> 32, last);
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

// n distinct indices from [first, first + size), ascending, uniform over all n-subsets: Floyd's algorithm (Bentley &
// Floyd, "A sample of brilliance", CACM 1987). Reading the set out sorts it.
// scratch: draw_scratch(size) words. Requires n <= size < 2^32.
inline void draw_distinct(RandomKey key, uint32_t class_id, int64_t first, int64_t size, int64_t n, uint64_t* scratch,
                          int64_t* out) {
    constexpr int64_t kFew = 8;  // one in so many
    const int64_t count = (size + 63) / 64;
    uint64_t* const bitmap = scratch;
    if (kFew * n < size) {
        std::memset(bitmap, 0, static_cast<size_t>(count) * sizeof *bitmap);
        draw_into(BitSet{bitmap}, key, class_id, size, n);
    } else {
        auto* const bytes = reinterpret_cast<uint8_t*>(bitmap + count);
        std::memset(bytes, 0, static_cast<size_t>(64 * count));
        draw_into(ByteSet{bytes}, key, class_id, size, n);
        for (int64_t i = 0; i < count; ++i) bitmap[i] = bits_of_bytes(bytes + 64 * i);
    }
    list_bits(bitmap, first, size, n, out);
}

}  // namespace fastdm::FASTDM_ISA
