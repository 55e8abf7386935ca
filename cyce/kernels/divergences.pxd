"""Divergences of two sets of logits: Kullback-Leibler in both directions, and Jensen-Shannon.

Both sets are reduced to the states of their positions (merge.pxd), a group of positions at a time; then
their classes, which are in the caches by now, are gone through once more. With log-probabilities log p of the
model, log q of the reference, and d = log q - log p, the divergences are sums of terms that are never
negative:

    KL(q || p) = sum of q * d           = sum of p - q + q * d      = sum of q * g(d),  g(d) = e**-d - 1 + d
    KL(p || q) = sum of p * g(-d)
    JS(q, p)   = sum of m * h(u),  m = (q + p) / 2,  u = (q - p) / (q + p) = tanh(d / 2),
                 h(u) = ((1 + u) * log(1 + u) + (1 - u) * log(1 - u)) / 2

As p and q each sum to 1, an error of either normalizer moves the first two by its square only: nothing
cancels, however close the two are. All of it is in double.
"""
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cython cimport floating
from cython.parallel cimport prange
from libc.math cimport INFINITY, NAN, fabs
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from cyce.kernels.arrays cimport offsets_of
from cyce.kernels.call cimport Call
from cyce.kernels.machine cimport (
    CACHE_LINE, check, cyce_enter, cyce_environment, cyce_leave, multiply_add, whole_line,
)
from cyce.kernels.math cimport exp_nonpositive, expm1_factor, log1p_nonnegative, log1p_of_fraction
from cyce.kernels.merge cimport MAX, PICKED, REST
from cyce.kernels.passes cimport TileResult, run_tile
from cyce.kernels.plan cimport CHUNK
from cyce.kernels.scratch cimport Scratch, scratch_of, size_of_scratch
from cyce.kernels.storage cimport TILE, load
from cyce.kernels.sums cimport LANES, whole_lanes
from cyce.kernels.two_passes cimport max_of
from cyce.threads.team cimport end_turns
from cyce.threads.turns cimport Turns, begin_turns, count_turns, next_turn

cdef enum:
    # The highest classes that are compared.
    N_TOP = 10


cdef struct Pair:
    # Two sets of logits on the same positions, and where their divergences go, (n_positions,).
    Call* model
    Call* reference
    double* kl                      # of the model from the reference
    double* reverse_kl
    double* js
    double* loss
    double* reference_loss
    int64_t* model_top              # (n_positions, N_TOP); -1 where there are fewer classes
    int64_t* reference_top


cdef struct Side:
    # One of the two at one position.
    const Call* call
    Py_ssize_t at
    double row_max
    double log_normalizer
    double loss
    double top[N_TOP]               # the highest logits, descending
    int64_t* top_out


# ---------------------------------------------------------------------------------------------
# One class


cdef inline double entropy_series(double square) noexcept nogil:
    """h(u) / u**2 from u**2 <= 0.03: the sum of u**(2 k - 2) / (2 k (2 k - 1)), to 1e-16."""
    # 1 / (2 k (2 k - 1)) for k = 9 to 1
    cdef double p = 1.0 / 306.0
    p = multiply_add[double](p, square, 1.0 / 240.0)
    p = multiply_add[double](p, square, 1.0 / 182.0)
    p = multiply_add[double](p, square, 1.0 / 132.0)
    p = multiply_add[double](p, square, 1.0 / 90.0)
    p = multiply_add[double](p, square, 1.0 / 56.0)
    p = multiply_add[double](p, square, 1.0 / 30.0)
    p = multiply_add[double](p, square, 1.0 / 12.0)
    return multiply_add[double](p, square, 0.5)


cdef inline double kl_term(double p, double q, double log_ratio) noexcept nogil:
    """p - q + q * log_ratio, what a class adds to KL(q || p); log_ratio: log q - log p."""
    # ln(2) / 2: within it, g(d) is d**2 times a polynomial.
    cdef bint is_near = fabs(log_ratio) < 0.34657359027997264
    cdef double near = log_ratio if is_near else 0.0
    # A class without probability has no logarithm.
    cdef double far = p if q == 0 else p - q + q * log_ratio
    return q * (near * near * expm1_factor[double](-near)) if is_near else far


