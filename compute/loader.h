/* loader.h: shards that a device loads while it computes. Internal to compute/; the functions for the owner
 * are in compute.h. */
#ifndef AFD_COMPUTE_LOADER_H
#define AFD_COMPUTE_LOADER_H

#include "compute/backend.h"

int afd_loader_is_over(
    const struct afd_loader *loader);               /* a load is, and was not reported; NULL is allowed */
void afd_loader_destroy(struct afd_loader *loader); /* waits for a load under way; NULL is allowed */

#endif
