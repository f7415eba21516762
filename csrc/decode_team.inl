// Threads that go through the stages of one call together. Included by decode.inl.

// What threads share: a barrier, and for each stage the number of turns taken.
struct Team {
    gs_barrier* barrier;
    int64_t* taken;
    int32_t n_threads;
    int64_t stage;  // each thread counts for itself

    // Call work(turn) for the turns of 0..n that are this thread's, wait for the others, and enter the next stage.
    template <class Work>
    void share(int64_t n, const Work& work) {
        if (n_threads == 1) {
            for (int64_t turn = 0; turn < n; turn++) work(turn);
            return;
        }
        int64_t* next = taken + stage++;
        for (int64_t turn; (turn = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < n;) work(turn);
        gs_wait(barrier, n_threads);
    }
};
