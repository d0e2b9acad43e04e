#include "tests/fuzz/rank.h"

#include <assert.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "model/tiny_model.h"

enum { HEAD = 4, TYPES = 64 /* above the largest field number of Envelope */ };

static struct afd_member_config connection;
static int is_connected;
static struct afd_pair pairs[RANK_PAIRS];
static struct afd_transport_event events[RANK_EVENTS];
static uint32_t first_event, event_count;
static size_t allocated, seen[TYPES]; /* since the message began; messages, by type */
static int descriptors[2] = {-1, -1};

/* ---- memory: what is asked for is added up */

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *old, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *old, size_t bytes);

void *__wrap_malloc(size_t bytes)
{
    allocated += bytes;
    return __real_malloc(bytes);
}

void *__wrap_calloc(size_t count, size_t bytes)
{
    allocated += count * bytes;
    return __real_calloc(count, bytes);
}

void *__wrap_realloc(void *old, size_t bytes)
{
    allocated += bytes;
    return __real_realloc(old, bytes);
}

static void *count_alloc(void *user, size_t bytes)
{
    (void)user;
    return __wrap_malloc(bytes);
}

static void count_free(void *user, void *memory)
{
    (void)user;
    free(memory);
}

static ProtobufCAllocator counting = {.alloc = count_alloc, .free = count_free};

/* ---- the connection to the scheduler */

struct afd_member *__wrap_afd_member_create(const struct afd_member_config *config,
                                            struct afd_error *error_out);
void __wrap_afd_member_destroy(struct afd_member *member);
int __wrap_afd_member_is_connected(const struct afd_member *member);
enum afd_status __wrap_afd_member_send(struct afd_member *member, const Afd__Envelope *message);

struct afd_member *__wrap_afd_member_create(const struct afd_member_config *config,
                                            struct afd_error *error_out)
{
    (void)error_out;
    connection = *config;
    is_connected = 0;
    return (struct afd_member *)&connection;
}

void __wrap_afd_member_destroy(struct afd_member *member)
{
    (void)member;
}

int __wrap_afd_member_is_connected(const struct afd_member *member)
{
    return member && is_connected;
}

/* What is sent is whole. */
static void check_whole(const ProtobufCMessage *message)
{
    size_t bytes = protobuf_c_message_get_packed_size(message);
    uint8_t *packed = __real_malloc(bytes + !bytes);
    if (!packed || protobuf_c_message_pack(message, packed) != bytes) abort();
    free(packed);
}

enum afd_status __wrap_afd_member_send(struct afd_member *member, const Afd__Envelope *message)
{
    assert(member);
    if (!is_connected) return AFD_AGAIN;
    check_whole(&message->base);
    rank_sent(message);
    return AFD_OK;
}

static void connect_again(void)
{
    if (is_connected) {
        is_connected = 0;
        connection.disconnected("the connection ends", connection.user);
    }
    if (connection.registering) connection.registering(connection.user);
    check_whole(&connection.registration->base);
    is_connected = 1;
    if (connection.connected) connection.connected(connection.user);
}

/* ---- the transport */

enum afd_status __wrap_afd_transport_open(const struct afd_transport_config *config,
                                          struct afd_transport **out, char address_out[AFD_ADDRESS_BYTES],
                                          struct afd_error *error_out);
void __wrap_afd_transport_close(struct afd_transport *t);
enum afd_status __wrap_afd_transport_register(struct afd_transport *t, void *base, uint64_t bytes);
void __wrap_afd_transport_deregister(struct afd_transport *t, void *base);
uint32_t __wrap_afd_transport_poll(struct afd_transport *t, struct afd_transport_event *out, uint32_t limit);
int __wrap_afd_transport_event_fd(const struct afd_transport *t);
struct afd_pair *__wrap_afd_pair_connect(struct afd_transport *t, const char *address,
                                         const struct afd_identity *peer, uint32_t generation, uint64_t epoch,
                                         const struct afd_region *regions, uint32_t region_count, void *user,
                                         struct afd_error *error_out);
enum afd_status __wrap_afd_pair_accept(struct afd_pair *pair, const struct afd_region *regions,
                                       uint32_t region_count, void *user);
