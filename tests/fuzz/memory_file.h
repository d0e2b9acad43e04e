/* memory_file.h: bytes as a file with a path, and without a disk. */
#ifndef AFD_TESTS_FUZZ_MEMORY_FILE_H
#define AFD_TESTS_FUZZ_MEMORY_FILE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static inline int memory_file(const uint8_t *data, size_t bytes, char path_out[64])
{
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, bytes) != (ssize_t)bytes) abort();
    snprintf(path_out, 64, "/proc/self/fd/%d", fd);
    return fd;
}

static inline void memory_file_close(int fd)
{
    close(fd);
}

#endif
