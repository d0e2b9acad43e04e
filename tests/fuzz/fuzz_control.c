/* Guards: control messages of ranks and supervisors that hold the secret and say anything: Register, Ready,
 * Heartbeat, Tokens, HostReport, a trace's echoes and events, and whatever else the protocol has, in any
 * order, twice, over one connection or another, of ranks, epochs, requests, positions and counts that are
 * not. They may cost their sender's place or a sequence; never the scheduler, and never a token twice. The
 * good input has a message of each type of the protocol, and is not good without.
 *
 * The scheduler's service and cores; in place of channels, who sends. Steps, one after the other:
 *   | uint8: what | uint8: over which connection, or an argument | uint16 bytes | an Envelope */
#include <assert.h>
#include <stddef.h>
#include <stdlib.h>

#include "base/clock.h"

static afd_ns fuzz_now(void);
#define afd_now fuzz_now /* of this service: time is a step of the input */
#include "scheduler/service.c"
#undef afd_now
#include "tests/fuzz/fuzz.h"

enum { HEAD = 4, CONNECTIONS = 8, SEQUENCES = 8, PROMPT = 4, MOST_TOKENS = 12, VOCAB = 64, SPARE = 8 };
enum what { SAY, SAY_TOO, CLOSE, PASS, ASK, SCALE, RESTART, DRAIN, TRACE, WHATS };
enum { TYPES = 64 /* above the largest field number of Envelope */ };

struct afd_channel {
    struct link *link; /* NULL: closed */
};

struct asked {
    struct afd_sequence sequence;
    uint32_t tokens[PROMPT + MOST_TOKENS], told;
    int is_known, has_ended;
};

static struct afd_channel connections[CONNECTIONS];
static struct asked asked[SEQUENCES];
static struct afd_service *service;
static struct event_base *base;
static afd_ns now;
static int was_taken;
static size_t seen[TYPES]; /* messages, by type, since the start */

static afd_ns fuzz_now(void)
{
    return now;
}

/* ---- in place of channels */

void __wrap_afd_channel_close(struct afd_channel *channel);
void __wrap_afd_channel_refuse(struct afd_channel *channel, int later, const char *format, ...);
void __wrap_afd_channel_set_user(struct afd_channel *channel, struct afd_channel_callbacks callbacks,
                                 void *user);
const char *__wrap_afd_channel_peer_name(const struct afd_channel *channel);
enum afd_status __wrap_afd_channel_send(struct afd_channel *channel, const Afd__Envelope *message);

void __wrap_afd_channel_close(struct afd_channel *channel)
{
    channel->link = NULL;
}

void __wrap_afd_channel_refuse(struct afd_channel *channel, int later, const char *format, ...)
{
    (void)later, (void)format;
    channel->link = NULL; /* also of one that leaves */
}

void __wrap_afd_channel_set_user(struct afd_channel *channel, struct afd_channel_callbacks callbacks,
                                 void *user)
{
    (void)channel, (void)callbacks, (void)user;
}

const char *__wrap_afd_channel_peer_name(const struct afd_channel *channel)
{
    assert(channel->link);
    return "fuzz";
}

/* What is sent is whole, and to somebody who is there. */
enum afd_status __wrap_afd_channel_send(struct afd_channel *channel, const Afd__Envelope *message)
{
    assert(channel->link);
    size_t bytes = afd__envelope__get_packed_size(message);
    uint8_t *packed = malloc(bytes + !bytes);
    if (!packed || afd__envelope__pack(message, packed) != bytes) abort();
    free(packed);
    return AFD_OK;
}

static struct link *open_link(struct afd_channel *channel)
{
    struct link *l = calloc(1, sizeof *l);
    if (!l) abort();
    l->service = service;
    l->channel = channel;
    l->id = ++service->next_link;
    l->member = l->loads = UINT32_MAX;
    l->next = service->links;
    service->links = l;
    service->link_count++;
    return channel->link = l;
}

/* ---- in place of clients */

