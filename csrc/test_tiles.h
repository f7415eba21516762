// The tile instructions spelled out, for tests of what is built on tile_registers.inl. Included within the unnamed
// namespace that has that file and a simd_*.h.

// What Intel's manual says the instructions do to eight registers. Shapes that the processor would refuse end the
// program.
struct EmulatedTiles {
    static inline thread_local TileShapes shapes;
    static inline thread_local uint8_t registers[8][16][64];

    static void begin(const TileShapes& wanted) {
        shapes = wanted;
        for (int i = 0; i < 8; i++)
            need(shapes.rows[i] - 1u < 16 && shapes.row_bytes[i] - 1u < 64 && shapes.row_bytes[i] % 4 == 0);
        need(shapes.palette == 1 && !shapes.start_row);
        memset(registers, 0, sizeof(registers));
    }
    static void end() {
        need(shapes.palette == 1);
        shapes.palette = 0;
    }
    template <int REGISTER>
    static void zero() {
        need(shapes.palette == 1);
        memset(registers[REGISTER], 0, sizeof(registers[REGISTER]));
    }
    template <int REGISTER>
    static void load(const void* from, int64_t stride) {
        zero<REGISTER>();
        for (int i = 0; i < shapes.rows[REGISTER]; i++)
            memcpy(registers[REGISTER][i], (const char*)from + i * stride, shapes.row_bytes[REGISTER]);
    }
    template <int REGISTER>
    static void store(void* to, int64_t stride) {
        need(shapes.palette == 1);
        for (int i = 0; i < shapes.rows[REGISTER]; i++)
            memcpy((char*)to + i * stride, registers[REGISTER][i], shapes.row_bytes[REGISTER]);
    }
    template <int SUM, int LEFT, int RIGHT>
    static void multiply() {
        over<SUM, LEFT, RIGHT, float>([](float* sum, const uint8_t* left, const uint8_t* right) {
            for (int i = 0; i < 4; i += 2) {
                bf16 a, b;
                float x, y;
                memcpy(&a, left + i, 2);
                memcpy(&b, right + i, 2);
                uint32_t wide = (uint32_t)a.bits << 16, other = (uint32_t)b.bits << 16;
                memcpy(&x, &wide, 4);
                memcpy(&y, &other, 4);
                *sum += x * y;
            }
        });
    }
    template <int SUM, int LEFT, int RIGHT>
    static void multiply_bytes() {
        over<SUM, LEFT, RIGHT, int32_t>([](int32_t* sum, const uint8_t* left, const uint8_t* right) {
            for (int i = 0; i < 4; i++) *sum += (int8_t)left[i] * (int8_t)right[i];
        });
    }
    template <int SUM, int LEFT, int RIGHT>
    static void multiply_unsigned() {
        over<SUM, LEFT, RIGHT, int32_t>([](int32_t* sum, const uint8_t* left, const uint8_t* right) {
            for (int i = 0; i < 4; i++) *sum += (int8_t)left[i] * right[i];
        });
    }

  private:
    static void need(bool holds) {
        if (!holds) abort();
    }
    // Call add(sum, left unit, right unit) for every sum and unit, units in their order.
    template <int SUM, int LEFT, int RIGHT, class T, class Add>
    static void over(const Add& add) {
        const int rows = shapes.rows[SUM], units = shapes.rows[RIGHT], columns = shapes.row_bytes[SUM] / 4;
        need(shapes.palette == 1 && rows == shapes.rows[LEFT] && units * 4 == shapes.row_bytes[LEFT] &&
             columns * 4 == shapes.row_bytes[RIGHT] && SUM != LEFT && SUM != RIGHT && LEFT != RIGHT);
        for (int row = 0; row < rows; row++)
            for (int unit = 0; unit < units; unit++)
                for (int column = 0; column < columns; column++) {
                    T sum;
                    memcpy(&sum, registers[SUM][row] + column * 4, 4);
                    add(&sum, registers[LEFT][row] + unit * 4, registers[RIGHT][unit] + column * 4);
                    memcpy(registers[SUM][row] + column * 4, &sum, 4);
                }
    }
};
