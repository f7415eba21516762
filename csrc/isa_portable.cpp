#define GS_ISA portable
#include "simd_portable.h"
#include "unit.inl"
