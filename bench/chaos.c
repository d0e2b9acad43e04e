/* afd-bench-chaos: kills, stops, cuts off, grows and shrinks a cluster under streams, and says what a client
 * saw.
 *
 * One row a fault: streams that were running or began meanwhile, those without a complete answer (lost),
 * those whose answer is not the undisturbed cluster's (wrong), the longest time any of them waited between
 * two tokens, and what that may be. docs/CHAOS.md describes the faults and the bounds. */
#include <argp.h>
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/rng.h"
#include "bench/chaos_faults.h"
#include "bench/chaos_load.h"

enum {
    BEGUN_TOKENS = 8,  /* that each stream has had when a fault begins */
    END_S = 120,       /* for what runs when the load stops */
    WHOLE_S = 40,      /* for every rank to be ready again */
    FULL_SPEED_S = 12, /* how long the old rate is waited for */
    RATE_MS = 1000,
    UNDISTURBED_S = 6, /* at least, and each request once */
    BEFORE_MS = 1000,  /* of load before a fault, at most: where it hits is drawn */
    GAP_FACTOR = 3,    /* of the undisturbed run's longest */
};

struct options {
    unsigned repeat, streams, scale;
    uint64_t seed;
    int lease_ms, is_json, is_listed, has_no_bounds;
    const char *only, *keep;
};

/* One line of the table. */
struct row {
    const char *name, *shape;
    unsigned round;
    size_t streams, lost, wrong, attached, asked_again;
    double gap_s, bound_s, full_speed_s, whole_s, load_s, rate, first_s, stall_s,
        gap_rate;    /* less than 0: not measured */
    char words[600]; /* what is against the promise; "": nothing */
};

struct bench {
    struct options options;
    struct site site;
    struct load_requests requests;
    struct load_answer *expected; /* of each request; tokens NULL: not known yet */
    double base_gap_s[SITE_SHAPES],
        base_rate[SITE_SHAPES]; /* of the undisturbed run of this round; gap 0: none yet */
    unsigned round, rows, failures;
    json_t *json;
};

/* ---- rows */

