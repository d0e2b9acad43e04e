/* chaos_faults.h: the table of what is done to a cluster, and how long a stream may stand still for it. */
#ifndef AFD_BENCH_CHAOS_FAULTS_H
#define AFD_BENCH_CHAOS_FAULTS_H

#include "bench/chaos_site.h"

struct fault;

/* One fault as it is done. */
struct deed {
    struct site *site;
    const struct fault *fault;
    uint32_t victim;       /* number of a rank, drawn */
    pid_t killed, stopped; /* 0: nobody was */
    afd_ns begun, over;    /* set by fault_do: when it began, and when the cluster was left alone again */
    char words[400]; /* why it could not be done, or what of the cluster's answers was wrong; "": all good */
};

struct fault {
    const char *name;
    enum site_shape shape;
    const char *help;
    int bound_ms;  /* longest gap that is allowed, or three times the undisturbed one's if that is more */
    int has_lease; /* it is found out by the lease only: that is added to the bound */
    int has_load;  /* the time for which lost shards are loaded is added */
    void (*act)(struct deed *deed);
    const char *role;                              /* of the victim; NULL: none */
    const char *arguments;                         /* of `afd`, for those that are commands */
    int signal;                                    /* for those that are signals */
    uint32_t attn_from, ffn_from, attn_to, ffn_to; /* instances before and after; 0: the usual ones */
    const char *method, *path;                     /* of the endpoint that it needs; NULL: none */
};

extern const struct fault faults[];
extern const size_t fault_count;

/* NULL: the fault can be done; else why not, in the server's own words. malloc'ed. The cluster runs. */
char *fault_why_not(struct site *site, const struct fault *fault);
/* The instances that it begins with. NULL, or words. malloc'ed. */
char *fault_prepare(struct site *site, const struct fault *fault);
/* Does it, under load, and undoes what has to be undone. */
void fault_do(struct deed *deed);

#endif