static void on_accepted(struct afd_sequence *sequence, const Afd__SequenceTokens *m, uint32_t first,
                        enum afd_finish finish)
{
    struct asked *a = (struct asked *)sequence;
    (void)first;
    assert(a->is_known && !a->has_ended);
    for (size_t i = 0; i < m->n_tokens; i++) assert(m->tokens[i] < VOCAB);
    a->told += (uint32_t)m->n_tokens;
    assert(a->told <= sequence->written.known.sampling.max_tokens); /* nothing twice, nothing too much */
    a->has_ended = finish != AFD_UNFINISHED;
}

static void on_failed(struct afd_sequence *sequence, enum afd_status status, const char *words)
{
    struct asked *a = (struct asked *)sequence;
    assert(a->is_known && !a->has_ended);
    assert(status && *words);
    a->has_ended = 1;
    was_taken = 0;
}

static void ask(uint8_t which)
{
    struct asked *a = &asked[which % SEQUENCES];
    struct afd_journal_sequence *k = &a->sequence.written.known;
    if (a->is_known) {
        afd_service_forget(service, &a->sequence);
        a->is_known = 0;
        return;
    }
    memset(a, 0, sizeof *a);
    k->tokens = a->tokens;
    k->prompt_count = PROMPT;
    k->sampling = (struct afd_sampling){.max_tokens = 1 + which % MOST_TOKENS,
                                        .top_p = 1,
                                        .repetition_penalty = 1,
                                        .logprobs = which / 128,
                                        .prompt_logprobs = which / 64 % 2};
    a->sequence.accepted = on_accepted;
    a->sequence.failed = on_failed;
    if (afd_service_submit(service, &a->sequence)) return;
    a->is_known = 1;
    if (afd_service_commit(service)) abort();
    afd_service_begin(service, &a->sequence);
}

/* ---- steps */

/* Small numbers mean the requests there are: no mutation would find an id. */
static uint64_t request_of(uint64_t number)
{
    return number < SEQUENCES ? asked[number].sequence.written.known.id : number;
}

static void say(struct afd_channel *channel, const uint8_t *data, size_t bytes)
{
    Afd__Envelope *m = afd__envelope__unpack(NULL, bytes, data);
    if (!m || m->body_case == AFD__ENVELOPE__BODY__NOT_SET) { /* the channel would have ended */
        was_taken = 0;
        if (m) afd__envelope__free_unpacked(m, NULL);
        return;
    }
    for (size_t i = 0; m->body_case == AFD__ENVELOPE__BODY_TOKENS && i < m->tokens->n_sequences; i++)
        m->tokens->sequences[i]->request = request_of(m->tokens->sequences[i]->request);
    for (size_t i = 0; m->body_case == AFD__ENVELOPE__BODY_REGISTER && i < m->register_->n_held; i++)
        m->register_->held[i]->request = request_of(m->register_->held[i]->request);
    seen[m->body_case]++;
    on_message(channel, m, channel->link ? channel->link : open_link(channel));
    afd__envelope__free_unpacked(m, NULL);
}

static void on_trace(struct afd_trace_merge *merge, void *user)
{
    (void)user;
    afd_trace_merge_destroy(merge);
}

static void step(const uint8_t *head, const uint8_t *data, size_t bytes)
{
    struct afd_channel *channel = &connections[head[1] % CONNECTIONS];
    const struct afd_cluster_rank rank = {(enum afd_role)(head[1] % 2), head[1] / 2 % 4};
    struct afd_error error;
    switch ((enum what)(head[0] % WHATS)) {
    case SAY:
    case SAY_TOO:
        say(channel, data, bytes);
        break;
    case CLOSE:
        if (channel->link) on_closed(channel, AFD_ERR_PEER, "closed", channel->link);
        break;
    case PASS:
        now += AFD_MS(1) << head[1] % 14;
        on_tick(-1, 0, service);
        break;
    case ASK:
        ask(head[1]);
        break;
    case SCALE:
        afd_service_scale(service, head[1] % 4, head[1] / 4 % 4, &error);
        break;
    case RESTART:
        afd_service_restart(service, &rank, 1, head[1] / 8 % 2, &error);
        break;
    case DRAIN:
        afd_service_drain(service, rank, &error);
        break;
    case TRACE:
        afd_tracing_begin(service->tracing, AFD_SECONDS(1), head[1], on_trace, NULL);
        break;
    case WHATS:
        break;
    }
    on_work(-1, 0, service);
    event_base_loop(base, EVLOOP_NONBLOCK);
}

