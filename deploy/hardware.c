#include "deploy/hardware.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#define GIB ((uint64_t)1 << 30)
#define TERA 1e12
#define GIGA 1e9
#define GBITS (1e9 / 8)

/* name, FP8, BF16, memory bytes/s, NIC, memory, link, USD an hour, cards of a server */
static const struct afd_hardware table[] = {
    {"H800", 1980 * TERA, 989 * TERA, 3.35 * TERA, 400 * GBITS, 80 * GIB, 200 * GIGA, 2.00, 8},
    {"H20", 296 * TERA, 148 * TERA, 4.00 * TERA, 400 * GBITS, 96 * GIB, 450 * GIGA, 0.80, 8},
    {"A800", 0, 312 * TERA, 2.00 * TERA, 200 * GBITS, 80 * GIB, 200 * GIGA, 0.75, 8},
    {"910B", 0, 280 * TERA, 1.60 * TERA, 200 * GBITS, 64 * GIB, 0, 0.67, 8},
    {"L20", 239 * TERA, 119.5 * TERA, 864 * GIGA, 200 * GBITS, 48 * GIB, 32 * GIGA, 0, 8},
    {"L4", 242 * TERA, 121 * TERA, 300 * GIGA, 200 * GBITS, 24 * GIB, 32 * GIGA, 0, 8},
    {"H100", 1979 * TERA, 989 * TERA, 3.35 * TERA, 400 * GBITS, 80 * GIB, 450 * GIGA, 0, 8},
    {"H200", 1979 * TERA, 989 * TERA, 4.80 * TERA, 400 * GBITS, 141 * GIB, 450 * GIGA, 0, 8},
    {"A100", 0, 312 * TERA, 2.04 * TERA, 200 * GBITS, 80 * GIB, 300 * GIGA, 0, 8},
};

const struct afd_hardware *afd_hardware_at(uint32_t index)
{
    return index < sizeof table / sizeof table[0] ? &table[index] : NULL;
}

const struct afd_hardware *afd_hardware_find(const char *class_name)
{
    const struct afd_hardware *h;
    for (uint32_t i = 0; (h = afd_hardware_at(i)); i++)
        if (!strcmp(h->name, class_name)) return h;
    return NULL;
}

double afd_hardware_flops(const struct afd_hardware *hardware, int fp8)
{
    return fp8 && hardware->fp8_flops > 0 ? hardware->fp8_flops : hardware->bf16_flops;
}

/* ---- names, or a file */

/* A figure of a file, in `unit`; what is left out stays. */
static enum afd_status read_figure(const json_t *item, const char *key, double unit, int required,
                                   double *value, struct afd_error *error_out)
{
    const json_t *v = json_object_get(item, key);
    if (!v && (!required || *value > 0)) return AFD_OK;
    double figure = json_number_value(v);
    if (!json_is_number(v) || !(figure >= 0 && figure < 1e9) || (required && !(figure > 0)))
        return afd_fail(error_out, AFD_ERR_CONFIG, "%s: expected a number %s", key,
                        required ? "above 0" : "from 0");
    *value = figure * unit;
    return AFD_OK;
}

