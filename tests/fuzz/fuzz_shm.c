/* Guards: a peer on the same host whose segment, table of regions or ring makes us write outside of what it
 * gave, read outside of ours, or take a message that does not fit its region.
 *
 *   | struct input | what the peer's segment begins with | entries it writes into our ring, 8 bytes each */
#include <assert.h>

#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/pair.h"
#include "transport/shm.c"

enum { PAGES = 4, REGIONS = 3, PEER_REGIONS = 4, MOST_BYTES = 1 << 20, ENTRY = 8 };

struct input {
    struct greeting greeting;
    uint64_t peer_regions[PEER_REGIONS];
    uint32_t peer_region_count;
    uint16_t segment_bytes; /* that follow */
    uint8_t lies;           /* 1: the file is smaller than it says; 2: it can shrink */
    uint8_t puts;
};

static struct afd_transport *transport;
static unsigned char *slab;
static int was_taken;

static void open_transport(void)
{
    struct afd_transport_config config = {.host = "127.0.0.1",
                                          .path = AFD_PATH_SHM,
                                          .connect_timeout_ms = 60000,
                                          .max_message_bytes = MOST_BYTES};
    struct afd_error error;
    char address[AFD_ADDRESS_BYTES];
    afd_log_init("fuzz", AFD_LOG_ERROR);
    config.base = event_base_new();
    config.self = (struct afd_identity){AFD_ROLE_FFN, 3, 77};
    slab = mmap(NULL, PAGES * page_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!config.base || slab == MAP_FAILED || afd_transport_open(&config, &transport, address, &error) ||
        afd_transport_register(transport, slab, PAGES * page_bytes()))
        abort();
}

static struct afd_pair *open_pair(const struct input *in)
{
    const struct afd_region regions[REGIONS] = {{.base = slab, .bytes = 100},
                                                {.base = slab + 100},
                                                {.base = slab + page_bytes(), .bytes = 2 * page_bytes()}};
    struct afd_error error;
    struct afd_pair *pair = afd_fuzz_pair_make(transport, &afd_backend_shm, 0, regions, REGIONS);
    pair->peer_region_count = in->peer_region_count % (PEER_REGIONS + 1);
    pair->peer_regions = calloc(PEER_REGIONS, sizeof *pair->peer_regions);
    if (!pair->peer_regions || shm_prepare(pair, &error) || make_segment(pair->path[AFD_WAY_SHM], &error))
        abort();
    memcpy(pair->peer_regions, in->peer_regions, pair->peer_region_count * sizeof *pair->peer_regions);
    return pair;
}

static void close_pair(struct afd_pair *pair)
{
    shm_detach(pair);
    afd_fuzz_pair_free(pair);
}

/* Its segment, with what the input says in it. */
static enum afd_status take_segment(struct path *path, const struct input *in, const uint8_t *content)
{
    struct shm *shm = transport->back[AFD_WAY_SHM];
    struct afd_error error = {""};
    uint64_t bytes = in->greeting.bytes < MOST_BYTES ? in->greeting.bytes : MOST_BYTES;
    if (in->lies & 1) bytes /= 2;
    int fd = in->lies & 2 ? memfd_create("afd-fuzz", MFD_CLOEXEC) : make_file("afd-fuzz", bytes);
    if (fd < 0 || (in->lies & 2 && ftruncate(fd, (off_t)bytes))) abort();
    if (pwrite(fd, content, in->segment_bytes, 0) < 0) errno = 0; /* past the end: sealed */
    const int fds[HANDED] = {fd, shm->page_fd, shm->event_fd};
    enum afd_status status = map_peer(path, &in->greeting, fds, &error);
    close(fd);
    if (!status) {
        assert(bytes == in->greeting.bytes && !(in->lies & 2));
        status = find_places(path, &error);
    }
    assert(!status || *error.text);
    return status;
}

static void write_to_peer(struct afd_pair *pair, const struct path *path, uint8_t count)
{
    static unsigned char from[MOST_BYTES];
    unsigned char *begin = (unsigned char *)path->remote, *end = begin + path->offered.bytes;
    for (uint32_t r = 0; r < pair->peer_region_count; r++) {
        const struct place *place = &path->places[r];
        assert(place->at >= begin && place->at <= end && place->bytes <= (uint64_t)(end - place->at));
        for (uint8_t i = 0; i < count && pair->peer.state == AFD_PEER_OPEN; i++)
            shm_put(pair, (uint16_t)r, from, (uint32_t)place->bytes, i);
    }
}

/* What the peer writes into our ring, however it numbers it, and what we make of it. */
static void take_ring(struct afd_pair *pair, struct path *path, const uint8_t *entries, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct entry *entry = &path->own->ring[i & (path->own_entries - 1)];
        uint64_t what;
        memcpy(&what, entries + i * ENTRY, sizeof what);
        atomic_store(&entry->what, what);
        atomic_store(&entry->turn, path->taken + 1);
        if (has_message(path)) take_messages(path);
        afd_fuzz_take_notices(pair);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct input in;
    was_taken = 0;
    if (!transport) open_transport();
    if (bytes < sizeof in) return 0;
    memcpy(&in, data, sizeof in);
    data += sizeof in;
    bytes -= sizeof in;
    if (in.segment_bytes > bytes) in.segment_bytes = (uint16_t)bytes;
    struct afd_pair *pair = open_pair(&in);
    struct path *path = pair->path[AFD_WAY_SHM];
    enum afd_status status = take_segment(path, &in, data);
    if (!status) write_to_peer(pair, path, in.puts);
    take_ring(pair, path, data + in.segment_bytes, (bytes - in.segment_bytes) / ENTRY);
    was_taken = !status && pair->peer.state == AFD_PEER_OPEN;
    close_pair(pair);
    return 0;
}

int afd_fuzz_was_taken(void)
{
    return was_taken;
}

uint8_t *afd_fuzz_good_input(size_t *bytes_out)
{
    static const uint64_t entries[] = {100, (uint64_t)2 << 48 | 5ull << 32 | 8192, (uint64_t)1 << 48};
    uint64_t head = control_bytes(MIN_ENTRIES, PEER_REGIONS);
    struct input in = {
        .peer_regions = {10, 0, 4096, 64},
        .peer_region_count = PEER_REGIONS,
        .greeting = {.entries = MIN_ENTRIES, .region_count = PEER_REGIONS, .bytes = head + 8192},
        .puts = 5};
    uint64_t begins[PEER_REGIONS] = {head, head, head + 4096, head + 1024};
    size_t begins_at = sizeof(struct control) + MIN_ENTRIES * sizeof(struct entry);
    in.segment_bytes = (uint16_t)(begins_at + sizeof begins);
    uint8_t *data = calloc(1, sizeof in + in.segment_bytes + sizeof entries);
    if (!data) abort();
    memcpy(data, &in, sizeof in);
    memcpy(data + sizeof in + begins_at, begins, sizeof begins);
    memcpy(data + sizeof in + in.segment_bytes, entries, sizeof entries);
    *bytes_out = sizeof in + in.segment_bytes + sizeof entries;
    return data;
}