static void on_end(void *user)
{
    (void)user; /* it lives on: the input may have more to say */
}

static struct afd_topology *make_topology(void)
{
    static struct afd_topology t;
    t.attn = (struct afd_pool){.instances = 2, .max_instances = 4, .ranks_per_instance = 1, .tp = 1, .dp = 1};
    t.ffn = (struct afd_pool){.instances = 2,
                              .max_instances = 4,
                              .ranks_per_instance = 1,
                              .tp = 1,
                              .ep = 4,
                              .copies = 1,
                              .max_shards = 4,
                              .rebalance = 1};
    for (int i = 0; i < 2; i++) {
        struct afd_pool *pool = i ? &t.ffn : &t.attn;
        pool->host_count = 1;
        strcpy(pool->hosts[0], "h");
    }
    t.scheduler.lease_ms = 1000;
    t.scheduler.heartbeat_ms = 250;
    t.scheduler.scale_s = t.scheduler.drain_s = 3;
    t.scheduler.max_queue = t.pipeline.max_sequences = SPARE;
    t.scheduler.request_timeout_s = 10;
    t.max_context = 128;
    return &t;
}

static void open_service(void)
{
    static struct afd_model model = {.vocab = VOCAB, .max_context = 128};
    struct afd_service_config config = {
        .base = base, .topology = make_topology(), .model = &model, .end = on_end};
    struct afd_error error;
    int port, fd = afd_listen("127.0.0.1:0", &port, &error);
    if (fd < 0) abort();
    memset(connections, 0, sizeof connections);
    memset(asked, 0, sizeof asked);
    now = AFD_SECONDS(100);
    was_taken = 1;
    service = afd_service_create(&config, fd, &error);
    if (!service) abort();
    afd_service_start(service);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (!base) {
        afd_log_init("fuzz", AFD_LOG_ERROR);
        base = event_base_new();
    }
    open_service();
    while (bytes >= HEAD) {
        uint16_t part;
        memcpy(&part, data + 2, sizeof part);
        if (part > bytes - HEAD) part = (uint16_t)(bytes - HEAD);
        step(data, data + HEAD, part);
        data += HEAD + part;
        bytes -= HEAD + part;
    }
    for (int i = 0; i < SEQUENCES; i++) was_taken &= !asked[i].is_known || asked[i].has_ended;
    afd_service_destroy(service);
    event_base_loop(base, EVLOOP_NONBLOCK);
    return 0;
}

static int has_seen_all(void)
{
    const ProtobufCMessageDescriptor *types = &afd__envelope__descriptor;
    for (unsigned i = 0; i < types->n_fields; i++)
        if (!seen[types->fields[i].id]) return 0;
    return 1;
}

int afd_fuzz_was_taken(void)
{
    return was_taken && has_seen_all();
}

/* ---- a cluster that begins, serves, and is asked to change */

static uint8_t *add(uint8_t *to, enum what what, uint8_t argument, Afd__Envelope__BodyCase body,
                    void *message)
{
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    uint16_t bytes = 0;
    e.body_case = body;
    e.greeting = message; /* a union of pointers */
    if (message) bytes = (uint16_t)afd__envelope__pack(&e, to + HEAD);
    to[0] = (uint8_t)what;
    to[1] = argument;
    memcpy(to + 2, &bytes, sizeof bytes);
    return to + HEAD + bytes;
}

