"""Second order: the diagonal of the Hessian, and the product of the Hessian with a vector.

With softmax p and total mass M, which z-loss adds to, the Hessian of a position is

    M * (diag(p) - p p') + 2 * z_loss * p p'

so that its diagonal is M * p * (1 - p) + 2 * z_loss * p**2. Of a class above 1/2, 1 - p is the probability of
the others, r / (1 + r), in double; elsewhere a difference that loses nothing: no Hessian cancels.

Its product with v is p * (M * (v - w) + 2 * z_loss * w), with the mean w = sum of p * v. Numbers of v are
taken relative to that at the maximum, so that v - w does not cancel there.

A focal loss u**gamma * (loss + poly1 * hard * u), with u = 1 - p of the target, has further terms. With

    R = gamma * loss / u + poly1 * hard * (gamma + 1),      the share p / u of a class in what is missed,

its diagonal is, at all classes but the target,

    u**gamma * (p * ((M + p_target * R) * (1 - p) - p_target * R * p)
                + share * gamma * p_target * (p * (p_target * (R - loss / u) + 2 * M) - 2 * dense mass))

In one form for all:

    scale * p * (variance * (1 - p) + square * p) + share * (scale * p * part - mass * dense mass)

The scale holds the largest of the factors. Shares are at most 1, so that it is finite wherever the loss is.
"""
from cython cimport floating
from libc.math cimport fabs

from cyce.kernels.call cimport GRADIENT, Call, Tile
from cyce.kernels.machine cimport multiply_add
from cyce.kernels.masses cimport dense_scale_of
from cyce.kernels.merge cimport ARGMAX, DOT, MAX, TOP, decay_of
from cyce.kernels.plan cimport CHUNK, lies_within
from cyce.kernels.reference cimport exp_scaled, refer_to, unit_at, without_headroom
from cyce.kernels.storage cimport load, load_one, load_positions
from cyce.kernels.sums cimport LANES, add, settled, sum_of_lanes


cdef inline bint is_product(const Call* call) noexcept nogil:
    """Whether the output is the product of the Hessian with a vector."""
    return call.vector != NULL


cdef inline bint has_pivots(const Call* call) noexcept nogil:
    """Whether the output is a gradient, whose pivots are computed apart and whose masses are subtracted."""
    return call.output == GRADIENT and not is_product(call)


# ---------------------------------------------------------------------------------------------
# The diagonal


cdef inline floating hessian_of(
    floating scaled, floating softmax, floating at_top, floating variance, floating square
) noexcept nogil:
    """The diagonal at a class; scaled: its softmax, times the scale. at_top: see `Tile.hessian_at_top`."""
    cdef floating hessian = scaled * multiply_add(variance, 1 - softmax, square * softmax)
    return at_top if softmax > <floating> 0.5 else hessian


cdef inline floating at_least(floating floor, floating value) noexcept nogil:
    """A number, or the floor if that is higher; NaN stays."""
    return floor if value < floor else value


cdef inline floating share_of_hessian(
    floating scaled, floating share, floating part, floating mass
) noexcept nogil:
    """What a focal loss adds at a class; mass: the dense mass of the class, times its factor."""
    return share * (scaled * part - mass)


cdef inline double within_float(double factor, floating like) noexcept nogil:
    """A factor as the arithmetic can hold it: not infinite, of which a product with 0 would be NaN."""
    cdef double most = 1e38 if floating is float else 1e308
    return most if factor > most else (-most if factor < -most else factor)


cdef inline void begin_focal_hessian(
    const Call* call, Tile* tile, Py_ssize_t k, floating like
) noexcept nogil:
    """What the Hessian of a focal loss is made of beside `variance_part`, and the Hessian at the target."""
    cdef double softmax = decay_of(tile.pivot_logit[k], tile.row_max[k], like) * tile.inverse[k]
    cdef double missed = (
        tile.rest[k] * tile.inverse[k] if tile.pivot_logit[k] == tile.row_max[k] else 1.0 - softmax
    )
    # Infinite where the target has no probability: then nothing is added.
    cdef double ratio = tile.focal_ratio[k] if softmax > 0 else 0.0
    cdef double poly1 = call.poly1 * tile.hard[k] * (call.gamma + 1.0)
    cdef double slope = call.gamma * ratio + poly1
    cdef double rise = softmax * slope
    cdef double bend = call.gamma * softmax * ((call.gamma - 1.0) * ratio + poly1)
    cdef double mass = tile.total[k] - rise
    cdef double unused
    # Of the loss before it is modulated, at the target.
    cdef double gradient = softmax * tile.other_mass[k] - (tile.pivot_mass[k] - rise) * missed
    tile.square_part[k] = -rise
    # Below, all probabilities that this multiplies are 0.
    tile.miss_inverse[k] = 1.0 / missed if missed > 1e-307 else 0.0
    tile.share_part[k] = softmax * (bend + 2.0 * call.gamma * mass)
    if call.has_dense:
        tile.share_mass[k] = (
            tile.hessian_scale[k] * 2.0 * call.gamma * softmax * dense_scale_of(call, tile, k, &unused)
        )
    tile.pivot_hessian[k] = tile.hessian_scale[k] * softmax * (
        missed * (tile.total[k] + bend - slope * missed) - 2.0 * call.gamma * gradient
    )


