#include "sim/world.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum {
    CHUNK_BYTES = 1 << 18,
    LARGEST_POOLED = 1 << 16,
    LOOK_MS = 5, /* how often it is looked whether all has come to an end */
};

/* ---- memory: powers of two from 32 bytes on, each with a free list; larger pieces by themselves */

struct sim_chunk {
    struct sim_chunk *next;
    uint64_t padding;
    unsigned char bytes[];
};

static uint32_t size_class(size_t bytes)
{
    uint32_t class = 0;
    while (((size_t)32 << class) < bytes) class ++;
    return class;
}

static unsigned char *add_chunk(struct sim_world *w, size_t bytes)
{
    struct sim_chunk *chunk = malloc(sizeof *chunk + bytes);
    if (!chunk) sim_fail(w, "out of memory");
    chunk->next = w->chunks;
    w->chunks = chunk;
    return chunk->bytes;
}

void *sim_alloc(struct sim_world *w, size_t bytes)
{
    if (bytes > LARGEST_POOLED) return add_chunk(w, bytes);
    uint32_t class = size_class(bytes);
    void *p = w->free_memory[class];
    if (p) {
        w->free_memory[class] = *(void **)p;
        return p;
    }
    size_t size = (size_t)32 << class;
    if ((size_t)(w->chunk_end - w->chunk_at) < size) {
        w->chunk_at = add_chunk(w, CHUNK_BYTES);
        w->chunk_end = w->chunk_at + CHUNK_BYTES;
    }
    p = w->chunk_at;
    w->chunk_at += size;
    return p;
}

void *sim_zero(struct sim_world *w, size_t count, size_t bytes)
{
    size_t all = count * bytes + (count * bytes == 0);
    return memset(sim_alloc(w, all), 0, all);
}

void sim_free(struct sim_world *w, void *p, size_t bytes)
{
    if (!p || bytes > LARGEST_POOLED) return; /* large pieces are few, and end with the run */
    uint32_t class = size_class(bytes);
    *(void **)p = w->free_memory[class];
    w->free_memory[class] = p;
}

/* ---- words */

static const char *const kind_names[SIM_KINDS] = {"scheduler", "attn", "ffn"};

static void print_line(const struct sim_trace_line *l, char *out, size_t bytes)
{
    int n = snprintf(out, bytes, "%12.6f ms  #%" PRIu64 "  ", (double)l->at * 1e-6, l->step);
    if (l->node && l->node->kind != SIM_SCHEDULER)
        n += snprintf(out + n, bytes - (size_t)n, "%s/%u ", kind_names[l->node->kind], l->node->rank);
    else if (l->node)
        n += snprintf(out + n, bytes - (size_t)n, "scheduler ");
    unsigned long long v[5];
    for (int i = 0; i < 5; i++) v[i] = l->values[i];
    snprintf(out + n, bytes - (size_t)n, l->format, v[0], v[1], v[2], v[3], v[4]);
}

void sim_trace_add(struct sim_world *w, const struct sim_node *node, const char *format, uint64_t v0,
                   uint64_t v1, uint64_t v2, uint64_t v3, uint64_t v4)
{
    struct sim_trace_line *l = &w->trace[w->trace_count++ % SIM_TRACE];
    *l = (struct sim_trace_line){w->now, w->steps, node, format, {v0, v1, v2, v3, v4}};
    if (!w->config.trace) return;
    char line[256];
    print_line(l, line, sizeof line);
    fprintf(w->config.trace, "%s\n", line);
}

void sim_trace_words(struct sim_world *w, const struct sim_node *node, const char *words)
{
    size_t bytes = strlen(words) + 1;
    char *copy = memcpy(sim_alloc(w, bytes), words, bytes);
    for (char *at = copy; (at = strchr(at, '%'));) *at = '/'; /* it becomes a format */
    sim_trace(w, node, copy);
}

