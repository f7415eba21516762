// Tiles serve the products of attention and of many rows with matrices in few bits; everything else is the AVX512 code with bfloat16 conversions.
#define GS_ISA amx
#include "simd_avx512.h"
#include "unit.inl"
