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

// The low half-bytes of a word's bytes, from four half-bytes that lie together.
static inline uint32_t spread(uint32_t four) {
    uint32_t x = (four | four << 8) & 0x00ff00ffu;
    return (x | x << 4) & 0x0f0f0f0fu;
}

// The same as pack_four for four bytes that lie within a row.
static inline uint32_t pack_word(const uint8_t* bytes, int32_t bits) {
    uint32_t x;
    memcpy(&x, bytes, 4);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    x = __builtin_bswap32(x);
#endif
    x = bits == 8 ? x ^ 0x80808080u : spread(x & 0xffffu) | spread(x >> 16) << 4;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    x = __builtin_bswap32(x);
#endif
    return x;
}

static void pack_quantized(const uint8_t* values, uint8_t* packed, int64_t d_in, int64_t d_out, int32_t bits) {
    const int64_t n_units = (d_in + GS_QUANT_UNIT - 1) / GS_QUANT_UNIT, row_bytes = bits == 8 ? d_in : d_in / 2;
    const int64_t n_vectors = n_units * bits, step = GS_QUANT_UNIT / bits, n_whole = d_in / step;
    share_out((d_out + GS_QUANT_BLOCK - 1) / GS_QUANT_BLOCK, 4, [&](int64_t begin, int64_t end, int32_t) {
        for (int64_t block = begin; block < end; block++) {
            const int64_t first = block * GS_QUANT_BLOCK, left = d_out - first;
            const int64_t n_lanes = left < GS_QUANT_BLOCK ? left : GS_QUANT_BLOCK;
            const uint8_t* rows = values + first * row_bytes;
            uint8_t* to = packed + block * n_vectors * 64;
            for (int64_t v = 0; v < n_vectors; v++)
                for (int64_t lane = 0; lane < GS_QUANT_BLOCK; lane++) {
                    uint8_t* out = to + v * 64 + lane * 4;
                    const uint8_t* row = rows + lane * row_bytes;
                    if (lane < n_lanes && v < n_whole) {
                        uint32_t word = pack_word(row + v * 4, bits);
                        memcpy(out, &word, 4);
                    } else {
                        pack_four(row, v * step, lane < n_lanes ? d_in : 0, bits, out);
                    }
                }
        }
    });
}
