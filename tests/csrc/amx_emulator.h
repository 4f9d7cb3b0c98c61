// AMX's instructions on a processor without them: a handler of SIGILL that decodes and computes them as Intel's
// Software Developer's Manual defines them, and checks what they would refuse. So the machine code of AmxTiles runs
// anywhere, some thousand times slower. It shares nothing with tiles.h.
#pragma once

#if defined(__x86_64__) && defined(__linux__)

#include <immintrin.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>

namespace amx_emulator {

struct State {
    bool configured;
    uint8_t registers[8][16][64];
};

inline State& state() {
    thread_local State of_thread{};
    return of_thread;
}

// Threads whose tiles are configured, and the multiplications so far.
inline std::atomic<int> configured{0};
inline std::atomic<long> multiplications{0};

[[noreturn]] inline void refuse(const char* why) {
    if (write(STDERR_FILENO, why, std::strlen(why)) < 0) _exit(3);
    _exit(2);
}

// Rounding, denormal inputs and denormal results as the manual says: by the processor's own float32, so set up.
class Arithmetic {
public:
    Arithmetic() : before_(_mm_getcsr()) { _mm_setcsr(0x1F80 | 0x8000 | 0x0040); }
    ~Arithmetic() { _mm_setcsr(before_); }

private:
    unsigned before_;
};

// C += A · B, all 16 rows of 64 bytes.
__attribute__((target("fma"))) inline void multiply(uint8_t (*c)[64], const uint8_t (*a)[64], const uint8_t (*b)[64]) {
    const Arithmetic arithmetic;
    for (int m = 0; m < 16; ++m) {
        for (int n = 0; n < 16; ++n) {
            __m128 sums[2] = {_mm_setzero_ps(), _mm_setzero_ps()};
            for (int k = 0; k < 16; ++k) {
                for (int odd = 0; odd < 2; ++odd) {
                    uint16_t left, right;
                    std::memcpy(&left, a[m] + 4 * k + 2 * odd, 2);
                    std::memcpy(&right, b[k] + 4 * n + 2 * odd, 2);
                    const __m128 x = _mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(uint32_t{left} << 16)));
                    const __m128 y = _mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(uint32_t{right} << 16)));
                    sums[odd] = _mm_fmadd_ss(x, y, sums[odd]);
                }
            }
            float before;
            std::memcpy(&before, c[m] + 4 * n, 4);
            const float after = _mm_cvtss_f32(_mm_add_ss(_mm_set_ss(before), _mm_add_ss(sums[0], sums[1])));
            std::memcpy(c[m] + 4 * n, &after, 4);
        }
    }
}

// The bytes of a configuration that must be as they are for eight full tiles.
inline void check_configuration(const uint8_t* bytes) {
    for (int i = 0; i < 64; ++i) {
        const bool is_size = 16 <= i && i < 32 && i % 2 == 0, is_rows = 48 <= i && i < 56;
        if (bytes[i] != (i == 0 ? 1 : is_size ? 64 : is_rows ? 16 : 0))
            refuse("the configuration is not eight full tiles\n");
    }
}

// One instruction at the address that the context names.
class Instruction {
public:
    explicit Instruction(greg_t* registers) : registers_(registers) {
        const auto* code = reinterpret_cast<const uint8_t*>(registers[REG_RIP]);
        if (code[0] != 0xC4 || (code[1] & 0x1F) != 2 || (code[2] & 0x84) != 0) refuse("not an AMX instruction\n");
        extend_ = static_cast<uint8_t>(~code[1]);
        prefix_ = code[2] & 3;
        second_ = ~code[2] >> 3 & 15;
        opcode_ = code[3];
        modrm_ = code[4];
        end_ = code + 5;
        if (modrm_ >> 6 != 3) decode_address();
    }

    void run() {
        const int tile = modrm_ >> 3 & 7;
        const bool memory = modrm_ >> 6 != 3;
        State& tiles = state();
        if (opcode_ == 0x49 && prefix_ == 0 && memory && tile == 0) {
            check_configuration(reinterpret_cast<const uint8_t*>(address_));
            if (!tiles.configured) ++configured;
            tiles = State{true, {}};
        } else if (opcode_ == 0x49 && prefix_ == 0 && modrm_ == 0xC0) {
            if (tiles.configured) --configured;
            tiles = State{};
        } else if (!tiles.configured) {
            refuse("the tiles are not configured\n");
        } else if (opcode_ == 0x49 && prefix_ == 3 && (modrm_ & 0xC7) == 0xC0) {
            std::memset(tiles.registers[tile], 0, sizeof tiles.registers[tile]);
        } else if (opcode_ == 0x4B && memory && has_index_ && (prefix_ == 3 || prefix_ == 2)) {
            for (int row = 0; row < 16; ++row) {
                auto* bytes = reinterpret_cast<uint8_t*>(address_ + row * stride_);
                if (prefix_ == 3) std::memcpy(tiles.registers[tile][row], bytes, 64);
                if (prefix_ == 2) std::memcpy(bytes, tiles.registers[tile][row], 64);
            }
        } else if (opcode_ == 0x5C && prefix_ == 2 && !memory) {
            const int a = modrm_ & 7, b = second_;
            if (b > 7 || tile == a || tile == b || a == b) refuse("equal or unknown tiles\n");
            multiply(tiles.registers[tile], tiles.registers[a], tiles.registers[b]);
            ++multiplications;
        } else {
            refuse("an unknown AMX instruction\n");
        }
        registers_[REG_RIP] = reinterpret_cast<greg_t>(end_);
    }

private:
    int64_t value(int number) const {
        constexpr int kOrder[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                    REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
        return registers_[kOrder[number]];
    }

    void decode_address() {
        const int mode = modrm_ >> 6, rm = modrm_ & 7;
        int base = rm + (extend_ >> 5 & 1) * 8;
        bool wide = mode == 2, from_code = false, no_base = false;
        if (rm == 4) {
            const uint8_t sib = *end_++;
            base = (sib & 7) + (extend_ >> 5 & 1) * 8;
            const int index = (sib >> 3 & 7) + (extend_ >> 6 & 1) * 8;
            has_index_ = index != 4;
            if (has_index_) stride_ = value(index) << (sib >> 6);
            no_base = mode == 0 && (sib & 7) == 5;
        } else {
            from_code = mode == 0 && rm == 5;
        }
        wide = wide || from_code || no_base;
        if (!from_code && !no_base) address_ = value(base);
        int32_t distance = 0;
        if (wide) {
            std::memcpy(&distance, end_, 4), end_ += 4;
        } else if (mode == 1) {
            distance = static_cast<int8_t>(*end_++);
        }
        address_ += distance;
        if (from_code) address_ += reinterpret_cast<int64_t>(end_);
    }

    greg_t* registers_;
    const uint8_t* end_;
    uint8_t extend_, opcode_, modrm_;  // extend_: the inverted bits R, X and B
    int prefix_, second_;
    bool has_index_ = false;
    int64_t address_ = 0, stride_ = 0;
};

inline void handle(int, siginfo_t*, void* context) {
    Instruction(static_cast<ucontext_t*>(context)->uc_mcontext.gregs).run();
}

inline void install() {
    struct sigaction action{};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO;
    if (sigaction(SIGILL, &action, nullptr) != 0) refuse("no handler\n");
}

}  // namespace amx_emulator

#endif
