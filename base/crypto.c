#include "base/crypto.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdlib.h>
#include <sys/random.h>

struct afd_sha256 {
    EVP_MD_CTX *context;
};

struct afd_sha256 *afd_sha256_create(void)
{
    struct afd_sha256 *hash = malloc(sizeof *hash);
    if (!hash) abort();
    hash->context = EVP_MD_CTX_new();
    if (!hash->context || EVP_DigestInit_ex(hash->context, EVP_sha256(), NULL) != 1) abort();
    return hash;
}

void afd_sha256_update(struct afd_sha256 *hash, const void *data, size_t bytes)
{
    if (EVP_DigestUpdate(hash->context, data, bytes) != 1) abort();
}

void afd_sha256_finish(struct afd_sha256 *hash, uint8_t out[AFD_HASH_BYTES])
{
    if (EVP_DigestFinal_ex(hash->context, out, NULL) != 1) abort();
    EVP_MD_CTX_free(hash->context);
    free(hash);
}

void afd_hmac(const void *key, size_t key_bytes, const void *data, size_t bytes, uint8_t out[AFD_HASH_BYTES])
{
    unsigned int out_bytes = 0;
    if (!HMAC(EVP_sha256(), key, (int)key_bytes, data, bytes, out, &out_bytes) || out_bytes != AFD_HASH_BYTES)
        abort();
}

void afd_random_bytes(void *out, size_t bytes)
{
    unsigned char *to = out;
    while (bytes) {
        ssize_t got = getrandom(to, bytes, 0);
        if (got <= 0) abort();
        to += got;
        bytes -= (size_t)got;
    }
}

int afd_equal_secret(const void *a, const void *b, size_t bytes)
{
    return CRYPTO_memcmp(a, b, bytes) == 0;
}

void afd_hex(const uint8_t *data, size_t bytes, char *out)
{
    for (size_t i = 0; i < bytes; i++) {
        out[2 * i] = "0123456789abcdef"[data[i] >> 4];
        out[2 * i + 1] = "0123456789abcdef"[data[i] & 15];
    }
    out[2 * bytes] = 0;
}
