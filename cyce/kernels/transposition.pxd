"""Transpositions, in registers: from rows of classes to classes of positions, and back.

Four numbers of a row at a time. Of floats, as many rows at a time as a vector has lanes: classes are written
in whole vectors, and shuffles stay within 16 bytes, which is what they are fastest at.
"""
from cython cimport floating

cdef extern from * nogil:
    """
    #include <math.h>
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

    /* Pack n floats, at least 4, of as many rows as a vector has lanes: four floats of each at a time, put
       together as they are loaded, and taken apart as they are stored. */
    #if defined(__AVX512F__) || defined(__AVX2__)
    #include <immintrin.h>
    #endif
    #if defined(__AVX512F__)
    #define CYCE_ROWS 16
    #define CYCE_VECTOR(name) _mm512_##name
    #define CYCE_CHOOSE(a, b, c, d) _mm512_mask_mov_ps(d, _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), c)
    typedef __m512 cyce_rows;
    static inline cyce_rows cyce_quads(const float *from, const ptrdiff_t *at)
    {
        __m512 a = _mm512_castps128_ps512(_mm_loadu_ps(from + at[0]));
        a = _mm512_insertf32x4(a, _mm_loadu_ps(from + at[4]), 1);
        a = _mm512_insertf32x4(a, _mm_loadu_ps(from + at[8]), 2);
        return _mm512_insertf32x4(a, _mm_loadu_ps(from + at[12]), 3);
    }
    static inline void cyce_put_quads(float *to, const ptrdiff_t *at, cyce_rows a)
    {
        _mm_storeu_ps(to + at[0], _mm512_castps512_ps128(a));
        _mm_storeu_ps(to + at[4], _mm512_extractf32x4_ps(a, 1));
        _mm_storeu_ps(to + at[8], _mm512_extractf32x4_ps(a, 2));
        _mm_storeu_ps(to + at[12], _mm512_extractf32x4_ps(a, 3));
    }
    #elif defined(__AVX2__)
    #define CYCE_ROWS 8
    #define CYCE_VECTOR(name) _mm256_##name
    #define CYCE_CHOOSE(a, b, c, d) _mm256_blendv_ps(d, c, _mm256_cmp_ps(a, b, _CMP_EQ_OQ))
    typedef __m256 cyce_rows;
    static inline cyce_rows cyce_quads(const float *from, const ptrdiff_t *at)
    {
        const __m256 a = _mm256_castps128_ps256(_mm_loadu_ps(from + at[0]));
        return _mm256_insertf128_ps(a, _mm_loadu_ps(from + at[4]), 1);
    }
    static inline void cyce_put_quads(float *to, const ptrdiff_t *at, cyce_rows a)
    {
        _mm_storeu_ps(to + at[0], _mm256_castps256_ps128(a));
        _mm_storeu_ps(to + at[4], _mm256_extractf128_ps(a, 1));
    }
    #endif
    #if defined(CYCE_ROWS)
    /* Transpose each 4 x 4 of four vectors. */
    static inline void cyce_transpose_quads(cyce_rows *a, cyce_rows *b, cyce_rows *c, cyce_rows *d)
    {
        const cyce_rows low_ab = CYCE_VECTOR(unpacklo_ps)(*a, *b), low_cd = CYCE_VECTOR(unpacklo_ps)(*c, *d);
        const cyce_rows high_ab = CYCE_VECTOR(unpackhi_ps)(*a, *b);
        const cyce_rows high_cd = CYCE_VECTOR(unpackhi_ps)(*c, *d);
        *a = CYCE_VECTOR(shuffle_ps)(low_ab, low_cd, 0x44);
        *b = CYCE_VECTOR(shuffle_ps)(low_ab, low_cd, 0xee);
        *c = CYCE_VECTOR(shuffle_ps)(high_ab, high_cd, 0x44);
        *d = CYCE_VECTOR(shuffle_ps)(high_ab, high_cd, 0xee);
    }
    /* largest_out: the largest of each row, NaN being skipped; or NULL. */
    static inline void cyce_pack_quads(const float *start, const ptrdiff_t *at, ptrdiff_t n, float *out,
                                       ptrdiff_t step, float *largest_out)
    {
        cyce_rows even = CYCE_VECTOR(set1_ps)(-INFINITY), odd = even;
        ptrdiff_t i = 0;
        while (i < n) {
            /* The last four overlap with those before them. */
            i = i < n - 4 ? i : n - 4;
            cyce_rows a = cyce_quads(start + i, at), b = cyce_quads(start + i, at + 1);
            cyce_rows c = cyce_quads(start + i, at + 2), d = cyce_quads(start + i, at + 3);
            cyce_transpose_quads(&a, &b, &c, &d);
            CYCE_VECTOR(storeu_ps)(out + i * step, a);
            CYCE_VECTOR(storeu_ps)(out + (i + 1) * step, b);
            CYCE_VECTOR(storeu_ps)(out + (i + 2) * step, c);
            CYCE_VECTOR(storeu_ps)(out + (i + 3) * step, d);
            if (largest_out) {
                even = CYCE_VECTOR(max_ps)(c, CYCE_VECTOR(max_ps)(a, even));
                odd = CYCE_VECTOR(max_ps)(d, CYCE_VECTOR(max_ps)(b, odd));
            }
            i += 4;
        }
        if (largest_out)
            CYCE_VECTOR(storeu_ps)(largest_out, CYCE_VECTOR(max_ps)(even, odd));
    }
    /* Without factor, nothing changes: see `Changes`. */
    static inline cyce_rows cyce_changed(cyce_rows a, ptrdiff_t i, cyce_rows factor, cyce_rows number,
                                         cyce_rows replacement)
    {
        const cyce_rows column = CYCE_VECTOR(set1_ps)((float) i);
        const cyce_rows product = CYCE_VECTOR(mul_ps)(
            CYCE_VECTOR(mul_ps)(a, CYCE_VECTOR(set1_ps)(0x1p-64f)), factor);
        return CYCE_CHOOSE(number, column, replacement, product);
    }
    static inline void cyce_unpack_quads(const float *from, ptrdiff_t step, ptrdiff_t n, const float *factor,
                                         const float *number, const float *replacement, float *start,
                                         const ptrdiff_t *at)
    {
        cyce_rows factors, numbers, replacements;
        ptrdiff_t i = 0;
        if (factor) {
            factors = CYCE_VECTOR(loadu_ps)(factor);
            numbers = CYCE_VECTOR(loadu_ps)(number);
            replacements = CYCE_VECTOR(loadu_ps)(replacement);
        }
        while (i < n) {
            i = i < n - 4 ? i : n - 4;
            cyce_rows a = CYCE_VECTOR(loadu_ps)(from + i * step);
            cyce_rows b = CYCE_VECTOR(loadu_ps)(from + (i + 1) * step);
            cyce_rows c = CYCE_VECTOR(loadu_ps)(from + (i + 2) * step);
            cyce_rows d = CYCE_VECTOR(loadu_ps)(from + (i + 3) * step);
            if (factor) {
                a = cyce_changed(a, i, factors, numbers, replacements);
                b = cyce_changed(b, i + 1, factors, numbers, replacements);
                c = cyce_changed(c, i + 2, factors, numbers, replacements);
                d = cyce_changed(d, i + 3, factors, numbers, replacements);
            }
            cyce_transpose_quads(&a, &b, &c, &d);
            cyce_put_quads(start + i, at, a);
            cyce_put_quads(start + i, at + 1, b);
            cyce_put_quads(start + i, at + 2, c);
            cyce_put_quads(start + i, at + 3, d);
            i += 4;
        }
    }
    #else
    #define CYCE_ROWS 0
    #define cyce_pack_quads(start, at, n, out, step, largest_out) ((void) 0)
    #define cyce_unpack_quads(from, step, n, factor, number, replacement, start, at) ((void) 0)
    #endif
    """
    void cyce_transpose_float(
        const float* a, const float* b, const float* c, const float* d, float* w, float* x, float* y, float* z
    ) noexcept
    void cyce_transpose_double(
        const double* a, const double* b, const double* c, const double* d,
        double* w, double* x, double* y, double* z,
    ) noexcept
    # Rows that are packed at a time, 0 where there are no vectors for that.
    const Py_ssize_t CYCE_ROWS
    void cyce_pack_quads(
        const float* start, const Py_ssize_t* at, Py_ssize_t n, float* out, Py_ssize_t step,
        float* largest_out,
    ) noexcept
    void cyce_unpack_quads(
        const float* from_, Py_ssize_t step, Py_ssize_t n, const float* factor, const float* number,
        const float* replacement, float* start, const Py_ssize_t* at,
    ) noexcept


