// Products of matrices in few bits by emulated tile registers, for the test program.
#pragma once

#include "kernels.h"

struct Emulated {
    void (*quantized_linear)(const gs_quant_call* call);
    void (*quantized_feed_forward)(const gs_quant_call* calls);
};

// Each with the vectors of that instruction set; null where the compiler does not know it.
extern "C" const Emulated *const emulated_portable, *const emulated_avx512_bf16;
