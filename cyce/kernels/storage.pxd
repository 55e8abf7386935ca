"""Load and store: the only room that knows what numbers are in memory.

Everything else computes on float or double (`floating`, the arithmetic). Logits, class probabilities and
outputs may be stored otherwise: an `Operand` carries its storage as a type code of the buffer protocol, and
each output has its own. A new storage needs a code in `size_of`, a branch in `convert` and `convert_back`,
with a type in half.pxd if C has none, and a line in `arithmetic_of` if that is not float. Class
weights and losses are always of the arithmetic's type; integer targets are read by targets.pxd.

What is stored in the type of the arithmetic is not copied: `load` returns where it lies, `destination`
where it is to be. Anything else goes through scratch memory, a block at a time.
"""
from cython cimport floating
from libc.string cimport memcpy, memset

from cyce.kernels.arrays cimport Operand
from cyce.kernels.half cimport (
    bfloat16, cyce_load_bfloat16, cyce_load_float16, cyce_store_bfloat16, cyce_store_float16, float16,
    from_stored, stored, to_stored,
)
from cyce.kernels.machine cimport CACHE_LINE, check, cyce_prefetch, cyce_stream, whole_line
from cyce.kernels.sums cimport whole_lanes
from cyce.kernels.transposition cimport (
    CYCE_ROWS, Changes, pack_pairs, pack_rows, unpack_pairs, unpack_rows,
)

cdef enum:
    # The most positions of a tile.
    TILE = 256
    # Classes of rows that are converted at a time, and all numbers that are.
    RUN = 128
    ROOM = 2048
    # Numbers that wait for a cache line to be whole, at most, and those of another storage that go past the
    # caches at a time: a chunk of elements, or of a row with these.
    MOST_WAITING = 32
    MOST_STREAMED = 512

cdef extern from *:
    # Type codes of storages that C does not have. The buffer protocol has none for bfloat16, which comes as
    # the uint16 of its bits.
    const char FLOAT16 "'e'"
    const char BFLOAT16 "'H'"


cdef inline Py_ssize_t size_of(char format) noexcept nogil:
    """Bytes of a number in memory, 0 if that is no storage."""
    if format == c"f":
        return 4
    if format == c"d":
        return 8
    if format in (FLOAT16, BFLOAT16):
        return 2
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


cdef inline floating load_one(const Operand* source, Py_ssize_t at, floating like) noexcept nogil:
    """Element `at`."""
    if is_native[floating](source.format, 0):
        return (<const floating*> source.start)[at]
    if source.format == c"f":
        return from_stored(<const float*> source.start + at, like)
    if source.format == c"d":
        return from_stored(<const double*> source.start + at, like)
    if source.format == FLOAT16:
        return from_stored(<const float16*> source.start + at, like)
    check(source.format == BFLOAT16)
    return from_stored(<const bfloat16*> source.start + at, like)


cdef inline void store_one(floating value, const Operand* target, Py_ssize_t at) noexcept nogil:
    """Write element `at`."""
    if target.format == c"f":
        to_stored(value, <float*> target.start + at)
    elif target.format == c"d":
        to_stored(value, <double*> target.start + at)
    elif target.format == FLOAT16:
        to_stored(value, <float16*> target.start + at)
    else:
        check(target.format == BFLOAT16)
        to_stored(value, <bfloat16*> target.start + at)


cdef inline void convert_from(const stored* source, Py_ssize_t n, floating* values_out) noexcept nogil:
    """Copy n numbers from memory."""
    cdef Py_ssize_t i
    if stored is float16 and floating is float:
        cyce_load_float16(source, n, values_out)
    elif stored is bfloat16 and floating is float:
        cyce_load_bfloat16(source, n, values_out)
    else:
        for i in range(n):
            values_out[i] = from_stored(source + i, <floating> 0)


cdef inline void convert_to(const floating* values, Py_ssize_t n, stored* target_out) noexcept nogil:
    """Copy n numbers to memory."""
    cdef Py_ssize_t i
    if stored is float16 and floating is float:
        cyce_store_float16(values, n, target_out)
    elif stored is bfloat16 and floating is float:
        cyce_store_bfloat16(values, n, target_out)
    else:
        for i in range(n):
            to_stored(values[i], target_out + i)


