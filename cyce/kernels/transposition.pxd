"""Transpositions, in registers: from rows of classes to classes of positions, and back.

Four rows at a time, and of floats up to 16 classes of each: loads are as wide as they can be, and shuffles
stay within 16 bytes, which is what they are fastest at.
"""
from cython cimport floating

cdef extern from * nogil:
    """
    #include <stddef.h>
    #include <stdint.h>

    /* Transpose four runs of four numbers, in registers if the compiler has shuffles. */
    #if defined(__has_builtin)
    #if __has_builtin(__builtin_shufflevector)
    #define CYCE_SHUFFLES 1
    #endif
    #endif
    #if defined(CYCE_SHUFFLES)
    #define CYCE_TRANSPOSE(name, type, size)                                                             \\
        static inline void name(const type *a, const type *b, const type *c, const type *d,              \\
                                type *w, type *x, type *y, type *z)                                      \\
        {                                                                                                \\
            typedef type vector __attribute__((vector_size(size), aligned(sizeof(type)), may_alias));    \\
            const vector r0 = *(const vector *) a, r1 = *(const vector *) b;                             \\
            const vector r2 = *(const vector *) c, r3 = *(const vector *) d;                             \\
            const vector low01 = __builtin_shufflevector(r0, r1, 0, 4, 1, 5);                            \\
            const vector low23 = __builtin_shufflevector(r2, r3, 0, 4, 1, 5);                            \\
            const vector high01 = __builtin_shufflevector(r0, r1, 2, 6, 3, 7);                           \\
            const vector high23 = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);                           \\
            *(vector *) w = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);                           \\
            *(vector *) x = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);                           \\
            *(vector *) y = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);                         \\
            *(vector *) z = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);                         \\
        }
    #else
    #define CYCE_TRANSPOSE(name, type, size)                                                             \\
        static inline void name(const type *a, const type *b, const type *c, const type *d,              \\
                                type *w, type *x, type *y, type *z)                                      \\
        {                                                                                                \\
            int k;                                                                                       \\
            for (k = 0; k < 4; k++) {                                                                    \\
                type *const out = k == 0 ? w : k == 1 ? x : k == 2 ? y : z;                              \\
                out[0] = a[k]; out[1] = b[k]; out[2] = c[k]; out[3] = d[k];                              \\
            }                                                                                            \\
        }
    #endif
    CYCE_TRANSPOSE(cyce_transpose_float, float, 16)
    CYCE_TRANSPOSE(cyce_transpose_double, double, 32)

    /* The same of four runs of 16 or 8 floats, which go to, or come from, places `step` apart. */
    #if defined(__AVX512F__) || defined(__AVX2__)
    #include <immintrin.h>
    #define CYCE_RUNS(n, vector, name)                                                                     \\
        static inline void cyce_pack##n(const float *a, const float *b, const float *c, const float *d,    \\
                                        float *out, ptrdiff_t step)                                        \\
        {                                                                                                  \\
            const vector r0 = name(loadu_ps)(a), r1 = name(loadu_ps)(b);                                   \\
            const vector r2 = name(loadu_ps)(c), r3 = name(loadu_ps)(d);                                   \\
            const vector low01 = name(unpacklo_ps)(r0, r1), low23 = name(unpacklo_ps)(r2, r3);             \\
            const vector high01 = name(unpackhi_ps)(r0, r1), high23 = name(unpackhi_ps)(r2, r3);           \\
            cyce_scatter##n(out, step, name(shuffle_ps)(low01, low23, 0x44));                              \\
            cyce_scatter##n(out + step, step, name(shuffle_ps)(low01, low23, 0xee));                       \\
            cyce_scatter##n(out + 2 * step, step, name(shuffle_ps)(high01, high23, 0x44));                 \\
            cyce_scatter##n(out + 3 * step, step, name(shuffle_ps)(high01, high23, 0xee));                 \\
        }                                                                                                  \\
        static inline void cyce_unpack##n(const float *from, ptrdiff_t step, float *a, float *b, float *c, \\
                                          float *d)                                                        \\
        {                                                                                                  \\
            const vector r0 = cyce_gather##n(from, step), r1 = cyce_gather##n(from + step, step);          \\
            const vector r2 = cyce_gather##n(from + 2 * step, step);                                       \\
            const vector r3 = cyce_gather##n(from + 3 * step, step);                                       \\
            const vector low01 = name(unpacklo_ps)(r0, r1), low23 = name(unpacklo_ps)(r2, r3);             \\
            const vector high01 = name(unpackhi_ps)(r0, r1), high23 = name(unpackhi_ps)(r2, r3);           \\
            name(storeu_ps)(a, name(shuffle_ps)(low01, low23, 0x44));                                      \\
            name(storeu_ps)(b, name(shuffle_ps)(low01, low23, 0xee));                                      \\
            name(storeu_ps)(c, name(shuffle_ps)(high01, high23, 0x44));                                    \\
            name(storeu_ps)(d, name(shuffle_ps)(high01, high23, 0xee));                                    \\
        }
    #define CYCE_256(name) _mm256_##name
    static inline void cyce_scatter8(float *out, ptrdiff_t step, __m256 a)
    {
        _mm_storeu_ps(out, _mm256_castps256_ps128(a));
        _mm_storeu_ps(out + 4 * step, _mm256_extractf128_ps(a, 1));
    }
    static inline __m256 cyce_gather8(const float *from, ptrdiff_t step)
    {
        const __m256 a = _mm256_castps128_ps256(_mm_loadu_ps(from));
        return _mm256_insertf128_ps(a, _mm_loadu_ps(from + 4 * step), 1);
    }
    CYCE_RUNS(8, __m256, CYCE_256)
    #define CYCE_PACKS_8 1
    #endif
    #if defined(__AVX512F__)
    #define CYCE_512(name) _mm512_##name
    static inline void cyce_scatter16(float *out, ptrdiff_t step, __m512 a)
    {
        _mm_storeu_ps(out, _mm512_castps512_ps128(a));
        _mm_storeu_ps(out + 4 * step, _mm512_extractf32x4_ps(a, 1));
        _mm_storeu_ps(out + 8 * step, _mm512_extractf32x4_ps(a, 2));
        _mm_storeu_ps(out + 12 * step, _mm512_extractf32x4_ps(a, 3));
    }
    static inline __m512 cyce_gather16(const float *from, ptrdiff_t step)
    {
        __m512 a = _mm512_castps128_ps512(_mm_loadu_ps(from));
        a = _mm512_insertf32x4(a, _mm_loadu_ps(from + 4 * step), 1);
        a = _mm512_insertf32x4(a, _mm_loadu_ps(from + 8 * step), 2);
        return _mm512_insertf32x4(a, _mm_loadu_ps(from + 12 * step), 3);
    }
    CYCE_RUNS(16, __m512, CYCE_512)
    #define CYCE_PACKS_16 1
    #endif
    #if !defined(CYCE_PACKS_8)
    #define CYCE_PACKS_8 0
    #define cyce_pack8(a, b, c, d, out, step) ((void) 0)
    #define cyce_unpack8(from, step, a, b, c, d) ((void) 0)
    #endif
    #if !defined(CYCE_PACKS_16)
    #define CYCE_PACKS_16 0
    #define cyce_pack16(a, b, c, d, out, step) ((void) 0)
    #define cyce_unpack16(from, step, a, b, c, d) ((void) 0)
    #endif
    """
    void cyce_transpose_float(
        const float* a, const float* b, const float* c, const float* d, float* w, float* x, float* y, float* z
    ) noexcept
    void cyce_transpose_double(
        const double* a, const double* b, const double* c, const double* d,
        double* w, double* x, double* y, double* z,
    ) noexcept
    const bint CYCE_PACKS_8
    const bint CYCE_PACKS_16
    void cyce_pack8(
        const float* a, const float* b, const float* c, const float* d, float* out, Py_ssize_t step
    ) noexcept
    void cyce_pack16(
        const float* a, const float* b, const float* c, const float* d, float* out, Py_ssize_t step
    ) noexcept
    void cyce_unpack8(
        const float* from_, Py_ssize_t step, float* a, float* b, float* c, float* d
    ) noexcept
    void cyce_unpack16(
        const float* from_, Py_ssize_t step, float* a, float* b, float* c, float* d
    ) noexcept


