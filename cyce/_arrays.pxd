"""Arrays as the kernels see them: buffers of any strides, checked where they come in."""
from cpython.buffer cimport PyBUF_FORMAT, PyObject_GetBuffer

cdef extern from "<assert.h>" nogil:
    # What must hold if nothing is to be read or written out of bounds; checked in builds with CYCE_DEBUG=1.
    void check "assert"(bint holds)

from cython cimport floating


cdef extern from * nogil:
    """
    #include <stddef.h>
    #include <string.h>

    /* What a buffer's format begins with where it names the byte order of this machine. */
    static inline char cyce_own_byte_order(void)
    {
        const unsigned short one = 1;
        return *(const unsigned char *) &one ? '<' : '>';
    }

    /* Four runs of four numbers, transposed: in registers where the compiler has shuffles. */
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

    /* Copy one cache line past the caches, which need not read it first; the address is a multiple of 64. */
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

    /* What was streamed is seen by others before what is written from now on. */
    static inline void cyce_stream_end(void)
    {
    #ifdef CYCE_STREAM_LINE
        _mm_sfence();
    #endif
    }
    """
    char cyce_own_byte_order() noexcept
    void cyce_transpose_float(
        const float* a, const float* b, const float* c, const float* d, float* w, float* x, float* y, float* z
    ) noexcept
    void cyce_transpose_double(
        const double* a, const double* b, const double* c, const double* d,
        double* w, double* x, double* y, double* z,
    ) noexcept
    void cyce_stream(void* to, const void* from_, size_t n_bytes) noexcept
    void cyce_stream_end() noexcept


cdef enum:
    # As many as NumPy's arrays have.
    MAX_DIMS = 64


cdef struct Positions:
    # Where the positions of an array are: in C order over dims, strides in elements.
    Py_ssize_t n                    # of them
    Py_ssize_t lowest               # offset of any
    Py_ssize_t highest
    int n_dims
    Py_ssize_t shape[MAX_DIMS]
    Py_ssize_t stride[MAX_DIMS]


cdef struct Operand:
    # An array of shape positions + (n_classes,), or of the positions alone.
    char* start
    Py_ssize_t class_stride
    Positions positions


cdef inline bint offsets_of(
    const Positions* positions, Py_ssize_t first, Py_ssize_t width, Py_ssize_t* offset_out
) noexcept nogil:
    """Offsets of `width` positions from number `first` on; returns whether these are neighbours."""
    cdef int last = positions.n_dims - 1
    cdef Py_ssize_t step = positions.stride[last]
    cdef Py_ssize_t index[MAX_DIMS]
    cdef Py_ssize_t offset = 0, done = 0, run = 0
    cdef Py_ssize_t k
    cdef int dim
    check(first >= 0 and width >= 0 and first + width <= positions.n)
    for dim in range(last, 0, -1):
        index[dim] = first % positions.shape[dim]
        first //= positions.shape[dim]
        offset += index[dim] * positions.stride[dim]
    index[0] = first
    offset += first * positions.stride[0]
    while done < width:
        run = width - done
        if last > 0:
            run = min(run, positions.shape[last] - index[last])
        check(positions.lowest <= min(offset, offset + (run - 1) * step))
        check(positions.highest >= max(offset, offset + (run - 1) * step))
        for k in range(run):
            offset_out[done + k] = offset + k * step
        done += run
        index[last] += run
        offset += run * step
        dim = last
        while dim > 0 and index[dim] == positions.shape[dim]:
            offset += positions.stride[dim - 1] - positions.shape[dim] * positions.stride[dim]
            index[dim] = 0
            dim -= 1
            index[dim] += 1
    return width == 1 or (step == 1 and run == width)


cdef inline void transpose(
    const floating* a, const floating* b, const floating* c, const floating* d,
    floating* w, floating* x, floating* y, floating* z,
) noexcept nogil:
    """Write the first, second, third and fourth of a, b, c and d to w, x, y and z."""
    if floating is float:
        cyce_transpose_float(a, b, c, d, w, x, y, z)
    else:
        cyce_transpose_double(a, b, c, d, w, x, y, z)


cdef inline char format_of(const Py_buffer* view) noexcept:
    """Type code of an array in native byte order, a blank of any other."""
    cdef const char* text = view.format
    # NumPy names the byte order of a native array, too, where it is less aligned than its item size.
    if text[0] in (c"@", c"=", cyce_own_byte_order()):
        text += 1
    return text[0] if text[0] != 0 and text[1] == 0 else c" "


cdef inline int expect(bint condition, str what) except -1:
    """Guard against a facade that passed what the kernels cannot take."""
    if not condition:
        raise ValueError(f"kernel call: {what}")
    return 0


cdef inline int place(Py_buffer* view, int axis, Operand* operand) except -1:
    """Describe an array whose classes lie along `axis`, -1 if it has none.

    Neighbouring dims of the positions that can be one, become one.
    """
    cdef Positions* positions = &operand.positions
    cdef Py_ssize_t size, stride
    cdef int dim, last
    expect(view.ndim <= MAX_DIMS, "too many dimensions")
    expect(-1 <= axis < view.ndim, "no such axis")
    operand.start = <char*> view.buf
    operand.class_stride = 1
    positions.n = 1
    positions.lowest = positions.highest = 0
    positions.n_dims = 0
    for dim in range(view.ndim):
        size = view.shape[dim]
        # The stride of an axis that takes no step may be anything.
        expect(
            size <= 1 or view.strides[dim] % view.itemsize == 0, "strides are no multiple of the item size"
        )
        stride = view.strides[dim] // view.itemsize if size > 1 else 0
        if dim == axis:
            operand.class_stride = stride
            continue
        positions.n *= size
        positions.lowest += min(<Py_ssize_t> 0, (size - 1) * stride)
        positions.highest += max(<Py_ssize_t> 0, (size - 1) * stride)
        if size == 1:
            continue
        last = positions.n_dims - 1
        if last >= 0 and positions.stride[last] == size * stride:
            positions.shape[last] *= size
            positions.stride[last] = stride
        else:
            positions.shape[last + 1] = size
            positions.stride[last + 1] = stride
            positions.n_dims += 1
    if positions.n_dims == 0:
        positions.n_dims = 1
        positions.shape[0] = 1
        positions.stride[0] = 0
    return 0


cdef inline Py_ssize_t take(object array, int flags, Py_buffer* view) except -1:
    """Take an array's buffer, with its format; returns the number of elements."""
    PyObject_GetBuffer(array, view, flags | PyBUF_FORMAT)
    return view.len // view.itemsize


cdef inline bint same_shape(const Py_buffer* a, const Py_buffer* b) noexcept:
    """Whether two arrays have the same shape."""
    cdef int dim
    if a.ndim != b.ndim:
        return False
    for dim in range(a.ndim):
        if a.shape[dim] != b.shape[dim]:
            return False
    return True
