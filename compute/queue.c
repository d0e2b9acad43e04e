#include "compute/queue.h"

#include "compute/loader.h"

#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum state { WAITING, DONE, REPORTED }; /* REPORTED: also one that needs no event */

struct entry {
    struct afd_op op;
    _Atomic int state;
    enum afd_status status;
    uint64_t busy_ns;
    uint64_t token; /* the back end's, of an op under way */
    afd_ns began;
};

struct afd_queue {
    struct afd_device *device;
    int event_fd;
    pthread_t thread;
    int thread_started;

    /* owner's thread */
    uint64_t reported; /* entries before it are passed over or reported */
    uint64_t taken;    /* events */
    int is_announced;  /* the device was woken for all that was submitted */
    int is_armed;      /* since then the device may have signalled: then `armed` is 0 */
    uint64_t unread;   /* signals that event_fd has, or is about to have */

    _Alignas(64) _Atomic uint64_t submitted; /* entries; the ticket of the last one */
    _Atomic int stop;
    struct afd_gate work; /* advanced after a submit, at the next poll or arm where that was quiet */
    _Alignas(64) _Atomic uint64_t finished; /* events that there were */
    _Atomic int armed;                      /* the owner will sleep on event_fd */

    /* device's thread */
    uint64_t begun;                       /* entries */
    uint64_t under_way[AFD_DEVICE_QUEUE]; /* their numbers, oldest first */
    uint32_t under_way_count;
    enum afd_status sticky;
    afd_ns last_end;
    uint64_t carried_ns[AFD_MAX_SLOTS]; /* the time of quiet ops, for the slot's next event */

    struct afd_gate started;
    enum afd_status start_status;

    struct entry entries[AFD_DEVICE_QUEUE];
};

static struct entry *entry_of(struct afd_queue *queue, uint64_t number)
{
    return &queue->entries[number % AFD_DEVICE_QUEUE];
}

static int has_event(const struct entry *entry)
{
    return !entry->op.quiet || entry->status != AFD_OK;
}

/* ---- the device's thread
 *
 * A back end either runs an op, or begins it and says later that it is done: then ops of several slots may be
 * under way, and are done in any order. */

static void signal_owner(struct afd_queue *queue)
{
    if (!atomic_exchange(&queue->armed, 0)) return;
    uint64_t one = 1;
    if (write(queue->event_fd, &one, sizeof one) < 0) return; /* full: it is readable already */
}

void afd_queue_wake(struct afd_queue *queue)
{
    signal_owner(queue);
}

/* The device's time on an op is what it did not also spend on another one before it. */
static void finish(struct afd_queue *queue, struct entry *entry, enum afd_status status)
{
    afd_ns now = afd_now(), from = entry->began > queue->last_end ? entry->began : queue->last_end;
    uint64_t *carried = &queue->carried_ns[entry->op.slot % AFD_MAX_SLOTS];
    *carried += now - from;
    queue->last_end = now;
    entry->status = status;
    if (status == AFD_ERR_DEVICE) queue->sticky = AFD_ERR_DEVICE;
    if (!has_event(entry)) {
        atomic_store(&entry->state, REPORTED);
        return;
    }
    entry->busy_ns = *carried;
    *carried = 0;
    atomic_store(&entry->state, DONE);
    atomic_fetch_add(&queue->finished, 1);
    signal_owner(queue);
}

/* 0: there is none, or the back end does not take it before others are done. */
static int begin_next(struct afd_queue *queue)
{
    struct afd_device *device = queue->device;
    if (queue->begun == atomic_load(&queue->submitted)) return 0;
    struct entry *entry = entry_of(queue, queue->begun);
    enum afd_status status = queue->sticky;
    entry->began = afd_now();
    if (!status && device->backend->run)
        status = device->backend->run(device, &entry->op);
    else if (!status)
        status = device->backend->begin(device, &entry->op, &entry->token);
    if (status == AFD_AGAIN) return 0;
    if (status == AFD_PENDING)
        queue->under_way[queue->under_way_count++] = queue->begun;
    else
        finish(queue, entry, status);
    queue->begun++;
    return 1;
}

