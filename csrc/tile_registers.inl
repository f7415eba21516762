// The eight tile registers (AMX). Included by unit.inl.
//
// Registers 0 to 3 are sums, 4 and 5 left operands, 6 and 7 right ones, all in units of 32 bits: one sum, two bfloat16
// or four bytes. TileRegisters compiles and assembles but is UNMEASURED AND UNRUN: no machine with AMX has met it yet.
// The test program runs all that is built on it with the EmulatedTiles of test_tiles.h in its place.

// How many rows and bytes a row the registers have, as the processor reads it.
struct TileShapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
static_assert(sizeof(TileShapes) == 64, "the processor reads 64 bytes");

// Shapes for sums of n_rows x 16 units over n_units.
static inline TileShapes tile_shapes(int64_t n_rows, int64_t n_units) {
    TileShapes shapes = {};
    shapes.palette = 1;
    for (int i = 0; i < 8; i++) {
        const bool is_left = i == 4 || i == 5, is_right = i > 5;
        shapes.row_bytes[i] = (uint16_t)(is_left ? n_units * 4 : 64);
        shapes.rows[i] = (uint8_t)(is_right ? n_units : n_rows);
    }
    return shapes;
}

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__)
struct TileRegisters {
    static void begin(const TileShapes& shapes) {
        // Not GCC 12's intrinsic, which says that it reads 8 bytes of the 64: the rest could be optimised away.
        __asm__ volatile("ldtilecfg %0" ::"m"(shapes));
    }
    static void end() { __asm__ volatile("tilerelease"); }
    template <int REGISTER>
    static void zero() { __asm__ volatile("tilezero %%tmm%c0" ::"i"(REGISTER)); }
    // Rows lie `stride` bytes apart.
    template <int REGISTER>
    static void load(const void* from, int64_t stride) {
        __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(REGISTER) : "memory");
    }
    template <int REGISTER>
    static void store(void* to, int64_t stride) {
        __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(REGISTER) : "memory");
    }
    // Add the products of bfloat16.
    template <int SUM, int LEFT, int RIGHT>
    static void multiply() {
        __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(LEFT), "i"(RIGHT));
    }
    // Add the products of signed bytes.
    template <int SUM, int LEFT, int RIGHT>
    static void multiply_bytes() {
        __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(LEFT), "i"(RIGHT));
    }
    // The same where those on the right are unsigned.
    template <int SUM, int LEFT, int RIGHT>
    static void multiply_unsigned() {
        __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(LEFT), "i"(RIGHT));
    }
};
#define GS_TILE_REGISTERS TileRegisters
#endif
