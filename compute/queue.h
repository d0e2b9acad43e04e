/* queue.h: ops from the owner's thread to the device's thread, and their completions back: one ring, one
 * producer, one consumer. Internal to compute/.
 *
 * An entry is submitted (owner), begun and done (device), reported (owner, by poll): it keeps its place in
 * the ring until then, so completions need no room of their own. Quiet ops that succeeded are passed over. */
#ifndef AFD_COMPUTE_QUEUE_H
#define AFD_COMPUTE_QUEUE_H

#include "compute/backend.h"

/* Starts the device thread and its team. The device's back end is open. */
enum afd_status afd_queue_create(struct afd_device *device, struct afd_error *error_out);
/* Waits for the op that runs; those behind it are dropped. NULL is allowed. */
void afd_queue_destroy(struct afd_queue *queue);

/* Any thread: the owner looks again, if it sleeps. */
void afd_queue_wake(struct afd_queue *queue);

#endif