cdef inline void add_divergences(
    double log_p, double log_q, double* kl, double* reverse_kl, double* js
) noexcept nogil:
    """Add the terms of one class, of which the log-probabilities are at most 0."""
    cdef double p = exp_nonpositive(log_p)
    cdef double q = exp_nonpositive(log_q)
    # Both may be -inf, where the terms are 0.
    cdef double unbounded = 0.0 if log_q == log_p else log_q - log_p
    cdef double distance = -unbounded if unbounded < 0 else unbounded
    cdef bint is_near = distance < 0.34657359027997264
    cdef double higher = q if q > p else p
    cdef double lower = p if q > p else q
    cdef double total = higher + lower
    cdef double u = (higher - lower) / total if total > 0 else 0.0
    # e**-distance; log(1 + u) = log(2) - log1p(t), log(1 - u) = log(1 + u) - distance.
    cdef double t = lower / higher if higher > 0 else 0.0
    cdef double bounded = distance if distance < 800 else 800.0
    cdef double far_js = 0.6931471805599453 - log1p_of_fraction(t) - bounded * t / (1.0 + t)
    kl[0] += kl_term(p, q, unbounded)
    reverse_kl[0] += kl_term(q, p, -unbounded)
    js[0] += 0.5 * total * (u * u * entropy_series(u * u) if is_near else far_js)


# ---------------------------------------------------------------------------------------------
# One position


cdef inline const floating* chunk_of(
    const Side* side, Py_ssize_t first, Py_ssize_t n, floating* scratch
) noexcept nogil:
    """n logits from class number `first` on, filled up to whole lanes by ones that add nothing."""
    cdef const floating* logits = load(
        &side.call.logits, side.at + first * side.call.logits.class_stride, side.call.logits.class_stride, n,
        scratch,
    )
    cdef Py_ssize_t k
    if n == whole_lanes(n):
        return logits
    if logits != scratch:
        memcpy(scratch, logits, n * sizeof(floating))
    for k in range(n, whole_lanes(n)):
        scratch[k] = -INFINITY
    return scratch


cdef inline void note_top(Side* side, const floating* logits, Py_ssize_t first, Py_ssize_t n) noexcept nogil:
    """Note which of n logits are among the highest, of equal ones the first."""
    cdef double logit
    cdef Py_ssize_t c, place
    # `not <=`: NaN, which the maximum skips, is never among the highest.
    if max_of(logits, whole_lanes(n)) <= side.top[N_TOP - 1]:
        return
    for c in range(n):
        logit = logits[c]
        if logit > side.top[N_TOP - 1]:
            place = N_TOP - 1
            while place > 0 and logit > side.top[place - 1]:
                side.top[place] = side.top[place - 1]
                side.top_out[place] = side.top_out[place - 1]
                place -= 1
            side.top[place] = logit
            side.top_out[place] = first + c


cdef inline void begin_side(
    const Call* call, Py_ssize_t at, Py_ssize_t position, int64_t* top, Side* side
) noexcept nogil:
    """Look up the state of a position."""
    cdef const double* state = call.states + position
    cdef Py_ssize_t n = call.n_positions
    cdef Py_ssize_t k
    side.call = call
    side.at = at
    side.row_max = state[MAX * n]
    # An infinite maximum has no softmax.
    side.log_normalizer = NAN
    if side.row_max - side.row_max == 0:
        side.log_normalizer = log1p_nonnegative(state[REST * n])
    side.loss = (side.row_max - state[PICKED * n]) + side.log_normalizer
    side.top_out = top + position * N_TOP
    for k in range(N_TOP):
        side.top[k] = -INFINITY
        side.top_out[k] = -1


