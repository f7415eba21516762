// Products of bfloat16 by tile registers. Like those it is UNMEASURED; test_attention.cpp runs it with emulated ones.

// Rows and columns of every product are multiples of 32, units of 16.
template <class Registers>
struct Tiles : PairStore {
    static constexpr int64_t ROUND = 32;
    static void begin() { Registers::begin(tile_shapes(16, 16)); }
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
        const int64_t left_bytes = left_stride * 4, right_bytes = right_stride * 4, sum_bytes = sum_stride * 4;
        float* lower = sum + 16 * sum_stride;
        if (adds) {
            Registers::template load<0>(sum, sum_bytes);
            Registers::template load<1>(sum + 16, sum_bytes);
            Registers::template load<2>(lower, sum_bytes);
            Registers::template load<3>(lower + 16, sum_bytes);
        } else {
            Registers::template zero<0>();
            Registers::template zero<1>();
            Registers::template zero<2>();
            Registers::template zero<3>();
        }
        for (int64_t unit = 0; unit < n_units; unit += 16) {
            Registers::template load<4>(left + unit, left_bytes);
            Registers::template load<5>(left + unit + 16 * left_stride, left_bytes);
            Registers::template load<6>(right + unit * right_stride, right_bytes);
            Registers::template load<7>(right + unit * right_stride + 16, right_bytes);
            Registers::template multiply<0, 4, 6>();
            Registers::template multiply<1, 4, 7>();
            Registers::template multiply<2, 5, 6>();
            Registers::template multiply<3, 5, 7>();
        }
        Registers::template store<0>(sum, sum_bytes);
        Registers::template store<1>(sum + 16, sum_bytes);
        Registers::template store<2>(lower, sum_bytes);
        Registers::template store<3>(lower + 16, sum_bytes);
    }
};
