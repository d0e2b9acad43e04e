/* verbs_port.c: which ports of which devices are the rails, and what stands on each: protection domain,
 * completion queue and channel.
 *
 * Named devices are taken as they are. Otherwise: the first active port of the first device that has one, and
 * the device's other port where that is active and of the same kind. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "transport/verbs.h"

enum { CQ_ENTRIES = 1024, MAX_GIDS = 1024 };

static int is_ipv4(const uint8_t gid[16])
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    return !memcmp(gid, mapped, sizeof mapped);
}

const char *afd_verbs_port_kind(const struct verbs_port_address *port)
{
    if (port->link_layer == IBV_LINK_LAYER_INFINIBAND) return "InfiniBand";
    if (port->gid_type == IBV_GID_TYPE_ROCE_V1) return "RoCE v1";
    return is_ipv4(port->gid) ? "RoCE v2 (IPv4)" : "RoCE v2 (IPv6)";
}

/* ---- the GID: who the port is */

/* Routed before link-local, IPv4 before IPv6: that is what the switches of RoCE networks are set up for. */
static int gid_score(const struct ibv_gid_entry *entry)
{
    const uint8_t *gid = entry->gid.raw;
    if (entry->gid_type != IBV_GID_TYPE_ROCE_V2) return 1;
    if (is_ipv4(gid)) return 4;
    return gid[0] == 0xfe && (gid[1] & 0xc0) == 0x80 ? 2 : 3;
}

static enum afd_status find_gid(struct verbs_port *port, struct ibv_gid_entry *out)
{
    struct ibv_gid_entry *entries = calloc(MAX_GIDS, sizeof *entries);
    ssize_t count = entries ? ibv_query_gid_table(port->context, entries, MAX_GIDS, 0) : 0;
    int best = 0;
    for (ssize_t i = 0; i < count; i++)
        if (entries[i].port_num == port->number && gid_score(&entries[i]) > best) {
            best = gid_score(&entries[i]);
            *out = entries[i];
        }
    free(entries);
    return best ? AFD_OK : AFD_ERR_REFUSED;
}

static enum afd_status set_gid(struct verbs_port *port, int32_t wanted, struct afd_error *error_out)
{
    struct ibv_gid_entry entry;
    int is_infiniband = port->address.link_layer == IBV_LINK_LAYER_INFINIBAND;
    if (wanted >= 0 || is_infiniband) {
        uint32_t index = wanted < 0 ? 0 : (uint32_t)wanted;
        if (ibv_query_gid_ex(port->context, port->number, index, &entry, 0))
            return afd_fail(error_out, AFD_ERR_REFUSED, "%s has no GID of index %u", port->name, index);
    } else if (find_gid(port, &entry)) {
        return afd_fail(error_out, AFD_ERR_REFUSED, "%s has no GID: its network interface has no address",
                        port->name);
    }
    port->gid_index = (int)entry.gid_index;
    port->address.gid_type = (uint8_t)entry.gid_type;
    memcpy(port->address.gid, entry.gid.raw, sizeof port->address.gid);
    return AFD_OK;
}

/* ---- one port */

static void port_close(struct afd_transport *t, struct verbs_port *port)
{
    if (port->is_watched) {
        afd_transport_unwatch(t, port->channel->fd);
        afd_transport_unwatch(t, port->context->async_fd);
    }
    if (port->cq) ibv_destroy_cq(port->cq);
    if (port->channel) ibv_destroy_comp_channel(port->channel);
    if (port->pd) ibv_dealloc_pd(port->pd);
    if (port->context) ibv_close_device(port->context);
    *port = (struct verbs_port){.context = NULL};
}

static enum ibv_mtu mtu_of(uint32_t bytes)
{
    enum ibv_mtu mtu = IBV_MTU_256;
    while (mtu < IBV_MTU_4096 && 256u << mtu <= bytes) mtu++;
    return mtu;
}

/* Soft-RoCE and soft-iWARP are nobody's function on a bus. */
static int is_software(const struct ibv_device *device)
{
    char path[IBV_SYSFS_PATH_MAX + 8];
    snprintf(path, sizeof path, "%s/device", device->ibdev_path);
    return access(path, F_OK) != 0;
}