cdef struct Changes:
    # What is done to packed exponentials while they are unpacked: they lose their headroom, are multiplied by
    # a factor of their row, and one of each row is replaced.
    const float* factor
    const float* number             # of the element that is replaced, if there is such one
    const float* replacement


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
    const floating* start, const Py_ssize_t* at, Py_ssize_t n_rows, Py_ssize_t n, floating* out,
    Py_ssize_t step,
) noexcept nogil:
    """Write n elements, at least 4, of some rows, a multiple of four, side by side: i to out + i * step.

    at: where the rows begin, behind `start`.
    """
    cdef const floating* row
    cdef Py_ssize_t k = 0
    cdef Py_ssize_t i
    if floating is float:
        while CYCE_ROWS and k + CYCE_ROWS <= n_rows:
            cyce_pack_quads(start, at + k, n, out + k, step, <float*> NULL)
            k += CYCE_ROWS
    while k < n_rows:
        i = 0
        while i < n:
            # The last four overlap with those before them.
            i = min(i, n - 4)
            row = start + i
            transpose(
                row + at[k], row + at[k + 1], row + at[k + 2], row + at[k + 3],
                out + i * step + k, out + (i + 1) * step + k, out + (i + 2) * step + k,
                out + (i + 3) * step + k,
            )
            i += 4
        k += 4


