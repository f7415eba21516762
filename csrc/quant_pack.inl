// From rows of values to the packed form of quant.h. Included by quant.inl.

// Value of input i of a row, as it is stored packed; inputs beyond the row are 0.
static inline uint8_t value_at(const uint8_t* row, int64_t i, int64_t d_in, int32_t bits) {
    if (bits == 8) return i < d_in ? (uint8_t)(row[i] ^ 128) : 128;
    return i < d_in ? (row[i / 2] >> (i % 2 * 4)) & 15 : 8;
}

// Four packed bytes of one row: those of vector v of a unit.
static inline void pack_four(const uint8_t* row, int64_t i, int64_t d_in, int32_t bits, uint8_t* out) {
    if (bits == 8) {
        for (int64_t c = 0; c < 4; c++) out[c] = value_at(row, i + c, d_in, bits);
    } else {
        for (int64_t c = 0; c < 4; c++)
            out[c] = (uint8_t)(value_at(row, i + c, d_in, bits) | value_at(row, i + c + 4, d_in, bits) << 4);
    }
}

static void pack_quantized(const uint8_t* values, uint8_t* packed, int64_t d_in, int64_t d_out, int32_t bits) {
    const int64_t n_units = (d_in + GS_QUANT_UNIT - 1) / GS_QUANT_UNIT, row_bytes = bits == 8 ? d_in : d_in / 2;
    const int64_t n_vectors = n_units * bits, step = GS_QUANT_UNIT / bits;
    share_out((d_out + GS_QUANT_BLOCK - 1) / GS_QUANT_BLOCK, 4, [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t block = begin; block < end; block++)
            for (int64_t lane = 0; lane < GS_QUANT_BLOCK; lane++) {
                int64_t output = block * GS_QUANT_BLOCK + lane;
                uint8_t* to = packed + block * n_vectors * 64 + lane * 4;
                const uint8_t* row = values + output * row_bytes;
                int64_t width = output < d_out ? d_in : 0;
                for (int64_t v = 0; v < n_vectors; v++) pack_four(row, v * step, width, bits, to + v * 64);
            }
    });
}
