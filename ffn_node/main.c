/* main.c: afd-ffn-node: one FFN rank of a cluster. */
#include <signal.h>
#include <stdio.h>

#include "base/descriptors.h"
#include "base/log.h"
#include "base/signals.h"
#include "deploy/agreement.h"
#include "ffn_node/node.h"
#include "ffn_node/options.h"

int main(int argc, char **argv)
{
    struct ffn_options options;
    struct afd_topology *topology = NULL;
    struct afd_model *model = NULL;
    struct afd_checkpoint *checkpoint = NULL;
    struct afd_ffn_node *node = NULL;
    struct afd_ffn_node_config config = {.take_signals = 1};
    struct afd_error error = {0};
    char name[32];
    enum afd_status status;
    int exit_status;

    /* options */
    ffn_options_parse(argc, argv, &options);
    snprintf(name, sizeof name, "ffn/%u", options.rank);
    afd_log_init(name, options.level);
    afd_descriptors_raise();

    /* load and check the configuration */
    if ((status = afd_topology_load(options.topology, &topology, &error)) ||
        (status = afd_secret_read(options.secret_file, config.secret, &error)) ||
        (status = afd_agreement_model(topology, &model, config.model_hash, &error)) ||
        (status = afd_checkpoint_open(topology->model_dir, &checkpoint, &error)))
        goto out;
    afd_log_info("cluster %s, model %s: %u shards, %u ranks an instance", topology->cluster, model->name,
                 topology->ffn.ep, topology->ffn.tp);

    /* signals: those that end the process are the node's */
    signal(SIGPIPE, SIG_IGN);
    afd_signals_hold(SIGTERM); /* what comes again once it leaves is dropped */

    /* transport and join; run: device, weights, READY, loop, drain */
    config.topology = topology;
    config.model = model;
    config.checkpoint = checkpoint;
    config.rank = options.rank;
    config.scheduler = options.scheduler;
    config.health = options.health;
    status = afd_ffn_node_open(&config, &node, &error);
    afd_signals_release(SIGTERM);
out:
    if (status) afd_log_error("%s", error.text);
    exit_status = status ? afd_exit_status(status) : afd_ffn_node_run(node);
    afd_ffn_node_close(node);
    afd_checkpoint_close(checkpoint);
    afd_model_destroy(model);
    afd_topology_destroy(topology);
    return exit_status;
}
