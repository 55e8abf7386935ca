"""Half precision: float16 and bfloat16 to float, and back, rounded once.

To nearest, ties to even, subnormal numbers kept; what a half cannot hold becomes infinite, and NaN stays NaN,
quiet. Instructions (F16C) and integers give the same bits. The instructions for bfloat16 take subnormal
numbers for 0, so that they are not used.

Where the arithmetic is in double, values are rounded to float first, to odd: the last bit becomes 1 where
that was not exact, so that the second rounding is that of the value itself (S. Boldo, G. Melquiond,
"Emulation of FMA and correctly rounded sums", IEEE Trans. Comput. 57, 2008).
"""
from cython cimport floating

cdef extern from * nogil:
    """
    #include <math.h>
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>
    #if defined(__F16C__)
    #include <immintrin.h>
    #endif

    /* Types of their own, so that nothing takes one for the other, or for a number. */
    typedef struct { uint16_t bits; } cyce_float16;
    typedef struct { uint16_t bits; } cyce_bfloat16;

    static inline float cyce_from_float16(cyce_float16 half)
    {
        const uint32_t sign = (uint32_t) (half.bits & 0x8000) << 16;
        const uint32_t magnitude = (uint32_t) (half.bits & 0x7fff) << 13;
        /* The exponent's bias grows by 112, subnormal numbers become normal; both are exact. */
        const uint32_t finite = cyce_float_bits(cyce_float_from_bits(magnitude) * 0x1p112f);
        const uint32_t quiet = magnitude > 0x0f800000 ? 0x00400000 : 0;
        const uint32_t rest = magnitude | 0x70000000 | quiet;
        return cyce_float_from_bits(sign | (magnitude < 0x0f800000 ? finite : rest));
    }

    static inline cyce_float16 cyce_to_float16(float value)
    {
        const uint32_t bits = cyce_float_bits(value);
        const uint32_t magnitude = bits & 0x7fffffff;
        /* The carry of a rounding may go into the exponent, and on to infinity. */
        const uint32_t normal = (magnitude - 0x38000000 + 0x0fff + (magnitude >> 13 & 1)) >> 13;
        /* The last bit of 0.5 is that of the least half. */
        const uint32_t subnormal = cyce_float_bits(cyce_float_from_bits(magnitude) + 0.5f) - 0x3f000000;
        const uint32_t nan = 0x7e00 | (magnitude >> 13 & 0x03ff);
        uint32_t half = magnitude < 0x38800000 ? subnormal : normal;
        cyce_float16 result;
        half = magnitude >= 0x477ff000 ? 0x7c00 : half;
        half = magnitude > 0x7f800000 ? nan : half;
        result.bits = (uint16_t) ((bits >> 16 & 0x8000) | half);
        return result;
    }

    static inline float cyce_from_bfloat16(cyce_bfloat16 half)
    {
        return cyce_float_from_bits((uint32_t) half.bits << 16);
    }

    static inline cyce_bfloat16 cyce_to_bfloat16(float value)
    {
        const uint32_t bits = cyce_float_bits(value);
        const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        cyce_bfloat16 result;
        result.bits = (uint16_t) ((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x0040 : rounded);
        return result;
    }

    static inline float cyce_rounded_to_odd(double value)
    {
        const float nearest = (float) value;
        uint32_t bits = cyce_float_bits(nearest);
        bits -= fabs((double) nearest) > fabs(value);
        return cyce_float_from_bits((double) nearest == value ? bits : bits | 1);
    }

    /* Neighbours in memory. */
    #if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    #define CYCE_HALVES(name, from_halves, to_halves)                                                       \\
        static inline void cyce_load_##name(const cyce_##name *from, ptrdiff_t n, float *to)                \\
        {                                                                                                   \\
            for (; n > 0; from += 16, to += 16, n -= 16) {                                                  \\
                const __mmask16 some = n < 16 ? (__mmask16) ((1u << n) - 1) : 0xffff;                       \\
                const __m256i halves = _mm256_maskz_loadu_epi16(some, from);                                \\
                _mm512_mask_storeu_ps(to, some, from_halves(halves));                                       \\
            }                                                                                               \\
        }                                                                                                   \\
        static inline void cyce_store_##name(const float *from, ptrdiff_t n, cyce_##name *to)               \\
        {                                                                                                   \\
            for (; n > 0; from += 16, to += 16, n -= 16) {                                                  \\
                const __mmask16 some = n < 16 ? (__mmask16) ((1u << n) - 1) : 0xffff;                       \\
                const __m512 values = _mm512_maskz_loadu_ps(some, from);                                    \\
                _mm256_mask_storeu_epi16(to, some, to_halves(values));                                      \\
            }                                                                                               \\
        }
    #define CYCE_TO_FLOAT16(values) _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT)
    static inline __m512 cyce_from_bfloat16s(__m256i halves)
    {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
    }
    static inline __m256i cyce_to_bfloat16s(__m512 values)
    {
        const __m512i bits = _mm512_castps_si512(values);
        const __m512i high = _mm512_srli_epi32(bits, 16);
        const __m512i odd = _mm512_and_epi32(high, _mm512_set1_epi32(1));
        const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
        const __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
        const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
        return _mm512_cvtepi32_epi16(
            _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x0040)));
    }
    CYCE_HALVES(float16, _mm512_cvtph_ps, CYCE_TO_FLOAT16)
    CYCE_HALVES(bfloat16, cyce_from_bfloat16s, cyce_to_bfloat16s)
    #else
    /* By the instructions for eight float16, or loops that compilers turn into vectors. */
    #if defined(__F16C__)
    #define CYCE_EIGHT_FROM_FLOAT16(from, to)                                                               \\
        _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) (from))))
    #define CYCE_EIGHT_TO_FLOAT16(from, to)                                                                 \\
        _mm_storeu_si128((__m128i *) (to), _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT))
    static inline void cyce_load_float16(const cyce_float16 *from, ptrdiff_t n, float *to)
    {
        cyce_float16 last[8] = {{0}};
        float last_out[8];
        for (; n >= 8; from += 8, to += 8, n -= 8)
            CYCE_EIGHT_FROM_FLOAT16(from, to);
        if (n > 0) {
            memcpy(last, from, (size_t) n * sizeof *from);
            CYCE_EIGHT_FROM_FLOAT16(last, last_out);
            memcpy(to, last_out, (size_t) n * sizeof *to);
        }
    }
    static inline void cyce_store_float16(const float *from, ptrdiff_t n, cyce_float16 *to)
    {
        float last[8] = {0};
        cyce_float16 last_out[8];
        for (; n >= 8; from += 8, to += 8, n -= 8)
            CYCE_EIGHT_TO_FLOAT16(from, to);
        if (n > 0) {
            memcpy(last, from, (size_t) n * sizeof *from);
            CYCE_EIGHT_TO_FLOAT16(last, last_out);
            memcpy(to, last_out, (size_t) n * sizeof *to);
        }
    }
    #else
    static inline void cyce_load_float16(const cyce_float16 *from, ptrdiff_t n, float *to)
    {
        ptrdiff_t i;
        for (i = 0; i < n; i++)
            to[i] = cyce_from_float16(from[i]);
    }
    static inline void cyce_store_float16(const float *from, ptrdiff_t n, cyce_float16 *to)
    {
        ptrdiff_t i;
        for (i = 0; i < n; i++)
            to[i] = cyce_to_float16(from[i]);
    }
    #endif
    static inline void cyce_load_bfloat16(const cyce_bfloat16 *from, ptrdiff_t n, float *to)
    {
        ptrdiff_t i;
        for (i = 0; i < n; i++)
            to[i] = cyce_from_bfloat16(from[i]);
    }
    static inline void cyce_store_bfloat16(const float *from, ptrdiff_t n, cyce_bfloat16 *to)
    {
        ptrdiff_t i;
        for (i = 0; i < n; i++)
            to[i] = cyce_to_bfloat16(from[i]);
    }
    #endif
    """
    ctypedef struct float16 "cyce_float16":
        pass
    ctypedef struct bfloat16 "cyce_bfloat16":
        pass
    float cyce_from_float16(float16 half) noexcept
    float16 cyce_to_float16(float value) noexcept
    float cyce_from_bfloat16(bfloat16 half) noexcept
    bfloat16 cyce_to_bfloat16(float value) noexcept
    float cyce_rounded_to_odd(double value) noexcept
    void cyce_load_float16(const float16* from_, Py_ssize_t n, float* to) noexcept
    void cyce_store_float16(const float* from_, Py_ssize_t n, float16* to) noexcept
    void cyce_load_bfloat16(const bfloat16* from_, Py_ssize_t n, float* to) noexcept
    void cyce_store_bfloat16(const float* from_, Py_ssize_t n, bfloat16* to) noexcept


ctypedef fused stored:
    float
    double
    float16
    bfloat16


cdef inline floating from_stored(const stored* number, floating like) noexcept nogil:
    """A number in memory as one of the arithmetic."""
    if stored is float16:
        return cyce_from_float16(number[0])
    elif stored is bfloat16:
        return cyce_from_bfloat16(number[0])
    else:
        return <floating> number[0]


cdef inline float before_half(floating value) noexcept nogil:
    """What rounds to the same half as a value."""
    if floating is float:
        return value
    else:
        return cyce_rounded_to_odd(value)


cdef inline void to_stored(floating value, stored* number_out) noexcept nogil:
    """Write a number of the arithmetic to memory."""
    if stored is float16:
        number_out[0] = cyce_to_float16(before_half(value))
    elif stored is bfloat16:
        number_out[0] = cyce_to_bfloat16(before_half(value))
    else:
        number_out[0] = <stored> value
