#include "deploy/supervisor.h"

#include <assert.h>
#include <stdlib.h>

enum { SCHEDULER = 0, LAST_STAGE = 2, ACTIONS_A_CHILD = 4 };

struct child {
    enum afd_child_state state;
    uint32_t stage;
    uint32_t restarts, in_a_row;
    afd_ns started, due;                             /* due: in BACKOFF */
    afd_ns failures[AFD_SUPERVISOR_WINDOW_FAILURES]; /* a ring */
    uint32_t failure_count;
};

struct afd_supervisor {
    struct afd_supervisor_config config;
    struct child *children;
    struct afd_supervisor_action *actions; /* a queue that never fills: see push */
    uint32_t first, count, limit;
    int scheduler_is_up, stopping, killed, done;
    uint32_t stage; /* being stopped */
    afd_ns kill_at;
};

const char *afd_child_state_name(enum afd_child_state state)
{
    static const char *const names[] = {"waiting", "running", "backoff", "stopping", "exited", "failed"};
    return names[state];
}

struct afd_supervisor *afd_supervisor_create(const struct afd_supervisor_config *config)
{
    struct afd_supervisor *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->config = *config;
    s->limit = config->children * ACTIONS_A_CHILD + 1;
    s->children = calloc(config->children, sizeof *s->children);
    s->actions = calloc(s->limit, sizeof *s->actions);
    if (!s->children || !s->actions) {
        afd_supervisor_destroy(s);
        return NULL;
    }
    for (uint32_t i = 0; i < config->children; i++) s->children[i].stage = i == SCHEDULER ? 0 : 1;
    return s;
}

void afd_supervisor_destroy(struct afd_supervisor *s)
{
    if (!s) return;
    free(s->children);
    free(s->actions);
    free(s);
}

void afd_supervisor_set_stage(struct afd_supervisor *s, uint32_t child, uint32_t stage)
{
    assert(child != SCHEDULER && child < s->config.children && stage > 0 && stage <= LAST_STAGE);
    s->children[child].stage = stage;
}

/* The shell takes all actions after each report, and one report adds at most three a child. */
static void push(struct afd_supervisor *s, enum afd_supervisor_action_kind kind, uint32_t child)
{
    assert(s->count < s->limit);
    s->actions[(s->first + s->count++) % s->limit] = (struct afd_supervisor_action){kind, child};
}

int afd_supervisor_next(struct afd_supervisor *s, struct afd_supervisor_action *action_out)
{
    if (!s->count) return 0;
    *action_out = s->actions[s->first];
    s->first = (s->first + 1) % s->limit;
    s->count--;
    return 1;
}

static void start(struct afd_supervisor *s, uint32_t i, afd_ns now)
{
    s->children[i].state = AFD_CHILD_RUNNING;
    s->children[i].started = now;
    push(s, AFD_SUPERVISE_START, i);
}

void afd_supervisor_begin(struct afd_supervisor *s, afd_ns now)
{
    start(s, SCHEDULER, now);
}

void afd_supervisor_scheduler_up(struct afd_supervisor *s, afd_ns now)
{
    s->scheduler_is_up = 1;
    if (s->stopping) return;
    for (uint32_t i = 1; i < s->config.children; i++)
        if (s->children[i].state == AFD_CHILD_WAITING) start(s, i, now);
}

static int is_alive(const struct child *c)
{
    return c->state == AFD_CHILD_RUNNING || c->state == AFD_CHILD_STOPPING;
}

/* Asks the children of the stage to finish; with none left alive in it, those of the next one. */
static void stop_stage(struct afd_supervisor *s)
{
    for (; s->stage <= LAST_STAGE; s->stage++) {
        int alive = 0;
        for (uint32_t i = 0; i < s->config.children; i++) {
            struct child *c = &s->children[i];
            if (c->stage != s->stage || !is_alive(c)) continue;
            alive = 1;
            if (c->state == AFD_CHILD_STOPPING) continue;
            c->state = AFD_CHILD_STOPPING;
            push(s, AFD_SUPERVISE_TERM, i);
        }
        if (alive) return;
    }
    if (!s->done) push(s, AFD_SUPERVISE_DONE, 0);
    s->done = 1;
}