cdef inline void begin_hessians(const Call* call, Tile* tile, floating like) noexcept nogil:
    """What the Hessians of a tile are made of, after `find_pivots`."""
    cdef double largest
    cdef Py_ssize_t k
    for k in range(tile.lanes):
        tile.hessian_scale[k] = tile.scale[k] / call.temperature * call.hessian_factor
        tile.square_part[k] = 2.0 * call.z_loss
    if call.is_focal:
        for k in range(tile.lanes):
            tile.miss_inverse[k] = tile.share_part[k] = tile.share_mass[k] = 0
        for k in range(tile.width):
            if tile.counts[k]:
                begin_focal_hessian(call, tile, k, like)
    for k in range(tile.lanes):
        largest = max(fabs(tile.total[k]), fabs(tile.square_part[k]))
        if call.is_focal:
            largest = max(largest, fabs(tile.share_part[k]))
        tile.hessian_scale[k] *= largest
        largest = 1.0 / largest if largest > 0 else 0.0
        tile.variance_part[k] = tile.total[k] * largest
        tile.square_part[k] *= largest
        if call.is_focal:
            tile.share_part[k] *= largest
        tile.hessian_at_top[k] = tile.hessian_scale[k] * tile.inverse[k] * tile.inverse[k] * (
            tile.variance_part[k] * tile.rest[k] + tile.square_part[k]
        )


# ---------------------------------------------------------------------------------------------
# Products with a vector


cdef inline void add_number(
    floating exponential, floating top, floating number, double* total, double* lost
) noexcept nogil:
    """Add exponential * (number - top)."""
    cdef double product = <double> exponential * (<double> number - <double> top)
    if floating is float:
        total[0] += product
    else:
        add[double](total, lost, product)


cdef inline void add_numbers_of_row(
    const Call* call, const Tile* tile, Py_ssize_t row, const floating* block_logits, Py_ssize_t first,
    Py_ssize_t n, double* stats,
) noexcept nogil:
    """Reduce n classes of a row, from number `first` on, to the sum of their numbers; after their maximum."""
    cdef Py_ssize_t stride = call.tile_width
    cdef Py_ssize_t number_stride = call.vector.class_stride
    cdef Py_ssize_t at = tile.vector_at[row] + first * number_stride
    cdef floating block_max = <floating> stats[MAX * stride]
    cdef Py_ssize_t max_at = <Py_ssize_t> stats[ARGMAX * stride] - first
    cdef floating top = 0
    cdef floating shift, exponent_shift, lowest
    cdef floating room[CHUNK]
    cdef const floating* numbers
    cdef const floating* logits
    cdef double dot[LANES]
    cdef double lost[LANES]
    cdef Py_ssize_t chunk, size, group, k
    if lies_within(max_at, n):
        top = load_one(call.vector, at + max_at * number_stride, block_max)
    refer_to(block_max, &shift, &exponent_shift, &lowest)
    for k in range(LANES):
        dot[k] = lost[k] = 0
    for chunk in range((n + CHUNK - 1) // CHUNK):
        size = min(<Py_ssize_t> CHUNK, n - chunk * CHUNK)
        logits = block_logits + chunk * CHUNK
        numbers = load(call.vector, at + chunk * CHUNK * number_stride, number_stride, size, room)
        for group in range(size // LANES):
            for k in range(LANES):
                add_number(
                    exp_scaled(logits[group * LANES + k], shift, exponent_shift, lowest), top,
                    numbers[group * LANES + k], &dot[k], &lost[k],
                )
        for k in range(size // LANES * LANES, size):
            add_number(
                exp_scaled(logits[k], shift, exponent_shift, lowest), top, numbers[k], &dot[0], &lost[0]
            )
    sum_of_lanes(dot, lost, block_max)
    stats[DOT * stride] = (
        settled(dot[0], lost[0]) * <double> without_headroom(block_max) * unit_at(block_max)
    )
    stats[TOP * stride] = top


cdef inline void load_numbers(
    const Call* call, const Tile* tile, Py_ssize_t c, floating* number_out
) noexcept nogil:
    """The vector's numbers of class c at every position of a tile; 0 for ignored positions."""
    cdef Py_ssize_t k
    load_positions(
        call.vector, tile.vector_at, tile.vector_contiguous, c * call.vector.class_stride, tile.width,
        number_out,
    )
    for k in range(tile.width, tile.lanes):
        number_out[k] = 0
    if tile.n_ignored:
        for k in range(tile.width):
            number_out[k] = number_out[k] if tile.counts[k] else <floating> 0.0


cdef inline void begin_products(const Call* call, Tile* tile) noexcept nogil:
    """Make the output softmax * (base + number_scale * (number - top))."""
    cdef double mean
    cdef Py_ssize_t k
    for k in range(tile.lanes):
        # Less that of the maximum.
        mean = tile.dot[k] * tile.inverse[k]
        tile.base[k] = 2.0 * call.z_loss * (tile.top[k] + mean) - tile.total[k] * mean
        tile.number_scale[k] = tile.total[k]
        # What remains as a factor of the softmax.
        tile.total[k] = 1
        tile.scale[k] /= call.temperature
