"""Vectors of 16 floats, and their exponentials: for the loops that compilers do not turn into vectors well.

What is written with these types is one source for all levels, and each of the 16 lanes gives the same bits at
every level that has fused multiply-add. Intrinsics are used for AVX-512 and AVX2; elsewhere, `HAS_VECTORS` is
0 and a loop over 16 numbers stands in for each function, which is slower than scalar code (`exp_scaled`).
"""

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <string.h>

    #if defined(__AVX512F__)
    #include <immintrin.h>
    #define CYCE_HAS_VECTORS 1
    typedef __m512 cyce_vector;
    static inline cyce_vector cyce_v_load(const float *from) { return _mm512_loadu_ps(from); }
    static inline void cyce_v_store(float *to, cyce_vector a) { _mm512_storeu_ps(to, a); }
    static inline cyce_vector cyce_v_fill(float value) { return _mm512_set1_ps(value); }
    static inline cyce_vector cyce_v_subtract(cyce_vector a, cyce_vector b) { return _mm512_sub_ps(a, b); }
    static inline cyce_vector cyce_v_multiply(cyce_vector a, cyce_vector b) { return _mm512_mul_ps(a, b); }
    static inline cyce_vector cyce_v_multiply_add(cyce_vector a, cyce_vector b, cyce_vector c)
    {
        return _mm512_fmadd_ps(a, b, c);
    }
    /* a where it is the larger one, else b: also where one of them is NaN. */
    static inline cyce_vector cyce_v_larger(cyce_vector a, cyce_vector b) { return _mm512_max_ps(a, b); }
    static inline cyce_vector cyce_v_table_power(cyce_vector table, cyce_vector eighths)
    {
        const __m512i bits = _mm512_castps_si512(eighths);
        const __m512i entry = _mm512_castps_si512(_mm512_permutexvar_ps(bits, table));
        return _mm512_castsi512_ps(_mm512_add_epi32(entry, _mm512_slli_epi32(bits, 20)));
    }
    static inline float cyce_v_largest(cyce_vector a) { return _mm512_reduce_max_ps(a); }
    static inline int cyce_v_has(cyce_vector a, float value)
    {
        return _mm512_cmp_ps_mask(a, _mm512_set1_ps(value), _CMP_EQ_OQ) != 0;
    }
    static inline void cyce_v_sum_rows(const float *rows, ptrdiff_t n, double *total_out)
    {
        __m512d a = _mm512_setzero_pd(), b = a, c = a, d = a;
        const float *const end = rows + 16 * n;
        /* Unrolled, its loads would be moved to before all sums, and spilled. */
        _Pragma("GCC unroll 1")
        for (; rows < end; rows += 32) {
            a = _mm512_add_pd(a, _mm512_cvtps_pd(_mm256_loadu_ps(rows)));
            b = _mm512_add_pd(b, _mm512_cvtps_pd(_mm256_loadu_ps(rows + 8)));
            c = _mm512_add_pd(c, _mm512_cvtps_pd(_mm256_loadu_ps(rows + 16)));
            d = _mm512_add_pd(d, _mm512_cvtps_pd(_mm256_loadu_ps(rows + 24)));
        }
        _mm512_storeu_pd(total_out, _mm512_add_pd(a, c));
        _mm512_storeu_pd(total_out + 8, _mm512_add_pd(b, d));
    }

    static inline void cyce_v_sum_gaps(const float *masses, const float *logits, ptrdiff_t n, double top,
                                       float least, double *total_out)
    {
        const __m512d tops = _mm512_set1_pd(top);
        __m512d low = _mm512_setzero_pd(), high = low;
        const float *const end = masses + 16 * n;
        _Pragma("GCC unroll 1")
        for (; masses < end; masses += 16, logits += 16) {
            const __mmask16 counts = _mm512_cmp_ps_mask(
                _mm512_abs_ps(_mm512_loadu_ps(masses)), _mm512_set1_ps(least), _CMP_NLE_UQ);
            low = _mm512_mask3_fmadd_pd(
                _mm512_cvtps_pd(_mm256_loadu_ps(masses)),
                _mm512_sub_pd(tops, _mm512_cvtps_pd(_mm256_loadu_ps(logits))), low, (__mmask8) counts);
            high = _mm512_mask3_fmadd_pd(
                _mm512_cvtps_pd(_mm256_loadu_ps(masses + 8)),
                _mm512_sub_pd(tops, _mm512_cvtps_pd(_mm256_loadu_ps(logits + 8))), high,
                (__mmask8) (counts >> 8));
        }
        _mm512_storeu_pd(total_out, low);
        _mm512_storeu_pd(total_out + 8, high);
    }

    #elif defined(__AVX2__) && defined(__FMA__)
    #include <immintrin.h>
    #define CYCE_HAS_VECTORS 1
    typedef struct { __m256 low, high; } cyce_vector;
    #define CYCE_V_TWO(name, parameters, low_value, high_value)                                             \\
        static inline cyce_vector name parameters                                                           \\
        {                                                                                                   \\
            cyce_vector result;                                                                             \\
            result.low = low_value;                                                                         \\
            result.high = high_value;                                                                       \\
            return result;                                                                                  \\
        }
    CYCE_V_TWO(cyce_v_load, (const float *from), _mm256_loadu_ps(from), _mm256_loadu_ps(from + 8))
    static inline void cyce_v_store(float *to, cyce_vector a)
    {
        _mm256_storeu_ps(to, a.low);
        _mm256_storeu_ps(to + 8, a.high);
    }
    CYCE_V_TWO(cyce_v_fill, (float value), _mm256_set1_ps(value), _mm256_set1_ps(value))
    CYCE_V_TWO(cyce_v_subtract, (cyce_vector a, cyce_vector b), _mm256_sub_ps(a.low, b.low),
               _mm256_sub_ps(a.high, b.high))
    CYCE_V_TWO(cyce_v_multiply, (cyce_vector a, cyce_vector b), _mm256_mul_ps(a.low, b.low),
               _mm256_mul_ps(a.high, b.high))
    CYCE_V_TWO(cyce_v_multiply_add, (cyce_vector a, cyce_vector b, cyce_vector c),
               _mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high))
    CYCE_V_TWO(cyce_v_larger, (cyce_vector a, cyce_vector b), _mm256_max_ps(a.low, b.low),
               _mm256_max_ps(a.high, b.high))
    static inline __m256 cyce_v_table_power_of_8(__m256 table, __m256 eighths)
    {
        const __m256i bits = _mm256_castps_si256(eighths);
        const __m256i entry = _mm256_castps_si256(_mm256_permutevar8x32_ps(table, bits));
        return _mm256_castsi256_ps(_mm256_add_epi32(entry, _mm256_slli_epi32(bits, 20)));
    }
    CYCE_V_TWO(cyce_v_table_power, (cyce_vector table, cyce_vector eighths),
               cyce_v_table_power_of_8(table.low, eighths.low),
               cyce_v_table_power_of_8(table.low, eighths.high))
    static inline float cyce_v_largest(cyce_vector a)
    {
        const __m256 eight = _mm256_max_ps(a.low, a.high);
        const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
    }
    static inline int cyce_v_has(cyce_vector a, float value)
    {
        const __m256 wanted = _mm256_set1_ps(value);
        const __m256 low = _mm256_cmp_ps(a.low, wanted, _CMP_EQ_OQ);
        const __m256 high = _mm256_cmp_ps(a.high, wanted, _CMP_EQ_OQ);
        return _mm256_movemask_ps(_mm256_or_ps(low, high)) != 0;
    }
    static inline void cyce_v_sum_rows(const float *rows, ptrdiff_t n, double *total_out)
    {
        __m256d a = _mm256_setzero_pd(), b = a, c = a, d = a, e = a, f = a, g = a, h = a;
        const float *const end = rows + 16 * n;
        _Pragma("GCC unroll 1")
        for (; rows < end; rows += 32) {
            a = _mm256_add_pd(a, _mm256_cvtps_pd(_mm_loadu_ps(rows)));
            b = _mm256_add_pd(b, _mm256_cvtps_pd(_mm_loadu_ps(rows + 4)));
            c = _mm256_add_pd(c, _mm256_cvtps_pd(_mm_loadu_ps(rows + 8)));
            d = _mm256_add_pd(d, _mm256_cvtps_pd(_mm_loadu_ps(rows + 12)));
            e = _mm256_add_pd(e, _mm256_cvtps_pd(_mm_loadu_ps(rows + 16)));
            f = _mm256_add_pd(f, _mm256_cvtps_pd(_mm_loadu_ps(rows + 20)));
            g = _mm256_add_pd(g, _mm256_cvtps_pd(_mm_loadu_ps(rows + 24)));
            h = _mm256_add_pd(h, _mm256_cvtps_pd(_mm_loadu_ps(rows + 28)));
        }
        _mm256_storeu_pd(total_out, _mm256_add_pd(a, e));
        _mm256_storeu_pd(total_out + 4, _mm256_add_pd(b, f));
        _mm256_storeu_pd(total_out + 8, _mm256_add_pd(c, g));
        _mm256_storeu_pd(total_out + 12, _mm256_add_pd(d, h));
    }
    static inline __m256d cyce_v_add_gaps_of_4(const float *masses, const float *logits, __m256d tops,
                                               __m128 least, __m256d total)
    {
        const __m128 mass = _mm_loadu_ps(masses);
        const __m128 counts = _mm_cmp_ps(_mm_andnot_ps(_mm_set1_ps(-0.0f), mass), least, _CMP_NLE_UQ);
        const __m256d sum = _mm256_fmadd_pd(
            _mm256_cvtps_pd(mass), _mm256_sub_pd(tops, _mm256_cvtps_pd(_mm_loadu_ps(logits))), total);
        return _mm256_blendv_pd(
            total, sum, _mm256_castsi256_pd(_mm256_cvtepi32_epi64(_mm_castps_si128(counts))));
    }
    static inline void cyce_v_sum_gaps(const float *masses, const float *logits, ptrdiff_t n, double top,
                                       float least, double *total_out)
    {
        const __m256d tops = _mm256_set1_pd(top);
        const __m128 leasts = _mm_set1_ps(least);
        __m256d a = _mm256_setzero_pd(), b = a, c = a, d = a;
        const float *const end = masses + 16 * n;
        for (; masses < end; masses += 16, logits += 16) {
            a = cyce_v_add_gaps_of_4(masses, logits, tops, leasts, a);
            b = cyce_v_add_gaps_of_4(masses + 4, logits + 4, tops, leasts, b);
            c = cyce_v_add_gaps_of_4(masses + 8, logits + 8, tops, leasts, c);
            d = cyce_v_add_gaps_of_4(masses + 12, logits + 12, tops, leasts, d);
        }
        _mm256_storeu_pd(total_out, a);
        _mm256_storeu_pd(total_out + 4, b);
        _mm256_storeu_pd(total_out + 8, c);
        _mm256_storeu_pd(total_out + 12, d);
    }

    #else
    #define CYCE_HAS_VECTORS 0
    typedef struct { float lane[16]; } cyce_vector;
    #define CYCE_V_LOOP(name, parameters, value)                                                            \\
        static inline cyce_vector name parameters                                                           \\
        {                                                                                                   \\
            cyce_vector result;                                                                             \\
            int k;                                                                                          \\
            for (k = 0; k < 16; k++)                                                                        \\
                result.lane[k] = value;                                                                     \\
            return result;                                                                                  \\
        }
    CYCE_V_LOOP(cyce_v_load, (const float *from), from[k])
    static inline void cyce_v_store(float *to, cyce_vector a) { memcpy(to, a.lane, sizeof a.lane); }
    CYCE_V_LOOP(cyce_v_fill, (float value), value)
    CYCE_V_LOOP(cyce_v_subtract, (cyce_vector a, cyce_vector b), a.lane[k] - b.lane[k])
    CYCE_V_LOOP(cyce_v_multiply, (cyce_vector a, cyce_vector b), a.lane[k] * b.lane[k])
    CYCE_V_LOOP(cyce_v_multiply_add, (cyce_vector a, cyce_vector b, cyce_vector c),
                a.lane[k] * b.lane[k] + c.lane[k])
    CYCE_V_LOOP(cyce_v_larger, (cyce_vector a, cyce_vector b), a.lane[k] > b.lane[k] ? a.lane[k] : b.lane[k])
    static inline cyce_vector cyce_v_table_power(cyce_vector table, cyce_vector eighths)
    {
        cyce_vector result;
        uint32_t bits, entry;
        int k;
        for (k = 0; k < 16; k++) {
            memcpy(&bits, &eighths.lane[k], sizeof bits);
            memcpy(&entry, &table.lane[bits & 7], sizeof entry);
            entry += bits << 20;
            memcpy(&result.lane[k], &entry, sizeof entry);
        }
        return result;
    }
    static inline float cyce_v_largest(cyce_vector a)
    {
        float largest = a.lane[0];
        int k;
        for (k = 1; k < 16; k++)
            largest = a.lane[k] > largest ? a.lane[k] : largest;
        return largest;
    }
    static inline int cyce_v_has(cyce_vector a, float value)
    {
        int k, found = 0;
        for (k = 0; k < 16; k++)
            found |= a.lane[k] == value;
        return found;
    }
    static inline void cyce_v_sum_rows(const float *rows, ptrdiff_t n, double *total_out)
    {
        ptrdiff_t i;
        int k;
        for (k = 0; k < 16; k++)
            total_out[k] = 0;
        for (i = 0; i < n; i++)
            for (k = 0; k < 16; k++)
                total_out[k] += rows[16 * i + k];
    }
    static inline void cyce_v_sum_gaps(const float *masses, const float *logits, ptrdiff_t n, double top,
                                       float least, double *total_out)
    {
        ptrdiff_t i;
        int k;
        for (k = 0; k < 16; k++)
            total_out[k] = 0;
        for (i = 0; i < 16 * n; i++)
            if (!(masses[i] <= least && masses[i] >= -least))
                total_out[i % 16] += (double) masses[i] * (top - (double) logits[i]);
    }
    #endif
    """
    const bint HAS_VECTORS "CYCE_HAS_VECTORS"
    ctypedef struct vector "cyce_vector":
        pass
    vector load16 "cyce_v_load"(const float* start) noexcept
    void store16 "cyce_v_store"(float* start_out, vector a) noexcept
    vector fill16 "cyce_v_fill"(float value) noexcept
    vector subtract16 "cyce_v_subtract"(vector a, vector b) noexcept
    vector multiply16 "cyce_v_multiply"(vector a, vector b) noexcept
    vector multiply_add16 "cyce_v_multiply_add"(vector a, vector b, vector c) noexcept
    # a where a > b, else b; so b if one of them is NaN.
    vector larger16 "cyce_v_larger"(vector a, vector b) noexcept
    # See `exp_of_vector`.
    vector table_power16 "cyce_v_table_power"(vector table, vector eighths) noexcept
    # Of numbers of which none is NaN.
    float largest16 "cyce_v_largest"(vector a) noexcept
    # Whether one of the 16 equals a number.
    bint has16 "cyce_v_has"(vector a, float value) noexcept
    # Sums in double of the 16 columns of n rows, n even.
    void sum_rows16 "cyce_v_sum_rows"(const float* rows, Py_ssize_t n, double* total_out) noexcept
    # The same of mass * (top - logit), where the magnitude of the mass is more than `least`.
    void sum_gaps16 "cyce_v_sum_gaps"(
        const float* masses, const float* logits, Py_ssize_t n, double top, float least, double* total_out
    ) noexcept
