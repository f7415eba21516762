// The products of test_emulated.h with the vectors of a simd_*.h, included before.
#include "test_emulated.h"
#include "threads.h"

#pragma GCC diagnostic ignored "-Wunused-function"

namespace {
#include "math.inl"
#include "geglu.inl"
#include "tile_registers.inl"
#include "test_tiles.h"
#define GS_TILE_REGISTERS EmulatedTiles
#include "attention_units.inl"
#include "attention_pack.inl"
#include "quant.inl"

const Emulated emulated = {quantized_linear, quantized_feed_forward};
}  // namespace
