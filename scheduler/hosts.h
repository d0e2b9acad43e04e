/* hosts.h: the supervisors, one a host, that start and stop the processes which the cluster wants there.
 *
 * A supervisor connects as a rank does and says HostRegister; it is told, then and at each change, all ranks
 * that are to run on its host (HostRun), and reports what became of them (HostReport), which the cluster core
 * hears of. A host without one has its processes started by somebody else. One thread; nothing blocks; a
 * supervisor that says nonsense loses its connection alone. */
#ifndef AFD_SCHEDULER_HOSTS_H
#define AFD_SCHEDULER_HOSTS_H

#include "proto/channel.h"
#include "scheduler/cluster.h"

struct afd_hosts;

struct afd_hosts *afd_hosts_create(struct afd_cluster *cluster); /* NULL: out of memory */
void afd_hosts_destroy(struct afd_hosts *hosts);                 /* NULL is allowed */

/* A message of a connection that is no rank's: 1 when it was a supervisor's. */
int afd_hosts_message(struct afd_hosts *hosts, uint64_t connection, struct afd_channel *channel,
                      const Afd__Envelope *message);
void afd_hosts_closed(struct afd_hosts *hosts,
                      uint64_t connection); /* ignored when it is not a supervisor's */
/* A process can be started on the host: its supervisor is there, or no host has one, and others start them.
 */
int afd_hosts_can_start(const struct afd_hosts *hosts, const char *host);
void afd_hosts_run(struct afd_hosts *hosts); /* tells each what is to run */

#endif
