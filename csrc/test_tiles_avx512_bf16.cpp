// hatch_build.py compiles this with the flags of isa_avx512_bf16 where the compiler knows them.
#if defined(__AVX512BF16__)
#include "simd_avx512.h"
#include "test_emulated.inl"

extern "C" const Emulated* const emulated_avx512_bf16 = &emulated;
#else
#include "test_emulated.h"

extern "C" const Emulated* const emulated_avx512_bf16 = nullptr;
#endif
