#include "transport/backend.h"

static enum afd_status shm_open(struct afd_transport *t, struct afd_error *error_out)
{
    (void)t;
    return afd_fail(error_out, AFD_ERR_REFUSED, "not built");
}

const struct afd_backend afd_backend_shm = {.name = "shm", .way = AFD_WAY_SHM, .open = shm_open};
