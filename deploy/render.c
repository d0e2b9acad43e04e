#include "deploy/render.h"

#include <string.h>

/* ---- slurm */

/* 'a path', for a shell. */
static void print_quoted(const char *text, FILE *to)
{
    fputc('\'', to);
    for (; *text; text++)
        if (*text == '\'')
            fputs("'\\''", to);
        else
            fputc(*text, to);
    fputc('\'', to);
}

/* How many nodes: one for each instance, where the file does not say. */
static uint32_t print_nodes(const struct afd_topology *t, FILE *to)
{
    char hosts[AFD_MAX_CLUSTER_HOSTS][AFD_NAME_BYTES];
    uint32_t count = t->attn.instances + t->ffn.instances;
    if (t->launch.names_hosts) count = afd_topology_hosts(t, hosts);
    fprintf(to, "#SBATCH --nodes=%u\n", count);
    if (!t->launch.names_hosts) return count;
    fprintf(to, "#SBATCH --nodelist=");
    for (uint32_t i = 0; i < count; i++) fprintf(to, "%s%s", i ? "," : "", hosts[i]);
    fputc('\n', to);
    return count;
}

void afd_render_slurm(const struct afd_topology *t, const char *program, const char *file, const char *dir,
                      FILE *to)
{
    uint32_t gpus = t->attn.device == AFD_DEVICE_CUDA ? t->attn.ranks_per_instance : 0;
    if (t->ffn.device == AFD_DEVICE_CUDA && t->ffn.ranks_per_instance > gpus)
        gpus = t->ffn.ranks_per_instance;
    fprintf(to,
            "#!/bin/sh\n"
            "# The cluster %s: a supervisor on each node, which starts the node's ranks and starts again "
            "what dies.\n"
            "# The job outlives a node (--no-kill), and its step a task.\n"
            "#SBATCH --job-name=afd-%s\n",
            t->cluster, t->cluster);
    print_nodes(t, to);
    fprintf(to,
            "#SBATCH --ntasks-per-node=1\n"
            "#SBATCH --exclusive\n"
            "#SBATCH --no-kill\n"
            "#SBATCH --no-requeue\n"
            "#SBATCH --output=%s/logs/job.log\n",
            dir);
    if (gpus) fprintf(to, "#SBATCH --gpus-per-node=%u\n", gpus);
    for (uint32_t i = 0; i < t->launch.slurm_count; i++) fprintf(to, "#SBATCH %s\n", t->launch.slurm[i]);
    fprintf(to, "exec ");
    print_quoted(program, to);
    fprintf(to, " supervise --allocation --topology ");
    print_quoted(file, to);
    fprintf(to, " --state ");
    print_quoted(dir, to);
    fputc('\n', to);
}

/* ---- systemd */

void afd_render_systemd_name(const struct afd_topology *t, enum afd_systemd_unit unit, char out[128])
{
    static const char *const ends[] = {".target", "-scheduler.service", "-attn@.service", "-ffn@.service"};
    snprintf(out, 128, "afd-%s%s", t->cluster, ends[unit]);
}

/* The host's ranks of the topology; those that a scale adds are enabled by hand, or by configuration
 * management. */
static void print_target(const struct afd_topology *t, const char *host, FILE *to)
{
    const struct afd_pool *pools[AFD_ROLE_COUNT] = {&t->attn, &t->ffn};
    fprintf(to,
            "[Unit]\nDescription=afd cluster %s on "
            "%s\nAfter=network-online.target\nWants=network-online.target\n",
            t->cluster, host);
    if (!strcmp(host, t->scheduler.host)) fprintf(to, "Wants=afd-%s-scheduler.service\n", t->cluster);
    for (int role = 0; role < AFD_ROLE_COUNT; role++)
        for (uint32_t rank = 0; rank < afd_pool_ranks(pools[role]); rank++)
            if (!strcmp(afd_rank_host(t, role, rank), host))
                fprintf(to, "Wants=afd-%s-%s@%u.service\n", t->cluster, afd_role_name(role), rank);
    fprintf(to, "\n[Install]\nWantedBy=multi-user.target\n");
}

/* What a daemon may do: read its model, use devices and the network. Devices stay visible (GPU, RDMA), and
 * memory can be pinned. */
static void print_hardening(FILE *to)
{
    fprintf(to, "LimitMEMLOCK=infinity\n"
                "LimitNOFILE=1048576\n"
                "DynamicUser=yes\n"
                "NoNewPrivileges=yes\n"
                "CapabilityBoundingSet=\n"
                "ProtectSystem=strict\n"
                "ProtectHome=read-only\n"
                "PrivateTmp=yes\n"
                "ProtectKernelTunables=yes\n"
                "ProtectKernelModules=yes\n"
                "ProtectKernelLogs=yes\n"
                "ProtectControlGroups=yes\n"
                "ProtectClock=yes\n"
                "ProtectHostname=yes\n"
                "RestrictNamespaces=yes\n"
                "RestrictSUIDSGID=yes\n"
                "RestrictRealtime=yes\n"
                "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK\n"
                "LockPersonality=yes\n"
                "SystemCallArchitectures=native\n"
                "UMask=0077\n");
}

static void print_service(const struct afd_topology *t, enum afd_systemd_unit unit, const char *bin_dir,
                          FILE *to)
{
    enum { MARGIN_S = 10 };
    char control[2 * AFD_ADDRESS_BYTES];
    int is_scheduler = unit == AFD_UNIT_SCHEDULER;
    const char *role = unit == AFD_UNIT_ATTN ? "attn" : "ffn";
    afd_topology_reach(t, t->scheduler.control, control);
    fprintf(to,
            "[Unit]\nDescription=afd %s%s of %s\nPartOf=afd-%s.target\nAfter=network-online.target\n"
            "StartLimitIntervalSec=60\nStartLimitBurst=6\n\n[Service]\nType=exec\n",
            is_scheduler ? "scheduler" : role, is_scheduler ? "" : " rank %i", t->cluster, t->cluster);
    fprintf(to, "LoadCredential=secret:/etc/afd/%s/secret\n", t->cluster);
    if (is_scheduler)
        fprintf(to,
                "StateDirectory=afd/%s\nStateDirectoryMode=0700\n"
                "ExecStart=%s/afd-scheduler --topology /etc/afd/%s/topology.yaml --secret-file %%d/secret "
                "--state %%S/afd/%s\n",
                t->cluster, bin_dir, t->cluster, t->cluster);
    else
        fprintf(to,
                "ExecStart=%s/afd-%s-node --topology /etc/afd/%s/topology.yaml --secret-file %%d/secret "
                "--rank %%i --scheduler %s\n",
                bin_dir, role, t->cluster, control);
    /* a rank that ends well was told to leave; 2 is AFD_EXIT_UNUSABLE: it would end the same way again */
    fprintf(to,
            "Restart=%s\nRestartPreventExitStatus=2\nRestartSec=200ms\nTimeoutStopSec=%u\nKillMode=mixed\n",
            t->launch.never_restart ? "no"
            : is_scheduler          ? "always"
                                    : "on-failure",
            t->scheduler.drain_s + MARGIN_S);
    print_hardening(to);
    fprintf(to, "\n[Install]\nWantedBy=afd-%s.target\n", t->cluster);
}

void afd_render_systemd(const struct afd_topology *t, enum afd_systemd_unit unit, const char *host,
                        const char *bin_dir, FILE *to)
{
    if (unit == AFD_UNIT_TARGET)
        print_target(t, host, to);
    else
        print_service(t, unit, bin_dir, to);
}
