/* nccl.c: nccl.h over NCCL and the CUDA runtime. Communicators do not block: a call may only begin what it
 * asks for, and the communicator says when it is through (ncclCommGetAsyncError). An event is recorded behind
 * an operation once that has been put on the communicator's stream. */
#include <cuda_runtime_api.h>
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "transport/group.h"
#include "transport/nccl.h"

enum { MAX_BLOCKS = 16 }; /* of a collective: what it may take from the stages' */

struct comm {
    ncclComm_t comm;
    cudaStream_t stream;
    cudaEvent_t events[AFD_NCCL_SLOTS];
    int is_recorded[AFD_NCCL_SLOTS];
};

struct nccl {
    int device;
    uint32_t members, self;
    struct comm comms[AFD_NCCL_COMMS];
    char words[160];
};

static enum afd_status nccl_status(struct nccl *n, ncclResult_t result)
{
    if (result == ncclSuccess) return AFD_OK;
    if (result == ncclInProgress) return AFD_AGAIN;
    snprintf(n->words, sizeof n->words, "%s", ncclGetErrorString(result));
    return AFD_ERR_PEER;
}

static enum afd_status cuda_status(struct nccl *n, cudaError_t error)
{
    if (error == cudaSuccess) return AFD_OK;
    if (error == cudaErrorNotReady) return AFD_AGAIN;
    snprintf(n->words, sizeof n->words, "%s", cudaGetErrorString(error));
    return AFD_ERR_DEVICE;
}

static enum afd_status make_id(void *user, unsigned char id[AFD_NCCL_ID_BYTES])
{
    struct nccl *n = user;
    ncclUniqueId made;
    _Static_assert(sizeof made == AFD_NCCL_ID_BYTES, "what is told to the other members");
    enum afd_status status = nccl_status(n, ncclGetUniqueId(&made));
    if (!status) memcpy(id, &made, sizeof made);
    return status;
}

static enum afd_status join(void *user, uint32_t comm, uint32_t members, uint32_t self,
                            const unsigned char id[AFD_NCCL_ID_BYTES])
{
    struct nccl *n = user;
    struct comm *c = &n->comms[comm];
    ncclUniqueId told;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.maxCTAs = MAX_BLOCKS;
    memcpy(&told, id, sizeof told);
    n->members = members;
    n->self = self;
    enum afd_status status = cuda_status(n, cudaSetDevice(n->device));
    if (!status && !c->stream)
        status = cuda_status(n, cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking));
    for (uint32_t s = 0; s < AFD_NCCL_SLOTS && !status; s++)
        if (!c->events[s])
            status = cuda_status(n, cudaEventCreateWithFlags(&c->events[s], cudaEventDisableTiming));
    if (!status)
        status = nccl_status(n, ncclCommInitRankConfig(&c->comm, (int)members, told, (int)self, &config));
    return status == AFD_AGAIN ? AFD_OK : status;
}

static enum afd_status state(void *user, uint32_t comm)
{
    struct nccl *n = user;
    ncclResult_t result = ncclSuccess;
    enum afd_status status = nccl_status(n, ncclCommGetAsyncError(n->comms[comm].comm, &result));
    return status ? status : nccl_status(n, result);
}

/* NCCL's own collectives want as much from each member; with uneven rows a broadcast or a reduction for each
 * member, which NCCL joins into one launch. */
static int are_even(const struct nccl *n, const uint32_t *rows)
{
    for (uint32_t m = 1; m < n->members; m++)
        if (rows[m] != rows[0]) return 0;
    return 1;
}

static enum afd_status begun(struct nccl *n, struct comm *c, uint32_t slot, ncclResult_t result)
{
    c->is_recorded[slot] = 0;
    enum afd_status status = nccl_status(n, result);
    return status == AFD_AGAIN ? AFD_OK : status;
}

/* Several pieces go to their place in the result, by the copy engines; one is taken where it is. */
static enum afd_status own_rows(struct nccl *n, struct comm *c, const struct afd_group_piece *pieces,
                                uint32_t piece_count, char *to, const void **from_out)
{
    enum afd_status status = AFD_OK;
    *from_out = piece_count == 1 ? pieces->from : to;
    for (uint32_t i = 0; i < piece_count && piece_count > 1 && !status; to += pieces[i++].bytes)
        status = cuda_status(
            n, cudaMemcpyAsync(to, pieces[i].from, pieces[i].bytes, cudaMemcpyDefault, c->stream));
    return status;
}