cdef inline void compare_position(
    const Pair* pair, Py_ssize_t position, Side* model, Side* reference, floating like
) noexcept nogil:
    """Divergences of one position."""
    cdef floating model_room[CHUNK]
    cdef floating reference_room[CHUNK]
    cdef double kl[LANES]
    cdef double reverse_kl[LANES]
    cdef double js[LANES]
    cdef const floating* model_logits
    cdef const floating* reference_logits
    cdef Py_ssize_t n_classes = model.call.n_classes
    cdef Py_ssize_t chunk, first, n, group, k
    for k in range(LANES):
        kl[k] = reverse_kl[k] = js[k] = 0
    for chunk in range((n_classes + CHUNK - 1) // CHUNK):
        first = chunk * CHUNK
        n = min(<Py_ssize_t> CHUNK, n_classes - first)
        model_logits = chunk_of(model, first, n, model_room)
        reference_logits = chunk_of(reference, first, n, reference_room)
        note_top(model, model_logits, first, n)
        note_top(reference, reference_logits, first, n)
        for group in range(whole_lanes(n) // LANES):
            for k in range(LANES):
                add_divergences(
                    (<double> model_logits[group * LANES + k] - model.row_max) - model.log_normalizer,
                    (<double> reference_logits[group * LANES + k] - reference.row_max)
                    - reference.log_normalizer,
                    &kl[k], &reverse_kl[k], &js[k],
                )
    for k in range(1, LANES):
        kl[0] += kl[k]
        reverse_kl[0] += reverse_kl[k]
        js[0] += js[k]
    pair.kl[position] = kl[0]
    pair.reverse_kl[position] = reverse_kl[0]
    pair.js[position] = js[0]
    if model.log_normalizer != model.log_normalizer or reference.log_normalizer != reference.log_normalizer:
        pair.kl[position] = pair.reverse_kl[position] = pair.js[position] = NAN
    pair.loss[position] = model.loss
    pair.reference_loss[position] = reference.loss


# ---------------------------------------------------------------------------------------------
# All positions


cdef inline void align_tiles(Call* call) noexcept:
    """Make a tile's width a power of two, so that those of two calls end at the same positions."""
    cdef Py_ssize_t width = 1
    while 2 * width <= call.tile_width:
        width *= 2
    call.tile_width = width
    call.n_tiles = (call.n_positions + width - 1) // width


cdef inline bint reduce_group(
    const Call* call, Py_ssize_t first, Py_ssize_t end, const Scratch* sizes, char* scratch, floating like
) noexcept nogil:
    """Reduce the positions of a group to their states; returns whether a target was bad."""
    cdef TileResult result
    cdef Py_ssize_t number = first // call.tile_width
    cdef bint any_bad = False
    while number * call.tile_width < end:
        run_tile(call, number, sizes, scratch, 1, &result, like)
        any_bad = any_bad or result.has_bad_target
        number += 1
    return any_bad


cdef inline bint compare_group(
    const Pair* pair, Py_ssize_t first, Py_ssize_t end, const Scratch* model_sizes,
    const Scratch* reference_sizes, char* scratch, floating like,
) noexcept nogil:
    """Divergences of a group of positions; returns whether a target was bad."""
    cdef Py_ssize_t model_at[TILE]
    cdef Py_ssize_t reference_at[TILE]
    cdef Side model
    cdef Side reference
    cdef Py_ssize_t n = end - first
    cdef Py_ssize_t k
    cdef bint any_bad
    check(n <= TILE)
    any_bad = reduce_group(pair.model, first, end, model_sizes, scratch, like)
    any_bad = reduce_group(pair.reference, first, end, reference_sizes, scratch, like) or any_bad
    offsets_of(&pair.model.logits.positions, first, n, model_at)
    offsets_of(&pair.reference.logits.positions, first, n, reference_at)
    for k in range(n):
        begin_side(pair.model, model_at[k], first + k, pair.model_top, &model)
        begin_side(pair.reference, reference_at[k], first + k, pair.reference_top, &reference)
        compare_position(pair, first + k, &model, &reference, like)
    return any_bad


cdef inline void compare_groups(
    const Pair* pair, Turns* turns, int worker, const Scratch* model_sizes, const Scratch* reference_sizes,
    char* scratch, char* bad, floating like,
) noexcept nogil:
    """The groups that one thread takes; bad: for each, whether a target was bad."""
    cdef cyce_environment found
    cdef Py_ssize_t first, end
    cyce_enter(&found)
    while next_turn(turns, worker, &first, &end):
        bad[first // turns.n_at_once] = compare_group(
            pair, first, end, model_sizes, reference_sizes, scratch, like
        )
    cyce_leave(&found)


cdef inline int compare_all(const Pair* pair, int n_threads, floating like) except -1 nogil:
    """Divergences of all positions."""
    cdef Scratch model_sizes = scratch_of(pair.model, like)
    cdef Scratch reference_sizes = scratch_of(pair.reference, like)
    cdef Py_ssize_t width = max(pair.model.tile_width, pair.reference.tile_width)
    cdef Py_ssize_t n_groups = count_turns(pair.model.n_positions, width)
    cdef int n_workers = <int> min(<Py_ssize_t> n_threads, n_groups)
    cdef size_t size = max(size_of_scratch(&model_sizes), size_of_scratch(&reference_sizes))
    cdef char* memory = <char*> PyMem_RawMalloc(CACHE_LINE + n_workers * size)
    cdef char* bad = <char*> PyMem_RawMalloc(n_groups)
    cdef char* scratch = whole_line(memory)
    cdef Turns turns
    cdef int worker
    cdef Py_ssize_t group
    cdef bint any_bad = False
    if memory == NULL or bad == NULL:
        PyMem_RawFree(memory)
        PyMem_RawFree(bad)
        with gil:
            raise MemoryError("no memory for the scratch space of the divergence")
    begin_turns(&turns, n_workers, pair.model.n_positions, width)
    # Also for one thread: its code would be there twice.
    for worker in prange(n_workers, num_threads=n_workers, schedule="static", chunksize=1):
        compare_groups[floating](
            pair, &turns, worker, &model_sizes, &reference_sizes, scratch + worker * size, bad, 0
        )
    end_turns(&turns)
    for group in range(n_groups):
        any_bad = any_bad or bad[group]
    PyMem_RawFree(memory)
    PyMem_RawFree(bad)
    if any_bad:
        with gil:
            raise IndexError(-1)
    return 0
