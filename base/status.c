#include "base/status.h"

const char *afd_status_name(enum afd_status status)
{
    switch (status) {
    case AFD_OK:
        return "ok";
    case AFD_AGAIN:
        return "again";
    case AFD_PENDING:
        return "pending";
    case AFD_ERR_REQUEST:
        return "bad request";
    case AFD_ERR_LIMIT:
        return "over a limit";
    case AFD_ERR_CANCELLED:
        return "cancelled";
    case AFD_ERR_DEADLINE:
        return "deadline passed";
    case AFD_ERR_PEER:
        return "peer lost";
    case AFD_ERR_PROTOCOL:
        return "protocol violation";
    case AFD_ERR_REFUSED:
        return "refused";
    case AFD_ERR_DEVICE:
        return "device failure";
    case AFD_ERR_DEVICE_MEMORY:
        return "out of device memory";
    case AFD_ERR_CONFIG:
        return "unusable configuration";
    case AFD_ERR_IO:
        return "input/output error";
    case AFD_ERR_MEMORY:
        return "out of memory";
    }
    return "unknown status";
}

int afd_exit_status(enum afd_status status)
{
    if (status == AFD_OK) return 0;
    return status == AFD_ERR_CONFIG || status == AFD_ERR_REFUSED ? AFD_EXIT_UNUSABLE : AFD_EXIT_FAILED;
}
