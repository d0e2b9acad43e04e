#include "cli/serve_load.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

/* ---- random numbers */

/* In (0, 1): the `draw`-th of a number. */
static double uniform(uint64_t seed, uint64_t number, uint64_t draw)
{
    return ((double)(afd_random(seed, number, draw) >> 11) + 0.5) / 9007199254740992.0;
}

/* Box and Muller: of the draws `draw` and `draw` + 1. */
static double gaussian(uint64_t seed, uint64_t number, uint64_t draw)
{
    return sqrt(-2 * log(uniform(seed, number, draw))) * cos(2 * M_PI * uniform(seed, number, draw + 1));
}

/* ---- lengths */

int serve_lengths_read(const char *text, struct serve_lengths *out)
{
    static const char *const names[] = {
        [SERVE_NORMAL] = "normal:", [SERVE_LOGNORMAL] = "lognormal:", [SERVE_EXPONENTIAL] = "exponential:"};
    char *end;
    *out = (struct serve_lengths){.kind = SERVE_UNIFORM};
    for (int k = SERVE_NORMAL; k <= SERVE_EXPONENTIAL; k++)
        if (!strncmp(text, names[k], strlen(names[k]))) {
            out->kind = k;
            text += strlen(names[k]);
        }
    if (*text < '0' || *text > '9') return 0;
    if (out->kind == SERVE_UNIFORM) {
        uint64_t least = strtoull(text, &end, 10), most = least;
        if (*end == '-' && end[1] >= '0' && end[1] <= '9') most = strtoull(end + 1, &end, 10);
        out->a = (double)least;
        out->b = (double)most;
        return !*end && least >= 1 && least <= most && most <= SERVE_MAX_TOKENS;
    }
    out->a = strtod(text, &end);
    if (out->kind != SERVE_EXPONENTIAL) {
        if (*end != ',' || end[1] < '0' || end[1] > '9') return 0;
        out->b = strtod(end + 1, &end);
    }
    return !*end && out->a >= 1 && out->a <= SERVE_MAX_TOKENS && out->b >= 0 && out->b <= SERVE_MAX_TOKENS;
}

uint64_t serve_lengths_draw(const struct serve_lengths *l, uint64_t seed, uint64_t number, uint64_t lane)
{
    enum { DRAWS = 2 };
    double value = l->a;
    switch (l->kind) {
    case SERVE_UNIFORM:
        return (uint64_t)l->a + afd_random(seed, number, lane) % (uint64_t)(l->b - l->a + 1);
    case SERVE_NORMAL:
        value = l->a + l->b * gaussian(seed, number, DRAWS * lane);
        break;
    case SERVE_LOGNORMAL:
        value = l->a * exp(l->b * gaussian(seed, number, DRAWS * lane));
        break;
    case SERVE_EXPONENTIAL:
        value = -l->a * log(uniform(seed, number, DRAWS * lane));
        break;
    }
    value = round(value);
    return value < 1 ? 1 : value > SERVE_MAX_TOKENS ? SERVE_MAX_TOKENS : (uint64_t)value;
}

/* ---- arrivals */

/* Marsaglia and Tsang, A simple method for generating gamma variables, 2000; a shape below 1 is boosted by
 * one. */
static double gamma_of(double shape, uint64_t seed, uint64_t number)
{
    double boosted = shape < 1 ? shape + 1 : shape, d = boosted - 1.0 / 3, c = 1 / sqrt(9 * d);
    for (uint64_t draw = 1;; draw += 3) {
        double x = gaussian(seed, number, draw);
        double v = (1 + c * x) * (1 + c * x) * (1 + c * x), u = uniform(seed, number, draw + 2);
        if (v <= 0 || log(u) >= 0.5 * x * x + d - d * v + d * log(v)) continue;
        return d * v * (shape < 1 ? pow(uniform(seed, number, 0), 1 / shape) : 1);
    }
}

double serve_interval(double rate, double burstiness, uint64_t seed, uint64_t number)
{
    if (burstiness <= 0) return 1 / rate;
    return gamma_of(burstiness, seed, number) / (burstiness * rate);
}

struct serve_arrival *serve_arrivals_make(const struct serve_plan *p)
{
    double at = 0;
    struct serve_arrival *arrivals = calloc(p->requests, sizeof *arrivals);
    if (!arrivals) abort();
    for (uint64_t i = 0; i < p->requests; i++) {
        if (p->rate > 0 && i) at += serve_interval(p->rate, p->burstiness, p->seed + 1, i);
        arrivals[i] = (struct serve_arrival){at, serve_lengths_draw(&p->prompt, p->seed + 2, i, 0),
                                             serve_lengths_draw(&p->output, p->seed + 2, i, 1)};
    }
    return arrivals;
}

/* 0: the line is no request, or one that was due before `before`. */
static int read_line(const char *line, double before, struct serve_arrival *out)
{
    json_t *o = json_loads(line, 0, NULL);
    const json_t *at = json_object_get(o, "at_s");
    json_int_t prompt = json_integer_value(json_object_get(o, "prompt_tokens"));
    json_int_t output = json_integer_value(json_object_get(o, "max_tokens"));
    *out = (struct serve_arrival){json_number_value(at), (uint64_t)prompt, (uint64_t)output};
    int is_good = json_is_number(at) && out->at >= before && out->at <= 1e6 && prompt >= 1 &&
                  prompt <= SERVE_MAX_TOKENS && output >= 1 && output <= SERVE_MAX_TOKENS;
    json_decref(o);
    return is_good;
}

enum afd_status serve_arrivals_read(const char *path, struct serve_arrival **out, uint64_t *count_out,
                                    struct afd_error *error_out)
{
    struct serve_arrival *arrivals = NULL, next = {0};
    char *line = NULL;
    size_t bytes = 0;
    uint64_t count = 0, room = 0;
    int is_good = 1;
    FILE *f = fopen(path, "r");
    if (!f) return afd_fail(error_out, AFD_ERR_REQUEST, "%s: cannot be read", path);
    while (getline(&line, &bytes, f) >= 0) {
        is_good = count < SERVE_MAX_REQUESTS && read_line(line, next.at, &next);
        if (!is_good) break;
        if (count == room) {
            room = room ? 2 * room : 1024;
            arrivals = realloc(arrivals, room * sizeof *arrivals);
            if (!arrivals) abort();
        }
        arrivals[count++] = next;
    }
    free(line);
    fclose(f);
    if (is_good && count) {
        *out = arrivals;
        *count_out = count;
        return AFD_OK;
    }
    free(arrivals);
    if (is_good) return afd_fail(error_out, AFD_ERR_REQUEST, "%s: no requests", path);
    return afd_fail(
        error_out, AFD_ERR_REQUEST,
        "%s:%llu: expected {\"at_s\": S, \"prompt_tokens\": N, \"max_tokens\": N}, at_s ascending", path,
        (unsigned long long)count + 1);
}
