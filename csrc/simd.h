// Vectors of one instruction set. No include guard: isa.h includes this once per instruction set.
//
// The templates take V = Vec, or V = float for the remainder of a row whose length is not a multiple of kLanes.

namespace fastdm::FASTDM_ISA {

typedef float Vec __attribute__((vector_size(FASTDM_VECTOR_BYTES)));
typedef uint32_t VecWords __attribute__((vector_size(FASTDM_VECTOR_BYTES)));
typedef uint16_t VecHalves __attribute__((vector_size(FASTDM_VECTOR_BYTES / 2)));
constexpr int64_t kLanes = sizeof(Vec) / sizeof(float);

template <class V>
inline V load(const float* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <class V>
inline void store(float* to, V v) {
    std::memcpy(to, &v, sizeof v);
}

template <class V>
inline V load(const bfloat16* from) {
    V v;
    if constexpr (sizeof(V) == sizeof(float)) {
        const uint32_t word = uint32_t{from->bits} << 16;
        std::memcpy(&v, &word, sizeof v);
    } else {
        VecHalves halves;
        std::memcpy(&halves, from, sizeof halves);
        const VecWords words = __builtin_convertvector(halves, VecWords) << 16;
        std::memcpy(&v, &words, sizeof v);
    }
    return v;
}

// Rounds to nearest, ties to even. NaN stays NaN.
template <class V>
inline void store(bfloat16* to, V v) {
    if constexpr (sizeof(V) == sizeof(float)) {
        *to = v == v ? from_float<bfloat16>(v) : bfloat16{0x7FC0};
    } else {
        VecWords words;
        std::memcpy(&words, &v, sizeof words);
        words = v == v ? (words + 0x7FFF + (words >> 16 & 1)) >> 16 : VecWords{} + 0x7FC0;
        const VecHalves halves = __builtin_convertvector(words, VecHalves);
        std::memcpy(to, &halves, sizeof halves);
    }
}

template <class V>
inline V all(float value) {
    return value - V{};  // x − 0 is x for every x; x + 0 is not for −0, so the compiler would have to add.
}

// a · b + c, rounded once where the processor has a fused multiply-add.
template <class V>
inline V multiply_add(V a, V b, V c) {
#if FASTDM_VECTOR_BYTES == 64
    if constexpr (sizeof(V) == 64) return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif FASTDM_VECTOR_BYTES == 32
    if constexpr (sizeof(V) == 32) return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#endif
    return a * b + c;
}

// NaN stays NaN, as the instruction has it of its second operand; compilers make two of the comparison.
template <class V>
inline V relu(V v) {
    const V zero{};
#if FASTDM_VECTOR_BYTES == 64
    if constexpr (sizeof(V) == 64) return (V)_mm512_maskz_max_ps(0xFFFF, (__m512)zero, (__m512)v);
#elif FASTDM_VECTOR_BYTES == 32
    if constexpr (sizeof(V) == 32) return (V)_mm256_max_ps((__m256)zero, (__m256)v);
#endif
    return zero > v ? zero : v;
}

inline float sum(Vec v) {
    float total = 0;
    for (int64_t i = 0; i < kLanes; ++i) total += v[i];
    return total;
}
inline float sum(float v) { return v; }

}  // namespace fastdm::FASTDM_ISA
