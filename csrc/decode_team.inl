// Threads that go through the stages of one call together. Included by decode.inl.

// What threads share: a barrier, and for each stage the number of turns taken.
struct Team {
    gs_barrier* barrier;
    int64_t* taken;
    int32_t n_threads;
    int64_t stage;  // each thread counts for itself
    // Turns of the last hand_out: those that have ended, and all.
    const int64_t* ended;
    int64_t n_handed;

    // Call work(turn, next) for the turns of 0..n that are this thread's, wait for the others, and enter the next
    // stage. `next` is what this thread does after `turn`, n where that is all.
    template <class Work>
    void share(int64_t n, const Work& work) {
        if (n_threads == 1) {
            for (int64_t turn = 0; turn < n; turn++) work(turn, turn + 1);
            return;
        }
        int64_t* counter = taken + stage++;
        auto take = [&] {
            int64_t turn = __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
            return turn < n ? turn : n;
        };
        for (int64_t turn = take(), next; turn < n; turn = next) work(turn, next = take());
        gs_wait(barrier, n_threads);
    }

    // Call work(turn) for the turns of 0..n that are this thread's and go on without the others; who needs what they
    // made awaits the turns.
    template <class Work>
    void hand_out(int64_t n, const Work& work) {
        if (n_threads == 1) {
            for (int64_t turn = 0; turn < n; turn++) work(turn);
            return;
        }
        int64_t *next = taken + stage++, *done = taken + stage++;
        for (int64_t turn; (turn = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < n;) {
            work(turn);
            __atomic_fetch_add(done, 1, __ATOMIC_RELEASE);
        }
        ended = done, n_handed = n;
    }
    void await_turns() const {
        if (n_threads > 1) gs_await(ended, n_handed);
    }

    // The same as `share` for pieces begin to end of 0..n: long ones first, which memory likes, then shorter ones, none below
    // `least`, so that all threads end together.
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
