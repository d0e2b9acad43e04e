/* agent.h: a supervisor's side of its connection to the scheduler: what runs on one host, and what is to run
 * there.
 *
 * Says HostRegister when the connection is open, HostReport when something changed, and hands each HostRun to
 * its owner. While the scheduler is away it tries again with back-off, without end: what runs goes on, and
 * the supervisor needs nobody for that. Bytes of the scheduler are checked: a rank that is not of the host is
 * left out. One thread (the base's); nothing blocks. A failure reaches this connection alone. */
#ifndef AFD_DEPLOY_AGENT_H
#define AFD_DEPLOY_AGENT_H

#include <event2/event.h>

#include "deploy/topology.h"
#include "proto/channel.h"

enum { AFD_AGENT_WORDS_BYTES = 128 };

struct afd_agent;

/* One rank, as reported, or (role, rank and start alone) as asked for. */
struct afd_agent_rank {
    enum afd_role role;
    uint32_t rank, start, restarts;
    uint32_t pid;                      /* 0: none */
    const char *state;                 /* a literal */
    char words[AFD_AGENT_WORDS_BYTES]; /* why it does not run */
};

struct afd_agent_config {
    struct event_base *base;
    const struct afd_topology *topology; /* lives longer than the agent */
    const char *host;                    /* as the topology names it; the same */
    uint8_t secret[AFD_SECRET_BYTES];
    uint32_t limit; /* ranks that can ever run on the host */
    /* The ranks that are to run here or still do; `out` takes `limit` of them. */
    uint32_t (*list)(const char *host, struct afd_agent_rank *out, void *user);
    /* All ranks that are to run on `host`, each once. */
    void (*run)(const char *host, const struct afd_agent_rank *ranks, uint32_t count, void *user);
    void *user;
};

/* NULL when out of memory. Connects when it is told where to. */
struct afd_agent *afd_agent_create(const struct afd_agent_config *config);
void afd_agent_destroy(struct afd_agent *agent); /* NULL is allowed */
/* Where the scheduler listens for control connections, "host:port". The same again: no effect. */
void afd_agent_connect(struct afd_agent *agent, const char *scheduler);
/* Something changed: it is reported when the loop comes round. */
void afd_agent_changed(struct afd_agent *agent);

#endif
