#define GS_ISA avx512_bf16
#include "simd_avx512.h"
#include "unit.inl"