cdef inline void convert(
    const Operand* source, Py_ssize_t at, Py_ssize_t n, floating* values_out
) noexcept nogil:
    """Load n numbers from element `at` on."""
    if source.format == c"f":
        convert_from(<const float*> source.start + at, n, values_out)
    elif source.format == c"d":
        convert_from(<const double*> source.start + at, n, values_out)
    elif source.format == FLOAT16:
        convert_from(<const float16*> source.start + at, n, values_out)
    else:
        check(source.format == BFLOAT16)
        convert_from(<const bfloat16*> source.start + at, n, values_out)


cdef inline void convert_back(
    const floating* values, Py_ssize_t n, const Operand* target, Py_ssize_t at
) noexcept nogil:
    """Store n values from element `at` on."""
    if target.format == c"f":
        convert_to(values, n, <float*> target.start + at)
    elif target.format == c"d":
        convert_to(values, n, <double*> target.start + at)
    elif target.format == FLOAT16:
        convert_to(values, n, <float16*> target.start + at)
    else:
        check(target.format == BFLOAT16)
        convert_to(values, n, <bfloat16*> target.start + at)


cdef inline const char* address_of(const Operand* operand, Py_ssize_t at) noexcept nogil:
    """Where element `at` lies."""
    return operand.start + at * size_of(operand.format)


# ---------------------------------------------------------------------------------------------
# Along the classes


cdef inline const floating* load(
    const Operand* source, Py_ssize_t at, Py_ssize_t stride, Py_ssize_t n, floating* scratch
) noexcept nogil:
    """n numbers from element `at` on, `stride` apart: where they lie, or copied to scratch."""
    cdef Py_ssize_t i
    if stride != 1:
        for i in range(n):
            scratch[i] = load_one[floating](source, at + i * stride, 0)
        return scratch
    if is_native[floating](source.format, 0):
        return <const floating*> source.start + at
    convert(source, at, n, scratch)
    return scratch


cdef inline void load_neighbours(
    const Operand* source, Py_ssize_t at, Py_ssize_t n, floating* values_out
) noexcept nogil:
    """Copy n numbers from element `at` on."""
    if is_native[floating](source.format, 0):
        memcpy(values_out, <const floating*> source.start + at, n * sizeof(floating))
    else:
        convert(source, at, n, values_out)


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
        convert_back(values, n, target, at)


cdef inline void stream(
    const floating* values, Py_ssize_t n, const Operand* target, Py_ssize_t at
) noexcept nogil:
    """Write n values from element `at` on past the caches; of another storage, at most MOST_STREAMED."""
    cdef char* start = target.start + at * size_of(target.format)
    cdef floating converted[MOST_STREAMED]
    cdef Operand there
    if is_native[floating](target.format, 0):
        cyce_stream(start, values, n * sizeof(floating))
    else:
        check(n <= MOST_STREAMED)
        there.start = <char*> converted
        there.format = target.format
        convert_back(values, n, <const Operand*> &there, 0)
        cyce_stream(start, converted, n * size_of(target.format))


