"""Kernels of single elements: binary cross-entropy, Kullback-Leibler divergence, sums of many arrays.

Design
------
Compiled once per instruction-set level like `_kernels.pyx`, and for the same reasons branch-free.

* All operands have one shape and any strides, 0 included. CHUNK elements are computed at a time, in C
  order; an operand that is not contiguous is gathered first, the gradient is written last, so that it
  may lie in the input's own memory.
* Everything is computed in double. Binary cross-entropies are written as sums of mass * cost with
  cost >= 0, so that nothing cancels and tiny losses keep their precision. A mass or weight of 0 adds
  nothing, whatever the cost.
* Shares of SHARE elements are added up in order: the number of threads does not change a bit.
* Sums of many arrays keep what their additions lose, in half the precision, and add it the next time.
"""
from cpython.buffer cimport PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cython cimport floating
from cython.parallel cimport prange
from libc.float cimport DBL_MAX
from libc.math cimport NAN
from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memcpy, memset

from cyce._arrays cimport (
    Operand, Positions, expect, format_of, offsets_of, place, same_shape, take,
)
from cyce._math cimport (
    LANES, add, cyce_enter, cyce_environment, cyce_leave, exp_clamped, exp_nonpositive, finite_or_zero,
    log1p_nonnegative, log1p_of_fraction, log_nonnegative, settled, sum_of_lanes,
)
from cyce._team cimport Team, dismiss, hire

cdef enum:
    # Elements that are computed together: operands, losses and slopes fit into L1.
    CHUNK = 512
    # Elements that one thread takes at a time, and the fewest that are worth a thread.
    SHARE = 8192


cdef enum Loss:
    BCE_WITH_LOGITS
    BCE
    KL
    KL_OF_LOG


cdef struct Call:
    # What one call computes. Operands that do not apply start at NULL.
    Loss loss
    Py_ssize_t n_elements
    Operand input
    Operand target
    Operand weight
    Operand pos_weight
    Operand grad_output
    Operand loss_out
    Operand grad_out
    double grad_scale               # upstream gradient / divisor


# ---------------------------------------------------------------------------------------------
# One element: its loss, and the slope of that with respect to the input


cdef inline double weighed(double mass, double cost) noexcept nogil:
    """mass * cost, and 0 for a mass of 0, be the cost infinite."""
    return 0.0 if mass == 0 else mass * cost


cdef inline double bce_with_logits(
    double logit, double target, double pos_weight, double* tail_out
) noexcept nogil:
    """(1 - target) * softplus(logit) + pos_weight * target * softplus(-logit); tail: e**-abs(logit)."""
    cdef bint positive = logit > 0
    cdef double distance = logit if positive else -logit
    cdef double tail = exp_nonpositive(-distance)
    cdef double rest = log1p_of_fraction(tail)
    cdef double cost = distance + rest if positive else rest
    cdef double cost_of_negative = rest if positive else distance + rest
    tail_out[0] = tail
    return weighed(1.0 - target, cost) + weighed(pos_weight * target, cost_of_negative)


cdef inline double slope_of_bce_with_logits(
    double logit, double target, double pos_weight, double tail
) noexcept nogil:
    """(1 - target) * sigmoid(logit) - pos_weight * target * sigmoid(-logit)."""
    cdef double inverse = 1.0 / (1.0 + tail)
    cdef bint positive = logit > 0
    cdef double sigmoid = inverse if positive else tail * inverse
    cdef double sigmoid_of_negative = tail * inverse if positive else inverse
    return (1.0 - target) * sigmoid - pos_weight * target * sigmoid_of_negative


cdef inline double minus_log_of_ratio(double numerator, double denominator) noexcept nogil:
    """-log(numerator / (numerator + denominator)), at most 100, as torch has it."""
    cdef double odds = denominator / numerator
    # log1p_nonnegative does not know infinity.
    cdef double cost = log1p_nonnegative(odds if odds < DBL_MAX else DBL_MAX)
    return cost if cost < 100.0 else 100.0


cdef inline double bce(double probability, double target, double* slope_out) noexcept nogil:
    """-(1 - target) * log(1 - probability) - target * log(probability), for 0 <= probability <= 1."""
    cdef double opposite = 1.0 - probability
    cdef double variance = probability * opposite
    # torch's bound, 1e-12, keeps the slope finite at 0 and 1.
    slope_out[0] = (probability - target) / (variance if variance > 1e-12 else 1e-12)
    return (
        (1.0 - target) * minus_log_of_ratio(opposite, probability)
        + target * minus_log_of_ratio(probability, opposite)
    )