static enum afd_status read_item(const json_t *item, struct afd_hardware *h, struct afd_error *error_out)
{
    const char *name = json_string_value(json_object_get(item, "name"));
    if (!name || !*name || strlen(name) >= sizeof h->name)
        return afd_fail(error_out, AFD_ERR_CONFIG, "name: expected 1 to %zu characters", sizeof h->name - 1);
    const struct afd_hardware *known = afd_hardware_find(name);
    *h = known ? *known : (struct afd_hardware){.cards = 8};
    snprintf(h->name, sizeof h->name, "%s", name);
    double memory = (double)h->memory_bytes, cards = h->cards;
    enum afd_status status;
    if ((status = read_figure(item, "bf16_tflops", TERA, 1, &h->bf16_flops, error_out)) ||
        (status = read_figure(item, "fp8_tflops", TERA, 0, &h->fp8_flops, error_out)) ||
        (status = read_figure(item, "memory_gbytes_per_s", GIGA, 1, &h->memory_bytes_per_s, error_out)) ||
        (status = read_figure(item, "memory_gib", (double)GIB, 0, &memory, error_out)) ||
        (status = read_figure(item, "nic_gbits", GBITS, 0, &h->nic_bytes_per_s, error_out)) ||
        (status = read_figure(item, "link_gbytes_per_s", GIGA, 0, &h->link_bytes_per_s, error_out)) ||
        (status = read_figure(item, "usd_per_hour", 1, 0, &h->usd_per_hour, error_out)) ||
        (status = read_figure(item, "cards", 1, 1, &cards, error_out)))
        return afd_error_prefix(error_out, "%s", name), status;
    if (memory > 1e15 || cards > 1024 || cards != (double)(uint32_t)cards)
        return afd_fail(error_out, AFD_ERR_CONFIG, "%s: memory_gib %g, cards %g: out of range", name,
                        memory / (double)GIB, cards);
    h->memory_bytes = (uint64_t)memory;
    h->cards = (uint32_t)cards;
    return AFD_OK;
}

static enum afd_status add(struct afd_hardware_list *list, const struct afd_hardware *h,
                           struct afd_error *error_out)
{
    for (uint32_t i = 0; i < list->count; i++)
        if (!strcmp(list->items[i].name, h->name))
            return afd_fail(error_out, AFD_ERR_CONFIG, "hardware \"%s\" stands there twice", h->name);
    if (list->count == AFD_HARDWARE_LIMIT)
        return afd_fail(error_out, AFD_ERR_CONFIG, "more than %d kinds of hardware", AFD_HARDWARE_LIMIT);
    list->items[list->count++] = *h;
    return AFD_OK;
}

static enum afd_status read_file(const char *path, struct afd_hardware_list *out, struct afd_error *error_out)
{
    json_error_t json_error;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &json_error), *item;
    const json_t *list = json_object_get(root, "hardware");
    enum afd_status status = AFD_OK;
    size_t i;
    if (!root && json_error.line < 1) /* it cannot be opened */
        status = afd_fail(error_out, AFD_ERR_CONFIG, "%s", json_error.text);
    else if (!root)
        status = afd_fail(error_out, AFD_ERR_CONFIG, "line %d: %s", json_error.line, json_error.text);
    else if (!json_array_size(list))
        status = afd_fail(error_out, AFD_ERR_CONFIG, "hardware: expected a list of accelerators");
    json_array_foreach(list, i, item)
    {
        struct afd_hardware h;
        if (!status) status = read_item(item, &h, error_out);
        if (!status) status = add(out, &h, error_out);
    }
    json_decref(root);
    if (status) afd_error_prefix(error_out, "%s", path);
    return status;
}

static enum afd_status refuse_name(const char *name, struct afd_error *error_out)
{
    char known[1024] = "";
    const struct afd_hardware *h;
    for (uint32_t i = 0; (h = afd_hardware_at(i)); i++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", h->name);
    }
    return afd_fail(error_out, AFD_ERR_CONFIG,
                    "hardware \"%.40s\" is not in the table (%s); a file ends in .json", name, known);
}

enum afd_status afd_hardware_read(const char *text, struct afd_hardware_list *out,
                                  struct afd_error *error_out)
{
    size_t length = strlen(text);
    out->count = 0;
    if (length > 5 && !strcmp(text + length - 5, ".json")) return read_file(text, out, error_out);
    for (const char *at = text, *end;; at = end + 1) {
        char name[64];
        end = strchrnul(at, ',');
        snprintf(name, sizeof name, "%.*s", (int)(end - at), at);
        const struct afd_hardware *h = afd_hardware_find(name);
        if (!h) return refuse_name(name, error_out);
        enum afd_status status = add(out, h, error_out);
        if (status || !*end) return status;
    }
}
