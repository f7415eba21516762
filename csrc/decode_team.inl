// Threads that go through the stages of one call together. Included by decode.inl.

// What threads share: a barrier, and for each stage the number of turns taken.
struct Team {
    gs_barrier* barrier;
    int64_t* taken;
    int32_t n_threads, thread;
    int64_t stage;  // each thread counts for itself
    int64_t* arrived;

    // What this thread makes for the others is made; they need it in this stage, and await all.
    void arrive() {
        arrived = taken + stage++;
        __atomic_fetch_add(arrived, 1, __ATOMIC_RELEASE);
    }
    void await() const { gs_await(arrived, n_threads); }

    // Call work(begin, end) for pieces of 0..n, wait for the others, and enter the next stage: long pieces first, which
    // memory likes, then shorter ones, none below `least`, so that all threads end together.
    template <class Work>
    void share_pieces(int64_t n, int64_t least, const Work& work) {
        if (n_threads == 1) return work(0, n);
        int64_t *next = taken + stage++, begin = __atomic_load_n(next, __ATOMIC_RELAXED);
        while (begin < n) {
            int64_t size = (n - begin) / (2 * n_threads), end = begin + (size > least ? size : least);
            if (end > n) end = n;
            if (!__atomic_compare_exchange_n(next, &begin, end, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) continue;
            work(begin, end);
            begin = __atomic_load_n(next, __ATOMIC_RELAXED);
        }
        gs_wait(barrier, n_threads);
    }
};