static uint8_t *add_rank(uint8_t *to, uint8_t connection, Afd__Role role, uint32_t rank, uint64_t incarnation)
{
    uint8_t hash[AFD_HASH_BYTES] = {0};
    uint32_t shards[] = {rank % 2, rank % 2 + 2};
    Afd__Register r = AFD__REGISTER__INIT;
    Afd__Ready ready = AFD__READY__INIT;
    Afd__Held held = AFD__HELD__INIT, *helds[] = {&held};
    r.role = role;
    r.rank = rank;
    r.incarnation = incarnation;
    r.host = "h";
    r.data_address = "127.0.0.1:8";
    r.model_hash = r.topology_hash = (ProtobufCBinaryData){sizeof hash, hash};
    ready.epoch = 1;
    if (role == AFD__ROLE__FFN) {
        r.n_shards = ready.n_shards = 2;
        r.shards = ready.shards = shards;
    } else {
        held.request = 5;
        r.n_held = 1;
        r.held = helds;
        ready.settled = 1;
    }
    to = add(to, SAY, connection, AFD__ENVELOPE__BODY_REGISTER, &r);
    return add(to, SAY, connection, AFD__ENVELOPE__BODY_READY, &ready);
}

/* Both attention ranks claim each request's tokens: those of the one that has it count. */
static uint8_t *add_tokens(uint8_t *to, uint32_t request, uint32_t count)
{
    uint32_t tokens[MOST_TOKENS] = {1, 2, 3};
    for (uint8_t connection = 0; connection < 2; connection++) {
        Afd__SequenceTokens some = AFD__SEQUENCE_TOKENS__INIT, *sequences[] = {&some};
        Afd__Tokens m = AFD__TOKENS__INIT;
        some.request = request;
        some.assignment = 1;
        some.n_tokens = count;
        some.tokens = tokens;
        some.finish = AFD__FINISH__LENGTH;
        m.n_sequences = 1;
        m.sequences = sequences;
        m.serial = 1 + request;
        to = add(to, SAY, connection, AFD__ENVELOPE__BODY_TOKENS, &m);
    }
    return to;
}

static uint8_t *add_heartbeats(uint8_t *to)
{
    uint64_t rows[] = {3, 4};
    uint32_t unreachable[] = {1};
    Afd__ExpertRows experts = AFD__EXPERT_ROWS__INIT, *layers[] = {&experts};
    Afd__StageSeconds stages = AFD__STAGE_SECONDS__INIT;
    experts.n_rows = stages.n_ns = 2;
    experts.rows = stages.ns = rows;
    for (uint8_t connection = 0; connection < 4; connection++) {
        Afd__Heartbeat m = AFD__HEARTBEAT__INIT;
        m.epoch = 1;
        m.serial = 1;
        m.stages = &stages;
        if (connection >= 2) {
            m.n_experts = 1;
            m.experts = layers;
        } else if (!connection) {
            m.n_unreachable = 1;
            m.unreachable = unreachable;
        }
        to = add(to, SAY, connection, AFD__ENVELOPE__BODY_HEARTBEAT, &m);
    }
    return to;
}

static uint8_t *add_host(uint8_t *to, uint8_t connection)
{
    uint8_t hash[AFD_HASH_BYTES] = {0};
    Afd__RankProcess process = AFD__RANK_PROCESS__INIT, *ranks[] = {&process};
    Afd__HostRegister m = AFD__HOST_REGISTER__INIT;
    Afd__HostReport report = AFD__HOST_REPORT__INIT;
    process.state = "running";
    process.words = "";
    process.start = 1;
    m.host = "h";
    m.topology_hash = (ProtobufCBinaryData){sizeof hash, hash};
    m.n_ranks = report.n_ranks = 1;
    m.ranks = report.ranks = ranks;
    report.serial = 1;
    to = add(to, SAY, connection, AFD__ENVELOPE__BODY_HOST_REGISTER, &m);
    return add(to, SAY, connection, AFD__ENVELOPE__BODY_HOST_REPORT, &report);
}

