/* The afd command line: one table of commands. */
#include <signal.h>
#include <string.h>

#include "base/log.h"
#include "cli/cli.h"

static const struct cli_command commands[] = {
    {"check", "FILE [--context N] [--json]",
     "validate a topology; placement, memory per rank, time per token", cli_check},
    {"up", "FILE [--state DIR] [--timeout S]", "launch a cluster and wait until every rank is ready", cli_up},
    {"down", "[--state DIR|NAME]", "stop a cluster: drain, then nothing of it is left", cli_down},
    {"ps", "[--state DIR|NAME] [--json]", "the processes of a cluster", cli_ps},
    {"logs", "RANK|scheduler|supervisor [-f] [-n N]", "what a rank wrote: afd logs attn/0", cli_logs},
    {"status", "[--state DIR|NAME | --url URL] [--json]", "ranks, where their time goes, requests",
     cli_status},
    {"top", "[--state DIR|NAME | --url URL] [--every S]",
     "the cluster, live: rates, latencies, stages, faults", cli_top},
    {"trace", "[--seconds S] [-o FILE]", "some seconds of the whole cluster, for Perfetto or Chrome",
     cli_trace},
    {"scale", "attn=N ffn=M [--state DIR|NAME | --url URL]", "grow or shrink the pools while it serves",
     cli_scale},
    {"drain", "RANK [--state DIR|NAME | --url URL]", "take a rank's instance out: afd drain ffn/1",
     cli_drain},
    {"restart", "[RANK ...] [scheduler] [--state DIR|NAME | --url URL]",
     "new processes, one instance after the other; of all, then the scheduler, when none is named",
     cli_restart},
    {"shards", "FILE -o SHARDS [--metrics PAGE] [--json]",
     "which experts form a shard, from the load that was measured", cli_shards},
    {"complete", "PROMPT [--max-tokens N] ...", "stream one completion to the terminal", cli_complete},
    {"chat", "[--state DIR|NAME | --url URL] ...", "talk with the model; /exit leaves", cli_chat},
    {"model", "info PATH [--attn-tp N --ep N --tp N] | make DIR ... | convert PATH -o OUT --to FORMAT ...",
     "what a checkpoint holds; a random tiny one; another format or type", cli_model},
    {"bench", "serve | stage | transport ...", "measure the cluster, its stages, or the data plane",
     cli_bench},
    {"plan", "--model CONFIG|NAME [--context N,..] [--hardware H800,..] ...",
     "cost, sizes, A:F ratio and network limits of a model", cli_plan},
    {"sim", "FILE [--faults all] [--seeds N | --seed S] ...", "the virtual cluster: predict it, or break it",
     cli_sim},
    {"render", "slurm|systemd|kubernetes FILE [-o DIR]", "a topology as files for another launcher",
     cli_render},
    {"probe", "FILE [--ready]", "does a rank in a container live? FILE: its --health", cli_probe},
    {"help", "[COMMAND]", "this list, or a command's options", cli_help},
    {"supervise", "--topology FILE --state DIR ...", NULL, cli_supervise},
};

enum { COMMANDS = sizeof commands / sizeof commands[0] };

static const struct cli_command *find(const char *name)
{
    for (int i = 0; i < COMMANDS; i++)
        if (!strcmp(commands[i].name, name)) return &commands[i];
    return NULL;
}

static void print_commands(FILE *to)
{
    fprintf(to, "afd " AFD_VERSION ": attention and FFN of a language model on separate ranks\n\n");
    for (int i = 0; i < COMMANDS; i++)
        if (commands[i].summary)
            fprintf(to, "  afd %-8s %-44s %s\n", commands[i].name, commands[i].arguments,
                    commands[i].summary);
    fprintf(
        to,
        "\nA cluster is found by --state, $AFD_STATE, or because it is the only one that runs (~/.afd).\n");
}

int cli_help(const struct cli_command *self, int argc, char **argv)
{
    char help[] = "--help", *ask[] = {argv[argc - 1], help, NULL};
    (void)self;
    if (argc < 2) {
        print_commands(stdout);
        return CLI_OK;
    }
    const struct cli_command *command = find(argv[1]);
    if (!command || command->run == cli_help)
        return cli_fail("help: no command \"%s\"; try: afd help", argv[1]);
    return command->run(command, 2, ask);
}

int main(int argc, char **argv)
{
    afd_log_init("afd", AFD_LOG_INFO);
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2) {
        print_commands(stderr);
        return CLI_USAGE;
    }
    const char *name = !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") ? "help" : argv[1];
    const struct cli_command *command = find(name);
    if (command) return command->run(command, argc - 1, argv + 1);
    if (!strcmp(name, "--version")) {
        puts("afd " AFD_VERSION);
        return CLI_OK;
    }
    cli_fail("no command \"%s\"; the commands are:", name);
    print_commands(stderr);
    return CLI_USAGE;
}