static void keep_trace(struct sim_world *w)
{
    size_t used = 0;
    uint64_t first = w->trace_count > SIM_TRACE ? w->trace_count - SIM_TRACE : 0;
    for (uint64_t i = first; i < w->trace_count; i++) {
        char line[256];
        print_line(&w->trace[i % SIM_TRACE], line, sizeof line);
        size_t bytes = strlen(line);
        if (used + bytes + 2 > sizeof w->result->last) break;
        memcpy(w->result->last + used, line, bytes);
        used += bytes;
        w->result->last[used++] = '\n';
    }
    w->result->last[used] = 0;
}

void sim_fail(struct sim_world *w, const char *format, ...)
{
    va_list args;
    w->result->failed = 1;
    va_start(args, format);
    vsnprintf(w->result->words, sizeof w->result->words, format, args);
    va_end(args);
    siglongjmp(w->out, 1);
}

/* An assertion of a core ends in abort(): the run that it happened in has failed, the others go on. The one
 * thing that a signal handler can reach is a global. */
static _Thread_local struct sim_world *running;

static void on_abort(int number)
{
    (void)number;
    if (running) siglongjmp(running->out, 2);
}

/* ---- events */

afd_ns sim_interval(struct sim_world *w, enum sim_stream stream, afd_ns mean)
{
    double u = ((double)(sim_draw(w, stream) >> 12) + 1) * 0x1p-52;
    return (afd_ns)(-log(u) * (double)mean) + 1;
}

static int is_before(const struct sim_heap_entry *a, const struct sim_heap_entry *b)
{
    return a->at < b->at || (a->at == b->at && a->order < b->order);
}

/* Four children an entry: fewer levels, and they lie side by side. */
static void heap_push(struct sim_world *w, struct sim_heap_entry entry)
{
    if (w->heap_count == w->heap_room) {
        size_t room = w->heap_room ? 2 * w->heap_room : 1024;
        struct sim_heap_entry *heap = realloc(w->heap, room * sizeof *heap);
        if (!heap) sim_fail(w, "out of memory");
        w->heap = heap;
        w->heap_room = room;
    }
    size_t i = w->heap_count++;
    while (i && is_before(&entry, &w->heap[(i - 1) / 4])) {
        w->heap[i] = w->heap[(i - 1) / 4];
        i = (i - 1) / 4;
    }
    w->heap[i] = entry;
}

static struct sim_event *heap_pop(struct sim_world *w)
{
    struct sim_event *first = w->heap[0].event;
    struct sim_heap_entry last = w->heap[--w->heap_count];
    size_t i = 0;
    for (;;) {
        size_t child = 4 * i + 1, best = child, end = child + 4;
        if (child >= w->heap_count) break;
        if (end > w->heap_count) end = w->heap_count;
        for (size_t k = child + 1; k < end; k++)
            if (is_before(&w->heap[k], &w->heap[best])) best = k;
        if (!is_before(&w->heap[best], &last)) break;
        w->heap[i] = w->heap[best];
        i = best;
    }
    w->heap[i] = last;
    return first;
}

void sim_at_process(struct sim_world *w, afd_ns at, struct sim_node *node, uint64_t process, sim_handler run,
                    void *p, uint64_t a)
{
    struct sim_event *e = w->free_events;
    if (e)
        w->free_events = e->next;
    else
        e = sim_alloc(w, sizeof *e);
    assert(at >= w->now);
    *e = (struct sim_event){.at = at, .run = run, .node = node, .process = process, .p = p, .a = a};
    heap_push(w, (struct sim_heap_entry){at, w->orders++, e});
}

void sim_at(struct sim_world *w, afd_ns at, struct sim_node *node, sim_handler run, void *p, uint64_t a)
{
    sim_at_process(w, at, node, node ? node->process : 0, run, p, a);
}

int sim_is_up(const struct sim_node *node, uint64_t process)
{
    return node->alive && node->process == process;
}

static void free_event(struct sim_world *w, struct sim_event *e)
{
    e->next = w->free_events;
    w->free_events = e;
}

