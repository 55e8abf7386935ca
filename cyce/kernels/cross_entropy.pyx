"""Entry points of the kernels over classes: cross-entropy and its gradient, softmax and its like.

Compiled once per instruction-set level; `dispatch.py` chooses one at import. The code is scalar,
branch-free and laid out over a fixed number of lanes, so that the C compiler turns it into vectors of
whatever width the level has, and every width adds in the same order. The rooms, in the order of a call:

    arguments, arrays, call_scope   what the facade hands over, checked; buffers, threads
    call, plan                      what is to be computed, and how it is cut up
    targets, denominator            look-up, checks, which positions count, what the mean divides by
    chosen                          a few classes of each position, with masses of their own
    passes, scratch, streaming      reduce, merge, finish; memory, streaming stores
    rows, tiles                     one block along the classes; one block across the positions
    one_pass, chunks, exponentials, vectors     a block of a row, where there are vectors
    columns                         a block of a tile, of floats, where there are vectors
    two_passes                      a block of a row elsewhere
    curvature                       second order: Hessians, and their products with vectors
    reference, transforms, masses, points, storage, half, transposition, math, sums, machine
                                    what these are made of
    merge, positions                blocks into states; losses, pivots, statistics
    divergences                     two sets of logits, compared
    comparison, distillation        the same, with a gradient
    distributions, logit_differences   their divergences in double, and in float
    highest                         the highest classes of each position
    picks                           negative log-likelihoods, which need none of these
"""
from cpython.buffer cimport PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_IsContiguous
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stdint cimport INT64_MIN, int64_t
from libc.string cimport memset

from cyce.kernels.arguments cimport CrossEntropyArguments, DistillationArguments
from cyce.kernels.arrays cimport (
    Operand, expect, format_of, integer_format_of, is_aligned, is_without_axis, n_elements, overlap, place,
    same_shape,
)
from cyce.kernels.call cimport (
    ALL, FINISH, GRADIENT, LOG_SOFTMAX, LOGSUMEXP, REDUCE, SOFTMAX, Call, Output, PassResult, Phase, Tile,
)
from cyce.kernels.call_scope cimport CallScope, close_scope, open_scope, take_threads, take_view
from cyce.kernels.denominator cimport PositionCount, choose_denominator, count_positions
from cyce.kernels.comparison cimport FORWARD, JENSEN_SHANNON, PRODUCT, REVERSE, Comparison
from cyce.kernels.distillation cimport compare_logits
from cyce.kernels.divergences cimport N_TOP as MOST_TOP, Pair, align_tiles, compare_all
from cyce.kernels.highest cimport Highest, find_all_highest
from cyce.kernels.machine cimport CYCE_DEBUG
from cyce.kernels.merge cimport (
    ARGMAX, GAP, MASS, MAX, N_STATE_FIELDS, PICKED, RANK, REST, WEIGHT, merge_states,
)
from cyce.kernels.passes cimport MIN_SHARE, finish_states as finish_all_states, run
from cyce.kernels.picks cimport PICKS_SHARE, run_all_picks
from cyce.kernels.plan cimport plan
from cyce.kernels.storage cimport arithmetic_of, size_of
from cyce.kernels.sums cimport quotient_lost

HAS_CHECKS = bool(CYCE_DEBUG)
N_FIELDS = N_STATE_FIELDS
# Rows of the states; what rounding took from a sum is in the row after it.
STATE_ROWS = {
    "maximum": MAX, "argmax": ARGMAX, "rest": REST, "mass": MASS, "gap": GAP, "rank": RANK,
    "target_logit": PICKED, "target_weight": WEIGHT,
}
N_TOP = MOST_TOP


# ---------------------------------------------------------------------------------------------
# Arrays


cdef char take_logits(object logits, int axis, CallScope* scope, Call* call) except 0:
    """Take the logits, and count their positions and classes; returns the type of the arithmetic."""
    return describe_logits(take_view(logits, PyBUF_STRIDES, scope), axis, call)


cdef char describe_logits(Py_buffer* view, int axis, Call* call) except 0:
    """Describe the logits that were taken; returns the type of the arithmetic."""
    cdef int dim
    expect(axis >= 0, "no such axis")
    place(view, axis, &call.logits)
    expect(size_of(call.logits.format) > 0, "logits are not floating point")
    call.n_classes = call.n_all_classes = view.shape[axis]
    call.n_positions = 1
    for dim in range(view.ndim):
        if dim != axis:
            call.n_positions *= view.shape[dim]
    return arithmetic_of(call.logits.format)


