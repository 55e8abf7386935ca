"""Load and store: the only room that knows what numbers are in memory.

Everything else computes on float or double (`floating`, the arithmetic). Logits, class probabilities and
outputs may be stored otherwise: an `Operand` carries its storage as a type code of the buffer protocol, and
each output has its own. A new storage needs a code in `size_of`, a branch in `convert` and `convert_back`,
with a loop of its own if C has no such type, and a line in `arithmetic_of` if that is not float. Class
weights and losses are always of the arithmetic's type; integer targets are read by targets.pxd.

What is stored in the type of the arithmetic is not copied: `load` returns where it lies, `destination`
where it is to be. Anything else goes through scratch memory, a block at a time.
"""
from cython cimport floating
from libc.string cimport memcpy, memset

from cyce.kernels.arrays cimport Operand
from cyce.kernels.machine cimport check, cyce_stream
from cyce.kernels.sums cimport whole_lanes
from cyce.kernels.transposition cimport pack_rows, unpack_rows

cdef enum:
    # The most positions of a tile.
    TILE = 128


cdef inline Py_ssize_t size_of(char format) noexcept nogil:
    """Bytes of a number in memory, 0 if that is no storage."""
    if format == c"f":
        return 4
    if format == c"d":
        return 8
    return 0


cdef inline char arithmetic_of(char format) noexcept nogil:
    """What is computed with: "f" or "d"."""
    return c"d" if format == c"d" else c"f"


cdef inline bint is_native(char format, floating like) noexcept nogil:
    """Whether the storage is the type of the arithmetic."""
    if floating is float:
        return format == c"f"
    else:
        return format == c"d"


ctypedef fused stored:
    float
    double


cdef inline void convert_from(
    const stored* source, Py_ssize_t stride, Py_ssize_t n, floating* values_out, Py_ssize_t out_stride
) noexcept nogil:
    """Copy n numbers, `stride` apart, to values_out, out_stride apart."""
    cdef Py_ssize_t i
    for i in range(n):
        values_out[i * out_stride] = <floating> source[i * stride]


cdef inline void convert_to(
    const floating* values, Py_ssize_t in_stride, Py_ssize_t n, stored* target_out, Py_ssize_t stride
) noexcept nogil:
    """Copy n values, in_stride apart, to target_out, `stride` apart."""
    cdef Py_ssize_t i
    for i in range(n):
        target_out[i * stride] = <stored> values[i * in_stride]


cdef inline void convert(
    const Operand* source, Py_ssize_t at, Py_ssize_t stride, Py_ssize_t n, floating* values_out,
    Py_ssize_t out_stride,
) noexcept nogil:
    """Load n numbers from element `at` on, `stride` apart, to values_out, out_stride apart."""
    if source.format == c"f":
        convert_from(<const float*> source.start + at, stride, n, values_out, out_stride)
    else:
        check(source.format == c"d")
        convert_from(<const double*> source.start + at, stride, n, values_out, out_stride)


cdef inline void convert_back(
    const floating* values, Py_ssize_t in_stride, Py_ssize_t n, const Operand* target, Py_ssize_t at,
    Py_ssize_t stride,
) noexcept nogil:
    """Store n values, in_stride apart, from element `at` on, `stride` apart."""
    if target.format == c"f":
        convert_to(values, in_stride, n, <float*> target.start + at, stride)
    else:
        check(target.format == c"d")
        convert_to(values, in_stride, n, <double*> target.start + at, stride)


cdef inline const char* address_of(const Operand* operand, Py_ssize_t at) noexcept nogil:
    """Where element `at` lies."""
    return operand.start + at * size_of(operand.format)


# ---------------------------------------------------------------------------------------------
# Along the classes


cdef inline floating load_one(const Operand* source, Py_ssize_t at, floating like) noexcept nogil:
    """Element `at`."""
    cdef floating value = 0
    if is_native[floating](source.format, 0):
        return (<const floating*> source.start)[at]
    convert(source, at, 1, 1, &value, 1)
    return value


cdef inline const floating* load(
    const Operand* source, Py_ssize_t at, Py_ssize_t stride, Py_ssize_t n, floating* scratch
) noexcept nogil:
    """n numbers from element `at` on, `stride` apart: where they lie, or copied to scratch."""
    if stride == 1 and is_native[floating](source.format, 0):
        return <const floating*> source.start + at
    convert(source, at, stride, n, scratch, 1)
    return scratch


cdef inline floating* destination(
    const Operand* target, Py_ssize_t at, floating* scratch, bint apart
) noexcept nogil:
    """Where to compute what `store` writes from element `at` on: there, or in scratch.

    apart: use scratch in any case.
    """
    if apart or not is_native[floating](target.format, 0):
        return scratch
    return <floating*> target.start + at


