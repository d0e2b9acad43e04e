/* loop.c: the small reference: pairs between threads of one process.
 *
 * A transport has a mailbox: who may write where (a slot a pair), and a ring of messages. A put locks the
 * *receiver's* mailbox, checks the slot, copies into the region, appends a message and wakes the receiver if
 * it sleeps. To fence is to clear the slot under the same lock. Mailboxes are found by hello address in a
 * list of the process; a reference count keeps one alive while a peer still points at it. */
#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "transport/backend.h"

enum { RING = 1024 };

struct message {
    uint32_t index;
    uint64_t key;
    uint32_t region, bytes;
    uint16_t sequence;
    uint8_t is_open; /* the first one on a path: there is nothing to read */
};

struct slot {
    uint64_t key;
    const struct afd_region *regions;
    uint32_t count;
    int is_used;
};

struct mailbox {
    pthread_mutex_t lock;
    uint32_t references; /* under registry_lock */
    struct mailbox *next;
    char address[AFD_ADDRESS_BYTES];

    struct slot *slots; /* by the receiver's pair index */
    uint32_t slot_limit;
    struct message ring[RING];
    uint32_t first, count;
    int event_fd, is_armed, is_signalled;
};

struct loop {
    struct mailbox *own;
    int was_refused; /* a peer's ring was full: do not sleep before the next try */
};

/* Threads of one process must find each other: this is the one thing they share. */
static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static struct mailbox *registry;

static struct mailbox *mailbox_get(const char *address, size_t bytes)
{
    struct mailbox *box;
    pthread_mutex_lock(&registry_lock);
    for (box = registry; box; box = box->next)
        if (strlen(box->address) == bytes && !memcmp(box->address, address, bytes)) break;
    if (box) box->references++;
    pthread_mutex_unlock(&registry_lock);
    return box;
}

static void mailbox_put(struct mailbox *box)
{
    pthread_mutex_lock(&registry_lock);
    int is_last = --box->references == 0;
    pthread_mutex_unlock(&registry_lock);
    if (!is_last) return;
    pthread_mutex_destroy(&box->lock);
    close(box->event_fd);
    free(box->slots);
    free(box);
}

static enum afd_status loop_open(struct afd_transport *t, struct afd_error *error_out)
{
    struct loop *loop = calloc(1, sizeof *loop);
    struct mailbox *box = calloc(1, sizeof *box);
    if (box) box->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (!loop || !box || box->event_fd < 0) {
        free(loop);
        free(box);
        return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory or descriptors");
    }
    pthread_mutex_init(&box->lock, NULL);
    box->references = 1;
    snprintf(box->address, sizeof box->address, "%s", t->address);
    pthread_mutex_lock(&registry_lock);
    box->next = registry;
    registry = box;
    pthread_mutex_unlock(&registry_lock);
    loop->own = box;
    t->back[AFD_WAY_LOOP] = loop;
    return afd_transport_watch(t, box->event_fd);
}

static void loop_close(struct afd_transport *t)
{
    struct loop *loop = t->back[AFD_WAY_LOOP];
    pthread_mutex_lock(&registry_lock);
    struct mailbox **at = &registry;
    while (*at != loop->own) at = &(*at)->next;
    *at = loop->own->next;
    pthread_mutex_unlock(&registry_lock);
    mailbox_put(loop->own);
    free(loop);
}

static enum afd_status loop_add_memory(struct afd_transport *t, const struct afd_memory *memory,
                                       struct afd_error *error_out)
{
    (void)t;
    if (!memory->is_device) return AFD_OK;
    return afd_fail(error_out, AFD_ERR_REQUEST, "transport loop copies with the CPU");
}

static void loop_remove_memory(struct afd_transport *t, void *base)
{
    (void)t, (void)base;
}

static const void *loop_address(const struct afd_pair *pair, uint32_t *bytes_out)
{
    *bytes_out = (uint32_t)strlen(pair->transport->address);
    return pair->transport->address;
}

static int loop_reaches(struct afd_transport *t, const void *address, uint32_t bytes, char why_out[96])
{
    (void)t;
    struct mailbox *box = mailbox_get(address, bytes);
    if (box) mailbox_put(box);
    snprintf(why_out, 96, box ? "same process" : "not in this process");
    return box != NULL;
}

static enum afd_status loop_prepare(struct afd_pair *pair, struct afd_error *error_out)
{
    struct mailbox *own = ((struct loop *)pair->transport->back[AFD_WAY_LOOP])->own;
    enum afd_status status = AFD_OK;
    pthread_mutex_lock(&own->lock);
    if (pair->index >= own->slot_limit) {
        uint32_t limit = pair->transport->pair_limit;
        struct slot *slots = realloc(own->slots, limit * sizeof *slots);
        if (slots) {
            memset(slots + own->slot_limit, 0, (limit - own->slot_limit) * sizeof *slots);
            own->slots = slots;
            own->slot_limit = limit;
        } else {
            status = afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
        }
    }
    if (!status) own->slots[pair->index] = (struct slot){pair->key, pair->regions, pair->region_count, 1};
    pthread_mutex_unlock(&own->lock);
    if (!status)
        pair->path[AFD_WAY_LOOP] = mailbox_get(own->address, strlen(own->address)); /* until attach */
    return status;
}