void __wrap_afd_pair_refuse(struct afd_pair *pair, int later, const char *words);
void __wrap_afd_pair_close(struct afd_pair *pair);
void *__wrap_afd_pair_user(const struct afd_pair *pair);
const struct afd_identity *__wrap_afd_pair_peer(const struct afd_pair *pair);

static int descriptor(void)
{
    if (descriptors[0] < 0 && pipe(descriptors)) abort();
    return descriptors[0];
}

enum afd_status __wrap_afd_transport_open(const struct afd_transport_config *config,
                                          struct afd_transport **out, char address_out[AFD_ADDRESS_BYTES],
                                          struct afd_error *error_out)
{
    (void)config, (void)error_out;
    memset(pairs, 0, sizeof pairs);
    event_count = 0;
    strcpy(address_out, "127.0.0.1:8");
    *out = (struct afd_transport *)&pairs;
    return AFD_OK;
}

void __wrap_afd_transport_close(struct afd_transport *t)
{
    (void)t;
}

enum afd_status __wrap_afd_transport_register(struct afd_transport *t, void *base, uint64_t bytes)
{
    assert(t && base && bytes);
    return AFD_OK;
}

void __wrap_afd_transport_deregister(struct afd_transport *t, void *base)
{
    assert(t && base);
}

int __wrap_afd_transport_event_fd(const struct afd_transport *t)
{
    (void)t;
    return descriptor();
}

void rank_event(const struct afd_transport_event *event)
{
    assert(event_count < RANK_EVENTS);
    events[(first_event + event_count++) % RANK_EVENTS] = *event;
}

/* Of pairs that are closed nothing is reported. */
uint32_t __wrap_afd_transport_poll(struct afd_transport *t, struct afd_transport_event *out, uint32_t limit)
{
    uint32_t count = 0;
    (void)t;
    while (event_count && count < limit) {
        out[count] = events[first_event];
        first_event = (first_event + 1) % RANK_EVENTS;
        event_count--;
        struct afd_pair *pair = out[count].pair;
        if (!pair->is_used) continue;
        if (out[count].kind == AFD_EVENT_OPEN) pair->is_open = 1;
        count++;
    }
    return count;
}

struct afd_pair *rank_pair(const struct afd_identity *peer, void *user)
{
    for (uint32_t i = 0; i < RANK_PAIRS; i++) {
        int is_named = 0; /* by an event that is to come */
        for (uint32_t k = 0; k < event_count; k++)
            is_named |= events[(first_event + k) % RANK_EVENTS].pair == &pairs[i];
        if (pairs[i].is_used || is_named) continue;
        pairs[i] = (struct afd_pair){.peer = *peer, .user = user, .is_used = 1};
        return &pairs[i];
    }
    return NULL;
}

static void take_regions(struct afd_pair *pair, const struct afd_region *regions, uint32_t count)
{
    uint32_t room = sizeof pair->regions / sizeof *pair->regions;
    for (uint32_t i = 0; i < count; i++) assert(regions[i].base);
    pair->region_count = count < room ? count : room;
    memcpy(pair->regions, regions, pair->region_count * sizeof *regions);
}

struct afd_pair *__wrap_afd_pair_connect(struct afd_transport *t, const char *address,
                                         const struct afd_identity *peer, uint32_t generation, uint64_t epoch,
                                         const struct afd_region *regions, uint32_t region_count, void *user,
                                         struct afd_error *error_out)
{
    size_t bytes = strlen(address);
    (void)t, (void)epoch;
    assert(bytes < AFD_ADDRESS_BYTES && generation && peer->role == AFD_ROLE_FFN);
    char last = bytes ? address[bytes - 1] : 0;
    struct afd_pair *pair = strchr(address, ':') ? rank_pair(peer, user) : NULL;
    if (!pair) {
        afd_fail(error_out, AFD_ERR_CONFIG, "address '%s': expected host:port", address);
        return NULL;
    }
    take_regions(pair, regions, region_count);
    struct afd_transport_event e = {
        .kind = AFD_EVENT_LOST, .pair = pair, .status = AFD_ERR_PEER, .words = ""};
    if (last >= '0' && last <= '9') {
        e.kind = last % 2 ? AFD_EVENT_LOST : AFD_EVENT_OPEN;
        e.status = last % 2 ? AFD_AGAIN : AFD_OK;
    }
    rank_event(&e);
    return pair;
}

