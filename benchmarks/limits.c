/* What memory allows: the bytes of a case read, or read and written, by all threads and nothing else.

   Each in several ways; which one is the fastest depends on the CPU and on the size: a plain loop; the same with
   prefetches, some way ahead and again nearer, as some CPUs drop prefetches; copies also by stores that go past the
   caches. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__) || defined(__AVX__)
#include <immintrin.h>
#endif

enum { LINE = 64, WORDS = LINE / 8, BLOCK = 1 << 16, AHEAD = 1024, NEARER = 512 };

#define READ(line)                                                                                                  \
    for (k = 0; k < WORDS; k++)                                                                                     \
        total += words[(line) * WORDS + k];
#define COPY(line)                                                                                                  \
    for (k = 0; k < WORDS; k++)                                                                                     \
        out[(line) * WORDS + k] = words[(line) * WORDS + k];
#if defined(__AVX512F__)
#define STREAM(line)                                                                                                \
    _mm512_stream_si512((void *) (out + (line) * WORDS), _mm512_loadu_si512(words + (line) * WORDS));
#elif defined(__AVX__)
#define STREAM(line)                                                                                                \
    for (k = 0; k < 2; k++)                                                                                         \
        _mm256_stream_si256((__m256i *) (out + (line) * WORDS) + k,                                                 \
                            _mm256_loadu_si256((const __m256i *) (words + (line) * WORDS) + k));
#else
#define STREAM COPY
#endif
#define PREFETCH(line)                                                                                              \
    __builtin_prefetch((const char *) words + (line) * LINE + AHEAD);                                               \
    __builtin_prefetch((const char *) words + (line) * LINE + NEARER, 0, 2);
#define NOTHING(line)

/* The sum of whole lines as 64-bit words, so that no compiler leaves the reading out. */
#define READER(name, BEFORE)                                                                                        \
    uint64_t name(const uint64_t *words, ptrdiff_t n_bytes, int n_threads)                                          \
    {                                                                                                               \
        uint64_t total = 0;                                                                                         \
        const ptrdiff_t n = n_bytes / LINE;                                                                         \
        ptrdiff_t i;                                                                                                \
        int k;                                                                                                      \
        _Pragma("omp parallel for schedule(static) num_threads(n_threads) private(k) reduction(+ : total) if (n_threads > 1 && n_bytes > 8 * BLOCK)") \
        for (i = 0; i < n; i++) {                                                                                   \
            BEFORE(i)                                                                                               \
            READ(i)                                                                                                 \
        }                                                                                                           \
        return total;                                                                                               \
    }
READER(read_plainly, NOTHING)
READER(read_prefetched, PREFETCH)

/* Not memcpy, which may choose any of these. Streams need an `out` at the beginning of a line. */
#define COPIER(name, BEFORE, STORE)                                                                                 \
    void name(const uint64_t *words, uint64_t *out, ptrdiff_t n_bytes, int n_threads)                               \
    {                                                                                                               \
        const ptrdiff_t n = n_bytes / LINE;                                                                         \
        ptrdiff_t i;                                                                                                \
        int k;                                                                                                      \
        _Pragma("omp parallel for schedule(static) num_threads(n_threads) private(k) if (n_threads > 1 && n_bytes > 8 * BLOCK)") \
        for (i = 0; i < n; i++) {                                                                                   \
            BEFORE(i)                                                                                               \
            STORE(i)                                                                                                \
        }                                                                                                           \
        (void) k;                                                                                                   \
    }
COPIER(copy_plainly, NOTHING, COPY)
COPIER(copy_prefetched, PREFETCH, COPY)
COPIER(copy_streamed, NOTHING, STREAM)
COPIER(copy_streamed_prefetched, PREFETCH, STREAM)
