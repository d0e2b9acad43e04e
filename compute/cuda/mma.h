/* mma.h: what a warp of a GPU has beside plain C: the tensor cores' products, matrices read from shared
 * memory into registers, copies that run beside the arithmetic, values of other lanes.
 *
 * A body that uses them is a function of (block, warp, phase), and its 32 lanes go in step. What a lane has
 * in registers stands in an array by AFD_WARP_SLOTS: on a GPU that is 1, each lane runs the body on its own;
 * on the CPU it is 32, one call runs all lanes, and tests/compute/emulated_mma.c does what the instructions
 * do, by the tables of the PTX manual (9.7.14.5: fragments; 9.7.15.5: shared memory of warpgroups). Lane by
 * lane:
 *
 *     AFD_EACH_LANE(lane, s) x.r[s][0] = ...;      lane 0 .. 31; s the slot its registers are in
 *
 * The arrays of a GPU stay in registers only where their indices are constants after unrolling. Sums are
 * float32; the hardware adds the products of one instruction in an order and with a width of its own, so
 * results are compared with a tolerance. Nothing here blocks but the waits that say so; shared memory is the
 * block's. */
#ifndef AFD_COMPUTE_CUDA_MMA_H
#define AFD_COMPUTE_CUDA_MMA_H

#include <stdint.h>
#include <string.h>

#include "base/inline.h"

#ifdef __CUDACC__
#define AFD_DEVICE static __device__ __forceinline__
#define AFD_UNROLL _Pragma("unroll")
#define AFD_ONE_BY_ONE _Pragma("unroll 1")
#define AFD_EACH_LANE(lane, s) for (uint32_t lane = threadIdx.x % 32, s = 0; s < 1; s++)
enum { AFD_WARP_SLOTS = 1 };
#else
#define AFD_DEVICE static inline
#define AFD_UNROLL
#define AFD_ONE_BY_ONE
#define AFD_EACH_LANE(lane, s) for (uint32_t lane = 0, s = 0; s < AFD_WARP_SLOTS; lane = ++s)
enum { AFD_WARP_SLOTS = 32 };
#endif
/* Where the lane's number does not matter. */
#define AFD_EACH_SLOT(s) for (uint32_t s = 0; s < AFD_WARP_SLOTS; s++)

/* One warp's product of 16 rows and 8 columns: c += a b. In each 32-bit register the lower element is the one
 * with the lower k. With g = lane / 4, t = lane % 4 and 4 bytes of K (2 bf16, 4 e4m3) called a word:
 *
 *   a  16 rows of 8 words   r[0]: row g, word t   r[1]: row g + 8, word t   r[2], r[3]: the same, word t + 4
 *   b  8 columns of 8 words r[0]: column g, word t                          r[1]: the same, word t + 4
 *   c  16 x 8 float32       r[0], r[1]: row g, columns 2t, 2t + 1           r[2], r[3]: row g + 8 */
struct afd_mma_a {
    uint32_t r[AFD_WARP_SLOTS][4];
};
struct afd_mma_b {
    uint32_t r[AFD_WARP_SLOTS][2];
};
struct afd_mma_c {
    float r[AFD_WARP_SLOTS][4];
};

/* One warpgroup's product of 64 rows and 128 columns. Warp w of the group's four has rows 16 w .. 16 w + 15;
 * its r[4 j + i] is r[i] of the product of 16 rows and columns 8 j .. 8 j + 7 above. */
enum { AFD_GROUP_ROWS = 64, AFD_GROUP_COLUMNS = 128, AFD_GROUP_SUMS = 64 };
struct afd_group_c {
    float r[AFD_WARP_SLOTS][AFD_GROUP_SUMS];
};

/* A tile of rows with 128 bytes of K each in shared memory, from 1024 bytes on: the 16 bytes at `chunk` of a
 * row are at this offset, so that neither a row nor a column of chunks falls into the same banks. It is the
 * hardware's "128-byte swizzle" of K-major operands: address bits 4 to 6 are xored with bits 7 to 9. */
enum { AFD_TILE_ROW_BYTES = 128, AFD_TILE_CHUNKS = 8, AFD_TILE_ALIGN = 1024 };
AFD_INLINE uint32_t afd_tile_offset(uint32_t row, uint32_t chunk)
{
    return row * AFD_TILE_ROW_BYTES + ((chunk ^ (row & 7)) << 4);
}

/* 16 bytes, on 16 bytes. */
AFD_DEVICE void afd_copy16(void *to, const void *from)
{
#ifdef __CUDACC__
    *(uint4 *)to = *(const uint4 *)from;
#else
    memcpy(to, from, 16);
#endif
}

/* 8 bytes, on 8 bytes. */
AFD_DEVICE void afd_copy8(void *to, const void *from)
{
#ifdef __CUDACC__
    *(uint2 *)to = *(const uint2 *)from;
#else
    memcpy(to, from, 8);
#endif
}

/* The lowest set bit's number; there is one. */
AFD_DEVICE uint32_t afd_lowest_bit(uint64_t set)
{
#ifdef __CUDACC__
    return (uint32_t)__ffsll((long long)set) - 1;
#else
    return (uint32_t)__builtin_ctzll(set);
#endif
}

