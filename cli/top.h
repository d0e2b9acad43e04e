/* top.h: the picture of `afd top`: what it shows, and how it is drawn on a curses screen. */
#ifndef AFD_CLI_TOP_H
#define AFD_CLI_TOP_H

#include "cli/cli.h"

struct top_view {
    json_t *now;              /* of /afd/v1/cluster; each rank with `seen_s`, when it told something new */
    json_t *before;           /* "ranks" as they were before they told that */
    json_t *history, *events; /* of /afd/v1/history, /afd/v1/events; NULL: none */
    struct afd_error failure; /* why there is nothing newer; "" */
    uint32_t scroll;          /* the first rank that is shown */
    int is_utf8;
};

/* The terminal of TERM, before curses is started: 0: it can place the cursor; 1: it only prints lines; -1:
 * nobody knows it. */
int top_terminal_look(void);
/* Once curses is started: the colours. */
void top_init_colours(void);
/* The same process among a cluster's ranks; NULL: it is not there. */
json_t *top_find_rank(const json_t *cluster, const json_t *rank);
/* The whole screen, whatever its size is. Changes `scroll` when it is too far. */
void top_draw(struct top_view *view);

#endif
