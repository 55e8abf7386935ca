"""The pass over all elements of a loss of single elements, or of a function of these.

All operands have one shape and any strides, 0 included. CHUNK elements are computed at a time, in C order.
An operand that is not contiguous is gathered first and the gradient is written last, so that it may lie in
the input's own memory. Shares of SHARE elements are added up in order: the number of threads does not
change a bit.
"""
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cython cimport floating
from cython.parallel cimport prange
from libc.stdint cimport uint32_t

from cyce.kernels.arrays cimport Operand, offsets_of
from cyce.kernels.binary_logits cimport losses_and_slopes, plain_losses, plain_losses_and_slopes
from cyce.kernels.element_points cimport (
    bce, bce_of_plain_logits, bce_with_logits, curvature_of_focal, exp_of, focal, kl, kl_of_log, logsigmoid,
    sigmoid, slope_of_bce, slope_of_bce_with_logits, slope_of_focal, slope_of_plain_logits, spread_of,
    tail_of, weighed,
)
from cyce.kernels.float_losses cimport (
    bce_of_floats, is_scale_of_floats, kl_of_floats, slopes_of_bce, sum_of_bce,
)
from cyce.kernels.machine cimport (
    cyce_enter, cyce_environment, cyce_float_bits, cyce_leave, cyce_stream_end,
)
from cyce.kernels.storage cimport convert_back, load, load_positions, size_of, store_one, stream
from cyce.kernels.sums cimport LANES, add, add_double, settled, sum_of_lanes
from cyce.kernels.vectors cimport HAS_VECTORS
from cyce.threads.team cimport end_turns
from cyce.threads.turns cimport Turns, begin_turns, count_turns, next_turn

cdef enum:
    # Elements that are computed together: operands, losses and slopes fit into L1.
    ELEMENT_CHUNK = 512
    # What their losses take, and their slopes: not a page, or each load would wait for a store that is a page
    # away. That takes up to 1.8 times as long.
    ELEMENT_ROOM = 576
    # Elements that are added up together, and the fewest that are worth a thread.
    SHARE = 8192
    # Gradients of calls whose arrays have at least as many bytes stream: their memory need not be read then.
    MIN_STREAM = 32 << 20


cdef enum ElementLoss:
    BCE_WITH_LOGITS
    BCE
    KL
    KL_OF_LOG
    FOCAL
    # Functions, without a target.
    SIGMOID
    LOGSIGMOID


cdef enum LossesWanted:
    # 0: what a call has at first.
    EACH
    # Of BCE of floats, where there are vectors.
    ONLY_THEIR_SUM
    # Of BCE, when a second pass writes the gradient.
    NONE


cdef struct ShareResult:
    double loss
    bint is_wrong                   # something that must be a probability is none


cdef struct ElementCall:
    # What one call computes. Operands that do not apply start at NULL.
    ElementLoss loss
    LossesWanted wanted
    Py_ssize_t n_elements
    Operand input
    Operand target
    Operand weight
    Operand pos_weight
    Operand grad_output
    Operand loss_out
    Operand grad_out
    bint slopes_in_float            # `slopes_of_bce` are the gradient: no weights, no `grad_output`
    bint is_grad_new                # nothing is lost if it is written before an error is found
    bint streams                    # the gradient goes past the caches
    Operand hessian_out             # of BCE_WITH_LOGITS and FOCAL: the second derivatives
    Operand vector                  # times which
    double hessian_factor           # what they are multiplied by, too
    double hessian_floor            # the least that they are then
    double grad_scale               # upstream gradient / divisor
    double alpha                    # of FOCAL
    double gamma