/* A rank that loads before it joins; then it is another one, and then none. */
static uint8_t *add_loading(uint8_t *to, uint8_t connection)
{
    static const uint32_t ranks[] = {1, 0, 99};
    for (int i = 0; i < 3; i++) {
        Afd__Loading m = AFD__LOADING__INIT;
        m.rank = ranks[i];
        m.bytes = 7;
        m.total_bytes = 9;
        m.ns = 11;
        to = add(to, SAY, connection, AFD__ENVELOPE__BODY_LOADING, &m);
    }
    return to;
}

/* A trace that one rank takes part in, and of each type that nobody sends to a scheduler a message. */
static uint8_t *add_rest(uint8_t *to, uint8_t connection)
{
    static const uint8_t event[40];
    const ProtobufCMessageDescriptor *types = &afd__envelope__descriptor;
    Afd__TraceEcho echo = AFD__TRACE_ECHO__INIT;
    Afd__TraceEvents events = AFD__TRACE_EVENTS__INIT;
    echo.serial = events.serial = 1;
    echo.age_ns = 1000;
    events.events = (ProtobufCBinaryData){sizeof event, (uint8_t *)event};
    to = add(to, TRACE, 16, 0, NULL);
    to = add(to, SAY, connection, AFD__ENVELOPE__BODY_TRACE_ECHO, &echo);
    to = add(to, SAY, connection, AFD__ENVELOPE__BODY_TRACE_EVENTS, &events);
    for (unsigned i = 0; i < types->n_fields; i++) {
        unsigned id = types->fields[i].id;
        _Alignas(max_align_t) uint8_t message[1024];
        if ((id >= AFD__ENVELOPE__BODY_REGISTER && id <= AFD__ENVELOPE__BODY_HOST_REPORT) ||
            id == AFD__ENVELOPE__BODY_TRACE_ECHO || id == AFD__ENVELOPE__BODY_TRACE_EVENTS)
            continue;
        const ProtobufCMessageDescriptor *type = types->fields[i].descriptor;
        assert(id < TYPES && type->sizeof_message <= sizeof message);
        protobuf_c_message_init(type, message);
        to = add(to, SAY, connection, (Afd__Envelope__BodyCase)id, message);
    }
    return to;
}

uint8_t *afd_fuzz_good_input(size_t *bytes_out)
{
    uint8_t *data = calloc(1, 8192), *at = data;
    Afd__Drained drained = AFD__DRAINED__INIT;
    Afd__Leave leave = AFD__LEAVE__INIT;
    if (!data) abort();
    leave.why = "it is over";
    at = add_host(at, 4);
    for (uint8_t i = 0; i < 4; i++)
        at = add_rank(at, i, i < 2 ? AFD__ROLE__ATTN : AFD__ROLE__FFN, i % 2, 10 + i);
    /* a supervisor that would be a rank, and is refused: the next order is not for it */
    at = add_rank(add_host(at, 5), 5, AFD__ROLE__FFN, 99, 1);
    at = add_loading(at, 6);
    at = add(at, SCALE, 3 | 2 << 2, 0, NULL);
    for (uint8_t i = 0; i < 4; i++) at = add(at, ASK, i + 4, 0, NULL);
    at = add_heartbeats(at);
    at = add(at, PASS, 6, 0, NULL);
    for (uint32_t i = 4; i < 8; i++) at = add_tokens(at, i, i + 1);
    at = add(at, PASS, 6, 0, NULL);
    at = add_rest(at, 3);
    at = add(at, RESTART, 8, 0, NULL);
    at = add(at, SAY_TOO, 0, AFD__ENVELOPE__BODY_DRAINED, &drained);
    at = add(at, SAY_TOO, 1, AFD__ENVELOPE__BODY_LEAVE, &leave);
    at = add(at, CLOSE, 1, 0, NULL);
    at = add(at, PASS, 7, 0, NULL);
    *bytes_out = (size_t)(at - data);
    return data;
}
