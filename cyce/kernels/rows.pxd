"""One block of one position, vectors along the classes; `plan` (plan.pxd) chooses between rows and tiles.

`row_reduce_block` reduces the block to its statistics (merge.pxd) and leaves its exponentials where they wait
for `row_finish_block`, which turns them into the gradient or the softmax. Where there are vectors, a block is
reduced in one pass (one_pass.pxd), elsewhere in two (two_passes.pxd).
"""
from cython cimport floating
from libc.math cimport fabs
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from cyce.kernels.call cimport SOFTMAX, Call, Tile
from cyce.kernels.chunks cimport fetch_chunk_ahead, lanes_of, largest_of
from cyce.kernels.curvature cimport (
    add_numbers_of_row, at_least, has_pivots, hessian_of, is_product, share_of_hessian, within_float,
)
from cyce.kernels.machine cimport check, cyce_to_float, whole_line
from cyce.kernels.masses cimport dense_masses, dense_scale_of, is_uniform
from cyce.kernels.merge cimport BELOW, N_BLOCK_FIELDS, UNIT, UNIT_BELOW, UNIT_LOST, row_factor
from cyce.kernels.one_pass cimport reduce_in_one_pass, settle_rests
from cyce.kernels.plan cimport CHUNK, ROW_BLOCK, classes_of_block, lies_within
from cyce.kernels.points cimport (
    at_most_1, entropy_factor, less_mass, log_softmax_of, number_factor, scaled_softmax,
)
from cyce.kernels.positions cimport log_softmax_parts
from cyce.kernels.reference cimport without_headroom
from cyce.kernels.storage cimport (
    MOST_WAITING, address_of, destination, fetch_last_line, is_native, load, size_of, store, store_lines,
    store_zeros,
)
from cyce.kernels.streaming cimport needs_logits
from cyce.kernels.transforms cimport (
    changes_logits, copies_logits, has_mask, has_slopes, mask_row, transform,
)
from cyce.kernels.two_passes cimport reduce_in_two_passes
from cyce.kernels.vectors cimport HAS_VECTORS