cdef inline const floating* gather(
    const Operand* source, Py_ssize_t first, Py_ssize_t n, floating* gathered_out
) noexcept nogil:
    """Elements first to first + n: where they lie, if they are a chunk of neighbours there, else copied.

    Of less than a chunk, those behind may be read, too, and are anything.
    """
    cdef Py_ssize_t at[ELEMENT_CHUNK]
    cdef bint contiguous = source.positions.n_dims == 1 and source.positions.stride[0] == 1
    # For compilers that consider n == 0.
    at[0] = first
    contiguous = contiguous or offsets_of(&source.positions, first, n, at)
    if contiguous and n == ELEMENT_CHUNK:
        return load(source, at[0], 1, n, gathered_out)
    load_positions(source, at, contiguous, 0, n, gathered_out)
    return gathered_out


cdef inline void scatter(
    const floating* values, Py_ssize_t first, Py_ssize_t n, const Operand* target
) noexcept nogil:
    """Write values to elements first to first + n."""
    cdef Py_ssize_t at[ELEMENT_CHUNK]
    cdef Py_ssize_t k
    at[0] = 0
    if offsets_of(&target.positions, first, n, at):
        convert_back(values, n, target, at[0])
    else:
        for k in range(n):
            store_one(values[k], target, at[k])


cdef inline bint may_stream(const ElementCall* call) noexcept nogil:
    """Whether the gradient may go past the caches."""
    cdef const Operand* grad = &call.grad_out
    cdef Py_ssize_t bytes_of_element = size_of(call.input.format) + size_of(grad.format)
    if grad.start == NULL or grad.start == call.input.start:
        return False
    if grad.positions.n_dims != 1 or grad.positions.stride[0] != 1:
        return False
    if call.target.start != NULL:
        bytes_of_element += size_of(call.target.format)
    return call.n_elements * bytes_of_element >= MIN_STREAM


cdef inline void copy_elements(const Operand* source, const Operand* target, floating like) noexcept nogil:
    """Copy all elements, from one storage to another, rounded once."""
    cdef floating gathered[ELEMENT_CHUNK]
    cdef const floating* values
    cdef cyce_environment found
    cdef Py_ssize_t first = 0
    cdef Py_ssize_t n
    cyce_enter(&found)
    while first < source.positions.n:
        n = min(<Py_ssize_t> ELEMENT_CHUNK, source.positions.n - first)
        values = gather(source, first, n, gathered)
        scatter(values, first, n, target)
        first += n
    cyce_leave(&found)


cdef inline void bce_by_formula(
    const floating* input, const floating* target, const floating* pos_weight, Py_ssize_t n,
    bint has_gradient, double scale, double* loss, double* slope,
) noexcept nogil:
    """Binary cross-entropies of n logits and, if wanted, their slopes times `scale`.

    Where there are no vectors, and for doubles. pos_weight may be NULL.
    """
    cdef Py_ssize_t k
    for k in range(n):
        slope[k] = tail_of(input[k])
    if pos_weight == NULL:
        for k in range(n):
            loss[k] = bce_of_plain_logits(input[k], target[k], slope[k])
        if has_gradient:
            for k in range(n):
                slope[k] = scale * slope_of_plain_logits(input[k], target[k], slope[k])
    else:
        for k in range(n):
            loss[k] = bce_with_logits(input[k], target[k], pos_weight[k], slope[k])
        if has_gradient:
            for k in range(n):
                slope[k] = scale * slope_of_bce_with_logits(input[k], target[k], pos_weight[k], slope[k])


