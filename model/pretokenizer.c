#include "model/pretokenizer.h"

#include <stdlib.h>
#include <string.h>

enum {
    PATTERN_LIMIT_BYTES = 1 << 16,
    MATCH_LIMIT = 10 * 1000 * 1000,
    HEAP_LIMIT_KIB = 64 * 1024,
    STACK_BYTES = 64 * 1024,
    STACK_LIMIT_BYTES = 8 << 20,
};

/* What ByteLevel splits by, from the GPT-2 release (openai/gpt-2, src/encoder.py). */
static const char gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static enum afd_status add_step(struct afd_pretokenizer *p, const char *pattern, uint32_t literal,
                                struct afd_error *error_out)
{
    int code;
    PCRE2_SIZE at;
    PCRE2_UCHAR words[256];
    if (p->count == AFD_PRETOKENIZER_STEPS)
        return afd_fail(error_out, AFD_ERR_CONFIG, "pre_tokenizer: more than %d steps",
                        AFD_PRETOKENIZER_STEPS);
    if (!*pattern || strlen(pattern) > PATTERN_LIMIT_BYTES)
        return afd_fail(error_out, AFD_ERR_CONFIG, "pre_tokenizer: a pattern of %zu bytes; expected 1 to %d",
                        strlen(pattern), PATTERN_LIMIT_BYTES);
    uint32_t options = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C);
    pcre2_code *step = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, options, &code, &at, NULL);
    if (!step) {
        pcre2_get_error_message(code, words, sizeof words);
        return afd_fail(error_out, AFD_ERR_CONFIG, "pre_tokenizer: pattern, byte %zu: %s", (size_t)at, words);
    }
    pcre2_jit_compile(step, PCRE2_JIT_COMPLETE); /* without JIT the interpreter matches the same */
    p->steps[p->count++] = step;
    return AFD_OK;
}

static enum afd_status add_split(struct afd_pretokenizer *p, const json_t *config,
                                 struct afd_error *error_out)
{
    const json_t *pattern = json_object_get(config, "pattern");
    const char *behavior = afd_json_text(config, "behavior");
    int invert;
    enum afd_status status = afd_json_bool(config, "invert", 0, &invert, error_out);
    if (status) return status;
    if (!behavior || strcmp(behavior, "Isolated") || invert)
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "pre_tokenizer Split: behavior \"%.40s\"%s is not supported; expected \"Isolated\"",
                        behavior ? behavior : "(none)", invert ? " inverted" : "");
    const char *regex = afd_json_text(pattern, "Regex"), *text = afd_json_text(pattern, "String");
    if (!regex && !text)
        return afd_fail(error_out, AFD_ERR_CONFIG,
                        "pre_tokenizer Split: expected a pattern, Regex or String");
    return add_step(p, regex ? regex : text, !regex, error_out);
}

static enum afd_status add_byte_level(struct afd_pretokenizer *p, const json_t *config,
                                      struct afd_error *error_out)
{
    int use_regex;
    enum afd_status status;
    if ((status = afd_json_bool(config, "use_regex", 1, &use_regex, error_out)) ||
        (status = afd_json_bool(config, "add_prefix_space", 1, &p->prefix_space, error_out)))
        return status;
    p->byte_level = p->count;
    return use_regex ? add_step(p, gpt2_pattern, 0, error_out) : AFD_OK;
}

/* Splits, then one ByteLevel: it turns text into the byte alphabet, so nothing may follow it. */
enum afd_status afd_pretokenizer_init(struct afd_pretokenizer *p, const json_t *config,
                                      struct afd_error *error_out)
{
    memset(p, 0, sizeof *p);
    const char *type = afd_json_text(config, "type");
    const json_t *list = type && !strcmp(type, "Sequence") ? json_object_get(config, "pretokenizers") : NULL;
    size_t count = list ? json_array_size(list) : 1;
    for (size_t i = 0; i < count; i++) {
        const json_t *part = list ? json_array_get(list, i) : config;
        enum afd_status status;
        type = afd_json_text(part, "type");
        int last = i + 1 == count, byte_level = type && !strcmp(type, "ByteLevel");
        if (byte_level && last)
            status = add_byte_level(p, part, error_out);
        else if (type && !strcmp(type, "Split") && !last)
            status = add_split(p, part, error_out);
        else
            status =
                afd_fail(error_out, AFD_ERR_CONFIG,
                         "pre_tokenizer: \"%.40s\" in place %zu of %zu is not supported; expected Split, and "
                         "ByteLevel as the last",
                         type ? type : "(none)", i + 1, count);
        if (status) return status;
    }
    if (!count)
        return afd_fail(error_out, AFD_ERR_CONFIG, "pre_tokenizer: an empty Sequence; expected ByteLevel");
    return AFD_OK;
}

