/* Guards: a config.json that crashes the reader, or is accepted with sizes that the rest of the code cannot
 * add up. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "model/weights.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/memory_file.h"

static int was_taken;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct afd_model *model;
    struct afd_error error;
    uint64_t total, active;
    char path[64];
    int fd = memory_file(data, bytes, path);
    was_taken = !afd_model_load(path, &model, &error);
    if (was_taken) {
        struct afd_share share = {.ffn = 1, .shards = 5, .ep = 3, .tp = 2};
        afd_model_parameters(model, &total, &active);
        assert(active <= total);
        assert(afd_share_bytes(model, NULL, &share, 16) <= 2 * total);
        afd_model_destroy(model);
    } else
        assert(*error.text);
    memory_file_close(fd);
    return 0;
}

int afd_fuzz_was_taken(void)
{
    return was_taken;
}

uint8_t *afd_fuzz_good_input(size_t *bytes_out)
{
    static const char good[] =
        "{\"architectures\": [\"Step3TextForCausalLM\"], \"hidden_size\": 96, \"vocab_size\": 300,"
        "\"num_hidden_layers\": 6, \"num_attention_heads\": 6, \"num_attention_groups\": 2, \"head_dim\": 24,"
        "\"share_q_dim\": 40, \"intermediate_size\": 100, \"moe_layers_enum\": \"5, 1,3\", "
        "\"moe_num_experts\": 7,"
        "\"moe_top_k\": 2, \"moe_intermediate_size\": 36, \"share_expert_dim\": 52, \"eos_token_id\": [2, 3],"
        "\"norm_expert_weight\": true, \"rms_norm_eps\": 1e-6, \"max_position_embedding\": 512,"
        "\"quantization_config\": {\"quant_method\": \"fp8\", \"weight_block_size\": [128, 128]}}";
    *bytes_out = sizeof good - 1;
    return (uint8_t *)strdup(good);
}