enum afd_status __wrap_afd_pair_accept(struct afd_pair *pair, const struct afd_region *regions,
                                       uint32_t region_count, void *user)
{
    take_regions(pair, regions, region_count);
    pair->user = user;
    rank_event(&(struct afd_transport_event){.kind = AFD_EVENT_OPEN, .pair = pair});
    return AFD_OK;
}

void __wrap_afd_pair_refuse(struct afd_pair *pair, int later, const char *words)
{
    (void)later;
    assert(pair->is_used && *words);
    pair->is_used = 0;
}

void __wrap_afd_pair_close(struct afd_pair *pair)
{
    assert(pair->is_used);
    pair->is_used = pair->is_open = 0;
    pair->user = NULL;
}

void *__wrap_afd_pair_user(const struct afd_pair *pair)
{
    return pair->user;
}

const struct afd_identity *__wrap_afd_pair_peer(const struct afd_pair *pair)
{
    assert(pair->is_used);
    return &pair->peer;
}

/* ---- the device: memory and a descriptor; what it computes is the fuzzer's */

enum afd_status __wrap_afd_device_create(const struct afd_device_config *config, struct afd_device **out,
                                         struct afd_error *error_out);
void __wrap_afd_device_destroy(struct afd_device *device);
const char *__wrap_afd_device_describe(const struct afd_device *device);
void *__wrap_afd_device_alloc(struct afd_device *device, uint64_t bytes);
void __wrap_afd_device_free(struct afd_device *device, void *memory);
enum afd_status __wrap_afd_device_move(struct afd_device *device, void *to, const void *from, uint64_t bytes);
int __wrap_afd_device_event_fd(const struct afd_device *device);
enum afd_status __wrap_afd_device_arm(struct afd_device *device);

enum afd_status __wrap_afd_device_create(const struct afd_device_config *config, struct afd_device **out,
                                         struct afd_error *error_out)
{
    (void)config, (void)error_out;
    *out = (struct afd_device *)&descriptors;
    return AFD_OK;
}

void __wrap_afd_device_destroy(struct afd_device *device)
{
    (void)device;
}

const char *__wrap_afd_device_describe(const struct afd_device *device)
{
    (void)device;
    return "none";
}

void *__wrap_afd_device_alloc(struct afd_device *device, uint64_t bytes)
{
    assert(device);
    void *memory = aligned_alloc(4096, afd_page_align(bytes));
    return memory ? memset(memory, 0, bytes) : NULL;
}

void __wrap_afd_device_free(struct afd_device *device, void *memory)
{
    assert(device);
    free(memory);
}

enum afd_status __wrap_afd_device_move(struct afd_device *device, void *to, const void *from, uint64_t bytes)
{
    assert(device);
    memcpy(to, from, bytes);
    return AFD_OK;
}

int __wrap_afd_device_event_fd(const struct afd_device *device)
{
    (void)device;
    return descriptor();
}

enum afd_status __wrap_afd_device_arm(struct afd_device *device)
{
    (void)device;
    return AFD_AGAIN; /* everything is over at once */
}

const struct rank_cluster *rank_cluster(const char *yaml)
{
    static struct rank_cluster c;
    struct afd_tiny_model tiny = afd_tiny_model_small();
    struct afd_error error = {.text = "no files"};
    char dir[] = "/tmp/afd-fuzz-XXXXXX", file[64], model[64], command[64];
    if (c.topology) return &c;
    if (!mkdtemp(dir)) abort();
    snprintf(file, sizeof file, "%s/topology.yaml", dir);
    snprintf(model, sizeof model, "%s/model", dir);
    FILE *f = fopen(file, "w");
    if (!f || fprintf(f, "cluster: fuzz\nmodel: { path: model }\n%s", yaml) < 0 || fclose(f) ||
        afd_tiny_model_write(&tiny, model, &error) || afd_topology_load(file, &c.topology, &error) ||
        afd_model_load(model, &c.model, &error) || afd_checkpoint_open(model, &c.checkpoint, &error)) {
        fprintf(stderr, "%s\n", error.text);
        abort();
    }
    snprintf(command, sizeof command, "rm -r %s", dir); /* what is open stays mapped */
    if (system(command)) abort();
    return &c;
}

