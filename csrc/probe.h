// Probes of what a machine does at most, in the form of kernels.h. The caller takes the time.
#pragma once

#include <stdint.h>

#define GS_PROBE_FLOAT32 0
#define GS_PROBE_BFLOAT16 1
#define GS_PROBE_INT8 2
#define GS_PROBE_BFLOAT16_TILES 3
#define GS_PROBE_INT8_TILES 4

#define GS_PROBE_KERNELS(KERNEL)                                                                              \
    /* The sum of a buffer's 64-bit words, modulo 2^64; each thread reads a part of its own. */               \
    KERNEL(probe_read, (const void* buffer, uint64_t* sum, int64_t n_bytes), (buffer, sum, n_bytes))          \
    /* Products of one and one added up in registers, n_rounds on each of n_threads threads: the sum is */    \
    /* how many there were. 0 where this instruction set has none of the kind. */                             \
    KERNEL(probe_products, (int64_t* sum, int64_t n_rounds, int64_t n_threads, int32_t kind),                 \
           (sum, n_rounds, n_threads, kind))
