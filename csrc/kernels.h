// The C interface: every kernel once, as (name, parameters, arguments). From this list come the
// exported functions gs_NAME, the table of function pointers each instruction set fills, and the
// calls that go through it.
//
// Sizes and strides count elements, as int64. `dtype` is 0 for float32 and 1 for bfloat16; arithmetic
// is float32. Rows are contiguous unless a stride is given. Results do not depend on the number of threads.
#pragma once

#include <stdint.h>

#include "attention.h"
#include "cached_attention.h"
#include "decode.h"
#include "probe.h"
#include "quant.h"
#include "sample.h"

#define GS_ABI 5
#define GS_FLOAT32 0
#define GS_BFLOAT16 1
// Partial sums of a weight's gradient, so that their order does not depend on the threads.
#define GS_NORM_PARTS 64
// Elements per partial sum of gs_sum_of_squares.
#define GS_SUM_BLOCK 65536

#define GS_KERNELS(KERNEL)                                                                                    \
    /* ops.plain_rms_norm; with a residual, the two added. residual may be null. */                           \
    KERNEL(rms_norm,                                                                                          \
           (const void* x, const void* weight, const void* residual, void* out, int64_t n_rows,               \
            int64_t width, float eps, int32_t dtype, int32_t weight_dtype),                                   \
           (x, weight, residual, out, n_rows, width, eps, dtype, weight_dtype))                               \
    /* Its gradients; parts holds GS_NORM_PARTS * width floats, dweight width floats. */                      \
    KERNEL(rms_norm_backward,                                                                                 \
           (const void* grad, const void* x, const void* weight, void* dx, float* dweight, float* parts,      \
            int64_t n_rows, int64_t width, float eps, int32_t dtype, int32_t weight_dtype),                   \
           (grad, x, weight, dx, dweight, parts, n_rows, width, eps, dtype, weight_dtype))                    \
    /* ops.plain_rotate; direction -1 turns back, which is its gradient. out is contiguous. */                \
    KERNEL(rotate,                                                                                            \
           (const void* x, const float* cosine, const float* sine, void* out, int64_t n_tokens,               \
            int64_t n_heads, int64_t head_dim, int64_t token_stride, int64_t head_stride, float factor,       \
            float direction, int32_t dtype),                                                                  \
           (x, cosine, sine, out, n_tokens, n_heads, head_dim, token_stride, head_stride, factor, direction,  \
            dtype))                                                                                           \
    /* ops.plain_gated_gelu. Strides are those of rows. */                                                    \
    KERNEL(gated_gelu,                                                                                        \
           (const void* gate, const void* up, void* out, int64_t n_rows, int64_t width, int64_t gate_stride,  \
            int64_t up_stride, int32_t dtype),                                                                \
           (gate, up, out, n_rows, width, gate_stride, up_stride, dtype))                                     \
    KERNEL(gated_gelu_backward,                                                                               \
           (const void* grad, const void* gate, const void* up, void* dgate, void* dup, int64_t n_rows,       \
            int64_t width, int64_t grad_stride, int64_t gate_stride, int64_t up_stride, int64_t out_stride,   \
            int32_t dtype),                                                                                   \
           (grad, gate, up, dgate, dup, n_rows, width, grad_stride, gate_stride, up_stride, out_stride,       \
            dtype))                                                                                           \
    /* train.loss: overwrite logits by their gradient, row_loss by each row's loss. softcap 0 is none. */     \
    /* scratch holds n_threads * vocab_size floats for bfloat16, and may be null for float32. */              \
    KERNEL(loss_and_gradient,                                                                                 \
           (void* logits, const int64_t* targets, double* row_loss, float* scratch, int64_t n_rows,           \
            int64_t vocab_size, float softcap, float z_weight, int32_t dtype),                                \
           (logits, targets, row_loss, scratch, n_rows, vocab_size, softcap, z_weight, dtype))                \
    /* torch.optim.AdamW. step_size is rate / (1 - beta1^step), root_correction sqrt(1 - beta2^step). */      \
    KERNEL(adamw,                                                                                             \
           (float* weight, float* exp_avg, float* exp_avg_sq, const void* grad, int64_t n_elements,           \
            float decay, float beta1, float beta2, float eps, float step_size, float root_correction,         \
            float grad_scale, int32_t grad_dtype),                                                            \
           (weight, exp_avg, exp_avg_sq, grad, n_elements, decay, beta1, beta2, eps, step_size,               \
            root_correction, grad_scale, grad_dtype))                                                         \
    /* One float64 per GS_SUM_BLOCK elements; the caller adds them in order. */                               \
    KERNEL(sum_of_squares, (const void* x, double* parts, int64_t n_elements, int32_t dtype),                 \
           (x, parts, n_elements, dtype))                                                                     \
    GS_ATTENTION_KERNELS(KERNEL)                                                                              \
    GS_QUANT_KERNELS(KERNEL)                                                                                  \
    GS_CACHED_ATTENTION_KERNELS(KERNEL)                                                                       \
    GS_DECODE_KERNELS(KERNEL)                                                                                 \
    GS_SAMPLE_KERNELS(KERNEL)                                                                                 \
    GS_PROBE_KERNELS(KERNEL)

#define GS_FIELD(name, parameters, arguments) void(*name) parameters;
struct gs_table {
    const char* isa;
    GS_KERNELS(GS_FIELD)
};
#undef GS_FIELD

#define GS_EXPORT extern "C" __attribute__((visibility("default")))

#define GS_DECLARE(name, parameters, arguments) GS_EXPORT void gs_##name parameters;
GS_KERNELS(GS_DECLARE)
#undef GS_DECLARE

GS_EXPORT int32_t gs_abi(void);
// Name of the instruction set in use: portable, avx2, avx512, avx512_bf16 or amx.
GS_EXPORT const char* gs_isa(void);
// Names of those this processor and system can run, best last, separated by commas.
GS_EXPORT const char* gs_available(void);
// Use this one from now on. 0: done, 1: no such name, 2: this processor lacks it.
GS_EXPORT int32_t gs_select(const char* isa);
// Take threads from the OpenMP library loaded from `path` already; without one, or with a null path, one
// that is visible to the whole process; failing that, run on one thread. Returns 1 where threads are shared.
GS_EXPORT int32_t gs_share_openmp(const char* path);
GS_EXPORT int32_t gs_max_threads(void);
// Rows to bring into their packed form: those of a matrix of 4 or 8 bits, or what its groups have, 16 or 32 bits each.
struct gs_early_job {
    const uint8_t* plain;
    uint8_t* packed;
    int64_t width, n_rows;  // values or groups of a row
    int32_t bits, state;    // 0: nobody's yet, 1: somebody's, 2: done
};
// Do a job unless it is somebody's already. Returns the state it was found in.
GS_EXPORT int32_t gs_do_early(gs_early_job* job);
// Do those jobs that are nobody's, one after the other on the calling thread alone, until *is_over is not 0, and give
// back the mapped pages they were read from. It may run beside gs_share_openmp.
GS_EXPORT void gs_pack_early(gs_early_job* jobs, int64_t n_jobs, const int32_t* is_over);
