// Chooses the best instruction set this processor and operating system can run, and calls through its table.
#include "kernels.h"

#include <string.h>

extern "C" const gs_table gs_table_portable;
#if defined(__x86_64__)
// An older compiler may not know the newest sets; the build then leaves their GS_HAS_ out.
extern "C" const gs_table gs_table_avx2, gs_table_avx512, gs_table_avx512_bf16, gs_table_amx;

#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace {

#if defined(__x86_64__)

bool has_bit(unsigned word, int bit) { return (word >> bit) & 1u; }

// Registers the operating system saves when it switches processes.
unsigned long long saved_state() {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((unsigned long long)high << 32) | low;
}

// Linux hands out the 8 KB of tile registers only to processes that ask.
bool may_use_tiles() {
#if defined(__linux__)
    const long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

struct Processor {
    bool avx2, avx512, avx512_bf16, amx;
};

Processor examine() {
    Processor found = {};
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
    bool fma = has_bit(c, 12), osxsave = has_bit(c, 27), avx = has_bit(c, 28), f16c = has_bit(c, 29);
    if (!osxsave || !avx) return found;
    unsigned long long saved = saved_state();
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
    const unsigned long long ymm = 0x6, zmm = 0xe6, tiles = 0x60000;
    found.avx2 = (saved & ymm) == ymm && fma && f16c && has_bit(b, 5);
    bool foundation = has_bit(b, 16), dq = has_bit(b, 17), bw = has_bit(b, 30), vl = has_bit(b, 31);
    bool vnni = has_bit(c, 11);
    found.avx512 = found.avx2 && (saved & zmm) == zmm && foundation && dq && bw && vl;
    bool amx = has_bit(d, 22) && has_bit(d, 24) && has_bit(d, 25);  // bfloat16, registers, bytes
    unsigned n_leaves = a, a1 = 0;
    bool has_more = n_leaves >= 1 && __get_cpuid_count(7, 1, &a1, &b, &c, &d);
    found.avx512_bf16 = found.avx512 && vnni && has_more && has_bit(a1, 5);
    found.amx = found.avx512_bf16 && (saved & tiles) == tiles && amx && may_use_tiles();
    return found;
}

#endif

struct Choice {
    const gs_table* table;
    bool is_available;
};

struct Choices {
    Choice all[5];
    int n;
    char names[64];
};

Choices list_choices() {
    Choices choices = {};
    choices.all[choices.n++] = {&gs_table_portable, true};
#if defined(__x86_64__)
    Processor processor = examine();
#if defined(GS_HAS_AVX2)
    choices.all[choices.n++] = {&gs_table_avx2, processor.avx2};
#endif
#if defined(GS_HAS_AVX512)
    choices.all[choices.n++] = {&gs_table_avx512, processor.avx512};
#endif
#if defined(GS_HAS_AVX512_BF16)
    choices.all[choices.n++] = {&gs_table_avx512_bf16, processor.avx512_bf16};
#endif
#if defined(GS_HAS_AMX)
    choices.all[choices.n++] = {&gs_table_amx, processor.amx};
#endif
#endif
    for (int i = 0; i < choices.n; i++) {
        if (!choices.all[i].is_available) continue;
        if (i) strcat(choices.names, ",");
        strcat(choices.names, choices.all[i].table->isa);
    }
    return choices;
}

const Choices choices = list_choices();

const gs_table* best() {
    const gs_table* found = &gs_table_portable;
    for (int i = 0; i < choices.n; i++)
        if (choices.all[i].is_available) found = choices.all[i].table;
    return found;
}

const gs_table* current = best();

}  // namespace

int32_t gs_abi(void) { return GS_ABI; }

const char* gs_isa(void) { return current->isa; }

const char* gs_available(void) { return choices.names; }

int32_t gs_select(const char* isa) {
    const gs_table* found = nullptr;
    bool is_known = false;
    for (int i = 0; i < choices.n; i++) {
        if (strcmp(isa, choices.all[i].table->isa)) continue;
        is_known = true;
        if (choices.all[i].is_available) found = choices.all[i].table;
    }
    if (!found) return is_known ? 2 : 1;
    current = found;
    return 0;
}

#define GS_FORWARD(name, parameters, arguments) \
    void gs_##name parameters { current->name arguments; }
GS_KERNELS(GS_FORWARD)
