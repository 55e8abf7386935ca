"""Targets: how they are read and checked, which positions they leave out, and what they pick.

The kernel trusts nobody: each target is checked on the value that was just loaded, whatever another thread
does to the array meanwhile.
"""
from cython cimport floating
from libc.stdint cimport (
    INT64_MAX, int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t,
)
from libc.string cimport memcpy

from cyce.kernels.call cimport GRADIENT, Call, Tile
from cyce.kernels.machine cimport CACHE_LINE, prefetch
from cyce.kernels.plan cimport lies_within
from cyce.kernels.storage cimport TILE, load_one
from cyce.kernels.sums cimport LANES
from cyce.kernels.transforms cimport changes_logits, slope_at, transform
from cyce.kernels.vectors cimport (
    HAS_GATHERS, HAS_VECTORS, fill16, floats, load16, pick16, store16, sum16, where_equal16,
)


cdef enum:
    # Classes that are compared with the targets in less time than their logits are looked up one by one.
    FEW = 16


cdef inline void load_targets(
    const char* target, char format, Py_ssize_t first, Py_ssize_t n, int64_t* targets_out
) noexcept nogil:
    """Targets of n positions from number `first` on; one that an int64 cannot hold becomes -1."""
    # volatile: another thread may write to the array, and what was checked must be what is used. A copy of
    # memory reads it once, too.
    cdef uint64_t value
    cdef Py_ssize_t k
    if format == c"q":
        memcpy(targets_out, target + first * sizeof(int64_t), n * sizeof(int64_t))
    elif format == c"i":
        for k in range(n):
            targets_out[k] = (<const volatile int32_t*> target)[first + k]
    elif format == c"b":
        for k in range(n):
            targets_out[k] = (<const volatile int8_t*> target)[first + k]
    elif format == c"h":
        for k in range(n):
            targets_out[k] = (<const volatile int16_t*> target)[first + k]
    elif format == c"B":
        for k in range(n):
            targets_out[k] = (<const volatile uint8_t*> target)[first + k]
    elif format == c"H":
        for k in range(n):
            targets_out[k] = (<const volatile uint16_t*> target)[first + k]
    elif format == c"I":
        for k in range(n):
            targets_out[k] = (<const volatile uint32_t*> target)[first + k]
    else:
        for k in range(n):
            value = (<const volatile uint64_t*> target)[first + k]
            targets_out[k] = -1 if value > <uint64_t> INT64_MAX else <int64_t> value


cdef inline Py_ssize_t size_of_target(char format) noexcept nogil:
    """Bytes of a target in memory."""
    if format in (c"q", c"Q"):
        return 8
    if format in (c"i", c"I"):
        return 4
    return 2 if format in (c"h", c"H") else 1


cdef inline bint is_class(int64_t target, Py_ssize_t n_classes) noexcept nogil:
    """Whether the target is one of the classes."""
    return lies_within(target, n_classes)


cdef inline bint is_bad(int64_t target, Py_ssize_t n_classes, int64_t ignore_index) noexcept nogil:
    """Whether the target is neither a class nor ignored."""
    return (target != ignore_index) & (not is_class(target, n_classes))


cdef inline bint is_picked(int64_t target, Py_ssize_t n_classes, int64_t ignore_index) noexcept nogil:
    """Whether the target is a class that is not ignored."""
    return (target != ignore_index) & is_class(target, n_classes)


cdef inline void note_pick(const Call* call, Tile* tile, Py_ssize_t k, floating logit) noexcept nogil:
    """Note the target's logit of position k, after the options that change logits, and its slope."""
    tile.pivot_slope[k] = slope_at(call, logit)
    transform(call, <const floating*> &logit, 1, &logit, <floating*> NULL)
    tile.pivot_logit[k] = logit


cdef inline void pick_from_logits(const Call* call, Tile* tile, floating like) noexcept nogil:
    """Look up the targets' logits."""
    cdef Py_ssize_t class_stride = call.logits.class_stride
    cdef Py_ssize_t k
    for k in range(tile.width):
        if lies_within(tile.pivot[k], call.n_classes):
            tile.pivot_logit[k] = load_one(
                &call.logits, tile.logits_at[k] + tile.pivot[k] * class_stride, like
            )
    if changes_logits(call):
        for k in range(tile.width):
            if lies_within(tile.pivot[k], call.n_classes):
                note_pick(call, tile, k, <floating> tile.pivot_logit[k])


cdef inline bint compares_targets(const Call* call, floating like) noexcept nogil:
    """Whether targets are compared with all classes, in vectors. So few classes are one block."""
    return floating is float and HAS_VECTORS and call.n_classes <= FEW


cdef inline void number_pivots(Tile* tile, Py_ssize_t n) noexcept nogil:
    """Write the pivots among n classes as floats."""
    cdef Py_ssize_t k
    for k in range(tile.lanes):
        tile.pivot_number[k] = <float> (<int32_t> tile.pivot[k] if lies_within(tile.pivot[k], n) else -1)


cdef inline void prefetch_targets(
    const char* targets, Py_ssize_t first, Py_ssize_t itemsize
) noexcept nogil:
    """Prefetch LANES targets from number `first` on."""
    if first * itemsize % CACHE_LINE == 0:
        prefetch(targets + first * itemsize, max(<Py_ssize_t> CACHE_LINE, LANES * itemsize))


