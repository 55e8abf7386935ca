"""Blocks of classes, and shards, merged into the state of a position.

A block is reduced by itself to the fields below: its maximum m, and sums relative to that, such as the
rest, the sum of exp(x_j - m) over all its classes but one at the maximum. Blocks are merged in order: the
sums of the side with the lower maximum decay by e**(low - high), and its own maximum enters the rest as the
decay itself. So the loss of a position is (m - x_target) + log1p(rest), two non-negative terms: nothing
cancels.

States of several shards of the classes merge by the same function. For doubles, what each step loses is
carried along (`_LOST`).
"""
from cython cimport floating
from libc.math cimport INFINITY, NAN
from libc.string cimport memset

from cyce.kernels.call cimport GRADIENT, REDUCE, Call, Tile
from cyce.kernels.machine cimport cyce_product_lost
from cyce.kernels.math cimport exp_for_float, exp_in_parts, exp_nonpositive
from cyce.kernels.plan cimport lies_within
from cyce.kernels.storage cimport TILE
from cyce.kernels.sums cimport add, add_product, difference_lost, finite_or_zero, settled, sum_lost

cdef extern from *:
    const Py_ssize_t PY_SSIZE_T_MAX

cdef enum:
    # What is kept of a block, or in a state, for each position.
    MAX
    ARGMAX
    REST
    REST_LOST
    MASS                            # sum of the dense masses
    MASS_LOST
    GAP                             # sum of dense mass * (MAX - logit)
    GAP_LOST
    # For statistics:
    SPREAD                          # sum of exp(logit - MAX) * (MAX - logit)
    SPREAD_2                        # sum of exp(logit - MAX) * (MAX - logit)**2
    SQUARES                         # sum of exp(logit - MAX)**2 over the classes of the rest
    RANK                            # number of classes before the target's
    N_COMMON_FIELDS
    # Only of a block:
    UNIT = N_COMMON_FIELDS          # turns its waiting exponentials into exp(logit - MAX), see reference.pxd
    REFERENCE                       # what they are relative to
    UNIT_LOST
    UNIT_BELOW                      # the same for chunks that are relative to something lower,
    BELOW                           # bit k of which stands for chunk k
    DOT                             # sum of exp(logit - MAX) * (number of the vector - TOP)
    TOP                             # number of the vector at the maximum
    N_BLOCK_FIELDS
    # Only of a state:
    PICKED = N_COMMON_FIELDS        # the target's logit, NaN if it is not among the classes
    WEIGHT                          # the class weight of the target, NaN if it is not among the classes
    N_STATE_FIELDS

cdef enum:
    # What ARGMAX is, in a state, where nothing is above -inf, and where the position is ignored.
    NO_MAXIMUM = -2
    IGNORED = -1


cdef inline double decay_of(double block_max, double row_max, floating like) noexcept nogil:
    """e**(block_max - row_max); 0 for a block of nothing but -inf, whatever the maximum."""
    cdef double distance = block_max - row_max
    cdef double decay
    if floating is float:
        decay = exp_for_float(distance)
    else:
        decay = exp_nonpositive(distance)
        # Add what the subtraction lost, unless it overflowed: then decay is 0.
        decay += decay * finite_or_zero(difference_lost(block_max, row_max, distance))
    return 0.0 if block_max == -INFINITY else decay


cdef inline double decay_in_parts(
    double block_max, double row_max, double* lost_out, floating like
) noexcept nogil:
    """decay_of; for doubles, with what rounding it loses."""
    cdef double distance = block_max - row_max
    cdef double decay
    if floating is float:
        lost_out[0] = 0
        decay = decay_of(block_max, row_max, like)
    else:
        decay = exp_in_parts(
            distance, finite_or_zero(difference_lost(block_max, row_max, distance)), lost_out
        )
        lost_out[0] = 0.0 if block_max == -INFINITY else finite_or_zero(lost_out[0])
        decay = 0.0 if block_max == -INFINITY else decay
    return decay


