/* rows_memory.h: where a rank's rows lie when its messages are in two pieces (transport.h): in the GPU's own
 * memory, which peers then write by RDMA, or in the host's.
 *
 * Belongs to the rank; its device and transport outlive it but for close, which comes when the transport is
 * closed. One thread; open blocks. A failure is the rank's start. */
#ifndef AFD_TRANSPORT_ROWS_MEMORY_H
#define AFD_TRANSPORT_ROWS_MEMORY_H

#include "compute/compute.h"
#include "transport/transport.h"

struct afd_rows_memory {
    unsigned char *base; /* zeroed, whole pages, registered */
    uint64_t bytes;
    int is_local; /* the device's own: no CPU touches it */
};

/* `where` host: in the host's. gpu: in the device's where that has memory of its own, or AFD_ERR_REFUSED with
 * words. auto: the host's where it cannot be the device's; the log says why. */
enum afd_status afd_rows_memory_open(struct afd_device *device, struct afd_transport *transport,
                                     enum afd_rows_where where, uint64_t bytes, struct afd_rows_memory *out,
                                     struct afd_error *error_out);
void afd_rows_memory_close(struct afd_device *device,
                           struct afd_rows_memory *rows); /* NULL base is allowed */

#endif