static void add_words(struct row *row, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void add_words(struct row *row, const char *format, ...)
{
    size_t used = strlen(row->words);
    va_list args;
    va_start(args, format);
    if (used) used += (size_t)snprintf(row->words + used, sizeof row->words - used, "; ");
    if (used < sizeof row->words) vsnprintf(row->words + used, sizeof row->words - used, format, args);
    va_end(args);
    for (char *c = row->words; *c; c++)
        if (*c == '\n') *c = ' ';
}

static const char *number(double value, int decimals, char text[16])
{
    if (value < 0)
        snprintf(text, 16, "-");
    else
        snprintf(text, 16, "%.*f", decimals, value);
    return text;
}

static void print_head(void)
{
    printf("%-16s %-15s %7s %5s %5s %8s %8s %8s %8s %8s %8s %8s\n", "fault", "cluster", "streams", "lost",
           "wrong", "gap s", "bound s", "full s", "whole s", "load s", "tokens/s", "came back");
}

static void print_row(struct bench *b, const struct row *r)
{
    char t[6][16];
    printf("%-16s %-15s %7zu %5zu %5zu %8s %8s %8s %8s %8s %8s %8zu  %s\n", r->name, r->shape, r->streams,
           r->lost, r->wrong, number(r->gap_s, 3, t[0]), number(r->bound_s, 3, t[1]),
           number(r->full_speed_s, 1, t[2]), number(r->whole_s, 1, t[3]), number(r->load_s, 3, t[4]),
           number(r->rate, 0, t[5]), r->attached, r->words[0] ? r->words : "ok");
    b->rows++;
    b->failures += r->words[0] != 0;
    json_array_append_new(
        b->json,
        json_pack(
            "{s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:s}",
            "fault", r->name, "cluster", r->shape, "round", (int)r->round, "streams", (int)r->streams, "lost",
            (int)r->lost, "wrong", (int)r->wrong, "came_back", (int)r->attached, "asked_again",
            (int)r->asked_again, "gap_s", r->gap_s, "bound_s", r->bound_s, "full_speed_s", r->full_speed_s,
            "whole_s", r->whole_s, "load_s", r->load_s, "tokens_per_s", r->rate, "first_token_s", r->first_s,
            "client_stall_s", r->stall_s, "gap_tokens_per_s", r->gap_rate, "violation", r->words));
}

/* ---- what the streams brought */

static int is_same(const struct load_answer *a, const struct load_answer *b)
{
    return a->count == b->count && !memcmp(a->tokens, b->tokens, a->count * sizeof *a->tokens) &&
           !strcmp(a->finish, b->finish) && !strcmp(a->text ? a->text : "", b->text ? b->text : "");
}

static void say_difference(struct row *row, const struct load_answer *a, const struct load_answer *expected)
{
    size_t at = 0;
    while (at < a->count && at < expected->count && a->tokens[at] == expected->tokens[at]) at++;
    add_words(row, "request %zu differs from token %zu on (%zu tokens, '%s'; expected %zu, '%s')", a->request,
              at, a->count, a->finish, expected->count, expected->finish);
}

/* Counts into the row; the first answer to a request becomes what is expected of later ones. */
static void judge(struct bench *b, const struct load_result *r, struct row *row)
{
    row->streams = r->count;
    row->asked_again = r->asked_again;
    row->gap_rate = r->gap_rate;
    row->stall_s = (double)r->stall * 1e-9;
    for (size_t i = 0; i < r->count; i++) {
        struct load_answer *a = &r->answers[i], *expected = &b->expected[a->request];
        double gap_s = (double)a->gap * 1e-9, first_s = (double)a->first * 1e-9;
        row->attached += a->attached > 0;
        if (gap_s > row->gap_s) row->gap_s = gap_s;
        if (first_s > row->first_s) row->first_s = first_s;
        if (a->lost[0]) {
            if (!row->lost++) add_words(row, "lost: request %zu %s", a->request, a->lost);
        } else if (!expected->tokens) {
            *expected = *a;
            a->tokens = NULL; /* moved */
            a->text = NULL;
        } else if (!is_same(a, expected)) {
            if (!row->wrong++) say_difference(row, a, expected);
        }
    }
}

static struct row row_of(const struct bench *b, const char *name, enum site_shape shape)
{
    return (struct row){.name = name,
                        .shape = site_shape_name(shape),
                        .round = b->round,
                        .bound_s = -1,
                        .full_speed_s = -1,
                        .whole_s = -1,
                        .load_s = -1,
                        .rate = -1};
}

static void sleep_ms(int ms)
{
    usleep((useconds_t)ms * 1000);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median over seconds of the time between. */
static double median_rate(struct load *load, afd_ns from, afd_ns to)
{
    enum { MOST = 200 };
    double rates[MOST];
    size_t count = 0;
    for (; count < MOST && from + AFD_MS(RATE_MS) <= to; from += AFD_MS(RATE_MS)) {
        double rate = load_rate(load, from, AFD_MS(RATE_MS));
        if (rate >= 0) rates[count++] = rate;
    }
    qsort(rates, count, sizeof *rates, by_value);
    return count ? rates[count / 2] : 0;
}

/* ---- runs */

/* Each request at least once, on a cluster that is left alone. */
static int run_undisturbed(struct bench *b, enum site_shape shape)
{
    const struct options *o = &b->options;
    struct row row = row_of(b, "undisturbed", shape);
    struct load *load = load_begin(b->site.cluster.url, &b->requests, o->streams, 0);
    afd_ns limit = afd_now() + AFD_SECONDS(300);
    load_wait_begun(load, 1, limit);
    afd_ns begun = afd_now();
    while ((load_ended(load) < b->requests.count - o->streams ||
            afd_now() < begun + AFD_SECONDS(UNDISTURBED_S)) &&
           afd_now() < limit)
        sleep_ms(20);
    row.rate = median_rate(load, begun, afd_now());
    struct load_result result = load_end(load, afd_now() + AFD_SECONDS(END_S));
    judge(b, &result, &row);
    load_result_free(&result);
    b->base_gap_s[shape] = row.gap_s;
    b->base_rate[shape] = row.rate;
    print_row(b, &row);
    return !row.lost;
}

/* From `over` to the first second with 90% of the undisturbed rate; -1: not seen. */
static double wait_full_speed(struct load *load, afd_ns over, double base_rate)
{
    afd_ns limit = afd_now() + AFD_SECONDS(FULL_SPEED_S);
    for (afd_ns from = over; afd_now() < limit;) {
        double rate = load_rate(load, from, AFD_MS(RATE_MS));
        if (rate >= 0.9 * base_rate) return (double)(from - over) * 1e-9;
        if (rate >= 0)
            from += AFD_MS(RATE_MS / 10);
        else
            sleep_ms(20);
    }
    return -1;
}

/* Seconds since it was over; -1: not within the time. A process that was killed counts once another has its
 * place. */
static double wait_whole(const struct deed *d)
{
    for (afd_ns limit = afd_now() + AFD_SECONDS(WHOLE_S); afd_now() < limit; sleep_ms(20))
        if ((!d->killed || site_pid(d->site, d->fault->role, d->victim) != d->killed) &&
            site_is_whole(d->site))
            return (double)(afd_now() - d->over) * 1e-9;
    return -1;
}

static void run_fault(struct bench *b, const struct fault *f)
{
    struct row row = row_of(b, f->name, f->shape);
    struct deed deed = {.site = &b->site, .fault = f};
    long logs[SITE_MOST];
    size_t first = (size_t)(afd_random(b->options.seed, b->round, 1) % b->requests.count);
    deed.victim = (uint32_t)(afd_random(b->options.seed, b->round, 2) % SITE_ATTN);
    struct load *load = load_begin(b->site.cluster.url, &b->requests, b->options.streams, first);
    if (!load_wait_begun(load, BEGUN_TOKENS, afd_now() + AFD_SECONDS(END_S)))
        add_words(&row, "not every stream began, before anything was done");
    sleep_ms((int)(afd_random(b->options.seed, b->round, 3) % BEFORE_MS));
    site_logs(&b->site, logs);
    fault_do(&deed);
    if (deed.words[0]) add_words(&row, "%s", deed.words);
    row.whole_s = wait_whole(&deed);
    if (row.whole_s < 0) add_words(&row, "not every rank is ready again after %d s", WHOLE_S);
    row.full_speed_s = wait_full_speed(load, deed.over, b->base_rate[f->shape]);
    struct load_result result = load_end(load, afd_now() + AFD_SECONDS(END_S));
    judge(b, &result, &row);
    load_result_free(&result);
    double allowed_s = f->bound_ms * 1e-3, undisturbed_s = GAP_FACTOR * b->base_gap_s[f->shape];
    row.bound_s = allowed_s > undisturbed_s ? allowed_s : undisturbed_s;
    if (f->has_lease) row.bound_s += b->site.lease_ms * 1e-3;
    if (f->has_load) {
        row.load_s = site_load_s(&b->site, logs);
        row.bound_s += row.load_s;
    }
    if (row.gap_s > row.bound_s && !b->options.has_no_bounds)
        add_words(&row, "a stream stood still for longer than the bound");
    print_row(b, &row);
    if (!row.words[0]) return;
    char *bad = site_down(&b->site, row.words); /* the next fault begins with a whole cluster */
    if (bad) printf("# %s", bad);
    free(bad);
}

static void say_not_available(struct bench *b, const struct fault *f, const char *why)
{
    struct row row = row_of(b, f->name, f->shape);
    add_words(&row, "not available: %s", why);
    print_row(b, &row);
}

static int is_chosen(const struct options *o, const struct fault *f)
{
    if (!o->only) return 1;
    char list[600], word[64];
    snprintf(list, sizeof list, ",%s,", o->only);
    snprintf(word, sizeof word, ",%s,", f->name);
    return strstr(list, word) != NULL;
}

static void run_one(struct bench *b, const struct fault *f)
{
    char *why;
    if (f->shape == SITE_HOSTS && !b->site.hosts) {
        say_not_available(b, f, hosts_why_not());
        return;
    }
    site_need(&b->site, f->shape);
    if (b->base_gap_s[f->shape] <= 0 && !run_undisturbed(b, f->shape)) return;
    if ((why = fault_why_not(&b->site, f)) || (why = fault_prepare(&b->site, f)))
        say_not_available(b, f, why);
    else
        run_fault(b, f);
    free(why);
}

static void run_round(struct bench *b)
{
    if (b->options.repeat > 1) printf("# round %u of %u\n", b->round + 1, b->options.repeat);
    for (int shape = 0; shape < SITE_SHAPES; shape++) b->base_gap_s[shape] = 0;
    /* by shape, so that a cluster is started once a round */
    for (int shape = 0; shape < SITE_SHAPES; shape++) {
        for (size_t i = 0; i < fault_count; i++)
            if (faults[i].shape == (enum site_shape)shape && is_chosen(&b->options, &faults[i]))
                run_one(b, &faults[i]);
    }
}

/* ---- options */

enum {
    KEY_JSON = 256,
    KEY_KEEP,
    KEY_LEASE,
    KEY_LIST,
    KEY_NO_BOUNDS,
    KEY_ONLY,
    KEY_REPEAT,
    KEY_SCALE,
    KEY_SEED,
    KEY_STREAMS
};

static const struct argp_option option_list[] = {
    {"repeat", KEY_REPEAT, "N", 0, "rounds over all faults; default 1", 0},
    {"only", KEY_ONLY, "NAME,...", 0, "these faults alone", 0},
    {"list", KEY_LIST, NULL, 0, "print the faults and end", 0},
    {"seed", KEY_SEED, "N", 0, "of the requests and the victims; default 1", 0},
    {"streams", KEY_STREAMS, "N", 0, "at one time; default 64", 0},
    {"length", KEY_SCALE, "PERCENT", 0, "of the answers, 100 is 120 to 320 tokens; default 100", 0},
    {"lease-ms", KEY_LEASE, "N", 0, "after which a silent rank is removed; default 2000", 0},
    {"no-bounds", KEY_NO_BOUNDS, NULL, 0, "a long gap is printed but breaks no promise: for tests", 0},
    {"keep", KEY_KEEP, "DIR", 0, "copy logs and state of a cluster to DIR when a promise was broken", 0},
    {"json", KEY_JSON, NULL, 0, "one object at the end, on stdout; the table goes to stderr", 0},
    {0},
};

static error_t parse(int key, char *text, struct argp_state *state)
{
    struct options *o = state->input;
    char *end = text;
    unsigned long n = text && key != KEY_ONLY && key != KEY_KEEP ? strtoul(text, &end, 10) : 0;
    if (text && key != KEY_ONLY && key != KEY_KEEP && (end == text || *end || n > 1000000))
        argp_error(state, "'%s': expected a number", text);
    switch (key) {
    case KEY_REPEAT:
        o->repeat = (unsigned)n;
        return 0;
    case KEY_STREAMS:
        o->streams = (unsigned)(n ? n : 1);
        return 0;
    case KEY_SCALE:
        o->scale = (unsigned)(n < 10 ? 10 : n > 150 ? 150 : n);
        return 0;
    case KEY_SEED:
        o->seed = n;
        return 0;
    case KEY_LEASE:
        o->lease_ms = (int)n;
        return 0;
    case KEY_ONLY:
        o->only = text;
        return 0;
    case KEY_KEEP:
        o->keep = text;
        return 0;
    case KEY_JSON:
        o->is_json = 1;
        return 0;
    case KEY_NO_BOUNDS:
        o->has_no_bounds = 1;
        return 0;
    case KEY_LIST:
        o->is_listed = 1;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "'%s': only options are expected", text);
        return EINVAL;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const char help_text[] =
    "Kills, stops, cuts off, grows and shrinks a cluster while 64 streams run, and says what their clients "
    "saw.\v"
    "Columns: streams that ran or began meanwhile; lost: without a complete answer; wrong: an answer that is "
    "not, token for "
    "token, the undisturbed cluster's; gap: the longest time between two tokens of any stream; bound: what "
    "the gap may be, "
    "the larger of the fault's own and three times the undisturbed one's; full: from the fault's end until "
    "the rate is back at "
    "90% of the undisturbed; whole: until every rank is ready; load: loading lost shards; tokens/s: "
    "undisturbed; came "
    "back: streams whose client had to attach again. Exit status 1 when a promise was broken.";

static int check_names(const struct options *o)
{
    char list[600], *at = list, *word;
    snprintf(list, sizeof list, "%s", o->only ? o->only : "");
    while ((word = strsep(&at, ",")) && *word) {
        size_t i = 0;
        while (i < fault_count && strcmp(faults[i].name, word) != 0) i++;
        if (i < fault_count) continue;
        fprintf(stderr, "afd-bench-chaos: there is no fault %s; --list names them\n", word);
        return -1;
    }
    return 0;
}

static void print_list(void)
{
    for (size_t i = 0; i < fault_count; i++)
        printf("%-16s %-15s %s\n", faults[i].name, site_shape_name(faults[i].shape), faults[i].help);
}

static int needs_hosts(const struct options *o)
{
    for (size_t i = 0; i < fault_count; i++)
        if (faults[i].shape == SITE_HOSTS && is_chosen(o, &faults[i])) return 1;
    return 0;
}

/* The table goes to stderr when stdout has the object. Returns where the object goes. */
static FILE *divide_output(int is_json)
{
    FILE *object = is_json ? fdopen(dup(STDOUT_FILENO), "w") : NULL;
    if (is_json) dup2(STDERR_FILENO, STDOUT_FILENO);
    setvbuf(stdout, NULL, _IOLBF, 0);
    return object;
}

int main(int argc, char **argv)
{
    static const struct argp argp = {option_list, parse, NULL, help_text, NULL, NULL, NULL};
    struct bench b = {.options = {.repeat = 1, .streams = 64, .scale = 100, .seed = 1, .lease_ms = 2000},
                      .json = json_array()};
    argp_parse(&argp, argc, argv, 0, NULL, &b.options);
    if (check_names(&b.options)) return 2;
    if (b.options.is_listed) {
        print_list();
        return 0;
    }
    FILE *object = divide_output(b.options.is_json);
    curl_global_init(CURL_GLOBAL_DEFAULT);
    b.site = (struct site){.lease_ms = b.options.lease_ms, .keep = b.options.keep, .shape = SITE_SHAPES};
    if (needs_hosts(&b.options) && !hosts_why_not()) b.site.hosts = hosts_make(SITE_ATTN + SITE_FFN);
    b.requests = load_requests_make((size_t)b.options.streams * 2, b.options.seed, b.options.scale);
    b.expected = calloc(b.requests.count, sizeof *b.expected);
    print_head();
    for (; b.round < b.options.repeat; b.round++) run_round(&b);
    char *bad = site_down(&b.site, NULL);
    if (bad) printf("# %s", bad);
    b.failures += bad != NULL;
    printf("# %u rows, %u of them with a broken promise; %ld processors\n", b.rows, b.failures,
           sysconf(_SC_NPROCESSORS_ONLN));
    if (object) {
        json_t *all = json_pack("{s:i, s:i, s:i, s:i, s:O}", "seed", (int)b.options.seed, "streams",
                                (int)b.options.streams, "lease_ms", b.options.lease_ms, "failures",
                                (int)b.failures, "rows", b.json);
        json_dumpf(all, object, JSON_INDENT(1));
        fputc('\n', object);
        json_decref(all);
        fclose(object);
    }
    for (size_t i = 0; i < b.requests.count; i++) {
        free(b.expected[i].tokens);
        free(b.expected[i].text);
    }
    free(bad);
    free(b.expected);
    load_requests_free(&b.requests);
    hosts_end(b.site.hosts);
    json_decref(b.json);
    curl_global_cleanup();
    return b.failures ? 1 : 0;
}
