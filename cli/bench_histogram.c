#include "cli/bench_transport.h"

static uint32_t bucket_of(afd_ns v)
{
    int high = v ? 63 - __builtin_clzll(v) : 0, shift = high > BT_SUB_BITS ? high - BT_SUB_BITS : 0;
    uint64_t i = ((uint64_t)shift << BT_SUB_BITS) + (v >> shift);
    return i < BT_BUCKETS ? (uint32_t)i : BT_BUCKETS - 1;
}

/* The middle of a bucket. */
static afd_ns value_of(uint32_t i)
{
    if (i < 2u << BT_SUB_BITS) return i;
    uint32_t shift = (i >> BT_SUB_BITS) - 1;
    return ((uint64_t)(i - (shift << BT_SUB_BITS)) << shift) + ((uint64_t)1 << shift) / 2;
}

void bt_histogram_add(struct bt_histogram *h, afd_ns duration)
{
    if (!h->count++ || duration < h->least) h->least = duration;
    if (duration > h->most) h->most = duration;
    h->in[bucket_of(duration)]++;
}

afd_ns bt_histogram_at(const struct bt_histogram *h, double rank)
{
    double wanted = rank * (double)h->count;
    uint64_t seen = 0;
    uint32_t i = 0;
    if (!h->count) return 0;
    while (i < BT_BUCKETS - 1 && (double)(seen + h->in[i]) < wanted) seen += h->in[i++];
    afd_ns value = value_of(i);
    return value < h->least ? h->least : value > h->most ? h->most : value;
}

json_t *bt_histogram_json(const struct bt_histogram *h)
{
    json_t *in = json_array();
    for (uint32_t i = 0; i < BT_BUCKETS; i++)
        if (h->in[i]) {
            json_array_append_new(in, json_integer(i));
            json_array_append_new(in, json_integer(h->in[i]));
        }
    return json_pack("{s:I, s:I, s:o}", "least_ns", (json_int_t)h->least, "most_ns", (json_int_t)h->most,
                     "in", in);
}

void bt_histogram_merge(struct bt_histogram *h, const json_t *from)
{
    const json_t *in = json_object_get(from, "in");
    afd_ns least = (afd_ns)json_integer_value(json_object_get(from, "least_ns"));
    afd_ns most = (afd_ns)json_integer_value(json_object_get(from, "most_ns"));
    if (json_array_size(in) == 0) return;
    if (!h->count || least < h->least) h->least = least;
    if (most > h->most) h->most = most;
    for (size_t i = 0; i + 1 < json_array_size(in); i += 2) {
        json_int_t at = json_integer_value(json_array_get(in, i));
        json_int_t count = json_integer_value(json_array_get(in, i + 1));
        if (at < 0 || at >= BT_BUCKETS || count <= 0 || count > UINT32_MAX) continue;
        h->in[at] += (uint32_t)count;
        h->count += (uint64_t)count;
    }
}
