/* tokenizer.h: byte-pair encoding from a Hugging Face tokenizer.json, or from what a GGUF file holds.
 *
 * Immutable after load: any thread may encode and decode; the loader owns it. What the file asks for and this
 * code does not do (another model type, an unknown pre-tokenizer or normalizer) is refused at load, by name.
 * Unicode classes are PCRE2's: they can differ from another library's for code points that are newer than one
 * of them. */
#ifndef AFD_MODEL_TOKENIZER_H
#define AFD_MODEL_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct afd_tokenizer;

/* `path`: a tokenizer.json or the directory that holds one (then tokenizer_config.json and
 * chat_template.jinja are read as well). */
enum afd_status afd_tokenizer_load(const char *path, struct afd_tokenizer **out, struct afd_error *error_out);

/* What a GGUF file says of its tokenizer, under its keys `tokenizer.*`. Texts are not ended by 0. */
struct afd_tokenizer_text {
    const char *data;
    size_t bytes;
};
struct afd_tokenizer_source {
    const char *model; /* "gpt2": byte-level; "llama": SentencePiece */
    const char *pre;   /* how gpt2 splits; NULL: as GPT-2 does */
    const struct afd_tokenizer_text *tokens;
    const int32_t *types; /* 1 normal, 2 unknown, 3 control, 4 user's, 5 unused, 6 byte; NULL: all normal */
    const float *scores;  /* llama */
    uint32_t count;
    const struct afd_tokenizer_text *merges; /* gpt2: "a b" */
    uint32_t merge_count;
    int64_t bos, eos, unknown; /* -1: none */
    int adds_bos;
    int adds_space; /* llama: a space is put before a text */
    struct afd_tokenizer_text chat_template;
};
/* Nothing of the source is kept. */
enum afd_status afd_tokenizer_build(const struct afd_tokenizer_source *source, struct afd_tokenizer **out,
                                    struct afd_error *error_out);
void afd_tokenizer_destroy(struct afd_tokenizer *tokenizer); /* NULL is allowed */

struct afd_gguf;
enum afd_status afd_tokenizer_from_gguf(const struct afd_gguf *gguf, struct afd_tokenizer **out,
                                        struct afd_error *error_out);

/* An added token that is not special (a run of spaces, <tool_call>) is one token wherever text spells it; a
 * special one (<|endoftext|>) only with AFD_ENCODE_SPECIAL; with AFD_ENCODE_TEXT neither is, so text from a
 * client cannot become a control token. */
enum { AFD_ENCODE_SPECIAL = 1, AFD_ENCODE_TEXT = 2 };

/* Encodes valid UTF-8 (AFD_ERR_REQUEST otherwise) into at most `limit` ids (AFD_ERR_LIMIT beyond). No BOS is
 * added. *ids_out is malloc'ed, the caller frees it; NULL when there are no ids. */
enum afd_status afd_tokenizer_encode(const struct afd_tokenizer *tokenizer, const char *text, size_t bytes,
                                     int flags, size_t limit, uint32_t **ids_out, size_t *count_out);

/* The same, where marks[i] (0 or 1) of byte i says that a client wrote it: no added token is found in marked
 * bytes, and text is encoded as a whole all the same, so that marks change nothing where it spells no such
 * token. */
enum afd_status afd_tokenizer_encode_marked(const struct afd_tokenizer *tokenizer, const char *text,
                                            size_t bytes, const unsigned char *marks, int flags, size_t limit,
                                            uint32_t **ids_out, size_t *count_out);

/* The bytes of one token ("" for ids without any), followed by a 0; NULL when the id does not exist. Special
 * tokens give the text they are written with. */
const char *afd_tokenizer_token(const struct afd_tokenizer *tokenizer, uint32_t id, size_t *bytes_out);
int afd_tokenizer_is_special(const struct afd_tokenizer *tokenizer, uint32_t id);
/* -1 when there is no such added token, e.g. "<|BOT|>". */
int64_t afd_tokenizer_special(const struct afd_tokenizer *tokenizer, const char *text);
uint32_t afd_tokenizer_vocab(const struct afd_tokenizer *tokenizer); /* highest id + 1 */
/* -1: none. */
int64_t afd_tokenizer_bos(const struct afd_tokenizer *tokenizer);
/* 1: of a whole text, decoded from its first token on, one leading space is the tokenizer's. */
int afd_tokenizer_strips_space(const struct afd_tokenizer *tokenizer);
/* Whether a completion prompt begins with it: add_bos_token of tokenizer_config.json, else the
 * post-processor. */
int afd_tokenizer_adds_bos(const struct afd_tokenizer *tokenizer);

/* Streaming detokenization: bytes of a character that is not complete are held back. Plain struct, no
 * allocation. `out` takes at most `limit` bytes (AFD_ERR_LIMIT, nothing consumed); invalid UTF-8 becomes
 * U+FFFD. Special tokens are skipped unless `keep_special`. */
struct afd_detokenizer {
    const struct afd_tokenizer *tokenizer;
    int keep_special;
    int keep_tags; /* special tokens that answer.h takes answers apart by; 0 after init */
    unsigned char held[4];
    unsigned held_bytes;
};
void afd_detokenizer_init(struct afd_detokenizer *d, const struct afd_tokenizer *tokenizer, int keep_special);
enum afd_status afd_detokenizer_push(struct afd_detokenizer *d, uint32_t id, char *out, size_t limit,
                                     size_t *bytes_out);
/* Flushes what is held back at the end of a stream as U+FFFD; at most 3 bytes. */
size_t afd_detokenizer_finish(struct afd_detokenizer *d, char *out);

#endif