cdef inline void pick_from_few(
    Tile* tile, const float* packed, Py_ssize_t n, const char* next_targets, Py_ssize_t itemsize
) noexcept nogil:
    """Take the targets' logits out of a few packed classes, by comparing the targets with all of them.

    Writes to all positions, also where the target is none of the classes. next_targets, itemsize: what is
    prefetched.
    """
    cdef float picked[TILE]
    cdef const float* column
    cdef floats a, b, number_a, number_b, class_number
    cdef Py_ssize_t group, first, c, k
    number_pivots(tile, n)
    for group in range(tile.lanes // LANES):
        first = group * LANES
        prefetch_targets(next_targets, first, itemsize)
        number_a = load16(tile.pivot_number + first)
        number_b = load16(tile.pivot_number + first + 16)
        a = b = class_number = fill16(0)
        for c in range(n):
            column = packed + c * tile.pitch + first
            a = where_equal16(number_a, class_number, load16(column), a)
            b = where_equal16(number_b, class_number, load16(column + 16), b)
            class_number = sum16(class_number, fill16(1))
        store16(picked + first, a)
        store16(picked + first + 16, b)
    for k in range(tile.lanes):
        tile.pivot_logit[k] = picked[k] if tile.pivot_number[k] >= 0 else tile.pivot_logit[k]


cdef inline void pick_from_block_of_floats(
    Tile* tile, const float* packed, Py_ssize_t first, Py_ssize_t n, const char* next_targets,
    Py_ssize_t itemsize,
) noexcept nogil:
    """`pick_from_block` in vectors."""
    cdef int64_t pivot[TILE]
    cdef float picked[TILE]
    cdef int unused = 0
    cdef Py_ssize_t at, k
    for k in range(tile.lanes):
        pivot[k] = tile.pivot[k] - first
    for at in range(0, tile.lanes, 32):
        prefetch_targets(next_targets, at, itemsize)
        for k in range(at, at + 32, 16):
            store16(picked + k, pick16(packed + k, 1, tile.pitch, pivot + k, n, &unused))
    # Nothing is written where it is not known: other threads may have other blocks of these positions.
    for k in range(tile.width):
        if lies_within(pivot[k], n):
            tile.pivot_logit[k] = picked[k]


cdef inline void pick_from_block(
    const Call* call, Tile* tile, const floating* packed, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """Take the targets' logits out of n packed classes from number `first` on.

    Meanwhile, prefetch the targets of the next tile, some at a time, as its logits are (`reduce_columns`).
    """
    cdef Py_ssize_t itemsize = size_of_target(call.target_format)
    cdef const char* next_targets = call.target + (tile.first + tile.width) * itemsize
    cdef Py_ssize_t k
    if compares_targets(call, <floating> 0):
        pick_from_few(tile, <const float*> packed, n, next_targets, itemsize)
    elif floating is float and HAS_GATHERS:
        pick_from_block_of_floats(tile, <const float*> packed, first, n, next_targets, itemsize)
    else:
        for k in range(tile.width):
            if k % LANES == 0:
                prefetch_targets(next_targets, k, itemsize)
            if lies_within(tile.pivot[k] - first, n):
                tile.pivot_logit[k] = packed[(tile.pivot[k] - first) * tile.pitch + k]
    if changes_logits(call):
        for k in range(tile.width):
            if lies_within(tile.pivot[k] - first, n):
                note_pick(call, tile, k, <floating> tile.pivot_logit[k])


cdef inline void look_up_targets(const Call* call, Tile* tile, floating like) noexcept nogil:
    """Pivots and hard masses of a tile's positions, and which of these count."""
    # Local copies: otherwise the compiler must assume that `tile` aliases `call`.
    cdef const floating* weight = <const floating*> call.weight
    cdef Py_ssize_t n_classes = call.n_all_classes
    cdef Py_ssize_t first_class = call.first_class
    cdef int64_t ignore_index = call.ignore_index
    cdef double unpicked = 0 if call.output == GRADIENT else 1
    cdef double picked = 1.0 - call.smoothing
    cdef int64_t targets[TILE]
    cdef Py_ssize_t n_counted = 0
    cdef Py_ssize_t n_bad = 0
    cdef Py_ssize_t k
    tile.has_bad_target = False
    tile.n_ignored = 0
    if call.target == NULL:
        for k in range(tile.width):
            tile.counts[k] = True
            tile.pivot[k] = 0
            # Softmax is the gradient of a mass of 1, before its target is subtracted.
            tile.hard[k] = tile.total[k] = unpicked
        return
    load_targets(call.target, call.target_format, tile.first, tile.width, targets)
    # Loops over numbers of one size each, and without branches, so that they are vectorised.
    for k in range(tile.width):
        n_counted += is_picked(targets[k], n_classes, ignore_index)
        n_bad += is_bad(targets[k], n_classes, ignore_index)
    for k in range(tile.width):
        tile.pivot[k] = targets[k] if is_picked(targets[k], n_classes, ignore_index) else 0
    for k in range(tile.width):
        tile.counts[k] = is_picked(targets[k], n_classes, ignore_index)
        tile.hard[k] = picked
    if first_class > 0:
        for k in range(tile.width):
            tile.pivot[k] -= first_class
    if weight != NULL:
        # In another shard, the weight is not known: it is part of the state.
        for k in range(tile.width):
            tile.hard[k] = (
                picked * weight[tile.pivot[k]]
                if tile.counts[k] and lies_within(tile.pivot[k], call.n_classes) else 0.0
            )
    tile.has_bad_target = n_bad > 0
    tile.n_ignored = tile.width - n_counted
