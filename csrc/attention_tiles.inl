// Products of bfloat16 by tile registers (AMX), and the same instructions spelled out for machines without them.
// The form with real registers compiles here but is UNMEASURED AND UNRUN: no machine with AMX has met it yet.
// test_attention.cpp runs all of this code but TileRegisters itself, with EmulatedTiles in its place.

// Eight registers of 16 rows of 16 units each: 0 to 3 are sums, 4 and 5 left operands, 6 and 7 right ones.
#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
struct TileRegisters {
    struct Shapes {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    };
    static void begin() {
        alignas(64) static const Shapes shapes = {
            1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
        // Not GCC 12's intrinsic, which says that it reads 8 bytes of the 64: the rest could be optimised away.
        __asm__ volatile("ldtilecfg %0" ::"m"(shapes));
    }
    static void end() { __asm__ volatile("tilerelease"); }
    template <int REGISTER>
    static void zero() { __asm__ volatile("tilezero %%tmm%c0" ::"i"(REGISTER)); }
    template <int REGISTER>
    static void load(const float* from, int64_t stride) {
        __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride * 4), "i"(REGISTER) : "memory");
    }
    template <int REGISTER>
    static void store(float* to, int64_t stride) {
        __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride * 4), "i"(REGISTER) : "memory");
    }
    template <int SUM, int LEFT, int RIGHT>
    static void multiply() {
        __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(LEFT), "i"(RIGHT));
    }
};
#endif

// Rows and columns of every product are multiples of 32, units of 16.
template <class Registers>
struct Tiles : PairStore {
    static constexpr int64_t ROUND = 32;
    static void begin() { Registers::begin(); }
    static void end() { Registers::end(); }

    static void multiply(const float* left, int64_t left_stride, const float* right, int64_t right_stride,
                         float* sum, int64_t sum_stride, int64_t n_rows, int64_t n_columns, int64_t n_units,
                         bool adds) {
        for (int64_t row = 0; row < n_rows; row += 32)
            for (int64_t column = 0; column < n_columns; column += 32)
                multiply_square(left + row * left_stride, left_stride, right + column, right_stride,
                                sum + row * sum_stride + column, sum_stride, n_units, adds);
    }

    static void multiply_square(const float* left, int64_t left_stride, const float* right, int64_t right_stride,
                                float* sum, int64_t sum_stride, int64_t n_units, bool adds) {
        float* lower = sum + 16 * sum_stride;
        if (adds) {
            Registers::template load<0>(sum, sum_stride);
            Registers::template load<1>(sum + 16, sum_stride);
            Registers::template load<2>(lower, sum_stride);
            Registers::template load<3>(lower + 16, sum_stride);
        } else {
            Registers::template zero<0>();
            Registers::template zero<1>();
            Registers::template zero<2>();
            Registers::template zero<3>();
        }
        for (int64_t unit = 0; unit < n_units; unit += 16) {
            Registers::template load<4>(left + unit, left_stride);
            Registers::template load<5>(left + unit + 16 * left_stride, left_stride);
            Registers::template load<6>(right + unit * right_stride, right_stride);
            Registers::template load<7>(right + unit * right_stride + 16, right_stride);
            Registers::template multiply<0, 4, 6>();
            Registers::template multiply<1, 4, 7>();
            Registers::template multiply<2, 5, 6>();
            Registers::template multiply<3, 5, 7>();
        }
        Registers::template store<0>(sum, sum_stride);
        Registers::template store<1>(sum + 16, sum_stride);
        Registers::template store<2>(lower, sum_stride);
        Registers::template store<3>(lower + 16, sum_stride);
    }
};