cdef int take_like_logits(
    object array, int axis, int flags, str what, CallScope* scope, Operand* operand
) except -1:
    """Take an array of the logits' shape, in any storage."""
    cdef Py_buffer* view = take_view(array, PyBUF_STRIDES | flags, scope)
    expect(same_shape(view, &scope.views[0]), " not of the logits' shape", what)
    place(view, axis, operand)
    expect(size_of(operand.format) > 0, " not floating point", what)
    return 0


cdef char* take_elements(
    object array, Py_ssize_t n, char format, int flags, str what, CallScope* scope
) except? NULL:
    """Take a C-contiguous array of n elements of a type; NULL for None."""
    cdef Py_buffer* view
    if array is None:
        return NULL
    view = take_view(array, PyBUF_ND | flags, scope)
    expect(n_elements(view) == n, ": wrong number of elements", what)
    expect(format_of(view) == format, ": wrong dtype", what)
    return <char*> view.buf


cdef int take_target(object target, int64_t ignore_index, CallScope* scope, Call* call) except -1:
    """Take the class indices of the positions."""
    return describe_target(take_view(target, PyBUF_ND, scope), ignore_index, call)


cdef int describe_target(const Py_buffer* view, int64_t ignore_index, Call* call) except -1:
    """Describe the class indices that were taken."""
    expect(n_elements(view) == call.n_positions, "wrong number of targets")
    call.target = <const char*> view.buf
    call.target_format = integer_format_of(view)
    call.ignore_index = ignore_index
    if call.target_format == c"Q" and ignore_index < 0:
        # No unsigned target equals it, nor does the -1 that replaces a large one.
        call.ignore_index = INT64_MIN
    return 0


cdef int take_stats(object arrays, char format, CallScope* scope, Call* call) except -1:
    """Take the arrays of the statistics, see `StatsOut`: five, or all."""
    cdef Py_ssize_t n = call.n_positions
    call.has_stats = arrays is not None
    if not call.has_stats:
        return 0
    lse, probability, entropy, prediction, rank = arrays[:5]
    call.stats_out.lse = take_elements(lse, n, format, PyBUF_WRITABLE, "lse", scope)
    call.stats_out.probability = take_elements(probability, n, format, PyBUF_WRITABLE, "probability", scope)
    call.stats_out.entropy = take_elements(entropy, n, format, PyBUF_WRITABLE, "entropy", scope)
    call.stats_out.prediction = take_classes(prediction, n, scope)
    call.stats_out.rank = take_classes(rank, n, scope)
    call.has_moments = len(arrays) > 5
    if not call.has_moments:
        return 0
    confidence, brier_score, slope, variance = arrays[5:]
    call.stats_out.confidence = take_elements(confidence, n, format, PyBUF_WRITABLE, "confidence", scope)
    call.stats_out.brier_score = take_elements(brier_score, n, format, PyBUF_WRITABLE, "brier_score", scope)
    call.stats_out.slope = take_elements(slope, n, format, PyBUF_WRITABLE, "slope", scope)
    call.stats_out.variance = take_elements(variance, n, format, PyBUF_WRITABLE, "variance", scope)
    return 0


cdef int take_mask(object mask, int axis, CallScope* scope, Call* call) except -1:
    """Take the class mask, bool and of the logits' shape, or None."""
    cdef Py_buffer* view
    if mask is None:
        return 0
    view = take_view(mask, PyBUF_STRIDES, scope)
    expect(same_shape(view, &scope.views[0]), "class_mask is not of the logits' shape")
    expect(view.itemsize == 1, "class_mask is not bool")
    place(view, axis, &scope.class_mask)
    call.class_mask = &scope.class_mask
    return 0


cdef int take_chosen(object chosen, object masses, char format, CallScope* scope, Call* call) except -1:
    """Take the chosen classes and their masses, or None."""
    cdef Py_buffer* view
    cdef Py_ssize_t k
    if chosen is None:
        return 0
    view = take_view(chosen, PyBUF_ND, scope)
    expect(integer_format_of(view) == c"q", "chosen classes are not int64")
    call.chosen = <const int64_t*> view.buf
    call.n_chosen = n_elements(view) // call.n_positions if call.n_positions else 0
    expect(call.n_chosen * call.n_positions == n_elements(view), "wrong number of chosen classes")
    for k in range(n_elements(view)):
        expect(0 <= call.chosen[k] < call.n_classes, "a chosen class is none")
    call.chosen_mass = take_elements(masses, n_elements(view), format, 0, "chosen_mass", scope)
    return 0


