#include "transport/rows_memory.h"

#include <unistd.h>

#include "base/log.h"

static enum afd_status open_local(struct afd_device *device, struct afd_transport *transport,
                                  struct afd_rows_memory *rows, struct afd_error *error_out)
{
    int fd = -1;
    uint64_t offset = 0;
    rows->is_local = 1;
    rows->base = afd_device_alloc_local(device, rows->bytes);
    if (!rows->base)
        return afd_fail(error_out, AFD_ERR_DEVICE_MEMORY, "no %llu MiB of the device's for rows",
                        (unsigned long long)rows->bytes >> 20);
    enum afd_status status = afd_device_export(device, rows->base, rows->bytes, &fd, &offset, error_out);
    if (!status) {
        status = afd_transport_register_device(transport, rows->base, rows->bytes, fd, offset);
        if (status) afd_fail(error_out, AFD_ERR_REFUSED, "no data path reaches the device's memory");
    }
    if (fd >= 0) close(fd);
    if (status) afd_rows_memory_close(device, rows);
    return status ? AFD_ERR_REFUSED : AFD_OK;
}

enum afd_status afd_rows_memory_open(struct afd_device *device, struct afd_transport *transport,
                                     enum afd_rows_where where, uint64_t bytes, struct afd_rows_memory *out,
                                     struct afd_error *error_out)
{
    *out = (struct afd_rows_memory){.bytes = afd_page_align(bytes)};
    if (where != AFD_ROWS_HOST && afd_device_has_local(device)) {
        struct afd_error why;
        enum afd_status status = open_local(device, transport, out, &why);
        if (!status) {
            afd_log_info("rows lie in the device's memory: %llu MiB", (unsigned long long)out->bytes >> 20);
            return AFD_OK;
        }
        if (where == AFD_ROWS_GPU)
            return afd_fail(error_out, status,
                            "transport.memory is gpu: %s; expected host, or a GPU and a network for it",
                            why.text);
        afd_log_info("rows lie in the host's memory: %s", why.text);
    }
    out->base = afd_device_alloc(device, out->bytes);
    if (!out->base)
        return afd_fail(error_out, AFD_ERR_DEVICE_MEMORY, "no %llu MiB for rows",
                        (unsigned long long)out->bytes >> 20);
    enum afd_status status = afd_transport_register(transport, out->base, out->bytes);
    return status ? afd_fail(error_out, status, "the memory of rows cannot be registered") : AFD_OK;
}

void afd_rows_memory_close(struct afd_device *device, struct afd_rows_memory *rows)
{
    if (rows->base && rows->is_local) afd_device_free_local(device, rows->base);
    if (rows->base && !rows->is_local) afd_device_free(device, rows->base);
    rows->base = NULL;
    rows->is_local = 0;
}