cdef inline double times(double a, double* a_lost, double b, double b_lost) noexcept nogil:
    """(a + a_lost) * (b + b_lost), rounded; a_lost becomes what that loses."""
    cdef double product = a * b
    a_lost[0] = a_lost[0] * b + a * b_lost + cyce_product_lost(a, b, product)
    return product


cdef inline double block_factor(
    const Tile* tile, double multiple, const double* stats, Py_ssize_t stride, Py_ssize_t k, floating like
) noexcept nogil:
    """What turns exponentials of a block, times their unit and without headroom, into multiple * softmax."""
    cdef double decay = decay_of(stats[MAX * stride + k], tile.row_max[k], like)
    return multiple * tile.inverse[k] * decay


cdef inline double inverse_lost_of(const Tile* tile, Py_ssize_t k) noexcept nogil:
    """What rounding took from `Tile.inverse`."""
    cdef double denominator = 1.0 + tile.rest[k]
    cdef double denominator_lost = sum_lost(1.0, tile.rest[k], denominator) + tile.rest_lost[k]
    cdef double product = tile.inverse[k] * denominator
    cdef double remainder = (1.0 - product) - cyce_product_lost(tile.inverse[k], denominator, product)
    return tile.inverse[k] * (remainder - tile.inverse[k] * denominator_lost)


cdef inline double row_factor(
    const Tile* tile, double scale, double total, const double* stats, Py_ssize_t stride, Py_ssize_t row,
    double unit, double unit_lost, floating like,
) noexcept nogil:
    """`block_factor` for scale * total, times the unit of a block; for doubles, rounded once."""
    cdef double factor, decay, decay_lost
    cdef double lost = unit_lost
    if floating is float:
        return block_factor(tile, scale * total, stats, stride, row, like) * unit
    else:
        decay = decay_in_parts[double](stats[MAX * stride + row], tile.row_max[row], &decay_lost, 0)
        factor = times(unit, &lost, decay, decay_lost)
        factor = times(factor, &lost, tile.inverse[row], inverse_lost_of(tile, row))
        factor = times(factor, &lost, total, 0.0)
        factor = times(factor, &lost, scale, 0.0)
        return settled(factor, lost)


cdef inline double raised(double mass, double rise) noexcept nogil:
    """What a mass adds to the gap where the maximum rises; 0 without mass, even where it rises to inf."""
    return 0.0 if mass == 0 else mass * rise


cdef inline void raise_gap(
    double* gap, double* lost, double mass, double mass_lost, double high, double row_max, floating like
) noexcept nogil:
    """Add to the gap what a mass adds where the maximum rises from row_max to high."""
    cdef double rise = finite_or_zero(high) - finite_or_zero(row_max)
    cdef double rise_lost = difference_lost(finite_or_zero(high), finite_or_zero(row_max), rise)
    if floating is float:
        gap[0] += raised(mass, rise)
    elif mass != 0:
        add_product[double](gap, lost, mass, mass_lost, rise, rise_lost, 0)


cdef inline bint needs_argmax(const Call* call) noexcept nogil:
    """Whether it is needed where the maxima are."""
    return (
        call.has_stats or call.has_dense or call.vector != NULL or call.phase == REDUCE
        or (call.output == GRADIENT and call.target == NULL)
    )