/* Copies and appends, both under the receiver's lock: what is fenced is not written. */
static enum afd_status deliver(struct mailbox *to, const struct message *message, const void *from)
{
    enum afd_status status = AFD_OK;
    pthread_mutex_lock(&to->lock);
    const struct slot *slot = message->index < to->slot_limit ? &to->slots[message->index] : NULL;
    if (!slot || !slot->is_used || slot->key != message->key) {
        status = AFD_ERR_PEER; /* it let go of the pair; our hello socket is about to say so */
    } else if (to->count == RING) {
        status = AFD_AGAIN;
    } else {
        /* What does not fit is not written; the receiver finds the same when it checks, and poisons the pair.
         */
        if (!message->is_open && message->region < slot->count &&
            message->bytes <= slot->regions[message->region].bytes)
            if (message->bytes) memcpy(slot->regions[message->region].base, from, message->bytes);
        to->ring[(to->first + to->count++) % RING] = *message;
        if (to->is_armed) {
            to->is_armed = 0;
            to->is_signalled = 1;
            eventfd_write(to->event_fd, 1);
        }
    }
    pthread_mutex_unlock(&to->lock);
    return status;
}

static enum afd_status loop_attach(struct afd_pair *pair, const void *address, uint32_t bytes,
                                   struct afd_error *error_out)
{
    struct message open = {.index = pair->peer_index, .key = pair->peer_key, .is_open = 1};
    struct mailbox *to = mailbox_get(address, bytes);
    if (!to)
        return afd_fail(error_out, AFD_ERR_REFUSED, "transport loop: %.*s is not in this process", (int)bytes,
                        (const char *)address);
    mailbox_put(pair->path[AFD_WAY_LOOP]);
    pair->path[AFD_WAY_LOOP] = to;
    enum afd_status status = deliver(to, &open, NULL);
    if (status) return afd_fail(error_out, AFD_ERR_PEER, "the other side closed the pair or reads nothing");
    return AFD_OK;
}

static enum afd_status loop_put(struct afd_pair *pair, uint16_t region, const void *from, uint32_t bytes,
                                uint16_t sequence)
{
    struct message message = {pair->peer_index, pair->peer_key, region, bytes, sequence, 0};
    enum afd_status status = deliver(pair->path[AFD_WAY_LOOP], &message, from);
    if (status == AFD_AGAIN) ((struct loop *)pair->transport->back[AFD_WAY_LOOP])->was_refused = 1;
    return status;
}

static void loop_detach(struct afd_pair *pair)
{
    struct loop *loop = pair->transport->back[AFD_WAY_LOOP];
    pthread_mutex_lock(&loop->own->lock);
    struct slot *slot = pair->index < loop->own->slot_limit ? &loop->own->slots[pair->index] : NULL;
    if (slot && slot->key == pair->key) slot->is_used = 0;
    pthread_mutex_unlock(&loop->own->lock);
    if (pair->path[AFD_WAY_LOOP]) mailbox_put(pair->path[AFD_WAY_LOOP]);
    pair->path[AFD_WAY_LOOP] = NULL;
}

static int take(struct mailbox *own, struct message *message_out)
{
    pthread_mutex_lock(&own->lock);
    int some = own->count > 0;
    if (some) {
        *message_out = own->ring[own->first];
        own->first = (own->first + 1) % RING;
        own->count--;
    }
    pthread_mutex_unlock(&own->lock);
    return some;
}

static void loop_progress(struct afd_transport *t)
{
    struct loop *loop = t->back[AFD_WAY_LOOP];
    struct mailbox *own = loop->own;
    struct message m;
    pthread_mutex_lock(&own->lock);
    own->is_armed = 0;
    if (own->is_signalled) {
        eventfd_t ignored;
        eventfd_read(own->event_fd, &ignored);
        own->is_signalled = 0;
    }
    pthread_mutex_unlock(&own->lock);
    for (uint32_t i = 0; i < RING && take(own, &m); i++) {
        struct afd_pair *pair = afd_transport_find(t, m.index, m.key);
        if (!pair || !afd_pair_path_works(pair) || m.is_open) continue;
        if (afd_pair_check(pair, m.region, 0, m.bytes, m.bytes))
            afd_pair_notice(pair, (uint16_t)m.region, m.sequence, m.bytes);
    }
}

static enum afd_status loop_arm(struct afd_transport *t)
{
    struct loop *loop = t->back[AFD_WAY_LOOP];
    pthread_mutex_lock(&loop->own->lock);
    int is_busy = loop->own->count > 0 || loop->own->is_signalled || loop->was_refused;
    loop->own->is_armed = !is_busy;
    pthread_mutex_unlock(&loop->own->lock);
    loop->was_refused = 0;
    return is_busy ? AFD_AGAIN : AFD_OK;
}

const struct afd_backend afd_backend_loop = {
    .name = "loop",
    .way = AFD_WAY_LOOP,
    .open = loop_open,
    .close = loop_close,
    .add_memory = loop_add_memory,
    .remove_memory = loop_remove_memory,
    .address = loop_address,
    .prepare = loop_prepare,
    .reaches = loop_reaches,
    .attach = loop_attach,
    .put = loop_put,
    .detach = loop_detach,
    .progress = loop_progress,
    .arm = loop_arm,
};