cdef int64_t* take_classes(object array, Py_ssize_t n, CallScope* scope) except NULL:
    """Take an array of n int64 that is written to."""
    cdef Py_buffer* view = take_view(array, PyBUF_ND | PyBUF_WRITABLE, scope)
    expect(n_elements(view) == n and integer_format_of(view) == c"q", "classes and ranks are int64")
    return <int64_t*> view.buf


# ---------------------------------------------------------------------------------------------
# Cross-entropy


cdef char read_arguments(CrossEntropyArguments arguments, CallScope* scope, Call* call) except 0:
    """Take what a call computes with; returns the type of the arithmetic."""
    cdef char format = take_logits(arguments.logits, arguments.axis, scope, call)
    cdef int axis = arguments.axis
    cdef Py_ssize_t n = call.n_positions
    call.output = GRADIENT
    call.grad.class_stride = 1
    if arguments.n_all_classes > 0:
        call.first_class = arguments.first_class
        call.n_all_classes = arguments.n_all_classes
        expect(
            0 <= call.first_class <= call.n_all_classes - call.n_classes, "a shard outside of all classes"
        )
    take_mask(arguments.class_mask, axis, scope, call)
    take_chosen(arguments.chosen, arguments.chosen_mass, format, scope, call)
    if arguments.target is not None:
        take_target(arguments.target, arguments.ignore_index, scope, call)
    elif arguments.probabilities is not None:
        take_like_logits(
            arguments.probabilities, axis, 0, "probabilities are", scope, &call.probabilities
        )
    call.weight = take_elements(arguments.weight, call.n_classes, format, 0, "weight", scope)
    call.sample_weight = take_elements(arguments.sample_weight, n, format, 0, "sample_weight", scope)
    call.z_loss = arguments.z_loss
    call.softcap = arguments.softcap
    call.temperature = arguments.temperature
    call.is_focal = arguments.is_focal
    call.gamma = arguments.gamma
    call.poly1 = arguments.poly1
    expect(not call.is_focal or arguments.target is not None, "a focal loss needs a target")
    set_masses(arguments, arguments.probabilities is None, call)
    return format


cdef void set_masses(CrossEntropyArguments arguments, bint has_target, Call* call) noexcept:
    """Note what dense masses there are, and their factor."""
    call.smoothing = arguments.label_smoothing
    call.has_dense = not has_target or call.smoothing > 0
    call.dense_scale = 1.0
    if has_target and call.smoothing > 0 and call.n_all_classes > 0:
        call.dense_scale = call.smoothing / call.n_all_classes
        call.dense_scale_lost = quotient_lost(call.smoothing, call.n_all_classes, call.dense_scale)


cdef int read_outputs(
    CrossEntropyArguments arguments, char format, CallScope* scope, Call* call
) except -1:
    """Take what a call writes, and what its gradient is scaled by."""
    cdef Py_ssize_t n = call.n_positions
    call.loss_out = take_elements(arguments.loss_out, n, format, PyBUF_WRITABLE, "losses", scope)
    call.grad_output = take_elements(arguments.grad_output, n, format, 0, "grad_output", scope)
    if arguments.grad_out is not None:
        take_like_logits(
            arguments.grad_out, arguments.axis, PyBUF_WRITABLE, "the gradient is", scope, &call.grad
        )
    call.hessian_factor = arguments.hessian_factor
    call.hessian_floor = arguments.hessian_floor
    if arguments.hessian_out is not None:
        take_like_logits(
            arguments.hessian_out, arguments.axis, PyBUF_WRITABLE, "the Hessian is", scope, &scope.hessian
        )
        call.hessian = &scope.hessian
    if arguments.vector is not None:
        take_like_logits(arguments.vector, arguments.axis, 0, "the vector is", scope, &scope.vector)
        call.vector = &scope.vector
    if call.hessian != NULL or call.vector != NULL:
        expect(call.grad.start != NULL, "a Hessian comes along with a gradient")
        expect(call.softcap == 0, "there is no Hessian of a softcap")
        expect(call.vector == NULL or not call.is_focal, "there is no product with a focal loss's Hessian")
    take_stats(arguments.stats_out, format, scope, call)
    call.chosen_out = take_elements(
        arguments.chosen_out, n * call.n_chosen, format, PyBUF_WRITABLE, "chosen_out", scope
    )
    call.entropy_out = take_elements(arguments.entropy_out, n, format, PyBUF_WRITABLE, "entropies", scope)
    call.entropy_grad = take_elements(arguments.entropy_grad, n, format, 0, "entropy_grad", scope)
    expect(not call.has_stats or arguments.target is not None, "statistics need a target")
    if call.entropy_out != NULL or call.entropy_grad != NULL:
        call.has_stats = True
    return 0


