#include "compute/loader.h"

#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "compute/queue.h"

enum { NICE = 10 }; /* of the thread: the device's own threads come first */

struct afd_loader {
    struct afd_device *device;
    struct afd_device_config config; /* with the loader's progress: that of create is the owner's thread's */
    pthread_t thread;
    uint64_t shards; /* 0: none are being loaded */
    uint64_t before; /* bytes of those of them that are loaded */
    _Atomic uint64_t done, total;
    enum afd_status status;
    struct afd_error error;
    _Atomic int is_over;
};

static void remove_shards(struct afd_device *device, uint64_t shards)
{
    for (uint64_t left = shards; left; left &= left - 1) {
        uint32_t shard = (uint32_t)__builtin_ctzll(left);
        if (device->backend->remove) device->backend->remove(device, shard);
        afd_weight_table_remove(&device->weights, shard);
    }
}

static enum afd_status load_shard(struct afd_loader *l, uint32_t shard)
{
    struct afd_device *device = l->device;
    enum afd_status status = afd_weight_table_add(&l->config, &device->weights, shard, &l->error);
    if (status || !device->backend->add) return status;
    return device->backend->add(device, shard, &l->error);
}

static void on_progress(uint64_t done, uint64_t total, void *user)
{
    struct afd_loader *l = user;
    (void)total; /* of this shard */
    atomic_store(&l->done, l->before + done);
}

static void *load_main(void *user)
{
    struct afd_loader *l = user;
    setpriority(PRIO_PROCESS, (id_t)gettid(), NICE);
    atomic_store(&l->total, afd_weight_table_shard_bytes(&l->config, l->shards));
    for (uint64_t left = l->shards; left && !l->status; left &= left - 1) {
        l->status = load_shard(l, (uint32_t)__builtin_ctzll(left));
        l->before = atomic_load(&l->done);
    }
    if (l->status) remove_shards(l->device, l->shards);
    atomic_store(&l->is_over, 1);
    afd_queue_wake(l->device->queue);
    return NULL;
}

int afd_loader_is_over(const struct afd_loader *l)
{
    return l && atomic_load(&l->is_over);
}

void afd_loader_destroy(struct afd_loader *l)
{
    if (!l) return;
    if (l->shards) pthread_join(l->thread, NULL);
    free(l);
}

enum afd_status afd_device_load(struct afd_device *device, uint64_t shards, struct afd_error *error_out)
{
    const struct afd_device_config *c = &device->config;
    uint64_t held = atomic_load(&device->held);
    if (!device->loader) device->loader = calloc(1, sizeof *device->loader);
    struct afd_loader *l = device->loader;
    if (!l) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    if (l->shards) return afd_fail(error_out, AFD_AGAIN, "shards are being loaded");
    uint32_t most = c->max_shards ? c->max_shards : (uint32_t)__builtin_popcountll(c->share.shards);
    if (!c->share.ffn || !shards || shards & held || (c->share.ep < 64 && shards >> c->share.ep) ||
        (uint32_t)__builtin_popcountll(held | shards) > most)
        return afd_fail(error_out, AFD_ERR_LIMIT, "%d shards more beside %d; expected at most %u together",
                        __builtin_popcountll(shards), __builtin_popcountll(held), most);
    l->device = device;
    l->config = *c;
    l->config.progress = on_progress;
    l->config.progress_user = l;
    l->shards = shards;
    l->before = 0;
    atomic_store(&l->total, 0);
    atomic_store(&l->done, 0);
    l->status = AFD_OK;
    atomic_store(&l->is_over, 0);
    if (!pthread_create(&l->thread, NULL, load_main, l)) return AFD_OK;
    l->shards = 0;
    return afd_fail(error_out, AFD_ERR_MEMORY, "cannot start a thread to load with");
}

int afd_device_loaded(struct afd_device *device, uint64_t *shards_out, enum afd_status *status_out,
                      struct afd_error *error_out)
{
    struct afd_loader *l = device->loader;
    if (!afd_loader_is_over(l)) return 0;
    pthread_join(l->thread, NULL);
    *shards_out = l->shards;
    *status_out = l->status;
    if (l->status)
        *error_out = l->error;
    else
        atomic_fetch_or(&device->held, l->shards);
    l->shards = 0;
    atomic_store(&l->total, 0);
    atomic_store(&l->is_over, 0);
    return 1;
}

void afd_device_loading(const struct afd_device *device, uint64_t *done_out, uint64_t *total_out)
{
    const struct afd_loader *l = device->loader;
    *total_out = l ? atomic_load(&l->total) : 0;
    *done_out = l ? atomic_load(&l->done) : 0;
}

void afd_device_drop(struct afd_device *device, uint64_t shards)
{
    atomic_fetch_and(&device->held, ~shards);
    remove_shards(device, shards);
}