cdef inline const floating* row_logits(
    const Call* call, const Tile* tile, Py_ssize_t row, Py_ssize_t block, floating* packed,
    floating* slopes_out,
) noexcept nogil:
    """The logits of a block: where they lie, or in `packed`, with the options that change them."""
    cdef Py_ssize_t first = block * ROW_BLOCK
    cdef Py_ssize_t n = classes_of_block(call, block)
    cdef Py_ssize_t at = tile.logits_at[row] + first
    cdef const floating* chunk_logits
    cdef Py_ssize_t chunk, size, k
    if not copies_logits(call) and is_native[floating](call.logits.format, 0):
        return <const floating*> call.logits.start + at
    for chunk in range((n + CHUNK - 1) // CHUNK):
        k = chunk * CHUNK
        size = min(<Py_ssize_t> CHUNK, n - k)
        fetch_chunk_ahead(address_of(&call.logits, at + k), size_of(call.logits.format))
        chunk_logits = load(&call.logits, at + k, 1, size, packed + k)
        if changes_logits(call):
            transform(
                call, chunk_logits, size, packed + k, slopes_out + k if slopes_out != NULL else NULL
            )
        elif chunk_logits != packed + k:
            memcpy(packed + k, chunk_logits, size * sizeof(floating))
        if has_mask(call):
            mask_row(
                call, tile, row, first + k, size, packed + k, slopes_out + k if slopes_out != NULL else NULL
            )
    return packed


cdef inline void row_reduce_block(
    const Call* call, const Tile* tile, Py_ssize_t row, floating* exps_out, floating* slopes_out,
    Py_ssize_t block, double* stats, floating* packed,
) noexcept nogil:
    """Reduce one block of a row; leave its exponentials and its slopes there, unless that is NULL.

    exps_out may be where the logits are. stats: of this block and row; its fields are call.tile_width apart.
    packed: room for a block of logits, and one of exponentials. `rows_settle` has to follow.
    """
    cdef Py_ssize_t first = block * ROW_BLOCK
    cdef Py_ssize_t n = classes_of_block(call, block)
    cdef const floating* block_logits = row_logits(call, tile, row, block, packed, slopes_out)
    if HAS_VECTORS:
        reduce_in_one_pass(
            call, tile, row, block_logits, first, n, exps_out, stats, packed + call.block_classes
        )
    else:
        reduce_in_two_passes(call, tile, row, block_logits, first, n, exps_out, stats)
    if is_product(call):
        add_numbers_of_row(call, tile, row, block_logits, first, n, stats)


cdef inline void rows_settle(const Call* call, const Tile* tile, double* stats, floating like) noexcept nogil:
    """What is computed once for all rows of a tile, after one block of each was reduced."""
    if HAS_VECTORS:
        settle_rests(call, tile, stats, like)


cdef inline void row_leave_out(const Call* call, double* stats) noexcept nogil:
    """What `row_reduce_block` leaves of an ignored row, whatever its logits."""
    cdef int field
    for field in range(N_BLOCK_FIELDS):
        stats[field * call.tile_width] = 0


cdef inline floating largest_of_exponentials(const floating* exps, Py_ssize_t n) noexcept nogil:
    """The largest of n exponentials; NaN is skipped."""
    cdef Py_ssize_t lanes = lanes_of(<floating> 0)
    cdef Py_ssize_t n_vectors = n // lanes
    cdef floating largest = largest_of(exps, n_vectors, lanes)
    cdef Py_ssize_t k
    for k in range(n_vectors * lanes, n):
        largest = max(largest, exps[k])
    return largest


cdef inline void scale_exponentials(
    const floating* exps, Py_ssize_t n, double factor, floating less, bint in_double, floating* out
) noexcept nogil:
    """Write n exponentials, without their headroom, times a factor, less a number; `out` may be `exps`.

    in_double: where the factor as a float would lose digits that the products have, since exponentials may be
    far above 1, or where many products are subnormal, which costs 3 to 8 times the time in float.
    """
    cdef floating rounded = <floating> factor
    cdef double scaled = factor * <double> without_headroom(rounded)
    cdef Py_ssize_t k
    # Below 2**-150, products are 0.
    if floating is float and in_double and largest_of_exponentials(exps, n) * fabs(scaled) < 7e-46:
        for k in range(n):
            out[k] = <floating> 0 - less
    elif floating is float and in_double:
        for k in range(n):
            out[k] = cyce_to_float(<double> exps[k] * scaled) - less
    else:
        for k in range(n):
            out[k] = scaled_softmax(exps[k], rounded) - less


cdef inline bint is_small(double factor, int64_t below) noexcept nogil:
    """Whether `scale_exponentials` should compute in double."""
    return HAS_VECTORS and (below != 0 or fabs(factor) < 1e-25)


cdef inline void write_hessian_of_chunk(
    const Call* call, const Tile* tile, Py_ssize_t row, const floating* exps, Py_ssize_t first, Py_ssize_t n,
    double softmax_factor, int64_t below,
) noexcept nogil:
    """Write the diagonal of the Hessian at n classes of a row, from number `first` on.

    softmax_factor: what turns their exponentials into the softmax. below: see `is_small`.
    """
    cdef Py_ssize_t pivot = tile.pivot[row] - first
    cdef floating floor = <floating> call.hessian_floor
    cdef floating at_top = <floating> tile.hessian_at_top[row]
    cdef floating variance = <floating> tile.variance_part[row]
    cdef floating square = <floating> tile.square_part[row]
    cdef double factor = within_float(softmax_factor * tile.hessian_scale[row], floor)
    cdef double share_factor
    cdef floating softmax[CHUNK]
    cdef floating scaled[CHUNK]
    cdef floating share[CHUNK]
    cdef floating hessian[CHUNK]
    cdef floating room[CHUNK]
    cdef const floating* dense
    cdef floating share_mass
    cdef Py_ssize_t k
    scale_exponentials(exps, n, softmax_factor, <floating> 0, is_small(softmax_factor, below), softmax)
    scale_exponentials(exps, n, factor, <floating> 0, is_small(factor, below), scaled)
    for k in range(n):
        hessian[k] = hessian_of(scaled[k], softmax[k], at_top, variance, square)
    if call.is_focal:
        share_factor = within_float(softmax_factor * tile.miss_inverse[row], floor)
        share_mass = <floating> tile.share_mass[row]
        scale_exponentials(exps, n, share_factor, <floating> 0, is_small(share_factor, below), share)
        for k in range(n):
            room[k] = 0
        if call.has_dense:
            dense = dense_masses(call, tile, row, first, n, room)
            for k in range(n):
                room[k] = dense[k] * share_mass
        for k in range(n):
            hessian[k] += share_of_hessian(scaled[k], share[k], <floating> tile.share_part[row], room[k])
        if lies_within(pivot, n):
            hessian[pivot] = <floating> tile.pivot_hessian[row]
    for k in range(n):
        hessian[k] = at_least(floor, hessian[k])
    store(<const floating*> hessian, n, call.hessian, tile.hessian_at[row] + first, False)


cdef inline void write_hessian_of_row(
    const Call* call, const Tile* tile, Py_ssize_t row, const floating* block_exps, Py_ssize_t block,
    const double* stats,
) noexcept nogil:
    """Write the diagonal of the Hessian at one block of a row, from its exponentials."""
    cdef Py_ssize_t first = block * ROW_BLOCK
    cdef Py_ssize_t n = classes_of_block(call, block)
    cdef Py_ssize_t stride = call.tile_width
    cdef const double* row_stats = stats + row
    cdef int64_t below = 0
    cdef double factor, factor_below
    cdef floating none[CHUNK]
    cdef Py_ssize_t chunk, k, size
    if not tile.counts[row]:
        for k in range(CHUNK):
            none[k] = at_least(<floating> call.hessian_floor, <floating> 0)
        for chunk in range((n + CHUNK - 1) // CHUNK):
            store(
                <const floating*> none, min(<Py_ssize_t> CHUNK, n - chunk * CHUNK), call.hessian,
                tile.hessian_at[row] + first + chunk * CHUNK, False,
            )
        return
    factor = factor_below = row_factor[floating](
        tile, 1.0, 1.0, stats, stride, row, row_stats[UNIT * stride], 0.0, 0
    )
    if HAS_VECTORS:
        below = <int64_t> row_stats[BELOW * stride]
    if below != 0:
        factor_below = row_factor[floating](
            tile, 1.0, 1.0, stats, stride, row, row_stats[UNIT_BELOW * stride], 0.0, 0
        )
    for chunk in range((n + CHUNK - 1) // CHUNK):
        size = min(<Py_ssize_t> CHUNK, n - chunk * CHUNK)
        write_hessian_of_chunk(
            call, tile, row, block_exps + chunk * CHUNK, first + chunk * CHUNK, size,
            factor_below if below >> chunk & 1 else factor, below,
        )


cdef inline void row_finish_block(
    const Call* call, const Tile* tile, Py_ssize_t row, const floating* block_exps,
    const floating* block_slopes, Py_ssize_t block, const double* stats, floating* packed,
) noexcept nogil:
    """Turn the exponentials of one block of a row into the gradient, 0 for an ignored row.

    packed: room for the logits, where the gradient is made of these, too.
    """
    cdef Py_ssize_t first = block * ROW_BLOCK
    cdef Py_ssize_t n = classes_of_block(call, block)
    cdef Py_ssize_t pivot = tile.pivot[row] - first
    cdef Py_ssize_t grad_at = tile.grad_at[row] + first
    cdef const double* row_stats = stats + row
    cdef Py_ssize_t stride = call.tile_width
    cdef double unit_lost = row_stats[UNIT_LOST * stride] if HAS_VECTORS else 0.0
    cdef double factor = row_factor[floating](
        tile, tile.scale[row], tile.total[row], stats, stride, row, row_stats[UNIT * stride], unit_lost, 0
    )
    cdef double factor_below = factor
    cdef int64_t below = 0
    cdef double unused
    cdef floating dense_factor = <floating> (tile.scale[row] * dense_scale_of(call, tile, row, &unused))
    cdef const floating* block_logits = NULL
    cdef floating room[CHUNK]
    cdef const floating* dense
    cdef const floating* numbers
    # What streams is computed here, from a cache line on, behind what waits for one to be whole. Vectors that
    # cross lines and are read again at once would take twice the time.
    cdef floating local[CHUNK + 2 * MOST_WAITING]
    cdef floating* waiting = <floating*> whole_line(<char*> (local + MOST_WAITING))
    cdef floating* chunk_grad
    cdef Py_ssize_t n_waiting = 0
    cdef Py_ssize_t chunk, k, size
    cdef bint in_double
    if call.hessian != NULL:
        # Before the gradient is written, where the exponentials may wait.
        write_hessian_of_row(call, tile, row, block_exps, block, stats)
    if not tile.counts[row]:
        store_zeros(n, &call.grad, grad_at)
        return
    if HAS_VECTORS:
        below = <int64_t> row_stats[BELOW * stride]
    if below != 0:
        factor_below = row_factor[floating](
            tile, tile.scale[row], tile.total[row], stats, stride, row, row_stats[UNIT_BELOW * stride], 0.0, 0
        )
    in_double = is_small(factor, below)
    if call.streams:
        fetch_last_line(&call.grad, grad_at + n)
    if needs_logits(call):
        block_logits = row_logits(call, tile, row, block, packed, <floating*> NULL)
    for chunk in range((n + CHUNK - 1) // CHUNK):
        size = min(<Py_ssize_t> CHUNK, n - chunk * CHUNK)
        chunk_grad = destination(&call.grad, grad_at + chunk * CHUNK, waiting, call.streams)
        if needs_logits(call):
            # Before the gradient is written, which may be where the logits are.
            for k in range(size):
                room[k] = entropy_factor(
                    <floating> tile.base[row], <floating> tile.number_scale[row],
                    <floating> tile.row_max[row], block_logits[chunk * CHUNK + k],
                )
        elif is_product(call):
            numbers = load(
                call.vector,
                tile.vector_at[row] + (first + chunk * CHUNK) * call.vector.class_stride,
                call.vector.class_stride, size, room,
            )
            for k in range(size):
                room[k] = number_factor(
                    <floating> tile.base[row], <floating> tile.number_scale[row], <floating> tile.top[row],
                    numbers[k],
                )
        scale_exponentials(
            block_exps + chunk * CHUNK, size, factor_below if below >> chunk & 1 else factor,
            dense_factor if is_uniform(call) and not is_product(call) else <floating> 0, in_double,
            chunk_grad,
        )
        if call.output == SOFTMAX:
            for k in range(size):
                chunk_grad[k] = at_most_1(chunk_grad[k])
        if needs_logits(call) or is_product(call):
            for k in range(size):
                chunk_grad[k] *= room[k]
        if call.has_dense and not is_uniform(call) and not is_product(call):
            dense = dense_masses(call, tile, row, first + chunk * CHUNK, size, room)
            for k in range(size):
                chunk_grad[k] = less_mass(chunk_grad[k], dense[k], dense_factor)
        if has_slopes(call):
            for k in range(size):
                chunk_grad[k] *= block_slopes[chunk * CHUNK + k]
        if has_pivots(call) and lies_within(pivot - chunk * CHUNK, size):
            chunk_grad[pivot - chunk * CHUNK] = <floating> tile.pivot_gradient[row]
        if call.streams:
            n_waiting = store_lines(
                waiting, size, n_waiting, &call.grad, grad_at + chunk * CHUNK, (chunk + 1) * CHUNK >= n
            )
        else:
            store(chunk_grad, size, &call.grad, grad_at + chunk * CHUNK, False)


cdef inline void row_restart_block(
    const Call* call, const Tile* tile, Py_ssize_t row, Py_ssize_t block, const double* stats,
    floating* packed,
) noexcept nogil:
    """`row_finish_block` of exponentials that did not wait, nor did the slopes: compute them again.

    packed: room for a block of logits, of exponentials and, if there are any, of slopes.
    """
    cdef floating* exps = packed + call.block_classes
    cdef floating* slopes = exps + call.block_classes if has_slopes(call) else NULL
    cdef double again[N_BLOCK_FIELDS]
    # Rows are long.
    check(call.tile_width == 1)
    if tile.counts[row]:
        row_reduce_block(call, tile, row, exps, slopes, block, again, packed)
    row_finish_block(call, tile, row, exps, slopes, block, stats, packed)


cdef inline void row_log_softmax_block(
    const Call* call, const Tile* tile, Py_ssize_t row, Py_ssize_t block, floating* packed
) noexcept nogil:
    """Write the log-softmax of one block of a row."""
    cdef Py_ssize_t first = block * ROW_BLOCK
    cdef Py_ssize_t n = classes_of_block(call, block)
    cdef Py_ssize_t out_at = tile.grad_at[row] + first
    cdef const floating* logits = row_logits(call, tile, row, block, packed, <floating*> NULL)
    cdef floating* block_out = destination(&call.grad, out_at, packed, call.streams)
    cdef double subtracted_then
    cdef double subtracted = log_softmax_parts[floating](tile, row, &subtracted_then, 0)
    cdef Py_ssize_t k
    for k in range(n):
        block_out[k] = log_softmax_of(logits[k], subtracted, subtracted_then)
    store(block_out, n, &call.grad, out_at, call.streams)
