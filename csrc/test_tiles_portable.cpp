#include "simd_portable.h"
#include "test_emulated.inl"

extern "C" const Emulated* const emulated_portable = &emulated;
