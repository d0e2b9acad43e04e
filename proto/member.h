/* member.h: a rank's side of membership: one authenticated connection to the scheduler, kept up.
 *
 * Connects, runs the challenge, sends Register, and hands every message of the scheduler to its owner. When
 * the connection ends it tries again with back-off, registering with the same incarnation; what the owner
 * sends meanwhile is refused with AFD_AGAIN, so that the owner keeps what matters (tokens). A refusal for
 * good (other version, secret, model or topology) is reported as `refused`, and a scheduler that stays away
 * for orphan_ms as `orphaned`: the owner then ends the process. One thread (the base's); nothing blocks. */
#ifndef AFD_PROTO_MEMBER_H
#define AFD_PROTO_MEMBER_H

#include "proto/channel.h"

struct afd_member;

struct afd_member_config {
    struct event_base *base;
    const char *scheduler; /* host:port */
    uint8_t secret[AFD_SECRET_BYTES];
    const Afd__Register *registration; /* must live as long as the member; sent at each connection */
    uint32_t orphan_ms;
    void (*registering)(void *user); /* Register is about to be sent: the owner may change it */
    void (*connected)(void *user);   /* it was sent */
    void (*disconnected)(const char *words, void *user);
    void (*message)(const Afd__Envelope *message, void *user);
    void (*refused)(const char *words, void *user);
    void (*orphaned)(void *user);
    void *user;
};

struct afd_member *afd_member_create(const struct afd_member_config *config, struct afd_error *error_out);
void afd_member_destroy(struct afd_member *member); /* NULL is allowed */
int afd_member_is_connected(const struct afd_member *member);
/* The times of an Assign are such as a topology may have. AFD_ERR_PROTOCOL with words: it is not to be
 * followed. */
enum afd_status afd_assign_check(const Afd__Assign *assign, struct afd_error *error_out);
enum afd_status afd_member_send(struct afd_member *member, const Afd__Envelope *message);

#endif
