// Kernels, compiled once per instruction set: namespaces plain, avx2 and avx512.
// The included files must not define lambdas: compilers disagree on which instructions a lambda may use.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "convert.h"
#include "cpu.h"
#include "random_key.h"
#include "shapes.h"
#include "tiles.h"

// clang-format off: simd.h comes first.

#define FASTDM_ISA plain
#define FASTDM_VECTOR_BYTES 16
#include "simd.h"
#include "random_kernels.h"
#include "class_means_kernels.h"
#include "norm_relu_pool_kernels.h"
#include "conv_kernels.h"
#include "conv_gradient_kernels.h"
#include "tile_kernels.h"
#undef FASTDM_ISA
#undef FASTDM_VECTOR_BYTES

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define FASTDM_ISA avx2
#define FASTDM_VECTOR_BYTES 32
#include "simd.h"
#include "random_kernels.h"
#include "class_means_kernels.h"
#include "norm_relu_pool_kernels.h"
#include "conv_kernels.h"
#include "conv_gradient_kernels.h"
#include "tile_kernels.h"
#undef FASTDM_ISA
#undef FASTDM_VECTOR_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
#endif
#define FASTDM_ISA avx512
#define FASTDM_VECTOR_BYTES 64
#include "simd.h"
#include "random_kernels.h"
#include "class_means_kernels.h"
#include "norm_relu_pool_kernels.h"
#include "conv_kernels.h"
#include "conv_gradient_kernels.h"
#include "tile_kernels.h"
#undef FASTDM_ISA
#undef FASTDM_VECTOR_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

// clang-format on

// Calls the function in the namespace of an instruction set.
#if defined(__x86_64__)
#define FASTDM_CALL(cpu, function, ...)                   \
    ((cpu) == Cpu::avx512 ? avx512::function(__VA_ARGS__) \
     : (cpu) == Cpu::avx2 ? avx2::function(__VA_ARGS__)   \
                          : plain::function(__VA_ARGS__))
#else
#define FASTDM_CALL(cpu, function, ...) plain::function(__VA_ARGS__)
#endif
