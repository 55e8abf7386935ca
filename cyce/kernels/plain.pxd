"""Plain losses of tiles: one target for each position, floats in vectors, and their gradient at most.

What positions.pxd computes of them in a loop for each step is one loop here: separate loops spend half of
their time on memory. The bits are the same.
"""
from cython cimport floating
from libc.math cimport NAN

from cyce.kernels.call cimport ALL, GRADIENT, Call, Tile
from cyce.kernels.math cimport inverse_for_float, log_for_float
from cyce.kernels.merge cimport MAX, REST, UNIT
from cyce.kernels.points cimport scaled_softmax
from cyce.kernels.positions cimport has_other_masses, settle_losses, target_softmax
from cyce.kernels.storage cimport TILE, is_native, store_rows, store_tile
from cyce.kernels.sums cimport LANES
from cyce.kernels.targets cimport compares_targets, number_pivots
from cyce.kernels.transforms cimport changes_logits, has_mask
from cyce.kernels.transposition cimport Changes
from cyce.kernels.vectors cimport HAS_VECTORS


cdef inline bint is_plain(const Call* call, floating like) noexcept nogil:
    """Whether the losses of a call are plain ones."""
    return (
        floating is float and HAS_VECTORS and not call.by_rows and call.n_blocks == 1
        and call.output == GRADIENT and call.phase == ALL and call.target != NULL
        and not has_other_masses(call) and not call.is_focal
        and not call.has_stats and call.hessian == NULL and call.vector == NULL and call.entropy_out == NULL
        and not changes_logits(call) and not has_mask(call)
    )


cdef inline double plain_loss(
    const Tile* tile, const double* stats, Py_ssize_t k, double* rest_out
) noexcept nogil:
    """Loss of one position: see positions.pxd. rest_out: its rest, NaN where the maximum is infinite."""
    cdef double row_max = stats[MAX * tile.pitch + k]
    # All is loaded before it is chosen: compilers make no vectors of what is loaded under a condition.
    cdef double distance = row_max - tile.pivot_logit[k]
    cdef double rest = stats[REST * tile.pitch + k]
    rest = rest if row_max - row_max == 0 else NAN
    cdef double logarithm = log_for_float(1.0 + rest, rest)
    distance = 0.0 if tile.hard[k] == 0 else distance
    rest_out[0] = rest
    # The logarithm has no NaN.
    return tile.hard[k] * (distance + (logarithm if rest == rest else NAN))


cdef inline double finish_plain_losses(const Call* call, Tile* tile, const double* stats) noexcept nogil:
    """Losses of a tile and what its gradient is made of; returns the sum of the losses."""
    cdef double loss[TILE]
    cdef double row_max, rest, inverse, softmax, others, scale
    cdef Py_ssize_t k
    if call.grad.start == NULL:
        for k in range(tile.lanes):
            loss[k] = plain_loss(tile, stats, k, &rest)
        return settle_losses[float](call, tile, loss, 0)
    if not compares_targets(call, <float> 0):
        number_pivots(tile, call.n_classes)
    if tile.n_ignored or tile.width < tile.lanes:
        for k in range(tile.lanes):
            if not tile.counts[k]:
                tile.pivot_number[k] = -1
                tile.scale[k] = 0
    for k in range(tile.lanes):
        loss[k] = plain_loss(tile, stats, k, &rest)
        scale = tile.scale[k] * tile.hard[k]
        inverse = inverse_for_float(1.0 + rest)
        tile.plain_factor[k] = <float> (scale * inverse * stats[UNIT * tile.pitch + k])
        row_max = stats[MAX * tile.pitch + k]
        softmax = target_softmax(tile.pivot_logit[k], row_max, inverse)
        others = rest * inverse if tile.pivot_logit[k] == row_max else 1.0 - softmax
        tile.plain_gradient[k] = <float> (tile.scale[k] * (0.0 - tile.hard[k] * others))
    return settle_losses[float](call, tile, loss, 0)


cdef inline void finish_plain_tile(const Call* call, const Tile* tile, float* packed) noexcept nogil:
    """Turn the exponentials of a tile into the gradient."""
    cdef Py_ssize_t n = call.n_classes
    cdef Changes changes
    cdef float class_number
    cdef float* lane
    cdef Py_ssize_t c, k
    if (
        call.grad.class_stride == 1 and not tile.grad_contiguous and n >= 4 and tile.width % LANES == 0
        and is_native[float](call.grad.format, 0)
    ):
        changes.factor = &tile.plain_factor[0]
        changes.number = &tile.pivot_number[0]
        changes.replacement = &tile.plain_gradient[0]
        store_rows[float](
            packed, tile.pitch, &call.grad, 0, tile.grad_at, tile.width, n, call.streams, &changes
        )
        return
    for c in range(n):
        lane = packed + c * tile.pitch
        class_number = <float> c
        for k in range(tile.lanes):
            lane[k] = (
                tile.plain_gradient[k] if tile.pivot_number[k] == class_number
                else scaled_softmax(lane[k], tile.plain_factor[k])
            )
    store_tile[float](
        packed, tile.pitch, &call.grad, 0, tile.grad_at, tile.grad_contiguous, tile.width, n, call.streams
    )