cdef inline double kl(double log_probability, double target, double* slope_out) noexcept nogil:
    """target * (log(target) - log_probability)."""
    slope_out[0] = -target
    return weighed(target, log_nonnegative(target) - log_probability)


cdef inline double kl_of_log(double log_probability, double log_target, double* slope_out) noexcept nogil:
    """e**log_target * (log_target - log_probability)."""
    cdef double target = exp_clamped(log_target)
    slope_out[0] = -target
    return weighed(target, log_target - log_probability)


# ---------------------------------------------------------------------------------------------
# All elements


cdef const floating* gather(
    const floating* start, const Positions* positions, Py_ssize_t first, Py_ssize_t n,
    floating* gathered_out,
) noexcept nogil:
    """Elements first to first + n: where they lie, if they are neighbours there, else copied."""
    cdef Py_ssize_t at[CHUNK]
    cdef Py_ssize_t k
    # for compilers that reckon with n == 0
    at[0] = 0
    if positions.n_dims == 1 and positions.stride[0] == 1:
        return start + first
    if offsets_of(positions, first, n, at):
        return start + at[0]
    for k in range(n):
        gathered_out[k] = start[at[k]]
    return gathered_out


cdef void scatter(
    const double* values, Py_ssize_t first, Py_ssize_t n, const Positions* positions, floating* start_out
) noexcept nogil:
    """Write values to elements first to first + n."""
    cdef Py_ssize_t at[CHUNK]
    cdef Py_ssize_t k
    at[0] = 0
    if offsets_of(positions, first, n, at):
        for k in range(n):
            start_out[at[0] + k] = <floating> values[k]
    else:
        for k in range(n):
            start_out[at[k]] = <floating> values[k]


