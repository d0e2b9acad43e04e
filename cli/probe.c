/* probe: does a rank live, and does it serve? For the probes of a container. */
#include "cli/cli.h"
#include "deploy/health.h"

int cli_probe(const struct cli_command *self, int argc, char **argv)
{
    const char *file;
    uint64_t age_s = 15;
    int ready = 0, help;
    const struct cli_option options[] = {
        {"--ready", 0, CLI_FLAG, &ready, "succeed only once the rank serves"},
        {"--max-age", 0, CLI_COUNT, &age_s, "seconds since the last sign of life (default 15)"},
        {0}};
    int count = cli_parse(self, argc, argv, options, &file, 1, &help);
    if (count < 0) return cli_parse_exit(help);
    if (!count) {
        cli_fail("probe: expected the file of a rank's --health");
        return CLI_USAGE;
    }
    struct afd_error error;
    if (age_s > 86400) age_s = 86400;
    return afd_health_check(file, (uint32_t)age_s, ready, &error) ? cli_fail("%s", error.text) : CLI_OK;
}