cdef inline int run_in(char format, Call* call, int n_threads, PassResult* result) except -1 nogil:
    """Run all tiles in the arithmetic's type."""
    if format == c"f":
        return run[float](call, n_threads, result, 0)
    return run[double](call, n_threads, result, 0)


cdef inline int pick_in(char format, Call* call, int n_threads, PassResult* result) except -1 nogil:
    """Negative log-likelihoods in the arithmetic's type."""
    if format == c"f":
        return run_all_picks[float](call, n_threads, result, 0)
    return run_all_picks[double](call, n_threads, result, 0)


cdef double compute(
    CrossEntropyArguments arguments, bint picks, char format, int n_threads, Call* call
) except? -1 nogil:
    """Count the positions and run the pass; returns the sum of the losses, or their mean.

    picks: whether the logits are log-probabilities already.
    """
    cdef PositionCount count
    cdef PassResult result
    cdef double denominator
    cdef bint is_empty
    # Without a gradient, targets are looked up, checked and counted in one go, where counting is all that the
    # mean needs.
    cdef bint checks_first = (
        call.grad.start != NULL or call.n_classes == 0 or call.phase != ALL or call.target == NULL
        or (arguments.mean and (call.weight != NULL or call.sample_weight != NULL))
    )
    count.weight = 0
    result.loss = 0
    if checks_first:
        count_positions(call, format, n_threads, NULL, &count)
        if count.bad >= 0:
            with gil:
                raise IndexError(count.bad)
    denominator = choose_denominator(
        count.weight, call.n_positions, arguments.normalizer, arguments.zero_if_empty, &is_empty
    )
    call.all_ignored = checks_first and is_empty and arguments.mean and arguments.zero_if_empty
    call.grad_scale = arguments.upstream
    if arguments.mean:
        call.grad_scale /= denominator
    call.grad_scale /= call.temperature
    if call.n_positions > 0 and call.n_classes > 0:
        if picks:
            pick_in(format, call, n_threads, &result)
        else:
            run_in(format, call, n_threads, &result)
        if result.has_bad_target:
            # Another thread made it bad, if they were all good before.
            count.bad = -1
            if not checks_first:
                count_positions(call, format, n_threads, NULL, &count)
            with gil:
                raise IndexError(count.bad)
        if not checks_first:
            denominator = choose_denominator(
                <double> result.n_counted, call.n_positions, arguments.normalizer, arguments.zero_if_empty,
                &is_empty,
            )
    elif call.loss_out != NULL and call.n_positions > 0:
        # No classes: a sum over nothing.
        memset(call.loss_out, 0, call.n_positions * size_of(format))
    if arguments.mean:
        result.loss /= denominator
    # Round here: NumPy would warn of a loss that float32 cannot hold.
    return <double> <float> result.loss if format == c"f" else result.loss


