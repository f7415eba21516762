// Packing that begins before anybody needs its result.
#include "kernels.h"
#include "threads.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace {

int64_t bytes_of(const gs_early_job& job) { return job.n_rows * ((job.width * job.bits + 7) / 8); }

// Give back whole pages of a private mapping nobody has written to; they are read again where they are needed.
void forget(const uint8_t* from, int64_t n_bytes) {
#if defined(__linux__)
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t begin = ((uintptr_t)from + page - 1) / page * page, end = ((uintptr_t)from + n_bytes) / page * page;
    if (begin < end) madvise((void*)begin, end - begin, MADV_DONTNEED);
#endif
}

}  // namespace

int32_t gs_do_early(gs_early_job* job) {
    int32_t found = 0;
    if (!__atomic_compare_exchange_n(&job->state, &found, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE)) return found;
    if (job->bits <= 8) gs_pack_quantized(job->plain, job->packed, job->width, job->n_rows, job->bits);
    else gs_pack_groups(job->plain, job->packed, job->width, job->n_rows, job->bits / 8);
    __atomic_store_n(&job->state, 2, __ATOMIC_RELEASE);
    return 0;
}

void gs_pack_early(gs_early_job* jobs, int64_t n_jobs, const int32_t* is_over) {
    gs_be_alone(true);
    for (gs_early_job* job = jobs; job < jobs + n_jobs && !__atomic_load_n(is_over, __ATOMIC_RELAXED); job++)
        if (gs_do_early(job) == 0) forget(job->plain, bytes_of(*job));
    gs_be_alone(false);
}
