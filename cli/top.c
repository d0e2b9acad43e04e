/* top: the cluster, live, in a terminal. */
#include <curses.h>
#include <langinfo.h>
#include <locale.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/top.h"

enum { PAGE = 10, KEY_MS = 100 };

static volatile sig_atomic_t stop; /* a signal asked for the end */

static void on_signal(int number)
{
    (void)number;
    stop = 1;
}

static void take_signals(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
    struct sigaction action = {.sa_handler = on_signal};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) sigaction(numbers[i], &action, NULL);
}

static void replace(json_t **at, json_t *with)
{
    if (!with) return; /* the old one is better than none */
    json_decref(*at);
    *at = with;
}

/* A rank that has told nothing since the last look, for its heartbeats are further apart, keeps what it was
 * compared with: its bar stays as it is. */
static void take_cluster(struct top_view *v, json_t *cluster)
{
    json_t *before = json_array(), *rank;
    double now_s = (double)afd_now() * 1e-9;
    size_t i;
    json_array_foreach(json_object_get(cluster, "ranks"), i, rank)
    {
        json_t *last = top_find_rank(v->now, rank), *seen = json_object_get(last, "seen_s");
        int is_same =
            last && json_equal(json_object_get(last, "stages_s"), json_object_get(rank, "stages_s"));
        json_t *than = is_same ? top_find_rank(v->before, rank) : last;
        if (than) json_array_append(before, than);
        json_object_set_new(rank, "seen_s", is_same ? json_incref(seen) : json_real(now_s));
    }
    json_decref(v->before);
    v->before = json_pack("{s:o}", "ranks", before);
    json_decref(v->now);
    v->now = cluster;
}

static void look(struct top_view *v, const char *base)
{
    struct afd_error error;
    long code;
    json_t *cluster = cli_get_json(base, "/afd/v1/cluster", &code, &error);
    v->failure.text[0] = 0;
    if (!cluster) {
        v->failure = error;
        return;
    }
    take_cluster(v, cluster);
    replace(&v->history, cli_get_json(base, "/afd/v1/history", &code, &error));
    replace(&v->events, cli_get_json(base, "/afd/v1/events", &code, &error));
}

/* 1: it is to end. */
static int take_key(struct top_view *v, int key)
{
    switch (key) {
    case 'q':
    case 'Q':
        return 1;
    case KEY_DOWN:
    case 'j':
        v->scroll++;
        break;
    case KEY_UP:
    case 'k':
        v->scroll -= v->scroll > 0;
        break;
    case KEY_NPAGE:
        v->scroll += PAGE;
        break;
    case KEY_PPAGE:
        v->scroll -= v->scroll > PAGE ? PAGE : v->scroll;
        break;
    default:
        break; /* KEY_RESIZE: curses knows the new size, and it is drawn anew */
    }
    return 0;
}

static void show(struct top_view *v, const char *base, double every)
{
    afd_ns due = 0;
    while (!stop) {
        if (afd_now() >= due) {
            look(v, base);
            due = afd_now() + (afd_ns)(every * 1e9);
        }
        top_draw(v);
        if (take_key(v, getch())) return; /* waits KEY_MS for one */
    }
}

int cli_top(const struct cli_command *self, int argc, char **argv)
{
    const char *state = NULL, *url = NULL;
    double every = 1;
    int help;
    const struct cli_option options[] = {
        {"--every", 0, CLI_REAL, &every, "seconds between two looks (default 1)"},
        {"--state", 0, CLI_TEXT, &state,
         "state directory or name of the cluster (default: the one that runs)"},
        {"--url", 0, CLI_TEXT, &url, "of the scheduler, http://host:port"},
        {0}};
    if (cli_parse(self, argc, argv, options, NULL, 0, &help) < 0) return cli_parse_exit(help);
    char base[CLI_URL_BYTES];
    if (cli_url(url, state, base)) return CLI_FAILED;
    if (!(every >= 0.1 && every <= 3600)) return cli_fail("top: --every is %g; expected 0.1 to 3600", every);
    if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))
        return cli_fail("top: this is no terminal; try `afd status`");
    struct top_view view = {0};
    setlocale(LC_CTYPE, "");
    view.is_utf8 = !strcmp(nl_langinfo(CODESET), "UTF-8");
    take_signals(); /* before curses, which would take those that nobody has */
    int look = top_terminal_look();
    if (look < 0) return cli_fail("top: TERM names no terminal that is known; try TERM=xterm");
    if (look > 0)
        return cli_fail("top: TERM=%s is a terminal that only prints lines; try `afd status`",
                        getenv("TERM"));
    SCREEN *screen = newterm(NULL, stdout, stdin);
    if (!screen) return cli_fail("top: no memory for a screen");
    cbreak();
    noecho();
    keypad(stdscr, TRUE);
    curs_set(0);
    timeout(KEY_MS);
    top_init_colours();
    show(&view, base, every);
    endwin();
    delscreen(screen);
    json_decref(view.before);
    json_decref(view.now);
    json_decref(view.history);
    json_decref(view.events);
    return CLI_OK;
}