static int finish_some(struct afd_queue *queue)
{
    struct afd_device *device = queue->device;
    uint32_t left = 0, count = queue->under_way_count;
    for (uint32_t i = 0; i < count; i++) {
        struct entry *entry = entry_of(queue, queue->under_way[i]);
        enum afd_status status = device->backend->poll(device, &entry->op, &entry->token);
        if (status == AFD_PENDING)
            queue->under_way[left++] = queue->under_way[i];
        else
            finish(queue, entry, status);
    }
    queue->under_way_count = left;
    return left != count;
}

static void *device_main(void *user)
{
    struct afd_queue *queue = user;
    struct afd_device *device = queue->device;
    int failed = afd_team_start(&device->team);
    queue->start_status = failed ? AFD_ERR_MEMORY : AFD_OK;
    afd_gate_advance(&queue->started);
    if (failed) return NULL;
    while (!atomic_load(&queue->stop)) {
        uint32_t seen = atomic_load(&queue->work.value);
        int moved = begin_next(queue) | finish_some(queue);
        if (moved || queue->under_way_count) continue;
        if (queue->begun == atomic_load(&queue->submitted) && !atomic_load(&queue->stop))
            afd_gate_wait(&queue->work, seen, 0);
    }
    afd_team_stop(&device->team);
    return NULL;
}

/* ---- the owner's thread */

/* Passes over what needs no event any more; returns the oldest event and its entry's number, or NULL. */
static struct entry *next_event(struct afd_queue *queue, uint64_t *number_out)
{
    uint64_t end = atomic_load_explicit(&queue->submitted, memory_order_relaxed);
    while (queue->reported < end && atomic_load(&entry_of(queue, queue->reported)->state) == REPORTED)
        queue->reported++;
    if (atomic_load(&queue->finished) == queue->taken) return NULL;
    for (uint64_t n = queue->reported; n < end; n++) {
        *number_out = n;
        if (atomic_load(&entry_of(queue, n)->state) == DONE) return entry_of(queue, n);
    }
    return NULL;
}

enum afd_status afd_queue_create(struct afd_device *device, struct afd_error *error_out)
{
    struct afd_queue *queue = aligned_alloc(64, (sizeof *queue + 63) / 64 * 64);
    if (!queue) return afd_fail(error_out, AFD_ERR_MEMORY, "no memory for the device queue");
    memset(queue, 0, sizeof *queue);
    device->queue = queue;
    queue->device = device;
    queue->is_announced = 1;
    queue->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (queue->event_fd < 0) return afd_fail(error_out, AFD_ERR_IO, "no event descriptor for the device");
    if (pthread_create(&queue->thread, NULL, device_main, queue))
        return afd_fail(error_out, AFD_ERR_MEMORY, "cannot start the device's thread");
    queue->thread_started = 1;
    afd_gate_wait(&queue->started, 0, 0);
    if (queue->start_status)
        return afd_fail(error_out, queue->start_status, "cannot start the device's %u threads",
                        device->config.threads);
    return AFD_OK;
}

void afd_queue_destroy(struct afd_queue *queue)
{
    if (!queue) return;
    if (queue->thread_started) {
        atomic_store(&queue->stop, 1);
        afd_gate_advance(&queue->work);
        pthread_join(queue->thread, NULL);
    }
    if (queue->event_fd >= 0) close(queue->event_fd);
    free(queue);
}

static int slot_op_in_range(const struct afd_device *device, const struct afd_op *op)
{
    const struct afd_device_config *config = &device->config;
    if (config->share.ffn || op->slot >= config->slots || !device->slots[op->slot].rows) return 0;
    switch (op->kind) {
    case AFD_OP_EMBED:
        return 1;
    case AFD_OP_ATTN:
        return op->layer == 0 || op->attn.partials != NULL;
    case AFD_OP_ROUTE:
        return op->route.to_count <= AFD_MAX_DESTINATIONS;
    case AFD_OP_LOGITS:
        if (op->logits.count > config->max_logit_rows || !op->logits.partials) return 0;
        for (uint32_t i = 0; i < op->logits.count; i++)
            if (op->logits.rows[i] >= device->slots[op->slot].rows) return 0;
        return 1;
    default:
        for (uint32_t i = 0; i < op->sample.count; i++)
            if (op->sample.choices[i].logit_row >= config->max_logit_rows ||
                op->sample.choices[i].prompt_count > op->sample.choices[i].token_count)
                return 0;
        return 1;
    }
}

