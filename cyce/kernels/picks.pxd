"""Negative log-likelihood: of each position, the log-probability of one class, and where that counts.

The loss of a position is -weight * log-probability, rounded to the arithmetic's type; its gradient is
-weight * scale at the target, and 0 elsewhere. A position of weight 0 has loss 0 even where its class is
impossible.
"""
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cython cimport floating
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY
from libc.stdint cimport int64_t
from libc.string cimport memset

from cyce.kernels.arrays cimport Operand, offsets_of
from cyce.kernels.call cimport Call, PassResult
from cyce.kernels.machine cimport cyce_enter, cyce_environment, cyce_leave
from cyce.kernels.storage cimport TILE, load_one, store_one, store_zeros
from cyce.kernels.sums cimport LANES, add, settled, sum_of_lanes, whole_lanes
from cyce.kernels.targets cimport is_bad, is_picked, load_targets
from cyce.threads.team cimport Progress, begin_progress, note_progress, report_progress

cdef enum:
    # Positions whose losses are added up together, at most, which is worth a thread; and how many numbers of
    # a gradient they have.
    PICKS_SHARE = 4096
    PICKS_SHARE_NUMBERS = 65536


cdef struct Picks:
    # Of up to TILE positions.
    int64_t target[TILE]
    Py_ssize_t logits_at[TILE]
    Py_ssize_t grad_at[TILE]
    bint counts[TILE]


cdef struct PicksResult:
    double total[LANES]
    double lost[LANES]
    Py_ssize_t n_counted
    bint any_bad


cdef inline void zero_gradient(
    const Operand* grad, const Py_ssize_t* at, bint contiguous, Py_ssize_t width, Py_ssize_t n_classes,
    floating like,
) noexcept nogil:
    """Write zeros to all classes of some positions."""
    cdef Py_ssize_t c, k
    if grad.class_stride == 1 and grad.positions.n_dims == 1 and grad.positions.stride[0] == n_classes:
        store_zeros(width * n_classes, grad, at[0])
    elif grad.class_stride == 1:
        for k in range(width):
            store_zeros(n_classes, grad, at[k])
    elif contiguous:
        for c in range(n_classes):
            store_zeros(width, grad, at[0] + c * grad.class_stride)
    else:
        for c in range(n_classes):
            for k in range(width):
                store_one(<floating> 0, grad, at[k] + c * grad.class_stride)


