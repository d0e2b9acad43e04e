/* rank_reports.h: what a rank says to the scheduler, as the cores take it: fields in the cores' own words,
 * what cannot be left out or marked as a defect.
 *
 * Pure functions of a message. What they return points into it, and is valid as long as it is. Bytes come
 * from outside: protobuf-c has checked their form, not what they mean. */
#ifndef AFD_SCHEDULER_RANK_REPORTS_H
#define AFD_SCHEDULER_RANK_REPORTS_H

#include "proto/afd.pb-c.h"
#include "scheduler/cluster.h"
#include "scheduler/requests.h"

enum afd_role afd_hear_role(Afd__Role role); /* AFD_ROLE_COUNT: it is none */
/* The set of them; shards that no topology has are left out. */
uint64_t afd_hear_shards(const uint32_t *shards, size_t count);
struct afd_cluster_registration afd_hear_register(const Afd__Register *message, uint64_t connection);
/* `request`: the one that it says it is of; NULL: there is none such, and it is dropped. */
struct afd_requests_report afd_hear_tokens(const Afd__SequenceTokens *message,
                                           const struct afd_request *request, uint32_t vocab);

#endif