cdef inline void begin_merge(
    const Call* call, Tile* tile, const double* stats, Py_ssize_t stride
) noexcept nogil:
    """Make the first block the state of a tile; the fields of a block are `stride` apart."""
    cdef Py_ssize_t k
    for k in range(tile.lanes):
        tile.row_max[k] = stats[MAX * stride + k]
        tile.rest[k] = stats[REST * stride + k]
        tile.rest_lost[k] = stats[REST_LOST * stride + k]
    if needs_argmax(call):
        for k in range(tile.lanes):
            tile.argmax[k] = stats[ARGMAX * stride + k]
    if call.has_dense:
        for k in range(tile.lanes):
            tile.mass[k] = stats[MASS * stride + k]
            tile.mass_lost[k] = stats[MASS_LOST * stride + k]
            tile.gap[k] = stats[GAP * stride + k]
            tile.gap_lost[k] = stats[GAP_LOST * stride + k]
    if call.has_stats:
        for k in range(tile.lanes):
            tile.spread[k] = stats[SPREAD * stride + k]
            tile.rank[k] = stats[RANK * stride + k]
    if call.has_moments:
        for k in range(tile.lanes):
            tile.spread_2[k] = stats[SPREAD_2 * stride + k]
            tile.squares[k] = stats[SQUARES * stride + k]
    if call.vector != NULL:
        for k in range(tile.lanes):
            tile.dot[k] = stats[DOT * stride + k]
            tile.top[k] = stats[TOP * stride + k]


cdef inline void merge_moments(
    Tile* tile, Py_ssize_t k, bint grew, double decay, double rise, double block_spread,
    double block_spread_2, double block_squares, double loser_rest,
) noexcept nogil:
    """Merge the moments of the next block, before its spread is merged.

    decay: of the side with the lower maximum. rise: by how much that is lower. loser_rest: its rest.
    """
    cdef double loser_spread = tile.spread[k] if grew else block_spread
    cdef double loser_spread_2 = tile.spread_2[k] if grew else block_spread_2
    cdef double loser_squares = tile.squares[k] if grew else block_squares
    tile.spread_2[k] = block_spread_2 if grew else tile.spread_2[k]
    tile.spread_2[k] += raised(
        decay, loser_spread_2 + rise * (2.0 * loser_spread + rise * (1.0 + loser_rest))
    )
    tile.squares[k] = block_squares if grew else tile.squares[k]
    tile.squares[k] += decay * decay * (1.0 + loser_squares)


cdef inline void merge_numbers(
    Tile* tile, Py_ssize_t k, bint grew, double decay, double block_dot, double block_top, double loser_rest
) noexcept nogil:
    """Merge the numbers of the vector in the next block; decay, loser_rest: as of `merge_moments`."""
    cdef double winner_dot = block_dot if grew else tile.dot[k]
    cdef double loser_dot = tile.dot[k] if grew else block_dot
    cdef double winner_top = block_top if grew else tile.top[k]
    cdef double loser_top = tile.top[k] if grew else block_top
    tile.dot[k] = winner_dot + decay * (loser_dot + (loser_top - winner_top) * (1.0 + loser_rest))
    tile.top[k] = winner_top