#ifndef __CUDACC__
/* Copies that have begun and not arrived; the emulation poisons their targets until they are waited for. */
struct afd_async {
    struct afd_async_copy {
        unsigned char *to;
        const unsigned char *from;
        uint32_t bytes, group;
    } * copies; /* [capacity], the emulation's */
    uint32_t count, capacity, group;
};

/* 16 x 8 x 16 of bf16; 16 x 8 x 32 of e4m3 (native on sm_89 and from sm_100 on; on Hopper the assembler makes
 * f16 products of it). */
void afd_mma_bf16(struct afd_mma_c *c, const struct afd_mma_a *a, const struct afd_mma_b *b);
void afd_mma_e4m3(struct afd_mma_c *c, const struct afd_mma_a *a, const struct afd_mma_b *b);

/* ldmatrix: four matrices of 8 rows of 16 bytes, row i of matrix j at address[lane 8 j + i], each on 16
 * bytes. r[j] of a lane: word t of row g of matrix j. Transposed, for 16-bit elements: elements 2t and 2t + 1
 * of column g. */
void afd_load_matrices(uint32_t r[AFD_WARP_SLOTS][4], const void *const address[AFD_WARP_SLOTS]);
void afd_load_transposed(uint32_t r[AFD_WARP_SLOTS][4], const void *const address[AFD_WARP_SLOTS]);

/* c = a b over 32 bytes of K from byte `k` on (32, 16 elements), a of 64 rows and b of 128, tiles as above;
 * `warp`: of the group. begin: c starts from zero, else it is added to. Warpgroups of sm_90a; all four warps.
 */
void afd_group_mma_e4m3(struct afd_group_c *c, const void *a, const void *b, uint32_t k, int begin,
                        uint32_t warp);
void afd_group_mma_bf16(struct afd_group_c *c, const void *a, const void *b, uint32_t k, int begin,
                        uint32_t warp);
/* These read shared memory by another way than stores and cp.async take: between this lane's writes to a tile
 * (arrived) and the barrier after which the group reads it. */
AFD_DEVICE void afd_tile_publish(void) {}
/* Products of attention, of bf16 or of f16. Their sums are those of 16 rows and 8 columns above, side by
 * side.
 *
 * scores: c [8] = a b, as afd_group_mma_bf16, but of 64 columns.
 * values: c [16] += a b over 16 of K by 128 columns. `a`: the warp's 16 rows, in registers. b: a row of K is
 * 128 bytes of a tile, 64 columns; the next 64 columns are a tile that begins `next` bytes behind. */
void afd_group_scores_bf16(struct afd_mma_c *c, const void *a, const void *b, uint32_t k, int begin,
                           uint32_t warp);
void afd_group_values_bf16(struct afd_mma_c *c, const struct afd_mma_a *a, const void *b, uint32_t next);
void afd_group_scores_f16(struct afd_mma_c *c, const void *a, const void *b, uint32_t k, int begin,
                          uint32_t warp);
void afd_group_values_f16(struct afd_mma_c *c, const struct afd_mma_a *a, const void *b, uint32_t next);
/* Around them: what they take in registers is settled (c [8], c [16], a), then begin, products, commit, and
 * wait for each c. Between commit and wait something else may be done, but to c, a and b. */
AFD_DEVICE void afd_group_settle_8(struct afd_mma_c *c)
{
    (void)c;
}
AFD_DEVICE void afd_group_settle_16(struct afd_mma_c *c)
{
    (void)c;
}
AFD_DEVICE void afd_group_settle_a(struct afd_mma_a *a)
{
    (void)a;
}
AFD_DEVICE void afd_group_begin(void) {}
AFD_DEVICE void afd_group_commit(void) {}
AFD_DEVICE void afd_group_wait_8(struct afd_mma_c *c)
{
    (void)c;
}
AFD_DEVICE void afd_group_wait_16(struct afd_mma_c *c)
{
    (void)c;
}
/* Around a sequence of group products: fence before the first; done waits for all of them. */
AFD_DEVICE void afd_group_fence(struct afd_group_c *c)
{
    (void)c;
}
AFD_DEVICE void afd_group_done(struct afd_group_c *c)
{
    (void)c;
}

/* Two bf16 in a word plus two others, rounded to nearest. */
uint32_t afd_add_pairs(uint32_t a, uint32_t b);

/* The value of the lane whose number differs by `mask`. */
void afd_lane_xor(const float x[AFD_WARP_SLOTS], uint32_t mask, float out[AFD_WARP_SLOTS]);

/* cp.async: 16 bytes into shared memory, of which the first `bytes` (16 or fewer) come from `from` and the
 * rest is zero. commit closes a group of this lane's copies; wait: until at most `pending` groups, a
 * constant, are under way. Other lanes' copies are seen after the barrier behind the wait. */
void afd_async_copy(struct afd_async *async, void *to, const void *from, uint32_t bytes);
void afd_async_commit(struct afd_async *async);
void afd_async_wait_for(struct afd_async *async, uint32_t pending);
#define AFD_ASYNC_WAIT(async, pending) afd_async_wait_for(async, pending)
#else
#include "compute/cuda/mma_ptx.h"
#endif

#endif