static void park(struct sim_node *node, struct sim_event *e)
{
    e->next = NULL;
    if (node->parked_last)
        node->parked_last->next = e;
    else
        node->parked_first = e;
    node->parked_last = e;
}

static void run_one(struct sim_world *w, struct sim_event *e)
{
    struct sim_node *node = e->node;
    w->event_at = e->at;
    e->run(w, node, e->p, e->a);
    /* What it ran in may have ended the process. */
    if (node && sim_is_up(node, e->process)) {
        if (node->shell->after) node->shell->after(w, node);
        if (sim_is_up(node, e->process)) sim_check_step(w, node);
    }
    free_event(w, e);
}

/* What came while the process did not look. */
static void run_parked(struct sim_world *w, struct sim_node *node)
{
    while (node->parked_first && node->alive && !node->frozen) {
        struct sim_event *e = node->parked_first;
        node->parked_first = e->next;
        if (!e->next) node->parked_last = NULL;
        if (sim_is_up(node, e->process))
            run_one(w, e);
        else
            free_event(w, e);
    }
}

static void dispatch(struct sim_world *w, struct sim_event *e)
{
    struct sim_node *node = e->node;
    if (node && !sim_is_up(node, e->process)) {
        free_event(w, e);
        return;
    }
    w->steps++;
    w->digest = sim_mix(w->digest ^ e->at, node ? node->index + 1 : 0) + e->a;
    if (node && node->frozen) {
        park(node, e);
        return;
    }
    if (node) run_parked(w, node);
    if (node && !sim_is_up(node, e->process))
        free_event(w, e);
    else
        run_one(w, e);
}

void sim_hand(struct sim_world *w, struct sim_node *node, sim_handler run, void *p, uint64_t a)
{
    struct sim_event *e = w->free_events;
    if (e)
        w->free_events = e->next;
    else
        e = sim_alloc(w, sizeof *e);
    *e = (struct sim_event){.at = w->now, .run = run, .node = node, .process = node->process, .p = p, .a = a};
    if (!node->frozen && sim_bug(w, AFD_SIM_BUG_LOST_WAKE_UP, 400)) {
        park(node, e); /* the rank sleeps on until something else wakes it */
        return;
    }
    dispatch(w, e);
}

int sim_bug(struct sim_world *w, enum afd_sim_bug bug, uint32_t one_in)
{
    if (w->config.bug != bug) return 0;
    return sim_below(w, SIM_RANDOM_FAULTS, one_in) == 0 ? (int)++w->bug_count : 0;
}

/* ---- processes */

static void on_supervisor(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    (void)node, (void)p, (void)a;
    w->supervisor_at = UINT64_MAX;
    afd_supervisor_tick(w->supervisor, w->now);
    sim_supervise(w);
}

/* An event of nobody: the process does not live yet. */
static void on_start(struct sim_world *w, struct sim_node *nobody, void *p, uint64_t process)
{
    struct sim_node *node = p;
    (void)nobody;
    if (node->alive || node->process != process) return;
    node->alive = 1;
    node->is_launching = 0;
    node->frozen = 0;
    node->slow = 1;
    node->is_uneven = 0;
    node->drains = node->is_let_go = 0;
    node->incarnation = sim_draw(w, SIM_RANDOM_PROCESSES) | 1;
    node->book = sim_zero(w, 1, sizeof *node->book);
    sim_trace(w, node, "starts, process %llu", process);
    node->shell->start(w, node);
    if (node->kind != SIM_SCHEDULER) return;
    afd_supervisor_scheduler_up(w->supervisor, w->now);
    sim_supervise(w);
}

/* It says why it cannot work, and ends. */
static void on_broken(struct sim_world *w, struct sim_node *nobody, void *p, uint64_t process)
{
    struct sim_node *node = p;
    (void)nobody;
    if (node->process != process) return;
    node->is_launching = 0;
    afd_supervisor_exited(w->supervisor, node->index, AFD_CHILD_UNUSABLE, w->now);
    sim_supervise(w);
}

