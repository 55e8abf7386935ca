"""Vectors of 16 floats and of 8 doubles, for the loops that compilers do not turn into vectors well.

What is written with these types is one source for all levels, and each lane gives the same bits at every
level that has fused multiply-add. Intrinsics are used for AVX-512 and AVX2; elsewhere, `HAS_VECTORS` is 0 and
a loop over the lanes stands in for each function, which is slower than scalar code (`exp_scaled`).
"""

from libc.stdint cimport int32_t, int64_t, uint32_t


cdef extern from * nogil:
    """
    #include <math.h>
    #include <stdint.h>
    #include <string.h>

    /* Bits of sqrt(1/2), of 2**-126, of 1, and of the exponent. */
    #define CYCE_SQRT_HALF 0x3f3504f3
    #define CYCE_LEAST_NORMAL 0x00800000
    #define CYCE_ONE 0x3f800000
    #define CYCE_EXPONENT 0xff800000

    /* See pick16, below. */
    static inline void cyce_pick_each(const float *from, ptrdiff_t step, ptrdiff_t class_step,
                                      const int64_t *class_of, int64_t n_classes, int *n_picked,
                                      float *picked)
    {
        int k;
        for (k = 0; k < 16; k++) {
            const int is_class = (uint64_t) class_of[k] < (uint64_t) n_classes;
            picked[k] = is_class ? from[k * step + class_of[k] * class_step] : 0;
            *n_picked += is_class;
        }
    }

    #if defined(__AVX512F__)
    #include <immintrin.h>
    #define CYCE_HAS_VECTORS 1
    typedef __m512 cyce_floats;
    typedef __m512d cyce_doubles;
    #define CYCE_VECTORS(vector, name, number, p)                                                           \\
        static inline vector name##_load(const number *from) { return _mm512_loadu_##p(from); }             \\
        static inline void name##_store(number *to, vector a) { _mm512_storeu_##p(to, a); }                 \\
        static inline vector name##_fill(number value) { return _mm512_set1_##p(value); }                   \\
        static inline vector name##_sum(vector a, vector b) { return _mm512_add_##p(a, b); }                \\
        static inline vector name##_subtract(vector a, vector b) { return _mm512_sub_##p(a, b); }           \\
        static inline vector name##_multiply(vector a, vector b) { return _mm512_mul_##p(a, b); }           \\
        static inline vector name##_multiply_add(vector a, vector b, vector c)                              \\
        {                                                                                                   \\
            return _mm512_fmadd_##p(a, b, c);                                                               \\
        }                                                                                                   \\
        static inline vector name##_multiply_subtract(vector a, vector b, vector c)                         \\
        {                                                                                                   \\
            return _mm512_fmsub_##p(a, b, c);                                                               \\
        }                                                                                                   \\
        /* a where it is the larger one, else b: also where one of them is NaN. */                          \\
        static inline vector name##_larger(vector a, vector b) { return _mm512_max_##p(a, b); }             \\
        static inline vector name##_smaller(vector a, vector b) { return _mm512_min_##p(a, b); }            \\
        static inline number name##_largest(vector a) { return _mm512_reduce_max_##p(a); }                  \\
        static inline int name##_has(vector a, number value)                                                \\
        {                                                                                                   \\
            return _mm512_cmp_##p##_mask(a, _mm512_set1_##p(value), _CMP_EQ_OQ) != 0;                       \\
        }
    CYCE_VECTORS(cyce_floats, cyce_f, float, ps)
    CYCE_VECTORS(cyce_doubles, cyce_d, double, pd)
    static inline cyce_floats cyce_f_table_power(cyce_floats table, cyce_floats eighths)
    {
        const __m512i bits = _mm512_castps_si512(eighths);
        const __m512i entry = _mm512_castps_si512(_mm512_permutexvar_ps(bits, table));
        return _mm512_castsi512_ps(_mm512_add_epi32(entry, _mm512_slli_epi32(bits, 20)));
    }
    static inline cyce_floats cyce_f_look_up(const float *table, cyce_floats eighths)
    {
        return _mm512_permutexvar_ps(_mm512_castps_si512(eighths), _mm512_loadu_ps(table));
    }
    static inline cyce_floats cyce_f_split(cyce_floats a, const float *table, cyce_floats *power,
                                           cyce_floats *eighths)
    {
        const __m512i bits = _mm512_sub_epi32(_mm512_castps_si512(a), _mm512_set1_epi32(CYCE_SQRT_HALF));
        const __m512i exponent = _mm512_and_si512(bits, _mm512_set1_epi32(CYCE_EXPONENT));
        *power = _mm512_cvtepi32_ps(exponent);
        *eighths = _mm512_castsi512_ps(_mm512_srli_epi32(bits, 20));
        return _mm512_castsi512_ps(
            _mm512_sub_epi32(_mm512_castps_si512(cyce_f_look_up(table, *eighths)), exponent));
    }
    static inline cyce_floats cyce_f_scale_tiny(cyce_floats a, cyce_floats *power)
    {
        const __mmask16 tiny = _mm512_cmp_ps_mask(a, _mm512_set1_ps(0x1p-64f), _CMP_LT_OQ);
        *power = _mm512_maskz_mov_ps(tiny, _mm512_set1_ps(-0x1p29f));
        return _mm512_mask_fmadd_ps(a, tiny, _mm512_set1_ps(0x1p64f), _mm512_setzero_ps());
    }
    static inline int cyce_f_all_normal_below_one(cyce_floats a)
    {
        const __m512i above = _mm512_sub_epi32(_mm512_castps_si512(a), _mm512_set1_epi32(CYCE_LEAST_NORMAL));
        return _mm512_cmpge_epu32_mask(above, _mm512_set1_epi32(CYCE_ONE - CYCE_LEAST_NORMAL)) == 0;
    }
    static inline cyce_floats cyce_f_divide(cyce_floats a, cyce_floats b) { return _mm512_div_ps(a, b); }
    static inline cyce_floats cyce_f_minus_magnitude(cyce_floats a)
    {
        return _mm512_or_ps(a, _mm512_set1_ps(-0.0f));
    }
    static inline cyce_doubles cyce_d_table_power(const double *table, cyce_doubles eighths)
    {
        const __m512i bits = _mm512_castpd_si512(eighths);
        const __m512i entry = _mm512_castpd_si512(_mm512_permutexvar_pd(bits, _mm512_loadu_pd(table)));
        return _mm512_castsi512_pd(_mm512_add_epi64(entry, _mm512_slli_epi64(bits, 49)));
    }
    static inline cyce_doubles cyce_d_cut_off(cyce_doubles a, cyce_doubles t, cyce_doubles lowest)
    {
        return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(t, lowest, _CMP_NLT_UQ), a);
    }
    static inline cyce_doubles cyce_d_unless_equal(cyce_doubles a, cyce_doubles b, cyce_doubles c)
    {
        return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(b, c, _CMP_NEQ_UQ), a);
    }
    static inline cyce_doubles cyce_d_step(cyce_doubles a)
    {
        const __m512i negative = _mm512_srai_epi64(_mm512_castpd_si512(a), 63);
        return _mm512_castsi512_pd(
            _mm512_andnot_si512(negative, _mm512_castpd_si512(_mm512_set1_pd(1))));
    }
    static inline cyce_doubles cyce_d_times_sign(cyce_doubles a, cyce_doubles b)
    {
        return _mm512_xor_pd(a, _mm512_and_pd(b, _mm512_set1_pd(-0.0)));
    }
    static inline cyce_doubles cyce_d_widen(const float *from)
    {
        return _mm512_cvtps_pd(_mm256_loadu_ps(from));
    }
    static inline cyce_doubles cyce_d_widen_integers(const int32_t *from)
    {
        return _mm512_cvtepi32_pd(_mm256_loadu_si256((const __m256i *) from));
    }
    static inline void cyce_d_add(cyce_doubles *total, cyce_doubles *lost, cyce_doubles a)
    {
        const __m512d sum = _mm512_add_pd(*total, a);
        const __m512d added = _mm512_sub_pd(sum, _mm512_max_pd(*total, a));
        *lost = _mm512_add_pd(*lost, _mm512_sub_pd(_mm512_min_pd(*total, a), added));
        *total = sum;
    }
    static inline int cyce_f_n_above(cyce_floats a, cyce_floats b)
    {
        return _mm_popcnt_u32(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ));
    }
    static inline cyce_floats cyce_f_cut_off(cyce_floats a, cyce_floats t, cyce_floats lowest)
    {
        return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(t, lowest, _CMP_NLT_UQ), a);
    }
    static inline cyce_floats cyce_f_where_equal(cyce_floats a, cyce_floats b, cyce_floats c, cyce_floats d)
    {
        return _mm512_mask_mov_ps(d, _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), c);
    }
    static inline cyce_doubles cyce_f_low(cyce_floats a)
    {
        return _mm512_cvtps_pd(_mm512_castps512_ps256(a));
    }
    static inline cyce_doubles cyce_f_high(cyce_floats a)
    {
        return _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1));
    }
    static inline void cyce_f_sum_rows(const float *rows, ptrdiff_t n, double *total_out)
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

    static inline void cyce_f_sum_gaps(const float *masses, const float *logits, ptrdiff_t n, double top,
                                       double *total_out)
    {
        const __m512d tops = _mm512_set1_pd(top);
        __m512d low = _mm512_setzero_pd(), high = low;
        const float *const end = masses + 16 * n;
        _Pragma("GCC unroll 1")
        for (; masses < end; masses += 16, logits += 16) {
            const __mmask16 counts = _mm512_cmp_ps_mask(
                _mm512_loadu_ps(masses), _mm512_setzero_ps(), _CMP_NEQ_UQ);
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

    /* Sums in double of floats that are not negative. A float moved to where a double has its exponent and
       its mantissa is the double times 2**-896, and of 16, every other one takes one instruction, the others
       two: conversions take twice as many. Infinity and NaN become 2**-768 and more, which no sum of other
       numbers here is. */
    static inline __m512d cyce_f_even(__m512 a)
    {
        return _mm512_castsi512_pd(_mm512_mul_epu32(_mm512_castps_si512(a), _mm512_set1_epi64(1 << 29)));
    }
    static inline __m512d cyce_f_odd(__m512 a)
    {
        const __m512i moved = _mm512_srli_epi64(_mm512_castps_si512(a), 3);
        return _mm512_castsi512_pd(_mm512_and_si512(moved, _mm512_set1_epi64(INT64_C(0x1fffffffe0000000))));
    }
    static inline __m512d cyce_f_moved_back(__m512d sums)
    {
        const __mmask8 are_right = _mm512_cmp_pd_mask(sums, _mm512_set1_pd(0x1p-768), _CMP_LT_OQ);
        return _mm512_mask_mul_pd(_mm512_set1_pd(NAN), are_right, sums, _mm512_set1_pd(0x1p896));
    }
    static inline void cyce_f_store_sums(double *to, __m512d even, __m512d odd)
    {
        const __m512i low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
        const __m512i high = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
        const __m512d a = cyce_f_moved_back(even), b = cyce_f_moved_back(odd);
        _mm512_storeu_pd(to, _mm512_permutex2var_pd(a, low, b));
        _mm512_storeu_pd(to + 8, _mm512_permutex2var_pd(a, high, b));
    }
    typedef struct { __m512d even, odd; __m512 n; } cyce_f_column_sums;
    static inline void cyce_f_begin_columns(cyce_f_column_sums *sums)
    {
        sums->even = sums->odd = _mm512_setzero_pd();
        sums->n = _mm512_setzero_ps();
    }
    static inline void cyce_f_add_some(cyce_f_column_sums *sums, __m512 counted, __mmask16 counts)
    {
        sums->even = _mm512_add_pd(sums->even, cyce_f_even(counted));
        sums->odd = _mm512_add_pd(sums->odd, cyce_f_odd(counted));
        sums->n = _mm512_mask_add_ps(sums->n, counts, sums->n, _mm512_set1_ps(1));
    }
    static inline void cyce_f_add_columns(cyce_f_column_sums *sums, __m512 a, __m512 b, __m512 c)
    {
        const __mmask16 counts = _mm512_cmp_ps_mask(b, c, _CMP_NEQ_UQ);
        cyce_f_add_some(sums, _mm512_maskz_mov_ps(counts, a), counts);
    }
    static inline void cyce_f_add_columns_above(cyce_f_column_sums *sums, __m512 a, __m512 b, __m512 c,
                                                __m512 t, __m512 lowest)
    {
        const __mmask16 counts = _mm512_cmp_ps_mask(b, c, _CMP_NEQ_UQ);
        const __mmask16 are_above = _mm512_mask_cmp_ps_mask(counts, t, lowest, _CMP_NLT_UQ);
        cyce_f_add_some(sums, _mm512_maskz_mov_ps(are_above, a), counts);
    }
    static inline void cyce_f_end_columns(const cyce_f_column_sums *sums, double *total_out, float *n_out)
    {
        cyce_f_store_sums(total_out, sums->even, sums->odd);
        _mm512_storeu_ps(n_out, sums->n);
    }
    typedef struct { __m512d even[2], odd[2]; } cyce_f_row_sums;
    static inline void cyce_f_begin_rows(cyce_f_row_sums *sums)
    {
        sums->even[0] = sums->even[1] = sums->odd[0] = sums->odd[1] = _mm512_setzero_pd();
    }
    static inline void cyce_f_add_rows(cyce_f_row_sums *sums, __m512 first, __m512 second)
    {
        sums->even[0] = _mm512_add_pd(sums->even[0], cyce_f_even(first));
        sums->odd[0] = _mm512_add_pd(sums->odd[0], cyce_f_odd(first));
        sums->even[1] = _mm512_add_pd(sums->even[1], cyce_f_even(second));
        sums->odd[1] = _mm512_add_pd(sums->odd[1], cyce_f_odd(second));
    }
    static inline void cyce_f_end_rows(const cyce_f_row_sums *sums, const float *rows, ptrdiff_t n,
                                       double *total_out)
    {
        (void) rows, (void) n;
        cyce_f_store_sums(total_out, _mm512_add_pd(sums->even[0], sums->even[1]),
                          _mm512_add_pd(sums->odd[0], sums->odd[1]));
    }

    #define CYCE_GATHERS 1
    static inline cyce_floats cyce_f_pick(const float *from, ptrdiff_t step, ptrdiff_t class_step,
                                          const int64_t *class_of, int64_t n_classes, int *n_picked)
    {
        float picked[16];
        /* Where each number may be on another page, gathers take longer than loads. */
        if (step >= 256 || step <= -256) {
            cyce_pick_each(from, step, class_step, class_of, n_classes, n_picked, picked);
            return _mm512_loadu_ps(picked);
        } else {
            const __m512i first = _mm512_mullo_epi64(_mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0),
                                                     _mm512_set1_epi64(step));
            const __m512i classes = _mm512_set1_epi64(class_step);
            const __m512i low = _mm512_loadu_si512(class_of), high = _mm512_loadu_si512(class_of + 8);
            const __mmask8 low_is_class = _mm512_cmplt_epu64_mask(low, _mm512_set1_epi64(n_classes));
            const __mmask8 high_is_class = _mm512_cmplt_epu64_mask(high, _mm512_set1_epi64(n_classes));
            const __m256 low_picked = _mm512_mask_i64gather_ps(
                _mm256_setzero_ps(), low_is_class,
                _mm512_add_epi64(first, _mm512_mullo_epi64(classes, low)), from, sizeof *from);
            const __m256 high_picked = _mm512_mask_i64gather_ps(
                _mm256_setzero_ps(), high_is_class,
                _mm512_add_epi64(first, _mm512_mullo_epi64(classes, high)), from + 8 * step, sizeof *from);
            *n_picked += _mm_popcnt_u32((unsigned) low_is_class | (unsigned) high_is_class << 8);
            return _mm512_insertf32x8(_mm512_castps256_ps512(low_picked), high_picked, 1);
        }
    }

    #elif defined(__AVX2__) && defined(__FMA__)
    #include <immintrin.h>
    #define CYCE_HAS_VECTORS 1
    typedef struct { __m256 low, high; } cyce_floats;
    typedef struct { __m256d low, high; } cyce_doubles;
    /* A function of two halves. */
    #define CYCE_TWO(vector, name, parameters, low_value, high_value)                                       \\
        static inline vector name parameters                                                                \\
        {                                                                                                   \\
            vector result;                                                                                  \\
            result.low = low_value;                                                                         \\
            result.high = high_value;                                                                       \\
            return result;                                                                                  \\
        }
    #define CYCE_VECTORS(vector, name, number, n, p)                                                        \\
        CYCE_TWO(vector, name##_load, (const number *from), _mm256_loadu_##p(from),                         \\
                 _mm256_loadu_##p(from + n / 2))                                                            \\
        static inline void name##_store(number *to, vector a)                                               \\
        {                                                                                                   \\
            _mm256_storeu_##p(to, a.low);                                                                   \\
            _mm256_storeu_##p(to + n / 2, a.high);                                                          \\
        }                                                                                                   \\
        CYCE_TWO(vector, name##_fill, (number value), _mm256_set1_##p(value), _mm256_set1_##p(value))       \\
        CYCE_TWO(vector, name##_sum, (vector a, vector b), _mm256_add_##p(a.low, b.low),                    \\
                 _mm256_add_##p(a.high, b.high))                                                            \\
        CYCE_TWO(vector, name##_subtract, (vector a, vector b), _mm256_sub_##p(a.low, b.low),               \\
                 _mm256_sub_##p(a.high, b.high))                                                            \\
        CYCE_TWO(vector, name##_multiply, (vector a, vector b), _mm256_mul_##p(a.low, b.low),               \\
                 _mm256_mul_##p(a.high, b.high))                                                            \\
        CYCE_TWO(vector, name##_multiply_add, (vector a, vector b, vector c),                               \\
                 _mm256_fmadd_##p(a.low, b.low, c.low), _mm256_fmadd_##p(a.high, b.high, c.high))           \\
        CYCE_TWO(vector, name##_multiply_subtract, (vector a, vector b, vector c),                          \\
                 _mm256_fmsub_##p(a.low, b.low, c.low), _mm256_fmsub_##p(a.high, b.high, c.high))           \\
        CYCE_TWO(vector, name##_larger, (vector a, vector b), _mm256_max_##p(a.low, b.low),                 \\
                 _mm256_max_##p(a.high, b.high))                                                            \\
        CYCE_TWO(vector, name##_smaller, (vector a, vector b), _mm256_min_##p(a.low, b.low),                \\
                 _mm256_min_##p(a.high, b.high))                                                            \\
        static inline int name##_has(vector a, number value)                                                \\
        {                                                                                                   \\
            const vector wanted = name##_fill(value);                                                       \\
            return _mm256_movemask_##p(_mm256_or_##p(_mm256_cmp_##p(a.low, wanted.low, _CMP_EQ_OQ),         \\
                                                     _mm256_cmp_##p(a.high, wanted.high, _CMP_EQ_OQ)))      \\
                   != 0;                                                                                    \\
        }
    CYCE_VECTORS(cyce_floats, cyce_f, float, 16, ps)
    CYCE_VECTORS(cyce_doubles, cyce_d, double, 8, pd)
    static inline __m256 cyce_f_table_power_of_8(__m256 table, __m256 eighths)
    {
        const __m256i bits = _mm256_castps_si256(eighths);
        const __m256i entry = _mm256_castps_si256(_mm256_permutevar8x32_ps(table, bits));
        return _mm256_castsi256_ps(_mm256_add_epi32(entry, _mm256_slli_epi32(bits, 20)));
    }
    CYCE_TWO(cyce_floats, cyce_f_table_power, (cyce_floats table, cyce_floats eighths),
             cyce_f_table_power_of_8(table.low, eighths.low),
             cyce_f_table_power_of_8(table.low, eighths.high))
    static inline float cyce_f_largest(cyce_floats a)
    {
        const __m256 eight = _mm256_max_ps(a.low, a.high);
        const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
    }
    static inline double cyce_d_largest(cyce_doubles a)
    {
        const __m256d four = _mm256_max_pd(a.low, a.high);
        const __m128d two = _mm_max_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
        return _mm_cvtsd_f64(_mm_max_sd(two, _mm_unpackhi_pd(two, two)));
    }
    /* There is no look-up of doubles in a register: the halves of their bits are looked up. */
    static inline __m256d cyce_d_table_power_of_4(const double *table, __m256d eighths)
    {
        const __m256 first = _mm256_loadu_ps((const float *) table);
        const __m256 last = _mm256_loadu_ps((const float *) (table + 4));
        const __m256d lows = _mm256_castps_pd(_mm256_shuffle_ps(first, last, 0x88));
        const __m256d highs = _mm256_castps_pd(_mm256_shuffle_ps(first, last, 0xdd));
        const __m256i bits = _mm256_castpd_si256(eighths);
        const __m256i number = _mm256_shuffle_epi32(bits, 0xa0);
        const __m256i low = _mm256_permutevar8x32_epi32(
            _mm256_castpd_si256(_mm256_permute4x64_pd(lows, 0xd8)), number);
        const __m256i high = _mm256_permutevar8x32_epi32(
            _mm256_castpd_si256(_mm256_permute4x64_pd(highs, 0xd8)), number);
        const __m256i entry = _mm256_blend_epi32(low, high, 0xaa);
        return _mm256_castsi256_pd(_mm256_add_epi64(entry, _mm256_slli_epi64(bits, 49)));
    }
    CYCE_TWO(cyce_doubles, cyce_d_table_power, (const double *table, cyce_doubles eighths),
             cyce_d_table_power_of_4(table, eighths.low), cyce_d_table_power_of_4(table, eighths.high))
    CYCE_TWO(cyce_doubles, cyce_d_cut_off, (cyce_doubles a, cyce_doubles t, cyce_doubles lowest),
             _mm256_and_pd(a.low, _mm256_cmp_pd(t.low, lowest.low, _CMP_NLT_UQ)),
             _mm256_and_pd(a.high, _mm256_cmp_pd(t.high, lowest.high, _CMP_NLT_UQ)))
    CYCE_TWO(cyce_doubles, cyce_d_unless_equal, (cyce_doubles a, cyce_doubles b, cyce_doubles c),
             _mm256_and_pd(a.low, _mm256_cmp_pd(b.low, c.low, _CMP_NEQ_UQ)),
             _mm256_and_pd(a.high, _mm256_cmp_pd(b.high, c.high, _CMP_NEQ_UQ)))
    CYCE_TWO(cyce_floats, cyce_f_look_up, (const float *table, cyce_floats eighths),
             _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), _mm256_castps_si256(eighths.low)),
             _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), _mm256_castps_si256(eighths.high)))
    static inline __m256 cyce_f_split_8(__m256 a, const float *table, __m256 *power, __m256 *eighths)
    {
        const __m256i bits = _mm256_sub_epi32(_mm256_castps_si256(a), _mm256_set1_epi32(CYCE_SQRT_HALF));
        const __m256i exponent = _mm256_and_si256(bits, _mm256_set1_epi32(CYCE_EXPONENT));
        const __m256i number = _mm256_srli_epi32(bits, 20);
        const __m256 inverse = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), number);
        *power = _mm256_cvtepi32_ps(exponent);
        *eighths = _mm256_castsi256_ps(number);
        return _mm256_castsi256_ps(_mm256_sub_epi32(_mm256_castps_si256(inverse), exponent));
    }
    static inline cyce_floats cyce_f_split(cyce_floats a, const float *table, cyce_floats *power,
                                           cyce_floats *eighths)
    {
        cyce_floats units;
        units.low = cyce_f_split_8(a.low, table, &power->low, &eighths->low);
        units.high = cyce_f_split_8(a.high, table, &power->high, &eighths->high);
        return units;
    }
    static inline __m256 cyce_f_scale_tiny_8(__m256 a, __m256 *power)
    {
        const __m256 tiny = _mm256_cmp_ps(a, _mm256_set1_ps(0x1p-64f), _CMP_LT_OQ);
        const __m256 scaled = _mm256_fmadd_ps(a, _mm256_set1_ps(0x1p64f), _mm256_setzero_ps());
        *power = _mm256_and_ps(tiny, _mm256_set1_ps(-0x1p29f));
        return _mm256_blendv_ps(a, scaled, tiny);
    }
    static inline cyce_floats cyce_f_scale_tiny(cyce_floats a, cyce_floats *power)
    {
        cyce_floats result;
        result.low = cyce_f_scale_tiny_8(a.low, &power->low);
        result.high = cyce_f_scale_tiny_8(a.high, &power->high);
        return result;
    }
    static inline int cyce_f_all_normal_below_one(cyce_floats a)
    {
        const __m256i least = _mm256_set1_epi32(CYCE_LEAST_NORMAL);
        const __m256i highest = _mm256_max_epu32(_mm256_sub_epi32(_mm256_castps_si256(a.low), least),
                                                 _mm256_sub_epi32(_mm256_castps_si256(a.high), least));
        const __m256i limit = _mm256_set1_epi32(CYCE_ONE - CYCE_LEAST_NORMAL);
        const __m256i are_outside = _mm256_cmpeq_epi32(_mm256_max_epu32(highest, limit), highest);
        return _mm256_testz_si256(are_outside, are_outside);
    }
    CYCE_TWO(cyce_floats, cyce_f_divide, (cyce_floats a, cyce_floats b), _mm256_div_ps(a.low, b.low),
             _mm256_div_ps(a.high, b.high))
    CYCE_TWO(cyce_floats, cyce_f_minus_magnitude, (cyce_floats a),
             _mm256_or_ps(a.low, _mm256_set1_ps(-0.0f)), _mm256_or_ps(a.high, _mm256_set1_ps(-0.0f)))
    /* Chosen by the sign. */
    CYCE_TWO(cyce_doubles, cyce_d_step, (cyce_doubles a),
             _mm256_blendv_pd(_mm256_set1_pd(1), _mm256_setzero_pd(), a.low),
             _mm256_blendv_pd(_mm256_set1_pd(1), _mm256_setzero_pd(), a.high))
    CYCE_TWO(cyce_doubles, cyce_d_times_sign, (cyce_doubles a, cyce_doubles b),
             _mm256_xor_pd(a.low, _mm256_and_pd(b.low, _mm256_set1_pd(-0.0))),
             _mm256_xor_pd(a.high, _mm256_and_pd(b.high, _mm256_set1_pd(-0.0))))
    CYCE_TWO(cyce_doubles, cyce_d_widen, (const float *from), _mm256_cvtps_pd(_mm_loadu_ps(from)),
             _mm256_cvtps_pd(_mm_loadu_ps(from + 4)))
    CYCE_TWO(cyce_doubles, cyce_d_widen_integers, (const int32_t *from),
             _mm256_cvtepi32_pd(_mm_loadu_si128((const __m128i *) from)),
             _mm256_cvtepi32_pd(_mm_loadu_si128((const __m128i *) (from + 4))))
    static inline void cyce_d_add_4(__m256d *total, __m256d *lost, __m256d a)
    {
        const __m256d sum = _mm256_add_pd(*total, a);
        const __m256d added = _mm256_sub_pd(sum, _mm256_max_pd(*total, a));
        *lost = _mm256_add_pd(*lost, _mm256_sub_pd(_mm256_min_pd(*total, a), added));
        *total = sum;
    }
    static inline void cyce_d_add(cyce_doubles *total, cyce_doubles *lost, cyce_doubles a)
    {
        cyce_d_add_4(&total->low, &lost->low, a.low);
        cyce_d_add_4(&total->high, &lost->high, a.high);
    }
    static inline int cyce_f_n_above(cyce_floats a, cyce_floats b)
    {
        const int low = _mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_GT_OQ));
        const int high = _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_GT_OQ));
        return _mm_popcnt_u32((unsigned) low << 8 | (unsigned) high);
    }
    CYCE_TWO(cyce_floats, cyce_f_cut_off, (cyce_floats a, cyce_floats t, cyce_floats lowest),
             _mm256_and_ps(a.low, _mm256_cmp_ps(t.low, lowest.low, _CMP_NLT_UQ)),
             _mm256_and_ps(a.high, _mm256_cmp_ps(t.high, lowest.high, _CMP_NLT_UQ)))
    CYCE_TWO(cyce_floats, cyce_f_unless_equal, (cyce_floats a, cyce_floats b, cyce_floats c),
             _mm256_and_ps(a.low, _mm256_cmp_ps(b.low, c.low, _CMP_NEQ_UQ)),
             _mm256_and_ps(a.high, _mm256_cmp_ps(b.high, c.high, _CMP_NEQ_UQ)))
    CYCE_TWO(cyce_doubles, cyce_f_low, (cyce_floats a), _mm256_cvtps_pd(_mm256_castps256_ps128(a.low)),
             _mm256_cvtps_pd(_mm256_extractf128_ps(a.low, 1)))
    CYCE_TWO(cyce_doubles, cyce_f_high, (cyce_floats a), _mm256_cvtps_pd(_mm256_castps256_ps128(a.high)),
             _mm256_cvtps_pd(_mm256_extractf128_ps(a.high, 1)))
    CYCE_TWO(cyce_floats, cyce_f_where_equal, (cyce_floats a, cyce_floats b, cyce_floats c, cyce_floats d),
             _mm256_blendv_ps(d.low, c.low, _mm256_cmp_ps(a.low, b.low, _CMP_EQ_OQ)),
             _mm256_blendv_ps(d.high, c.high, _mm256_cmp_ps(a.high, b.high, _CMP_EQ_OQ)))
    static inline void cyce_f_sum_rows(const float *rows, ptrdiff_t n, double *total_out)
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
    static inline __m256d cyce_f_add_gaps_of_4(const float *masses, const float *logits, __m256d tops,
                                               __m256d total)
    {
        const __m128 mass = _mm_loadu_ps(masses);
        const __m128 counts = _mm_cmp_ps(mass, _mm_setzero_ps(), _CMP_NEQ_UQ);
        const __m256d sum = _mm256_fmadd_pd(
            _mm256_cvtps_pd(mass), _mm256_sub_pd(tops, _mm256_cvtps_pd(_mm_loadu_ps(logits))), total);
        return _mm256_blendv_pd(
            total, sum, _mm256_castsi256_pd(_mm256_cvtepi32_epi64(_mm_castps_si128(counts))));
    }
    static inline void cyce_f_sum_gaps(const float *masses, const float *logits, ptrdiff_t n, double top,
                                       double *total_out)
    {
        const __m256d tops = _mm256_set1_pd(top);
        __m256d a = _mm256_setzero_pd(), b = a, c = a, d = a;
        const float *const end = masses + 16 * n;
        for (; masses < end; masses += 16, logits += 16) {
            a = cyce_f_add_gaps_of_4(masses, logits, tops, a);
            b = cyce_f_add_gaps_of_4(masses + 4, logits + 4, tops, b);
            c = cyce_f_add_gaps_of_4(masses + 8, logits + 8, tops, c);
            d = cyce_f_add_gaps_of_4(masses + 12, logits + 12, tops, d);
        }
        _mm256_storeu_pd(total_out, a);
        _mm256_storeu_pd(total_out + 4, b);
        _mm256_storeu_pd(total_out + 8, c);
        _mm256_storeu_pd(total_out + 12, d);
    }

    #else
    #define CYCE_HAS_VECTORS 0
    typedef struct { float lane[16]; } cyce_floats;
    typedef struct { double lane[8]; } cyce_doubles;
    #define CYCE_LANES(vector, name, n, parameters, value)                                                  \\
        static inline vector name parameters                                                                \\
        {                                                                                                   \\
            vector result;                                                                                  \\
            int k;                                                                                          \\
            for (k = 0; k < n; k++)                                                                         \\
                result.lane[k] = value;                                                                     \\
            return result;                                                                                  \\
        }
    #define CYCE_VECTORS(vector, name, number, n)                                                           \\
        CYCE_LANES(vector, name##_load, n, (const number *from), from[k])                                   \\
        static inline void name##_store(number *to, vector a) { memcpy(to, a.lane, sizeof a.lane); }        \\
        CYCE_LANES(vector, name##_fill, n, (number value), value)                                           \\
        CYCE_LANES(vector, name##_sum, n, (vector a, vector b), a.lane[k] + b.lane[k])                      \\
        CYCE_LANES(vector, name##_subtract, n, (vector a, vector b), a.lane[k] - b.lane[k])                 \\
        CYCE_LANES(vector, name##_multiply, n, (vector a, vector b), a.lane[k] * b.lane[k])                 \\
        CYCE_LANES(vector, name##_multiply_add, n, (vector a, vector b, vector c),                          \\
                   a.lane[k] * b.lane[k] + c.lane[k])                                                       \\
        CYCE_LANES(vector, name##_multiply_subtract, n, (vector a, vector b, vector c),                     \\
                   a.lane[k] * b.lane[k] - c.lane[k])                                                       \\
        CYCE_LANES(vector, name##_larger, n, (vector a, vector b),                                          \\
                   a.lane[k] > b.lane[k] ? a.lane[k] : b.lane[k])                                           \\
        CYCE_LANES(vector, name##_smaller, n, (vector a, vector b),                                         \\
                   a.lane[k] < b.lane[k] ? a.lane[k] : b.lane[k])                                           \\
        static inline number name##_largest(vector a)                                                       \\
        {                                                                                                   \\
            number largest = a.lane[0];                                                                     \\
            int k;                                                                                          \\
            for (k = 1; k < n; k++)                                                                         \\
                largest = a.lane[k] > largest ? a.lane[k] : largest;                                        \\
            return largest;                                                                                 \\
        }                                                                                                   \\
        static inline int name##_has(vector a, number value)                                                \\
        {                                                                                                   \\
            int k, found = 0;                                                                               \\
            for (k = 0; k < n; k++)                                                                         \\
                found |= a.lane[k] == value;                                                                \\
            return found;                                                                                   \\
        }
    CYCE_VECTORS(cyce_floats, cyce_f, float, 16)
    CYCE_VECTORS(cyce_doubles, cyce_d, double, 8)
    static inline cyce_floats cyce_f_table_power(cyce_floats table, cyce_floats eighths)
    {
        cyce_floats result;
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
    static inline cyce_doubles cyce_d_table_power(const double *table, cyce_doubles eighths)
    {
        cyce_doubles result;
        uint64_t bits, entry;
        int k;
        for (k = 0; k < 8; k++) {
            memcpy(&bits, &eighths.lane[k], sizeof bits);
            memcpy(&entry, &table[bits & 7], sizeof entry);
            entry += bits << 49;
            memcpy(&result.lane[k], &entry, sizeof entry);
        }
        return result;
    }
    CYCE_LANES(cyce_doubles, cyce_d_cut_off, 8, (cyce_doubles a, cyce_doubles t, cyce_doubles lowest),
               t.lane[k] < lowest.lane[k] ? 0 : a.lane[k])
    CYCE_LANES(cyce_doubles, cyce_d_unless_equal, 8, (cyce_doubles a, cyce_doubles b, cyce_doubles c),
               b.lane[k] != c.lane[k] ? a.lane[k] : 0)
    static inline uint32_t cyce_bits_of_lane(cyce_floats a, int k)
    {
        uint32_t bits;
        memcpy(&bits, &a.lane[k], sizeof bits);
        return bits;
    }
    CYCE_LANES(cyce_floats, cyce_f_look_up, 16, (const float *table, cyce_floats eighths),
               table[cyce_bits_of_lane(eighths, k) & 7])
    static inline cyce_floats cyce_f_split(cyce_floats a, const float *table, cyce_floats *power,
                                           cyce_floats *eighths)
    {
        cyce_floats units;
        int k;
        for (k = 0; k < 16; k++) {
            const uint32_t bits = cyce_bits_of_lane(a, k) - CYCE_SQRT_HALF;
            const uint32_t exponent = bits & CYCE_EXPONENT, number = bits >> 20;
            uint32_t unit;
            memcpy(&unit, &table[number & 7], sizeof unit);
            unit -= exponent;
            power->lane[k] = (float) (int32_t) exponent;
            memcpy(&eighths->lane[k], &number, sizeof number);
            memcpy(&units.lane[k], &unit, sizeof unit);
        }
        return units;
    }
    static inline cyce_floats cyce_f_scale_tiny(cyce_floats a, cyce_floats *power)
    {
        cyce_floats result;
        int k;
        for (k = 0; k < 16; k++) {
            const int tiny = a.lane[k] < 0x1p-64f;
            power->lane[k] = tiny ? -0x1p29f : 0;
            result.lane[k] = tiny ? a.lane[k] * 0x1p64f + 0 : a.lane[k];
        }
        return result;
    }
    static inline int cyce_f_all_normal_below_one(cyce_floats a)
    {
        int k, n = 0;
        for (k = 0; k < 16; k++)
            n += cyce_bits_of_lane(a, k) - CYCE_LEAST_NORMAL < CYCE_ONE - CYCE_LEAST_NORMAL;
        return n == 16;
    }
    CYCE_LANES(cyce_floats, cyce_f_divide, 16, (cyce_floats a, cyce_floats b), a.lane[k] / b.lane[k])
    CYCE_LANES(cyce_floats, cyce_f_minus_magnitude, 16, (cyce_floats a), -fabsf(a.lane[k]))
    CYCE_LANES(cyce_doubles, cyce_d_step, 8, (cyce_doubles a), signbit(a.lane[k]) ? 0 : 1)
    CYCE_LANES(cyce_doubles, cyce_d_times_sign, 8, (cyce_doubles a, cyce_doubles b),
               signbit(b.lane[k]) ? -a.lane[k] : a.lane[k])
    CYCE_LANES(cyce_doubles, cyce_d_widen, 8, (const float *from), from[k])
    CYCE_LANES(cyce_doubles, cyce_d_widen_integers, 8, (const int32_t *from), from[k])
    static inline void cyce_d_add(cyce_doubles *total, cyce_doubles *lost, cyce_doubles a)
    {
        int k;
        for (k = 0; k < 8; k++) {
            const double before = total->lane[k], value = a.lane[k], sum = before + value;
            const double high = before > value ? before : value, low = before < value ? before : value;
            lost->lane[k] += low - (sum - high);
            total->lane[k] = sum;
        }
    }
    static inline int cyce_f_n_above(cyce_floats a, cyce_floats b)
    {
        int k, n = 0;
        for (k = 0; k < 16; k++)
            n += a.lane[k] > b.lane[k];
        return n;
    }
    CYCE_LANES(cyce_floats, cyce_f_cut_off, 16, (cyce_floats a, cyce_floats t, cyce_floats lowest),
               t.lane[k] < lowest.lane[k] ? 0 : a.lane[k])
    CYCE_LANES(cyce_floats, cyce_f_unless_equal, 16, (cyce_floats a, cyce_floats b, cyce_floats c),
               b.lane[k] != c.lane[k] ? a.lane[k] : 0)
    CYCE_LANES(cyce_floats, cyce_f_where_equal, 16,
               (cyce_floats a, cyce_floats b, cyce_floats c, cyce_floats d),
               a.lane[k] == b.lane[k] ? c.lane[k] : d.lane[k])
    CYCE_LANES(cyce_doubles, cyce_f_low, 8, (cyce_floats a), a.lane[k])
    CYCE_LANES(cyce_doubles, cyce_f_high, 8, (cyce_floats a), a.lane[k + 8])
    static inline void cyce_f_sum_rows(const float *rows, ptrdiff_t n, double *total_out)
    {
        ptrdiff_t i;
        int k;
        for (k = 0; k < 16; k++)
            total_out[k] = 0;
        for (i = 0; i < n; i++)
            for (k = 0; k < 16; k++)
                total_out[k] += rows[16 * i + k];
    }
    static inline void cyce_f_sum_gaps(const float *masses, const float *logits, ptrdiff_t n, double top,
                                       double *total_out)
    {
        ptrdiff_t i;
        int k;
        for (k = 0; k < 16; k++)
            total_out[k] = 0;
        for (i = 0; i < 16 * n; i++)
            if (masses[i] != 0)
                total_out[i % 16] += (double) masses[i] * (top - (double) logits[i]);
    }
    #endif

    #if !defined(__AVX512F__)
    /* Gathers of AVX2 are no faster than loads. */
    #define CYCE_GATHERS 0
    static inline cyce_floats cyce_f_pick(const float *from, ptrdiff_t step, ptrdiff_t class_step,
                                          const int64_t *class_of, int64_t n_classes, int *n_picked)
    {
        float picked[16];
        cyce_pick_each(from, step, class_step, class_of, n_classes, n_picked, picked);
        return cyce_f_load(picked);
    }
    typedef struct { cyce_doubles low, high; cyce_floats n; } cyce_f_column_sums;
    static inline void cyce_f_begin_columns(cyce_f_column_sums *sums)
    {
        sums->low = sums->high = cyce_d_fill(0);
        sums->n = cyce_f_fill(0);
    }
    static inline void cyce_f_add_columns(cyce_f_column_sums *sums, cyce_floats a, cyce_floats b,
                                          cyce_floats c)
    {
        const cyce_floats counted = cyce_f_unless_equal(a, b, c);
        sums->low = cyce_d_sum(sums->low, cyce_f_low(counted));
        sums->high = cyce_d_sum(sums->high, cyce_f_high(counted));
        sums->n = cyce_f_sum(sums->n, cyce_f_unless_equal(cyce_f_fill(1), b, c));
    }
    static inline void cyce_f_add_columns_above(cyce_f_column_sums *sums, cyce_floats a, cyce_floats b,
                                                cyce_floats c, cyce_floats t, cyce_floats lowest)
    {
        cyce_f_add_columns(sums, cyce_f_cut_off(a, t, lowest), b, c);
    }
    static inline void cyce_f_end_columns(const cyce_f_column_sums *sums, double *total_out, float *n_out)
    {
        cyce_d_store(total_out, sums->low);
        cyce_d_store(total_out + 8, sums->high);
        cyce_f_store(n_out, sums->n);
    }
    /* There are not enough registers for sums besides what is added up: that comes last, from memory. */
    typedef struct { char nothing; } cyce_f_row_sums;
    static inline void cyce_f_begin_rows(cyce_f_row_sums *sums) { (void) sums; }
    static inline void cyce_f_add_rows(cyce_f_row_sums *sums, cyce_floats first, cyce_floats second)
    {
        (void) sums, (void) first, (void) second;
    }
    static inline void cyce_f_end_rows(const cyce_f_row_sums *sums, const float *rows, ptrdiff_t n,
                                       double *total_out)
    {
        (void) sums;
        cyce_f_sum_rows(rows, n, total_out);
    }
    #endif
    """
    const bint HAS_VECTORS "CYCE_HAS_VECTORS"
    # Whether `pick16` takes less time than looking up one number after the other.
    const bint HAS_GATHERS "CYCE_GATHERS"
    const uint32_t SQRT_HALF_BITS "((uint32_t) CYCE_SQRT_HALF)"
    const uint32_t EXPONENT_BITS "((uint32_t) CYCE_EXPONENT)"
    ctypedef struct floats "cyce_floats":
        pass
    floats load16 "cyce_f_load"(const float* start) noexcept
    # Of positions that are `step` numbers apart, the number of each one's class; 0 where that is no class.
    # n_picked: counts those that are one.
    floats pick16 "cyce_f_pick"(
        const float* start, Py_ssize_t step, Py_ssize_t class_step, const int64_t* class_of,
        int64_t n_classes, int* n_picked
    ) noexcept
    void store16 "cyce_f_store"(float* start_out, floats a) noexcept
    floats fill16 "cyce_f_fill"(float value) noexcept
    floats sum16 "cyce_f_sum"(floats a, floats b) noexcept
    floats subtract16 "cyce_f_subtract"(floats a, floats b) noexcept
    floats multiply16 "cyce_f_multiply"(floats a, floats b) noexcept
    floats multiply_add16 "cyce_f_multiply_add"(floats a, floats b, floats c) noexcept
    floats multiply_subtract16 "cyce_f_multiply_subtract"(floats a, floats b, floats c) noexcept
    # See logarithms.pxd: what brings numbers next to 1, their powers of 2 times 2**23, and where their
    # inverses are in a table.
    floats split16 "cyce_f_split"(
        floats a, const float* table, floats* power_out, floats* eighths_out
    ) noexcept
    # Numbers of a table of 8, twice, chosen by the last three bits.
    floats look_up16 "cyce_f_look_up"(const float* table, floats eighths) noexcept
    # a * 2**64 where that is less than 1, and -64 times 2**23 there, else 0. -0 becomes 0.
    floats scale_tiny16 "cyce_f_scale_tiny"(floats a, floats* power_out) noexcept
    # Whether all are normal numbers, positive and less than 1.
    bint all_normal_below_one16 "cyce_f_all_normal_below_one"(floats a) noexcept
    floats divide16 "cyce_f_divide"(floats a, floats b) noexcept
    # -abs(a)
    floats minus_magnitude16 "cyce_f_minus_magnitude"(floats a) noexcept
    # a where a > b, else b; so b if one of them is NaN.
    floats larger16 "cyce_f_larger"(floats a, floats b) noexcept
    # a where a < b, else b; so b if one of them is NaN.
    floats smaller16 "cyce_f_smaller"(floats a, floats b) noexcept
    # See `end_exp`.
    floats table_power16 "cyce_f_table_power"(floats table, floats eighths) noexcept
    # Of numbers of which none is NaN.
    float largest16 "cyce_f_largest"(floats a) noexcept
    # How many of the 16 are above those of the other.
    int n_above16 "cyce_f_n_above"(floats a, floats b) noexcept
    # a, but 0 where t < lowest.
    floats cut_off16 "cyce_f_cut_off"(floats a, floats t, floats lowest) noexcept
    # c where a and b are equal, else d.
    floats where_equal16 "cyce_f_where_equal"(floats a, floats b, floats c, floats d) noexcept
    # Whether one of the 16 equals a number.
    bint has16 "cyce_f_has"(floats a, float value) noexcept
    # Sums in double of the 16 columns of n rows, n even.
    void sum_rows16 "cyce_f_sum_rows"(const float* rows, Py_ssize_t n, double* total_out) noexcept
    # The same, step by step, of rows that are stored as well and whose numbers are not negative.
    ctypedef struct RowSums "cyce_f_row_sums":
        pass
    void begin_rows16 "cyce_f_begin_rows"(RowSums* sums) noexcept
    void add_rows16 "cyce_f_add_rows"(RowSums* sums, floats first, floats second) noexcept
    void end_rows16 "cyce_f_end_rows"(
        const RowSums* sums, const float* rows, Py_ssize_t n, double* total_out
    ) noexcept
    # Sums in double of 16 columns of numbers that are not negative, without those where b and c are equal;
    # and how many the others are.
    ctypedef struct ColumnSums "cyce_f_column_sums":
        pass
    void begin_columns16 "cyce_f_begin_columns"(ColumnSums* sums) noexcept
    void add_columns16 "cyce_f_add_columns"(ColumnSums* sums, floats a, floats b, floats c) noexcept
    # Of `cut_off16(a, t, lowest)`.
    void add_columns_above16 "cyce_f_add_columns_above"(
        ColumnSums* sums, floats a, floats b, floats c, floats t, floats lowest
    ) noexcept
    void end_columns16 "cyce_f_end_columns"(
        const ColumnSums* sums, double* total_out, float* n_out
    ) noexcept
    # As `sum_rows16`, of mass * (top - logit), where the mass is not 0.
    void sum_gaps16 "cyce_f_sum_gaps"(
        const float* masses, const float* logits, Py_ssize_t n, double top, double* total_out
    ) noexcept

    ctypedef struct doubles "cyce_doubles":
        pass
    doubles load8 "cyce_d_load"(const double* start) noexcept
    void store8 "cyce_d_store"(double* start_out, doubles a) noexcept
    doubles fill8 "cyce_d_fill"(double value) noexcept
    doubles subtract8 "cyce_d_subtract"(doubles a, doubles b) noexcept
    doubles multiply8 "cyce_d_multiply"(doubles a, doubles b) noexcept
    doubles multiply_add8 "cyce_d_multiply_add"(doubles a, doubles b, doubles c) noexcept
    doubles larger8 "cyce_d_larger"(doubles a, doubles b) noexcept
    # See `exp_of_doubles`.
    doubles table_power8 "cyce_d_table_power"(const double* table, doubles eighths) noexcept
    # The first 8 of 16 floats, and the others.
    doubles low8 "cyce_f_low"(floats a) noexcept
    doubles high8 "cyce_f_high"(floats a) noexcept
    # Eight floats, or integers, from memory.
    doubles widen8 "cyce_d_widen"(const float* start) noexcept
    doubles widen_integers8 "cyce_d_widen_integers"(const int32_t* start) noexcept
    doubles sum8 "cyce_d_sum"(doubles a, doubles b) noexcept
    # 1 where the sign is +, also of 0, else 0.
    doubles step8 "cyce_d_step"(doubles a) noexcept
    # a where b has the sign +, also of 0, else -a.
    doubles times_sign8 "cyce_d_times_sign"(doubles a, doubles b) noexcept
    # a where b and c are not equal, else 0.
    doubles unless_equal8 "cyce_d_unless_equal"(doubles a, doubles b, doubles c) noexcept
    # a, but 0 where t < lowest.
    doubles cut_off8 "cyce_d_cut_off"(doubles a, doubles t, doubles lowest) noexcept
    # Add numbers that are not negative to a total, and what that loses to `lost` (Dekker's FastTwoSum).
    void add8 "cyce_d_add"(doubles* total, doubles* lost, doubles a) noexcept
    double largest8 "cyce_d_largest"(doubles a) noexcept
    bint has8 "cyce_d_has"(doubles a, double value) noexcept
