/* tokenizer_parts.h: what a tokenizer is made of, for the files that build one (inside the model folder
 * only). */
#ifndef AFD_MODEL_TOKENIZER_PARTS_H
#define AFD_MODEL_TOKENIZER_PARTS_H

#include "model/added.h"
#include "model/bpe.h"
#include "model/jinja.h"
#include "model/pretokenizer.h"
#include "model/tokenizer.h"

enum { AFD_TOKEN_LIMIT_BYTES = 4096 };

/* tokenizer.ggml.token_type of a GGUF file. */
enum {
    AFD_GGUF_NORMAL = 1,
    AFD_GGUF_UNKNOWN,
    AFD_GGUF_CONTROL,
    AFD_GGUF_USER,
    AFD_GGUF_UNUSED,
    AFD_GGUF_BYTE
};
/* Looked for in text as a whole: no part of merging. */
static inline int afd_gguf_is_added(int type)
{
    return type == AFD_GGUF_UNKNOWN || type == AFD_GGUF_CONTROL || type == AFD_GGUF_USER;
}

struct afd_tokenizer {
    struct afd_vocab vocab;
    struct afd_bpe bpe;
    struct afd_added raw;        /* added tokens that are looked for before the text is normalized */
    struct afd_added normalized; /* and after */
    struct afd_normalizer normalizer;
    struct afd_pretokenizer pretokenizer;
    int64_t bos; /* -1: none */
    int64_t eos;
    int adds_bos;
    int strips_space;        /* one space at the beginning of a text was put there by the tokenizer */
    char *chat_template;     /* NULL: none */
    struct afd_jinja *jinja; /* the template for chat, compiled; NULL: it cannot be */
    struct afd_error jinja_error;
};

/* An empty one; NULL without memory. */
struct afd_tokenizer *afd_tokenizer_new(void);
/* Room for ids below `count`. */
enum afd_status afd_tokenizer_reserve(struct afd_tokenizer *t, uint32_t count);
/* A token that is looked for in text as a whole: `flags` of added.h. */
enum afd_status afd_tokenizer_add(struct afd_tokenizer *t, uint32_t id, const char *text, size_t bytes,
                                  unsigned flags, int normalized, struct afd_error *error_out);
/* A token of SentencePiece's alphabet: U+2581 is a space, <0x41> a byte when `is_byte`. */
enum afd_status afd_tokenizer_put_spaced(struct afd_tokenizer *t, uint32_t id, const char *text, size_t bytes,
                                         int is_byte);
/* The byte of "<0x41>"; -1: another text. */
int afd_tokenizer_byte_of(const char *text, size_t bytes);
/* A byte of common text that has no token; -1: none. Vocabularies may lack tokens of control characters and
 * of bytes that begin few characters: those encode to nothing. */
int afd_tokenizer_missing_byte(const struct afd_tokenizer *t);
/* After the last token and merge: what speeds encoding up. */
enum afd_status afd_tokenizer_seal(struct afd_tokenizer *t, int ignore_merges);

/* Compiles the template for chat, the last step of building (chat.c). */
enum afd_status afd_tokenizer_prepare_chat(struct afd_tokenizer *t);

/* GPT-2 writes a vocabulary's bytes as characters: printable Latin-1 stands for itself, the 68 others are
 * U+0100 and on, ascending. */
enum { AFD_BYTE_CHARACTERS = 256 + 68 };
void afd_byte_alphabet(int16_t byte_of[AFD_BYTE_CHARACTERS]);
/* The bytes that the text of a token stands for; -1 when a character is not in the alphabet. `out` has room
 * for `bytes`. */
int64_t afd_byte_alphabet_decode(const int16_t byte_of[AFD_BYTE_CHARACTERS], const char *text, size_t bytes,
                                 char *out);

#endif