/* A process takes its time from exec to main's first connection. */
static void launch(struct sim_world *w, struct sim_node *node)
{
    afd_ns delay = AFD_MS(5) + sim_below(w, SIM_RANDOM_PROCESSES, AFD_MS(20));
    node->process = ++w->processes;
    node->is_launching = 1;
    node->was_broken = node->is_broken;
    sim_at(w, w->now + delay, NULL, node->is_broken ? on_broken : on_start, node, node->process);
}

static void on_term(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    (void)p, (void)a;
    node->shell->drain(w, node);
}

/* A signal: before main has a handler it ends the process. */
static void signal_process(struct sim_world *w, struct sim_node *node, int is_kill)
{
    if (node->is_launching) {
        node->is_launching = 0;
        node->process = ++w->processes; /* what was on the way to start does not */
        afd_supervisor_exited(w->supervisor, node->index, AFD_CHILD_CRASHED, w->now);
    } else if (is_kill) {
        sim_kill(w, node);
    } else if (!node->drains) {
        node->drains = 1;
        sim_at(w, w->now, node, on_term, NULL, 0);
    }
}

static void give_up(struct sim_world *w, struct sim_node *node)
{
    if (!node->was_broken && !w->t->launch.never_restart)
        sim_fail(w, "%s/%u failed too often: the faults are denser than a supervisor bears",
                 kind_names[node->kind], node->rank);
    sim_trace(w, node, "is given up");
    sim_sched_process(w, node, 1);
}

void sim_supervise(struct sim_world *w)
{
    struct afd_supervisor_action a;
    while (afd_supervisor_next(w->supervisor, &a)) {
        struct sim_node *node = &w->nodes[a.child];
        switch (a.kind) {
        case AFD_SUPERVISE_START:
            if (node->process) sim_count(w, AFD_SIM_RESTARTED);
            launch(w, node);
            break;
        case AFD_SUPERVISE_TERM:
            sim_count(w, AFD_SIM_SENT_AWAY); /* fall through */
        case AFD_SUPERVISE_KILL:
            signal_process(w, node, a.kind == AFD_SUPERVISE_KILL);
            break;
        case AFD_SUPERVISE_GIVE_UP:
            give_up(w, node);
            break;
        case AFD_SUPERVISE_DONE:
            break;
        }
    }
    afd_ns at = afd_supervisor_deadline(w->supervisor);
    if (at >= w->supervisor_at || at == UINT64_MAX) return;
    w->supervisor_at = at;
    sim_at(w, at > w->now ? at : w->now, NULL, on_supervisor, NULL, 0);
}

static void end_process(struct sim_world *w, struct sim_node *node, enum afd_child_end how)
{
    assert(node->alive);
    sim_close_all(w, node);
    sim_conns_die(w, node);
    node->alive = 0;
    node->frozen = 0;
    if (node->kind == SIM_SCHEDULER) sim_clients_cut(w);
    node->shell->destroy(node);
    node->body = NULL;
    while (node->parked_first) {
        struct sim_event *e = node->parked_first;
        node->parked_first = e->next;
        free_event(w, e);
    }
    node->parked_last = NULL;
    afd_supervisor_exited(w->supervisor, node->index, how, w->now);
    sim_supervise(w);
}

void sim_kill(struct sim_world *w, struct sim_node *node)
{
    sim_trace(w, node, "is killed");
    end_process(w, node, AFD_CHILD_CRASHED);
}

void sim_exit(struct sim_world *w, struct sim_node *node, int status)
{
    sim_trace(w, node, "ends with %llu", (uint64_t)status);
    end_process(w, node, status ? AFD_CHILD_CRASHED : AFD_CHILD_DONE);
}

void sim_run_wanted(struct sim_world *w)
{
    for (uint32_t i = 1; i < w->node_count; i++) {
        const struct sim_node *node = &w->nodes[i];
        if (node->is_wanted)
            afd_supervisor_run(w->supervisor, i, node->start, w->now);
        else
            afd_supervisor_leave(w->supervisor, i, w->now);
    }
    sim_supervise(w);
}