cdef inline void store(
    const floating* values, Py_ssize_t n, const Operand* target, Py_ssize_t at, bint streams
) noexcept nogil:
    """Write n values from element `at` on, past the caches if `streams`, unless they are there already."""
    if is_native[floating](target.format, 0):
        if streams:
            cyce_stream(<floating*> target.start + at, values, n * sizeof(floating))
        elif values != <floating*> target.start + at:
            memcpy(<floating*> target.start + at, values, n * sizeof(floating))
    else:
        convert_back(values, 1, n, target, at, 1)


cdef inline Py_ssize_t store_lines(
    floating* values, Py_ssize_t n, const Operand* target, Py_ssize_t at, bint rest_too
) noexcept nogil:
    """Write n values from element `at` on past the caches, whole cache lines unless `rest_too`.

    Those of the last line move to the front; returns their number.
    """
    cdef floating* start = <floating*> target.start + at
    cdef Py_ssize_t n_left = 0
    cdef Py_ssize_t k
    if not rest_too:
        n_left = min(n, <Py_ssize_t> (<size_t> (start + n) % 64 // sizeof(floating)))
    cyce_stream(start, values, (n - n_left) * sizeof(floating))
    for k in range(n_left):
        values[k] = values[n - n_left + k]
    return n_left


cdef inline void store_zeros(Py_ssize_t n, const Operand* target, Py_ssize_t at) noexcept nogil:
    """Write n zeros from element `at` on."""
    memset(target.start + at * size_of(target.format), 0, n * size_of(target.format))


# ---------------------------------------------------------------------------------------------
# Across the positions: n classes of up to TILE positions, packed to (n, pitch)


cdef inline void load_positions(
    const Operand* source, const Py_ssize_t* at, bint contiguous, Py_ssize_t offset, Py_ssize_t width,
    floating* values_out,
) noexcept nogil:
    """One number of each position, `offset` behind its start."""
    cdef const floating* native = <const floating*> source.start + offset
    cdef Py_ssize_t k
    if not is_native[floating](source.format, 0):
        if contiguous:
            convert(source, at[0] + offset, 1, width, values_out, 1)
            return
        for k in range(width):
            values_out[k] = load_one[floating](source, at[k] + offset, 0)
    elif contiguous:
        for k in range(width):
            values_out[k] = native[at[0] + k]
    else:
        for k in range(width):
            values_out[k] = native[at[k]]


cdef inline void load_tile(
    const Operand* source, Py_ssize_t first, const Py_ssize_t* at, bint contiguous, Py_ssize_t width,
    Py_ssize_t n, Py_ssize_t pitch, floating* packed_out,
) noexcept nogil:
    """Pack n classes from number `first` on; positions beyond `width`, up to whole lanes, become 0."""
    cdef Py_ssize_t class_stride = source.class_stride
    cdef Py_ssize_t n_whole = width // 4 * 4 if class_stride == 1 and n >= 4 else 0
    cdef const floating* start = <const floating*> source.start + first * class_stride
    cdef Py_ssize_t c, k
    if not is_native[floating](source.format, 0):
        for k in range(width):
            convert(source, at[k] + first * class_stride, class_stride, n, packed_out + k, pitch)
    elif contiguous:
        for c in range(n):
            memcpy(packed_out + c * pitch, start + c * class_stride + at[0], width * sizeof(floating))
    else:
        for k in range(0, n_whole, 4):
            pack_rows(
                start + at[k], start + at[k + 1], start + at[k + 2], start + at[k + 3], n,
                packed_out + k, pitch,
            )
        for c in range(n):
            for k in range(n_whole, width):
                packed_out[c * pitch + k] = start[c * class_stride + at[k]]
    for c in range(n):
        for k in range(width, whole_lanes(width)):
            packed_out[c * pitch + k] = 0


cdef inline void store_tile(
    const floating* packed, Py_ssize_t pitch, const Operand* target, Py_ssize_t first, const Py_ssize_t* at,
    bint contiguous, Py_ssize_t width, Py_ssize_t n, bint streams,
) noexcept nogil:
    """Write n packed classes from number `first` on, past the caches if `streams`."""
    cdef Py_ssize_t class_stride = target.class_stride
    cdef Py_ssize_t n_whole = width // 4 * 4 if class_stride == 1 and n >= 4 else 0
    cdef floating* start = <floating*> target.start + first * class_stride
    cdef floating* row
    cdef Py_ssize_t c, k
    if not is_native[floating](target.format, 0):
        for k in range(width):
            convert_back(packed + k, pitch, n, target, at[k] + first * class_stride, class_stride)
        return
    if contiguous:
        for c in range(n):
            row = start + c * class_stride + at[0]
            if streams:
                cyce_stream(row, packed + c * pitch, width * sizeof(floating))
            else:
                memcpy(row, packed + c * pitch, width * sizeof(floating))
        return
    for k in range(0, n_whole, 4):
        unpack_rows(
            packed + k, pitch, n, start + at[k], start + at[k + 1], start + at[k + 2], start + at[k + 3]
        )
    for c in range(n):
        for k in range(n_whole, width):
            start[c * class_stride + at[k]] = packed[c * pitch + k]
