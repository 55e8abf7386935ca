"""One block of a tile of positions, vectors across the positions.

The twin of rows.pxd; `plan` (plan.pxd) chooses between the two. A block is packed to [class][position] first,
and computed there: exponentials of floats by columns.pxd, where there are vectors. Losses without any option
are finished by plain.pxd.
"""
from cython cimport floating
from libc.math cimport INFINITY

from cyce.kernels.call cimport ALL, SOFTMAX, Ahead, Call, Tile
from cyce.kernels.columns cimport (
    WIDE, find_maxima, pack_planes_with_maxima, reduce_columns, restart_columns,
)
from cyce.kernels.curvature cimport (
    add_number, at_least, has_pivots, hessian_of, is_product, load_numbers, share_of_hessian, within_float,
)
from cyce.kernels.machine cimport CACHE_LINE, prefetch
from cyce.kernels.masses cimport dense_scale_of, fill_dense_of_tile, is_uniform
from cyce.kernels.merge cimport (
    ARGMAX, DOT, GAP, GAP_LOST, MASS, MASS_LOST, MAX, RANK, REST, REST_LOST, SPREAD, SPREAD_2, SQUARES, TOP,
    UNIT, block_factor, needs_argmax,
)
from cyce.kernels.plan cimport classes_of_block, lies_within
from cyce.kernels.points cimport (
    add_dense, add_moments, add_spread, at_most_1, comes_before, entropy_factor, less_mass, log_softmax_of,
    number_factor, scaled_softmax,
)
from cyce.kernels.positions cimport log_softmax_parts
from cyce.kernels.reference cimport (
    exp_scaled, power_at, refer_to, relative_at, unit_of, without_headroom,
)
from cyce.kernels.storage cimport TILE, is_native, load_one, load_tile, store_tile
from cyce.kernels.streaming cimport needs_logits, restarts
from cyce.kernels.sums cimport LANES, add, finite_or_zero, settled
from cyce.kernels.targets cimport pick_from_block
from cyce.kernels.transforms cimport changes_logits, has_mask, has_slopes, mask_tile, transform
from cyce.kernels.transposition cimport pack_rows_with_maxima
from cyce.kernels.vectors cimport HAS_VECTORS


cdef enum:
    # Positions whose exponentials are added up at a time.
    GROUP = 16


cdef inline void neutralize_ignored(const Tile* tile, Py_ssize_t n, floating* packed_out) noexcept nogil:
    """Set n packed classes of ignored positions to 0: no NaN of theirs survives their scale, which is 0."""
    cdef Py_ssize_t c, k
    if tile.n_ignored:
        for k in range(tile.width):
            if not tile.counts[k]:
                for c in range(n):
                    packed_out[c * tile.pitch + k] = 0


cdef inline void tile_load_logits(
    const Call* call, const Tile* tile, Py_ssize_t first, Py_ssize_t n, floating* packed_out
) noexcept nogil:
    """Pack the logits of n classes from number `first` on."""
    load_tile(&call.logits, first, tile.logits_at, tile.contiguous, tile.width, n, tile.pitch, packed_out)
    neutralize_ignored(tile, n, packed_out)


cdef inline void tile_transform(
    const Call* call, const Tile* tile, Py_ssize_t n, floating* packed_out, floating* slopes_out
) noexcept nogil:
    """Apply softcap and temperature to n packed classes; slopes_out: see `transform`."""
    cdef Py_ssize_t c
    for c in range(n):
        transform(
            call, <const floating*> packed_out + c * tile.pitch, tile.lanes, packed_out + c * tile.pitch,
            slopes_out + c * tile.pitch if slopes_out != NULL else NULL,
        )


