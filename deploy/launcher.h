/* launcher.h: the shell around the supervisor core: starts and keeps the processes of one cluster on this
 * host.
 *
 * `afd up` calls afd_launcher_start, which leaves one daemon that runs afd_launcher_run: it starts
 * afd-scheduler, waits until that has written DIR/scheduler.json, then starts every rank, restarts what
 * fails, answers on DIR/supervisor.sock and takes everything down on SIGTERM, SIGINT or {"op": "down"}.
 * Children die with it (the kernel sends them SIGKILL), each is the leader of its own process group, and
 * their output goes to DIR/logs. */
#ifndef AFD_DEPLOY_LAUNCHER_H
#define AFD_DEPLOY_LAUNCHER_H

#include "deploy/state.h"

struct afd_launch {
    const struct afd_topology *topology;
    const char *state_dir;
    const char *bin_dir; /* holds afd-scheduler, afd-attn-node and afd-ffn-node */
    int ready_fd;        /* one byte is written when the socket listens; then closed. -1: none */
};

/* What this build cannot start, in words: CUDA devices, ranks on other hosts. */
enum afd_status afd_launcher_check(const struct afd_topology *topology, struct afd_error *error_out);

/* $AFD_BIN, or the folder of this program. */
enum afd_status afd_launcher_bin(char out[AFD_PATH_BYTES], struct afd_error *error_out);

/* Forks a daemon that executes `afd supervise`, hands it the lock, and returns when it listens. Words
 * otherwise. */
enum afd_status afd_launcher_start(const struct afd_topology *topology, const char *state_dir, int lock_fd,
                                   struct afd_error *error_out);

/* The daemon's life; returns when nothing runs any more. Single-threaded: a child's parent is this thread. */
enum afd_status afd_launcher_run(const struct afd_launch *launch, struct afd_error *error_out);

#endif
