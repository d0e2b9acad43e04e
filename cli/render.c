/* render: a topology as files for another launcher. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/cli.h"
#include "deploy/launcher.h"
#include "deploy/remote.h"
#include "deploy/render.h"
#include "deploy/state.h"

struct render {
    const struct afd_topology *topology;
    const char *out, *state, *bin;
    struct afd_kubernetes_options kubernetes;
};

static int close_file(FILE *f, const char *path)
{
    return fclose(f) ? cli_fail("%s: %s", path, strerror(errno)) : CLI_OK;
}

static int render_slurm(const struct render *r)
{
    char program[AFD_PATH_BYTES], dir[AFD_PATH_BYTES], path[AFD_PATH_BYTES + 160];
    struct afd_error error;
    if (afd_remote_program(r->topology, program, &error) ||
        afd_state_place(r->state, r->topology->cluster, dir, &error))
        return cli_fail("%s", error.text);
    snprintf(path, sizeof path, "%.500s/afd-%s.sbatch", r->out ? r->out : "", r->topology->cluster);
    FILE *f = r->out ? fopen(path, "we") : stdout;
    if (!f) return cli_fail("%s: %s", path, strerror(errno));
    afd_render_slurm(r->topology, program, r->topology->file, dir, f);
    return f == stdout ? CLI_OK : close_file(f, path);
}

/* A folder a host; without one everything goes to the terminal, each file behind its name. */
static int render_systemd(const struct render *r)
{
    char hosts[AFD_MAX_CLUSTER_HOSTS][AFD_NAME_BYTES], name[128], path[AFD_PATH_BYTES + 256];
    const struct afd_topology *t = r->topology;
    uint32_t count = afd_topology_hosts(t, hosts);
    for (uint32_t h = 0; h < count; h++) {
        snprintf(path, sizeof path, "%.500s/%.63s", r->out ? r->out : "", hosts[h]);
        if (r->out && mkdir(path, 0755) && errno != EEXIST) return cli_fail("%s: %s", path, strerror(errno));
        for (enum afd_systemd_unit unit = 0; unit < AFD_UNIT_COUNT; unit++) {
            if (unit == AFD_UNIT_SCHEDULER && strcmp(hosts[h], t->scheduler.host) != 0) continue;
            afd_render_systemd_name(t, unit, name);
            snprintf(path, sizeof path, "%.500s/%.63s/%s", r->out ? r->out : "", hosts[h], name);
            FILE *f = r->out ? fopen(path, "we") : stdout;
            if (!f) return cli_fail("%s: %s", path, strerror(errno));
            if (!r->out) printf("# %s\n", path + 1);
            afd_render_systemd(t, unit, hosts[h], r->bin, f);
            if (f != stdout && close_file(f, path)) return CLI_FAILED;
        }
    }
    return CLI_OK;
}

static int render_kubernetes(const struct render *r)
{
    char path[AFD_PATH_BYTES + 160];
    struct afd_error error;
    snprintf(path, sizeof path, "%.500s/afd-%s.yaml", r->out ? r->out : "", r->topology->cluster);
    FILE *f = r->out ? fopen(path, "we") : stdout;
    if (!f) return cli_fail("%s: %s", path, strerror(errno));
    enum afd_status status = afd_render_kubernetes(r->topology, &r->kubernetes, f, &error);
    int result = f == stdout ? CLI_OK : close_file(f, path);
    if (status && f != stdout) remove(path);
    return status ? cli_fail("%s", error.text) : result;
}

int cli_render(const struct cli_command *self, int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*render)(const struct render *r);
    } kinds[] = {{"slurm", render_slurm}, {"systemd", render_systemd}, {"kubernetes", render_kubernetes}};
    const char *words[2];
    struct afd_error error;
    struct afd_topology *topology = NULL;
    struct render r = {.bin = "/usr/local/bin",
                       .kubernetes = {.image = "afd:" AFD_VERSION, .gpu = "nvidia.com/gpu"}};
    int help;
    const struct cli_option options[] = {
        {"--out", 'o', CLI_TEXT, &r.out, "folder to write into (default: the terminal)"},
        {"--state", 0, CLI_TEXT, &r.state, "slurm: state directory, shared by the nodes"},
        {"--bin", 0, CLI_TEXT, &r.bin, "systemd: folder of the programs (default /usr/local/bin)"},
        {"--image", 0, CLI_TEXT, &r.kubernetes.image, "kubernetes: image of the containers"},
        {"--gpu", 0, CLI_TEXT, &r.kubernetes.gpu, "kubernetes: resource of a GPU (default nvidia.com/gpu)"},
        {"--rdma", 0, CLI_TEXT, &r.kubernetes.rdma,
         "kubernetes: resource of a network adapter, like rdma/hca"},
        {"--model-claim", 0, CLI_TEXT, &r.kubernetes.model_claim,
         "kubernetes: PersistentVolumeClaim with the model (default afd-CLUSTER-model)"},
        {0}};
    int count = cli_parse(self, argc, argv, options, words, 2, &help);
    if (count < 0) return cli_parse_exit(help);
    size_t kind = 0;
    while (count == 2 && kind < 3 && strcmp(words[0], kinds[kind].name) != 0) kind++;
    if (count < 2 || kind == 3) {
        cli_fail("render: expected slurm, systemd or kubernetes, and a topology: afd render %s",
                 self->arguments);
        return CLI_USAGE;
    }
    if (afd_topology_load(words[1], &topology, &error)) return cli_fail("%s", error.text);
    r.topology = topology;
    int result = r.out && mkdir(r.out, 0755) && errno != EEXIST ? cli_fail("%s: %s", r.out, strerror(errno))
                                                                : kinds[kind].render(&r);
    afd_topology_destroy(topology);
    return result;
}
