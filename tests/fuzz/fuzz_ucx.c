/* Guards: a peer whose UCX address or active messages make us hand to UCX what no process of the cluster
 * packed, read past what came, put without a key or elsewhere than the address says, or take a message that
 * does not fit its region. UCX itself makes no endpoint here: it is not told how long what it unpacks is, and
 * what it does with other bytes than its own is its own affair (transport/ucx_path.c).
 *
 *   | struct input | address_bytes of an address | messages: struct message, then its data_bytes */
#include <assert.h>

#include "base/log.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/pair.h"
#include "transport/ucx_path.c"

enum { SLAB_BYTES = 64 << 10, REGIONS = 3, PEER_REGIONS = 4, WORKER_BYTES = 40, KEY_BYTES = 9, EP = 64 };

enum { IS_UNPROVED = 1, IS_ACCEPTOR = 2, HAS_NO_ENDPOINT = 4, HAS_BAD_KEYS = 8 };
struct input {
    uint64_t peer_regions[PEER_REGIONS]; /* bytes, from the hello */
    uint16_t address_bytes;
    uint8_t peer_region_count, flags;
    uint32_t unused;
};

struct message {
    struct ucx_header header;
    uint16_t data_bytes;
    uint8_t header_bytes, is_rendezvous;
    uint32_t unused;
};

ucs_status_t __wrap_ucp_ep_create(ucp_worker_h worker, const ucp_ep_params_t *params, ucp_ep_h *out);
ucs_status_t __wrap_ucp_ep_rkey_unpack(ucp_ep_h ep, const void *key, ucp_rkey_h *out);
void __wrap_ucp_rkey_destroy(ucp_rkey_h key);
ucs_status_ptr_t __wrap_ucp_am_send_nbx(ucp_ep_h ep, unsigned id, const void *header, size_t header_bytes,
                                        const void *data, size_t bytes, const ucp_request_param_t *param);
ucs_status_ptr_t __wrap_ucp_put_nbx(ucp_ep_h ep, const void *from, size_t bytes, uint64_t to, ucp_rkey_h key,
                                    const ucp_request_param_t *param);
ucs_status_ptr_t __wrap_ucp_ep_flush_nbx(ucp_ep_h ep, const ucp_request_param_t *param);
ucs_status_ptr_t __wrap_ucp_ep_close_nbx(ucp_ep_h ep, const ucp_request_param_t *param);

static struct afd_transport *transport;
static struct afd_pair *live;
static unsigned char slab[SLAB_BYTES] __attribute__((aligned(SLAB_BYTES)));
static int was_taken;

/* ---- UCX */

static const struct input *input;
static const unsigned char *stated; /* the input's address */

/* All that UCX might read: what is not ours to give makes the sanitizer speak. */
static unsigned sum_of(const void *at)
{
    unsigned sum = 0;
    for (size_t i = 0; i < UCX_SLACK; i++) sum += ((const unsigned char *)at)[i];
    return sum;
}

ucs_status_t __wrap_ucp_ep_create(ucp_worker_h worker, const ucp_ep_params_t *params, ucp_ep_h *out)
{
    static volatile unsigned sum;
    struct ucx_address head;
    (void)worker;
    assert(!(input->flags & IS_UNPROVED));
    memcpy(&head, stated, sizeof head);
    assert(head.worker_bytes && sizeof head + head.worker_bytes <= input->address_bytes);
    assert(!memcmp(params->address, stated + sizeof head, head.worker_bytes));
    sum += sum_of((const unsigned char *)params->address + head.worker_bytes);
    if (input->flags & HAS_NO_ENDPOINT) return UCS_ERR_UNREACHABLE;
    *out = malloc(EP);
    return *out ? UCS_OK : UCS_ERR_NO_MEMORY;
}

ucs_status_t __wrap_ucp_ep_rkey_unpack(ucp_ep_h ep, const void *key, ucp_rkey_h *out)
{
    static volatile unsigned sum;
    assert(ep);
    sum += sum_of(key);
    if (input->flags & HAS_BAD_KEYS) return UCS_ERR_UNREACHABLE;
    *out = malloc(EP);
    return *out ? UCS_OK : UCS_ERR_NO_MEMORY;
}

void __wrap_ucp_rkey_destroy(ucp_rkey_h key)
{
    free(key);
}

