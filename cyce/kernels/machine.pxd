"""What plain C does not offer, or compilers do not vectorise.

Fused multiply-add, bit patterns, the floating point environment, prefetches, streaming stores, and
assertions. All of it works with any C compiler; the faster variants are chosen by what the compiler may use
at the level it compiles for.
"""
from cython cimport floating
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "<assert.h>" nogil:
    # Conditions without which something would be read or written out of bounds; active with CYCE_DEBUG=1.
    void check "assert"(bint holds)


cdef extern from * nogil:
    """
    #ifdef NDEBUG
    #define CYCE_DEBUG 0
    #else
    #define CYCE_DEBUG 1
    #endif
    """
    const bint CYCE_DEBUG


cdef extern from * nogil:
    """
    #include <math.h>
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>

    /* C's fma() is a slow library call where the instruction is missing. */
    #if defined(__FMA__) || defined(__aarch64__)
    static inline float cyce_fma_float(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
    static inline double cyce_fma_double(double a, double b, double c) { return __builtin_fma(a, b, c); }
    static inline double cyce_product_lost(double a, double b, double product)
    {
        return __builtin_fma(a, b, -product);
    }
    #else
    static inline float cyce_fma_float(float a, float b, float c) { return a * b + c; }
    static inline double cyce_fma_double(double a, double b, double c) { return a * b + c; }
    /* Dekker's product: split both factors into halves, whose products are exact. */
    static inline double cyce_product_lost(double a, double b, double product)
    {
        const double a_scaled = 134217729.0 * a, b_scaled = 134217729.0 * b;  /* 2**27 + 1 */
        const double a_high = a_scaled - (a_scaled - a), b_high = b_scaled - (b_scaled - b);
        const double a_low = a - a_high, b_low = b - b_high;
        return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
    }
    #endif

    #if defined(__GNUC__) || defined(__clang__)
    #define cyce_prefetch(address) __builtin_prefetch(address)
    #define cyce_prefetch_to_l2(address) __builtin_prefetch(address, 0, 2)
    #else
    #define cyce_prefetch(address) ((void) (address))
    #define cyce_prefetch_to_l2(address) ((void) (address))
    #endif

    /* The calling thread's floating point environment: rounding, subnormal numbers, flags, traps. */
    #if defined(__SSE2__)
    #include <xmmintrin.h>
    typedef unsigned int cyce_environment;
    /* The default and no flags: round to nearest, keep subnormal numbers, no traps. */
    static inline void cyce_enter(cyce_environment *found) { *found = _mm_getcsr(); _mm_setcsr(0x1f80); }
    static inline void cyce_leave(const cyce_environment *found) { _mm_setcsr(*found); }
    #else
    #include <fenv.h>
    typedef fenv_t cyce_environment;
    static inline void cyce_enter(cyce_environment *found) { fegetenv(found); fesetenv(FE_DFL_ENV); }
    static inline void cyce_leave(const cyce_environment *found) { fesetenv(found); }
    #endif

    static inline uint64_t cyce_bits(double value)
    {
        uint64_t bits;
        memcpy(&bits, &value, sizeof bits);
        return bits;
    }

    static inline double cyce_from_bits(uint64_t bits)
    {
        double value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }

    static inline uint32_t cyce_float_bits(float value)
    {
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        return bits;
    }

    static inline float cyce_float_from_bits(uint32_t bits)
    {
        float value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }

    /* (float) value, without the microcode that CPUs need for a subnormal result: its bits are a number of
       2**-149, which adding 1.5 * 2**52 rounds to an integer. */
    static inline float cyce_to_float(double value)
    {
        const double tiny = fabs(value) < 0x1p-126 ? value : 0.0;
        const float normal = (float) (value - tiny);
        const double n = (fabs(tiny) * 0x1p149 + 6755399441055744.0) - 6755399441055744.0;
        int32_t bits;
        float result;
        memcpy(&bits, &normal, sizeof bits);
        bits |= (int32_t) n | (tiny < 0.0 ? INT32_MIN : 0);
        memcpy(&result, &bits, sizeof result);
        return result;
    }

    static inline double cyce_low_bits_as_power_double(double value)
    {
        return cyce_from_bits(cyce_bits(value) << 52);
    }

    static inline float cyce_low_bits_as_power_float(float value)
    {
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        bits <<= 23;
        memcpy(&value, &bits, sizeof value);
        return value;
    }

    /* Write one cache line past the caches, which need not read it first. The address is a multiple of 64. */
    #if defined(__AVX512F__)
    #include <immintrin.h>
    #define CYCE_STREAM_LINE(out, in) _mm512_stream_si512((void *) (out), _mm512_loadu_si512(in))
    #elif defined(__AVX__)
    #include <immintrin.h>
    #define CYCE_STREAM_LINE(out, in)                                                                    \\
        (_mm256_stream_si256((__m256i *) (out), _mm256_loadu_si256((const __m256i *) (in))),             \\
         _mm256_stream_si256((__m256i *) ((out) + 32), _mm256_loadu_si256((const __m256i *) ((in) + 32))))
    #elif defined(__SSE2__)
    #include <emmintrin.h>
    #define CYCE_STREAM_HALF(out, in)                                                                    \\
        (_mm_stream_si128((__m128i *) (out), _mm_loadu_si128((const __m128i *) (in))),                   \\
         _mm_stream_si128((__m128i *) ((out) + 16), _mm_loadu_si128((const __m128i *) ((in) + 16))))
    #define CYCE_STREAM_LINE(out, in)                                                                    \\
        (CYCE_STREAM_HALF(out, in), CYCE_STREAM_HALF((out) + 32, (in) + 32))
    #endif

    static inline void cyce_stream(void *to, const void *from, size_t n_bytes)
    {
    #ifdef CYCE_STREAM_LINE
        char *out = (char *) to;
        const char *in = (const char *) from;
        size_t head = (64 - (size_t) out % 64) % 64;
        head = head < n_bytes ? head : n_bytes;
        memcpy(out, in, head);
        for (out += head, in += head, n_bytes -= head; n_bytes >= 64; out += 64, in += 64, n_bytes -= 64)
            CYCE_STREAM_LINE(out, in);
        memcpy(out, in, n_bytes);
    #else
        memcpy(to, from, n_bytes);
    #endif
    }

    /* Order streamed stores before all later ones. */
    static inline void cyce_stream_end(void)
    {
    #ifdef CYCE_STREAM_LINE
        _mm_sfence();
    #endif
    }
    """
    # Kernels run with gradual underflow, rounding to nearest and no traps, whatever the caller has set
    # (torch.set_flush_denormal; new threads inherit it), and leave no flags behind.
    ctypedef struct cyce_environment:
        pass
    void cyce_enter(cyce_environment* found) noexcept
    void cyce_leave(const cyce_environment* found) noexcept
    float cyce_fma_float(float a, float b, float c) noexcept
    double cyce_fma_double(double a, double b, double c) noexcept
    double cyce_product_lost(double a, double b, double product) noexcept
    float cyce_low_bits_as_power_float(float value) noexcept
    double cyce_low_bits_as_power_double(double value) noexcept
    void cyce_prefetch(const void* address) noexcept
    void cyce_prefetch_to_l2(const void* address) noexcept
    float cyce_to_float(double value) noexcept
    uint64_t cyce_bits(double value) noexcept
    double cyce_from_bits(uint64_t bits) noexcept
    uint32_t cyce_float_bits(float value) noexcept
    float cyce_float_from_bits(uint32_t bits) noexcept
    void cyce_stream(void* to, const void* from_, size_t n_bytes) noexcept
    void cyce_stream_end() noexcept


cdef enum:
    CACHE_LINE = 64


cdef inline char* whole_line(char* memory) noexcept nogil:
    """The first cache line that begins there or behind it."""
    return memory + (CACHE_LINE - <size_t> memory % CACHE_LINE) % CACHE_LINE


cdef inline floating multiply_add(floating a, floating b, floating c) noexcept nogil:
    """a * b + c, rounded once where the level has the instruction."""
    if floating is float:
        return cyce_fma_float(a, b, c)
    else:
        return cyce_fma_double(a, b, c)


cdef inline floating low_bits_as_power(floating value) noexcept nogil:
    """2**(k - bias), where the last mantissa bits of value hold k, as after adding 1.5 * 2**23 (or 52)."""
    if floating is float:
        return cyce_low_bits_as_power_float(value)
    else:
        return cyce_low_bits_as_power_double(value)


cdef inline void prefetch(const char* start, Py_ssize_t n_bytes) noexcept nogil:
    """Have so many bytes fetched into the caches; beyond the end of an array, that does no harm."""
    cdef Py_ssize_t line
    for line in range(n_bytes // CACHE_LINE):
        cyce_prefetch(start + CACHE_LINE * line)
