/* Guards: a safetensors file that crashes the reader, or a tensor that lies outside its file. */
#include <assert.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/tensors.h"
#include "tests/fuzz/file.h"
#include "tests/fuzz/weights.h"

/* The header's JSON: some 100 bytes a value, from "0," on. */
const struct afd_fuzz_form afd_fuzz_form = {"model.safetensors", 128, 80 << 10};

void *afd_fuzz_open(const char *dir, const char *path, struct afd_error *error_out)
{
    struct afd_checkpoint *c;
    (void)path;
    return afd_checkpoint_open(dir, &c, error_out) ? NULL : c;
}

/* The file as the weights of a Llama of one layer, in each format that config.json may promise. */
static void use_weights(const char *dir, const struct afd_checkpoint *c)
{
    static const char *const quantizations[] = {
        "{\"quant_method\": \"fp8\", \"weight_block_size\": [128, 128]}",
        "{\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 128}",
        "{\"quant_method\": \"awq\", \"bits\": 4, \"group_size\": 128}",
    };
    char path[PATH_MAX + 16];
    struct afd_error error;
    struct afd_model *model;
    snprintf(path, sizeof path, "%s/config.json", dir);
    for (size_t q = 0; q < sizeof quantizations / sizeof *quantizations; q++) {
        FILE *f = fopen(path, "w");
        if (!f) abort();
        fprintf(f,
                "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 128, \"vocab_size\": 4, "
                "\"num_hidden_layers\": 1, \"num_attention_heads\": 1, \"head_dim\": 16, "
                "\"intermediate_size\": 130, \"rms_norm_eps\": 1e-5, \"max_position_embeddings\": 64, "
                "\"quantization_config\": %s}",
                quantizations[q]);
        fclose(f);
        enum afd_status status = afd_model_load(dir, &model, &error);
        unlink(path);
        if (status) fprintf(stderr, "%s\n", error.text), abort();
        fuzz_read_weights(model, c);
        afd_model_destroy(model);
    }
}

/* Touches every byte of what was accepted. */
void afd_fuzz_use(void *opened, const char *dir)
{
    struct afd_checkpoint *c = opened;
    for (uint32_t t = 0; t < afd_checkpoint_count(c); t++) {
        const struct afd_tensor *tensor = afd_checkpoint_at(c, t);
        assert(afd_checkpoint_find(c, tensor->name) == tensor);
        afd_fuzz_touch(tensor->data, tensor->bytes);
        if (tensor->scale && tensor->bytes)
            afd_fuzz_touch(tensor->scale,
                           tensor->scale_rows * tensor->scale_columns * afd_dtype_bytes(tensor->scale_dtype));
    }
    use_weights(dir, c);
    afd_checkpoint_close(c);
}

/* What is no weight, a weight in block-FP8, one in GPTQ's int4. */
uint8_t *afd_fuzz_good_input(size_t *bytes_out)
{
    enum { HEADER = 1024, DATA = 8 + 24 + 260 + 2048 + 4 + 1024 + 8 + 32 + 512 };
    uint8_t *file = calloc(1, 8 + HEADER + DATA);
    if (!file) abort();
    file[0] = HEADER & 0xff;
    file[1] = HEADER >> 8;
    memset(file + 8, ' ', HEADER);
    int n = sprintf((char *)file + 8,
                    "{\"__metadata__\":{\"format\":\"pt\"},"
                    "\"w_scale_inv\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8]},"
                    "\"a\":{\"dtype\":\"BF16\",\"shape\":[3,4],\"data_offsets\":[8,32]},"
                    "\"w\":{\"dtype\":\"F8_E4M3\",\"shape\":[2,130],\"data_offsets\":[32,292]}"
#define K "\"model.layers.0.self_attn.k_proj.weight"
#define Q "\"model.layers.0.self_attn.q_proj."
                    "," K "\":{\"dtype\":\"F8_E4M3\",\"shape\":[16,128],\"data_offsets\":[292,2340]}"
                    "," K "_scale_inv\":{\"dtype\":\"F32\",\"shape\":[1,1],\"data_offsets\":[2340,2344]}"
                    "," Q "qweight\":{\"dtype\":\"I32\",\"shape\":[16,16],\"data_offsets\":[2344,3368]}"
                    "," Q "qzeros\":{\"dtype\":\"I32\",\"shape\":[1,2],\"data_offsets\":[3368,3376]}"
                    "," Q "scales\":{\"dtype\":\"F16\",\"shape\":[1,16],\"data_offsets\":[3376,3408]}"
                    "," Q "g_idx\":{\"dtype\":\"I32\",\"shape\":[128],\"data_offsets\":[3408,3920]}}");
#undef K
#undef Q
    assert(n < HEADER);
    file[8 + n] = ' ';
    *bytes_out = 8 + HEADER + DATA;
    return file;
}