void sim_start_again(struct sim_world *w)
{
    for (uint32_t i = 1; i < w->node_count; i++) {
        enum afd_child_state state = afd_supervisor_state(w->supervisor, i);
        if (!w->nodes[i].is_wanted || (state != AFD_CHILD_EXITED && state != AFD_CHILD_FAILED)) continue;
        afd_supervisor_run(w->supervisor, i, afd_supervisor_start(w->supervisor, i) + 1, w->now);
        sim_supervise(w);
        sim_sched_process(w, &w->nodes[i], 0);
    }
}

void sim_freeze(struct sim_world *w, struct sim_node *node)
{
    node->frozen = 1;
    sim_trace(w, node, "is stopped");
}

static void on_thawed(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    (void)w, (void)node, (void)p, (void)a; /* to be dispatched is enough: what is parked runs first */
}

void sim_thaw(struct sim_world *w, struct sim_node *node)
{
    if (!node->alive || !node->frozen) return;
    node->frozen = 0;
    node->thawed = w->now;
    sim_trace(w, node, "goes on");
    sim_at(w, w->now, node, on_thawed, NULL, 0);
}

/* ---- a run */

struct afd_sim_config afd_sim_defaults(const struct afd_topology *topology, const struct afd_model *model,
                                       const struct afd_plan *plan)
{
    uint32_t streams = afd_pool_ranks(&topology->attn) * topology->pipeline.microbatches;
    uint32_t context = plan->max_context;
    return (struct afd_sim_config){
        .topology = topology,
        .model = model,
        .plan = plan,
        .duration = AFD_SECONDS(2),
        .settle = AFD_SECONDS(60),
        .fault_every = AFD_MS(150),
        .clients = streams * 2 < 64 ? streams * 2 : 64,
        .prompt_min = 1,
        .prompt_max = context / 4 < 48 ? context / 4 : 48,
        .output_min = 1,
        .output_max = context / 4 < 32 ? context / 4 : 32,
        .leave_percent = 15,
        .think = AFD_MS(20),
        .stop_tokens = 1,
    };
}

static int check_config(const struct afd_sim_config *c, struct afd_error *error)
{
    uint64_t kv_tokens = c->plan->kv_tokens;
    uint32_t room = c->plan->max_context;
    if (kv_tokens < room) room = (uint32_t)kv_tokens;
    if (!c->clients || !c->prompt_min || c->prompt_min > c->prompt_max || !c->output_min ||
        c->output_min > c->output_max || !c->duration)
        return afd_fail(error, AFD_ERR_CONFIG,
                        "sim: expected clients, a duration, and prompts and outputs of 1 token at least");
    if (c->prompt_max + c->output_max >= room)
        return afd_fail(error, AFD_ERR_CONFIG, "sim: %u + %u tokens do not fit into a sequence of %u",
                        c->prompt_max, c->output_max, room);
    if (c->topology->attn.tp > 1)
        return afd_fail(error, AFD_ERR_CONFIG,
                        "sim: pools.attn.parallel.tp is %u, and groups of attention ranks are not simulated; "
                        "expected 1",
                        c->topology->attn.tp);
    if (c->topology->ffn.max_instances > 64)
        return afd_fail(error, AFD_ERR_CONFIG, "sim: %u FFN instances; at most 64",
                        c->topology->ffn.max_instances);
    return AFD_OK;
}

static void init_network(struct sim_world *w)
{
    const struct afd_topology *t = w->t;
    const struct afd_hardware *hardware[2] = {afd_hardware_find(t->attn.device_class),
                                              afd_hardware_find(t->ffn.device_class)};
    w->latency = hardware[0] ? 5000 : 15000; /* RDMA through a switch; shared memory and a wake-up */
    for (uint32_t i = 0; i < w->node_count; i++) {
        struct sim_node *n = &w->nodes[i];
        const struct afd_hardware *h = hardware[n->kind == SIM_FFN];
        n->bytes_per_ns = (h ? h->nic_bytes_per_s : 8e9) * 1e-9;
    }
}