ucs_status_ptr_t __wrap_ucp_am_send_nbx(ucp_ep_h ep, unsigned id, const void *header, size_t header_bytes,
                                        const void *data, size_t bytes, const ucp_request_param_t *param)
{
    (void)id, (void)header, (void)param;
    assert(ep && header_bytes == sizeof(struct ucx_header));
    assert(!bytes || ((const unsigned char *)data >= slab && bytes <= SLAB_BYTES));
    return NULL;
}

/* Where the address says that a region lies. */
static uint64_t stated_base(uint32_t region)
{
    struct ucx_address head;
    memcpy(&head, stated, sizeof head);
    const unsigned char *at = stated + sizeof head + head.worker_bytes;
    for (uint32_t i = 0, first = 0; i < head.run_count; i++) {
        struct ucx_address_run run;
        memcpy(&run, at, sizeof run);
        at += sizeof run + run.key_bytes;
        for (uint32_t k = 0; k < run.regions; k++, first++) {
            if (first == region) return run.base;
            run.base += input->peer_regions[first];
        }
    }
    assert(!"a put to a region that the address does not have");
    return 0;
}

static uint32_t put_region;

ucs_status_ptr_t __wrap_ucp_put_nbx(ucp_ep_h ep, const void *from, size_t bytes, uint64_t to, ucp_rkey_h key,
                                    const ucp_request_param_t *param)
{
    (void)param;
    assert(ep && key && from == slab && to == stated_base(put_region));
    assert(bytes <= input->peer_regions[put_region]);
    return NULL;
}

ucs_status_ptr_t __wrap_ucp_ep_flush_nbx(ucp_ep_h ep, const ucp_request_param_t *param)
{
    (void)param;
    assert(ep);
    return NULL;
}

ucs_status_ptr_t __wrap_ucp_ep_close_nbx(ucp_ep_h ep, const ucp_request_param_t *param)
{
    (void)param;
    free(ep);
    return NULL;
}

/* ---- a transport and a pair */

static void open_transport(void)
{
    struct afd_transport_config config = {.kind = AFD_DATA_UCX,
                                          .path = (enum afd_data_path)AFD_PATH_TCP_PUT,
                                          .host = "127.0.0.1",
                                          .secret = {1, 2, 3},
                                          .connect_timeout_ms = 60000,
                                          .max_message_bytes = SLAB_BYTES};
    struct afd_error error;
    char address[AFD_ADDRESS_BYTES];
    afd_log_init("fuzz", AFD_LOG_ERROR);
    config.base = event_base_new();
    config.self = (struct afd_identity){AFD_ROLE_FFN, 3, 77};
    if (!config.base || afd_transport_open(&config, &transport, address, &error) ||
        afd_transport_register(transport, slab, SLAB_BYTES))
        abort();
    transport->pairs = &live;
    transport->pair_limit = 1;
}

static struct afd_pair *open_pair(const struct input *in)
{
    const struct afd_region regions[REGIONS] = {
        {.base = slab, .bytes = 100}, {.base = slab + 100}, {.base = slab + 4096, .bytes = 8192}};
    struct afd_error error;
    struct afd_pair *pair =
        afd_fuzz_pair_make(transport, &afd_backend_ucx, !(in->flags & IS_ACCEPTOR), regions, REGIONS);
    pair->peer_region_count = in->peer_region_count % (PEER_REGIONS + 1u);
    pair->peer_regions = calloc(PEER_REGIONS, sizeof *pair->peer_regions);
    if (!pair->peer_regions || afd_backend_ucx.prepare(pair, &error)) abort();
    memcpy(pair->peer_regions, in->peer_regions, sizeof in->peer_regions);
    return live = pair;
}

static void close_pair(struct afd_pair *pair)
{
    struct ucx *ucx = transport->back[AFD_WAY_UCX];
    afd_backend_ucx.detach(pair);
    ucx->is_miscounted = 0; /* UCX made no endpoint: the worker can serve the next pair */
    afd_fuzz_pair_free(pair);
    live = NULL;
}

/* ---- what the peer says, and what we do then */

static enum afd_status attach(struct afd_pair *pair, const void *address, uint32_t bytes)
{
    struct afd_error error = {""};
    char why[96] = "";
    int reaches = afd_backend_ucx.reaches(transport, address, bytes, why);
    assert(*why && memchr(why, 0, sizeof why) && (!reaches || !(input->flags & IS_UNPROVED)));
    enum afd_status status = afd_backend_ucx.attach(pair, address, bytes, &error);
    assert(!status || (*error.text && memchr(error.text, 0, sizeof error.text)));
    return status;
}

