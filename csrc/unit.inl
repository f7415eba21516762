// The kernels of one instruction set. GS_ISA names it; simd_*.h, included before, gives its vectors.
//
// All of it lies in an unnamed namespace. An inline function shared between units would be kept once by
// the linker, perhaps in the form with instructions this processor lacks; so no templates or inline
// functions of the standard library either.
#include "kernels.h"
#include "threads.h"

namespace {
#include "math.inl"
#include "norm.inl"
#include "rope.inl"
#include "geglu.inl"
#include "loss.inl"
#include "adamw.inl"
#include "tile_registers.inl"
#include "attention.inl"
#include "quant.inl"
#include "decode.inl"
#include "cached_attention.inl"
#include "sample.inl"
#include "probe.inl"
}  // namespace

#define GS_JOIN(a, b) a##b
#define GS_NAMED(a, b) GS_JOIN(a, b)
#define GS_TEXT(a) #a
#define GS_QUOTED(a) GS_TEXT(a)
#define GS_ENTRY(name, parameters, arguments) name,

extern "C" __attribute__((visibility("hidden"))) const gs_table GS_NAMED(gs_table_, GS_ISA);
extern "C" const gs_table GS_NAMED(gs_table_, GS_ISA) = {GS_QUOTED(GS_ISA), GS_KERNELS(GS_ENTRY)};