static enum afd_status gather(void *user, uint32_t slot, const uint32_t *rows, uint32_t row_bytes,
                              const struct afd_group_piece *pieces, uint32_t piece_count, void *to)
{
    struct nccl *n = user;
    struct comm *c = &n->comms[AFD_NCCL_GATHER];
    const void *from;
    size_t before = 0;
    for (uint32_t m = 0; m < n->self; m++) before += rows[m];
    cudaSetDevice(n->device);
    enum afd_status status = own_rows(n, c, pieces, piece_count, (char *)to + before * row_bytes, &from);
    if (status) return status;
    if (are_even(n, rows))
        return begun(n, c, slot,
                     ncclAllGather(from, to, (size_t)rows[0] * row_bytes, ncclUint8, c->comm, c->stream));
    ncclResult_t result = ncclGroupStart(), end;
    char *at = to;
    for (uint32_t m = 0; m < n->members && result == ncclSuccess; m++) {
        size_t bytes = (size_t)rows[m] * row_bytes;
        if (bytes)
            result =
                ncclBroadcast(m == n->self ? from : at, at, bytes, ncclUint8, (int)m, c->comm, c->stream);
        at += bytes;
    }
    end = ncclGroupEnd();
    return begun(n, c, slot, result == ncclSuccess ? end : result);
}

static enum afd_status reduce(void *user, uint32_t slot, const uint32_t *rows, uint32_t columns,
                              const float *from, float *to)
{
    struct nccl *n = user;
    struct comm *c = &n->comms[AFD_NCCL_REDUCE];
    cudaSetDevice(n->device);
    if (are_even(n, rows))
        return begun(
            n, c, slot,
            ncclReduceScatter(from, to, (size_t)rows[0] * columns, ncclFloat, ncclSum, c->comm, c->stream));
    ncclResult_t result = ncclGroupStart(), end;
    for (uint32_t m = 0; m < n->members && result == ncclSuccess; m++) {
        size_t count = (size_t)rows[m] * columns;
        if (count) result = ncclReduce(from, to, count, ncclFloat, ncclSum, (int)m, c->comm, c->stream);
        from += count;
    }
    end = ncclGroupEnd();
    return begun(n, c, slot, result == ncclSuccess ? end : result);
}

static enum afd_status done(void *user, uint32_t comm, uint32_t slot)
{
    struct nccl *n = user;
    struct comm *c = &n->comms[comm];
    enum afd_status status = state(n, comm);
    if (status) return status;
    if (!c->is_recorded[slot]) {
        status = cuda_status(n, cudaEventRecord(c->events[slot], c->stream));
        if (status) return status;
        c->is_recorded[slot] = 1;
    }
    return cuda_status(n, cudaEventQuery(c->events[slot]));
}

static void abort_comms(void *user)
{
    struct nccl *n = user;
    cudaSetDevice(n->device);
    for (uint32_t i = 0; i < AFD_NCCL_COMMS; i++) {
        struct comm *c = &n->comms[i];
        if (c->comm) ncclCommAbort(c->comm);
        c->comm = NULL;
        if (c->stream) cudaStreamSynchronize(c->stream); /* its kernels were told to end */
    }
}

static const char *words(void *user)
{
    return ((struct nccl *)user)->words;
}

enum afd_status afd_nccl_open(uint32_t gpu, void **user_out, struct afd_error *error_out)
{
    int count = 0;
    *user_out = NULL;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error || !count) return afd_fail(error_out, AFD_ERR_DEVICE, "NCCL: this process sees no GPU");
    struct nccl *n = calloc(1, sizeof *n);
    if (!n) return afd_fail(error_out, AFD_ERR_MEMORY, "out of memory");
    n->device = (int)(gpu % (uint32_t)count);
    *user_out = n;
    return AFD_OK;
}

void afd_nccl_close(void *user)
{
    struct nccl *n = user;
    if (!n) return;
    abort_comms(n);
    for (uint32_t i = 0; i < AFD_NCCL_COMMS; i++) {
        for (uint32_t s = 0; s < AFD_NCCL_SLOTS; s++)
            if (n->comms[i].events[s]) cudaEventDestroy(n->comms[i].events[s]);
        if (n->comms[i].stream) cudaStreamDestroy(n->comms[i].stream);
    }
    free(n);
}

const struct afd_nccl_calls afd_nccl_calls = {.make_id = make_id,
                                              .join = join,
                                              .state = state,
                                              .gather = gather,
                                              .reduce = reduce,
                                              .done = done,
                                              .abort = abort_comms,
                                              .words = words};
