/* hello.c: PairHello and PairAccept, the two messages that make a pair after the challenge. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "transport/backend.h"

/* The caller frees `bytes` of the table. */
static enum afd_status fill_table(const struct afd_pair *pair, Afd__RegionTable *table)
{
    afd__region_table__init(table);
    table->n_bytes = pair->region_count;
    table->bytes = calloc(pair->region_count + 1u, sizeof *table->bytes);
    if (!table->bytes) return AFD_ERR_MEMORY;
    for (uint32_t i = 0; i < pair->region_count; i++) table->bytes[i] = pair->regions[i].bytes;
    return AFD_OK;
}

static Afd__PathOffer offer_of(const struct afd_pair *pair, const struct afd_backend *backend)
{
    Afd__PathOffer offer = AFD__PATH_OFFER__INIT;
    uint32_t bytes = 0;
    const void *address = pair->path[backend->way] ? backend->address(pair, &bytes) : NULL;
    offer.name = (char *)backend->name;
    offer.address = (ProtobufCBinaryData){address ? bytes : 0, (uint8_t *)address};
    return offer;
}

enum afd_status afd_hello_send(struct afd_pair *pair)
{
    struct afd_transport *t = pair->transport;
    struct afd_agreement *agreement = &t->config.agreement;
    Afd__RegionTable table;
    enum afd_status status = fill_table(pair, &table);
    if (status) return status;
    Afd__PairHello hello = AFD__PAIR_HELLO__INIT;
    hello.role = (Afd__Role)pair->peer.self.role;
    hello.rank = pair->peer.self.rank;
    hello.incarnation = pair->peer.self.incarnation;
    hello.to_role = (Afd__Role)pair->peer.other.role;
    hello.to_rank = pair->peer.other.rank;
    hello.to_incarnation = pair->peer.other.incarnation;
    hello.generation = pair->peer.generation;
    hello.epoch = pair->peer.epoch;
    hello.model_hash = (ProtobufCBinaryData){sizeof agreement->model_hash, agreement->model_hash};
    hello.dtypes = agreement->dtypes;
    hello.layout = agreement->layout;
    hello.numerics = agreement->numerics;
    hello.regions = &table;
    hello.pair_index = pair->index;
    hello.pair_key = pair->key;
    Afd__PathOffer offers[AFD_WAYS], *paths[AFD_WAYS];
    hello.paths = paths;
    for (uint32_t i = 0; i < t->backend_count; i++) {
        offers[i] = offer_of(pair, t->backends[i]);
        if (offers[i].address.data) paths[hello.n_paths++] = &offers[i];
    }
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    e.body_case = AFD__ENVELOPE__BODY_PAIR_HELLO;
    e.pair_hello = &hello;
    status = afd_channel_send(pair->channel, &e);
    free(table.bytes);
    return status;
}

enum afd_status afd_hello_send_accept(struct afd_pair *pair)
{
    Afd__RegionTable table;
    enum afd_status status = fill_table(pair, &table);
    if (status) return status;
    Afd__PairAccept accept = AFD__PAIR_ACCEPT__INIT;
    accept.regions = &table;
    accept.pair_index = pair->index;
    accept.pair_key = pair->key;
    Afd__PathOffer path = offer_of(pair, pair->backend);
    path.why = pair->path_why;
    accept.path = &path;
    Afd__Envelope e = AFD__ENVELOPE__INIT;
    e.body_case = AFD__ENVELOPE__BODY_PAIR_ACCEPT;
    e.pair_accept = &accept;
    status = afd_channel_send(pair->channel, &e);
    free(table.bytes);
    return status;
}

static enum afd_status read_peer(struct afd_pair *pair, const Afd__RegionTable *table, uint32_t index,
                                 uint64_t key, struct afd_error *error_out)
{
    uint32_t count = table ? (uint32_t)table->n_bytes : 0;
    if ((table && table->n_bytes > AFD_MAX_REGIONS) || index >= AFD_MAX_PAIRS)
        return afd_fail(error_out, AFD_ERR_PROTOCOL,
                        "a hello with %zu regions and pair index %u: at most %d and %d",
                        table ? table->n_bytes : 0, index, AFD_MAX_REGIONS, AFD_MAX_PAIRS);
    pair->peer_regions = calloc(count + 1u, sizeof *pair->peer_regions);
    if (!pair->peer_regions) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    if (count) memcpy(pair->peer_regions, table->bytes, count * sizeof *pair->peer_regions);
    pair->peer_region_count = count;
    pair->peer_index = index;
    pair->peer_key = key;
    return AFD_OK;
}

