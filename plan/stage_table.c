/* stage_table.c: the file that `afd bench stage --json` wrote. */
#include <jansson.h>
#include <stdio.h>

#include "plan/forecast.h"

/* ---- the table */

static int read_pair(const json_t *o, const char *name, double out[2])
{
    static const char *const suffixes[] = {"us", "us_beside"};
    for (int i = 0; i < 2; i++) {
        char key[48];
        snprintf(key, sizeof key, "%s_%s", name, suffixes[i]);
        double us = json_number_value(json_object_get(o, key));
        if (!(us > 0 && us < 1e9)) return 0;
        out[i] = us * 1e-6;
    }
    return 1;
}

static enum afd_status read_table(const json_t *root, struct afd_stage_table *t, struct afd_error *error)
{
    const json_t *stages = json_object_get(root, "stages"), *o;
    json_int_t ep = json_integer_value(json_object_get(root, "ep")),
               held = json_integer_value(json_object_get(root, "held")),
               layers = json_integer_value(json_object_get(root, "layers"));
    size_t i, count = json_array_size(stages);
    if (!count || count > AFD_FORECAST_SAMPLES || held < 1 || ep < held || ep > AFD_MAX_SHARDS ||
        layers < 1 || layers > AFD_MAX_LAYERS)
        return afd_fail(error, AFD_ERR_CONFIG,
                        "expected what `afd bench stage --json` prints, of at most %d sizes",
                        AFD_FORECAST_SAMPLES);
    *t = (struct afd_stage_table){.ep = (uint32_t)ep, .held = (uint32_t)held, .layers = (uint32_t)layers};
    json_array_foreach(stages, i, o)
    {
        struct afd_stage_sample *s = &t->samples[t->count++];
        json_int_t rows = json_integer_value(json_object_get(o, "rows"));
        if (rows < 1 || rows > AFD_MAX_ROWS || (i && (uint32_t)rows <= s[-1].rows))
            return afd_fail(error, AFD_ERR_CONFIG, "stages[%zu].rows: expected 1 to %d, ascending", i,
                            AFD_MAX_ROWS);
        s->rows = (uint32_t)rows;
        if (!read_pair(o, "attn", s->attn) || !read_pair(o, "ffn", s->ffn) || !read_pair(o, "head", s->head))
            return afd_fail(error, AFD_ERR_CONFIG, "stages[%zu]: expected microseconds of attn, ffn and head",
                            i);
        s->crowded = json_number_value(json_object_get(o, "crowded_ratio"));
        s->spread = json_number_value(json_object_get(o, "spread_ratio"));
        if (!(s->crowded >= 1 && s->crowded < 1e3))
            return afd_fail(error, AFD_ERR_CONFIG, "stages[%zu].crowded_ratio: expected a number from 1", i);
        s->ffn_rows = json_number_value(json_object_get(o, "ffn_rows"));
        s->ffn_share = json_number_value(json_object_get(o, "ffn_share"));
        if (!(s->spread >= 0 && s->spread < 1e3))
            return afd_fail(error, AFD_ERR_CONFIG, "stages[%zu].spread_ratio: expected a number from 0", i);
        if (!(s->ffn_rows >= 1 && s->ffn_rows <= s->rows && s->ffn_share > 0 && s->ffn_share <= 1))
            return afd_fail(error, AFD_ERR_CONFIG, "stages[%zu]: expected ffn_rows from 1 and ffn_share to 1",
                            i);
    }
    double rows = 0;
    for (i = 0; i < count; i++) {
        rows += t->samples[i].rows;
        t->ffn_share += t->samples[i].ffn_share * t->samples[i].rows;
    }
    t->ffn_share /= rows;
    return AFD_OK;
}

enum afd_status afd_stage_table_load(const char *path, struct afd_stage_table *out, struct afd_error *error)
{
    json_error_t json_error;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &json_error);
    enum afd_status status =
        root ? read_table(root, out, error)
        : json_error.line > 0
            ? afd_fail(error, AFD_ERR_CONFIG, "line %d: %s", json_error.line, json_error.text)
            : afd_fail(error, AFD_ERR_CONFIG, "%s", json_error.text); /* cannot be opened */
    if (status) afd_error_prefix(error, "%s", path);
    json_decref(root);
    return status;
}