static void init(struct sim_world *w)
{
    const struct afd_topology *t = w->t;
    w->attn_count = afd_pool_max_ranks(&t->attn);
    w->ffn_count = afd_pool_max_ranks(&t->ffn);
    w->node_count = 1 + w->attn_count + w->ffn_count;
    w->nodes = sim_zero(w, w->node_count, sizeof *w->nodes);
    for (uint32_t i = 0; i < w->node_count; i++) {
        struct sim_node *n = &w->nodes[i];
        n->index = i;
        n->kind = !i ? SIM_SCHEDULER : i <= w->attn_count ? SIM_ATTN : SIM_FFN;
        n->rank = !i ? 0 : i <= w->attn_count ? i - 1 : i - 1 - w->attn_count;
        n->shell = !i ? &sim_sched_shell : i <= w->attn_count ? &sim_attn_shell : &sim_ffn_shell;
        n->slow = 1;
        n->is_wanted = !i || n->rank < afd_pool_ranks(n->kind == SIM_ATTN ? &t->attn : &t->ffn);
        n->start = 1;
    }
    for (uint32_t l = 0; l < w->model->layer_count; l++) w->picks[l] = sim_picks(&w->model->layers[l].ffn);
    w->max_context = w->config.plan->max_context;
    w->wire = afd_wire_layout_of((struct afd_wire_shape){.hidden = w->model->hidden,
                                                         .top_k = w->model->max_top_k,
                                                         .max_rows = t->pipeline.max_rows,
                                                         .a2f = t->pipeline.a2f,
                                                         .f2a = t->pipeline.f2a});
    w->checks = sim_checks_create(w);
    init_network(w);
    /* The limits of deploy/launcher.c, with more patience: faults come denser than in a machine room. */
    struct afd_supervisor_config s = {.children = w->node_count,
                                      .backoff_first = AFD_MS(200),
                                      .backoff_most = AFD_SECONDS(2),
                                      .window = AFD_SECONDS(1),
                                      .drain = AFD_SECONDS(t->scheduler.drain_s),
                                      .never_restart = (int)t->launch.never_restart};
    w->supervisor = afd_supervisor_create(&s);
    if (!w->supervisor || !sim_ffn_collectives(w)) sim_fail(w, "out of memory");
    for (uint32_t i = 1 + w->attn_count; i < w->node_count; i++)
        afd_supervisor_set_stage(w->supervisor, i, 2);
    for (uint32_t i = 1; i < w->node_count; i++)
        if (!w->nodes[i].is_wanted) afd_supervisor_leave(w->supervisor, i, 0);
    w->supervisor_at = UINT64_MAX;
    afd_supervisor_begin(w->supervisor, 0);
    sim_supervise(w);
}

static int ranks_are_quiet(const struct sim_world *w)
{
    for (uint32_t i = 1; i < w->node_count; i++) {
        const struct sim_node *n = &w->nodes[i];
        if (!n->is_wanted && !n->alive && !n->is_launching) continue;
        if (!n->alive || !n->is_wanted || !(n->kind == SIM_ATTN ? sim_attn_is_idle(n) : sim_ffn_is_idle(n)))
            return 0;
    }
    return 1;
}

static int all_is_quiet(struct sim_world *w)
{
    const struct sim_node *scheduler = sim_scheduler(w);
    if (w->live_requests || !scheduler->alive) return 0;
    if (!w->is_split)
        return sim_sched_serves(scheduler) && sim_sched_is_idle(scheduler) && ranks_are_quiet(w);
    if (!sim_can_serve(w)) return 1; /* those that asked were told so */
    if (!sim_sched_serves(scheduler) || !sim_sched_is_idle(scheduler)) return 0;
    sim_count(w, AFD_SIM_SERVED_ON);
    return 1;
}

/* What nobody can serve is given up when its time is over. */
static afd_ns settle_of(const struct sim_world *w)
{
    return w->config.settle + (w->is_split ? AFD_SECONDS(w->t->scheduler.request_timeout_s) : 0);
}

