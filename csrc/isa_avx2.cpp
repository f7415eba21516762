#define GS_ISA avx2
#include "simd_avx2.h"
#include "unit.inl"
