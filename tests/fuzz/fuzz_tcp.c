/* Guards: a peer whose records make us write outside of our regions, or take a message that does not fit, in
 * whatever pieces they come; a stranger whose greeting is taken for a peer's.
 *
 *   | struct input | what the peer sends, in pieces of the sizes that the input says */
#include <assert.h>

#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/pair.h"
#include "transport/tcp.c"
#include "transport/tcp_connect.c"

enum { REGIONS = 3, PIECES = 8, PAGE = 4096, GUARD = 64, SLAB = 4 * PAGE, MOST_BYTES = 1 << 16 };

struct input {
    uint16_t pieces[PIECES]; /* in turns; 0: all at once */
    uint8_t is_guest;        /* the connection has still to prove whose it is */
    uint8_t knows;           /* then, bit by bit: the pair's key, the magic number, the pair's index */
    uint8_t unused[6];
};

static struct afd_transport *transport;
static unsigned char *slab;
static int was_taken;

static void open_transport(void)
{
    struct afd_transport_config config = {.host = "127.0.0.1",
                                          .kind = AFD_DATA_TCP,
                                          .path = AFD_PATH_TCP,
                                          .connect_timeout_ms = 60000,
                                          .max_message_bytes = MOST_BYTES};
    struct afd_error error;
    char address[AFD_ADDRESS_BYTES];
    afd_log_init("fuzz", AFD_LOG_ERROR);
    config.base = event_base_new();
    config.self = (struct afd_identity){AFD_ROLE_FFN, 3, 77};
    slab = aligned_alloc(PAGE, SLAB);
    if (!config.base || !slab || afd_transport_open(&config, &transport, address, &error) ||
        afd_transport_register(transport, slab, SLAB))
        abort();
    transport->pair_limit = 1;
    transport->pairs = calloc(1, sizeof(struct afd_pair *));
    if (!transport->pairs) abort();
}

static struct afd_pair *open_pair(void)
{
    const struct afd_region regions[REGIONS] = {
        {.base = slab + GUARD, .bytes = 100}, {.base = slab + 512}, {.base = slab + PAGE, .bytes = 2 * PAGE}};
    struct afd_error error;
    struct afd_pair *pair = afd_fuzz_pair_make(transport, &afd_backend_tcp, 0, regions, REGIONS);
    pair->peer.state = AFD_PEER_GREETED;
    pair->peer.is_accepted = 1;
    if (tcp_prepare(pair, &error)) abort();
    ((struct tcp_path *)pair->path[AFD_WAY_TCP])->is_attached = 1;
    return pair;
}

static void close_pair(struct afd_pair *pair)
{
    transport->pairs[0] = NULL;
    tcp_detach(pair);
    afd_fuzz_pair_free(pair);
}

/* A connection of our own as its guest: the greeting, and what becomes of it. */
static void greet(struct afd_pair *pair, int end, const uint8_t *data, size_t bytes, const struct input *in)
{
    struct tcp *tcp = transport->back[AFD_WAY_TCP];
    struct tcp_path *path = pair->path[AFD_WAY_TCP];
    struct tcp_greeting greeting = {0};
    struct tcp_guest *guest = calloc(1, sizeof *guest);
    if (!guest) abort();
    memcpy(&greeting, data, bytes < sizeof greeting ? bytes : sizeof greeting);
    if (in->knows & 1) greeting.key = pair->key;
    if (in->knows & 2) greeting.magic = TCP_MAGIC;
    if (in->knows & 4) greeting.index = pair->index;
    guest->transport = transport;
    guest->fd = end;
    tcp->guests = guest;
    tcp->guest_count = 1;
    if (send(path->fd, &greeting, sizeof greeting, MSG_NOSIGNAL) != sizeof greeting) abort();
    close(path->fd);
    path->fd = -1;
    while (tcp->guests) on_guest(end, EV_READ, tcp->guests);
    int knows = greeting.magic == TCP_MAGIC && greeting.index == pair->index && greeting.key == pair->key;
    assert(knows == (path->fd >= 0));
}

static void expect_guards(void)
{
    for (int i = 0; i < SLAB; i++) {
        int is_inside = (i >= GUARD && i < GUARD + 100) || (i >= PAGE && i < 3 * PAGE);
        assert(is_inside || slab[i] == 0xee);
    }
}

/* Sends it piece by piece, and takes the notices. */
static void feed(struct afd_pair *pair, int peer, const uint8_t *data, size_t bytes, const struct input *in)
{
    for (size_t at = 0, i = 0; at < bytes && pair->peer.state == AFD_PEER_OPEN; i++) {
        size_t piece = in->pieces[i % PIECES] ? in->pieces[i % PIECES] : bytes - at;
        if (piece > bytes - at) piece = bytes - at;
        ssize_t n = send(peer, data + at, piece, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n <= 0) break;
        at += (size_t)n;
        do {
            tcp_progress(transport);
            afd_fuzz_take_notices(pair);
        } while (tcp_arm(transport) == AFD_AGAIN);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct input in;
    int ends[2];
    was_taken = 0;
    if (!transport) open_transport();
    if (bytes < sizeof in) return 0;
    memcpy(&in, data, sizeof in);
    data += sizeof in;
    bytes -= sizeof in;
    if (bytes > MOST_BYTES) bytes = MOST_BYTES;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends)) abort();
    memset(slab, 0xee, SLAB);
    struct afd_pair *pair = open_pair();
    struct tcp_path *path = pair->path[AFD_WAY_TCP];
    transport->pairs[0] = pair;
    path->fd = ends[0];
    if (in.is_guest & 1) {
        path->fd = dup(ends[1]);
        greet(pair, ends[0], data, bytes, &in);
    } else {
        pair->peer.state = AFD_PEER_OPEN;
        path->is_heard = 1;
        if (!afd_tcp_path_begin(path)) abort();
        feed(pair, ends[1], data, bytes, &in);
    }
    expect_guards();
    was_taken = pair->peer.state == AFD_PEER_OPEN;
    close_pair(pair);
    close(ends[1]);
    return 0;
}

int afd_fuzz_was_taken(void)
{
    return was_taken;
}

uint8_t *afd_fuzz_good_input(size_t *bytes_out)
{
    static const struct input in = {.pieces = {3, 8, 0, 5000, 1, 77, 0, 4096}};
    static const struct tcp_record records[] = {{100, 0, 1}, {0, 1, 2}, {2 * PAGE, 2, 3}, {7, 0, 4}};
    uint8_t *data = calloc(1, sizeof in + sizeof records + 3 * PAGE);
    if (!data) abort();
    memcpy(data, &in, sizeof in);
    size_t at = sizeof in;
    for (size_t i = 0; i < sizeof records / sizeof *records; i++) {
        memcpy(data + at, &records[i], sizeof *records);
        at += sizeof *records + records[i].bytes;
    }
    *bytes_out = at;
    return data;
}