cdef inline void transpose(
    const floating* a, const floating* b, const floating* c, const floating* d,
    floating* w, floating* x, floating* y, floating* z,
) noexcept nogil:
    """Write the first, second, third and fourth elements of a, b, c and d to w, x, y and z."""
    if floating is float:
        cyce_transpose_float(a, b, c, d, w, x, y, z)
    else:
        cyce_transpose_double(a, b, c, d, w, x, y, z)


cdef inline void pack_rows(
    const floating* a, const floating* b, const floating* c, const floating* d, Py_ssize_t n,
    floating* out, Py_ssize_t step,
) noexcept nogil:
    """Write the first n elements of four rows, n at least 4, side by side: element i to out + i * step."""
    cdef Py_ssize_t i = 0
    if floating is float:
        while CYCE_PACKS_16 and i + 16 <= n:
            cyce_pack16(a + i, b + i, c + i, d + i, out + i * step, step)
            i += 16
        while CYCE_PACKS_8 and i + 8 <= n:
            cyce_pack8(a + i, b + i, c + i, d + i, out + i * step, step)
            i += 8
    while i < n:
        # The last four overlap with those before them.
        i = min(i, n - 4)
        transpose(
            a + i, b + i, c + i, d + i,
            out + i * step, out + (i + 1) * step, out + (i + 2) * step, out + (i + 3) * step,
        )
        i += 4


cdef inline void unpack_rows(
    const floating* packed, Py_ssize_t step, Py_ssize_t n, floating* a, floating* b, floating* c, floating* d
) noexcept nogil:
    """The way back: write the first n elements of four rows."""
    cdef Py_ssize_t i = 0
    if floating is float:
        while CYCE_PACKS_16 and i + 16 <= n:
            cyce_unpack16(packed + i * step, step, a + i, b + i, c + i, d + i)
            i += 16
        while CYCE_PACKS_8 and i + 8 <= n:
            cyce_unpack8(packed + i * step, step, a + i, b + i, c + i, d + i)
            i += 8
    while i < n:
        i = min(i, n - 4)
        transpose(
            packed + i * step, packed + (i + 1) * step, packed + (i + 2) * step, packed + (i + 3) * step,
            a + i, b + i, c + i, d + i,
        )
        i += 4
