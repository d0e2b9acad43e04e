#include "transport/backend.h"

static enum afd_status verbs_open(struct afd_transport *t, struct afd_error *error_out)
{
    (void)t;
    return afd_fail(error_out, AFD_ERR_REFUSED, "not built");
}

const struct afd_backend afd_backend_verbs = {.name = "verbs", .way = AFD_WAY_VERBS, .open = verbs_open};