void afd_pretokenizer_fini(struct afd_pretokenizer *p)
{
    for (int i = 0; i < p->count; i++) pcre2_code_free(p->steps[i]);
    p->count = 0;
}

enum afd_status afd_cutter_init(struct afd_cutter *cutter, const struct afd_pretokenizer *p,
                                enum afd_status (*each)(const char *piece, size_t bytes, void *user),
                                void *user)
{
    *cutter = (struct afd_cutter){.pretokenizer = p, .each = each, .user = user};
    cutter->match = pcre2_match_data_create(1, NULL);
    cutter->context = pcre2_match_context_create(NULL);
    if (!cutter->match || !cutter->context) return AFD_ERR_MEMORY;
    pcre2_set_match_limit(cutter->context, MATCH_LIMIT);
    pcre2_set_heap_limit(cutter->context, HEAP_LIMIT_KIB);
    return AFD_OK;
}

void afd_cutter_fini(struct afd_cutter *cutter)
{
    pcre2_match_data_free(cutter->match);
    pcre2_match_context_free(cutter->context);
    pcre2_jit_stack_free(cutter->stack);
    free(cutter->prefixed);
}

/* The next match at or after `at`. 1 found, 0 none. */
static int next_match(struct afd_cutter *cutter, const pcre2_code *step, const char *text, size_t bytes,
                      size_t at)
{
    /* The text was checked once; checking it at every match would be quadratic. */
    int rc =
        pcre2_match(step, (PCRE2_SPTR)text, bytes, at, PCRE2_NO_UTF_CHECK, cutter->match, cutter->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT && !cutter->stack) {
        /* Few texts need more than the 32 KiB that a match has without this. */
        cutter->stack = pcre2_jit_stack_create(STACK_BYTES, STACK_LIMIT_BYTES, NULL);
        if (!cutter->stack) return AFD_ERR_MEMORY;
        pcre2_jit_stack_assign(cutter->context, NULL, cutter->stack);
        rc = pcre2_match(step, (PCRE2_SPTR)text, bytes, at, PCRE2_NO_UTF_CHECK, cutter->match,
                         cutter->context);
    }
    if (rc == PCRE2_ERROR_NOMATCH) return 0;
    return rc < 0 ? AFD_ERR_LIMIT : 1;
}

static enum afd_status cut(struct afd_cutter *cutter, int step, const char *text, size_t bytes);

/* ByteLevel puts the space before it splits. */
static enum afd_status cut_prefixed(struct afd_cutter *cutter, int step, const char *text, size_t bytes)
{
    if (bytes + 1 > cutter->prefixed_room) {
        char *grown = realloc(cutter->prefixed, bytes + 1);
        if (!grown) return AFD_ERR_MEMORY;
        cutter->prefixed = grown;
        cutter->prefixed_room = bytes + 1;
    }
    cutter->prefixed[0] = ' ';
    memcpy(cutter->prefixed + 1, text, bytes);
    return cut(cutter, step, cutter->prefixed, bytes + 1);
}

static enum afd_status cut(struct afd_cutter *cutter, int step, const char *text, size_t bytes)
{
    const struct afd_pretokenizer *p = cutter->pretokenizer;
    if (step == p->byte_level && p->prefix_space && *text != ' ')
        return cut_prefixed(cutter, step, text, bytes);
    if (step == p->count) return cutter->each(text, bytes, cutter->user);
    const PCRE2_SIZE *found = pcre2_get_ovector_pointer(cutter->match);
    size_t done = 0, at = 0;
    enum afd_status status = AFD_OK;
    while (!status && at < bytes) {
        int rc = next_match(cutter, p->steps[step], text, bytes, at);
        if (rc < 0) return (enum afd_status)rc;
        if (!rc) break;
        /* Copied: the steps below use the same match data. \K can move the start past the end. */
        size_t begin = found[0], end = found[1];
        if (begin < done || end <= begin) { /* an empty match cuts nothing: go on after the next character */
            at = (begin > at ? begin : at) + 1;
            while (at < bytes && ((unsigned char)text[at] & 0xc0) == 0x80) at++;
            continue;
        }
        if (begin > done) status = cut(cutter, step + 1, text + done, begin - done);
        if (!status) status = cut(cutter, step + 1, text + begin, end - begin);
        done = at = end;
    }
    if (!status && done < bytes) status = cut(cutter, step + 1, text + done, bytes - done);
    return status;
}

enum afd_status afd_cutter_cut(struct afd_cutter *cutter, const char *text, size_t bytes)
{
    if (!bytes) return AFD_OK;
    return cut(cutter, 0, text, bytes);
}
