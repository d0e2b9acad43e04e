/* status.h: the one status type of the tree.
 *
 * 0 is success; positive values mean "not now, try later" and are no failures; negative values are failures,
 * grouped by what they break: one request, one peer, the device, or this process. Whoever first knows the
 * cause logs it once, in words; everybody else passes the status on. */
#ifndef AFD_BASE_STATUS_H
#define AFD_BASE_STATUS_H

enum afd_status {
    AFD_OK = 0,
    AFD_AGAIN = 1,   /* no resources now: poll, then call again */
    AFD_PENDING = 2, /* under way: its completion will be reported */

    /* one request */
    AFD_ERR_REQUEST = -1,   /* malformed or out of range */
    AFD_ERR_LIMIT = -2,     /* over a stated limit */
    AFD_ERR_CANCELLED = -3, /* taken back by who asked */
    AFD_ERR_DEADLINE = -4,  /* its deadline passed */

    /* one peer */
    AFD_ERR_PEER = -10,     /* lost: died, closed or poisoned */
    AFD_ERR_PROTOCOL = -11, /* sent bytes that break the protocol */
    AFD_ERR_REFUSED = -12,  /* one side refused the other, with words */

    /* the device */
    AFD_ERR_DEVICE = -20,
    AFD_ERR_DEVICE_MEMORY = -21,

    /* this process */
    AFD_ERR_CONFIG = -30, /* configuration, topology or checkpoint cannot be used */
    AFD_ERR_IO = -31,
    AFD_ERR_MEMORY = -32,
};

/* A stable lower-case name, for logs and JSON; never NULL. */
const char *afd_status_name(enum afd_status status);

/* What a daemon that fails ends with. Unusable: its configuration, checkpoint, secret or version cannot work,
 * and the same start would end the same way, so whoever keeps it running does not try again. */
enum { AFD_EXIT_FAILED = 1, AFD_EXIT_UNUSABLE = 2 };

/* 0 for AFD_OK, else one of the two. */
int afd_exit_status(enum afd_status status);

#endif