cdef inline void tile_reduce_stats(
    const Call* call, const Tile* tile, const floating* packed, Py_ssize_t first, Py_ssize_t n,
    const floating* row_max, const floating* argmax, const floating* shift, const floating* exponent_shift,
    const floating* lowest, const double* unit, double* stats,
) noexcept nogil:
    """Reduce n classes of a tile, from number `first` on, to the fields that statistics are made of.

    shift, exponent_shift, lowest, unit: of `exp_scaled`, whatever other exponentials are computed by.
    """
    cdef double* spread = stats + SPREAD * tile.pitch
    cdef double* rank = stats + RANK * tile.pitch
    cdef double* spread_2 = stats + SPREAD_2 * tile.pitch
    cdef double* squares = stats + SQUARES * tile.pitch
    cdef double lost[TILE]
    cdef floating exponential[TILE]
    cdef const floating* lane
    cdef Py_ssize_t c, k
    for k in range(tile.lanes):
        spread[k] = lost[k] = rank[k] = spread_2[k] = squares[k] = 0
    for c in range(n):
        lane = packed + c * tile.pitch
        for k in range(tile.lanes):
            exponential[k] = exp_scaled(lane[k], shift[k], exponent_shift[k], lowest[k])
            add_spread(exponential[k], finite_or_zero(row_max[k]), lane[k], &spread[k], &lost[k])
            rank[k] += comes_before(lane[k], first + c, tile.pivot_logit[k], tile.pivot[k])
        if call.has_moments:
            for k in range(tile.lanes):
                add_moments(
                    exponential[k], finite_or_zero(row_max[k]), lane[k], argmax[k] == <floating> c,
                    &spread_2[k], &squares[k],
                )
    for k in range(tile.lanes):
        spread[k] = settled(spread[k], lost[k]) * <double> without_headroom(row_max[k]) * unit[k]
    if call.has_moments:
        for k in range(tile.lanes):
            spread_2[k] *= <double> without_headroom(row_max[k]) * unit[k]
            # Without the headroom already.
            squares[k] *= unit[k] * unit[k]


cdef inline void tile_reduce_dense(
    const Call* call, const Tile* tile, const floating* packed, Py_ssize_t first, Py_ssize_t n,
    const floating* row_max, double* stats,
) noexcept nogil:
    """Reduce n classes of a tile, from number `first` on, to their dense masses and gaps."""
    cdef double* mass = stats + MASS * tile.pitch
    cdef double* mass_lost = stats + MASS_LOST * tile.pitch
    cdef double* gap = stats + GAP * tile.pitch
    cdef double* gap_lost = stats + GAP_LOST * tile.pitch
    cdef floating dense[TILE]
    cdef const floating* lane
    cdef Py_ssize_t c, k
    for k in range(tile.lanes):
        mass[k] = gap[k] = mass_lost[k] = gap_lost[k] = 0
    for c in range(n):
        lane = packed + c * tile.pitch
        fill_dense_of_tile(call, tile, first + c, dense)
        for k in range(tile.lanes):
            add_dense(
                dense[k], finite_or_zero(row_max[k]), lane[k],
                &mass[k], &mass_lost[k], &gap[k], &gap_lost[k],
            )
    for k in range(tile.lanes):
        mass_lost[k] = finite_or_zero(mass_lost[k])
        gap_lost[k] = finite_or_zero(gap_lost[k])


cdef inline void tile_reduce_numbers(
    const Call* call, const Tile* tile, const floating* packed, Py_ssize_t first, Py_ssize_t n,
    const floating* argmax, double* stats,
) noexcept nogil:
    """Reduce n classes of a tile to the sums of their numbers of the vector, from exponentials."""
    cdef const double* unit = stats + UNIT * tile.pitch
    cdef double* dot = stats + DOT * tile.pitch
    cdef double* tops = stats + TOP * tile.pitch
    cdef Py_ssize_t stride = call.vector.class_stride
    cdef double lost[TILE]
    cdef floating top[TILE]
    cdef floating number[TILE]
    cdef const floating* lane
    cdef Py_ssize_t c, k
    for k in range(tile.lanes):
        dot[k] = lost[k] = tops[k] = top[k] = 0
    for k in range(tile.width):
        if tile.counts[k] and argmax[k] < <floating> n:
            top[k] = load_one(
                call.vector, tile.vector_at[k] + (first + <Py_ssize_t> argmax[k]) * stride, <floating> 0
            )
            tops[k] = top[k]
    for c in range(n):
        lane = packed + c * tile.pitch
        load_numbers(call, tile, first + c, number)
        for k in range(tile.lanes):
            add_number(lane[k], top[k], number[k], &dot[k], &lost[k])
    for k in range(tile.lanes):
        dot[k] = settled(dot[k], lost[k]) * <double> without_headroom(top[k]) * unit[k]


