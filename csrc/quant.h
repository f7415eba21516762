// Kernels of matrices in 4 or 8 bits, in the form of kernels.h.
//
// A packed matrix lies in blocks of 16 outputs; a block in units of 32 inputs, those beyond d_in being 0; a
// unit in 64-byte vectors of 16 outputs x 4 bytes. For 8 bits vector v holds inputs 4 v to 4 v + 3, each
// stored + 128; for 4 bits inputs 8 v to 8 v + 3 in the low halves and 8 v + 4 to 8 v + 7 in the high ones.
// Every instruction set reads this one form.
#pragma once

#include <stdint.h>

#define GS_QUANT_BLOCK 16
#define GS_QUANT_UNIT 32
#define GS_FLOAT16 2

struct gs_quant_call {
    const void* x;          // [n_rows, d_in]
    void* y;                // [n_rows, d_out]
    const uint8_t* values;  // [blocks, units, 64 * bits]
    const void* scales;     // [blocks, groups, 16]
    const uint8_t* zeros;   // as scales, 0 to 15 for 4 bits; null where every group's is the middle one
    void* scratch;          // n_rows * units * 40 bytes; null takes memory that the library keeps
    int64_t n_rows, d_in, d_out;
    int64_t group_units;  // units that share a scale
    int32_t bits, dtype, scale_dtype;
};

#define GS_QUANT_KERNELS(KERNEL)                                                                              \
    /* kernels.quantized.plain_quantized_linear with rounded activations. */                                  \
    KERNEL(quantized_linear, (const gs_quant_call* call), (call))                                             \
    /* The same for n matrices with one x, which is rounded once where they may share it. */                  \
    KERNEL(quantized_linears, (const gs_quant_call* calls, int32_t n), (calls, n))                            \
    /* down(gelu(gate(x)) * up(x)) of three calls: x is gate's, y is down's. What lies between has the       \
       dtype of x. gate and up have the same sizes, bits and kind of zeros. */                                \
    KERNEL(quantized_feed_forward, (const gs_quant_call* calls), (calls))                                     \
    /* From values as kernels.quantized has them. */                                                          \
    KERNEL(pack_quantized,                                                                                    \
           (const uint8_t* values, uint8_t* packed, int64_t d_in, int64_t d_out, int32_t bits),               \
           (values, packed, d_in, d_out, bits))                                                                \
    /* From rows of GGUF's Q4_0 or Q8_0: for each 32 inputs a float16 scale and their values. d_in is a       \
       multiple of 32; scales is [blocks, groups, 16] in float16. */                                          \
    KERNEL(pack_blocks,                                                                                       \
           (const uint8_t* rows, uint8_t* packed, void* scales, int64_t d_in, int64_t d_out, int32_t bits),   \
           (rows, packed, scales, d_in, d_out, bits))                                                         \
    /* Scales or zeros, of 1, 2 or 4 bytes each, into [blocks, n_groups, 16]; 0 beyond d_out. */              \
    KERNEL(pack_groups,                                                                                       \
           (const void* from, void* to, int64_t n_groups, int64_t d_out, int32_t item_bytes),                 \
           (from, to, n_groups, d_out, item_bytes))