cdef inline void chunk_losses(
    const ElementCall* call, const floating* input, const floating* target, Py_ssize_t first, Py_ssize_t n,
    floating* gathered, double* loss, double* slope, double* curvature,
) noexcept nogil:
    """Losses of n elements, slopes times `grad_scale` and curvatures, as wanted, before weights."""
    cdef bint has_gradient = call.grad_out.start != NULL and not call.slopes_in_float
    cdef bint has_hessian = call.hessian_out.start != NULL
    cdef double scale = call.grad_scale
    cdef const floating* factor
    cdef Py_ssize_t k
    if call.loss == BCE_WITH_LOGITS:
        factor = NULL
        if call.pos_weight.start != NULL:
            factor = gather(&call.pos_weight, first, n, gathered)
        if has_hessian:
            for k in range(n):
                curvature[k] = spread_of(input[k], tail_of(input[k]))
            if factor != NULL:
                for k in range(n):
                    curvature[k] *= (1.0 - target[k]) + <double> factor[k] * target[k]
        if floating is float and HAS_VECTORS:
            if factor != NULL:
                # Slopes that nobody wants take a quarter of this.
                losses_and_slopes(input, target, factor, n, scale, loss, slope)
            elif has_gradient:
                plain_losses_and_slopes(input, target, n, scale, loss, slope)
            else:
                plain_losses(input, target, n, loss)
        else:
            bce_by_formula(input, target, factor, n, has_gradient, scale, loss, slope)
    elif call.loss == BCE:
        if call.wanted == EACH:
            if floating is float:
                bce_of_floats(input, target, n, loss)
            else:
                for k in range(n):
                    loss[k] = bce(input[k], target[k])
        if has_gradient:
            for k in range(n):
                slope[k] = scale * slope_of_bce(input[k], target[k])
    elif call.loss == FOCAL:
        for k in range(n):
            slope[k] = tail_of(input[k])
        for k in range(n):
            loss[k] = focal(input[k], target[k], call.alpha, call.gamma, slope[k])
        if has_hessian:
            for k in range(n):
                curvature[k] = curvature_of_focal(input[k], target[k], call.alpha, call.gamma, slope[k])
        if has_gradient:
            for k in range(n):
                slope[k] = scale * slope_of_focal(input[k], target[k], call.alpha, call.gamma, slope[k])
    elif call.loss == SIGMOID:
        for k in range(n):
            slope[k] = tail_of(input[k])
        for k in range(n):
            loss[k] = sigmoid(input[k], slope[k])
        if has_gradient:
            for k in range(n):
                slope[k] = scale * (loss[k] * sigmoid(-input[k], slope[k]))
    elif call.loss == LOGSIGMOID:
        for k in range(n):
            slope[k] = tail_of(input[k])
        for k in range(n):
            loss[k] = logsigmoid(input[k], slope[k])
        if has_gradient:
            for k in range(n):
                slope[k] = scale * sigmoid(-input[k], slope[k])
    elif call.loss == KL:
        if floating is float:
            kl_of_floats(input, target, n, loss)
        else:
            for k in range(n):
                loss[k] = kl(input[k], target[k])
        if has_gradient:
            for k in range(n):
                slope[k] = -scale * target[k]
    else:
        for k in range(n):
            loss[k] = kl_of_log(input[k], target[k])
        if has_gradient:
            for k in range(n):
                slope[k] = -scale * exp_of(target[k])


cdef inline bint all_probabilities(const floating* values, Py_ssize_t n) noexcept nogil:
    """Whether all values are in [0, 1]."""
    cdef int n_right = 0
    cdef uint32_t highest = 0
    cdef uint32_t bits
    cdef Py_ssize_t k
    if floating is float:
        # The bits of these are in order, before those of all others: but for -0.
        for k in range(n):
            bits = cyce_float_bits(values[k])
            highest = bits if bits > highest else highest
        if highest <= <uint32_t> 0x3f800000:
            return True
    for k in range(n):
        n_right += (values[k] >= 0) & (values[k] <= 1)
    return n_right == n


