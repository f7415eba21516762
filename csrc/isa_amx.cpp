// Tiles serve the products of attention; everything else is the AVX512 code with bfloat16 conversions.
#define GS_ISA amx
#include "simd_avx512.h"
#include "unit.inl"
