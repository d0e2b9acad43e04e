/* afd-attn-node: one attention rank. */
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "attn_node/node.h"
#include "attn_node/options.h"
#include "base/descriptors.h"
#include "base/log.h"
#include "base/signals.h"
#include "deploy/agreement.h"

static void on_signal(evutil_socket_t fd, short what, void *user)
{
    static int seen;
    (void)fd, (void)what;
    struct afd_attn_node *node = *(struct afd_attn_node **)user;
    if (seen++) _exit(1); /* the second one: whoever sends it does not want to wait */
    if (!node) _exit(0);  /* it loads: nobody relies on this rank yet */
    afd_attn_node_drain(node);
}

int main(int argc, char **argv)
{
    struct afd_error error = {{0}};
    struct afd_topology *topology = NULL;
    struct afd_model *model = NULL;
    struct afd_checkpoint *checkpoint = NULL;
    struct afd_attn_node *node = NULL;
    struct event *terminate = NULL, *interrupt = NULL;
    enum afd_status status;
    int exit_status = AFD_EXIT_FAILED;

    struct afd_attn_options options = afd_attn_options_parse(argc, argv);
    char name[32];
    snprintf(name, sizeof name, "attn/%u", options.rank);
    afd_log_init(name, options.log_level);
    afd_descriptors_raise();

    struct afd_attn_node_config config = {.rank = options.rank, .scheduler = options.scheduler};
    if ((status = afd_topology_load(options.topology, &topology, &error)) ||
        (status = afd_secret_read(options.secret_file, config.secret, &error)) ||
        (status = afd_agreement_model(topology, &model, config.model_hash, &error)) ||
        (status = afd_checkpoint_open(topology->model_dir, &checkpoint, &error)))
        goto out;
    afd_log_info("cluster %s, model %s, %u layers, scheduler %s", topology->cluster, model->name,
                 model->layer_count, options.scheduler);

    signal(SIGPIPE, SIG_IGN);
    afd_signals_hold(SIGTERM); /* what comes again once it leaves is dropped */
    config.base = event_base_new();
    config.topology = topology;
    config.model = model;
    config.checkpoint = checkpoint;
    terminate = config.base ? evsignal_new(config.base, SIGTERM, on_signal, &node) : NULL;
    interrupt = config.base ? evsignal_new(config.base, SIGINT, on_signal, &node) : NULL;
    if (!terminate || !interrupt || evsignal_add(terminate, NULL) || evsignal_add(interrupt, NULL)) {
        status = afd_fail(&error, AFD_ERR_MEMORY, "no event base");
        goto out;
    }
    afd_signals_release(SIGTERM);
    if ((status = afd_health_open(config.base, options.health, &config.health, &error)) ||
        (status = afd_attn_node_create(&config, &node, &error)))
        goto out;
    exit_status = afd_attn_node_run(node);
out:
    if (!node) {
        afd_log_error("%s", error.text);
        exit_status = afd_exit_status(status);
    }
    if (terminate) event_free(terminate);
    if (interrupt) event_free(interrupt);
    afd_attn_node_destroy(node);
    afd_health_close(config.health);
    if (config.base) {
        event_base_dispatch(config.base); /* what closed connections still write: a second at most */
        event_base_free(config.base);
    }
    afd_checkpoint_close(checkpoint);
    afd_model_destroy(model);
    afd_topology_destroy(topology);
    return exit_status;
}
