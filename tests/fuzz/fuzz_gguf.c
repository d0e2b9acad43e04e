/* Guards: a GGUF file that crashes the reader, a tensor or a string that lies outside its file, metadata that
 * makes an impossible model. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "model/gguf.h"
#include "model/tensors.h"
#include "model/tokenizer.h"
#include "tests/fuzz/file.h"
#include "tests/fuzz/weights.h"

/* A key takes 13 bytes of the file at least, and some 200 of memory. */
const struct afd_fuzz_form afd_fuzz_form = {"m.gguf", 24, 80 << 10};

void *afd_fuzz_open(const char *dir, const char *path, struct afd_error *error_out)
{
    struct afd_gguf *g;
    (void)dir;
    return afd_gguf_open(path, &g, error_out) ? NULL : g;
}

static void use_model(const char *dir)
{
    struct afd_model *model;
    struct afd_checkpoint *checkpoint;
    struct afd_error error = {""};
    if (afd_model_load(dir, &model, &error)) {
        assert(*error.text);
        return;
    }
    if (!afd_checkpoint_open(dir, &checkpoint, &error)) {
        fuzz_read_weights(model, checkpoint);
        afd_checkpoint_close(checkpoint);
    }
    afd_model_destroy(model);
}

static void use_tokenizer(const char *dir)
{
    static const char text[] = "ab  b<a>12345\n\xe6\x97\xa5";
    struct afd_tokenizer *t;
    struct afd_error error = {""};
    uint32_t *ids;
    size_t count;
    if (afd_tokenizer_load(dir, &t, &error)) {
        assert(*error.text);
        return;
    }
    if (!afd_tokenizer_encode(t, text, sizeof text - 1, AFD_ENCODE_SPECIAL, 1000, &ids, &count)) {
        for (size_t i = 0; i < count; i++) assert(ids[i] < afd_tokenizer_vocab(t));
        free(ids);
    }
    afd_tokenizer_destroy(t);
}

/* Touches every byte of what was accepted; then the model and the tokenizer that it may be. */
void afd_fuzz_use(void *opened, const char *dir)
{
    struct afd_gguf *g = opened;
    uint64_t count = 0;
    const struct afd_gguf_string *texts = afd_gguf_texts(g, "tokenizer.ggml.tokens", &count);
    for (uint64_t i = 0; texts && i < count; i++) afd_fuzz_touch(texts[i].text, texts[i].bytes);
    for (uint32_t k = 0; k < afd_gguf_key_count(g); k++) {
        double x;
        const char *key = afd_gguf_key_at(g, k).key;
        for (uint64_t i = 0; i < afd_gguf_count(g, key) && i < 1000; i++) afd_gguf_number_at(g, key, i, &x);
    }
    for (uint32_t t = 0; t < afd_gguf_tensor_count(g); t++) {
        const struct afd_gguf_tensor *tensor = afd_gguf_tensor_at(g, t);
        afd_fuzz_touch(tensor->data, tensor->bytes);
    }
    afd_gguf_close(g);
    use_model(dir);
    use_tokenizer(dir);
}

struct writer {
    uint8_t *at;
};

static void put(struct writer *w, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++) *w->at++ = (uint8_t)(value >> 8 * i);
}

static void put_text(struct writer *w, const char *text)
{
    put(w, strlen(text), 8);
    for (; *text; text++) *w->at++ = (uint8_t)*text;
}

static void put_uint(struct writer *w, const char *key, uint32_t value)
{
    put_text(w, key);
    put(w, AFD_GGUF_U32, 4);
    put(w, value, 4);
}

static void put_array(struct writer *w, const char *key, uint32_t kind, uint64_t count)
{
    put_text(w, key);
    put(w, AFD_GGUF_ARRAY, 4);
    put(w, kind, 4);
    put(w, count, 8);
}

/* Of SentencePiece's kind, which needs no token for every byte. */
static void put_tokenizer(struct writer *w)
{
    enum { COUNT = 6 };
    static const char *const tokens[COUNT] = {"<unk>", "\u2581", "a", "b", "ab", "<0x41>"};
    static const uint32_t types[COUNT] = {2, 1, 1, 1, 1, 6};
    static const float scores[COUNT] = {0, -1, -2, -3, -4, 0};
    put_text(w, "tokenizer.ggml.model");
    put(w, AFD_GGUF_STRING, 4);
    put_text(w, "llama");
    put_uint(w, "tokenizer.ggml.unknown_token_id", 0);
    put_array(w, "tokenizer.ggml.tokens", AFD_GGUF_STRING, COUNT);
    for (int i = 0; i < COUNT; i++) put_text(w, tokens[i]);
    put_array(w, "tokenizer.ggml.token_type", AFD_GGUF_I32, COUNT);
    for (int i = 0; i < COUNT; i++) put(w, types[i], 4);
    put_array(w, "tokenizer.ggml.scores", AFD_GGUF_F32, COUNT);
    for (int i = 0; i < COUNT; i++) put(w, afd_float_bits(scores[i]), 4);
}

/* A llama of one layer's metadata with its tokenizer, and two tensors. */
uint8_t *afd_fuzz_good_input(size_t *bytes_out)
{
    enum { ROOM = 2048, KEYS = 13, DATA = 32 * 4 + 6 * 34 };
    uint8_t *file = calloc(1, ROOM);
    struct writer w = {file};
    if (!file) abort();
    put(&w, 0x46554747, 4);
    put(&w, 3, 4);
    put(&w, 2, 8);
    put(&w, KEYS, 8);
    put_text(&w, "general.architecture");
    put(&w, AFD_GGUF_STRING, 4);
    put_text(&w, "llama");
    put_uint(&w, "llama.embedding_length", 32);
    put_uint(&w, "llama.block_count", 1);
    put_uint(&w, "llama.context_length", 64);
    put_uint(&w, "llama.feed_forward_length", 32);
    put_uint(&w, "llama.attention.head_count", 4);
    put_uint(&w, "llama.attention.head_count_kv", 2);
    put_text(&w, "llama.attention.layer_norm_rms_epsilon");
    put(&w, AFD_GGUF_F32, 4);
    put(&w, afd_float_bits(1e-5f), 4);
    put_tokenizer(&w);
    put_text(&w, "output_norm.weight");
    put(&w, 1, 4);
    put(&w, 32, 8);
    put(&w, 0, 4);
    put(&w, 0, 8);
    put_text(&w, "token_embd.weight");
    put(&w, 2, 4);
    put(&w, 32, 8);
    put(&w, 6, 8);
    put(&w, 8, 4);
    put(&w, 128, 8);
    *bytes_out = ((size_t)(w.at - file) + 31) / 32 * 32 + DATA;
    assert(*bytes_out <= ROOM);
    return file;
}
