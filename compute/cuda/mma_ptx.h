/* mma_ptx.h: mma.h on a GPU. Included by it alone; contracts there. */
#ifndef AFD_COMPUTE_CUDA_MMA_PTX_H
#define AFD_COMPUTE_CUDA_MMA_PTX_H

struct afd_async {
    int nothing;
};

#define AFD_PTX_MMA(shape, type)                                                                             \
    asm("mma.sync.aligned." shape ".row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "  \
        "{%8, %9}, {%0, %1, %2, %3};"                                                                        \
        : "+f"(c->r[0][0]), "+f"(c->r[0][1]), "+f"(c->r[0][2]), "+f"(c->r[0][3])                             \
        : "r"(a->r[0][0]), "r"(a->r[0][1]), "r"(a->r[0][2]), "r"(a->r[0][3]), "r"(b->r[0][0]),               \
          "r"(b->r[0][1]))

AFD_DEVICE void afd_mma_bf16(struct afd_mma_c *c, const struct afd_mma_a *a, const struct afd_mma_b *b)
{
    AFD_PTX_MMA("m16n8k16", "bf16");
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
AFD_DEVICE void afd_mma_e4m3(struct afd_mma_c *c, const struct afd_mma_a *a, const struct afd_mma_b *b)
{
    AFD_PTX_MMA("m16n8k32", "e4m3");
}
#endif

#define AFD_PTX_LDMATRIX(trans)                                                                              \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 {%0, %1, %2, %3}, [%4];"                 \
                 : "=r"(r[0][0]), "=r"(r[0][1]), "=r"(r[0][2]), "=r"(r[0][3])                                \
                 : "r"((uint32_t)__cvta_generic_to_shared(address[0]))                                       \
                 : "memory")

AFD_DEVICE void afd_load_matrices(uint32_t (*r)[4], const void *const *address)
{
    AFD_PTX_LDMATRIX("");
}

AFD_DEVICE void afd_load_transposed(uint32_t (*r)[4], const void *const *address)
{
    AFD_PTX_LDMATRIX(".trans");
}

AFD_DEVICE void afd_tile_publish(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
/* Start address in units of 16 bytes (bits 0 to 13); leading offset (16 to 29); from 8 rows to the next 8,
 * with columns side by side from 8 of K to the next 8: 1024 bytes (32 to 45); 128-byte swizzle (62 to 63).
 * Leading: with columns side by side, from 64 columns to the next 64; it means nothing to a swizzled K-major
 * tile. */
AFD_DEVICE uint64_t afd_ptx_descriptor(const void *tile, uint32_t k, uint32_t leading)
{
    uint32_t address = (uint32_t)__cvta_generic_to_shared(tile) + k;
    return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(leading >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 |
           (uint64_t)1 << 62;
}

AFD_DEVICE uint64_t afd_ptx_tile(const void *tile, uint32_t k)
{
    return afd_ptx_descriptor(tile, k, 16);
}

#define AFD_PTX_4(c, i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define AFD_PTX_16(c, i) AFD_PTX_4(c, i), AFD_PTX_4(c, i + 4), AFD_PTX_4(c, i + 8), AFD_PTX_4(c, i + 12)
#define AFD_PTX_64(c) AFD_PTX_16(c, 0), AFD_PTX_16(c, 16), AFD_PTX_16(c, 32), AFD_PTX_16(c, 48)
#define AFD_PTX_NAMES_32                                                                                     \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "   \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define AFD_PTX_NAMES_64                                                                                     \
    AFD_PTX_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "    \
                     "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define AFD_PTX_GROUP_MMA(shape, type, last)                                                                 \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                                \
                 "wgmma.mma_async.sync.aligned." shape ".f32." type "." type " {" AFD_PTX_NAMES_64           \
                 "}, %64, %65, p, 1, 1" last ";\n}"                                                          \
                 : AFD_PTX_64(c->r[0])                                                                       \
                 : "l"(afd_ptx_tile(a, k)), "l"(afd_ptx_tile(b, k)), "r"(begin ? 0 : 1)                      \
                 : "memory")

AFD_DEVICE void afd_group_mma_e4m3(struct afd_group_c *c, const void *a, const void *b, uint32_t k, int begin,
                                   uint32_t warp)
{
    (void)warp;
    AFD_PTX_GROUP_MMA("m64n128k32", "e4m3", "");
}

AFD_DEVICE void afd_group_mma_bf16(struct afd_group_c *c, const void *a, const void *b, uint32_t k, int begin,
                                   uint32_t warp)
{
    (void)warp;
    AFD_PTX_GROUP_MMA("m64n128k16", "bf16", ", 0, 0");
}

/* The compiler must not move what it does with c over these. */
AFD_DEVICE void afd_group_fence(struct afd_group_c *c)
{
    asm volatile("wgmma.fence.sync.aligned;" : AFD_PTX_64(c->r[0]) : : "memory");
}

AFD_DEVICE void afd_group_done(struct afd_group_c *c)
{
    asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;"
                 : AFD_PTX_64(c->r[0])
                 :
                 : "memory");
}

