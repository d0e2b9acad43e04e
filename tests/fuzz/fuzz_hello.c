/* Guards: a PairHello or PairAccept that crashes a rank, or is taken with regions, identity or data path that
 * the rest of the transport does not expect.
 *
 *   | uint16: bytes of the hello | PairHello, to an acceptor | PairAccept, to a connector */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "tests/fuzz/fuzz.h"
#include "transport/backend.h"

static struct afd_transport *transport;
static int was_taken;

static void open_transport(void)
{
    struct afd_transport_config config = {
        .host = "127.0.0.1", .connect_timeout_ms = 60000, .max_message_bytes = 1 << 20};
    struct afd_error error;
    char address[AFD_ADDRESS_BYTES];
    afd_log_init("fuzz", AFD_LOG_ERROR);
    config.base = event_base_new();
    config.self = (struct afd_identity){AFD_ROLE_FFN, 3, 77};
    memset(config.agreement.model_hash, 9, sizeof config.agreement.model_hash);
    strcpy(config.agreement.dtypes, "a2f=bf16 f2a=bf16");
    strcpy(config.agreement.layout, "hidden=64");
    strcpy(config.agreement.numerics, "portable/2");
    if (!config.base || afd_transport_open(&config, &transport, address, &error)) abort();
}

static struct afd_pair *open_pair(int is_connector)
{
    struct afd_error error;
    struct afd_pair *pair = calloc(1, sizeof *pair);
    if (!pair) abort();
    pair->transport = transport;
    afd_peer_init(&pair->peer, is_connector, &transport->config.self, 0, AFD_MS(60000));
    if (!is_connector) return pair;
    pair->peer.other = (struct afd_identity){AFD_ROLE_ATTN, 5, 0};
    if (afd_paths_prepare(pair, &error)) abort();
    return pair;
}

static void close_pair(struct afd_pair *pair)
{
    afd_paths_detach(pair);
    free(pair->peer_regions);
    free(pair->peer_address);
    free(pair);
}

static void check(const struct afd_pair *pair, enum afd_status status, const struct afd_error *error)
{
    volatile uint64_t sum = 0;
    if (status) {
        assert(status == AFD_ERR_PROTOCOL || status == AFD_ERR_REFUSED);
        assert(*error->text && memchr(error->text, 0, sizeof error->text));
        return;
    }
    assert(pair->peer.other.role < AFD_ROLE_COUNT && pair->peer.other.rank < AFD_MAX_RANKS);
    assert(pair->peer_region_count <= AFD_MAX_REGIONS && pair->peer_index < AFD_MAX_PAIRS);
    assert(pair->backend && pair->peer_address && pair->peer_address_bytes <= AFD_PATH_ADDRESS_BYTES);
    for (uint32_t i = 0; i < pair->peer_region_count; i++) sum += pair->peer_regions[i];
    for (uint32_t i = 0; i < pair->peer_address_bytes; i++) sum += ((const uint8_t *)pair->peer_address)[i];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct afd_error error = {""};
    uint16_t first;
    was_taken = 0;
    if (!transport) open_transport();
    if (bytes < sizeof first) return 0;
    memcpy(&first, data, sizeof first);
    data += sizeof first;
    bytes -= sizeof first;
    if (first > bytes) first = (uint16_t)bytes;
    Afd__PairHello *hello = afd__pair_hello__unpack(NULL, first, data);
    Afd__PairAccept *accept = afd__pair_accept__unpack(NULL, bytes - first, data + first);
    if (hello) {
        struct afd_pair *pair = open_pair(0);
        enum afd_status status = afd_hello_read(pair, hello, &error);
        check(pair, status, &error);
        was_taken = !status;
        close_pair(pair);
        afd__pair_hello__free_unpacked(hello, NULL);
    }
    if (accept) {
        struct afd_pair *pair = open_pair(1);
        enum afd_status status = afd_hello_read_accept(pair, accept, &error);
        check(pair, status, &error);
        was_taken &= !status;
        close_pair(pair);
        afd__pair_accept__free_unpacked(accept, NULL);
    } else
        was_taken = 0;
    return 0;
}

int afd_fuzz_was_taken(void)
{
    return was_taken;
}

uint8_t *afd_fuzz_good_input(size_t *bytes_out)
{
    if (!transport) open_transport();
    struct afd_agreement *agreement = &transport->config.agreement;
    struct afd_pair *pair = open_pair(1);
    uint64_t sizes[] = {0, 64, 4096, 1 << 20};
    Afd__RegionTable table = AFD__REGION_TABLE__INIT;
    Afd__PathOffer offers[AFD_WAYS], *paths[AFD_WAYS];
    Afd__PairHello hello = AFD__PAIR_HELLO__INIT;
    Afd__PairAccept accept = AFD__PAIR_ACCEPT__INIT;
    uint8_t *data = calloc(1, 4 * AFD_PATH_ADDRESS_BYTES);
    if (!data) abort();
    table.n_bytes = sizeof sizes / sizeof *sizes;
    table.bytes = sizes;
    hello.role = AFD__ROLE__ATTN;
    hello.rank = 5;
    hello.incarnation = 99;
    hello.to_role = (Afd__Role)transport->config.self.role;
    hello.to_rank = transport->config.self.rank;
    hello.to_incarnation = transport->config.self.incarnation;
    hello.generation = 1;
    hello.model_hash = (ProtobufCBinaryData){AFD_HASH_BYTES, agreement->model_hash};
    hello.dtypes = agreement->dtypes;
    hello.layout = agreement->layout;
    hello.numerics = agreement->numerics;
    hello.regions = accept.regions = &table;
    hello.pair_key = accept.pair_key = 0x1234567890abcdef;
    hello.pair_index = accept.pair_index = AFD_MAX_PAIRS - 1;
    hello.paths = paths;
    for (uint32_t i = 0; i < transport->backend_count; i++) {
        const struct afd_backend *b = transport->backends[i];
        uint32_t address_bytes;
        const void *address = pair->path[b->way] ? b->address(pair, &address_bytes) : NULL;
        if (!address) continue;
        Afd__PathOffer *offer = &offers[hello.n_paths];
        afd__path_offer__init(offer);
        offer->name = (char *)b->name;
        offer->address = (ProtobufCBinaryData){address_bytes, (uint8_t *)address};
        paths[hello.n_paths++] = offer;
    }
    accept.path = paths[0];
    uint16_t first = (uint16_t)afd__pair_hello__pack(&hello, data + 2);
    memcpy(data, &first, sizeof first);
    *bytes_out = 2 + first + afd__pair_accept__pack(&accept, data + 2 + first);
    close_pair(pair);
    return data;
}