static enum afd_status differ(struct afd_error *error_out, const char *what, const char *other,
                              const char *theirs, const char *self, const char *ours)
{
    return afd_fail(error_out, AFD_ERR_REFUSED, "%s: %s has '%.200s', %s has '%.200s'", what, other, theirs,
                    self, ours);
}

static enum afd_status compare(const struct afd_pair *pair, const Afd__PairHello *hello,
                               struct afd_error *error_out)
{
    const struct afd_agreement *ours = &pair->transport->config.agreement;
    char self[24], other[24], their_hash[2 * AFD_HASH_BYTES + 1], our_hash[2 * AFD_HASH_BYTES + 1];
    afd_identity_text(&pair->peer.self, self);
    afd_identity_text(&pair->peer.other, other);
    if (memcmp(hello->model_hash.data, ours->model_hash, AFD_HASH_BYTES)) {
        afd_hex(hello->model_hash.data, AFD_HASH_BYTES, their_hash);
        afd_hex(ours->model_hash, AFD_HASH_BYTES, our_hash);
        return differ(error_out, "models differ: another checkpoint or configuration", other, their_hash,
                      self, our_hash);
    }
    if (strcmp(hello->dtypes, ours->dtypes))
        return differ(error_out, "data types differ", other, hello->dtypes, self, ours->dtypes);
    if (strcmp(hello->layout, ours->layout))
        return differ(error_out, "layouts differ", other, hello->layout, self, ours->layout);
    if (strcmp(hello->numerics, ours->numerics))
        return differ(error_out, "numerics differ", other, hello->numerics, self, ours->numerics);
    return AFD_OK;
}

enum afd_status afd_hello_read(struct afd_pair *pair, const Afd__PairHello *hello,
                               struct afd_error *error_out)
{
    const struct afd_identity *self = &pair->peer.self;
    char self_text[24], to_text[24];
    if (hello->role >= (Afd__Role)AFD_ROLE_COUNT || hello->rank >= AFD_MAX_RANKS ||
        hello->model_hash.len != AFD_HASH_BYTES)
        return afd_fail(error_out, AFD_ERR_PROTOCOL,
                        "a hello of role %d, rank %u, with a model hash of %zu bytes", (int)hello->role,
                        hello->rank, hello->model_hash.len);
    pair->peer.other = (struct afd_identity){(enum afd_role)hello->role, hello->rank, hello->incarnation};
    pair->peer.generation = hello->generation;
    pair->peer.epoch = hello->epoch;
    struct afd_identity to = {(enum afd_role)hello->to_role, hello->to_rank, hello->to_incarnation};
    int is_other_process = to.incarnation && to.incarnation != self->incarnation;
    if (to.role != self->role || to.rank != self->rank || is_other_process)
        return afd_fail(error_out, AFD_ERR_REFUSED,
                        "the hello is for %s of incarnation %016" PRIx64
                        ", this is %s of incarnation %016" PRIx64,
                        afd_identity_text(&to, to_text), to.incarnation, afd_identity_text(self, self_text),
                        self->incarnation);
    enum afd_status status = compare(pair, hello, error_out);
    if (!status)
        status = afd_peer_book_check(&pair->transport->book, &pair->peer.other, hello->generation, error_out);
    if (status) return status;
    status = read_peer(pair, hello->regions, hello->pair_index, hello->pair_key, error_out);
    return status ? status : afd_paths_choose(pair, hello->paths, hello->n_paths, error_out);
}

enum afd_status afd_hello_read_accept(struct afd_pair *pair, const Afd__PairAccept *accept,
                                      struct afd_error *error_out)
{
    enum afd_status status =
        read_peer(pair, accept->regions, accept->pair_index, accept->pair_key, error_out);
    return status ? status : afd_paths_chosen(pair, accept->path, error_out);
}
