"""Dense masses: the part of a target that is on all classes.

Every target is a `hard` mass on one class (targets.pxd) plus a dense mass on all of them: 1 under label
smoothing, or the class probabilities, smoothed; times the class weights; 0 where the class mask leaves out a
class. `dense_scale_of` is applied once, at the end.
"""
from cython cimport floating

from cyce.kernels.call cimport Call, Tile
from cyce.kernels.machine cimport check
from cyce.kernels.plan cimport CHUNK
from cyce.kernels.points cimport smoothed
from cyce.kernels.storage cimport load, load_positions
from cyce.kernels.sums cimport add, quotient_lost, settled, whole_lanes
from cyce.kernels.transforms cimport has_mask, mask_at


cdef inline bint is_uniform(const Call* call) noexcept nogil:
    """Whether the dense masses of all classes are 1: label smoothing without weights."""
    return (
        call.has_dense and call.probabilities.start == NULL and call.weight == NULL and not has_mask(call)
    )


cdef inline double share_of(const Call* call, const Tile* tile, Py_ssize_t k) noexcept nogil:
    """What smoothing puts on each class of a position: it spreads over those that the mask leaves."""
    if not has_mask(call):
        return call.smoothing / call.n_all_classes
    return call.smoothing / tile.n_left[k] if tile.n_left[k] > 0 else 0.0


cdef inline double dense_scale_of(
    const Call* call, const Tile* tile, Py_ssize_t k, double* lost_out
) noexcept nogil:
    """Factor of the dense masses of a position, and what rounding that loses."""
    cdef double scale
    if has_mask(call) and call.probabilities.start == NULL:
        scale = share_of(call, tile, k)
        lost_out[0] = quotient_lost(call.smoothing, tile.n_left[k], scale) if scale > 0 else 0.0
        return scale
    lost_out[0] = call.dense_scale_lost
    return call.dense_scale


cdef inline void count_left(const Call* call, Tile* tile) noexcept nogil:
    """Count the classes that the mask leaves to each position of a tile."""
    cdef Py_ssize_t c, k, n
    for k in range(tile.lanes):
        tile.n_left[k] = 0
    for k in range(tile.width):
        n = 0
        for c in range(call.n_classes):
            n += mask_at(call, tile, k, c)
        tile.n_left[k] = <double> n


cdef inline const floating* dense_masses(
    const Call* call, const Tile* tile, Py_ssize_t position, Py_ssize_t first, Py_ssize_t n, floating* room
) noexcept nogil:
    """Dense masses of classes first to first + n of one position of a tile: where they lie, or in `room`.

    n is at most CHUNK.
    """
    cdef const floating* weight = <const floating*> call.weight
    cdef Py_ssize_t stride = call.probabilities.class_stride
    cdef floating keep, spread
    cdef const floating* probabilities
    cdef Py_ssize_t k
    check(0 <= first and first + n <= call.n_classes and n <= CHUNK)
    if call.probabilities.start == NULL:
        if weight != NULL and not has_mask(call):
            return weight + first
        for k in range(n):
            room[k] = 1
    else:
        probabilities = load(
            &call.probabilities, tile.probabilities_at[position] + first * stride, stride, n, room
        )
        if weight == NULL and call.smoothing == 0 and not has_mask(call):
            return probabilities
        keep = <floating> (1.0 - call.smoothing)
        spread = <floating> share_of(call, tile, position)
        for k in range(n):
            room[k] = smoothed(probabilities[k], keep, spread)
    if weight != NULL:
        weight += first
        for k in range(n):
            room[k] *= weight[k]
    if has_mask(call):
        for k in range(n):
            room[k] = room[k] if mask_at(call, tile, position, first + k) else <floating> 0.0
    return room


cdef inline const floating* dense_lanes(
    const Call* call, const Tile* tile, Py_ssize_t position, Py_ssize_t first, Py_ssize_t n, floating* room
) noexcept nogil:
    """`dense_masses`, filled up with 0 to whole lanes."""
    cdef const floating* dense = dense_masses(call, tile, position, first, n, room)
    cdef Py_ssize_t k
    if n == whole_lanes(n):
        return dense
    for k in range(n):
        room[k] = dense[k]
    for k in range(n, whole_lanes(n)):
        room[k] = 0
    return room


cdef inline void fill_dense_of_tile(
    const Call* call, const Tile* tile, Py_ssize_t c, floating* dense_out
) noexcept nogil:
    """Dense masses of class c of every position of a tile; 0 for ignored positions."""
    cdef const floating* weight = <const floating*> call.weight
    cdef Py_ssize_t offset = c * call.probabilities.class_stride
    cdef floating keep = <floating> (1.0 - call.smoothing)
    cdef floating spread = <floating> (call.smoothing / call.n_all_classes)
    cdef floating factor = weight[c] if weight != NULL else <floating> 1.0
    cdef Py_ssize_t k
    if call.probabilities.start == NULL:
        for k in range(tile.width):
            dense_out[k] = factor
    else:
        load_positions(
            &call.probabilities, tile.probabilities_at, tile.probabilities_contiguous, offset, tile.width,
            dense_out,
        )
        if has_mask(call):
            for k in range(tile.width):
                dense_out[k] = smoothed(dense_out[k], keep, <floating> share_of(call, tile, k)) * factor
        else:
            for k in range(tile.width):
                dense_out[k] = smoothed(dense_out[k], keep, spread) * factor
    if has_mask(call):
        for k in range(tile.width):
            dense_out[k] = dense_out[k] if mask_at(call, tile, k, c) else <floating> 0.0
    if tile.n_ignored:
        for k in range(tile.width):
            dense_out[k] = dense_out[k] if tile.counts[k] else <floating> 0.0
    for k in range(tile.width, tile.lanes):
        dense_out[k] = 0


cdef inline double mass_without(
    const Call* call, const Tile* tile, Py_ssize_t position, Py_ssize_t left_out, floating like
) noexcept nogil:
    """Sum of the dense masses of one position, but for one class."""
    cdef floating room[CHUNK]
    cdef const floating* dense
    cdef double mass = 0, lost = 0
    cdef Py_ssize_t first = 0
    cdef Py_ssize_t k, n
    while first < call.n_classes:
        n = min(<Py_ssize_t> CHUNK, call.n_classes - first)
        dense = dense_masses(call, tile, position, first, n, room)
        for k in range(n):
            if first + k != left_out:
                add(&mass, &lost, dense[k])
        first += n
    return settled(mass, lost)