void afd_supervisor_stop(struct afd_supervisor *s, afd_ns now)
{
    if (s->stopping) return;
    s->stopping = 1;
    s->stage = 0;
    s->kill_at = now + s->config.drain;
    for (uint32_t i = 0; i < s->config.children; i++)
        if (s->children[i].state == AFD_CHILD_WAITING || s->children[i].state == AFD_CHILD_BACKOFF)
            s->children[i].state = AFD_CHILD_EXITED;
    stop_stage(s);
}

/* Records a failure; 1 when it was one too many. */
static int failed_too_often(const struct afd_supervisor *s, struct child *c, afd_ns now)
{
    c->failures[c->failure_count++ % AFD_SUPERVISOR_WINDOW_FAILURES] = now;
    if (c->failure_count < AFD_SUPERVISOR_WINDOW_FAILURES) return 0;
    afd_ns oldest = c->failures[c->failure_count % AFD_SUPERVISOR_WINDOW_FAILURES];
    return now - oldest <= s->config.window;
}

void afd_supervisor_exited(struct afd_supervisor *s, uint32_t i, enum afd_child_end end, afd_ns now)
{
    struct child *c = &s->children[i];
    assert(is_alive(c));
    if (s->stopping || (end == AFD_CHILD_DONE && i != SCHEDULER)) {
        c->state = AFD_CHILD_EXITED;
        if (s->stopping) stop_stage(s);
        return;
    }
    if (i == SCHEDULER) s->scheduler_is_up = 0;
    if (failed_too_often(s, c, now) || end == AFD_CHILD_UNUSABLE) {
        c->state = AFD_CHILD_FAILED;
        push(s, AFD_SUPERVISE_GIVE_UP, i);
        if (i == SCHEDULER) afd_supervisor_stop(s, now);
        return;
    }
    if (now - c->started >= s->config.window) c->in_a_row = 0;
    afd_ns wait = s->config.backoff_first;
    for (uint32_t n = 0; n < c->in_a_row && wait < s->config.backoff_most; n++) wait *= 2;
    c->in_a_row++;
    c->state = AFD_CHILD_BACKOFF;
    c->due = now + (wait < s->config.backoff_most ? wait : s->config.backoff_most);
}

void afd_supervisor_tick(struct afd_supervisor *s, afd_ns now)
{
    if (s->stopping) {
        if (s->killed || now < s->kill_at) return;
        s->killed = 1;
        for (uint32_t i = 0; i < s->config.children; i++)
            if (is_alive(&s->children[i])) {
                s->children[i].state = AFD_CHILD_STOPPING;
                push(s, AFD_SUPERVISE_KILL, i);
            }
        return;
    }
    for (uint32_t i = 0; i < s->config.children; i++) {
        struct child *c = &s->children[i];
        if (c->state != AFD_CHILD_BACKOFF || now < c->due) continue;
        c->restarts++;
        if (i != SCHEDULER && !s->scheduler_is_up)
            c->state = AFD_CHILD_WAITING;
        else
            start(s, i, now);
    }
}

afd_ns afd_supervisor_deadline(const struct afd_supervisor *s)
{
    if (s->stopping) return s->killed || s->done ? UINT64_MAX : s->kill_at;
    afd_ns next = UINT64_MAX;
    for (uint32_t i = 0; i < s->config.children; i++)
        if (s->children[i].state == AFD_CHILD_BACKOFF && s->children[i].due < next) next = s->children[i].due;
    return next;
}

enum afd_child_state afd_supervisor_state(const struct afd_supervisor *s, uint32_t child)
{
    return s->children[child].state;
}

uint32_t afd_supervisor_restarts(const struct afd_supervisor *s, uint32_t child)
{
    return s->children[child].restarts;
}

int afd_supervisor_is_stopping(const struct afd_supervisor *s)
{
    return s->stopping;
}
