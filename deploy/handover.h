/* handover.h: what a supervisor on another host is given before it starts: the cluster secret and the bytes
 * of the topology, over a pipe, so that neither stands in a command line or a log.
 *
 *   afd VERSION PROTOCOL BYTES\n      both versions must be those of the receiving program
 *   64 hexadecimal characters\n       the secret
 *   BYTES bytes                       the topology file, as it is: every daemon compares its hash
 *
 * The bytes are hostile until they are read; the caller owns what is returned. Reading blocks until the other
 * side closes. */
#ifndef AFD_DEPLOY_HANDOVER_H
#define AFD_DEPLOY_HANDOVER_H

#include <stddef.h>

#include "base/error.h"
#include "proto/channel.h"

struct afd_handover {
    char secret[2 * AFD_SECRET_BYTES + 1];
    char *topology; /* not text: `bytes` of it */
    size_t bytes;
};

/* Of DIR/secret and DIR/topology.yaml. */
enum afd_status afd_handover_load(const char *dir, struct afd_handover *out, struct afd_error *error_out);
/* Writes both into DIR, mode 0600. */
enum afd_status afd_handover_store(const struct afd_handover *handover, const char *dir,
                                   struct afd_error *error_out);
/* AFD_ERR_CONFIG with words, also when the sender is another version of afd. */
enum afd_status afd_handover_read(int fd, struct afd_handover *out, struct afd_error *error_out);
/* As it is sent; to be freed. */
char *afd_handover_message(const struct afd_handover *handover, size_t *bytes_out);
void afd_handover_free(struct afd_handover *handover);

#endif
