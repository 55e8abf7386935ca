"""A block of a row, reduced in two passes over its logits: the maximum, then exponentials relative to it.

The loops over one chunk are functions that are called apart for whole chunks, so that the compiler knows how
long these are, and for the last one: a twentieth off the loss.
"""
from cython cimport floating
from libc.math cimport INFINITY
from libc.string cimport memcpy

from cyce.kernels.call cimport Call, Tile
from cyce.kernels.machine cimport prefetch
from cyce.kernels.masses cimport dense_lanes
from cyce.kernels.merge cimport (
    ARGMAX, GAP, GAP_LOST, MASS, MASS_LOST, MAX, RANK, REFERENCE, REST, REST_LOST, SPREAD, SPREAD_2, SQUARES,
    UNIT,
)
from cyce.kernels.plan cimport CHUNK, lies_within
from cyce.kernels.points cimport add_dense, add_moments, add_spread, count_before
from cyce.kernels.reference cimport exp_scaled, refer_to, unit_at, without_headroom
from cyce.kernels.storage cimport address_of, is_native
from cyce.kernels.sums cimport LANES, add, finite_or_zero, settled, sum_of_lanes, whole_lanes


cdef inline floating max_of(const floating* values, Py_ssize_t n) noexcept nogil:
    """Maximum of n values, n a multiple of LANES; NaN is skipped."""
    cdef floating lane[LANES]
    cdef floating half[16]
    cdef floating quarter[8]
    cdef floating eighth[4]
    cdef Py_ssize_t group, k
    cdef floating value
    for k in range(LANES):
        lane[k] = -INFINITY
    for group in range(n // LANES):
        for k in range(LANES):
            value = values[group * LANES + k]
            lane[k] = value if value > lane[k] else lane[k]
    for k in range(16):
        half[k] = lane[k] if lane[k] > lane[k + 16] else lane[k + 16]
    for k in range(8):
        quarter[k] = half[k] if half[k] > half[k + 8] else half[k + 8]
    for k in range(4):
        eighth[k] = quarter[k] if quarter[k] > quarter[k + 4] else quarter[k + 4]
    for k in range(2):
        eighth[k] = eighth[k] if eighth[k] > eighth[k + 2] else eighth[k + 2]
    return eighth[0] if eighth[0] > eighth[1] else eighth[1]


cdef inline void exponentials_of(
    const floating* values, Py_ssize_t n, floating shift, floating exponent_shift, floating lowest,
    floating* exps_out,
) noexcept nogil:
    """Write exp_scaled of n values, n a multiple of LANES."""
    cdef Py_ssize_t group, k
    for group in range(n // LANES):
        for k in range(LANES):
            exps_out[group * LANES + k] = exp_scaled(
                values[group * LANES + k], shift, exponent_shift, lowest
            )


cdef inline void add_chunk(const floating* values, Py_ssize_t n, double* total, double* lost) noexcept nogil:
    """Add n values, n a multiple of LANES, to LANES totals."""
    cdef Py_ssize_t group, k
    for group in range(n // LANES):
        for k in range(LANES):
            add(&total[k], &lost[k], values[group * LANES + k])


cdef inline int index_of(const floating* values, int n, floating value) noexcept nogil:
    """First index of a value among n, or n if it is not there."""
    cdef int best = n
    cdef int k, candidate
    for k in range(n):
        candidate = k if values[k] == value else n
        best = candidate if candidate < best else best
    return best


cdef inline void add_dense_of_row(
    const Call* call, const Tile* tile, Py_ssize_t row, const floating* block_logits, const floating* tail,
    Py_ssize_t first, Py_ssize_t n, floating block_max, double* stats,
) noexcept nogil:
    """Reduce n classes of a row, from number `first` on, to their dense masses and gaps."""
    cdef Py_ssize_t stride = call.tile_width
    cdef floating finite_max = finite_or_zero(block_max)
    cdef const floating* values
    cdef floating room[CHUNK]
    cdef const floating* dense
    cdef double mass[LANES]
    cdef double mass_lost[LANES]
    cdef double gap[LANES]
    cdef double gap_lost[LANES]
    cdef Py_ssize_t chunk, size, group, k
    for k in range(LANES):
        mass[k] = mass_lost[k] = gap[k] = gap_lost[k] = 0
    for chunk in range((n + CHUNK - 1) // CHUNK):
        size = min(<Py_ssize_t> CHUNK, n - chunk * CHUNK)
        values = block_logits + chunk * CHUNK if size == CHUNK else tail
        dense = dense_lanes(call, tile, row, first + chunk * CHUNK, size, room)
        for group in range(whole_lanes(size) // LANES):
            for k in range(LANES):
                add_dense(
                    dense[group * LANES + k], finite_max, values[group * LANES + k],
                    &mass[k], &mass_lost[k], &gap[k], &gap_lost[k],
                )
    sum_of_lanes(mass, mass_lost, block_max)
    sum_of_lanes(gap, gap_lost, block_max)
    stats[MASS * stride] = mass[0]
    stats[MASS_LOST * stride] = finite_or_zero(mass_lost[0])
    stats[GAP * stride] = gap[0]
    stats[GAP_LOST * stride] = finite_or_zero(gap_lost[0])


cdef inline void add_moments_of_row(
    const floating* block_logits, Py_ssize_t n, floating block_max, Py_ssize_t max_at, double* stats,
    Py_ssize_t stride,
) noexcept nogil:
    """Reduce n classes of a row to the fields of statistics that are made of squares."""
    cdef floating shift, exponent_shift, lowest, logit
    cdef double spread_2[LANES]
    cdef double squares[LANES]
    cdef double none[LANES]
    cdef double scale = <double> without_headroom(block_max) * unit_at(block_max)
    cdef Py_ssize_t group, k
    refer_to(block_max, &shift, &exponent_shift, &lowest)
    for k in range(LANES):
        spread_2[k] = squares[k] = none[k] = 0
    for group in range(n // LANES):
        for k in range(LANES):
            logit = block_logits[group * LANES + k]
            add_moments(
                exp_scaled(logit, shift, exponent_shift, lowest), finite_or_zero(block_max), logit,
                group * LANES + k == max_at, &spread_2[k], &squares[k],
            )
    for k in range(n // LANES * LANES, n):
        add_moments(
            exp_scaled(block_logits[k], shift, exponent_shift, lowest), finite_or_zero(block_max),
            block_logits[k], k == max_at, &spread_2[0], &squares[0],
        )
    sum_of_lanes(spread_2, none, block_max)
    sum_of_lanes(squares, none, block_max)
    stats[SPREAD_2 * stride] = spread_2[0] * scale
    # Without the headroom already.
    stats[SQUARES * stride] = squares[0] * unit_at(block_max) * unit_at(block_max)


cdef inline void add_stats_of_row(
    const Call* call, const Tile* tile, Py_ssize_t row, const floating* block_logits, Py_ssize_t first,
    Py_ssize_t n, floating block_max, Py_ssize_t max_at, double* stats, Py_ssize_t stride,
) noexcept nogil:
    """Reduce n classes of a row, from number `first` on, to the fields that statistics are made of."""
    cdef floating shift, exponent_shift, lowest, logit
    cdef double spread[LANES]
    cdef double lost[LANES]
    cdef Py_ssize_t group, k
    if call.has_moments:
        add_moments_of_row(block_logits, n, block_max, max_at, stats, stride)
    refer_to(block_max, &shift, &exponent_shift, &lowest)
    for k in range(LANES):
        spread[k] = lost[k] = 0
    for group in range(n // LANES):
        for k in range(LANES):
            logit = block_logits[group * LANES + k]
            add_spread(
                exp_scaled(logit, shift, exponent_shift, lowest), finite_or_zero(block_max), logit,
                &spread[k], &lost[k],
            )
    for k in range(n % LANES):
        logit = block_logits[n // LANES * LANES + k]
        add_spread(
            exp_scaled(logit, shift, exponent_shift, lowest), finite_or_zero(block_max), logit,
            &spread[k], &lost[k],
        )
    sum_of_lanes(spread, lost, block_max)
    stats[SPREAD * stride] = (
        settled(spread[0], lost[0]) * <double> without_headroom(block_max) * unit_at(block_max)
    )
    stats[RANK * stride] = count_before(
        block_logits, n, <floating> tile.pivot_logit[row], tile.pivot[row] - first
    )


cdef inline floating max_of_block(
    const floating* block_logits, const floating* tail, Py_ssize_t n, Py_ssize_t* max_at_out
) noexcept nogil:
    """Maximum of n logits, whose last chunk is in `tail` unless it is whole, and where it is.

    If nothing is above -inf, max_at_out becomes n.
    """
    cdef Py_ssize_t n_full = n // CHUNK
    cdef Py_ssize_t n_tail = n - n_full * CHUNK
    cdef floating block_max = -INFINITY
    cdef floating chunk_max
    cdef const floating* values
    cdef Py_ssize_t max_chunk = 0
    cdef Py_ssize_t chunk, size
    for chunk in range(n_full + (n_tail > 0)):
        values = block_logits + chunk * CHUNK if chunk < n_full else tail
        chunk_max = max_of(values, CHUNK) if chunk < n_full else max_of(values, whole_lanes(n_tail))
        if chunk_max > block_max:
            block_max = chunk_max
            max_chunk = chunk
    values = block_logits + max_chunk * CHUNK if max_chunk < n_full else tail
    size = min(<Py_ssize_t> CHUNK, n - max_chunk * CHUNK)
    max_at_out[0] = n
    if block_max > -INFINITY:
        max_at_out[0] = max_chunk * CHUNK + index_of(values, <int> size, block_max)
    return block_max


cdef inline void write_rest(
    double rest, double lost, double unit, floating reference, floating block_max, double* stats,
    Py_ssize_t stride,
) noexcept nogil:
    """Write the rest of a block, of which a sum of exponentials and its unit are given."""
    stats[MAX * stride] = block_max
    stats[REST * stride] = rest * <double> without_headroom(block_max) * unit
    stats[REST_LOST * stride] = lost * <double> without_headroom(block_max) * unit
    stats[UNIT * stride] = unit
    stats[REFERENCE * stride] = reference


cdef inline void add_exponentials(
    const floating* block_logits, const floating* tail, Py_ssize_t n, floating block_max, Py_ssize_t max_at,
    floating* exps_out, floating* tail_exps_out, const char* next_logits, double* stats, Py_ssize_t stride,
) noexcept nogil:
    """The second of two passes over n logits, whose maximum is known: exponentials relative to it, their
    rest.

    exps_out: NULL if they are not kept. next_logits: what to prefetch, or NULL.
    """
    cdef Py_ssize_t n_full = n // CHUNK
    cdef Py_ssize_t n_tail = n - n_full * CHUNK
    cdef floating local[CHUNK]
    cdef double total[LANES]
    cdef double lost[LANES]
    cdef const floating* values
    cdef floating* exps
    cdef floating at_max = 0
    cdef floating shift, exponent_shift, lowest
    cdef Py_ssize_t chunk, k, size
    cdef bint has_max
    refer_to(block_max, &shift, &exponent_shift, &lowest)
    for k in range(LANES):
        total[k] = lost[k] = 0
    for chunk in range(n_full + (n_tail > 0)):
        size = min(<Py_ssize_t> CHUNK, n - chunk * CHUNK)
        values = block_logits + chunk * CHUNK if chunk < n_full else tail
        exps = exps_out + chunk * CHUNK if exps_out != NULL else local
        if chunk == n_full:
            exps = tail_exps_out
        # Prefetch the next block, or row: a quarter off the loss of 2048 x 32000 at x86_64_v4, and a fifth
        # off a gradient that streams. Without streaming, a gradient keeps the memory busy anyway.
        if next_logits != NULL:
            prefetch(next_logits + chunk * CHUNK * sizeof(floating), CHUNK * sizeof(floating))
        if chunk < n_full:
            exponentials_of(values, CHUNK, shift, exponent_shift, lowest, exps)
        else:
            exponentials_of(values, whole_lanes(n_tail), shift, exponent_shift, lowest, exps)
        # The maximum stays out of the sum.
        has_max = lies_within(max_at - chunk * CHUNK, size)
        if has_max:
            at_max = exps[max_at - chunk * CHUNK]
            exps[max_at - chunk * CHUNK] = 0
        if chunk < n_full:
            add_chunk(exps, CHUNK, total, lost)
        else:
            add_chunk(exps, whole_lanes(n_tail), total, lost)
        if has_max:
            exps[max_at - chunk * CHUNK] = at_max
    sum_of_lanes(total, lost, block_max)
    write_rest(total[0], lost[0], unit_at(block_max), block_max, block_max, stats, stride)


cdef inline void reduce_in_two_passes(
    const Call* call, const Tile* tile, Py_ssize_t row, const floating* block_logits, Py_ssize_t first,
    Py_ssize_t n, floating* exps_out, double* stats,
) noexcept nogil:
    """Reduce n classes of a row, from number `first` on.

    exps_out: NULL if they are not kept; may be where the logits are. stats: of this block and row; its fields
    are call.tile_width apart.
    """
    cdef Py_ssize_t n_full = n // CHUNK
    cdef Py_ssize_t n_tail = n - n_full * CHUNK
    cdef Py_ssize_t stride = call.tile_width
    cdef const char* next_logits = NULL
    cdef floating tail[CHUNK]
    cdef floating tail_exps[CHUNK]
    cdef floating block_max
    cdef Py_ssize_t max_at, k
    # A short last chunk is filled up with logits that add nothing.
    if n_tail:
        memcpy(tail, block_logits + n_full * CHUNK, n_tail * sizeof(floating))
        for k in range(n_tail, whole_lanes(n_tail)):
            tail[k] = -INFINITY
    block_max = max_of_block(block_logits, <const floating*> tail, n, &max_at)
    stats[ARGMAX * stride] = <double> (first + max_at)
    if call.has_dense:
        add_dense_of_row(
            call, tile, row, block_logits, <const floating*> tail, first, n, block_max, stats
        )
    if call.has_stats:
        add_stats_of_row(call, tile, row, block_logits, first, n, block_max, max_at, stats, stride)
    if is_native[floating](call.logits.format, 0) and (exps_out == NULL or call.streams):
        next_logits = address_of(&call.logits, tile.logits_at[row] + first + n)
    add_exponentials(
        block_logits, <const floating*> tail, n, block_max, max_at, exps_out, tail_exps, next_logits, stats,
        stride,
    )
    if exps_out != NULL:
        memcpy(exps_out + n_full * CHUNK, tail_exps, n_tail * sizeof(floating))