static int op_in_range(const struct afd_device *device, const struct afd_op *op)
{
    const struct afd_device_config *config = &device->config;
    if (op->kind > AFD_OP_PACK || op->layer >= config->model->layer_count) return 0;
    if (op->kind == AFD_OP_PACK) return config->share.ffn;
    if (op->kind != AFD_OP_FFN) return slot_op_in_range(device, op);
    uint64_t rows = 0;
    for (uint32_t p = 0; p < op->ffn.part_count; p++) rows += op->ffn.parts[p].rows;
    if (op->quiet) return 0; /* it may refuse records */
    return config->share.ffn && rows <= config->max_batch_rows && (config->share.tp == 1 || op->ffn.partials);
}

static void announce(struct afd_queue *queue)
{
    if (queue->is_announced) return;
    queue->is_announced = 1;
    afd_gate_advance(&queue->work);
}

enum afd_status afd_device_submit(struct afd_device *device, const struct afd_op *op, uint64_t *ticket_out)
{
    struct afd_queue *queue = device->queue;
    uint64_t number = atomic_load_explicit(&queue->submitted, memory_order_relaxed), event;
    if (!op_in_range(device, op)) return AFD_ERR_REQUEST;
    if (number - queue->reported == AFD_DEVICE_QUEUE) next_event(queue, &event); /* quiet ones make room */
    if (number - queue->reported == AFD_DEVICE_QUEUE) return AFD_AGAIN;
    entry_of(queue, number)->op = *op;
    atomic_store_explicit(&entry_of(queue, number)->state, WAITING, memory_order_relaxed);
    atomic_store(&queue->submitted, number + 1);
    queue->is_announced = !op->quiet; /* what follows a quiet op at once wakes the device for both */
    if (!op->quiet) afd_gate_advance(&queue->work);
    if (ticket_out) *ticket_out = number + 1;
    return AFD_OK;
}

uint32_t afd_device_poll(struct afd_device *device, struct afd_device_event *events_out, uint32_t limit)
{
    struct afd_queue *queue = device->queue;
    uint32_t count = 0;
    announce(queue);
    while (count < limit) {
        uint64_t number;
        struct entry *entry = next_event(queue, &number);
        if (!entry) break;
        events_out[count++] = (struct afd_device_event){number + 1, entry->status, entry->busy_ns};
        atomic_store_explicit(&entry->state, REPORTED, memory_order_relaxed);
        queue->taken++;
    }
    return count;
}

int afd_device_event_fd(const struct afd_device *device)
{
    return device->queue->event_fd;
}

/* Reads the descriptor, a system call, only after a signal. */
enum afd_status afd_device_arm(struct afd_device *device)
{
    struct afd_queue *queue = device->queue;
    uint64_t signals, event;
    announce(queue);
    if (queue->is_armed && !atomic_load(&queue->armed)) {
        queue->is_armed = 0;
        queue->unread++;
    }
    if (queue->unread && read(queue->event_fd, &signals, sizeof signals) == sizeof signals)
        queue->unread -= signals; /* else the device is about to write it */
    /* Armed before the last look: what completes after the look sees it and writes the descriptor. */
    if (!queue->is_armed) atomic_store(&queue->armed, 1);
    queue->is_armed = 1;
    if (!next_event(queue, &event) && !afd_loader_is_over(device->loader)) return AFD_OK;
    if (atomic_exchange(&queue->armed, 0)) queue->is_armed = 0; /* awake: no signal is needed */
    return AFD_AGAIN;
}
