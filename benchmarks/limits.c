/* What memory allows: the bytes of a case read, or read and written, by all threads and nothing else. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { BLOCK = 1 << 16 };

/* The sum of n bytes as 64-bit words, so that no compiler leaves the reading out. */
uint64_t read_words(const uint64_t *words, ptrdiff_t n, int n_threads)
{
    uint64_t total = 0;
    ptrdiff_t i;
#pragma omp parallel for schedule(static) num_threads(n_threads) reduction(+ : total) if (n_threads > 1 && n > BLOCK)
    for (i = 0; i < n; i++)
        total += words[i];
    return total;
}

/* Ordinary stores: not memcpy, which may go past the cache, as may large gradients of cyce. */
void copy_words(const uint64_t *words, uint64_t *out, ptrdiff_t n, int n_threads)
{
    ptrdiff_t i;
#pragma omp parallel for schedule(static) num_threads(n_threads) if (n_threads > 1 && n > BLOCK)
    for (i = 0; i < n; i++)
        out[i] = words[i];
}
