// Rows shared out over the threads of an OpenMP library somebody else (torch) has loaded.
//
// Nothing here is linked against OpenMP: two runtimes in one process would each keep their own threads and
// fight over the cores. threads.cpp looks the entry points up in the one that is there. In templates below
// everything is in an unnamed namespace, so that no two instruction sets share an instance.
#pragma once

#include <stdint.h>

// Call body(context, thread, n_threads) on each of up to n_threads threads; return when all are done.
extern "C" __attribute__((visibility("hidden"))) void gs_run_team(
    int32_t n_threads, void (*body)(void* context, int32_t thread, int32_t n_threads), void* context);
extern "C" int32_t gs_max_threads(void);
// Let the calling thread share nothing out, not even look for whom it could share with.
extern "C" __attribute__((visibility("hidden"))) void gs_be_alone(bool is_so);

// Where the threads of a team meet; all zero at first.
struct gs_barrier {
    int32_t arrived, round, sleepers;
};
// Return once n_threads have called this.
extern "C" __attribute__((visibility("hidden"))) void gs_wait(gs_barrier* barrier, int32_t n_threads);
// Return once *count is at least `wanted`; what was written before it was raised (by a release) is then seen.
extern "C" __attribute__((visibility("hidden"))) void gs_await(const int64_t* count, int64_t wanted);

namespace {

// Call work(begin, end, thread) on pieces of 0..n, one per thread, none smaller than `grain` but the last.
template <class Work>
static inline void share_out(int64_t n, int64_t grain, const Work& work) {
    if (n <= 0) return;
    struct Context {
        const Work* work;
        int64_t n;
    } context = {&work, n};
    int64_t most = (n + grain - 1) / grain;
    int64_t limit = most > 1 ? gs_max_threads() : 1;
    gs_run_team((int32_t)(most < limit ? most : limit),
                [](void* shared, int32_t thread, int32_t n_threads) {
                    const Context* c = (const Context*)shared;
                    int64_t begin = c->n * thread / n_threads, end = c->n * (thread + 1) / n_threads;
                    if (begin < end) (*c->work)(begin, end, thread);
                },
                &context);
}

// Call work(item, thread) for every item of 0..n, each taken by the next free thread: for items of unequal cost.
template <class Work>
static inline void take_turns(int64_t n, const Work& work) {
    if (n <= 0) return;
    struct Context {
        const Work* work;
        int64_t n, next;
    } context = {&work, n, 0};
    int64_t limit = n > 1 ? gs_max_threads() : 1;
    gs_run_team((int32_t)(n < limit ? n : limit),
                [](void* shared, int32_t thread, int32_t) {
                    Context* c = (Context*)shared;
                    for (;;) {
                        int64_t item = __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED);
                        if (item >= c->n) return;
                        (*c->work)(item, thread);
                    }
                },
                &context);
}

}  // namespace