static void write_to_peer(struct afd_pair *pair)
{
    const struct ucx_path *path = pair->path[AFD_WAY_UCX];
    for (uint32_t r = 0; path->ep && pair->peer.state == AFD_PEER_OPEN && r < pair->peer_region_count; r++) {
        uint64_t bytes = pair->peer_regions[r] < SLAB_BYTES ? pair->peer_regions[r] : SLAB_BYTES;
        put_region = r;
        assert(!afd_pair_put(pair, (uint16_t)r, slab, (uint32_t)bytes, 7));
    }
}

static void take_messages(struct afd_pair *pair, const uint8_t *at, size_t left)
{
    const struct ucx *ucx = transport->back[AFD_WAY_UCX];
    struct message m;
    while (left >= sizeof m) {
        memcpy(&m, at, sizeof m);
        at += sizeof m;
        left -= sizeof m;
        size_t bytes = m.data_bytes < left ? m.data_bytes : left;
        size_t header_bytes = m.header_bytes < sizeof m.header ? m.header_bytes : sizeof m.header;
        void *data = malloc(bytes + !bytes);
        if (!data) abort();
        memcpy(data, at, bytes);
        at += bytes;
        left -= bytes;
        ucp_am_recv_param_t param = {.recv_attr = m.is_rendezvous ? UCP_AM_RECV_ATTR_FLAG_RNDV : 0};
        assert(ucx->on_message(transport, &m.header, header_bytes, data, bytes, &param) == UCS_OK);
        free(data);
        afd_fuzz_take_notices(pair);
    }
    afd_backend_ucx.progress(transport); /* what an acceptor heard makes its endpoint here */
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
    if (in.address_bytes > bytes) in.address_bytes = (uint16_t)bytes;
    unsigned char *address = malloc(in.address_bytes + !in.address_bytes);
    if (!address) abort();
    memcpy(address, data, in.address_bytes);
    if (in.address_bytes >= AFD_HASH_BYTES && !(in.flags & IS_UNPROVED))
        prove(transport, address, in.address_bytes, address);
    input = &in;
    stated = address;
    struct afd_pair *pair = open_pair(&in);
    enum afd_status status = attach(pair, address, in.address_bytes);
    if (!status) take_messages(pair, data + in.address_bytes, bytes - in.address_bytes);
    if (!status) write_to_peer(pair);
    was_taken = !status && pair->peer.state == AFD_PEER_OPEN;
    close_pair(pair);
    free(address);
    return 0;
}

int afd_fuzz_was_taken(void)
{
    return was_taken;
}

static uint8_t *append(uint8_t *at, const void *from, size_t bytes)
{
    memcpy(at, from, bytes);
    return at + bytes;
}

static uint8_t *append_message(uint8_t *at, uint16_t region, uint32_t offset, uint32_t bytes,
                               uint16_t part_bytes)
{
    struct message m = {.header = {.kind = UCX_PART,
                                   .key = 0x1234567890abcdef,
                                   .offset = offset,
                                   .bytes = bytes,
                                   .region = region,
                                   .sequence = 5},
                        .data_bytes = part_bytes,
                        .header_bytes = sizeof m.header};
    return append(at, &m, sizeof m) + part_bytes;
}

uint8_t *afd_fuzz_good_input(size_t *bytes_out)
{
    struct input in = {.peer_regions = {100, 4096, 0, 60000}, .peer_region_count = PEER_REGIONS};
    struct ucx_address head = {.way = "tcp put", .worker_bytes = WORKER_BYTES, .run_count = 2};
    struct ucx_address_run runs[] = {{.base = 0x7f0000001000, .regions = 2, .key_bytes = KEY_BYTES},
                                     {.base = 0x7f0000800000, .regions = 2, .key_bytes = KEY_BYTES}};
    uint8_t *data = calloc(1, 1024), *at = data + sizeof in;
    if (!data) abort();
    at = append(at, &head, sizeof head) + WORKER_BYTES;
    for (int i = 0; i < 2; i++) at = append(at, &runs[i], sizeof runs[i]) + KEY_BYTES;
    in.address_bytes = (uint16_t)(at - data - (int)sizeof in);
    append(data, &in, sizeof in);
    at = append_message(at, 0, 0, 100, 100);
    at = append_message(at, 1, 0, 0, 0);
    at = append_message(at, 2, 0, 150, 100);
    at = append_message(at, 2, 100, 150, 50);
    *bytes_out = (size_t)(at - data);
    return data;
}