/* ---- the input */

static void say(const uint8_t *data, size_t bytes)
{
    allocated = 0;
    Afd__Envelope *m = afd__envelope__unpack(&counting, bytes, data);
    if (m && m->body_case != AFD__ENVELOPE__BODY__NOT_SET && is_connected) {
        seen[m->body_case]++;
        if (m->body_case == AFD__ENVELOPE__BODY_REFUSED) /* the channel's own: it ends the connection */
            connect_again();
        else
            connection.message(m, connection.user);
    }
    if (allocated > RANK_MULTIPLE * bytes + RANK_FIXED) {
        fprintf(stderr, "a message of %zu bytes takes %zu\n", bytes, allocated);
        abort();
    }
    if (m) afd__envelope__free_unpacked(m, &counting);
}

static void step(enum rank_what what, uint8_t argument, const uint8_t *data, size_t bytes)
{
    switch (what) {
    case RANK_SAY:
    case RANK_SAY_TOO:
        say(data, bytes);
        break;
    case RANK_BREAK:
        connect_again();
        break;
    case RANK_PASS:
        rank_pass(AFD_MS(1) << argument % 16);
        break;
    case RANK_ASK:
        rank_ask(argument);
        break;
    case RANK_WHATS:
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    afd_log_init("fuzz", getenv("AFD_TEST_LOG") ? AFD_LOG_DEBUG : AFD_LOG_ERROR);
    rank_open();
    connect_again();
    int lives = rank_work();
    while (bytes >= HEAD && lives) {
        uint16_t part;
        memcpy(&part, data + 2, sizeof part);
        if (part > bytes - HEAD) part = (uint16_t)(bytes - HEAD);
        step((enum rank_what)(data[0] % RANK_WHATS), data[1], data + HEAD, part);
        lives = rank_work();
        rank_check();
        data += HEAD + part;
        bytes -= HEAD + part;
    }
    rank_close();
    for (uint32_t i = 0; i < RANK_PAIRS; i++) pairs[i].is_used = 0;
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
    return rank_is_served() && has_seen_all();
}

uint8_t *rank_add(uint8_t *at, enum rank_what what, uint8_t argument, Afd__Envelope__BodyCase body,
                  void *message)
{
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    uint16_t bytes = 0;
    e.body_case = body;
    e.greeting = message; /* a union of pointers */
    if (message) bytes = (uint16_t)afd__envelope__pack(&e, at + HEAD);
    at[0] = (uint8_t)what;
    at[1] = argument;
    memcpy(at + 2, &bytes, sizeof bytes);
    return at + HEAD + bytes;
}

uint8_t *rank_add_others(uint8_t *at, const unsigned *own, size_t count)
{
    const ProtobufCMessageDescriptor *types = &afd__envelope__descriptor;
    for (unsigned i = 0; i < types->n_fields; i++) {
        _Alignas(max_align_t) uint8_t message[1024];
        const ProtobufCMessageDescriptor *type = types->fields[i].descriptor;
        unsigned id = types->fields[i].id;
        size_t k = 0;
        while (k < count && own[k] != id) k++;
        if (k < count) continue;
        assert(id < TYPES && type->sizeof_message <= sizeof message);
        protobuf_c_message_init(type, message);
        at = rank_add(at, RANK_SAY, 0, (Afd__Envelope__BodyCase)id, message);
    }
    return at;
}

uint8_t *afd_fuzz_good_input(size_t *bytes_out)
{
    uint8_t *data = calloc(1, 1 << 16);
    if (!data) abort();
    *bytes_out = (size_t)(rank_good_steps(data) - data);
    return data;
}