cdef inline Py_ssize_t store_lines(
    floating* values, Py_ssize_t n, Py_ssize_t n_waiting, const Operand* target, Py_ssize_t at, bint rest_too
) noexcept nogil:
    """Write n values from element `at` on past the caches, and those that wait in front of them.

    Unless `rest_too`, only whole cache lines: what is left waits in front of the values in turn. Returns how
    many these are, MOST_WAITING at most.
    """
    cdef Py_ssize_t itemsize = size_of(target.format)
    cdef const char* end = target.start + (at + n) * itemsize
    cdef Py_ssize_t n_all = n_waiting + n
    cdef Py_ssize_t n_left = 0
    cdef Py_ssize_t k
    if not rest_too:
        n_left = min(n_all, <Py_ssize_t> (<size_t> end % CACHE_LINE) // itemsize)
    stream(<const floating*> (values - n_waiting), n_all - n_left, target, at - n_waiting)
    for k in range(n_left):
        values[k - n_left] = values[n - n_left + k]
    return n_left


cdef inline void fetch_last_line(const Operand* target, Py_ssize_t end) noexcept nogil:
    """Prefetch the last cache line of what will go past the caches, in front of element `end`.

    If it is not filled, it is stored like any other, and what streams behind it would wait for the memory.
    """
    cyce_prefetch(address_of(target, end) - 1)


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
    if contiguous:
        load_neighbours(source, at[0] + offset, width, values_out)
    elif is_native[floating](source.format, 0):
        for k in range(width):
            values_out[k] = native[at[k]]
    else:
        for k in range(width):
            values_out[k] = load_one[floating](source, at[k] + offset, 0)


cdef inline void store_positions(
    const floating* values, const Operand* target, const Py_ssize_t* at, bint contiguous, Py_ssize_t offset,
    Py_ssize_t width, bint streams,
) noexcept nogil:
    """Write one number of each position, `offset` behind its start; past the caches if `streams`."""
    cdef floating* native = <floating*> target.start + offset
    cdef Py_ssize_t k
    if contiguous:
        store(values, width, target, at[0] + offset, streams)
    elif is_native[floating](target.format, 0):
        for k in range(width):
            native[at[k]] = values[k]
    else:
        for k in range(width):
            store_one(values[k], target, at[k] + offset)


cdef inline bint are_neighbours(const Operand* operand, Py_ssize_t n) noexcept nogil:
    """Whether rows of n contiguous classes lie beside one another."""
    return operand.class_stride == 1 and operand.positions.n_dims == 1 and operand.positions.stride[0] == n


cdef inline Py_ssize_t rows_to_convert(
    const Operand* operand, Py_ssize_t n_rows, Py_ssize_t n
) noexcept nogil:
    """How many of some rows, a multiple of four, are converted at a time: more where they are neighbours."""
    cdef Py_ssize_t n_at_once = ROOM // RUN
    if are_neighbours(operand, n):
        n_at_once = max(n_at_once, ROOM // n // 4 * 4)
    return min(n_rows, n_at_once)


cdef inline void pack_converted(
    const Operand* source, Py_ssize_t first, const Py_ssize_t* at, Py_ssize_t n_rows, Py_ssize_t n,
    Py_ssize_t pitch, floating* packed_out,
) noexcept nogil:
    """Convert n contiguous classes of some rows, a multiple of four, and pack them."""
    cdef floating room[ROOM]
    cdef Py_ssize_t at_in_room[TILE]
    cdef Py_ssize_t row = 0
    cdef Py_ssize_t run, begin, size, n_at_once, n_pieces, piece, k
    while row < n_rows:
        n_at_once = rows_to_convert(source, n_rows - row, n)
        for run in range((n + RUN - 1) // RUN):
            # The last run is at least four, which are converted twice if need be. Rows that are converted
            # at once have one run.
            begin = min(run * RUN, n - 4)
            size = min(<Py_ssize_t> RUN, n - begin)
            for k in range(n_at_once):
                at_in_room[k] = k * size
            n_pieces = 1 if n_at_once > ROOM // RUN else n_at_once
            piece = n_at_once // n_pieces * size
            for k in range(n_pieces):
                convert(source, at[row + k] + first + begin, piece, room + k * size)
            pack_rows(
                <const floating*> room, at_in_room, n_at_once, size, packed_out + begin * pitch + row, pitch
            )
        row += n_at_once


cdef inline void unpack_converted(
    const floating* packed, Py_ssize_t pitch, Py_ssize_t n_rows, Py_ssize_t n, const Operand* target,
    Py_ssize_t first, const Py_ssize_t* at,
) noexcept nogil:
    """Unpack n contiguous classes of some rows, a multiple of four, and convert them."""
    cdef floating room[ROOM]
    cdef Py_ssize_t at_in_room[TILE]
    cdef Py_ssize_t row = 0
    cdef Py_ssize_t run, begin, size, n_at_once, n_pieces, piece, k
    while row < n_rows:
        n_at_once = rows_to_convert(target, n_rows - row, n)
        for run in range((n + RUN - 1) // RUN):
            begin = min(run * RUN, n - 4)
            size = min(<Py_ssize_t> RUN, n - begin)
            for k in range(n_at_once):
                at_in_room[k] = k * size
            unpack_rows(
                packed + begin * pitch + row, pitch, n_at_once, size, room, at_in_room,
                <const Changes*> NULL, 0,
            )
            n_pieces = 1 if n_at_once > ROOM // RUN else n_at_once
            piece = n_at_once // n_pieces * size
            for k in range(n_pieces):
                convert_back(
                    <const floating*> room + k * size, piece, target, at[row + k] + first + begin
                )
        row += n_at_once


cdef inline void load_tile(
    const Operand* source, Py_ssize_t first, const Py_ssize_t* at, bint contiguous, Py_ssize_t width,
    Py_ssize_t n, Py_ssize_t pitch, floating* packed_out,
) noexcept nogil:
    """Pack n classes from number `first` on; positions beyond `width`, up to whole lanes, become 0."""
    cdef Py_ssize_t class_stride = source.class_stride
    cdef Py_ssize_t n_whole = width // 4 * 4 if not contiguous and class_stride == 1 and n >= 4 else 0
    cdef const floating* start = <const floating*> source.start + first
    cdef Py_ssize_t c, k
    if not is_native[floating](source.format, 0):
        pack_converted(source, first, at, n_whole, n, pitch, packed_out)
    elif floating is float and n == 2 and are_neighbours(source, 2):
        pack_pairs(<const float*> start + at[0], width, <float*> packed_out, pitch)
        n_whole = width
    else:
        pack_rows(start, at, n_whole, n, packed_out, pitch)
    if n_whole < width:
        for c in range(n):
            load_positions(
                source, at + n_whole, contiguous, (first + c) * class_stride, width - n_whole,
                packed_out + c * pitch + n_whole,
            )
    for c in range(n):
        for k in range(width, whole_lanes(width)):
            packed_out[c * pitch + k] = 0


cdef inline void stream_rows(
    const floating* packed, Py_ssize_t pitch, Py_ssize_t n_rows, Py_ssize_t n, const Operand* target,
    Py_ssize_t at, const Changes* changes,
) noexcept nogil:
    """Unpack n classes of some neighbouring rows, a multiple of four, past the caches."""
    cdef floating local[ROOM + 2 * MOST_WAITING]
    cdef floating* waiting = <floating*> whole_line(<char*> (local + MOST_WAITING))
    cdef Py_ssize_t at_in_room[TILE]
    cdef Py_ssize_t multiple = max(<Py_ssize_t> 4, CYCE_ROWS) if changes != NULL else 4
    cdef Py_ssize_t n_at_once = min(n_rows, ROOM // n // multiple * multiple)
    cdef Py_ssize_t n_waiting = 0
    cdef Py_ssize_t row = 0
    cdef Py_ssize_t k
    for k in range(n_at_once):
        at_in_room[k] = k * n
    while row < n_rows:
        k = min(n_at_once, n_rows - row)
        unpack_rows(packed + row, pitch, k, n, waiting, at_in_room, changes, row)
        n_waiting = store_lines(waiting, k * n, n_waiting, target, at + row * n, row + k == n_rows)
        row += k


cdef inline void store_rows(
    const floating* packed, Py_ssize_t pitch, const Operand* target, Py_ssize_t first, const Py_ssize_t* at,
    Py_ssize_t n_rows, Py_ssize_t n, bint streams, const Changes* changes,
) noexcept nogil:
    """Write n packed classes of some rows, a multiple of four, in the type of the arithmetic."""
    if streams and n_rows and are_neighbours(target, n):
        stream_rows(packed, pitch, n_rows, n, target, first + at[0], changes)
    else:
        unpack_rows(packed, pitch, n_rows, n, <floating*> target.start + first, at, changes, 0)


cdef inline void store_tile(
    const floating* packed, Py_ssize_t pitch, const Operand* target, Py_ssize_t first, const Py_ssize_t* at,
    bint contiguous, Py_ssize_t width, Py_ssize_t n, bint streams,
) noexcept nogil:
    """Write n packed classes from number `first` on, past the caches if `streams`."""
    cdef Py_ssize_t class_stride = target.class_stride
    cdef Py_ssize_t n_whole = width // 4 * 4 if not contiguous and class_stride == 1 and n >= 4 else 0
    cdef floating* start = <floating*> target.start + first
    cdef Py_ssize_t c
    if not is_native[floating](target.format, 0):
        unpack_converted(packed, pitch, n_whole, n, target, first, at)
    elif floating is float and n == 2 and are_neighbours(target, 2):
        unpack_pairs(<const float*> packed, pitch, width, <float*> start + at[0])
        n_whole = width
    else:
        store_rows(packed, pitch, target, first, at, n_whole, n, streams, <const Changes*> NULL)
    if n_whole < width:
        for c in range(n):
            store_positions(
                packed + c * pitch + n_whole, target, at + n_whole, contiguous, (first + c) * class_stride,
                width - n_whole, streams,
            )
