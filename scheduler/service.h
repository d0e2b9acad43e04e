/* service.h: the shell around the cores: control connections to the ranks, and sequences that run on them.
 *
 * Owns the cluster and request cores, listens for ranks, carries out what the cores decide, and hands tokens
 * to whoever submitted a sequence. One thread (the base's); nothing blocks. What a rank says wrongly costs
 * its sequence, or its connection; never the scheduler.
 *
 * A sequence: the caller owns `struct afd_sequence` and all it points to from afd_service_submit, or
 * _restore, until it calls afd_service_forget. It is submitted, perhaps with others, made durable by
 * afd_service_commit, and begun. `accepted` and `failed` are called from the loop, never from within these;
 * what `accepted` tells is in the journal. */
#ifndef AFD_SCHEDULER_SERVICE_H
#define AFD_SCHEDULER_SERVICE_H

#include <event2/event.h>

#include "model/model.h"
#include "proto/channel.h"
#include "scheduler/cluster.h"
#include "scheduler/event_log.h"
#include "scheduler/journal_writer.h"
#include "scheduler/straggler.h"
#include "scheduler/tracing.h"

struct afd_service;

struct afd_service_config {
    struct event_base *base;
    const struct afd_topology *topology; /* lives longer than the service */
    const struct afd_model *model;       /* the same */
    uint8_t model_hash[AFD_HASH_BYTES];
    uint8_t secret[AFD_SECRET_BYTES];
    const char *state; /* folder of the journal; NULL: none is kept */
    /* The turn of the scheduler itself has come in a restart. From the loop. */
    void (*end)(void *user);
    void *user;
};

struct afd_sequence {
    struct afd_written written; /* first; `known` is the caller's, but its id is set by submit */
    /* What was accepted of a message; tokens and log-probabilities are checked: as many as asked for, ids
     * within the vocabulary. Those of the message's prompt log-probabilities from `first_prompt_logprob` on
     * are new. With finish STOP or LENGTH it was the last. */
    void (*accepted)(struct afd_sequence *sequence, const Afd__SequenceTokens *message,
                     uint32_t first_prompt_logprob, enum afd_finish finish);
    void (*failed)(struct afd_sequence *sequence, enum afd_status status, const char *words);
    afd_ns submitted; /* when an attention rank was first given it; 0: not yet. The service's */
};

/* Takes over `fd`, a listening socket for ranks; reads the journal. Ranks are accepted once it starts. */
struct afd_service *afd_service_create(const struct afd_service_config *config, int fd,
                                       struct afd_error *error_out);
void afd_service_destroy(struct afd_service *service); /* NULL is allowed */

/* What the journal has: [*count_out] entries, those with id 0 or is_forgotten free. */
const struct afd_journal_entry *afd_service_journal(const struct afd_service *service, size_t *count_out);
/* A sequence of the journal, with all it knows; it has no client until then. AFD_ERR_REQUEST: not possible.
 */
enum afd_status afd_service_restore(struct afd_service *service, struct afd_sequence *sequence, afd_ns until);
void afd_service_start(struct afd_service *service); /* what was not restored by now is forgotten */
/* Before it is destroyed in order: all that is known is written, and from now on nothing is taken, sent or
 * written any more. What runs is left to the next service on the same journal. */
void afd_service_seal(struct afd_service *service);

/* AFD_ERR_LIMIT: the queue is full. */
enum afd_status afd_service_submit(struct afd_service *service, struct afd_sequence *sequence);
/* AFD_ERR_IO: what was submitted could not be written, and is to be forgotten. */
enum afd_status afd_service_commit(struct afd_service *service);
int afd_service_accepts(const struct afd_service *service); /* 0: the disk is full, and a commit would fail */
void afd_service_begin(struct afd_service *service, struct afd_sequence *sequence);
/* It ended by what its text says, if it runs. */
void afd_service_end(struct afd_service *service, struct afd_sequence *sequence);
/* Nobody wants it any more, whether it runs or has ended. */
void afd_service_forget(struct afd_service *service, struct afd_sequence *sequence);
/* Its client left, and may come back until then; 0: it is there again. */
void afd_service_detach(struct afd_service *service, struct afd_sequence *sequence, afd_ns until);

/* What an operator asks for: as afd_cluster_scale and its neighbours. */
enum afd_status afd_service_scale(struct afd_service *service, uint32_t attn, uint32_t ffn,
                                  struct afd_error *error_out);
enum afd_status afd_service_drain(struct afd_service *service, struct afd_cluster_rank rank,
                                  struct afd_error *error_out);
enum afd_status afd_service_restart(struct afd_service *service, const struct afd_cluster_rank *ranks,
                                    uint32_t count, int with_scheduler, struct afd_error *error_out);

const struct afd_straggler *afd_service_straggler(const struct afd_service *service);
uint32_t afd_service_layers(const struct afd_service *service); /* of the model */
struct event_base *afd_service_base(const struct afd_service *service);
const struct afd_cluster *afd_service_cluster(const struct afd_service *service);
const struct afd_requests *afd_service_requests(const struct afd_service *service);
/* The last heartbeat of a member (index of afd_cluster_at), to be freed with afd__heartbeat__free_unpacked;
 * NULL when it has sent none. */
Afd__Heartbeat *afd_service_heartbeat(const struct afd_service *service, uint32_t member);
/* How far a member is with its weights, by its own words of some seconds ago; NULL: it does not load, or is
 * done within seconds. */
struct afd_service_loading {
    uint64_t bytes, total_bytes; /* bytes: at most all of them */
    afd_ns spent;
};
const struct afd_service_loading *afd_service_loading(const struct afd_service *service, uint32_t member);
struct afd_tracing *afd_service_tracing(struct afd_service *service);
/* What happened to the cluster lately. */
const struct afd_event_log *afd_service_events(const struct afd_service *service);

#endif