static void on_look(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    (void)node, (void)p, (void)a;
    if (all_is_quiet(w)) {
        w->is_ending = 1;
        return;
    }
    if (w->now > w->config.duration + settle_of(w)) {
        sim_trace(w, NULL, "%llu requests are unfinished", w->live_requests);
        sim_check_end(w);
        sim_fail(w, "liveness: %u requests are not done %.1f s after the last fault, or a rank is not idle",
                 w->live_requests, (double)settle_of(w) * 1e-9);
    }
    sim_at(w, w->now + AFD_MS(LOOK_MS), NULL, on_look, NULL, 0);
}

/* Rates are those of the second half: in the first the streams begin. */
static void on_half(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    (void)node, (void)p, (void)a;
    w->half_tokens = w->result->tokens;
    w->gap_sum = w->gap_count = 0;
}

static void on_over(struct sim_world *w, struct sim_node *node, void *p, uint64_t a)
{
    (void)node, (void)p, (void)a;
    struct afd_sim_result *r = w->result;
    w->faults_over = 1;
    afd_ns half = w->config.duration - w->config.duration / 2;
    r->tokens_per_s = (double)(r->tokens - w->half_tokens) / ((double)half * 1e-9);
    if (w->gap_count) r->tpot_ms = (double)w->gap_sum * 1e-6 / (double)w->gap_count;
    if (w->config.faults || w->config.settle) sim_faults_end(w);
    if (!w->config.settle) /* a measurement: what runs is left as it is */
        w->is_ending = 1;
    else
        on_look(w, NULL, NULL, 0);
}

static void run(struct sim_world *w)
{
    init(w);
    sim_clients_begin(w);
    sim_faults_begin(w);
    sim_at(w, w->config.duration / 2, NULL, on_half, NULL, 0);
    sim_at(w, w->config.duration, NULL, on_over, NULL, 0);
    while (!w->is_ending) {
        if (!w->heap_count) sim_fail(w, "liveness: nothing is left to happen");
        w->now = w->heap[0].at;
        dispatch(w, heap_pop(w));
    }
    if (w->config.settle) sim_check_end(w);
}

static void destroy(struct sim_world *w)
{
    for (uint32_t i = 0; i < w->node_count; i++)
        if (w->nodes[i].body) w->nodes[i].shell->destroy(&w->nodes[i]);
    afd_supervisor_destroy(w->supervisor);
    free(w->heap);
    for (uint32_t i = 0; i < w->disk.count; i++) free(w->disk.segments[i].bytes);
    while (w->chunks) {
        struct sim_chunk *chunk = w->chunks;
        w->chunks = chunk->next;
        free(chunk);
    }
    free(w);
}

enum afd_status afd_sim_run(const struct afd_sim_config *config, struct afd_sim_result *result,
                            struct afd_error *error)
{
    enum afd_status status = check_config(config, error);
    if (status) return status;
    struct sim_world *w = calloc(1, sizeof *w);
    if (!w) return afd_fail(error, AFD_ERR_MEMORY, "out of memory");
    struct sigaction now = {.sa_handler = on_abort, .sa_flags = SA_NODEFER}, before;
    *result = (struct afd_sim_result){0};
    w->config = *config;
    w->t = config->topology;
    w->model = config->model;
    w->result = result;
    sigemptyset(&now.sa_mask);
    sigaction(SIGABRT, &now, &before);
    running = w;
    int how = sigsetjmp(w->out, 1);
    if (how == 0) {
        run(w);
    } else if (how == 2) {
        result->failed = 1;
        snprintf(result->words, sizeof result->words,
                 "an assertion of a core failed: its words are on stderr");
    }
    running = NULL;
    sigaction(SIGABRT, &before, NULL);
    if (result->failed) keep_trace(w);
    result->steps = w->steps;
    result->digest = w->digest;
    result->virtual_ns = w->now;
    destroy(w);
    return AFD_OK;
}