cdef inline void tile_maxima(
    const Tile* tile, const floating* packed, Py_ssize_t n, floating* row_max_out, floating* argmax_out
) noexcept nogil:
    """Maxima of n packed classes, and where they are: n where nothing is above -inf."""
    cdef floating largest[LANES]
    cdef floating at[LANES]
    cdef floating value, class_number
    cdef const floating* lane
    cdef Py_ssize_t c, group, k
    # As many positions at a time as there are registers.
    for group in range(tile.lanes // LANES):
        for k in range(LANES):
            largest[k] = -INFINITY
            at[k] = <floating> n
        for c in range(n):
            lane = packed + c * tile.pitch + group * LANES
            class_number = <floating> c
            for k in range(LANES):
                value = lane[k]
                # An addition of 0 elsewhere: GCC would make a choice a store with a branch.
                at[k] += class_number - at[k] if value > largest[k] else <floating> 0.0
                largest[k] = value if value > largest[k] else largest[k]
        for k in range(LANES):
            row_max_out[group * LANES + k] = largest[k]
            argmax_out[group * LANES + k] = at[k]


cdef inline void tile_add_exponentials(
    const Tile* tile, floating* packed, Py_ssize_t n, const floating* shift, const floating* exponent_shift,
    const floating* lowest, const floating* argmax, double* total_out, double* lost_out,
) noexcept nogil:
    """Turn n packed classes of logits into exponentials; sums of these, without those at the maxima."""
    cdef double total[GROUP]
    cdef double lost[GROUP]
    cdef floating exponential, class_number
    cdef floating* lane
    cdef Py_ssize_t c, group, first, k
    for group in range(tile.lanes // GROUP):
        first = group * GROUP
        for k in range(GROUP):
            total[k] = lost[k] = 0
        for c in range(n):
            lane = packed + c * tile.pitch + first
            class_number = <floating> c
            for k in range(GROUP):
                exponential = exp_scaled(
                    lane[k], shift[first + k], exponent_shift[first + k], lowest[first + k]
                )
                lane[k] = exponential
                exponential = <floating> 0.0 if argmax[first + k] == class_number else exponential
                add(&total[k], &lost[k], exponential)
        for k in range(GROUP):
            total_out[first + k] = total[k]
            lost_out[first + k] = lost[k]


cdef inline bint in_columns(floating like) noexcept nogil:
    """Whether exponentials are computed in vectors (columns.pxd)."""
    return floating is float and HAS_VECTORS


cdef inline bint packs_with_maxima(
    const Call* call, const Tile* tile, Py_ssize_t n, floating like
) noexcept nogil:
    """Whether the maxima of a block of n classes are found while it is packed."""
    cdef bint is_packed_so = (
        tile.width % WIDE == 0 if tile.contiguous
        else call.logits.class_stride == 1 and n >= 4 and tile.width % LANES == 0
    )
    return (
        in_columns(like) and is_packed_so and is_native(call.logits.format, like) and tile.n_ignored == 0
        and not changes_logits(call) and not has_mask(call)
    )


cdef inline void pack_with_maxima(
    const Call* call, const Tile* tile, Py_ssize_t first, Py_ssize_t n, float* packed_out, float* row_max_out
) noexcept nogil:
    """Pack n classes from number `first` on, and find their maxima meanwhile."""
    cdef const float* logits = <const float*> call.logits.start + first * call.logits.class_stride
    if tile.contiguous:
        pack_planes_with_maxima(
            tile, logits + tile.logits_at[0], call.logits.class_stride, n, packed_out, row_max_out
        )
    else:
        pack_rows_with_maxima(
            logits, tile.logits_at, tile.width, n, packed_out, tile.pitch, row_max_out
        )


cdef inline Ahead ahead_of_block(const Ahead* ahead, Py_ssize_t first) noexcept nogil:
    """What there is to prefetch from class number `first` on."""
    cdef Ahead rest = ahead[0]
    rest.start += first * rest.class_step
    return rest


cdef inline void tile_reduce_block(
    const Call* call, Tile* tile, bint exps_wait, Py_ssize_t block, double* stats, floating* packed
) noexcept nogil:
    """Reduce one block of a tile; leave its exponentials in `packed`.

    exps_wait: leave them in the gradient, too, where `packed` is needed for other blocks.
    """
    cdef Py_ssize_t first = block * call.block_classes
    cdef Py_ssize_t n = classes_of_block(call, block)
    cdef Ahead next_logits = ahead_of_block(&tile.logits_ahead, first)
    cdef Ahead grad = ahead_of_block(&tile.grad_ahead, first)
    cdef floating row_max[TILE]
    cdef floating argmax[TILE]
    cdef floating shift[TILE]
    cdef floating exponent_shift[TILE]
    cdef floating lowest[TILE]
    cdef floating relative[TILE]
    cdef floating power[TILE]
    cdef double unit[TILE]
    cdef double* rest = stats + REST * tile.pitch
    cdef double* rest_lost = stats + REST_LOST * tile.pitch
    cdef bint has_maxima = packs_with_maxima(call, tile, n, <floating> 0)
    cdef Py_ssize_t c, k

    if has_maxima:
        pack_with_maxima(call, tile, first, n, <float*> packed, <float*> row_max)
    else:
        tile_load_logits(call, tile, first, n, packed)
    if call.target != NULL and not call.has_stats:
        pick_from_block(call, tile, packed, first, n)
    if changes_logits(call):
        tile_transform(call, tile, n, packed, <floating*> NULL)
    if has_mask(call):
        mask_tile(call, tile, first, n, packed, <floating*> NULL)
    if needs_argmax(call) or not in_columns(<floating> 0):
        tile_maxima(tile, packed, n, row_max, argmax)
        for k in range(tile.lanes):
            # In double: a float does not hold all class numbers.
            stats[ARGMAX * tile.pitch + k] = <double> first + argmax[k]
    elif not has_maxima:
        find_maxima(tile, <const float*> packed, n, <float*> row_max)
    if not in_columns(<floating> 0) or call.has_stats:
        for k in range(tile.lanes):
            refer_to(row_max[k], &shift[k], &exponent_shift[k], &lowest[k])
        for k in range(tile.lanes):
            relative[k] = relative_at(row_max[k])
            power[k] = power_at(relative[k])
        # A loop of its own, because it is all in double.
        for k in range(tile.lanes):
            unit[k] = unit_of[floating](relative[k], power[k], 0)
    if call.has_stats:
        tile_reduce_stats(
            call, tile, packed, first, n, row_max, argmax, shift, exponent_shift, lowest, unit, stats
        )
    if call.has_dense:
        tile_reduce_dense(call, tile, packed, first, n, row_max, stats)
    if in_columns(<floating> 0):
        reduce_columns(
            tile, <float*> packed, n, <const float*> row_max, call.grad.start != NULL, &next_logits, &grad,
            stats,
        )
    else:
        for c in range(n):
            prefetch(next_logits.start + c * next_logits.class_step, tile.width * next_logits.step)
            if call.grad.start != NULL:
                prefetch(
                    grad.start + c * grad.class_step, max(<Py_ssize_t> CACHE_LINE, tile.width * grad.step)
                )
        tile_add_exponentials(tile, packed, n, shift, exponent_shift, lowest, argmax, rest, rest_lost)
        for k in range(tile.lanes):
            stats[MAX * tile.pitch + k] = row_max[k]
            stats[UNIT * tile.pitch + k] = unit[k]
            rest[k] *= <double> without_headroom(row_max[k]) * unit[k]
            rest_lost[k] *= <double> without_headroom(row_max[k]) * unit[k]
    if is_product(call):
        tile_reduce_numbers(call, tile, packed, first, n, argmax, stats)
    if exps_wait:
        store_tile(
            <const floating*> packed, tile.pitch, &call.grad, first, tile.grad_at, tile.grad_contiguous,
            tile.width, n, False,
        )


cdef inline void tile_restart_block(
    const Call* call, const Tile* tile, Py_ssize_t first, Py_ssize_t n, const double* stats,
    floating* packed, floating* slopes_out, floating* factors_out,
) noexcept nogil:
    """Turn the logits of one block of a tile into exponentials again.

    With the softcap's slopes, if any, and the factors of the softmax, if the entropy has a gradient.
    """
    cdef floating shift[TILE]
    cdef floating exponent_shift[TILE]
    cdef floating lowest[TILE]
    cdef floating* lane
    cdef Py_ssize_t c, k
    tile_load_logits(call, tile, first, n, packed)
    if changes_logits(call):
        tile_transform(call, tile, n, packed, slopes_out if has_slopes(call) else <floating*> NULL)
    if has_mask(call):
        mask_tile(call, tile, first, n, packed, slopes_out if has_slopes(call) else <floating*> NULL)
    if needs_logits(call):
        for c in range(n):
            for k in range(tile.lanes):
                factors_out[c * tile.pitch + k] = entropy_factor(
                    <floating> tile.base[k], <floating> tile.number_scale[k], <floating> tile.row_max[k],
                    packed[c * tile.pitch + k],
                )
    if in_columns(<floating> 0):
        restart_columns(tile, <float*> packed, n, stats)
        return
    for k in range(tile.lanes):
        refer_to(<floating> stats[MAX * tile.pitch + k], &shift[k], &exponent_shift[k], &lowest[k])
    for c in range(n):
        lane = packed + c * tile.pitch
        for k in range(tile.lanes):
            lane[k] = exp_scaled(lane[k], shift[k], exponent_shift[k], lowest[k])


cdef inline void fill_factors(
    const Call* call, const Tile* tile, const double* multiple, const double* stats, floating* factor_out
) noexcept nogil:
    """What turns exponentials of a block, without their headroom, into multiples of softmax."""
    cdef Py_ssize_t k
    if call.n_blocks == 1 and call.phase == ALL:
        # The maximum of the block is that of the position.
        for k in range(tile.lanes):
            factor_out[k] = <floating> (multiple[k] * tile.inverse[k] * stats[UNIT * tile.pitch + k])
    else:
        for k in range(tile.lanes):
            factor_out[k] = <floating> (
                block_factor[floating](tile, multiple[k], stats, tile.pitch, k, 0)
                * stats[UNIT * tile.pitch + k]
            )


cdef inline void add_shares_of_tile(
    const Call* call, const Tile* tile, Py_ssize_t first, Py_ssize_t n, const double* stats,
    const floating* packed, const floating* factor, floating* hessian,
) noexcept nogil:
    """Add to the Hessians of n classes of a tile, from number `first` on, what a focal loss adds."""
    cdef double inverse[TILE]
    cdef floating share_factor[TILE]
    cdef floating part[TILE]
    cdef floating mass[TILE]
    cdef floating dense[TILE]
    cdef const floating* lane
    cdef floating* out
    cdef Py_ssize_t c, k
    for k in range(tile.lanes):
        inverse[k] = within_float(tile.miss_inverse[k], <floating> 0)
        part[k] = <floating> tile.share_part[k]
        mass[k] = <floating> tile.share_mass[k]
        dense[k] = 0
    fill_factors(call, tile, inverse, stats, share_factor)
    for c in range(n):
        lane = packed + c * tile.pitch
        out = hessian + c * tile.pitch
        if call.has_dense:
            fill_dense_of_tile(call, tile, first + c, dense)
        for k in range(tile.lanes):
            out[k] += share_of_hessian(
                scaled_softmax(lane[k], factor[k]), scaled_softmax(lane[k], share_factor[k]), part[k],
                dense[k] * mass[k],
            )
    for k in range(tile.width):
        if tile.counts[k] and lies_within(tile.pivot[k] - first, n):
            hessian[(tile.pivot[k] - first) * tile.pitch + k] = <floating> tile.pivot_hessian[k]


cdef inline void write_hessian_of_tile(
    const Call* call, const Tile* tile, Py_ssize_t first, Py_ssize_t n, const double* stats,
    const floating* packed, floating* hessian,
) noexcept nogil:
    """Write the diagonal of the Hessian at n classes of a tile, from number `first` on.

    packed: their exponentials. hessian: room for as many.
    """
    cdef double multiple[TILE]
    cdef double scale[TILE]
    cdef floating softmax_factor[TILE]
    cdef floating factor[TILE]
    cdef floating at_top[TILE]
    cdef floating variance[TILE]
    cdef floating square[TILE]
    cdef floating floor = <floating> call.hessian_floor
    cdef const floating* lane
    cdef floating* out
    cdef Py_ssize_t c, k
    for k in range(tile.lanes):
        multiple[k] = 1
        scale[k] = within_float(tile.hessian_scale[k], floor)
        at_top[k] = <floating> tile.hessian_at_top[k]
        variance[k] = <floating> tile.variance_part[k]
        square[k] = <floating> tile.square_part[k]
    fill_factors(call, tile, multiple, stats, softmax_factor)
    fill_factors(call, tile, scale, stats, factor)
    for c in range(n):
        lane = packed + c * tile.pitch
        out = hessian + c * tile.pitch
        for k in range(tile.lanes):
            out[k] = hessian_of(
                scaled_softmax(lane[k], factor[k]), scaled_softmax(lane[k], softmax_factor[k]), at_top[k],
                variance[k], square[k],
            )
    if call.is_focal:
        add_shares_of_tile(call, tile, first, n, stats, packed, factor, hessian)
    for c in range(n):
        out = hessian + c * tile.pitch
        for k in range(tile.lanes):
            out[k] = at_least(floor, out[k])
    store_tile(
        <const floating*> hessian, tile.pitch, call.hessian, first, tile.hessian_at, tile.hessian_contiguous,
        tile.width, n, call.streams,
    )


cdef inline void tile_finish_block(
    const Call* call, const Tile* tile, Py_ssize_t block, const double* stats, floating* packed
) noexcept nogil:
    """Turn the exponentials of one block of a tile into the gradient."""
    cdef Py_ssize_t first = block * call.block_classes
    cdef Py_ssize_t n = classes_of_block(call, block)
    cdef double multiple[TILE]
    cdef floating factor[TILE]
    cdef floating dense_factor[TILE]
    cdef floating dense[TILE]
    cdef floating number[TILE]
    cdef floating* slopes = packed + tile.pitch * call.block_classes
    cdef floating* factors = slopes + tile.pitch * call.block_classes if has_slopes(call) else slopes
    cdef double unused
    cdef floating* lane
    cdef Py_ssize_t c, k
    if restarts(call, <floating> 0):
        tile_restart_block(call, tile, first, n, stats, packed, slopes, factors)
    elif call.n_blocks > 1:
        load_tile(
            &call.grad, first, tile.grad_at, tile.grad_contiguous, tile.width, n, tile.pitch, packed
        )
        neutralize_ignored(tile, n, packed)
    if call.hessian != NULL:
        # `slopes` is room for it: the Hessian is not wanted of a softcap, nor of an entropy.
        write_hessian_of_tile(call, tile, first, n, stats, packed, slopes)
    for k in range(tile.lanes):
        multiple[k] = tile.scale[k] * tile.total[k]
    fill_factors(call, tile, multiple, stats, factor)
    if has_mask(call):
        for k in range(tile.lanes):
            dense_factor[k] = <floating> (tile.scale[k] * dense_scale_of(call, tile, k, &unused))
    elif call.has_dense:
        for k in range(tile.lanes):
            dense_factor[k] = <floating> (tile.scale[k] * call.dense_scale)
    for c in range(n):
        lane = packed + c * tile.pitch
        for k in range(tile.lanes):
            lane[k] = scaled_softmax(lane[k], factor[k])
        if call.output == SOFTMAX:
            for k in range(tile.lanes):
                lane[k] = at_most_1(lane[k])
        if needs_logits(call):
            for k in range(tile.lanes):
                lane[k] *= factors[c * tile.pitch + k]
        if is_product(call):
            load_numbers(call, tile, first + c, number)
            for k in range(tile.lanes):
                lane[k] *= number_factor(
                    <floating> tile.base[k], <floating> tile.number_scale[k], <floating> tile.top[k],
                    number[k],
                )
        elif is_uniform(call):
            for k in range(tile.lanes):
                lane[k] -= dense_factor[k]
        elif call.has_dense:
            fill_dense_of_tile(call, tile, first + c, dense)
            for k in range(tile.lanes):
                lane[k] = less_mass(lane[k], dense[k], dense_factor[k])
        if has_slopes(call):
            for k in range(tile.lanes):
                lane[k] *= slopes[c * tile.pitch + k]
    if has_pivots(call):
        for k in range(tile.width):
            if tile.counts[k] and lies_within(tile.pivot[k] - first, n):
                packed[(tile.pivot[k] - first) * tile.pitch + k] = <floating> tile.pivot_gradient[k]
    store_tile(
        <const floating*> packed, tile.pitch, &call.grad, first, tile.grad_at, tile.grad_contiguous,
        tile.width, n, call.streams,
    )


cdef inline void tile_log_softmax_block(
    const Call* call, const Tile* tile, Py_ssize_t block, floating* packed
) noexcept nogil:
    """Write the log-softmax of one block of a tile."""
    cdef Py_ssize_t first = block * call.block_classes
    cdef Py_ssize_t n = classes_of_block(call, block)
    cdef double subtracted[TILE]
    cdef double subtracted_then[TILE]
    cdef floating* lane
    cdef Py_ssize_t c, k
    tile_load_logits(call, tile, first, n, packed)
    if has_mask(call):
        mask_tile(call, tile, first, n, packed, <floating*> NULL)
    for k in range(tile.lanes):
        subtracted[k] = log_softmax_parts[floating](tile, k, &subtracted_then[k], 0)
    for c in range(n):
        lane = packed + c * tile.pitch
        for k in range(tile.lanes):
            lane[k] = log_softmax_of(lane[k], subtracted[k], subtracted_then[k])
    store_tile(
        <const floating*> packed, tile.pitch, &call.grad, first, tile.grad_at, tile.grad_contiguous,
        tile.width, n, False,
    )
