#include "threads.h"

#include "kernels.h"

#if defined(__linux__) || defined(__APPLE__)
#include <dlfcn.h>
#include <sched.h>
#endif
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// Of libgomp's interface; Intel's and LLVM's runtimes offer it too on Linux.
struct OpenMP {
    void (*parallel)(void (*body)(void*), void* data, unsigned n_threads, unsigned flags);
    int (*max_threads)(void);
    int (*thread_num)(void);
    int (*num_threads)(void);
    int (*in_parallel)(void);
};

OpenMP shared = {};
thread_local bool is_alone = false;  // this thread shares nothing

struct Team {
    void (*body)(void*, int32_t, int32_t);
    void* context;
};

void run_member(void* data) {
    Team* team = (Team*)data;
    team->body(team->context, shared.thread_num(), shared.num_threads());
}

// Looks at a barrier or a count before a thread sleeps or steps back, some tens of microseconds: on busy cores the others need this one.
const int64_t SPINS = 2000;

void sleep_through(gs_barrier* barrier, int32_t round) {
#if defined(__linux__)
    __atomic_add_fetch(&barrier->sleepers, 1, __ATOMIC_SEQ_CST);
    // Returns at once where the round has ended meanwhile.
    syscall(SYS_futex, &barrier->round, FUTEX_WAIT_PRIVATE, round, nullptr, nullptr, 0);
    __atomic_sub_fetch(&barrier->sleepers, 1, __ATOMIC_SEQ_CST);
#endif
}

void wake_sleepers(gs_barrier* barrier) {
#if defined(__linux__)
    if (__atomic_load_n(&barrier->sleepers, __ATOMIC_SEQ_CST))
        syscall(SYS_futex, &barrier->round, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#endif
}

}  // namespace

void gs_wait(gs_barrier* barrier, int32_t n_threads) {
    const int32_t round = __atomic_load_n(&barrier->round, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&barrier->arrived, 1, __ATOMIC_ACQ_REL) == n_threads) {
        __atomic_store_n(&barrier->arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&barrier->round, round + 1, __ATOMIC_SEQ_CST);
        return wake_sleepers(barrier);
    }
    for (int64_t looks = 0; __atomic_load_n(&barrier->round, __ATOMIC_ACQUIRE) == round; looks++) {
        if (looks >= SPINS) sleep_through(barrier, round);
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
}

void gs_await(const int64_t* count, int64_t wanted) {
    for (int64_t looks = 0; __atomic_load_n(count, __ATOMIC_ACQUIRE) < wanted; looks++) {
#if defined(__linux__) || defined(__APPLE__)
        if (looks >= SPINS) sched_yield();
#endif
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
}

int32_t gs_share_openmp(const char* path) {
#if defined(__linux__) || defined(__APPLE__)
    // NOLOAD: share the copy that is there, never bring in another.
    void* handle = path ? dlopen(path, RTLD_LAZY | RTLD_NOLOAD) : RTLD_DEFAULT;
    if (path && !handle) handle = RTLD_DEFAULT;
    OpenMP found = {};
    found.parallel = (void (*)(void (*)(void*), void*, unsigned, unsigned))dlsym(handle, "GOMP_parallel");
    found.max_threads = (int (*)(void))dlsym(handle, "omp_get_max_threads");
    found.thread_num = (int (*)(void))dlsym(handle, "omp_get_thread_num");
    found.num_threads = (int (*)(void))dlsym(handle, "omp_get_num_threads");
    found.in_parallel = (int (*)(void))dlsym(handle, "omp_in_parallel");
    if (found.parallel && found.max_threads && found.thread_num && found.num_threads && found.in_parallel) {
        shared = found;
        return 1;
    }
#endif
    return 0;
}

void gs_be_alone(bool is_so) { is_alone = is_so; }

int32_t gs_max_threads(void) {
    if (is_alone) return 1;
    return shared.parallel && !shared.in_parallel() ? shared.max_threads() : 1;
}

void gs_run_team(int32_t n_threads, void (*body)(void*, int32_t, int32_t), void* context) {
    if (n_threads <= 1 || !shared.parallel) {
        body(context, 0, 1);
        return;
    }
    Team team = {body, context};
    shared.parallel(run_member, &team, (unsigned)n_threads, 0);
}
