#include "base/stages.h"

const char *afd_stage_name(enum afd_stage stage)
{
    static const char *const names[AFD_STAGE_COUNT] = {"compute", "group", "send", "wait", "bubble", "idle"};
    return stage < AFD_STAGE_COUNT ? names[stage] : "unknown";
}

void afd_stages_init(struct afd_stages *stages, afd_ns now)
{
    *stages = (struct afd_stages){.now = AFD_STAGE_IDLE, .since = now};
}

void afd_stages_enter(struct afd_stages *stages, enum afd_stage stage, afd_ns now)
{
    stages->total[stages->now] += now - stages->since;
    stages->now = stage;
    stages->since = now;
}

void afd_stages_move(struct afd_stages *stages, enum afd_stage from, enum afd_stage to, afd_ns ns)
{
    if (ns > stages->total[from]) ns = stages->total[from];
    stages->total[from] -= ns;
    stages->total[to] += ns;
}