cdef double run_chunk(
    const Call* call, const floating* start, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """Compute one chunk; returns the sum of its losses."""
    cdef floating gathered[3][CHUNK]
    cdef double loss[CHUNK]
    cdef double slope[CHUNK]
    cdef double total[LANES]
    cdef double lost[LANES]
    cdef const floating* factor
    cdef const floating* input = gather(start, &call.input.positions, first, n, gathered[0])
    cdef const floating* target = gather(
        <const floating*> call.target.start, &call.target.positions, first, n, gathered[1]
    )
    cdef Py_ssize_t group, k
    if call.loss == BCE_WITH_LOGITS:
        if call.pos_weight.start != NULL:
            factor = gather(
                <const floating*> call.pos_weight.start, &call.pos_weight.positions, first, n, gathered[2]
            )
        else:
            factor = gathered[2]
            for k in range(n):
                gathered[2][k] = 1
        for k in range(n):
            loss[k] = bce_with_logits(input[k], target[k], factor[k], &slope[k])
        if call.grad_out.start != NULL:
            for k in range(n):
                slope[k] = slope_of_bce_with_logits(input[k], target[k], factor[k], slope[k])
    elif call.loss == BCE:
        for k in range(n):
            loss[k] = bce(input[k], target[k], &slope[k])
    elif call.loss == KL:
        for k in range(n):
            loss[k] = kl(input[k], target[k], &slope[k])
    else:
        for k in range(n):
            loss[k] = kl_of_log(input[k], target[k], &slope[k])
    if call.weight.start != NULL:
        factor = gather(
            <const floating*> call.weight.start, &call.weight.positions, first, n, gathered[2]
        )
        for k in range(n):
            loss[k] = weighed(factor[k], loss[k])
            slope[k] = weighed(factor[k], slope[k])
    if call.loss_out.start != NULL:
        scatter(loss, first, n, &call.loss_out.positions, <floating*> call.loss_out.start)
    if call.grad_out.start != NULL:
        for k in range(n):
            slope[k] *= call.grad_scale
        if call.grad_output.start != NULL:
            factor = gather(
                <const floating*> call.grad_output.start, &call.grad_output.positions, first, n, gathered[2]
            )
            for k in range(n):
                slope[k] *= factor[k]
        scatter(slope, first, n, &call.grad_out.positions, <floating*> call.grad_out.start)
    for k in range(n, CHUNK):
        loss[k] = 0
    for k in range(LANES):
        total[k] = lost[k] = 0
    for group in range(CHUNK // LANES):
        for k in range(LANES):
            add[double](&total[k], &lost[k], loss[group * LANES + k])
    sum_of_lanes[double](total, lost, 0)
    return settled(total[0], lost[0])


cdef double run_share(const Call* call, const floating* start, Py_ssize_t share) noexcept nogil:
    """Compute one share; returns the sum of its losses."""
    cdef Py_ssize_t first = share * SHARE
    cdef Py_ssize_t end = min(call.n_elements, first + SHARE)
    cdef double total = 0, lost = 0
    cdef cyce_environment found
    # that of the thread that takes the share
    cyce_enter(&found)
    while first < end:
        add[double](&total, &lost, run_chunk(call, start, first, min(<Py_ssize_t> CHUNK, end - first)))
        first += CHUNK
    total = settled(total, lost)
    cyce_leave(&found)
    return total


cdef int run(
    const Call* call, const floating* start, int n_threads, double* loss_out
) except -1 nogil:
    """Compute all elements; loss_out[0] becomes the sum of the losses."""
    cdef Py_ssize_t n_shares = (call.n_elements + SHARE - 1) // SHARE
    cdef double* sums = <double*> PyMem_RawMalloc(n_shares * sizeof(double))
    cdef Py_ssize_t share
    cdef double lost = 0
    if sums == NULL:
        with gil:
            raise MemoryError("no memory for the sums of the loss")
    for share in prange(n_shares, num_threads=n_threads, schedule="static"):
        sums[share] = run_share(call, start, share)
    loss_out[0] = 0
    for share in range(n_shares):
        add[double](loss_out, &lost, sums[share])
    loss_out[0] = settled(loss_out[0], lost)
    PyMem_RawFree(sums)
    return 0


# ---------------------------------------------------------------------------------------------
# Sums of many arrays


cdef inline float from_half_precision(uint16_t half) noexcept nogil:
    """The float whose upper half these bits are."""
    cdef uint32_t bits = <uint32_t> half << 16
    cdef float value
    memcpy(&value, &bits, sizeof(value))
    return value


cdef inline uint16_t to_half_precision(float value) noexcept nogil:
    """The upper half of a finite float, rounded."""
    cdef uint32_t bits
    memcpy(&bits, &value, sizeof(bits))
    return <uint16_t> ((bits + 0x8000) >> 16)


cdef void add_array(
    const floating* addend, Py_ssize_t n, floating* total, void* lost
) noexcept nogil:
    """Add to a running total, and to what that has lost so far (Kahan's summation with Knuth's TwoSum)."""
    cdef uint16_t* lost_of_single = <uint16_t*> lost
    cdef float* lost_of_double = <float*> lost
    cdef floating value, before, after, added
    cdef Py_ssize_t k
    for k in range(n):
        before = total[k]
        if floating is float:
            value = addend[k] + from_half_precision(lost_of_single[k])
        else:
            value = addend[k] + lost_of_double[k]
        after = before + value
        added = after - before
        total[k] = after
        value = finite_or_zero((before - (after - added)) + (value - added))
        if floating is float:
            lost_of_single[k] = to_half_precision(value)
        else:
            lost_of_double[k] = <float> value


# ---------------------------------------------------------------------------------------------
# The Python side


cdef int take_operand(
    object array, int flags, Py_buffer* view, const Py_buffer* input, Operand* operand
) except -1:
    """Take an array of the input's shape and type, or None."""
    if array is None:
        operand.start = NULL
        return 0
    take(array, PyBUF_STRIDES | flags, view)
    expect(same_shape(view, input), "an operand is not of the input's shape")
    expect(format_of(view) == format_of(input), "an operand is not of the input's dtype")
    place(view, -1, operand)
    return 0


cdef double evaluate(
    Loss loss, input, target, weight, pos_weight, loss_out, grad_out, grad_output, double upstream,
    double divisor, int num_threads,
) except? -1:
    """Sum of the losses / divisor; writes loss_out and grad_out unless they are None."""
    cdef Py_buffer views[7]
    cdef Call call
    cdef double value = 0
    cdef bint single
    cdef Team team
    cdef cyce_environment found
    cdef int i
    team.hired = False
    memset(views, 0, sizeof(views))
    cyce_enter(&found)
    try:
        call.loss = loss
        call.n_elements = take(input, PyBUF_STRIDES, &views[0])
        single = format_of(&views[0]) == c"f"
        expect(single or format_of(&views[0]) == c"d", "input is neither float nor double")
        place(&views[0], -1, &call.input)
        take_operand(target, 0, &views[1], &views[0], &call.target)
        take_operand(weight, 0, &views[2], &views[0], &call.weight)
        take_operand(pos_weight, 0, &views[3], &views[0], &call.pos_weight)
        take_operand(grad_output, 0, &views[4], &views[0], &call.grad_output)
        take_operand(loss_out, PyBUF_WRITABLE, &views[5], &views[0], &call.loss_out)
        take_operand(grad_out, PyBUF_WRITABLE, &views[6], &views[0], &call.grad_out)
        call.grad_scale = upstream / divisor
        if call.n_elements > 0:
            hire(&team, num_threads, call.n_elements // SHARE)
            with nogil:
                if single:
                    run[float](&call, <const float*> call.input.start, team.n_threads, &value)
                else:
                    run[double](&call, <const double*> call.input.start, team.n_threads, &value)
        value = value / divisor if divisor != 0 else NAN
        # Rounded here: NumPy would warn of a loss that float32 cannot hold.
        return <double> <float> value if single else value
    finally:
        if team.hired:
            with nogil:
                dismiss(&team)
        cyce_leave(&found)
        for i in range(7):
            PyBuffer_Release(&views[i])


def binary_cross_entropy_with_logits(
    input, target, weight, pos_weight, loss_out, grad_out, grad_output, double upstream, double divisor,
    int num_threads,
):
    """Sum of the losses / divisor; writes loss_out and grad_out unless they are None.

    All arrays have input's shape, with any strides, and are all float or all double, native and
    aligned. grad_out may be input itself.
    """
    return evaluate(
        BCE_WITH_LOGITS, input, target, weight, pos_weight, loss_out, grad_out, grad_output, upstream,
        divisor, num_threads,
    )


def binary_cross_entropy(
    input, target, weight, loss_out, grad_out, grad_output, double upstream, double divisor, int num_threads,
):
    """Compute the same of probabilities, which are in [0, 1]."""
    return evaluate(
        BCE, input, target, weight, None, loss_out, grad_out, grad_output, upstream, divisor, num_threads
    )


def kl_div(
    input, target, bint log_target, loss_out, grad_out, grad_output, double upstream, double divisor,
    int num_threads,
):
    """Compute the same of log-probabilities and their targets, or the logarithms of these."""
    return evaluate(
        KL_OF_LOG if log_target else KL, input, target, None, None, loss_out, grad_out, grad_output,
        upstream, divisor, num_threads,
    )


def accumulate(addend, total, lost):
    """Add an array to a total and to what its sum has lost so far, zeros at first; both are written to.

    addend, total: both float or both double; lost: as many elements, uint16 or float. All C-contiguous.
    """
    cdef Py_buffer views[3]
    cdef cyce_environment found
    cdef Py_ssize_t n
    cdef bint single
    cdef int i
    memset(views, 0, sizeof(views))
    cyce_enter(&found)
    try:
        n = take(addend, PyBUF_ND, &views[0])
        expect(take(total, PyBUF_ND | PyBUF_WRITABLE, &views[1]) == n, "total is of another size")
        expect(take(lost, PyBUF_ND | PyBUF_WRITABLE, &views[2]) == n, "lost is of another size")
        single = format_of(&views[0]) == c"f"
        expect(single or format_of(&views[0]) == c"d", "addend is neither float nor double")
        expect(format_of(&views[1]) == format_of(&views[0]), "total is not of the addend's dtype")
        expect(format_of(&views[2]) == (c"H" if single else c"f"), "lost is of another precision")
        with nogil:
            if single:
                add_array[float](<const float*> views[0].buf, n, <float*> views[1].buf, views[2].buf)
            else:
                add_array[double](<const double*> views[0].buf, n, <double*> views[1].buf, views[2].buf)
    finally:
        cyce_leave(&found)
        for i in range(3):
            PyBuffer_Release(&views[i])
