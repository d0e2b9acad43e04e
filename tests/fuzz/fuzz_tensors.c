/* Guards: a safetensors file that crashes the reader, or a tensor that lies outside its file. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/tensors.h"
#include "tests/fuzz/fuzz.h"

static int was_taken;

/* Touches every byte of what was accepted. */
static void use(const struct afd_checkpoint *c)
{
    volatile unsigned sum = 0;
    for (uint32_t t = 0; t < afd_checkpoint_count(c); t++) {
        const struct afd_tensor *tensor = afd_checkpoint_at(c, t);
        assert(afd_checkpoint_find(c, tensor->name) == tensor);
        for (uint64_t i = 0; i < tensor->bytes; i++) sum += ((const unsigned char *)tensor->data)[i];
        if (tensor->scale && tensor->bytes)
            sum += tensor->scale[tensor->scale_rows * tensor->scale_columns - 1] > 0;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct afd_checkpoint *c;
    struct afd_error error;
    char dir[] = "/tmp/afd-fuzz-XXXXXX", path[64];
    if (!mkdtemp(dir)) abort();
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, bytes, f) != bytes || fclose(f)) abort();
    was_taken = !afd_checkpoint_open(dir, &c, &error);
    if (was_taken) {
        use(c);
        afd_checkpoint_close(c);
    } else
        assert(*error.text);
    unlink(path);
    rmdir(dir);
    return 0;
}

int afd_fuzz_was_taken(void)
{
    return was_taken;
}

uint8_t *afd_fuzz_good_input(size_t *bytes_out)
{
    enum { HEADER = 320, DATA = 8 + 24 + 260 };
    uint8_t *file = calloc(1, 8 + HEADER + DATA);
    if (!file) abort();
    file[0] = HEADER & 0xff;
    file[1] = HEADER >> 8;
    memset(file + 8, ' ', HEADER);
    int n = sprintf((char *)file + 8,
                    "{\"__metadata__\":{\"format\":\"pt\"},"
                    "\"w_scale_inv\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8]},"
                    "\"a\":{\"dtype\":\"BF16\",\"shape\":[3,4],\"data_offsets\":[8,32]},"
                    "\"w\":{\"dtype\":\"F8_E4M3\",\"shape\":[2,130],\"data_offsets\":[32,292]}}");
    assert(n < HEADER);
    file[8 + n] = ' ';
    *bytes_out = 8 + HEADER + DATA;
    return file;
}