cdef inline void merge_block(
    const Call* call, Tile* tile, const double* stats, Py_ssize_t stride, floating like
) noexcept nogil:
    """Merge the next block into the state of a tile."""
    cdef double low, high, block_max, block_rest, block_lost, block_mass, block_mass_lost
    cdef double loser_mass, loser_mass_lost
    cdef double decay, decay_lost, winner_rest, loser_rest, block_spread, loser_spread
    cdef Py_ssize_t k
    cdef bint grew
    for k in range(tile.lanes):
        block_max = stats[MAX * stride + k]
        block_rest = stats[REST * stride + k]
        block_lost = stats[REST_LOST * stride + k]
        grew = block_max > tile.row_max[k]
        high = block_max if grew else tile.row_max[k]
        low = tile.row_max[k] if grew else block_max
        winner_rest = block_rest if grew else tile.rest[k]
        loser_rest = tile.rest[k] if grew else block_rest
        decay = decay_in_parts(low, high, &decay_lost, like)
        if call.has_stats:
            block_spread = stats[SPREAD * stride + k]
            if call.has_moments:
                merge_moments(
                    tile, k, grew, decay, high - low, block_spread, stats[SPREAD_2 * stride + k],
                    stats[SQUARES * stride + k], loser_rest,
                )
            loser_spread = tile.spread[k] if grew else block_spread
            tile.spread[k] = block_spread if grew else tile.spread[k]
            tile.spread[k] += raised(decay, loser_spread + (high - low) * (1.0 + loser_rest))
            tile.rank[k] += stats[RANK * stride + k]
        if call.vector != NULL:
            merge_numbers(
                tile, k, grew, decay, stats[DOT * stride + k], stats[TOP * stride + k], loser_rest
            )
        if call.has_dense:
            block_mass = stats[MASS * stride + k]
            block_mass_lost = stats[MASS_LOST * stride + k]
            loser_mass = tile.mass[k] if grew else block_mass
            loser_mass_lost = tile.mass_lost[k] if grew else block_mass_lost
            raise_gap(
                &tile.gap[k], &tile.gap_lost[k], loser_mass, loser_mass_lost, high, low, like
            )
            add[double](&tile.gap[k], &tile.gap_lost[k], stats[GAP * stride + k])
            tile.gap_lost[k] += stats[GAP_LOST * stride + k]
            add[double](&tile.mass[k], &tile.mass_lost[k], block_mass)
            tile.mass_lost[k] += block_mass_lost
        if needs_argmax(call):
            tile.argmax[k] = stats[ARGMAX * stride + k] if grew else tile.argmax[k]
        tile.rest_lost[k] = block_lost + tile.rest_lost[k] * decay if grew else (
            tile.rest_lost[k] + block_lost * decay
        )
        tile.rest[k] = winner_rest
        add[double](&tile.rest[k], &tile.rest_lost[k], decay)
        tile.rest_lost[k] += decay_lost
        # In double for both: the rests are double.
        add_product[double](
            &tile.rest[k], &tile.rest_lost[k], loser_rest, 0.0, decay, decay_lost, 0
        )
        tile.row_max[k] = high


cdef inline void merge_blocks(
    const Call* call, Tile* tile, const double* stats, floating like
) noexcept nogil:
    """Merge the blocks of a tile, in order."""
    cdef Py_ssize_t block
    begin_merge(call, tile, stats, call.tile_width)
    for block in range(1, call.n_blocks):
        merge_block(call, tile, stats + block * N_BLOCK_FIELDS * call.tile_width, call.tile_width, like)


# ---------------------------------------------------------------------------------------------
# States outside of a tile: (N_STATE_FIELDS, n_positions)


cdef inline void save_state(const Call* call, const Tile* tile) noexcept nogil:
    """Write the state of a tile, with the numbers that classes have among all shards."""
    cdef double* out = call.states + tile.first
    cdef Py_ssize_t n = call.n_positions
    cdef Py_ssize_t k
    for k in range(tile.width):
        out[MAX * n + k] = tile.row_max[k]
        out[ARGMAX * n + k] = NO_MAXIMUM
        if tile.argmax[k] < call.n_classes:
            out[ARGMAX * n + k] = tile.argmax[k] + call.first_class
        out[REST * n + k] = tile.rest[k]
        out[REST_LOST * n + k] = tile.rest_lost[k]
        out[MASS * n + k] = tile.mass[k] if call.has_dense else 0.0
        out[MASS_LOST * n + k] = tile.mass_lost[k] if call.has_dense else 0.0
        out[GAP * n + k] = tile.gap[k] if call.has_dense else 0.0
        out[GAP_LOST * n + k] = tile.gap_lost[k] if call.has_dense else 0.0
        out[SPREAD * n + k] = tile.spread[k] if call.has_stats else 0.0
        out[SPREAD_2 * n + k] = tile.spread_2[k] if call.has_moments else 0.0
        out[SQUARES * n + k] = tile.squares[k] if call.has_moments else 0.0
        out[RANK * n + k] = tile.rank[k] if call.has_stats else 0.0