cdef inline double sum_of_chunk(double* loss, Py_ssize_t n, floating like) noexcept nogil:
    """Sum of n losses; sets those beyond, up to ELEMENT_CHUNK, to 0."""
    cdef double total[LANES]
    cdef double lost[LANES]
    cdef Py_ssize_t group, k
    for k in range(n, ELEMENT_CHUNK):
        loss[k] = 0
    for k in range(LANES):
        total[k] = lost[k] = 0
    for group in range(ELEMENT_CHUNK // LANES):
        for k in range(LANES):
            add_double(&total[k], &lost[k], loss[group * LANES + k], like)
    sum_of_lanes(total, lost, like)
    return settled(total[0], lost[0])


cdef inline bint is_wrong_chunk(
    const ElementCall* call, Py_ssize_t first, Py_ssize_t n, floating like
) noexcept nogil:
    """Whether an input or target of a chunk is no probability."""
    cdef floating gathered[2][ELEMENT_CHUNK]
    return not (
        all_probabilities(gather(&call.input, first, n, gathered[0]), n)
        and all_probabilities(gather(&call.target, first, n, gathered[1]), n)
    )


cdef inline void write_hessian(
    const ElementCall* call, Py_ssize_t first, Py_ssize_t n, floating* gathered, double* curvature
) noexcept nogil:
    """Scale the second derivatives of a chunk and write them."""
    cdef double scale = call.grad_scale * call.hessian_factor
    cdef const floating* factor
    cdef Py_ssize_t k
    for k in range(n):
        curvature[k] *= scale
    if call.grad_output.start != NULL:
        factor = gather(&call.grad_output, first, n, gathered)
        for k in range(n):
            curvature[k] *= factor[k]
    if call.vector.start != NULL:
        factor = gather(&call.vector, first, n, gathered)
        for k in range(n):
            curvature[k] *= factor[k]
    for k in range(n):
        curvature[k] = call.hessian_floor if curvature[k] < call.hessian_floor else curvature[k]
    scatter(<const double*> curvature, first, n, &call.hessian_out)


cdef inline void write_slopes(
    const ElementCall* call, const floating* slope, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """Write the gradient of elements first to first + n."""
    if call.streams:
        stream(slope, n, &call.grad_out, first)
    else:
        scatter(slope, first, n, &call.grad_out)


cdef inline double run_chunk(
    const ElementCall* call, Py_ssize_t first, Py_ssize_t n, floating like
) noexcept nogil:
    """Compute one chunk; returns the sum of its losses."""
    cdef floating gathered[3][ELEMENT_CHUNK]
    cdef double loss[ELEMENT_ROOM]
    cdef double slope[ELEMENT_ROOM]
    cdef double curvature[ELEMENT_ROOM]
    cdef const floating* factor
    cdef const floating* input = gather(&call.input, first, n, gathered[0])
    cdef const floating* target = NULL
    cdef double total = 0
    cdef Py_ssize_t k
    if call.target.start != NULL:
        target = gather(&call.target, first, n, gathered[1])
    chunk_losses(call, input, target, first, n, gathered[2], loss, slope, curvature)
    if floating is float and HAS_VECTORS:
        if call.wanted == ONLY_THEIR_SUM:
            total = sum_of_bce(input, target, n)
    if call.weight.start != NULL:
        factor = gather(&call.weight, first, n, gathered[2])
        if call.wanted == EACH:
            for k in range(n):
                loss[k] = weighed(factor[k], loss[k])
        if call.grad_out.start != NULL:
            for k in range(n):
                slope[k] = weighed(factor[k], slope[k])
        if call.hessian_out.start != NULL:
            for k in range(n):
                curvature[k] = weighed(factor[k], curvature[k])
    if call.loss_out.start != NULL:
        scatter(<const double*> loss, first, n, &call.loss_out)
    if floating is float and HAS_VECTORS and call.slopes_in_float:
        slopes_of_bce(input, target, n, call.grad_scale, gathered[2])
        write_slopes(call, <const float*> gathered[2], first, n)
    elif call.grad_out.start != NULL:
        if call.grad_output.start != NULL:
            factor = gather(&call.grad_output, first, n, gathered[2])
            for k in range(n):
                slope[k] *= factor[k]
        write_slopes(call, <const double*> slope, first, n)
    if call.hessian_out.start != NULL:
        write_hessian(call, first, n, gathered[2], curvature)
    return sum_of_chunk(loss, n, like) if call.wanted == EACH else total


cdef inline void run_share(
    const ElementCall* call, Py_ssize_t first, Py_ssize_t end, bint checks, ShareResult* result, floating like
) noexcept nogil:
    """Compute the elements from `first` to `end` and, if wanted, check them."""
    cdef Py_ssize_t n
    cdef double total = 0, lost = 0
    result.is_wrong = False
    while first < end and not result.is_wrong:
        n = min(<Py_ssize_t> ELEMENT_CHUNK, end - first)
        add[double](&total, &lost, run_chunk(call, first, n, like))
        # Now that they are in L1.
        result.is_wrong = checks and is_wrong_chunk(call, first, n, like)
        first += ELEMENT_CHUNK
    result.loss = settled(total, lost)


cdef inline void run_some_shares(
    const ElementCall* call, Turns* turns, int worker, bint checks, ShareResult* results, floating like
) noexcept nogil:
    """The shares that one thread takes."""
    cdef cyce_environment found
    cdef Py_ssize_t first, end
    cyce_enter(&found)
    while next_turn(turns, worker, &first, &end):
        run_share[floating](call, first, end, checks, results + first // SHARE, 0)
    if call.streams:
        cyce_stream_end()
    cyce_leave(&found)


cdef inline bint run_shares(
    const ElementCall* call, int n_threads, bint checks, ShareResult* results, Py_ssize_t n_shares,
    floating like,
) noexcept nogil:
    """Run all shares; returns whether one of them is wrong."""
    cdef int n_workers = <int> min(<Py_ssize_t> n_threads, n_shares)
    cdef Turns turns
    cdef int worker
    cdef Py_ssize_t share
    cdef bint is_wrong = False
    begin_turns(&turns, n_workers, call.n_elements, SHARE)
    if n_workers > 1:
        for worker in prange(n_workers, num_threads=n_workers, schedule="static", chunksize=1):
            run_some_shares[floating](call, &turns, worker, checks, results, 0)
        end_turns(&turns)
    else:
        run_some_shares[floating](call, &turns, 0, checks, results, 0)
    for share in range(n_shares):
        is_wrong = is_wrong or results[share].is_wrong
    return is_wrong


cdef inline bint run_elements(
    const ElementCall* call, int n_threads, double* loss_out, floating like
) except -1 nogil:
    """Compute all elements; loss_out[0] becomes the sum of the losses.

    Returns whether something that must be a probability is none; then the gradient has not been written,
    unless it is new.
    """
    cdef Py_ssize_t n_shares = count_turns(call.n_elements, SHARE)
    cdef ShareResult* results = <ShareResult*> PyMem_RawMalloc(n_shares * sizeof(ShareResult))
    cdef ElementCall first_call = call[0]
    cdef ElementCall second_call = call[0]
    # Everything is checked before a gradient is written that is not new.
    cdef bint is_split = call.loss == BCE and call.grad_out.start != NULL and not call.is_grad_new
    cdef Py_ssize_t share
    cdef double lost = 0
    cdef bint is_wrong
    if results == NULL:
        with gil:
            raise MemoryError("no memory for the sums of the loss")
    if floating is float and HAS_VECTORS and call.loss == BCE and call.weight.start == NULL:
        if call.loss_out.start == NULL:
            first_call.wanted = ONLY_THEIR_SUM
        if call.grad_out.start != NULL and call.grad_output.start == NULL:
            first_call.slopes_in_float = second_call.slopes_in_float = is_scale_of_floats(call.grad_scale)
    if is_split:
        first_call.grad_out.start = NULL
        first_call.slopes_in_float = False
        first_call.streams = False
        second_call.wanted = NONE
        second_call.loss_out.start = NULL
    is_wrong = run_shares(&first_call, n_threads, call.loss == BCE, results, n_shares, like)
    loss_out[0] = 0
    for share in range(n_shares):
        add[double](loss_out, &lost, results[share].loss)
    loss_out[0] = settled(loss_out[0], lost)
    if is_split and not is_wrong:
        run_shares(&second_call, n_threads, False, results, n_shares, like)
    PyMem_RawFree(results)
    return is_wrong