cdef inline void pack_rows_with_maxima(
    const float* start, const Py_ssize_t* at, Py_ssize_t n_rows, Py_ssize_t n, float* out, Py_ssize_t step,
    float* largest_out,
) noexcept nogil:
    """`pack_rows` of a multiple of CYCE_ROWS; the largest of each row meanwhile, NaN being skipped."""
    cdef Py_ssize_t k = 0
    while CYCE_ROWS and k < n_rows:
        cyce_pack_quads(start, at + k, n, out + k, step, largest_out + k)
        k += CYCE_ROWS


cdef inline void unpack_rows(
    const floating* packed, Py_ssize_t step, Py_ssize_t n_rows, Py_ssize_t n, floating* start,
    const Py_ssize_t* at, const Changes* changes, Py_ssize_t first,
) noexcept nogil:
    """The way back: write n elements of some rows, from number `first` on of those that have changes, if any.

    With changes, these are a multiple of CYCE_ROWS, of floats.
    """
    cdef const floating* column
    cdef floating* row
    cdef Py_ssize_t k = 0
    cdef Py_ssize_t i
    if floating is float:
        while CYCE_ROWS and k + CYCE_ROWS <= n_rows:
            if changes != NULL:
                cyce_unpack_quads(
                    packed + k, step, n, changes.factor + first + k, changes.number + first + k,
                    changes.replacement + first + k, start, at + k,
                )
            else:
                cyce_unpack_quads(
                    packed + k, step, n, <float*> NULL, <float*> NULL, <float*> NULL, start, at + k
                )
            k += CYCE_ROWS
    while k < n_rows:
        i = 0
        while i < n:
            i = min(i, n - 4)
            column = packed + i * step + k
            row = start + i
            transpose(
                column, column + step, column + 2 * step, column + 3 * step,
                row + at[k], row + at[k + 1], row + at[k + 2], row + at[k + 3],
            )
            i += 4
        k += 4


cdef inline void pack_pairs(
    const float* rows, Py_ssize_t n_rows, float* out, Py_ssize_t step
) noexcept nogil:
    """Write the two elements of each of some neighbouring rows side by side."""
    cdef Py_ssize_t k
    # Compilers turn fixed strides into shuffles.
    for k in range(n_rows):
        out[k] = rows[2 * k]
        out[step + k] = rows[2 * k + 1]


cdef inline void unpack_pairs(
    const float* packed, Py_ssize_t step, Py_ssize_t n_rows, float* rows
) noexcept nogil:
    """The way back."""
    cdef Py_ssize_t k
    for k in range(n_rows):
        rows[2 * k] = packed[k]
        rows[2 * k + 1] = packed[step + k]