cdef inline void save_targets(const Call* call, const Tile* tile, floating like) noexcept nogil:
    """Write logits and weights of the targets that are among the classes, and what is ignored."""
    cdef const floating* weight = <const floating*> call.weight
    cdef double* out = call.states + tile.first
    cdef Py_ssize_t n = call.n_positions
    cdef Py_ssize_t k
    cdef int field
    for k in range(tile.width):
        out[PICKED * n + k] = NAN
        out[WEIGHT * n + k] = 1.0 if call.target == NULL else NAN
        if not tile.counts[k]:
            # Whatever the logits are: finite, as tiles multiply it by 0.
            for field in range(N_COMMON_FIELDS):
                out[field * n + k] = 0
            out[ARGMAX * n + k] = IGNORED
            out[WEIGHT * n + k] = 0
        elif call.target != NULL and lies_within(tile.pivot[k], call.n_classes):
            out[PICKED * n + k] = tile.pivot_logit[k]
            out[WEIGHT * n + k] = weight[tile.pivot[k]] if weight != NULL else <floating> 1


cdef inline void load_state(const Call* call, Tile* tile, const double* states) noexcept nogil:
    """Make a state, from `save_state` or merged from several, that of a tile."""
    cdef const double* state = states + tile.first
    cdef Py_ssize_t n = call.n_positions
    cdef Py_ssize_t k
    for k in range(tile.width):
        tile.row_max[k] = state[MAX * n + k]
        tile.argmax[k] = state[ARGMAX * n + k] - call.first_class
        tile.rest[k] = state[REST * n + k]
        tile.rest_lost[k] = state[REST_LOST * n + k]
        tile.mass[k] = state[MASS * n + k]
        tile.mass_lost[k] = state[MASS_LOST * n + k]
        tile.gap[k] = state[GAP * n + k]
        tile.gap_lost[k] = state[GAP_LOST * n + k]
        tile.spread[k] = state[SPREAD * n + k]
        tile.spread_2[k] = state[SPREAD_2 * n + k]
        tile.squares[k] = state[SQUARES * n + k]
        tile.rank[k] = state[RANK * n + k]
        tile.pivot_logit[k] = state[PICKED * n + k]


cdef inline void leave_out_states(Tile* tile) noexcept nogil:
    """Make the states of positions that do not count finite: a gradient multiplies them by 0."""
    cdef Py_ssize_t k
    for k in range(tile.width):
        if not tile.counts[k]:
            tile.row_max[k] = tile.rest[k] = tile.rest_lost[k] = tile.pivot_logit[k] = 0
            tile.mass[k] = tile.mass_lost[k] = tile.gap[k] = tile.gap_lost[k] = 0


cdef inline void load_hard_masses(const Call* call, Tile* tile, const double* states) noexcept nogil:
    """Hard masses of a tile's positions: the shard of a target alone has its weight."""
    cdef const double* weight = states + WEIGHT * call.n_positions + tile.first
    cdef double picked = 1.0 - call.smoothing
    cdef Py_ssize_t k
    for k in range(tile.width):
        if tile.counts[k]:
            tile.hard[k] = picked * weight[k]


cdef inline void merge_states(
    double* states, const double* other, Py_ssize_t n, Tile* tile, floating like
) noexcept nogil:
    """Merge the states of n positions into others, of the classes before these; tile: room to compute in."""
    cdef Call call
    cdef Py_ssize_t k
    memset(&call, 0, sizeof(call))
    call.n_positions = n
    call.n_classes = call.n_all_classes = PY_SSIZE_T_MAX
    call.has_dense = call.has_stats = call.has_moments = True
    call.states = states
    tile.first = 0
    while tile.first < n:
        tile.width = tile.lanes = min(<Py_ssize_t> TILE, n - tile.first)
        load_state(&call, tile, states)
        merge_block(&call, tile, other + tile.first, n, like)
        for k in range(tile.first, tile.first + tile.width):
            if states[PICKED * n + k] != states[PICKED * n + k]:
                states[PICKED * n + k] = other[PICKED * n + k]
            if states[WEIGHT * n + k] != states[WEIGHT * n + k]:
                states[WEIGHT * n + k] = other[WEIGHT * n + k]
        save_state(&call, tile)
        tile.first += TILE
