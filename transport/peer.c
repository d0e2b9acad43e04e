#include "transport/peer.h"

#include <assert.h>
#include <stdio.h>

static const char *role_text(enum afd_role role)
{
    return role == AFD_ROLE_ATTN ? "attn" : "ffn";
}

const char *afd_identity_text(const struct afd_identity *identity, char out[24])
{
    snprintf(out, 24, "%s/%u", role_text(identity->role), identity->rank);
    return out;
}

void afd_peer_init(struct afd_peer *peer, int is_connector, const struct afd_identity *self, afd_ns now,
                   afd_ns limit)
{
    *peer = (struct afd_peer){
        .state = AFD_PEER_CONNECTING,
        .is_connector = is_connector,
        .self = *self,
        .began = now,
        .deadline = now + limit,
    };
}

static enum afd_peer_action open_if_ready(struct afd_peer *peer, enum afd_peer_action otherwise)
{
    if (!peer->is_accepted || !peer->path_works) return otherwise;
    peer->state = AFD_PEER_OPEN;
    return otherwise == AFD_PEER_ATTACH ? AFD_PEER_ATTACH_OPEN : AFD_PEER_REPORT_OPEN;
}

/* An acceptor's owner has heard of a pair once the hello was valid; a connector's from the start. */
static int owner_knows(const struct afd_peer *peer)
{
    return peer->is_connector || peer->state >= AFD_PEER_GREETED;
}

static enum afd_peer_action on_accepted(struct afd_peer *peer)
{
    enum afd_peer_state expected = peer->is_connector ? AFD_PEER_CHALLENGED : AFD_PEER_GREETED;
    if (peer->state != expected || peer->is_accepted) return AFD_PEER_VIOLATED;
    peer->state = AFD_PEER_GREETED;
    peer->is_accepted = 1;
    return open_if_ready(peer, AFD_PEER_ATTACH);
}

/* An acceptor sets up its path before its accept is read, so a connector may hear the path first. A
 * connector's path cannot speak before our accept. */
static enum afd_peer_action on_path(struct afd_peer *peer)
{
    if (peer->state == AFD_PEER_OPEN) return AFD_PEER_NOTHING;
    if (peer->is_connector ? peer->state != AFD_PEER_CHALLENGED && peer->state != AFD_PEER_GREETED
                           : !peer->is_accepted)
        return AFD_PEER_VIOLATED;
    peer->path_works = 1;
    return open_if_ready(peer, AFD_PEER_NOTHING);
}

enum afd_peer_action afd_peer_on(struct afd_peer *peer, enum afd_peer_input input)
{
    enum afd_peer_action action;
    if (peer->state == AFD_PEER_FENCED) return AFD_PEER_NOTHING;
    if (input == AFD_PEER_CLOSE) {
        peer->state = AFD_PEER_FENCED;
        return AFD_PEER_NOTHING;
    }
    if (peer->state == AFD_PEER_LOST) return AFD_PEER_NOTHING;
    switch (input) {
    case AFD_PEER_PROVED:
        if (peer->state != AFD_PEER_CONNECTING) return AFD_PEER_VIOLATED;
        peer->state = AFD_PEER_CHALLENGED;
        return peer->is_connector ? AFD_PEER_SEND_HELLO : AFD_PEER_NOTHING;
    case AFD_PEER_HELLO:
        if (peer->is_connector || peer->state != AFD_PEER_CHALLENGED) return AFD_PEER_VIOLATED;
        peer->state = AFD_PEER_GREETED;
        return AFD_PEER_ASK_OWNER;
    case AFD_PEER_ACCEPTED:
        return on_accepted(peer);
    case AFD_PEER_PATH:
        return on_path(peer);
    case AFD_PEER_END:
        action = owner_knows(peer) ? AFD_PEER_REPORT_LOST : AFD_PEER_FORGET;
        peer->state = AFD_PEER_LOST;
        return action;
    case AFD_PEER_CLOSE:
        break;
    }
    return AFD_PEER_NOTHING;
}

static const char *awaited(const struct afd_peer *peer)
{
    if (peer->state == AFD_PEER_CONNECTING) return "finish the challenge";
    if (peer->state == AFD_PEER_CHALLENGED) return peer->is_connector ? "answer the hello" : "send its hello";
    return peer->is_accepted ? "speak on the data path" : "be accepted here";
}

enum afd_status afd_peer_expire(const struct afd_peer *peer, afd_ns now, struct afd_error *error_out)
{
    if (peer->state >= AFD_PEER_OPEN || now < peer->deadline) return AFD_OK;
    char self[24], other[24];
    int is_known = peer->is_connector || peer->state >= AFD_PEER_GREETED;
    return afd_fail(error_out, AFD_ERR_DEADLINE, "%s waited %llu ms for %s to %s",
                    afd_identity_text(&peer->self, self),
                    (unsigned long long)((now - peer->began) / 1000000u),
                    is_known ? afd_identity_text(&peer->other, other) : "a connection", awaited(peer));
}

enum afd_status afd_peer_book_check(const struct afd_peer_book *book, const struct afd_identity *who,
                                    uint32_t generation, struct afd_error *error_out)
{
    assert(who->role < AFD_ROLE_COUNT && who->rank < AFD_MAX_RANKS);
    const struct afd_peer_record *r = &book->of[who->role][who->rank];
    char text[24];
    if (r->incarnation == who->incarnation && generation < r->next)
        return afd_fail(error_out, AFD_ERR_REFUSED,
                        "%s: generation %u is not newer than %u, which was accepted",
                        afd_identity_text(who, text), generation, (uint32_t)(r->next - 1));
    return AFD_OK;
}

uint32_t afd_peer_book_accept(struct afd_peer_book *book, const struct afd_identity *who, uint32_t generation,
                              uint32_t index)
{
    struct afd_peer_record *r = &book->of[who->role][who->rank];
    uint32_t old = r->live;
    *r = (struct afd_peer_record){who->incarnation, (uint64_t)generation + 1, index + 1};
    return old;
}

void afd_peer_book_leave(struct afd_peer_book *book, const struct afd_identity *who, uint32_t index)
{
    struct afd_peer_record *r = &book->of[who->role][who->rank];
    if (r->live == index + 1) r->live = 0;
}
