// Probes add up what they read and count what they multiply, over buffers that touch a forbidden page.
#include <initializer_list>

#include "test_support.h"

namespace {

void test_probe_read() {
    for (int64_t n_words : {0, 1, 7, 8, 31, 32, 33, 1000, 70001}) {
        Guarded<uint64_t> buffer(n_words);
        uint64_t found = 1, wanted = 0;
        for (int64_t i = 0; i < n_words; i++) {
            buffer[i] = (uint64_t)i * 0x9e3779b97f4a7c15u;
            wanted += buffer[i];
        }
        gs_probe_read(buffer.data(), &found, n_words * 8);
        if (found != wanted) expect("probe_read", 0.0, 1e9, 0);
    }
}

void test_probe_products() {
    for (int32_t kind : {GS_PROBE_FLOAT32, GS_PROBE_BFLOAT16, GS_PROBE_INT8, GS_PROBE_BFLOAT16_TILES})
        for (int64_t n_threads : {1, 2}) {
            int64_t one = -1, many = -1;
            gs_probe_products(&one, 1, n_threads, kind);
            gs_probe_products(&many, 300001, n_threads, kind);
            if (many != 300001 * one || (kind == GS_PROBE_FLOAT32 && one < n_threads * 12)) {
                fprintf(stderr, "kind %d: ", kind);
                expect("probe_products", (double)many, 300001.0 * (double)one + 1e9, 0);
            }
        }
}

const Test TESTS[] = {{"probe_read", test_probe_read}, {"probe_products", test_probe_products}};

}  // namespace
