#include "cli/top.h"

#include <curses.h>
#include <string.h>

#include "base/stages.h"

enum { NAME_COLUMNS = 10, STATE_COLUMNS = 10, RIGHT_COLUMNS = 34, EVENTS = 6, LEAST_BAR = 8, STRAGGLERS = 2 };

/* Colour pairs: a stage each, then those of words. */
enum { COLOUR_STAGE = 1, COLOUR_BAD = COLOUR_STAGE + AFD_STAGE_COUNT, COLOUR_DIM, COLOUR_COUNT };

void top_init_colours(void)
{
    static const short of_stage[AFD_STAGE_COUNT] = {COLOR_GREEN, COLOR_MAGENTA, COLOR_CYAN,
                                                    COLOR_BLUE,  COLOR_RED,     -1};
    if (!has_colors()) return;
    start_color();
    use_default_colors();
    for (int s = 0; s < AFD_STAGE_COUNT; s++) init_pair((short)(COLOUR_STAGE + s), of_stage[s], -1);
    init_pair(COLOUR_BAD, COLOR_RED, -1);
    init_pair(COLOUR_DIM, -1, -1);
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static double number_of(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

/* Text at a place, cut at the right edge; names from outside lose what is not printable. */
static void put(int row, int column, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void put(int row, int column, const char *format, ...)
{
    char text[512];
    va_list args;
    if (row < 0 || row >= LINES || column >= COLS) return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f) *c = '?';
    mvaddnstr(row, column, text, COLS - column);
}

/* "1,234,567" */
static const char *grouped(double value, char out[32])
{
    char digits[32];
    int count = snprintf(digits, sizeof digits, "%.0f", value < 0 ? 0 : value), used = 0;
    for (int i = 0; i < count && used < 30; i++) {
        if (i && (count - i) % 3 == 0) out[used++] = ',';
        out[used++] = digits[i];
    }
    out[used] = 0;
    return out;
}

/* "12.3 ms"; "-" for none */
static const char *duration(const json_t *value, char out[32])
{
    double s = json_number_value(value);
    if (!json_is_number(value))
        snprintf(out, 32, "-");
    else if (s < 1)
        snprintf(out, 32, "%.3g ms", s * 1e3);
    else
        snprintf(out, 32, "%.3g s", s);
    return out;
}

/* The last value of a row of the history; for latencies the last one that there is. */
static const json_t *last_of(const struct top_view *v, const char *key)
{
    const json_t *row = json_object_get(json_object_get(v->history, "values"), key);
    for (size_t i = json_array_size(row); i > 0; i--)
        if (json_is_number(json_array_get(row, i - 1))) return json_array_get(row, i - 1);
    return NULL;
}

/* ---- the lines above the ranks */

/* What is wrong now, a line each; the row behind them. */
static int draw_faults(const struct top_view *v, int row)
{
    const json_t *stragglers = json_object_get(v->now, "stragglers");
    const char *degraded = text_of(v->now, "degraded");
    size_t count = json_array_size(stragglers);
    attron(COLOR_PAIR(COLOUR_BAD) | A_BOLD);
    if (*degraded || *v->failure.text) put(row++, 0, "%s", *v->failure.text ? v->failure.text : degraded);
    for (size_t i = 0; i < count && i < STRAGGLERS; i++) {
        const json_t *s = json_array_get(stragglers, i);
        put(row++, 0, "straggler: %s/%.0f, %.1f times as slow at %s, by its %s", text_of(s, "role"),
            number_of(s, "rank"), number_of(s, "score"), text_of(s, "stage"), text_of(s, "cause"));
    }
    if (count > STRAGGLERS) put(row++, 0, "and %zu stragglers more: afd status", count - STRAGGLERS);
    attroff(COLOR_PAIR(COLOUR_BAD) | A_BOLD);
    return row;
}

static int draw_head(const struct top_view *v)
{
    char a[32], b[32], c[32], d[32];
    const json_t *requests = json_object_get(v->now, "requests");
    int row = 0;
    attron(A_BOLD);
    put(row++, 0, "afd top  %s: %s, model %s, epoch %.0f, up %.0f s", text_of(v->now, "cluster"),
        text_of(v->now, "state"), text_of(v->now, "model"), number_of(v->now, "epoch"),
        number_of(v->now, "uptime_s"));
    attroff(A_BOLD);
    put(row++, 0, "tokens/s  %s generated, %s prompt",
        grouped(json_number_value(last_of(v, "generated_tokens_per_s")), a),
        grouped(json_number_value(last_of(v, "prompt_tokens_per_s")), b));
    put(row++, 0, "latency   first token %s (p99 %s), next ones %s (p99 %s)",
        duration(last_of(v, "first_token_p50_s"), a), duration(last_of(v, "first_token_p99_s"), b),
        duration(last_of(v, "inter_token_p50_s"), c), duration(last_of(v, "inter_token_p99_s"), d));
    put(row++, 0, "requests  %s running, %s waiting, %s finished; KV cache %.0f%% in use",
        grouped(number_of(requests, "running"), a), grouped(number_of(requests, "waiting"), b),
        grouped(number_of(requests, "finished"), c), 100 * json_number_value(last_of(v, "kv_ratio")));
    return draw_faults(v, row) + 1;
}

/* ---- ranks */

static const char *mark_of(const struct top_view *v, int stage)
{
    static const char *const utf8[AFD_STAGE_COUNT] = {"\u2588", "\u2593", "\u2592",
                                                      "\u2591", "\u00d7", "\u00b7"};
    static const char *const ascii[AFD_STAGE_COUNT] = {"#", "g", "s", "-", "x", "."};
    return v->is_utf8 ? utf8[stage] : ascii[stage];
}

json_t *top_find_rank(const json_t *cluster, const json_t *rank)
{
    json_t *r;
    size_t i;
    json_array_foreach(json_object_get(cluster, "ranks"), i,
                       r) if (!strcmp(text_of(r, "role"), text_of(rank, "role")) &&
                              number_of(r, "rank") == number_of(rank, "rank") &&
                              number_of(r, "pid") == number_of(rank, "pid")) return r;
    return NULL;
}

/* Shares of the rank's time between the two; all 0 without `before`. */
static void shares_of(const json_t *rank, const json_t *before, double out[AFD_STAGE_COUNT])
{
    double sum = 0;
    for (int s = 0; s < AFD_STAGE_COUNT; s++) {
        const char *name = afd_stage_name((enum afd_stage)s);
        out[s] = number_of(json_object_get(rank, "stages_s"), name) -
                 number_of(json_object_get(before, "stages_s"), name);
        if (out[s] < 0) out[s] = 0;
        sum += out[s];
    }
    for (int s = 0; s < AFD_STAGE_COUNT; s++) out[s] = before && sum > 0 ? out[s] / sum : 0;
}

/* The stages one after the other, each as long as its share. */
static void draw_bar(const struct top_view *v, int row, int column, int width,
                     const double share[AFD_STAGE_COUNT])
{
    double until = 0;
    int at = 0;
    if (row < 0 || row >= LINES) return;
    for (int s = 0; s < AFD_STAGE_COUNT; s++) {
        until += share[s] * width;
        attron(COLOR_PAIR(COLOUR_STAGE + s));
        for (; at < width && at + 0.5 < until; at++) mvaddstr(row, column + at, mark_of(v, s));
        attroff(COLOR_PAIR(COLOUR_STAGE + s));
    }
}

static void draw_rank(const struct top_view *v, int row, int bar, const json_t *rank)
{
    const char *state = text_of(rank, "state");
    const json_t *before =
        strcmp(state, "lost") ? top_find_rank(v->before, rank) : NULL; /* what it did is over */
    double between_s = number_of(rank, "seen_s") - number_of(before, "seen_s");
    double share[AFD_STAGE_COUNT], rate = 0, blocks = number_of(rank, "kv_blocks");
    char rows[32];
    int is_attn = !strcmp(text_of(rank, "role"), "attn"), is_bad = strcmp(state, "ready") != 0;
    int right = NAME_COLUMNS + STATE_COLUMNS + bar + 1;
    shares_of(rank, before, share);
    if (before && between_s > 0) rate = (number_of(rank, "rows") - number_of(before, "rows")) / between_s;
    put(row, 0, "%s/%.0f", text_of(rank, "role"), number_of(rank, "rank"));
    if (is_bad) attron(COLOR_PAIR(COLOUR_BAD));
    put(row, NAME_COLUMNS, "%.*s", STATE_COLUMNS - 1, state);
    if (is_bad) attroff(COLOR_PAIR(COLOUR_BAD));
    draw_bar(v, row, NAME_COLUMNS + STATE_COLUMNS, bar, share);
    put(row, right, "%4.0f%% %9s", 100 * share[AFD_STAGE_COMPUTE], grouped(rate, rows));
    if (!is_attn) return;
    put(row, right + 16, "%5.0f %5.0f", number_of(rank, "running"), number_of(rank, "waiting"));
    if (blocks > 0) put(row, right + 28, "%4.0f%%", 100 * number_of(rank, "kv_blocks_used") / blocks);
}

static void draw_legend(const struct top_view *v, int row)
{
    int column = NAME_COLUMNS + STATE_COLUMNS;
    for (int s = 0; s < AFD_STAGE_COUNT && row < LINES; s++) {
        const char *name = afd_stage_name((enum afd_stage)s);
        if (column + 2 + (int)strlen(name) > COLS) return;
        attron(COLOR_PAIR(COLOUR_STAGE + s));
        mvaddstr(row, column, mark_of(v, s));
        attroff(COLOR_PAIR(COLOUR_STAGE + s));
        put(row, column + 2, "%s", name);
        column += (int)strlen(name) + 4;
    }
}

/* Returns the row behind them. `room`: rows for all of it. */
static int draw_ranks(struct top_view *v, int row, int room, uint32_t *shown_out)
{
    const json_t *ranks = json_object_get(v->now, "ranks");
    uint32_t count = (uint32_t)json_array_size(ranks), shown = room > 2 ? (uint32_t)room - 2 : 1;
    int bar = COLS - NAME_COLUMNS - STATE_COLUMNS - RIGHT_COLUMNS;
    if (bar < LEAST_BAR) bar = LEAST_BAR;
    int right = NAME_COLUMNS + STATE_COLUMNS + bar + 1;
    if (shown > count) shown = count;
    if (v->scroll > count - shown) v->scroll = count - shown;
    draw_legend(v, row++);
    attron(A_UNDERLINE);
    put(row, 0, "%-*s", COLS, "");
    put(row, 0, "rank");
    put(row, NAME_COLUMNS, "state");
    put(row, right, "busy%%    rows/s  runs waits    KV");
    attroff(A_UNDERLINE);
    row++;
    for (uint32_t i = 0; i < shown; i++) draw_rank(v, row++, bar, json_array_get(ranks, v->scroll + i));
    *shown_out = shown;
    return row;
}

/* The last line, over whatever stands there on a screen that is too small. */
static void draw_foot(const struct top_view *v, uint32_t shown)
{
    uint32_t count = (uint32_t)json_array_size(json_object_get(v->now, "ranks"));
    move(LINES - 1, 0);
    clrtoeol();
    attron(A_DIM);
    if (shown < count)
        put(LINES - 1, 0, "q quits; ranks %u to %u of %u, arrow keys show others", v->scroll + 1,
            v->scroll + shown, count);
    else
        put(LINES - 1, 0, "q quits");
    attroff(A_DIM);
}

/* ---- events */

static void draw_events(const struct top_view *v, int row)
{
    const json_t *events = json_object_get(v->events, "events");
    size_t count = json_array_size(events);
    for (size_t i = 0; i < count && row < LINES - 1; i++, row++) {
        const json_t *e = json_array_get(events, count - 1 - i);
        int is_bad = json_is_true(json_object_get(e, "bad"));
        put(row, 0, "%6.0f s ago", number_of(e, "age_s"));
        if (is_bad) attron(COLOR_PAIR(COLOUR_BAD));
        put(row, 14, "%s", text_of(e, "words"));
        if (is_bad) attroff(COLOR_PAIR(COLOUR_BAD));
    }
}

void top_draw(struct top_view *v)
{
    erase();
    if (!v->now) {
        put(0, 0, "afd top  %s", *v->failure.text ? v->failure.text : "asking the scheduler");
        put(LINES - 1, 0, "q quits");
        refresh();
        return;
    }
    int row = draw_head(v);
    int events = (int)json_array_size(json_object_get(v->events, "events"));
    if (events > EVENTS) events = EVENTS;
    /* Ranks first; events take what is left: one line at least, EVENTS of a screen that is not small. */
    uint32_t shown;
    row = draw_ranks(v, row, LINES - row - 3 - (LINES > 20 ? events : 1), &shown);
    draw_events(v, row + 1);
    draw_foot(v, shown);
    refresh();
}