cdef double run_call(
    CrossEntropyArguments arguments, int num_threads, bint picks, char format, CallScope* scope, Call* call
) except? -1:
    """Cut up the work and compute, without the GIL unless that would take as long as the call."""
    cdef bint only_picks = picks and call.grad.start == NULL
    cdef Py_ssize_t n_numbers = call.n_positions * (1 if only_picks else call.n_classes)
    cdef Py_ssize_t min_share = PICKS_SHARE if only_picks else MIN_SHARE
    cdef double value
    cdef int n_threads
    plan(call)
    n_threads = take_threads(num_threads, n_numbers // min_share, scope)
    if max(call.n_positions, n_numbers) < min_share:
        return compute(arguments, picks, format, 1, call)
    with nogil:
        value = compute(arguments, picks, format, n_threads, call)
    return value


cdef double evaluate(CrossEntropyArguments arguments, bint picks) except? -1:
    """Take all arrays and compute."""
    cdef CallScope scope
    cdef Call call
    cdef char format
    memset(&call, 0, sizeof(call))
    open_scope(&scope)
    try:
        format = read_arguments(arguments, &scope, &call)
        read_outputs(arguments, format, &scope, &call)
        return run_call(arguments, arguments.num_threads, picks, format, &scope, &call)
    finally:
        close_scope(&scope)


def cross_entropy(CrossEntropyArguments arguments not None):
    """Sum or mean of the losses; writes the outputs that are not None.

    Raises IndexError(position) for a target that is no class, before a gradient is written, and
    IndexError(-1) where another thread made a target bad during the call.
    """
    return evaluate(arguments, False)


def nll_loss(CrossEntropyArguments arguments not None):
    """`cross_entropy` of log-probabilities and class indices, without options that are not in torch."""
    expect(arguments.target is not None, "class indices are needed")
    return evaluate(arguments, True)


# What a plain call has at its defaults.
cdef CrossEntropyArguments MEAN = CrossEntropyArguments()
MEAN.mean = True


cdef char take_plain(
    object logits, object target, bint has_gradient, CallScope* scope, Call* call
) except 0:
    """Take the arrays of a plain call; returns the type of the arithmetic, a blank if they are not plain."""
    cdef Py_buffer* view
    cdef Py_buffer* of_target
    cdef char format
    cdef int axis
    try:
        view = take_view(logits, PyBUF_STRIDES, scope)
        of_target = take_view(target, PyBUF_STRIDES, scope)
    except ValueError:
        # NumPy's, for dtypes that buffers have no name for
        return c" "
    format = format_of(view)
    axis = 1 if view.ndim > 1 else 0
    if (
        format not in (c"f", c"d") or format_of(of_target) not in (c"q", c"l", c"i")
        or not is_aligned(view) or not is_aligned(of_target)
        or not is_without_axis(view, axis, of_target) or not PyBuffer_IsContiguous(of_target, c"C")
        or (has_gradient and not PyBuffer_IsContiguous(view, c"C"))
    ):
        return c" "
    describe_logits(view, axis, call)
    describe_target(of_target, MEAN.ignore_index, call)
    call.output = GRADIENT
    call.grad.class_stride = 1
    call.temperature = 1
    call.dense_scale = 1
    return format


cdef bint take_plain_gradient(object grad_out, CallScope* scope, Call* call) except -1:
    """Take the gradient of a plain call, whose arrays were taken; returns whether it is plain, too."""
    cdef Py_buffer* view = &scope.views[0]
    cdef Py_buffer* of_target = &scope.views[1]
    cdef Py_buffer* of_grad
    try:
        of_grad = take_view(grad_out, PyBUF_STRIDES, scope)
    except ValueError:
        return False
    if (
        of_grad.readonly or format_of(of_grad) != format_of(view) or not is_aligned(of_grad)
        or not same_shape(of_grad, view) or not PyBuffer_IsContiguous(of_grad, c"C")
        or overlap(of_grad, of_target) or (of_grad.buf != view.buf and overlap(of_grad, view))
    ):
        return False
    place(of_grad, 1 if view.ndim > 1 else 0, &call.grad)
    return True


def plain_mean(object logits, object target, object grad_out, object new_like, bint picks, int num_threads):
    """Mean of the losses of a call without any option, of arrays that need no conversion, and the gradient.

    logits: float32 or float64. target: class indices, int64 or int32 and C-contiguous, as is everything if
    there is a gradient. grad_out: an array for it that is `logits` or apart from them, or None. new_like:
    None, or what makes one, given the logits. picks: whether the logits are log-probabilities.

    Returns None for everything else: the facade has not checked these arguments, it only hopes that they are
    such. Nothing is written then. Raises as `cross_entropy` does.
    """
    cdef CallScope scope
    cdef Call call
    cdef char format
    memset(&call, 0, sizeof(call))
    open_scope(&scope)
    try:
        format = take_plain(logits, target, grad_out is not None or new_like is not None, &scope, &call)
        if format == c" ":
            return None
        if new_like is not None:
            grad_out = new_like(logits)
        if grad_out is not None and not take_plain_gradient(grad_out, &scope, &call):
            return None
        return run_call(MEAN, num_threads, picks, format, &scope, &call), grad_out
    finally:
        close_scope(&scope)


def denominator(CrossEntropyArguments arguments not None, counts_out=None):
    """What the mean of `cross_entropy` divides by, and whether nothing counts.

    counts_out: bool, (n_positions,); becomes whether each position counts. Raises IndexError(position) for a
    target that is no class.
    """
    cdef CallScope scope
    cdef Call call
    cdef PositionCount count
    cdef Py_buffer* view
    cdef char* counts = NULL
    cdef char format
    cdef bint is_empty
    memset(&call, 0, sizeof(call))
    open_scope(&scope)
    try:
        format = read_arguments(arguments, &scope, &call)
        if counts_out is not None:
            view = take_view(counts_out, PyBUF_ND | PyBUF_WRITABLE, &scope)
            expect(n_elements(view) == call.n_positions and view.itemsize == 1, "counts_out is not bool")
            counts = <char*> view.buf
        with nogil:
            count_positions(&call, format, 1, counts, &count)
        if count.bad >= 0:
            raise IndexError(count.bad)
        value = choose_denominator(
            count.weight, call.n_positions, arguments.normalizer, arguments.zero_if_empty, &is_empty
        )
        return value, bool(is_empty)
    finally:
        close_scope(&scope)


# ---------------------------------------------------------------------------------------------
# The phases, for classes that are split over several calls


cdef double* take_states(object states, Py_ssize_t n_positions, CallScope* scope) except NULL:
    """Take an array of states, (N_FIELDS, n_positions), double, C-contiguous."""
    cdef Py_buffer* view = take_view(states, PyBUF_ND | PyBUF_WRITABLE, scope)
    expect(n_elements(view) == N_STATE_FIELDS * n_positions, "wrong number of states")
    expect(format_of(view) == c"d", "states are not double")
    return <double*> view.buf


def reduce(CrossEntropyArguments arguments not None, states_out):
    """Write the states of logits whose classes are some, or all, of `n_all_classes`.

    Targets and n_all_classes are those of all classes; first_class says where these begin. With target_logit,
    states have what statistics need.
    """
    run_phase(arguments, states_out, REDUCE)


def finish(CrossEntropyArguments arguments not None, states):
    """`cross_entropy` from merged states: all losses, and the gradient of the classes in the logits.

    Class probabilities that are nearly one-hot need all classes in one call: in float32, the gradient at
    their maximum is less accurate otherwise.
    """
    return run_phase(arguments, states, FINISH)


cdef double run_phase(CrossEntropyArguments arguments, object states, Phase phase) except? -1:
    cdef CallScope scope
    cdef Call call
    cdef char format
    memset(&call, 0, sizeof(call))
    open_scope(&scope)
    try:
        format = read_arguments(arguments, &scope, &call)
        if phase == FINISH:
            read_outputs(arguments, format, &scope, &call)
            expect(not call.has_stats, "statistics come from states alone")
            expect(call.vector == NULL, "products with a Hessian need all classes")
        elif arguments.target_logit is not None:
            call.target_logit = take_elements(
                arguments.target_logit, call.n_positions, format, 0, "target_logit", &scope
            )
            call.has_stats = call.has_moments = True
        call.phase = phase
        call.states = take_states(states, call.n_positions, &scope)
        return run_call(arguments, arguments.num_threads, False, format, &scope, &call)
    finally:
        close_scope(&scope)


def finish_states(CrossEntropyArguments arguments not None, states, bint has_target):
    """Losses and statistics from merged states alone; returns the sum of the losses.

    Of the arguments, those count that stand for options and outputs, sample_weight, n_all_classes, and the
    dtype of loss_out. has_target: whether targets are class indices. Statistics are as those of
    `cross_entropy`, but predictions and ranks are those of the states.
    """
    cdef CallScope scope
    cdef Call call
    cdef Py_buffer* view
    cdef char format
    # Stacks of threads may be too small for it.
    cdef bytearray room = bytearray(sizeof(Tile))
    cdef Tile* tile = <Tile*> <char*> room
    memset(&call, 0, sizeof(call))
    open_scope(&scope)
    try:
        view = take_view(arguments.loss_out, PyBUF_ND | PyBUF_WRITABLE, &scope)
        format = format_of(view)
        expect(format == c"f" or format == c"d", "losses are neither float nor double")
        call.n_positions = n_elements(view)
        call.loss_out = <char*> view.buf
        call.states = take_states(states, call.n_positions, &scope)
        call.sample_weight = take_elements(
            arguments.sample_weight, call.n_positions, format, 0, "sample_weight", &scope
        )
        take_stats(arguments.stats_out, format, &scope, &call)
        call.n_all_classes = arguments.n_all_classes
        call.z_loss = arguments.z_loss
        set_masses(arguments, has_target, &call)
        if format == c"f":
            return finish_all_states[float](&call, has_target, tile, 0)
        return finish_all_states[double](&call, has_target, tile, 0)
    finally:
        close_scope(&scope)


def merge(states, other, bint double_precision):
    """Merge other states, of the classes that follow, into `states`.

    double_precision: whether they are of logits of double.
    """
    cdef CallScope scope
    cdef Py_ssize_t n
    cdef bytearray room = bytearray(sizeof(Tile))
    cdef Tile* tile = <Tile*> <char*> room
    open_scope(&scope)
    try:
        n = n_elements(take_view(states, PyBUF_ND, &scope)) // N_STATE_FIELDS
        if double_precision:
            merge_states[double](take_states(states, n, &scope), take_states(other, n, &scope), n, tile, 0)
        else:
            merge_states[float](take_states(states, n, &scope), take_states(other, n, &scope), n, tile, 0)
    finally:
        close_scope(&scope)


# ---------------------------------------------------------------------------------------------
# Two sets of logits


cdef int64_t* take_top(object array, Py_ssize_t n, CallScope* scope) except NULL:
    """Take an array of the highest classes, (n, N_TOP) int64, that is written to."""
    return take_classes(array, n * MOST_TOP, scope)


cdef double* take_sums(object array, Py_ssize_t n, CallScope* scope) except? NULL:
    """Take an array of n doubles that is written to."""
    return <double*> take_elements(array, n, c"d", PyBUF_WRITABLE, "a divergence", scope)


cdef int read_side(CrossEntropyArguments arguments, CallScope* scope, Call* call) except -1:
    """Take one of two sets of logits, which is to be reduced to states."""
    read_arguments(arguments, scope, call)
    call.phase = REDUCE
    plan(call)
    align_tiles(call)
    return 0


def diverge(
    CrossEntropyArguments model not None, CrossEntropyArguments reference not None, kl_out, reverse_kl_out,
    js_out, loss_out, reference_loss_out, top_out, reference_top_out,
):
    """Write divergences of two sets of logits on the same positions, their losses and their highest classes.

    Both records have the same axis, target and ignore_index. Divergences and losses: double, (n_positions,);
    highest classes: int64, (n_positions, N_TOP). See divergences.pxd. All are undefined at ignored positions.
    Raises IndexError(-1) for a target that is no class.
    """
    cdef CallScope scope
    cdef Call model_call
    cdef Call reference_call
    cdef Pair pair
    cdef Py_ssize_t n, n_states
    cdef int n_threads
    cdef char format
    cdef double* states = NULL
    memset(&model_call, 0, sizeof(model_call))
    memset(&reference_call, 0, sizeof(reference_call))
    open_scope(&scope)
    try:
        read_side(model, &scope, &model_call)
        read_side(reference, &scope, &reference_call)
        # In double if one of the two is.
        format = arithmetic_of(model_call.logits.format)
        if format == c"f":
            format = arithmetic_of(reference_call.logits.format)
        n = model_call.n_positions
        expect(
            reference_call.n_positions == n and reference_call.n_classes == model_call.n_classes,
            "the two sets of logits differ in their positions or classes",
        )
        n_states = n * N_STATE_FIELDS
        states = <double*> PyMem_RawMalloc(max(<Py_ssize_t> 1, 2 * n_states) * sizeof(double))
        if states == NULL:
            raise MemoryError("no memory for the states of the positions")
        model_call.states = states
        reference_call.states = states + n_states
        pair.model = &model_call
        pair.reference = &reference_call
        pair.kl = take_sums(kl_out, n, &scope)
        pair.reverse_kl = take_sums(reverse_kl_out, n, &scope)
        pair.js = take_sums(js_out, n, &scope)
        pair.loss = take_sums(loss_out, n, &scope)
        pair.reference_loss = take_sums(reference_loss_out, n, &scope)
        pair.model_top = take_top(top_out, n, &scope)
        pair.reference_top = take_top(reference_top_out, n, &scope)
        n_threads = take_threads(model.num_threads, n * model_call.n_classes // MIN_SHARE, &scope)
        if n > 0 and model_call.n_classes > 0:
            with nogil:
                if format == c"f":
                    compare_all[float](&pair, n_threads, 0)
                else:
                    compare_all[double](&pair, n_threads, 0)
    finally:
        PyMem_RawFree(states)
        close_scope(&scope)


FORMULAS = {"forward": FORWARD, "reverse": REVERSE, "js": JENSEN_SHANNON, "product": PRODUCT}


def distill(DistillationArguments arguments not None):
    """Write divergences of two sets of logits, and the gradient by the first one's; see distillation.pxd."""
    cdef CallScope scope
    cdef Call call
    cdef Comparison comparison
    cdef Py_buffer* view
    cdef Py_ssize_t n
    cdef char format
    cdef int n_threads
    cdef int axis = arguments.axis
    memset(&call, 0, sizeof(call))
    memset(&comparison, 0, sizeof(comparison))
    open_scope(&scope)
    try:
        format = take_logits(arguments.student, axis, &scope, &call)
        n = call.n_positions
        comparison.student = call.logits
        take_like_logits(
            arguments.teacher, axis, 0, "the teacher's logits are", &scope, &comparison.teacher
        )
        # In double if one of the two is.
        if format == c"f":
            format = arithmetic_of(comparison.teacher.format)
        if arguments.grad_out is not None:
            take_like_logits(
                arguments.grad_out, axis, PyBUF_WRITABLE, "the gradient is", &scope, &comparison.grad
            )
        take_mask(arguments.class_mask, axis, &scope, &call)
        comparison.class_mask = call.class_mask
        if arguments.counts is not None:
            view = take_view(arguments.counts, PyBUF_ND, &scope)
            expect(n_elements(view) == n and view.itemsize == 1, "counts is not bool")
            comparison.counts = <const char*> view.buf
        comparison.scale = <const double*> take_elements(arguments.scale, n, c"d", 0, "scale", &scope)
        comparison.value_out = take_sums(arguments.value_out, n, &scope)
        comparison.formula = FORMULAS[arguments.formula]
        comparison.n_positions = n
        comparison.n_classes = call.n_classes
        comparison.temperature = arguments.temperature
        comparison.beta = arguments.beta
        if n > 0 and call.n_classes > 0:
            n_threads = take_threads(arguments.num_threads, n * call.n_classes // MIN_SHARE, &scope)
            with nogil:
                if format == c"f":
                    compare_logits[float](&comparison, n_threads, 0)
                else:
                    compare_logits[double](&comparison, n_threads, 0)
    finally:
        close_scope(&scope)


def highest(logits, int axis, class_mask, Py_ssize_t k, classes_out, int num_threads):
    """Write the k highest classes of each position, the highest first, of equal ones the first.

    NaN is higher than all. classes_out: int64, (n_positions, k), C-contiguous.
    """
    cdef CallScope scope
    cdef Call call
    cdef Highest request
    cdef char format
    cdef int n_threads
    memset(&call, 0, sizeof(call))
    open_scope(&scope)
    try:
        format = take_logits(logits, axis, &scope, &call)
        take_mask(class_mask, axis, &scope, &call)
        expect(0 < k <= call.n_classes, "there are not so many classes")
        request.call = &call
        request.k = k
        request.classes = take_classes(classes_out, call.n_positions * k, &scope)
        if call.n_positions > 0:
            n_threads = take_threads(num_threads, call.n_positions * call.n_classes // MIN_SHARE, &scope)
            with nogil:
                if format == c"f":
                    find_all_highest[float](&request, n_threads, 0)
                else:
                    find_all_highest[double](&request, n_threads, 0)
    finally:
        close_scope(&scope)


# ---------------------------------------------------------------------------------------------
# Softmax and its like


cdef int normalize(
    logits, int axis, Output output, out, int num_threads, Phase phase=ALL, states=None, class_mask=None
) except -1:
    """Softmax, log-softmax or log-sum-exp of the logits, to `out`; or one phase of these, with states."""
    cdef CallScope scope
    cdef Call call
    cdef PassResult unused
    cdef char format
    cdef int n_threads
    memset(&call, 0, sizeof(call))
    open_scope(&scope)
    try:
        format = take_logits(logits, axis, &scope, &call)
        call.output = output
        call.grad.class_stride = 1
        call.grad_scale = 1
        call.dense_scale = 1
        call.temperature = 1
        take_mask(class_mask, axis, &scope, &call)
        if phase != ALL:
            call.phase = phase
            call.states = take_states(states, call.n_positions, &scope)
        if phase == REDUCE:
            pass
        elif output == LOGSUMEXP:
            call.loss_out = take_elements(out, call.n_positions, format, PyBUF_WRITABLE, "lse", &scope)
        else:
            take_like_logits(out, axis, PyBUF_WRITABLE, "the output is", &scope, &call.grad)
        plan(&call)
        if call.n_positions > 0 and call.n_classes > 0:
            n_threads = take_threads(num_threads, call.n_positions * call.n_classes // MIN_SHARE, &scope)
            with nogil:
                run_in(format, &call, n_threads, &unused)
    finally:
        close_scope(&scope)
    return 0


def softmax(logits, int axis, out, int num_threads, states=None, class_mask=None):
    """Write the softmax along an axis to `out`, of the logits' shape, possibly the logits themselves.

    states: merged from those of all shards, if the logits are a shard of the classes. class_mask: bool, of
    the logits' shape.
    """
    normalize(logits, axis, SOFTMAX, out, num_threads, ALL if states is None else FINISH, states, class_mask)


def log_softmax(logits, int axis, out, int num_threads, states=None, class_mask=None):
    """Write the log-softmax along an axis to `out`, of the logits' shape, possibly the logits themselves.

    states, class_mask: as of `softmax`.
    """
    normalize(
        logits, axis, LOG_SOFTMAX, out, num_threads, ALL if states is None else FINISH, states, class_mask
    )


def normalizers(logits, int axis, states_out, int num_threads):
    """Write the states of a shard of the classes, for `softmax` and `log_softmax`."""
    normalize(logits, axis, LOGSUMEXP, None, num_threads, REDUCE, states_out)


def logsumexp(logits, int axis, out, int num_threads):
    """Write the log-sum-exp along an axis, of at least one class, to `out`, one element per position."""
    normalize(logits, axis, LOGSUMEXP, out, num_threads)