/* c [8], c [16] of 16 rows and 8 columns. */
#define AFD_PTX_C(c, i) "+f"(c[i].r[0][0]), "+f"(c[i].r[0][1]), "+f"(c[i].r[0][2]), "+f"(c[i].r[0][3])
#define AFD_PTX_C4(c, i) AFD_PTX_C(c, i), AFD_PTX_C(c, i + 1), AFD_PTX_C(c, i + 2), AFD_PTX_C(c, i + 3)
#define AFD_PTX_C8(c) AFD_PTX_C4(c, 0), AFD_PTX_C4(c, 4)
#define AFD_PTX_C16(c) AFD_PTX_C8(c), AFD_PTX_C4(c, 8), AFD_PTX_C4(c, 12)

#define AFD_PTX_ATTENTION(type)                                                                              \
    AFD_DEVICE void afd_group_scores_##type(struct afd_mma_c *c, const void *a, const void *b, uint32_t k,   \
                                            int begin, uint32_t warp)                                        \
    {                                                                                                        \
        (void)warp;                                                                                          \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                                            \
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32." #type "." #type " {" AFD_PTX_NAMES_32     \
                     "}, %32, %33, p, 1, 1, 0, 0;\n}"                                                        \
                     : AFD_PTX_C8(c)                                                                         \
                     : "l"(afd_ptx_tile(a, k)), "l"(afd_ptx_tile(b, k)), "r"(begin ? 0 : 1)                  \
                     : "memory");                                                                            \
    }                                                                                                        \
    AFD_DEVICE void afd_group_values_##type(struct afd_mma_c *c, const struct afd_mma_a *a, const void *b,   \
                                            uint32_t next)                                                   \
    {                                                                                                        \
        asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"                                              \
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32." #type "." #type " {" AFD_PTX_NAMES_64    \
                     "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"                                          \
                     : AFD_PTX_C16(c)                                                                        \
                     : "r"(a->r[0][0]), "r"(a->r[0][1]), "r"(a->r[0][2]), "r"(a->r[0][3]),                   \
                       "l"(afd_ptx_descriptor(b, 0, next))                                                   \
                     : "memory");                                                                            \
    }
AFD_PTX_ATTENTION(bf16)
AFD_PTX_ATTENTION(f16)

/* The compiler must not move what it does with these over here. */
AFD_DEVICE void afd_group_settle_8(struct afd_mma_c *c)
{
    asm volatile("" : AFD_PTX_C8(c) : : "memory");
}

AFD_DEVICE void afd_group_settle_16(struct afd_mma_c *c)
{
    asm volatile("" : AFD_PTX_C16(c) : : "memory");
}

AFD_DEVICE void afd_group_settle_a(struct afd_mma_a *a)
{
    asm volatile("" : "+r"(a->r[0][0]), "+r"(a->r[0][1]), "+r"(a->r[0][2]), "+r"(a->r[0][3]) : : "memory");
}

AFD_DEVICE void afd_group_begin(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

AFD_DEVICE void afd_group_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

AFD_DEVICE void afd_group_wait_8(struct afd_mma_c *c)
{
    asm volatile("wgmma.wait_group.sync.aligned 0;" : AFD_PTX_C8(c) : : "memory");
}

AFD_DEVICE void afd_group_wait_16(struct afd_mma_c *c)
{
    asm volatile("wgmma.wait_group.sync.aligned 0;" : AFD_PTX_C16(c) : : "memory");
}
#endif

AFD_DEVICE uint32_t afd_add_pairs(uint32_t a, uint32_t b)
{
    uint32_t sum; /* a * 1 + b: sm_80 has no other */
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(0x3f803f80u), "r"(b));
    return sum;
}

AFD_DEVICE void afd_lane_xor(const float *x, uint32_t mask, float *out)
{
    out[0] = __shfl_xor_sync(0xffffffffu, x[0], (int)mask);
}

AFD_DEVICE void afd_async_copy(struct afd_async *async, void *to, const void *from, uint32_t bytes)
{
    (void)async;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from), "r"(bytes)
                 : "memory");
}

AFD_DEVICE void afd_async_commit(struct afd_async *async)
{
    (void)async;
    asm volatile("cp.async.commit_group;" ::: "memory");
}

#define AFD_ASYNC_WAIT(async, pending)                                                                       \
    ((void)(async), ({ asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory"); }))

#endif