/* Opens port `number` of `device` if it can be used. */
static enum afd_status look_at(struct ibv_device *device, uint8_t number,
                               const struct afd_network_options *options, struct verbs_port *port,
                               struct afd_error *error_out)
{
    struct ibv_port_attr attr;
    port->number = number;
    port->is_software = is_software(device);
    snprintf(port->name, sizeof port->name, "%.32s:%u", ibv_get_device_name(device), number);
    if (device->transport_type != IBV_TRANSPORT_IB)
        return afd_fail(error_out, AFD_ERR_REFUSED, "%s is neither InfiniBand nor RoCE", port->name);
    port->context = ibv_open_device(device);
    if (!port->context)
        return afd_fail(error_out, AFD_ERR_REFUSED, "%s cannot be opened: %s", port->name, strerror(errno));
    if (ibv_query_port(port->context, number, &attr))
        return afd_fail(error_out, AFD_ERR_REFUSED, "%s is not there", port->name);
    if (attr.state != IBV_PORT_ACTIVE)
        return afd_fail(error_out, AFD_ERR_REFUSED, "%s is %s", port->name, ibv_port_state_str(attr.state));
    if (attr.max_msg_sz < VERBS_PART_BYTES)
        return afd_fail(error_out, AFD_ERR_REFUSED, "%s takes messages of %u bytes: less than %d", port->name,
                        attr.max_msg_sz, VERBS_PART_BYTES);
    enum ibv_mtu mtu = options->mtu ? mtu_of(options->mtu) : attr.active_mtu;
    port->address.mtu = (uint8_t)(mtu < attr.active_mtu ? mtu : attr.active_mtu);
    port->address.lid = attr.lid;
    port->address.link_layer =
        attr.link_layer == IBV_LINK_LAYER_ETHERNET ? IBV_LINK_LAYER_ETHERNET : IBV_LINK_LAYER_INFINIBAND;
    return set_gid(port, options->gid_index, error_out);
}

/* What a rail needs beyond its port. */
static enum afd_status equip(struct afd_transport *t, struct verbs_port *port, struct afd_error *error_out)
{
    int vectors = port->context->num_comp_vectors;
    int vector = vectors > 0 ? (int)(t->config.self.rank % (uint32_t)vectors) : 0;
    port->pd = ibv_alloc_pd(port->context);
    if (port->pd) port->channel = ibv_create_comp_channel(port->context);
    if (port->channel) port->cq = ibv_create_cq(port->context, CQ_ENTRIES, NULL, port->channel, vector);
    if (!port->cq)
        return afd_fail(error_out, AFD_ERR_IO, "%s: no completion queue: %s", port->name, strerror(errno));
    int fds[2] = {port->channel->fd, port->context->async_fd};
    for (int i = 0; i < 2; i++)
        if (fcntl(fds[i], F_SETFL, fcntl(fds[i], F_GETFL) | O_NONBLOCK))
            return afd_fail(error_out, AFD_ERR_IO, "%s: %s", port->name, strerror(errno));
    if (afd_transport_watch(t, fds[0]))
        return afd_fail(error_out, AFD_ERR_IO, "%s: out of descriptors", port->name);
    if (afd_transport_watch(t, fds[1])) {
        afd_transport_unwatch(t, fds[0]);
        return afd_fail(error_out, AFD_ERR_IO, "%s: out of descriptors", port->name);
    }
    port->is_watched = 1;
    return AFD_OK;
}

enum afd_status afd_verbs_port_reserve(struct verbs_port *port, uint32_t entries, struct afd_error *error_out)
{
    uint32_t needed = port->cq_used + entries, size = (uint32_t)port->cq->cqe;
    if (needed > size) {
        uint32_t larger = needed > 2 * size ? needed : 2 * size;
        if (ibv_resize_cq(port->cq, (int)larger) && ibv_resize_cq(port->cq, (int)needed))
            return afd_fail(error_out, AFD_ERR_MEMORY,
                            "%s: the completion queue of %u entries cannot grow to %u: %s", port->name, size,
                            needed, strerror(errno));
    }
    port->cq_used = needed;
    return AFD_OK;
}

