// Bringing memory while something is computed. Included by decode_attention.inl.
//
// A processor brings by itself what follows when lines are read in the order in which they lie, and in no other order.
// What it is asked for it forgets while too much is on its way: much asked for at once is little asked for. So keys and
// values read several rows at a time are touched in order a little before, and memory is asked for line by line, at the
// pace of reading, and while nothing is read.

constexpr int64_t LINE = 64, LEAD = 12288;  // bytes

// Read a byte of each line of N bytes.
template <int64_t N>
static inline void touch(const void* from) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < N; i += LINE) (void)*((const volatile char*)from + i);
}

// What will be read next: a stretch, of which all up to `next` has been asked for, and the one after it.
struct Ahead {
    const char *next, *end, *then, *then_end;
    int64_t lead;  // bytes asked for and not read yet

    // Reading goes on at `from`, which may have been asked for already.
    template <class C>
    void enter(const C* from, int64_t n, const C* after, int64_t n_after) {
        end = (const char*)(from + n), then = (const char*)after, then_end = (const char*)(after + n_after);
        if (next < (const char*)from || next > end) next = (const char*)from, lead = 0;
    }
    // While n bytes are read: where to ask for as many, or `here`, which lies in a cache.
    const char* take(int64_t n, const void* here) {
        lead -= n;
        return lead < LEAD ? more(n, here) : (const char*)here;
    }
    const char* more(int64_t n, const void* here) {
        if (end - next < n && then) next = then, end = then_end, then = nullptr;
        if (end - next < n) return (const char*)here;
        next += n, lead += n;
        return next - n;
    }
    template <int64_t N>
    static void ask(const char* from) {
#pragma GCC unroll 8
        for (int64_t i = 0; i < N; i += LINE) __builtin_prefetch(from + i, 0, 2);
    }
    // Ask for more than is read meanwhile, up to a lead.
    void hurry(const void* here) {
        if (lead < LEAD) ask<8 * LINE>(more(8 * LINE, here));
    }
    void fill(const void* here) {
        if (lead < 2 * LEAD) ask<2 * LINE>(more(2 * LINE, here));
    }
};