cdef inline void run_picks(
    const Call* call, Py_ssize_t first, Py_ssize_t width, PicksResult* result, floating like
) noexcept nogil:
    """Losses of up to TILE positions, from number `first` on, and their gradient."""
    cdef Picks picks
    cdef const floating* weight = <const floating*> call.weight
    cdef const floating* grad_output = <const floating*> call.grad_output
    cdef floating* loss_out = <floating*> call.loss_out
    cdef Py_ssize_t n_classes = call.n_classes
    cdef int64_t ignore_index = call.ignore_index
    cdef floating mass[TILE]
    cdef floating picked[TILE]
    cdef floating loss[TILE]
    cdef floating slope
    cdef double scale
    cdef bint contiguous
    cdef Py_ssize_t group, k
    cdef int n_bad = 0
    cdef int n_counted = 0
    offsets_of(&call.logits.positions, first, width, picks.logits_at)
    load_targets(call.target, call.target_format, first, width, picks.target)
    for k in range(width):
        n_bad += is_bad(picks.target[k], n_classes, ignore_index)
    result.any_bad |= n_bad > 0
    for k in range(width):
        picks.counts[k] = is_picked(picks.target[k], n_classes, ignore_index)
        picks.target[k] = picks.target[k] if picks.counts[k] else 0
    for k in range(width):
        n_counted += picks.counts[k]
    result.n_counted += n_counted
    for k in range(width):
        picked[k] = load_one(
            &call.logits, picks.logits_at[k] + picks.target[k] * call.logits.class_stride, like
        )
    # One condition a loop, so that compilers make vectors of it.
    for k in range(width):
        picked[k] = picked[k] if picks.counts[k] else <floating> 0
    for k in range(width):
        mass[k] = <floating> 1 if picks.counts[k] else <floating> 0
    if weight != NULL:
        for k in range(width):
            mass[k] = weight[picks.target[k]] if picks.counts[k] else <floating> 0
        for k in range(width):
            picked[k] = <floating> 0 if (mass[k] == 0) & (picked[k] == -INFINITY) else picked[k]
    for k in range(width):
        # + 0: a perfect position has loss +0.0.
        loss[k] = -mass[k] * picked[k] + <floating> 0
    if loss_out != NULL:
        for k in range(width):
            loss_out[first + k] = loss[k]
    for k in range(width, whole_lanes(width)):
        loss[k] = 0
    for group in range(whole_lanes(width) // LANES):
        for k in range(LANES):
            add(&result.total[k], &result.lost[k], loss[group * LANES + k])
    if call.grad.start == NULL:
        return
    # Last, as it may overwrite the input.
    contiguous = offsets_of(&call.grad.positions, first, width, picks.grad_at)
    zero_gradient(&call.grad, picks.grad_at, contiguous, width, n_classes, like)
    for k in range(width):
        if picks.counts[k]:
            scale = call.grad_scale
            if grad_output != NULL:
                scale *= grad_output[first + k]
            slope = <floating> (-<double> mass[k] * scale)
            store_one(slope, &call.grad, picks.grad_at[k] + picks.target[k] * call.grad.class_stride)


cdef inline void run_picks_share(
    const Call* call, Py_ssize_t share, Py_ssize_t size, PicksResult* result, floating like
) noexcept nogil:
    """One share of `size` positions, in the thread that took it."""
    cdef Py_ssize_t first = share * size
    cdef Py_ssize_t end = min(call.n_positions, first + size)
    cdef cyce_environment found
    cyce_enter(&found)
    memset(result, 0, sizeof(PicksResult))
    while first < end:
        run_picks(call, first, min(<Py_ssize_t> TILE, end - first), result, like)
        first += TILE
    sum_of_lanes(result.total, result.lost, like)
    cyce_leave(&found)


cdef inline int run_all_picks(
    const Call* call, int n_threads, PassResult* result, floating like
) except -1 nogil:
    """All positions; the result gets the sum of the losses."""
    cdef Py_ssize_t size = PICKS_SHARE
    if call.grad.start != NULL:
        size = max(<Py_ssize_t> 1, min(size, PICKS_SHARE_NUMBERS // call.n_classes))
    cdef Py_ssize_t n_shares = (call.n_positions + size - 1) // size
    cdef int n_workers = <int> min(<Py_ssize_t> n_threads, n_shares)
    cdef PicksResult* results = <PicksResult*> PyMem_RawMalloc(n_shares * sizeof(PicksResult))
    cdef Progress progress
    cdef double lost = 0
    cdef Py_ssize_t share
    if results == NULL:
        with gil:
            raise MemoryError("no memory for the sums of the loss")
    if n_workers > 1:
        begin_progress(&progress)
        for share in prange(n_shares, num_threads=n_workers, schedule="dynamic"):
            run_picks_share[floating](call, share, size, results + share, 0)
            note_progress(&progress, threadid(), True)
        report_progress(&progress, n_workers, n_shares)
    else:
        for share in range(n_shares):
            run_picks_share[floating](call, share, size, results + share, 0)
    result.loss = 0
    result.n_counted = 0
    result.has_bad_target = False
    for share in range(n_shares):
        add[double](&result.loss, &lost, settled(results[share].total[0], results[share].lost[0]))
        result.n_counted += results[share].n_counted
        result.has_bad_target = result.has_bad_target or results[share].any_bad
    result.loss = settled(result.loss, lost)
    PyMem_RawFree(results)
    return 0
