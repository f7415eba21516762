#include "threads.h"

#include "kernels.h"

#if defined(__linux__) || defined(__APPLE__)
#include <dlfcn.h>
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

struct Team {
    void (*body)(void*, int32_t, int32_t);
    void* context;
};

void run_member(void* data) {
    Team* team = (Team*)data;
    team->body(team->context, shared.thread_num(), shared.num_threads());
}

}  // namespace

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

int32_t gs_max_threads(void) { return shared.parallel && !shared.in_parallel() ? shared.max_threads() : 1; }

void gs_run_team(int32_t n_threads, void (*body)(void*, int32_t, int32_t), void* context) {
    if (n_threads <= 1 || !shared.parallel) {
        body(context, 0, 1);
        return;
    }
    Team team = {body, context};
    shared.parallel(run_member, &team, (unsigned)n_threads, 0);
}