/* ---- the rails */

static void add_words(char *words, size_t limit, const char *more)
{
    size_t used = strlen(words);
    snprintf(words + used, limit - used, "%s%.100s", used ? "; " : "", more);
}

static struct ibv_device *device_named(struct ibv_device **list, const char *name, size_t bytes)
{
    for (; *list; list++)
        if (strlen(ibv_get_device_name(*list)) == bytes && !memcmp(ibv_get_device_name(*list), name, bytes))
            return *list;
    return NULL;
}

/* "mlx5_0" or "mlx5_0:2". */
static enum afd_status open_named(struct ibv_device **list, const char *wanted,
                                  const struct afd_network_options *options, struct verbs_port *port,
                                  struct afd_error *error_out)
{
    const char *colon = strchr(wanted, ':');
    unsigned long number = colon ? strtoul(colon + 1, NULL, 10) : 1;
    struct ibv_device *device = device_named(list, wanted, colon ? (size_t)(colon - wanted) : strlen(wanted));
    if (!device || number < 1 || number > UINT8_MAX)
        return afd_fail(error_out, AFD_ERR_REFUSED, "there is no RDMA device %s", wanted);
    return look_at(device, (uint8_t)number, options, port, error_out);
}

static uint8_t port_count_of(struct ibv_context *context)
{
    struct ibv_device_attr attr;
    return ibv_query_device(context, &attr) ? 1 : attr.phys_port_cnt;
}

/* The active ports of one device, as rails. */
static void find_on_device(struct afd_transport *t, struct verbs *verbs, struct ibv_device *device,
                           char *words, size_t limit)
{
    struct afd_error error;
    uint8_t last = 1;
    for (uint8_t number = 1; number <= last && verbs->port_count < AFD_MAX_RAILS; number++) {
        struct verbs_port *port = &verbs->ports[verbs->port_count];
        enum afd_status status = look_at(device, number, &t->config.network, port, &error);
        if (port->context) last = port_count_of(port->context);
        int is_same_kind = verbs->ports[0].address.link_layer == port->address.link_layer &&
                           verbs->ports[0].address.gid_type == port->address.gid_type;
        if (!status && is_same_kind) {
            verbs->port_count++;
            continue;
        }
        if (status) add_words(words, limit, error.text);
        port_close(t, port);
    }
}

enum afd_status afd_verbs_ports_open(struct afd_transport *t, struct verbs *verbs,
                                     struct afd_error *error_out)
{
    const struct afd_network_options *options = &t->config.network;
    char words[512] = "";
    int count = 0;
    enum afd_status status = AFD_OK;
    struct ibv_device **list = ibv_get_device_list(&count);
    if (!list || !count) {
        if (list) ibv_free_device_list(list);
        return afd_fail(error_out, AFD_ERR_REFUSED, "no RDMA device (ibv_devices lists none)");
    }
    if (options->device_count) {
        for (uint32_t i = 0; i < options->device_count && !status; i++)
            status =
                open_named(list, options->devices[i], options, &verbs->ports[verbs->port_count++], error_out);
    } else {
        for (int i = 0; i < count && !verbs->port_count; i++)
            find_on_device(t, verbs, list[i], words, sizeof words);
        if (!verbs->port_count)
            status = afd_fail(error_out, AFD_ERR_REFUSED, "no usable RDMA port: %s", words);
    }
    ibv_free_device_list(list);
    for (uint32_t i = 0; i < verbs->port_count && !status; i++)
        status = equip(t, &verbs->ports[i], error_out);
    for (uint32_t i = 0; i < verbs->port_count && !status; i++)
        afd_log_info("data path verbs: %s, %s, GID index %d, MTU %u", verbs->ports[i].name,
                     afd_verbs_port_kind(&verbs->ports[i].address), verbs->ports[i].gid_index,
                     128u << verbs->ports[i].address.mtu);
    return status;
}

void afd_verbs_ports_close(struct afd_transport *t, struct verbs *verbs)
{
    for (uint32_t i = 0; i < AFD_MAX_RAILS; i++) port_close(t, &verbs->ports[i]);
    verbs->port_count = 0;
}
