#include "attn_node/patience.h"

enum { PERIOD_MS = 5000, ENOUGH = 32 };

static afd_ns longest(const struct afd_patience *p)
{
    return p->longest[0] > p->longest[1] ? p->longest[0] : p->longest[1];
}

void afd_patience_learn(struct afd_patience *p, afd_ns round_trip, int was_late, afd_ns now)
{
    afd_ns most = longest(p);
    if (was_late && most && round_trip > most + most / 4) round_trip = most + most / 4;
    if (!p->answers || now - p->began >= AFD_MS(PERIOD_MS)) {
        p->longest[1] = p->longest[0];
        p->longest[0] = 0;
        p->began = now;
    }
    if (round_trip > p->longest[0]) p->longest[0] = round_trip;
    if (p->answers < ENOUGH) p->answers++;
}

int afd_patience_is_learned(const struct afd_patience *p)
{
    return p->answers == ENOUGH;
}

afd_ns afd_patience_deadline(const struct afd_patience *p, const struct afd_patience_config *config)
{
    afd_ns deadline = longest(p) * config->factor;
    if (!afd_patience_is_learned(p) || deadline > config->ceiling) return config->ceiling;
    return deadline > config->floor ? deadline : config->floor;
}
