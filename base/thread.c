#include "base/thread.h"

#include <sched.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The kernel's sched_attr, first version; libcs declare it only lately. */
struct attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period; /* runtime: of the other policies, the slice; from Linux 6.12 */
};

static void set(uint32_t policy, uint64_t slice_ns)
{
    struct attributes a = {.size = sizeof a};
    if (syscall(SYS_sched_getattr, 0, &a, sizeof a, 0)) return;
    if (a.policy != SCHED_OTHER && a.policy != SCHED_BATCH) return; /* whoever started us chose another */
    a.size = sizeof a;
    a.policy = policy;
    a.runtime = slice_ns;
    syscall(SYS_sched_setattr, 0, &a, 0);
}

void afd_thread_computes(void)
{
    set(SCHED_BATCH, 10000000);
}

void afd_thread_answers(void)
{
    set(SCHED_OTHER, 100000);
}
