"""Negative log-likelihood: of each position, the log-probability of one class, and where that counts.

The loss of a position is -weight * log-probability, rounded to the arithmetic's type; its gradient is
-weight * scale at the target, and 0 elsewhere. A position of weight 0 has loss 0 even where its class is
impossible.
"""
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cython cimport floating
from cython.parallel cimport prange
from libc.math cimport INFINITY
from libc.stdint cimport int64_t
from libc.string cimport memset

from cyce.kernels.arrays cimport Operand, offsets_of
from cyce.kernels.call cimport Call, PassResult
from cyce.kernels.machine cimport check, cyce_enter, cyce_environment, cyce_leave
from cyce.kernels.plan cimport lies_within
from cyce.kernels.storage cimport TILE, load_one, store_one, store_zeros
from cyce.kernels.sums cimport LANES, add, settled, sum_of_lanes, whole_lanes
from cyce.kernels.targets cimport is_bad, is_picked, load_targets
from cyce.kernels.vectors cimport (
    HAS_VECTORS, doubles, floats, high8, load8, low8, pick16, store8, subtract8,
)
from cyce.threads.team cimport end_turns
from cyce.threads.turns cimport Turns, begin_turns, count_turns, next_turn

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
    int64_t counts[TILE]            # 1 or 0


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
    cdef int64_t n_counted = 0
    cdef int n_bad = 0
    offsets_of(&call.logits.positions, first, width, picks.logits_at)
    load_targets(call.target, call.target_format, first, width, picks.target)
    # Few conditions a loop, and 64 bits in each lane, so that compilers make vectors of it.
    for k in range(width):
        picks.counts[k] = is_picked(picks.target[k], n_classes, ignore_index)
        n_counted += picks.counts[k]
    if n_counted < width:
        for k in range(width):
            n_bad += is_bad(picks.target[k], n_classes, ignore_index)
        for k in range(width):
            picks.target[k] = picks.target[k] if picks.counts[k] else 0
    result.n_counted += n_counted
    result.any_bad |= n_bad > 0
    for k in range(width):
        picked[k] = load_one(
            &call.logits, picks.logits_at[k] + picks.target[k] * call.logits.class_stride, like
        )
    if n_counted < width:
        for k in range(width):
            picked[k] = picked[k] if picks.counts[k] else <floating> 0
    # 0 - x, and x + 0: a perfect position has loss +0.0.
    if weight == NULL:
        for k in range(width):
            loss[k] = <floating> 0 - picked[k]
    else:
        for k in range(width):
            mass[k] = weight[picks.target[k]] if picks.counts[k] else <floating> 0
        for k in range(width):
            picked[k] = <floating> 0 if (mass[k] == 0) & (picked[k] == -INFINITY) else picked[k]
        for k in range(width):
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
            slope = <floating> (-(<double> mass[k] if weight != NULL else 1) * scale)
            store_one(slope, &call.grad, picks.grad_at[k] + picks.target[k] * call.grad.class_stride)


cdef inline bint is_plain(const Call* call, floating like) noexcept nogil:
    """Whether `add_plain_picks` may be asked."""
    return (
        floating is float and HAS_VECTORS and call.logits.format == c"f"
        and call.logits.positions.n_dims == 1 and not lies_within(call.ignore_index, call.n_classes)
        and call.weight == NULL and call.loss_out == NULL and call.grad.start == NULL
    )


cdef inline bint add_plain_picks(const Call* call, Py_ssize_t first, PicksResult* result) noexcept nogil:
    """Add the losses of TILE positions that all count, where nothing else is asked for.

    Returns whether they do; if not, the result is as before. For each position that takes half as long as
    `run_picks`: reading the logits takes nearly all of the time.
    """
    cdef const float* row = <const float*> call.logits.start + first * call.logits.positions.stride[0]
    cdef Py_ssize_t step = call.logits.positions.stride[0]
    cdef Py_ssize_t class_step = call.logits.class_stride
    cdef int64_t target[TILE]
    cdef doubles total[4]
    cdef floats picked
    cdef int n_picked = 0
    cdef Py_ssize_t at, k
    load_targets(call.target, call.target_format, first, TILE, target)
    check(LANES == 32)
    for k in range(4):
        total[k] = load8(result.total + 8 * k)
    for at in range(0, TILE, 32):
        for k in range(0, 4, 2):
            picked = pick16(
                row + (at + 8 * k) * step, step, class_step, &target[at + 8 * k], call.n_classes, &n_picked
            )
            total[k] = subtract8(total[k], low8(picked))
            total[k + 1] = subtract8(total[k + 1], high8(picked))
    if n_picked < TILE:
        return False
    for k in range(4):
        store8(result.total + 8 * k, total[k])
    result.n_counted += TILE
    return True


cdef inline void run_picks_share(
    const Call* call, Py_ssize_t first, Py_ssize_t end, PicksResult* result, floating like
) noexcept nogil:
    """The positions from `first` to `end`."""
    cdef bint plain = is_plain(call, like)
    memset(result, 0, sizeof(PicksResult))
    while first < end:
        if not (plain and end - first >= TILE and add_plain_picks(call, first, result)):
            run_picks(call, first, min(<Py_ssize_t> TILE, end - first), result, like)
        first += TILE
    sum_of_lanes(result.total, result.lost, like)


cdef inline void run_picks_shares(
    const Call* call, Turns* turns, int worker, PicksResult* results, floating like
) noexcept nogil:
    """The shares that one thread takes."""
    cdef cyce_environment found
    cdef Py_ssize_t first, end
    cyce_enter(&found)
    while next_turn(turns, worker, &first, &end):
        run_picks_share(call, first, end, results + first // turns.n_at_once, like)
    cyce_leave(&found)


cdef inline int run_all_picks(
    const Call* call, int n_threads, PassResult* result, floating like
) except -1 nogil:
    """All positions; the result gets the sum of the losses."""
    cdef Py_ssize_t size = PICKS_SHARE
    if call.grad.start != NULL:
        size = max(<Py_ssize_t> 1, min(size, PICKS_SHARE_NUMBERS // call.n_classes))
    cdef Py_ssize_t n_shares = count_turns(call.n_positions, size)
    cdef int n_workers = <int> min(<Py_ssize_t> n_threads, n_shares)
    cdef PicksResult* results = <PicksResult*> PyMem_RawMalloc(n_shares * sizeof(PicksResult))
    cdef Turns turns
    cdef double lost = 0
    cdef Py_ssize_t share
    cdef int worker
    if results == NULL:
        with gil:
            raise MemoryError("no memory for the sums of the loss")
    begin_turns(&turns, n_workers, call.n_positions, size)
    if n_workers > 1:
        for worker in prange(n_workers, num_threads=n_workers, schedule="static", chunksize=1):
            run_picks_shares[floating](call, &turns, worker, results, 0)
        end_turns(&turns)
    else:
        run_picks_shares[floating](call, &turns, 0, results, 0)
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
