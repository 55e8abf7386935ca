"""Kernels of the cross-entropy and its gradient, and of softmax and its like.

Design
------
This file is compiled once per instruction-set level; `cyce._dispatch` picks one at import. The code
is scalar, branch-free and laid out over a fixed number of lanes, so that the C compiler turns it
into vectors of whatever width the level has, and every width adds in the same order.

* Logits are a set of positions with `n_classes` logits each; both may have any strides. Where the
  classes of a position are contiguous and not few, a tile is one or a few positions and vectors run
  along the classes of each (`row_*`). Everywhere else (images, sequences, few classes) a tile is up to
  TILE positions, packed to [class][position], and vectors run across positions (`tile_*`). What is
  computed once per position runs across the positions of a tile in both.
* The classes of a tile are cut into blocks of fixed size. A block is reduced by itself to its
  maximum and the sum of its other exponentials, blocks are merged in order. So neither the number of
  threads nor the way the work is dealt out to them changes a bit.
* With maximum m and rest r = sum of exp(x_j - m) over all classes but one at the maximum:
  loss = (m - x_y) + log1p(r) and, where x_y = m, gradient_y = -r / (1 + r). Nothing cancels.
  One class of a position, the pivot (the target or, of class probabilities, the maximum), has its gradient
  computed apart for that (`finish_pivots`).
* logit - maximum is never rounded, which would cost up to |logit - maximum| / 2 ulp. float: an
  exponential is that of the logit itself, the maximum enters as a power of two and, once per block,
  as a factor in double (`unit_at`). double: what the subtraction loses is carried along.
* float is added up in double, double with what every addition loses. Of double, what the logarithm, the
  merges and the last products lose is carried along as well (`*_lost`), and rounded once, at the end.
* Every target is a `hard` mass on one class plus a `dense` mass on all of them (smoothing or class
  probabilities), so that the options cost a branch per tile or per chunk and never a second loop.
* Options that change the logits (temperature, softcap) change a block of them at a time, in scratch
  memory, before it is reduced; the loops that follow do not know. With a softcap, the second half of
  the pass starts from the logits again, whose slopes it needs. z-loss and sample weights act on whole
  positions, statistics are one more loop over a block that is in the cache, exponentials and all.
* Softmax is the gradient of a mass of 1 before its target is subtracted; log-softmax and log-sum-exp
  follow from the same reduction (`Output`).
* The gradient buffer holds the exponentials between the two halves of the fused pass; it may be the
  logits' own memory, because a block is read before it is written. A gradient much larger than the
  caches goes past them instead (`Call.streams`), and the exponentials wait in scratch memory.
"""
from cpython.buffer cimport PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cython cimport floating
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY, NAN, fabsf
from libc.stdint cimport (
    INT64_MAX, INT64_MIN, int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t,
)
from libc.string cimport memcpy, memset

from cyce._arrays cimport (
    Operand, check, cyce_stream, cyce_stream_end, expect, format_of, offsets_of, place, same_shape, take,
    transpose,
)
from cyce._math cimport (
    LANES, add, add_product, cut_off, cyce_enter, cyce_environment, cyce_leave, cyce_prefetch,
    difference_lost, exp_in_parts, exp_near_zero, exp_nonpositive, exp_scaled, exponent_bias, finite_or_zero,
    headroom, ln2_high, ln2_low, log1p_in_parts, log1p_nonnegative, multiply_add, quotient_lost, round_shift,
    settled, square_of_sech, sum_lost, sum_of_lanes, tanh_of, without_headroom,
)
from cyce._team cimport Team, dismiss, hire

cdef extern from *:
    const Py_ssize_t PY_SSIZE_T_MAX

cdef extern from * nogil:
    """
    #ifdef NDEBUG
    #define CYCE_DEBUG 0
    #else
    #define CYCE_DEBUG 1
    #endif
    """
    const bint CYCE_DEBUG

HAS_CHECKS = bool(CYCE_DEBUG)

cdef enum:
    # Classes of a row that are looked up, weighted and stored together.
    CHUNK = 256
    # Classes of a row that are reduced together: the logits and their exponentials fit into L1.
    ROW_BLOCK = 4096
    # Short rows in a tile, and the most logits of these: what is computed once per row then becomes
    # vectors, and the exponentials are still in the cache when they are finished.
    ROW_TILE = 16
    ROW_TILE_LOGITS = 8192
    # Positions in a tile, classes of a tile that are reduced together if there are more than twice as
    # many, and the most blocks of these: blocks grow with the classes, so that what is kept of them
    # stays small.
    TILE = 128
    TILE_BLOCK = 64
    MAX_TILE_BLOCKS = 256
    # Below this many classes a tile of positions beats one position at a time: 3 times at 65 classes.
    ROW_MIN_CLASSES = 128
    # Targets that are counted together.
    TARGET_BLOCK = 8192
    # A thread's share is at least this many logits: below it, starting threads costs more.
    MIN_SHARE = 12288
    # Logits that are handed out to a thread together, to make up for handing them out.
    AT_ONCE = 16384
    # Tiles of at least this many logits, when there are few, are split between threads.
    MIN_SPLIT = 65536
    CACHE_LINE = 64
    # Gradients of at least this many bytes go past the caches, unless they overwrite the logits: nothing
    # of them would be left there. Exponentials of a tile wait in at most so many bytes of scratch memory.
    MIN_STREAM = 1 << 26
    MAX_STREAM_TILE = 3 << 18


cdef enum Output:
    # What a call writes to the array of the logits' shape; LOGSUMEXP, to that of the positions only.
    GRADIENT
    SOFTMAX
    LOG_SOFTMAX
    LOGSUMEXP


cdef struct StatsOut:
    # What `cross_entropy` writes of each position on request; (n_positions,).
    char* lse                       # of the logits' type, as are probability and entropy
    char* probability
    char* entropy
    int64_t* prediction
    int64_t* rank


cdef struct Call:
    # What one call computes. Pointers that do not apply are NULL.
    Output output
    Py_ssize_t n_positions
    Py_ssize_t n_classes
    Operand logits
    Operand probabilities
    char probabilities_format
    Operand grad                    # or softmax, or log-softmax
    const char* target              # (n_positions,)
    char target_format
    int64_t ignore_index
    const char* weight              # (n_classes,)
    double smoothing
    double dense_scale              # what the dense mass of a class is multiplied by at the end
    double dense_scale_lost         # what rounding that loses
    bint has_dense
    const char* sample_weight       # (n_positions,)
    bint all_ignored                # whatever the targets
    double z_loss
    double softcap                  # 0: none
    double temperature
    double grad_scale               # upstream gradient / denominator / temperature
    const char* grad_output         # (n_positions,), or NULL: grad_scale alone
    char* loss_out                  # (n_positions,), or NULL; losses, or logsumexp
    bint has_stats
    StatsOut stats_out
    bint streams                    # the gradient goes past the caches
    bint by_rows                    # vectors run along the classes of a position
    Py_ssize_t tile_width
    Py_ssize_t n_tiles
    Py_ssize_t block_classes
    Py_ssize_t n_blocks


cdef struct TileResult:
    double loss
    bint target_changed             # a target was good when counted and bad when used


cdef struct Tile:
    # The positions a thread is working at; entry k is position first + k. Arrays come first, so that
    # they begin where vectors should, as the tile does.
    Py_ssize_t logits_at[TILE]
    Py_ssize_t grad_at[TILE]
    Py_ssize_t probabilities_at[TILE]
    Py_ssize_t pivot[TILE]          # the class whose gradient is computed apart
    double pivot_logit[TILE]
    double pivot_slope[TILE]        # of the softcap there
    double pivot_mass[TILE]         # what is subtracted from (total mass) * softmax at the pivot
    double other_mass[TILE]         # the total without that
    double pivot_gradient[TILE]
    double hard[TILE]
    double scale[TILE]              # upstream gradient / denominator
    double row_max[TILE]
    double argmax[TILE]
    double rest[TILE]               # sum of exp(logit - row_max) over all but one maximum
    double rest_lost[TILE]          # what its additions lost
    double mass[TILE]               # sum of the dense mass
    double mass_lost[TILE]
    double gap[TILE]                # sum of dense mass * (row_max - logit)
    double gap_lost[TILE]
    double total[TILE]              # the mass of all classes and of z-loss, by which softmax is multiplied
    double spread[TILE]             # sum of exp(logit - row_max) * (row_max - logit)
    double rank[TILE]               # number of classes before the target's
    double log_normalizer[TILE]     # log(1 + rest)
    double log_lost[TILE]           # what rounding that loses; of floats nothing that counts
    double inverse[TILE]            # 1 / (1 + rest)
    bint counts[TILE]
    Py_ssize_t first
    Py_ssize_t width
    Py_ssize_t lanes                # width, rounded up to whole vectors
    bint contiguous                 # the positions are neighbours in memory
    bint grad_contiguous
    bint probabilities_contiguous
    Py_ssize_t next_at              # where the next tile's logits may be, class by class
    Py_ssize_t next_stride
    Py_ssize_t n_ignored
    bint target_changed


cdef enum:
    # What is kept of a block for each position of the tile.
    BLOCK_MAX
    BLOCK_ARGMAX
    BLOCK_REST
    BLOCK_REST_LOST
    BLOCK_MASS
    BLOCK_MASS_LOST
    BLOCK_GAP
    BLOCK_GAP_LOST
    BLOCK_UNIT
    BLOCK_SPREAD
    BLOCK_RANK
    N_STATS


# ---------------------------------------------------------------------------------------------
# Positions, targets and masses


cdef void load_targets(
    const char* target, char format, Py_ssize_t first, Py_ssize_t n, int64_t* targets_out
) noexcept nogil:
    """Targets of n positions from number `first` on; what an int64 cannot hold becomes -1."""
    # volatile: another thread may write to the array, and what was checked must be what is used.
    cdef uint64_t value
    cdef Py_ssize_t k
    if format == c"q":
        for k in range(n):
            targets_out[k] = (<const volatile int64_t*> target)[first + k]
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


cdef inline bint is_class(int64_t target, Py_ssize_t n_classes) noexcept nogil:
    """Whether the target is one of the classes."""
    # One comparison: a negative number is large when taken as unsigned.
    return <uint64_t> target < <uint64_t> n_classes


cdef void fill_dense(
    const Call* call, const floating* weight, Py_ssize_t probabilities_at,
    Py_ssize_t first, Py_ssize_t n, floating* dense_out,
) noexcept nogil:
    """Dense mass of classes first to first + n of one position, before dense_scale.

    1 under smoothing, the smoothed probabilities else; times the class weights.
    """
    cdef Py_ssize_t stride = call.probabilities.class_stride
    cdef Py_ssize_t at = probabilities_at + first * stride
    cdef floating keep = <floating> (1.0 - call.smoothing)
    cdef floating spread = <floating> (call.smoothing / call.n_classes)
    cdef const float* single = <const float*> call.probabilities.start
    cdef const double* wide = <const double*> call.probabilities.start
    cdef Py_ssize_t k
    check(0 <= first and first + n <= call.n_classes)
    if call.probabilities.start == NULL:
        for k in range(n):
            dense_out[k] = 1
    elif call.probabilities_format == c"f":
        for k in range(n):
            dense_out[k] = multiply_add(<floating> single[at + k * stride], keep, spread)
    else:
        for k in range(n):
            dense_out[k] = multiply_add(<floating> wide[at + k * stride], keep, spread)
    if weight != NULL:
        for k in range(n):
            dense_out[k] *= weight[first + k]


cdef double mass_without(
    const Call* call, Py_ssize_t probabilities_at, Py_ssize_t left_out, floating like
) noexcept nogil:
    """Dense mass of all classes of one position but one, before dense_scale."""
    cdef floating dense[CHUNK]
    cdef double mass = 0, lost = 0
    cdef Py_ssize_t first = 0
    cdef Py_ssize_t k, n
    while first < call.n_classes:
        n = min(<Py_ssize_t> CHUNK, call.n_classes - first)
        fill_dense(call, <const floating*> call.weight, probabilities_at, first, n, dense)
        for k in range(n):
            if first + k != left_out:
                add(&mass, &lost, dense[k])
        first += n
    return settled(mass, lost)


cdef inline bint transforms(const Call* call) noexcept nogil:
    """Whether the loss is that of other logits than the given ones."""
    return call.softcap > 0 or call.temperature != 1


cdef void transform(const Call* call, Py_ssize_t n, floating* logits_out) noexcept nogil:
    """Apply softcap and temperature to logits, in place."""
    cdef floating temperature = <floating> call.temperature
    cdef Py_ssize_t k
    if call.softcap > 0:
        for k in range(n):
            logits_out[k] = <floating> (call.softcap * tanh_of(logits_out[k] / call.softcap))
    if temperature != 1:
        for k in range(n):
            logits_out[k] = logits_out[k] / temperature


cdef inline double slope_at(const Call* call, floating logit) noexcept nogil:
    """Slope of the softcap at a logit: 1 / cosh(logit / softcap)**2, or 1 without a softcap."""
    return square_of_sech(logit / call.softcap) if call.softcap > 0 else 1.0


cdef void take_pivots(
    const Call* call, Tile* tile, const floating* logits, Py_ssize_t class_stride, const Py_ssize_t* at,
    Py_ssize_t first, Py_ssize_t n,
) noexcept nogil:
    """Take the targets' logits out of n classes from number `first` on; at: NULL for logits side by side."""
    cdef floating logit
    cdef Py_ssize_t c, k
    for k in range(tile.width):
        c = tile.pivot[k] - first
        if is_class(c, n):
            tile.pivot_logit[k] = logits[c * class_stride + (k if at == NULL else at[k])]
    if transforms(call):
        for k in range(tile.width):
            if is_class(tile.pivot[k] - first, n):
                logit = <floating> tile.pivot_logit[k]
                tile.pivot_slope[k] = slope_at(call, logit)
                transform(call, 1, &logit)
                tile.pivot_logit[k] = logit


cdef void begin_tile(
    const Call* call, const floating* logits, Py_ssize_t number, Tile* tile
) noexcept nogil:
    """Look up the positions of a tile and their targets, before anything is written."""
    # Copies, because for all the compiler knows the tile might lie in the call.
    cdef const floating* weight = <const floating*> call.weight
    cdef Py_ssize_t n_classes = call.n_classes
    cdef int64_t ignore_index = call.ignore_index
    cdef double unpicked = 0 if call.output == GRADIENT else 1
    cdef double picked = 1.0 - call.smoothing
    cdef double grad_scale = call.grad_scale
    cdef int64_t targets[TILE]
    cdef Py_ssize_t n_counted = 0
    cdef Py_ssize_t n_bad = 0
    cdef floating sample_weight
    cdef Py_ssize_t k
    tile.first = number * call.tile_width
    tile.width = min(call.tile_width, call.n_positions - tile.first)
    tile.lanes = tile.width if call.by_rows else (tile.width + LANES - 1) // LANES * LANES
    tile.contiguous = offsets_of(&call.logits.positions, tile.first, tile.width, tile.logits_at)
    tile.next_at = tile.logits_at[0]
    tile.next_stride = 0
    if tile.contiguous:
        tile.next_at += TILE
        tile.next_stride = call.logits.class_stride
    elif tile.width == TILE and tile.logits_at[TILE - 1] - tile.logits_at[0] == (TILE - 1) * n_classes:
        tile.next_at += TILE * n_classes
        tile.next_stride = TILE
    tile.grad_contiguous = False
    if call.grad.start != NULL:
        tile.grad_contiguous = offsets_of(&call.grad.positions, tile.first, tile.width, tile.grad_at)
    if call.probabilities.start != NULL:
        tile.probabilities_contiguous = offsets_of(
            &call.probabilities.positions, tile.first, tile.width, tile.probabilities_at
        )
    else:
        for k in range(tile.width):
            tile.probabilities_at[k] = 0
    if call.target != NULL:
        load_targets(call.target, call.target_format, tile.first, tile.width, targets)
        # Loops of one size of number each, and without branches, so that they become vectors.
        for k in range(tile.width):
            n_counted += is_class(targets[k], n_classes) & (targets[k] != ignore_index)
            n_bad += (not is_class(targets[k], n_classes)) & (targets[k] != ignore_index)
        for k in range(tile.width):
            tile.pivot[k] = targets[k] if (
                is_class(targets[k], n_classes) & (targets[k] != ignore_index)
            ) else 0
        for k in range(tile.width):
            tile.counts[k] = is_class(targets[k], n_classes) & (targets[k] != ignore_index)
            tile.hard[k] = picked
        if weight != NULL:
            for k in range(tile.width):
                check(is_class(tile.pivot[k], n_classes))
                tile.hard[k] = picked * weight[tile.pivot[k]] if tile.counts[k] else 0.0
    else:
        n_counted = tile.width
        for k in range(tile.width):
            tile.counts[k] = True
            tile.pivot[k] = 0
            # softmax is the gradient of a mass of 1, before its target is subtracted
            tile.hard[k] = tile.total[k] = unpicked
    tile.target_changed = n_bad > 0
    tile.n_ignored = tile.width - n_counted
    for k in range(tile.lanes):
        tile.pivot_logit[k] = 0
    # Those of a tile are cheaper once it is packed, but ranks need them in every block.
    if call.target != NULL and (call.by_rows or call.has_stats):
        take_pivots(call, tile, logits, call.logits.class_stride, tile.logits_at, 0, n_classes)
    if call.grad.start != NULL:
        for k in range(tile.width):
            tile.scale[k] = grad_scale
        if call.grad_output != NULL:
            for k in range(tile.width):
                tile.scale[k] *= (<const floating*> call.grad_output)[tile.first + k]
    if call.sample_weight != NULL:
        for k in range(tile.width):
            sample_weight = (<const floating*> call.sample_weight)[tile.first + k]
            if call.grad.start != NULL:
                tile.scale[k] *= sample_weight
            tile.n_ignored += tile.counts[k] and sample_weight == 0
            tile.counts[k] = tile.counts[k] and sample_weight != 0
    if call.all_ignored:
        tile.n_ignored = tile.width
        for k in range(tile.width):
            tile.counts[k] = False
    for k in range(tile.width, tile.lanes):
        tile.counts[k] = False
        tile.pivot[k] = 0
        tile.hard[k] = tile.total[k] = 0
        tile.scale[k] = 0


# How exponentials are computed relative to a maximum m, or to 0 where that is not finite:
# exp_scaled(x, shift, exponent_shift, lowest) * 2**-HEADROOM * unit = e**(x - m).


cdef inline floating shift_at(floating row_max) noexcept nogil:
    """What is subtracted from the logits.

    float: from 256 on, logit - maximum is exact for every logit that counts (Sterbenz); below, the
    logit itself is reduced exactly by ln2_high. double: exp_scaled knows what the difference lost.
    """
    cdef floating finite = finite_or_zero(row_max)
    if floating is float:
        return finite if fabsf(finite) > 256 else <floating> 0.0
    else:
        return finite


cdef inline floating power_at(floating relative) noexcept nogil:
    """Power of two next to e**relative."""
    return multiply_add(
        relative, <floating> 1.4426950408889634, round_shift(relative)
    ) - round_shift(relative)


cdef inline floating exponent_shift_at(floating relative) noexcept nogil:
    """Argument of exp_scaled for a maximum of shift + relative."""
    return round_shift(relative) + (exponent_bias(relative) + headroom(relative) - power_at(relative))


cdef inline double unit_at(double relative, double power) noexcept nogil:
    """2**power / e**relative, to 1 ulp."""
    return exp_near_zero[double]((power * ln2_high[double](1.0) - relative) + power * ln2_low[double](1.0))


cdef inline void add_dense(
    floating mass, floating row_max, floating logit, double* mass_total, double* mass_lost,
    double* gap_total, double* gap_lost,
) noexcept nogil:
    """Add a dense mass to the running total of these, and mass * (row_max - logit) to that of the gaps."""
    # A class without mass adds nothing, even where its logit is -inf.
    cdef double gap = 0.0 if mass == 0 else <double> mass * (<double> row_max - <double> logit)
    add(mass_total, mass_lost, mass)
    if floating is float:
        gap_total[0] += gap
    else:
        add[double](gap_total, gap_lost, gap)


# ---------------------------------------------------------------------------------------------
# One block of one position, vectors along the classes


# The loops over one chunk are functions, called apart for whole chunks, so that the compiler knows how
# long these are, and for the last one: a twentieth off the loss.


cdef inline floating max_of(const floating* values, Py_ssize_t n) noexcept nogil:
    """Maximum of n values, n a multiple of LANES; a NaN is passed over."""
    cdef floating lane[LANES]
    cdef floating half[16]
    cdef floating quarter[8]
    cdef floating eighth[4]
    cdef Py_ssize_t group, k
    cdef floating value
    for k in range(LANES):
        lane[k] = -INFINITY
    for group in range(n // LANES):
        for k in range(LANES):
            value = values[group * LANES + k]
            lane[k] = value if value > lane[k] else lane[k]
    for k in range(16):
        half[k] = lane[k] if lane[k] > lane[k + 16] else lane[k + 16]
    for k in range(8):
        quarter[k] = half[k] if half[k] > half[k + 8] else half[k + 8]
    for k in range(4):
        eighth[k] = quarter[k] if quarter[k] > quarter[k + 4] else quarter[k + 4]
    for k in range(2):
        eighth[k] = eighth[k] if eighth[k] > eighth[k + 2] else eighth[k + 2]
    return eighth[0] if eighth[0] > eighth[1] else eighth[1]


cdef inline void exponentials_of(
    const floating* values, Py_ssize_t n, floating shift, floating exponent_shift, floating lowest,
    floating* exps_out,
) noexcept nogil:
    """Write exp_scaled of n values, n a multiple of LANES."""
    cdef Py_ssize_t group, k
    for group in range(n // LANES):
        for k in range(LANES):
            exps_out[group * LANES + k] = exp_scaled(
                values[group * LANES + k], shift, exponent_shift, lowest
            )


cdef inline void add_chunk(const floating* values, Py_ssize_t n, double* total, double* lost) noexcept nogil:
    """Add n values, n a multiple of LANES, to LANES totals."""
    cdef Py_ssize_t group, k
    for group in range(n // LANES):
        for k in range(LANES):
            add(&total[k], &lost[k], values[group * LANES + k])


cdef inline int index_of(const floating* values, int n, floating value) noexcept nogil:
    """First index of a value among n, or n if there is none."""
    cdef int best = n
    cdef int k, candidate
    for k in range(n):
        candidate = k if values[k] == value else n
        best = candidate if candidate < best else best
    return best


cdef inline Py_ssize_t whole_lanes(Py_ssize_t n) noexcept nogil:
    """n, rounded up to a multiple of LANES."""
    return (n + LANES - 1) // LANES * LANES


cdef void row_reduce_dense(
    const Call* call, const Tile* tile, Py_ssize_t row, const floating* chunk_logits, Py_ssize_t first,
    Py_ssize_t n, floating finite_max, double* mass, double* mass_lost, double* gap, double* gap_lost,
) noexcept nogil:
    """Add the dense mass of one chunk of a row to the LANES totals of masses and gaps."""
    cdef floating dense[CHUNK]
    cdef Py_ssize_t group, k
    fill_dense(call, <const floating*> call.weight, tile.probabilities_at[row], first, n, dense)
    for k in range(n, whole_lanes(n)):
        dense[k] = 0
    for group in range(whole_lanes(n) // LANES):
        for k in range(LANES):
            add_dense(
                dense[group * LANES + k], finite_max, chunk_logits[group * LANES + k],
                &mass[k], &mass_lost[k], &gap[k], &gap_lost[k],
            )


cdef inline void add_spread(
    floating exponential, floating row_max, floating logit, double* total, double* lost
) noexcept nogil:
    """Add exponential * (row_max - logit) to a running total; an exponential of 0 adds nothing."""
    cdef double spread = (
        0.0 if exponential == 0 else <double> exponential * (<double> row_max - <double> logit)
    )
    if floating is float:
        total[0] += spread
    else:
        add[double](total, lost, spread)


cdef inline bint comes_before(
    floating logit, Py_ssize_t number, double pivot_logit, Py_ssize_t pivot
) noexcept nogil:
    """Whether a class comes before the pivot where logits descend, equal ones in order."""
    return logit > pivot_logit or (logit == pivot_logit and number < pivot)


cdef void row_reduce_stats(
    const Tile* tile, Py_ssize_t row, const floating* block_logits, Py_ssize_t first, Py_ssize_t n,
    floating block_max, double* stats, Py_ssize_t stride,
) noexcept nogil:
    """Reduce n classes of a row, from number `first` on, to their spread and rank."""
    cdef floating shift = shift_at(block_max)
    cdef floating relative = finite_or_zero(block_max) - shift
    cdef floating exponent_shift = exponent_shift_at(relative)
    cdef floating lowest = relative + cut_off(relative)
    cdef Py_ssize_t pivot = tile.pivot[row] - first
    cdef double pivot_logit = tile.pivot_logit[row]
    cdef double spread[LANES]
    cdef double lost[LANES]
    cdef Py_ssize_t n_before = 0
    cdef Py_ssize_t group, k
    cdef floating logit
    for k in range(LANES):
        spread[k] = lost[k] = 0
    for group in range(n // LANES):
        for k in range(LANES):
            logit = block_logits[group * LANES + k]
            add_spread(
                exp_scaled(logit, shift, exponent_shift, lowest), finite_or_zero(block_max), logit,
                &spread[k], &lost[k],
            )
    for k in range(n % LANES):
        logit = block_logits[n // LANES * LANES + k]
        add_spread(
            exp_scaled(logit, shift, exponent_shift, lowest), finite_or_zero(block_max), logit,
            &spread[k], &lost[k],
        )
    for k in range(n):
        n_before += comes_before(block_logits[k], k, pivot_logit, pivot)
    sum_of_lanes(spread, lost, block_max)
    stats[BLOCK_SPREAD * stride] = (
        settled(spread[0], lost[0]) * <double> without_headroom(block_max) * stats[BLOCK_UNIT * stride]
    )
    stats[BLOCK_RANK * stride] = n_before


cdef void row_reduce_block(
    const Call* call, const Tile* tile, Py_ssize_t row, const floating* logits, floating* row_exps,
    Py_ssize_t block, double* stats, floating* packed,
) noexcept nogil:
    """Reduce one block of a row; leave its exponentials in row_exps, unless that is NULL.

    stats: those of this block and row, call.tile_width apart.
    """
    cdef Py_ssize_t first = block * ROW_BLOCK
    cdef Py_ssize_t n = min(<Py_ssize_t> ROW_BLOCK, call.n_classes - first)
    cdef Py_ssize_t n_full = n // CHUNK
    cdef Py_ssize_t n_tail = n - n_full * CHUNK
    cdef Py_ssize_t n_chunks = n_full + (n_tail > 0)
    cdef const floating* block_logits = logits + tile.logits_at[row] + first
    cdef const floating* next_logits = block_logits + n
    cdef floating* block_exps = row_exps
    cdef floating tail[CHUNK]
    cdef floating local[CHUNK]
    cdef double total[LANES]
    cdef double lost[LANES]
    cdef double mass[LANES]
    cdef double mass_lost[LANES]
    cdef double gap[LANES]
    cdef double gap_lost[LANES]
    cdef const floating* values
    cdef floating* exps
    cdef floating block_max = -INFINITY, at_max = 0
    cdef floating chunk_max, shift, relative, exponent_shift, lowest
    cdef Py_ssize_t chunk, k, size
    cdef Py_ssize_t max_chunk = 0
    cdef Py_ssize_t stride = call.tile_width
    cdef int max_at
    cdef double unit

    if row_exps != NULL:
        block_exps = row_exps + first
    if transforms(call):
        memcpy(packed, block_logits, n * sizeof(floating))
        transform(call, n, packed)
        block_logits = packed
    # A short last chunk is filled up with logits that add nothing.
    if n_tail:
        memcpy(tail, block_logits + n_full * CHUNK, n_tail * sizeof(floating))
        for k in range(n_tail, whole_lanes(n_tail)):
            tail[k] = -INFINITY

    for chunk in range(n_chunks):
        values = block_logits + chunk * CHUNK if chunk < n_full else tail
        chunk_max = max_of(values, CHUNK) if chunk < n_full else max_of(values, whole_lanes(n_tail))
        if chunk_max > block_max:
            block_max = chunk_max
            max_chunk = chunk
    values = block_logits + max_chunk * CHUNK if max_chunk < n_full else tail
    size = min(<Py_ssize_t> CHUNK, n - max_chunk * CHUNK)
    max_at = index_of(values, <int> size, block_max)

    shift = shift_at(block_max)
    relative = finite_or_zero(block_max) - shift
    exponent_shift = exponent_shift_at(relative)
    lowest = relative + cut_off(relative)
    unit = unit_at(relative, power_at(relative))
    for k in range(LANES):
        total[k] = lost[k] = mass[k] = mass_lost[k] = gap[k] = gap_lost[k] = 0
    for chunk in range(n_chunks):
        size = min(<Py_ssize_t> CHUNK, n - chunk * CHUNK)
        values = block_logits + chunk * CHUNK if chunk < n_full else tail
        exps = block_exps + chunk * CHUNK if row_exps != NULL and chunk < n_full else local
        # The next block, or row, comes while this one is computed: a quarter off the loss of 2048 x 32000
        # at x86_64_v4, and a fifth off a gradient that streams. With one that does not, the memory is busy
        # anyhow. Prefetching beyond the end does no harm.
        if row_exps == NULL or call.streams:
            for k in range(CHUNK * <Py_ssize_t> sizeof(floating) // 64):
                cyce_prefetch(<const char*> (next_logits + chunk * CHUNK) + 64 * k)
        if call.has_dense:
            row_reduce_dense(
                call, tile, row, values, first + chunk * CHUNK, size, finite_or_zero(block_max),
                mass, mass_lost, gap, gap_lost,
            )
        if chunk < n_full:
            exponentials_of(values, CHUNK, shift, exponent_shift, lowest, exps)
        else:
            exponentials_of(values, whole_lanes(n_tail), shift, exponent_shift, lowest, exps)
        # The maximum stays out of the sum. Where all is NaN or below there is none.
        if chunk == max_chunk and max_at < size:
            at_max = exps[max_at]
            exps[max_at] = 0
        if chunk < n_full:
            add_chunk(exps, CHUNK, total, lost)
        else:
            add_chunk(exps, whole_lanes(n_tail), total, lost)
        if chunk == max_chunk and max_at < size:
            exps[max_at] = at_max
        if row_exps != NULL and chunk == n_full:
            memcpy(block_exps + chunk * CHUNK, local, n_tail * sizeof(floating))

    sum_of_lanes(total, lost, block_max)
    stats[BLOCK_MAX * stride] = block_max
    stats[BLOCK_ARGMAX * stride] = <double> (first + max_chunk * CHUNK + max_at)
    stats[BLOCK_REST * stride] = total[0] * <double> without_headroom(block_max) * unit
    stats[BLOCK_REST_LOST * stride] = lost[0] * <double> without_headroom(block_max) * unit
    if call.has_dense:
        sum_of_lanes(mass, mass_lost, block_max)
        sum_of_lanes(gap, gap_lost, block_max)
        stats[BLOCK_MASS * stride] = mass[0]
        stats[BLOCK_MASS_LOST * stride] = finite_or_zero(mass_lost[0])
        stats[BLOCK_GAP * stride] = gap[0]
        stats[BLOCK_GAP_LOST * stride] = finite_or_zero(gap_lost[0])
    stats[BLOCK_UNIT * stride] = unit
    if call.has_stats:
        row_reduce_stats(tile, row, block_logits, first, n, block_max, stats, stride)


cdef void row_leave_out(const Call* call, double* stats) noexcept nogil:
    """What `row_reduce_block` leaves of an ignored row, whatever stands in it."""
    cdef int stat
    for stat in range(N_STATS):
        stats[stat * call.tile_width] = 0


cdef void row_restart_block(
    const Call* call, const floating* block_logits, Py_ssize_t n, floating block_max,
    floating* block_grad, floating* packed,
) noexcept nogil:
    """Turn the logits of one block of a row into exponentials again; leave the softcap's slopes in packed."""
    cdef floating shift = shift_at(block_max)
    cdef floating relative = finite_or_zero(block_max) - shift
    cdef floating exponent_shift = exponent_shift_at(relative)
    cdef floating lowest = relative + cut_off(relative)
    cdef Py_ssize_t k
    for k in range(n):
        packed[k] = <floating> slope_at(call, block_logits[k])
    if block_grad != block_logits:
        memcpy(block_grad, block_logits, n * sizeof(floating))
    transform(call, n, block_grad)
    for k in range(n):
        block_grad[k] = exp_scaled(block_grad[k], shift, exponent_shift, lowest)


cdef inline floating at_most_1(floating probability) noexcept nogil:
    """Return a probability of one that rounding took beyond 1; NaN stays."""
    return 1 if probability > 1 else probability


cdef void row_finish_block(
    const Call* call, const Tile* tile, Py_ssize_t row, const floating* logits, const floating* row_exps,
    floating* row_grad, Py_ssize_t block, const double* stats, floating* packed,
) noexcept nogil:
    """Turn the exponentials of one block of a row into the gradient, 0 of an ignored row."""
    cdef Py_ssize_t first = block * ROW_BLOCK
    cdef Py_ssize_t n = min(<Py_ssize_t> ROW_BLOCK, call.n_classes - first)
    cdef Py_ssize_t pivot = tile.pivot[row] - first
    cdef floating* block_grad = row_grad + first
    cdef floating factor = <floating> block_factor(tile, stats, call.tile_width, row)
    cdef floating dense_factor = <floating> (tile.scale[row] * call.dense_scale)
    cdef floating dense[CHUNK]
    cdef floating local[CHUNK]
    cdef const floating* chunk_exps
    cdef floating* chunk_grad
    cdef Py_ssize_t chunk, k, size
    if not tile.counts[row]:
        memset(block_grad, 0, n * sizeof(floating))
        return
    if call.softcap > 0:
        row_restart_block(
            call, logits + tile.logits_at[row] + first, n,
            <floating> stats[BLOCK_MAX * call.tile_width + row], block_grad, packed,
        )
    for chunk in range((n + CHUNK - 1) // CHUNK):
        size = min(<Py_ssize_t> CHUNK, n - chunk * CHUNK)
        chunk_exps = row_exps + first + chunk * CHUNK
        chunk_grad = &local[0] if call.streams else block_grad + chunk * CHUNK
        for k in range(size):
            chunk_grad[k] = chunk_exps[k] * without_headroom(factor) * factor
        if call.output == SOFTMAX:
            for k in range(size):
                chunk_grad[k] = at_most_1(chunk_grad[k])
        if call.has_dense:
            fill_dense(
                call, <const floating*> call.weight, tile.probabilities_at[row], first + chunk * CHUNK,
                size, dense,
            )
            for k in range(size):
                chunk_grad[k] -= dense[k] * dense_factor
        if call.softcap > 0:
            for k in range(size):
                chunk_grad[k] *= packed[chunk * CHUNK + k]
        if call.output == GRADIENT and is_class(pivot - chunk * CHUNK, size):
            chunk_grad[pivot - chunk * CHUNK] = <floating> tile.pivot_gradient[row]
        if call.streams:
            cyce_stream(block_grad + chunk * CHUNK, chunk_grad, size * sizeof(floating))


cdef inline floating log_softmax_of(
    floating logit, double subtracted, double subtracted_then
) noexcept nogil:
    """Log-softmax of one class; at the maximum, as precise as the logarithm."""
    cdef double difference = logit - subtracted
    if floating is float:
        return <floating> (difference - subtracted_then)
    else:
        return difference + finite_or_zero(difference_lost(logit, subtracted, difference) - subtracted_then)


cdef inline double log_softmax_parts(
    const Tile* tile, Py_ssize_t k, double* subtracted_then_out, floating like
) noexcept nogil:
    """What is subtracted from a logit first, and then: the log-sum-exp in two parts.

    float: the maximum, from which the difference is exact in double, and the logarithm. double: their sum,
    and what rounding that loses.
    """
    cdef double lse
    if floating is float:
        subtracted_then_out[0] = tile.log_normalizer[k]
        return tile.row_max[k]
    else:
        lse = tile.row_max[k] + tile.log_normalizer[k]
        subtracted_then_out[0] = sum_lost(tile.row_max[k], tile.log_normalizer[k], lse) + tile.log_lost[k]
        return lse


cdef void row_log_softmax_block(
    const Call* call, const Tile* tile, Py_ssize_t row, const floating* logits, floating* log_softmax_out,
    Py_ssize_t block,
) noexcept nogil:
    """Write the log-softmax of one block of a row."""
    cdef Py_ssize_t first = block * ROW_BLOCK
    cdef Py_ssize_t n = min(<Py_ssize_t> ROW_BLOCK, call.n_classes - first)
    cdef const floating* block_logits = logits + tile.logits_at[row] + first
    cdef floating* block_out = log_softmax_out + tile.grad_at[row] + first
    cdef double subtracted_then
    cdef double subtracted = log_softmax_parts[floating](tile, row, &subtracted_then, 0)
    cdef Py_ssize_t k
    for k in range(n):
        block_out[k] = log_softmax_of(block_logits[k], subtracted, subtracted_then)


# ---------------------------------------------------------------------------------------------
# One block of a tile of positions, vectors across the positions


cdef void tile_pack(
    const Tile* tile, const floating* source, Py_ssize_t class_stride, const Py_ssize_t* at,
    bint contiguous, Py_ssize_t n, floating* packed_out,
) noexcept nogil:
    """Copy n classes of every position of a tile to packed_out, (n, TILE)."""
    cdef Py_ssize_t n_whole = tile.width // 4 * 4 if class_stride == 1 and n >= 4 else 0
    cdef const floating* row
    cdef floating* lane
    cdef Py_ssize_t c, k, part
    if contiguous:
        for c in range(n):
            memcpy(packed_out + c * TILE, source + c * class_stride + at[0], tile.width * sizeof(floating))
    else:
        for k in range(0, n_whole, 4):
            for part in range((n + 3) // 4):
                # The last four overlap with those before them.
                c = min(4 * part, n - 4)
                row = source + c
                lane = packed_out + c * TILE + k
                transpose(
                    row + at[k], row + at[k + 1], row + at[k + 2], row + at[k + 3],
                    lane, lane + TILE, lane + 2 * TILE, lane + 3 * TILE,
                )
        for c in range(n):
            for k in range(n_whole, tile.width):
                packed_out[c * TILE + k] = source[c * class_stride + at[k]]
    for c in range(n):
        for k in range(tile.width, tile.lanes):
            packed_out[c * TILE + k] = 0
    # Whatever stands in an ignored position, it computes with zeros.
    if tile.n_ignored:
        for k in range(tile.width):
            if not tile.counts[k]:
                for c in range(n):
                    packed_out[c * TILE + k] = 0


cdef void tile_unpack(
    const Tile* tile, const floating* packed, Py_ssize_t class_stride, Py_ssize_t n, bint streams,
    floating* target_out,
) noexcept nogil:
    """Copy n classes of every position from packed, (n, TILE), to the gradient."""
    cdef Py_ssize_t n_whole = tile.width // 4 * 4 if class_stride == 1 and n >= 4 else 0
    cdef const Py_ssize_t* at = &tile.grad_at[0]
    cdef floating* row
    cdef const floating* lane
    cdef Py_ssize_t c, k, part
    if tile.grad_contiguous:
        for c in range(n):
            row = target_out + c * class_stride + at[0]
            if streams:
                cyce_stream(row, packed + c * TILE, tile.width * sizeof(floating))
            else:
                memcpy(row, packed + c * TILE, tile.width * sizeof(floating))
        return
    for k in range(0, n_whole, 4):
        for part in range((n + 3) // 4):
            c = min(4 * part, n - 4)
            row = target_out + c
            lane = packed + c * TILE + k
            transpose(
                lane, lane + TILE, lane + 2 * TILE, lane + 3 * TILE,
                row + at[k], row + at[k + 1], row + at[k + 2], row + at[k + 3],
            )
    for c in range(n):
        for k in range(n_whole, tile.width):
            target_out[c * class_stride + at[k]] = packed[c * TILE + k]


cdef void tile_fill_dense(
    const Call* call, const Tile* tile, Py_ssize_t c, floating* dense_out,
) noexcept nogil:
    """Dense mass of class c of every position of a tile, before dense_scale; 0 of ignored positions."""
    cdef const floating* weight = <const floating*> call.weight
    cdef Py_ssize_t at = c * call.probabilities.class_stride
    cdef const float* single = <const float*> call.probabilities.start
    cdef const double* wide = <const double*> call.probabilities.start
    cdef floating keep = <floating> (1.0 - call.smoothing)
    cdef floating spread = <floating> (call.smoothing / call.n_classes)
    cdef floating factor = weight[c] if weight != NULL else <floating> 1.0
    cdef bint is_single = call.probabilities_format == c"f"
    cdef Py_ssize_t k
    if call.probabilities.start == NULL:
        for k in range(tile.width):
            dense_out[k] = factor
    else:
        if tile.probabilities_contiguous and is_single:
            for k in range(tile.width):
                dense_out[k] = <floating> single[tile.probabilities_at[0] + at + k]
        elif tile.probabilities_contiguous:
            for k in range(tile.width):
                dense_out[k] = <floating> wide[tile.probabilities_at[0] + at + k]
        elif is_single:
            for k in range(tile.width):
                dense_out[k] = <floating> single[tile.probabilities_at[k] + at]
        else:
            for k in range(tile.width):
                dense_out[k] = <floating> wide[tile.probabilities_at[k] + at]
        for k in range(tile.width):
            dense_out[k] = multiply_add(dense_out[k], keep, spread) * factor
    if tile.n_ignored:
        for k in range(tile.width):
            dense_out[k] = dense_out[k] if tile.counts[k] else <floating> 0.0
    for k in range(tile.width, tile.lanes):
        dense_out[k] = 0


cdef void tile_transform(
    const Call* call, const Tile* tile, Py_ssize_t n, floating* packed_out
) noexcept nogil:
    """Apply softcap and temperature to n classes of a tile."""
    cdef Py_ssize_t c
    for c in range(n):
        transform(call, tile.lanes, packed_out + c * TILE)


cdef void tile_reduce_stats(
    const Tile* tile, const floating* packed, Py_ssize_t first, Py_ssize_t n, const floating* row_max,
    const floating* shift, const floating* exponent_shift, const floating* lowest, double* stats,
) noexcept nogil:
    """Reduce n classes of a tile, from number `first` on, to their spreads and ranks."""
    cdef double* spread = stats + BLOCK_SPREAD * TILE
    cdef double* rank = stats + BLOCK_RANK * TILE
    cdef const double* unit = stats + BLOCK_UNIT * TILE
    cdef double lost[TILE]
    cdef floating exponential
    cdef const floating* lane
    cdef Py_ssize_t c, k
    for k in range(tile.lanes):
        spread[k] = lost[k] = rank[k] = 0
    for c in range(n):
        lane = packed + c * TILE
        for k in range(tile.lanes):
            exponential = exp_scaled(lane[k], shift[k], exponent_shift[k], lowest[k])
            add_spread(exponential, finite_or_zero(row_max[k]), lane[k], &spread[k], &lost[k])
            rank[k] += comes_before(lane[k], first + c, tile.pivot_logit[k], tile.pivot[k])
    for k in range(tile.lanes):
        spread[k] = settled(spread[k], lost[k]) * <double> without_headroom(row_max[k]) * unit[k]


cdef void tile_reduce_block(
    const Call* call, Tile* tile, const floating* logits, floating* grad_out,
    Py_ssize_t block, double* stats, floating* packed,
) noexcept nogil:
    """Reduce one block of a tile; leave its exponentials in `packed`, of several blocks in grad_out."""
    cdef Py_ssize_t first = block * call.block_classes
    cdef Py_ssize_t n = min(call.block_classes, call.n_classes - first)
    cdef floating row_max[TILE]
    cdef floating argmax[TILE]
    cdef floating shift[TILE]
    cdef floating relative[TILE]
    cdef floating power[TILE]
    cdef floating exponent_shift[TILE]
    cdef floating lowest[TILE]
    cdef floating dense[TILE]
    cdef double* rest = stats + BLOCK_REST * TILE
    cdef double* lost = stats + BLOCK_REST_LOST * TILE
    cdef double* mass = stats + BLOCK_MASS * TILE
    cdef double* mass_lost = stats + BLOCK_MASS_LOST * TILE
    cdef double* gap = stats + BLOCK_GAP * TILE
    cdef double* gap_lost = stats + BLOCK_GAP_LOST * TILE
    cdef double* unit = stats + BLOCK_UNIT * TILE
    cdef floating* lane
    cdef double total[LANES]
    cdef double total_lost[LANES]
    cdef floating value, class_number
    cdef Py_ssize_t c, group, k
    cdef Py_ssize_t lanes = tile.lanes

    tile_pack(
        tile, logits + first * call.logits.class_stride, call.logits.class_stride, tile.logits_at,
        tile.contiguous, n, packed,
    )
    if call.target != NULL and not call.has_stats:
        take_pivots(call, tile, packed, TILE, NULL, first, n)
    if transforms(call):
        tile_transform(call, tile, n, packed)
    for k in range(lanes):
        row_max[k] = -INFINITY
        # no class, for positions with nothing above -inf
        argmax[k] = <floating> n
    for c in range(n):
        lane = packed + c * TILE
        class_number = <floating> c
        for k in range(lanes):
            value = lane[k]
            argmax[k] = class_number if value > row_max[k] else argmax[k]
            row_max[k] = value if value > row_max[k] else row_max[k]
    for k in range(lanes):
        shift[k] = shift_at(row_max[k])
        relative[k] = finite_or_zero(row_max[k]) - shift[k]
        power[k] = power_at(relative[k])
        exponent_shift[k] = exponent_shift_at(relative[k])
        lowest[k] = relative[k] + cut_off(relative[k])
    # A loop of its own, because it is all in double.
    for k in range(lanes):
        unit[k] = unit_at(relative[k], power[k])
        stats[BLOCK_MAX * TILE + k] = row_max[k]
        # in double: numbers of classes go beyond what a float holds
        stats[BLOCK_ARGMAX * TILE + k] = <double> first + argmax[k]
    if call.has_stats:
        tile_reduce_stats(tile, packed, first, n, row_max, shift, exponent_shift, lowest, stats)
    if call.has_dense:
        for k in range(lanes):
            mass[k] = gap[k] = mass_lost[k] = gap_lost[k] = 0
        for c in range(n):
            lane = packed + c * TILE
            tile_fill_dense(call, tile, first + c, dense)
            for k in range(lanes):
                add_dense(
                    dense[k], finite_or_zero(row_max[k]), lane[k],
                    &mass[k], &mass_lost[k], &gap[k], &gap_lost[k],
                )
        for k in range(lanes):
            mass_lost[k] = finite_or_zero(mass_lost[k])
            gap_lost[k] = finite_or_zero(gap_lost[k])
    for c in range(n):
        lane = packed + c * TILE
        # The next tile comes while this one is computed. Prefetching beyond the end does no harm.
        for k in range(TILE * <Py_ssize_t> sizeof(floating) // 64):
            cyce_prefetch(<const char*> (logits + tile.next_at + (first + c) * tile.next_stride) + 64 * k)
        for k in range(lanes):
            lane[k] = exp_scaled(lane[k], shift[k], exponent_shift[k], lowest[k])
    # As many positions at a time as there are registers for their sums.
    for group in range(lanes // LANES):
        for k in range(LANES):
            total[k] = total_lost[k] = 0
        for c in range(n):
            lane = packed + c * TILE + group * LANES
            class_number = <floating> c
            for k in range(LANES):
                # The maximum stays out of the sum.
                value = <floating> 0.0 if argmax[group * LANES + k] == class_number else lane[k]
                add(&total[k], &total_lost[k], value)
        for k in range(LANES):
            rest[group * LANES + k] = total[k]
            lost[group * LANES + k] = total_lost[k]
    for k in range(lanes):
        rest[k] *= <double> without_headroom(row_max[k]) * unit[k]
        lost[k] *= <double> without_headroom(row_max[k]) * unit[k]
    if grad_out != NULL and call.n_blocks > 1:
        tile_unpack(
            tile, packed, call.grad.class_stride, n, False, grad_out + first * call.grad.class_stride
        )


cdef void tile_restart_block(
    const Call* call, const Tile* tile, const floating* block_logits, Py_ssize_t n, const double* stats,
    floating* packed, floating* slopes_out,
) noexcept nogil:
    """Turn the logits of one block of a tile into exponentials again, with the softcap's slopes."""
    cdef floating shift[TILE]
    cdef floating exponent_shift[TILE]
    cdef floating lowest[TILE]
    cdef floating block_max, relative
    cdef floating* lane
    cdef Py_ssize_t c, k
    tile_pack(
        tile, block_logits, call.logits.class_stride, tile.logits_at, tile.contiguous, n, packed
    )
    for c in range(n):
        for k in range(tile.lanes):
            slopes_out[c * TILE + k] = <floating> slope_at(call, packed[c * TILE + k])
    tile_transform(call, tile, n, packed)
    for k in range(tile.lanes):
        block_max = <floating> stats[BLOCK_MAX * TILE + k]
        shift[k] = shift_at(block_max)
        relative = finite_or_zero(block_max) - shift[k]
        exponent_shift[k] = exponent_shift_at(relative)
        lowest[k] = relative + cut_off(relative)
    for c in range(n):
        lane = packed + c * TILE
        for k in range(tile.lanes):
            lane[k] = exp_scaled(lane[k], shift[k], exponent_shift[k], lowest[k])


cdef void tile_finish_block(
    const Call* call, const Tile* tile, const floating* logits, floating* grad_out, Py_ssize_t block,
    const double* stats, floating* packed,
) noexcept nogil:
    """Turn the exponentials of one block of a tile into the gradient."""
    cdef Py_ssize_t first = block * call.block_classes
    cdef Py_ssize_t n = min(call.block_classes, call.n_classes - first)
    cdef floating* block_grad = grad_out + first * call.grad.class_stride
    cdef floating factor[TILE]
    cdef floating dense_factor[TILE]
    cdef floating dense[TILE]
    cdef floating* slopes = packed + TILE * call.block_classes
    cdef floating* lane
    cdef Py_ssize_t c, k
    if call.softcap > 0:
        tile_restart_block(
            call, tile, logits + first * call.logits.class_stride, n, stats, packed, slopes
        )
    elif call.n_blocks > 1:
        tile_pack(
            tile, block_grad, call.grad.class_stride, tile.grad_at, tile.grad_contiguous, n, packed
        )
    for k in range(tile.lanes):
        factor[k] = <floating> block_factor(tile, stats, TILE, k)
        dense_factor[k] = <floating> (tile.scale[k] * call.dense_scale)
    for c in range(n):
        lane = packed + c * TILE
        for k in range(tile.lanes):
            lane[k] = lane[k] * without_headroom(factor[0]) * factor[k]
        if call.output == SOFTMAX:
            for k in range(tile.lanes):
                lane[k] = at_most_1(lane[k])
        if call.has_dense:
            tile_fill_dense(call, tile, first + c, dense)
            for k in range(tile.lanes):
                lane[k] -= dense[k] * dense_factor[k]
        if call.softcap > 0:
            for k in range(tile.lanes):
                lane[k] *= slopes[c * TILE + k]
    if call.output == GRADIENT:
        for k in range(tile.width):
            if tile.counts[k] and is_class(tile.pivot[k] - first, n):
                packed[(tile.pivot[k] - first) * TILE + k] = <floating> tile.pivot_gradient[k]
    tile_unpack(tile, packed, call.grad.class_stride, n, call.streams, block_grad)


cdef void tile_log_softmax_block(
    const Call* call, const Tile* tile, const floating* logits, floating* log_softmax_out,
    Py_ssize_t block, floating* packed,
) noexcept nogil:
    """Write the log-softmax of one block of a tile."""
    cdef Py_ssize_t first = block * call.block_classes
    cdef Py_ssize_t n = min(call.block_classes, call.n_classes - first)
    cdef double subtracted[TILE]
    cdef double subtracted_then[TILE]
    cdef floating* lane
    cdef Py_ssize_t c, k
    tile_pack(
        tile, logits + first * call.logits.class_stride, call.logits.class_stride, tile.logits_at,
        tile.contiguous, n, packed,
    )
    for k in range(tile.lanes):
        subtracted[k] = log_softmax_parts[floating](tile, k, &subtracted_then[k], 0)
    for c in range(n):
        lane = packed + c * TILE
        for k in range(tile.lanes):
            lane[k] = log_softmax_of(lane[k], subtracted[k], subtracted_then[k])
    tile_unpack(
        tile, packed, call.grad.class_stride, n, False, log_softmax_out + first * call.grad.class_stride
    )


# ---------------------------------------------------------------------------------------------
# From blocks to tiles


cdef inline double decay_of(double block_max, double row_max) noexcept nogil:
    """e**(block_max - row_max); a block of nothing but -inf decays to 0, whatever the maximum."""
    cdef double distance = block_max - row_max
    cdef double decay = exp_nonpositive(distance)
    # What the subtraction lost, unless it overflowed: then decay is 0.
    decay += decay * finite_or_zero(difference_lost(block_max, row_max, distance))
    return 0.0 if block_max == -INFINITY else decay


cdef inline double block_factor(
    const Tile* tile, const double* stats, Py_ssize_t stride, Py_ssize_t k
) noexcept nogil:
    """What turns exp_scaled of a block, less its headroom, into scale * total mass * softmax."""
    cdef double decay = decay_of(stats[BLOCK_MAX * stride + k], tile.row_max[k])
    return tile.scale[k] * tile.total[k] * tile.inverse[k] * decay * stats[BLOCK_UNIT * stride + k]


cdef inline double decay_in_parts(
    double block_max, double row_max, double* lost_out, floating like
) noexcept nogil:
    """decay_of; of doubles, with what rounding it loses."""
    cdef double distance = block_max - row_max
    cdef double decay
    if floating is float:
        lost_out[0] = 0
        decay = decay_of(block_max, row_max)
    else:
        decay = exp_in_parts(
            distance, finite_or_zero(difference_lost(block_max, row_max, distance)), lost_out
        )
        lost_out[0] = 0.0 if block_max == -INFINITY else finite_or_zero(lost_out[0])
        decay = 0.0 if block_max == -INFINITY else decay
    return decay


cdef inline double raised(double mass, double rise) noexcept nogil:
    """What a mass adds to the gap where the maximum rises: nothing if there is no mass, be it to inf."""
    return 0.0 if mass == 0 else mass * rise


cdef inline void raise_gap(
    double* gap, double* lost, double mass, double mass_lost, double high, double row_max, floating like
) noexcept nogil:
    """Add to the gap what a mass adds where the maximum rises from row_max to high."""
    cdef double rise = finite_or_zero(high) - finite_or_zero(row_max)
    cdef double rise_lost = difference_lost(finite_or_zero(high), finite_or_zero(row_max), rise)
    if floating is float:
        gap[0] += raised(mass, rise)
    elif mass != 0:
        add_product[double](gap, lost, mass, mass_lost, rise, rise_lost, 0)


cdef void merge_blocks(const Call* call, Tile* tile, const double* stats, floating like) noexcept nogil:
    """Merge the blocks of a tile, in order."""
    cdef Py_ssize_t stride = call.tile_width
    cdef const double* block_stats
    cdef double low, high, block_max, block_rest, block_lost, block_mass, block_mass_lost
    cdef double loser_mass, loser_mass_lost
    cdef double decay, decay_lost, winner_rest, loser_rest, block_spread, loser_spread
    cdef Py_ssize_t block, k
    cdef bint grew
    for k in range(tile.lanes):
        tile.row_max[k] = stats[BLOCK_MAX * stride + k]
        tile.argmax[k] = stats[BLOCK_ARGMAX * stride + k]
        tile.rest[k] = stats[BLOCK_REST * stride + k]
        tile.rest_lost[k] = stats[BLOCK_REST_LOST * stride + k]
    if call.has_dense:
        for k in range(tile.lanes):
            tile.mass[k] = stats[BLOCK_MASS * stride + k]
            tile.mass_lost[k] = stats[BLOCK_MASS_LOST * stride + k]
            tile.gap[k] = stats[BLOCK_GAP * stride + k]
            tile.gap_lost[k] = stats[BLOCK_GAP_LOST * stride + k]
    if call.has_stats:
        for k in range(tile.lanes):
            tile.spread[k] = stats[BLOCK_SPREAD * stride + k]
            tile.rank[k] = stats[BLOCK_RANK * stride + k]
    for block in range(1, call.n_blocks):
        block_stats = stats + block * N_STATS * stride
        for k in range(tile.lanes):
            block_max = block_stats[BLOCK_MAX * stride + k]
            block_rest = block_stats[BLOCK_REST * stride + k]
            block_lost = block_stats[BLOCK_REST_LOST * stride + k]
            grew = block_max > tile.row_max[k]
            high = block_max if grew else tile.row_max[k]
            low = tile.row_max[k] if grew else block_max
            winner_rest = block_rest if grew else tile.rest[k]
            loser_rest = tile.rest[k] if grew else block_rest
            decay = decay_in_parts(low, high, &decay_lost, like)
            if call.has_stats:
                block_spread = block_stats[BLOCK_SPREAD * stride + k]
                loser_spread = tile.spread[k] if grew else block_spread
                tile.spread[k] = block_spread if grew else tile.spread[k]
                tile.spread[k] += raised(decay, loser_spread + (high - low) * (1.0 + loser_rest))
                tile.rank[k] += block_stats[BLOCK_RANK * stride + k]
            if call.has_dense:
                block_mass = block_stats[BLOCK_MASS * stride + k]
                block_mass_lost = block_stats[BLOCK_MASS_LOST * stride + k]
                loser_mass = tile.mass[k] if grew else block_mass
                loser_mass_lost = tile.mass_lost[k] if grew else block_mass_lost
                raise_gap(
                    &tile.gap[k], &tile.gap_lost[k], loser_mass, loser_mass_lost, high, low, like
                )
                add[double](&tile.gap[k], &tile.gap_lost[k], block_stats[BLOCK_GAP * stride + k])
                tile.gap_lost[k] += block_stats[BLOCK_GAP_LOST * stride + k]
                add[double](&tile.mass[k], &tile.mass_lost[k], block_mass)
                tile.mass_lost[k] += block_mass_lost
            tile.argmax[k] = block_stats[BLOCK_ARGMAX * stride + k] if grew else tile.argmax[k]
            tile.rest_lost[k] = block_lost + tile.rest_lost[k] * decay if grew else (
                tile.rest_lost[k] + block_lost * decay
            )
            tile.rest[k] = winner_rest
            add[double](&tile.rest[k], &tile.rest_lost[k], decay)
            tile.rest_lost[k] += decay_lost
            # In double for both: what is added up is double.
            add_product[double](
                &tile.rest[k], &tile.rest_lost[k], loser_rest, 0.0, decay, decay_lost, 0
            )
            tile.row_max[k] = high


cdef void normalize_positions(Tile* tile, floating like) noexcept nogil:
    """Normalizers of a tile, from its rests."""
    cdef double rest, logarithm
    cdef Py_ssize_t k
    for k in range(tile.lanes):
        # An infinite maximum has no softmax: NaN, as torch.
        rest = tile.rest[k] if tile.row_max[k] - tile.row_max[k] == 0 else NAN
        tile.rest[k] = settled(rest, tile.rest_lost[k])
        tile.rest_lost[k] += rest - tile.rest[k]
        tile.inverse[k] = 1.0 / (1.0 + tile.rest[k])
        logarithm = log1p_in_parts(tile.rest[k], &tile.log_lost[k])
        if floating is float:
            tile.log_normalizer[k] = logarithm + tile.rest_lost[k] * tile.inverse[k]
            tile.log_lost[k] = 0
        else:
            tile.log_lost[k] += tile.rest_lost[k] * tile.inverse[k]
            tile.log_normalizer[k] = logarithm + tile.log_lost[k]
            tile.log_lost[k] = finite_or_zero(tile.log_lost[k] - (tile.log_normalizer[k] - logarithm))


cdef double logsumexp_at(
    const Call* call, const Tile* tile, const floating* logits, Py_ssize_t k
) noexcept nogil:
    """Log-sum-exp of one position; where the maximum is infinite, it is that maximum."""
    cdef double lse = tile.row_max[k] + tile.log_normalizer[k]
    cdef floating logit
    cdef Py_ssize_t c
    if floating is double:
        lse += finite_or_zero(sum_lost(tile.row_max[k], tile.log_normalizer[k], lse) + tile.log_lost[k])
    if not -INFINITY < tile.row_max[k] < INFINITY:
        lse = tile.row_max[k]
        for c in range(call.n_classes):
            logit = logits[tile.logits_at[k] + c * call.logits.class_stride]
            lse = lse if logit == logit else NAN
    return lse


cdef void finish_logsumexp(const Call* call, const Tile* tile, const floating* logits) noexcept nogil:
    """Write the log-sum-exp of a tile's positions."""
    cdef Py_ssize_t k
    for k in range(tile.width):
        (<floating*> call.loss_out)[tile.first + k] = <floating> logsumexp_at(call, tile, logits, k)


cdef void rank_without_order(
    const Call* call, Tile* tile, const floating* logits, Py_ssize_t k
) noexcept nogil:
    """Prediction and rank of a position that has NaN or an infinite maximum; NaN come first, as in NumPy."""
    cdef floating logit, best = NAN
    cdef double pivot_logit = tile.pivot_logit[k]
    cdef Py_ssize_t c
    tile.rank[k] = tile.argmax[k] = 0
    for c in range(call.n_classes):
        logit = logits[tile.logits_at[k] + c * call.logits.class_stride]
        transform(call, 1, &logit)
        if c == 0 or logit > best or (logit != logit and best == best):
            tile.argmax[k] = <double> c
            best = logit
        if logit != logit:
            tile.rank[k] += pivot_logit == pivot_logit or c < tile.pivot[k]
        elif pivot_logit == pivot_logit:
            tile.rank[k] += comes_before(logit, c, pivot_logit, tile.pivot[k])


cdef void finish_stats(const Call* call, Tile* tile, const floating* logits) noexcept nogil:
    """Write the statistics of a tile's positions; of ignored ones 0, and -1 for classes and ranks."""
    cdef const StatsOut* out = &call.stats_out
    cdef double lse, probability, entropy
    cdef Py_ssize_t k, position
    for k in range(tile.width):
        position = tile.first + k
        lse = probability = entropy = 0
        out.prediction[position] = out.rank[position] = -1
        if tile.counts[k]:
            if tile.rest[k] != tile.rest[k]:
                rank_without_order(call, tile, logits, k)
            lse = logsumexp_at(call, tile, logits, k)
            probability = decay_of(tile.pivot_logit[k], tile.row_max[k]) * tile.inverse[k]
            entropy = tile.log_normalizer[k] + tile.spread[k] * tile.inverse[k]
            out.prediction[position] = <int64_t> tile.argmax[k]
            out.rank[position] = <int64_t> tile.rank[k]
        (<floating*> out.lse)[position] = <floating> lse
        (<floating*> out.probability)[position] = <floating> probability
        (<floating*> out.entropy)[position] = <floating> entropy


cdef inline double settled_of(double total, double lost, floating like) noexcept nogil:
    """The running total with what it lost, which is nothing that counts of floats."""
    if floating is float:
        return total
    else:
        return settled(total, lost)


cdef double finish_positions(
    const Call* call, Tile* tile, const floating* logits, bint with_gradient
) noexcept nogil:
    """Losses of a tile and what its gradient is made of; returns the sum of the losses."""
    cdef floating* loss_out = <floating*> call.loss_out
    cdef double loss[TILE]
    cdef double loss_lost[TILE]
    cdef double total[LANES]
    cdef double lost[LANES]
    cdef double distance, nll, nll_lost, dense_loss, dense_lost, others
    cdef double lse, lse_lost, square, square_lost
    cdef floating dense
    cdef Py_ssize_t group, k
    for k in range(tile.lanes):
        loss[k] = loss_lost[k] = 0
        # A target of weight 0 adds nothing, even where its logit is -inf.
        distance = 0.0 if tile.hard[k] == 0 else tile.row_max[k] - tile.pivot_logit[k]
        nll = distance + tile.log_normalizer[k]
        nll_lost = sum_lost(distance, tile.log_normalizer[k], nll) + tile.log_lost[k]
        if tile.hard[k] != 0:
            nll_lost += difference_lost(tile.row_max[k], tile.pivot_logit[k], distance)
        add_product[floating](&loss[k], &loss_lost[k], tile.hard[k], 0.0, nll, finite_or_zero(nll_lost), 0)
        tile.total[k] = tile.pivot_mass[k] = tile.hard[k]
        tile.other_mass[k] = 0
    if call.has_dense:
        for k in range(tile.lanes):
            dense_loss = tile.gap[k]
            dense_lost = tile.gap_lost[k]
            add_product[floating](
                &dense_loss, &dense_lost, tile.mass[k], tile.mass_lost[k], tile.log_normalizer[k],
                tile.log_lost[k], 0,
            )
            add_product[floating](
                &loss[k], &loss_lost[k], call.dense_scale, call.dense_scale_lost, dense_loss, dense_lost, 0
            )
            tile.total[k] += call.dense_scale * settled_of(tile.mass[k], tile.mass_lost[k], <floating> 0)
    if call.z_loss != 0:
        for k in range(tile.lanes):
            lse = tile.row_max[k] + tile.log_normalizer[k]
            lse_lost = sum_lost(tile.row_max[k], tile.log_normalizer[k], lse) + tile.log_lost[k]
            square = square_lost = 0
            add_product[floating](&square, &square_lost, lse, lse_lost, lse, lse_lost, 0)
            add_product[floating](
                &loss[k], &loss_lost[k], call.z_loss, 0.0, square, square_lost, 0
            )
            tile.other_mass[k] += 2.0 * call.z_loss * lse
            tile.total[k] += 2.0 * call.z_loss * lse
    for k in range(tile.lanes):
        loss[k] = settled(loss[k], loss_lost[k])
    if call.sample_weight != NULL:
        for k in range(tile.width):
            loss[k] *= (<const floating*> call.sample_weight)[tile.first + k]
    if tile.n_ignored or tile.width < tile.lanes:
        for k in range(tile.lanes):
            if not tile.counts[k]:
                loss[k] = 0
                tile.scale[k] = 0
    for k in range(LANES):
        total[k] = lost[k] = 0
    if call.by_rows:
        for k in range(tile.width):
            add[double](&total[0], &lost[0], loss[k])
    else:
        for group in range(tile.lanes // LANES):
            for k in range(LANES):
                add[double](&total[k], &lost[k], loss[group * LANES + k])
        sum_of_lanes[double](total, lost, 0)
    if loss_out != NULL:
        for k in range(tile.width):
            loss_out[tile.first + k] = <floating> loss[k]
    if with_gradient and call.target == NULL:
        for k in range(tile.width):
            tile.pivot[k] = <Py_ssize_t> tile.argmax[k]
            tile.pivot_logit[k] = tile.row_max[k]
        if transforms(call):
            for k in range(tile.width):
                if tile.pivot[k] < call.n_classes:
                    tile.pivot_slope[k] = slope_at(
                        call, logits[tile.logits_at[k] + tile.pivot[k] * call.logits.class_stride]
                    )
    if with_gradient and call.has_dense:
        for k in range(tile.width):
            # (There is no maximum where all is NaN or -inf.)
            if tile.counts[k] and tile.pivot[k] < call.n_classes:
                fill_dense(
                    call, <const floating*> call.weight, tile.probabilities_at[k], tile.pivot[k], 1, &dense
                )
                others = settled(tile.mass[k] - dense, tile.mass_lost[k])
                if floating is float:
                    # Where nearly all mass is on one class, the sum has too little of the others.
                    if 0 < others < 6e-8 * dense:
                        others = mass_without[floating](call, tile.probabilities_at[k], tile.pivot[k], 0)
                tile.pivot_mass[k] += call.dense_scale * dense
                tile.other_mass[k] += call.dense_scale * others
    return settled(total[0], lost[0])


cdef void finish_pivots(const Call* call, Tile* tile, floating like) noexcept nogil:
    """Gradients at the targets, or of class probabilities at the maxima, in the type of `like`.

    There, total * softmax - mass may cancel: softmax may be nearly 1, and a mass nearly the total. It is
    (total - mass) * softmax - mass * (1 - softmax), whose first difference is known as the mass of the other
    classes, and whose second is that of the rest.
    """
    cdef double softmax[TILE]
    cdef double others[TILE]
    cdef Py_ssize_t k
    if call.target == NULL:
        for k in range(tile.lanes):
            softmax[k] = tile.inverse[k]
            others[k] = tile.rest[k] * tile.inverse[k]
    else:
        for k in range(tile.lanes):
            softmax[k] = decay_of(tile.pivot_logit[k], tile.row_max[k]) * tile.inverse[k]
            others[k] = 1.0 - softmax[k]
            if tile.pivot_logit[k] == tile.row_max[k]:
                others[k] = tile.rest[k] * tile.inverse[k]
    for k in range(tile.width):
        tile.pivot_gradient[k] = <floating> (
            tile.scale[k] * (softmax[k] * tile.other_mass[k] - tile.pivot_mass[k] * others[k])
        )
    if transforms(call):
        for k in range(tile.width):
            tile.pivot_gradient[k] = <floating> tile.pivot_gradient[k] * <floating> tile.pivot_slope[k]


cdef inline floating* exponentials_at(
    const Call* call, const Tile* tile, Py_ssize_t row, floating* exps
) noexcept nogil:
    """Where the exponentials of a row wait: in the gradient or, if that streams, in scratch memory."""
    if exps == NULL:
        return NULL
    return exps + (row * call.n_classes if call.streams else tile.grad_at[row])


cdef inline void check_block(const Call* call, const Tile* tile, Py_ssize_t block) noexcept nogil:
    """Check that a block lies within the classes, and a tile within its scratch memory."""
    check(0 <= block < call.n_blocks)
    check(block * call.block_classes < call.n_classes)
    check(not call.by_rows or call.block_classes == ROW_BLOCK)
    check(0 < tile.width <= tile.lanes <= call.tile_width <= TILE)
    check(tile.first + tile.width <= call.n_positions)


cdef inline void reduce_block(
    const Call* call, Tile* tile, const floating* logits, floating* exps_out,
    Py_ssize_t block, double* stats, floating* packed,
) noexcept nogil:
    """First half of the pass over one block; exps_out: see `exponentials_at`."""
    cdef double* block_stats = stats + block * N_STATS * call.tile_width
    cdef Py_ssize_t row
    check_block(call, tile, block)
    if not call.by_rows:
        tile_reduce_block(call, tile, logits, exps_out, block, block_stats, packed)
        return
    for row in range(tile.width):
        if tile.counts[row]:
            row_reduce_block(
                call, tile, row, logits, exponentials_at(call, tile, row, exps_out), block,
                block_stats + row, packed,
            )
        else:
            row_leave_out(call, block_stats + row)


cdef inline void finish_block(
    const Call* call, const Tile* tile, const floating* logits, floating* exps, floating* grad_out,
    Py_ssize_t block, const double* stats, floating* packed,
) noexcept nogil:
    """Second half of the pass over one block."""
    cdef const double* block_stats = stats + block * N_STATS * call.tile_width
    cdef Py_ssize_t row
    check_block(call, tile, block)
    if call.by_rows:
        for row in range(tile.width):
            if call.output == LOG_SOFTMAX:
                row_log_softmax_block(call, tile, row, logits, grad_out, block)
            else:
                row_finish_block(
                    call, tile, row, logits, exponentials_at(call, tile, row, exps),
                    grad_out + tile.grad_at[row], block, block_stats, packed,
                )
    elif call.output == LOG_SOFTMAX:
        tile_log_softmax_block(call, tile, logits, grad_out, block, packed)
    else:
        tile_finish_block(call, tile, logits, grad_out, block, block_stats, packed)


# The same in another thread, which brings its own floating point environment.


cdef void reduce_block_apart(
    const Call* call, Tile* tile, const floating* logits, floating* exps_out,
    Py_ssize_t block, double* stats, floating* packed,
) noexcept nogil:
    cdef cyce_environment found
    cyce_enter(&found)
    reduce_block(call, tile, logits, exps_out, block, stats, packed)
    cyce_leave(&found)


cdef void finish_block_apart(
    const Call* call, const Tile* tile, const floating* logits, floating* exps, floating* grad_out,
    Py_ssize_t block, const double* stats, floating* packed,
) noexcept nogil:
    cdef cyce_environment found
    cyce_enter(&found)
    finish_block(call, tile, logits, exps, grad_out, block, stats, packed)
    cyce_leave(&found)


cdef struct Scratch:
    # How the memory that a thread computes in is divided, in bytes; all are whole cache lines.
    size_t tile
    size_t stats
    size_t exps
    size_t packed


cdef inline size_t whole_lines(size_t n_bytes) noexcept nogil:
    """n_bytes, rounded up to whole cache lines."""
    return (n_bytes + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE


cdef Scratch scratch_of(const Call* call, size_t itemsize) noexcept nogil:
    """What a thread needs: a tile, what is kept of its blocks, exponentials, a block, and slopes."""
    cdef Scratch scratch
    cdef size_t block = call.block_classes * call.tile_width
    if call.by_rows:
        block = call.block_classes if transforms(call) else 0
    elif call.softcap > 0:
        block *= 2
    scratch.tile = whole_lines(sizeof(Tile))
    scratch.stats = whole_lines(<size_t> (call.n_blocks * N_STATS * call.tile_width) * sizeof(double))
    scratch.exps = 0
    if call.streams and call.by_rows:
        scratch.exps = whole_lines(<size_t> (call.tile_width * call.n_classes) * itemsize)
    scratch.packed = whole_lines(block * itemsize)
    return scratch


cdef void run_tile(
    const Call* call, const floating* logits, floating* grad_out, Py_ssize_t number,
    const Scratch* sizes, char* scratch, int n_threads, TileResult* result,
) noexcept nogil:
    """Loss and gradient of one tile; with n_threads > 1, its blocks are shared among them.

    scratch: that of one thread, with as much for packing behind it for each of the others.
    """
    cdef Tile* tile = <Tile*> scratch
    cdef double* stats = <double*> (scratch + sizes.tile)
    cdef char* packed = scratch + sizes.tile + sizes.stats + sizes.exps
    cdef floating* exps = grad_out
    cdef floating* exps_out
    cdef Py_ssize_t block
    if sizes.exps > 0:
        exps = <floating*> (scratch + sizes.tile + sizes.stats)
    # log-softmax and slopes of a softcap come from the logits again, not from their exponentials.
    exps_out = NULL if call.output == LOG_SOFTMAX or call.softcap > 0 else exps
    begin_tile(call, logits, number, tile)
    result.target_changed = tile.target_changed
    result.loss = 0
    if n_threads > 1:
        for block in prange(call.n_blocks, num_threads=n_threads, schedule="static"):
            reduce_block_apart(
                call, tile, logits, exps_out, block, stats, <floating*> (packed + threadid() * sizes.packed)
            )
    else:
        for block in range(call.n_blocks):
            reduce_block(call, tile, logits, exps_out, block, stats, <floating*> packed)
    merge_blocks[floating](call, tile, stats, 0)
    normalize_positions[floating](tile, 0)
    if call.output == GRADIENT:
        result.loss = finish_positions(call, tile, logits, grad_out != NULL)
        if call.has_stats:
            finish_stats(call, tile, logits)
    elif call.output == LOGSUMEXP:
        finish_logsumexp(call, tile, logits)
    if grad_out == NULL:
        return
    if call.output == GRADIENT:
        finish_pivots[floating](call, tile, 0)
    if n_threads > 1:
        for block in prange(call.n_blocks, num_threads=n_threads, schedule="static"):
            finish_block_apart(
                call, tile, logits, exps, grad_out, block, stats,
                <floating*> (packed + threadid() * sizes.packed),
            )
    else:
        for block in range(call.n_blocks):
            finish_block(call, tile, logits, exps, grad_out, block, stats, <floating*> packed)
    if call.streams:
        cyce_stream_end()


cdef void run_tile_apart(
    const Call* call, const floating* logits, floating* grad_out, Py_ssize_t number,
    const Scratch* sizes, char* scratch, TileResult* result,
) noexcept nogil:
    cdef cyce_environment found
    cyce_enter(&found)
    run_tile(call, logits, grad_out, number, sizes, scratch, 1, result)
    cyce_leave(&found)


cdef bint may_stream(const Call* call, size_t itemsize) noexcept nogil:
    """Whether the gradient may go past the caches."""
    if call.grad.start == NULL or call.grad.start == call.logits.start:
        return False
    if call.output == LOG_SOFTMAX or call.softcap > 0:
        return False
    if <size_t> (call.n_positions * call.n_classes) * itemsize < MIN_STREAM:
        return False
    if call.by_rows:
        return <size_t> (call.tile_width * call.n_classes) * itemsize <= MAX_STREAM_TILE
    return call.n_blocks == 1


cdef int run(
    Call* call, const floating* logits, floating* grad_out, int n_threads, double* loss_out
) except -1 nogil:
    """Loss and gradient of all tiles; loss_out[0] becomes the sum of the losses."""
    cdef Scratch sizes
    cdef size_t size
    cdef bint split = (
        n_threads > 1 and call.n_blocks > 1 and call.n_tiles < 4 * n_threads
        and call.n_classes >= MIN_SPLIT // call.tile_width
    )
    cdef int n_workers = 1 if split else <int> min(<Py_ssize_t> n_threads, call.n_tiles)
    cdef Py_ssize_t n_at_once = max(<Py_ssize_t> 1, AT_ONCE // call.tile_width // call.n_classes)
    cdef int n_more
    cdef size_t more
    cdef char* memory = NULL
    cdef char* scratch
    cdef TileResult* results = <TileResult*> PyMem_RawMalloc(call.n_tiles * sizeof(TileResult))
    cdef Py_ssize_t number
    cdef double lost = 0
    cdef bint target_changed = False
    call.streams = may_stream(call, sizeof(floating)) and not split
    sizes = scratch_of(call, sizeof(floating))
    size = sizes.tile + sizes.stats + sizes.exps + sizes.packed
    n_more = n_threads - 1 if split else n_workers - 1
    more = sizes.packed if split else size
    # Of 2**60 broadcast classes, the bytes are more than can be counted.
    if size < PY_SSIZE_T_MAX // 2 and more < <size_t> (PY_SSIZE_T_MAX // 2) // <size_t> max(1, n_more):
        memory = <char*> PyMem_RawMalloc(CACHE_LINE + size + n_more * more)
    scratch = memory + (CACHE_LINE - <size_t> memory % CACHE_LINE)
    if memory == NULL or results == NULL:
        PyMem_RawFree(memory)
        PyMem_RawFree(results)
        with gil:
            raise MemoryError("no memory for the scratch space of the loss")
    if n_workers > 1:
        for number in prange(
            call.n_tiles, num_threads=n_workers, schedule="dynamic", chunksize=n_at_once
        ):
            run_tile_apart(
                call, logits, grad_out, number, &sizes, scratch + threadid() * size, results + number
            )
    else:
        for number in range(call.n_tiles):
            run_tile(
                call, logits, grad_out, number, &sizes, scratch, n_threads if split else 1, results + number
            )
    loss_out[0] = 0
    for number in range(call.n_tiles):
        add[double](loss_out, &lost, results[number].loss)
        target_changed = target_changed or results[number].target_changed
    loss_out[0] = settled(loss_out[0], lost)
    PyMem_RawFree(memory)
    PyMem_RawFree(results)
    if target_changed:
        with gil:
            raise IndexError(-1)
    return 0


# ---------------------------------------------------------------------------------------------
# What is computed before the pass


cdef struct TargetCount:
    double weight
    Py_ssize_t bad                  # a position whose target is no class, or -1


cdef TargetCount count_block(const Call* call, const floating* weight, Py_ssize_t block) noexcept nogil:
    """Weighted count of one block of positions."""
    cdef TargetCount count
    cdef int64_t targets[CHUNK]
    cdef double lost = 0
    cdef double mass
    cdef const floating* sample_weight = <const floating*> call.sample_weight
    cdef bint weighted = weight != NULL or sample_weight != NULL
    cdef Py_ssize_t n_classes = call.n_classes
    cdef int64_t ignore_index = call.ignore_index
    cdef Py_ssize_t n_counted = 0
    cdef Py_ssize_t first = block * TARGET_BLOCK
    cdef Py_ssize_t end = min(call.n_positions, first + TARGET_BLOCK)
    cdef Py_ssize_t n, n_bad, k
    cdef cyce_environment found
    cyce_enter(&found)
    count.weight = 0
    count.bad = -1
    while first < end and count.bad < 0:
        n = min(<Py_ssize_t> CHUNK, end - first)
        n_bad = 0
        if call.target != NULL:
            load_targets(call.target, call.target_format, first, n, targets)
            for k in range(n):
                n_bad += (targets[k] != ignore_index) & (not is_class(targets[k], n_classes))
                n_counted += targets[k] != ignore_index
        if n_bad > 0:
            k = 0
            while targets[k] == ignore_index or is_class(targets[k], n_classes):
                k += 1
            count.bad = first + k
        elif weighted:
            for k in range(n):
                mass = 1.0
                if call.target != NULL:
                    check(targets[k] == ignore_index or is_class(targets[k], n_classes))
                    mass = 0.0 if targets[k] == ignore_index else (
                        weight[targets[k]] if weight != NULL else 1.0
                    )
                if sample_weight != NULL and mass != 0:
                    mass *= sample_weight[first + k]
                add[double](&count.weight, &lost, mass)
        first += n
    count.weight = settled(count.weight, lost) if weighted else <double> n_counted
    cyce_leave(&found)
    return count


cdef int count_targets(
    const Call* call, const floating* weight, int num_threads, TargetCount* total
) except -1 nogil:
    """Weighted count of the positions that are not ignored, and the first bad target."""
    cdef Py_ssize_t n_blocks = (call.n_positions + TARGET_BLOCK - 1) // TARGET_BLOCK
    # One, or as many as the pass: libgomp ends threads that a smaller team leaves out.
    cdef int n_threads = num_threads if call.n_positions >= 2 * MIN_SHARE else 1
    cdef Py_ssize_t block
    cdef double lost = 0
    cdef TargetCount* counts
    total.weight = 0
    total.bad = -1
    if n_blocks <= 1:
        total[0] = count_block(call, weight, 0)
        return 0
    counts = <TargetCount*> PyMem_RawMalloc(n_blocks * sizeof(TargetCount))
    if counts == NULL:
        with gil:
            raise MemoryError("no memory for counting the targets")
    for block in prange(n_blocks, num_threads=n_threads, schedule="static"):
        counts[block] = count_block(call, weight, block)
    for block in range(n_blocks):
        add[double](&total.weight, &lost, counts[block].weight)
        if counts[block].bad >= 0 and total.bad < 0:
            total.bad = counts[block].bad
    total.weight = settled(total.weight, lost)
    PyMem_RawFree(counts)
    return 0


cdef int weigh_positions(const Call* call, char format, int num_threads, TargetCount* total) except -1 nogil:
    """What a mean divides by, and the first bad target; format: of the weights."""
    if call.target == NULL and call.sample_weight == NULL:
        # n_positions; without classes NaN, as torch
        total.weight = <double> (call.n_positions * call.n_classes) / call.n_classes
        total.bad = -1
    elif format == c"f":
        count_targets[float](call, <const float*> call.weight, num_threads, total)
    else:
        count_targets[double](call, <const double*> call.weight, num_threads, total)
    return 0


# ---------------------------------------------------------------------------------------------
# The Python side


cdef char integer_format_of(const Py_buffer* view) except 0:
    """One of bhiqBHIQ, by signedness and size."""
    cdef char code = format_of(view)
    if code in (c"b", c"h", c"i", c"l", c"q"):
        return {1: c"b", 2: c"h", 4: c"i", 8: c"q"}[view.itemsize]
    if code in (c"B", c"H", c"I", c"L", c"Q"):
        return {1: c"B", 2: c"H", 4: c"I", 8: c"Q"}[view.itemsize]
    raise TypeError(f"kernel call: not a native integer array: format {view.format!r}")


cdef void plan(Call* call) noexcept:
    """Choose how the work is cut up, from the layout of the arrays alone."""
    call.by_rows = (
        call.logits.class_stride == 1 and call.grad.class_stride == 1
        and call.n_classes >= ROW_MIN_CLASSES
    )
    call.tile_width = TILE
    if call.by_rows:
        call.block_classes = ROW_BLOCK
        # One row where rows have several blocks: these may be shared among threads.
        call.tile_width = max(
            <Py_ssize_t> 1, min(<Py_ssize_t> ROW_TILE, ROW_TILE_LOGITS // call.n_classes)
        )
    elif call.n_classes <= 2 * TILE_BLOCK:
        call.block_classes = 2 * TILE_BLOCK
    else:
        call.block_classes = max(
            <Py_ssize_t> TILE_BLOCK, (call.n_classes + MAX_TILE_BLOCKS - 1) // MAX_TILE_BLOCKS
        )
    call.n_tiles = (call.n_positions + call.tile_width - 1) // call.tile_width
    call.n_blocks = (call.n_classes + call.block_classes - 1) // call.block_classes


cdef int take_logits(object logits, int axis, Py_buffer* view, Call* call) except -1:
    """Take the logits, and count their positions and classes."""
    cdef int dim
    take(logits, PyBUF_STRIDES, view)
    expect(format_of(view) in (c"f", c"d"), "logits are neither float nor double")
    expect(axis >= 0, "no such axis")
    place(view, axis, &call.logits)
    call.n_classes = view.shape[axis]
    call.n_positions = 1
    for dim in range(view.ndim):
        if dim != axis:
            call.n_positions *= view.shape[dim]
    return 0


cdef int take_like_logits(
    object array, int axis, Py_buffer* view, const Py_buffer* logits, Call* call
) except -1:
    """Take the array of the logits' shape and dtype that is written to."""
    take(array, PyBUF_STRIDES | PyBUF_WRITABLE, view)
    expect(same_shape(view, logits), "the output is not of the logits' shape")
    expect(format_of(view) == format_of(logits), "the output is not of the logits' dtype")
    place(view, axis, &call.grad)
    return 0


cdef int take_like_positions(
    object array, Py_buffer* view, const Py_buffer* logits, Call* call
) except -1:
    """Take the array with one element of the logits' dtype per position that is written to."""
    expect(
        take(array, PyBUF_ND | PyBUF_WRITABLE, view) == call.n_positions, "wrong number of losses or lse",
    )
    expect(format_of(view) == format_of(logits), "losses or lse are not of the logits' dtype")
    call.loss_out = <char*> view.buf
    return 0


cdef int take_per_position(object array, Py_buffer* view, const Py_buffer* logits, Call* call) except -1:
    """Take an array with one element of the logits' dtype per position that is read."""
    expect(take(array, PyBUF_ND, view) == call.n_positions, "wrong number of grad_output or sample_weight")
    expect(format_of(view) == format_of(logits), "grad_output or sample_weight is not of the logits' dtype")
    return 0


cdef int take_stats(object arrays, Py_buffer* views, const Py_buffer* logits, Call* call) except -1:
    """Take the arrays (lse, probability, entropy, prediction, rank), five buffers."""
    cdef int i = 0
    call.has_stats = arrays is not None
    if not call.has_stats:
        return 0
    expect(len(arrays) == 5, "five statistics are needed")
    for i, array in enumerate(arrays):
        expect(
            take(array, PyBUF_ND | PyBUF_WRITABLE, &views[i]) == call.n_positions,
            "wrong number of statistics",
        )
        if i < 3:
            expect(format_of(&views[i]) == format_of(logits), "statistics are not of the logits' dtype")
        else:
            expect(integer_format_of(&views[i]) == c"q", "classes and ranks are not int64")
    call.stats_out.lse = <char*> views[0].buf
    call.stats_out.probability = <char*> views[1].buf
    call.stats_out.entropy = <char*> views[2].buf
    call.stats_out.prediction = <int64_t*> views[3].buf
    call.stats_out.rank = <int64_t*> views[4].buf
    return 0


cdef int take_target(object target, Py_buffer* view, int64_t ignore_index, Call* call) except -1:
    """Take the class indices of the positions."""
    expect(take(target, PyBUF_ND, view) == call.n_positions, "wrong number of targets")
    call.target = <const char*> view.buf
    call.target_format = integer_format_of(view)
    call.ignore_index = ignore_index
    if call.target_format == c"Q" and ignore_index < 0:
        # No unsigned target equals it, nor does the -1 that stands for a large one.
        call.ignore_index = INT64_MIN
    return 0


cdef int take_weight(object weight, Py_buffer* view, char format, Call* call) except -1:
    """Take the class weights, which are of the logits' type; format: 0 if that does not matter."""
    expect(take(weight, PyBUF_ND, view) == call.n_classes, "wrong number of weights")
    expect(format in (0, format_of(view)), "weight is not of the logits' dtype")
    call.weight = <const char*> view.buf
    return 0


def cross_entropy(
    logits, int axis, target, probabilities, weight, int64_t ignore_index, double smoothing,
    bint mean, loss_out, grad_out, grad_output, double upstream, int num_threads, extensions=None,
    stats_out=None,
):
    """Sum or mean of the losses; writes loss_out and grad_out unless they are None.

    logits, probabilities, grad_out: shape positions with the classes at `axis`, any strides.
    target, loss_out, grad_output, sample_weight: one element per position, C-contiguous. weight:
    (n_classes,). Exactly one of target (any integer type) and probabilities (float or double) is not
    None. All others but stats_out are float or double as the logits are, native and aligned.
    extensions: None, or (sample_weight, normalizer, zero_if_empty, z_loss, softcap, temperature), where 0
    stands for no normalizer, by which the mean divides instead of the weighted count, and no softcap.
    stats_out: what `take_stats` takes, or None; of a target, not of probabilities.
    Raises IndexError(position) for a target that is no class, before anything is written, and
    IndexError(-1) where another thread made a target bad during the call.
    """
    cdef Py_buffer views[12]
    cdef Call call
    cdef TargetCount count
    cdef char format
    cdef double value = 0
    cdef double denominator = 0
    cdef object sample_weight = None
    cdef double normalizer = 0
    cdef bint zero_if_empty = False
    cdef Py_ssize_t n_logits
    cdef Team team
    cdef cyce_environment found
    cdef int i
    team.hired = False
    # A buffer that was not taken has no owner, and releasing it does nothing.
    memset(views, 0, sizeof(views))
    cyce_enter(&found)
    try:
        call.output = GRADIENT
        take_logits(logits, axis, &views[0], &call)
        format = format_of(&views[0])
        n_logits = call.n_positions * call.n_classes

        call.target = NULL
        call.target_format = 0
        call.ignore_index = 0
        call.probabilities.start = NULL
        call.probabilities.class_stride = 0
        if target is not None:
            take_target(target, &views[1], ignore_index, &call)
        else:
            take(probabilities, PyBUF_STRIDES, &views[1])
            call.probabilities_format = format_of(&views[1])
            expect(call.probabilities_format in (c"f", c"d"), "probabilities are neither float nor double")
            expect(same_shape(&views[1], &views[0]), "probabilities are not of the logits' shape")
            place(&views[1], axis, &call.probabilities)

        call.weight = NULL
        if weight is not None:
            take_weight(weight, &views[2], format, &call)

        call.loss_out = NULL
        if loss_out is not None:
            take_like_positions(loss_out, &views[3], &views[0], &call)

        call.grad.start = NULL
        call.grad.class_stride = 1
        if grad_out is not None:
            take_like_logits(grad_out, axis, &views[4], &views[0], &call)

        call.grad_output = NULL
        if grad_output is not None:
            take_per_position(grad_output, &views[5], &views[0], &call)
            call.grad_output = <const char*> views[5].buf

        call.sample_weight = NULL
        call.all_ignored = False
        call.z_loss = call.softcap = 0
        call.temperature = 1
        if extensions is not None:
            sample_weight, normalizer, zero_if_empty, call.z_loss, call.softcap, call.temperature = extensions
        if sample_weight is not None:
            take_per_position(sample_weight, &views[6], &views[0], &call)
            call.sample_weight = <const char*> views[6].buf

        take_stats(stats_out, &views[7], &views[0], &call)
        expect(stats_out is None or target is not None, "statistics need a target")

        call.smoothing = smoothing
        call.has_dense = target is None or smoothing > 0
        call.dense_scale = 1.0
        call.dense_scale_lost = 0
        if target is not None and smoothing > 0 and call.n_classes > 0:
            call.dense_scale = smoothing / call.n_classes
            call.dense_scale_lost = quotient_lost(smoothing, call.n_classes, call.dense_scale)
        plan(&call)
        hire(&team, num_threads, n_logits // MIN_SHARE)

        with nogil:
            weigh_positions(&call, format, team.n_threads, &count)
        denominator = count.weight
        if count.bad >= 0:
            raise IndexError(count.bad)
        if normalizer != 0:
            denominator = normalizer
        elif denominator == 0 or call.n_positions == 0:
            # nothing counts: 0 / 0, whatever smoothing adds to the sum, as torch; or 0 / 1
            call.all_ignored = mean and zero_if_empty
            denominator = 1.0 if zero_if_empty else NAN
        call.grad_scale = (upstream / denominator if mean else upstream) / call.temperature
        if n_logits > 0:
            with nogil:
                if format == c"f":
                    run[float](
                        &call, <const float*> call.logits.start, <float*> call.grad.start, team.n_threads,
                        &value,
                    )
                else:
                    run[double](
                        &call, <const double*> call.logits.start, <double*> call.grad.start, team.n_threads,
                        &value,
                    )
        elif call.loss_out != NULL and call.n_positions > 0:
            # no classes: a sum over nothing
            memset(call.loss_out, 0, views[3].len)
        if mean:
            value /= denominator
        # Rounded here: NumPy would warn of a loss that float32 cannot hold.
        return <double> <float> value if format == c"f" else value
    finally:
        if team.hired:
            with nogil:
                dismiss(&team)
        cyce_leave(&found)
        for i in range(12):
            PyBuffer_Release(&views[i])


def weighted_count(
    Py_ssize_t n_positions, Py_ssize_t n_classes, target, int64_t ignore_index, weight, sample_weight
):
    """The sum of the positions' weights, by which the mean of `cross_entropy` divides.

    The arguments of that; weight and sample_weight are of the same dtype. Raises IndexError(position) for a
    target that is no class.
    """
    cdef Py_buffer views[3]
    cdef Call call
    cdef TargetCount count
    cdef char format = c"f"
    cdef int i
    memset(&call, 0, sizeof(call))
    memset(views, 0, sizeof(views))
    call.n_positions = n_positions
    call.n_classes = n_classes
    try:
        if target is not None:
            take_target(target, &views[0], ignore_index, &call)
        if sample_weight is not None:
            expect(take(sample_weight, PyBUF_ND, &views[1]) == n_positions, "wrong number of sample_weight")
            format = format_of(&views[1])
            call.sample_weight = <const char*> views[1].buf
        # Class weights are those of class indices.
        if weight is not None and target is not None:
            take_weight(weight, &views[2], format if sample_weight is not None else 0, &call)
            format = format_of(&views[2])
        expect(format in (c"f", c"d"), "weights are neither float nor double")
        with nogil:
            weigh_positions(&call, format, 1, &count)
        if count.bad >= 0:
            raise IndexError(count.bad)
        return count.weight
    finally:
        for i in range(3):
            PyBuffer_Release(&views[i])


cdef int normalize(logits, int axis, Output output, out, int num_threads) except -1:
    """Softmax, log-softmax or log-sum-exp of the logits, to `out`."""
    cdef Py_buffer views[2]
    cdef Call call
    cdef double unused = 0
    cdef char format
    cdef Team team
    cdef cyce_environment found
    team.hired = False
    memset(&call, 0, sizeof(call))
    memset(views, 0, sizeof(views))
    cyce_enter(&found)
    try:
        call.output = output
        take_logits(logits, axis, &views[0], &call)
        format = format_of(&views[0])
        call.grad.class_stride = 1
        call.grad_scale = 1
        call.dense_scale = 1
        call.temperature = 1
        if output == LOGSUMEXP:
            take_like_positions(out, &views[1], &views[0], &call)
        else:
            take_like_logits(out, axis, &views[1], &views[0], &call)
        plan(&call)
        if call.n_positions > 0 and call.n_classes > 0:
            hire(&team, num_threads, call.n_positions * call.n_classes // MIN_SHARE)
            with nogil:
                if format == c"f":
                    run[float](
                        &call, <const float*> call.logits.start, <float*> call.grad.start, team.n_threads,
                        &unused,
                    )
                else:
                    run[double](
                        &call, <const double*> call.logits.start, <double*> call.grad.start, team.n_threads,
                        &unused,
                    )
    finally:
        if team.hired:
            with nogil:
                dismiss(&team)
        cyce_leave(&found)
        for i in range(2):
            PyBuffer_Release(&views[i])
    return 0


def softmax(logits, int axis, out, int num_threads):
    """Write the softmax along an axis to `out`, of the logits' shape and dtype, maybe themselves."""
    normalize(logits, axis, SOFTMAX, out, num_threads)


def log_softmax(logits, int axis, out, int num_threads):
    """Write the log-softmax along an axis to `out`, of the logits' shape and dtype, maybe themselves."""
    normalize(logits, axis, LOG_SOFTMAX, out, num_threads)


def logsumexp(logits, int axis, out, int num_threads):
    """Write the log-sum-exp along an axis, of at least one class, to `out`, one element per position."""
    normalize(logits, axis, LOGSUMEXP, out, num_threads)


# ---------------------------------------------------------------------------------------------
# The functions of _math.pxd over arrays, for the tests of this level


cdef void fill_exponentials(
    const floating* logits, Py_ssize_t n, floating row_max, double* exponentials_out
) noexcept nogil:
    """exp_scaled of each logit, less its headroom."""
    cdef floating shift = shift_at(row_max)
    cdef floating relative = finite_or_zero(row_max) - shift
    cdef floating scaled
    cdef Py_ssize_t i
    for i in range(n):
        scaled = exp_scaled(logits[i], shift, exponent_shift_at(relative), relative + cut_off(relative))
        exponentials_out[i] = <double> scaled * <double> without_headroom(row_max)


def exponentials(logits, double row_max, exponentials_out):
    """Write what the sums are made of; for row_max = 0 that is e**logits."""
    cdef Py_buffer views[2]
    cdef Py_ssize_t n
    memset(views, 0, sizeof(views))
    try:
        n = take(logits, PyBUF_ND, &views[0])
        expect(take(exponentials_out, PyBUF_ND | PyBUF_WRITABLE, &views[1]) == n, "wrong size of the output")
        expect(format_of(&views[1]) == c"d", "the output is not double")
        if format_of(&views[0]) == c"f":
            fill_exponentials[float](<const float*> views[0].buf, n, row_max, <double*> views[1].buf)
        else:
            expect(format_of(&views[0]) == c"d", "logits are neither float nor double")
            fill_exponentials[double](<const double*> views[0].buf, n, row_max, <double*> views[1].buf)
    finally:
        for i in range(2):
            PyBuffer_Release(&views[i])


def log1p(rests, logarithms_out):
    """Write log1p_nonnegative of each rest; both double."""
    cdef Py_buffer views[2]
    cdef Py_ssize_t i, n
    memset(views, 0, sizeof(views))
    try:
        n = take(rests, PyBUF_ND, &views[0])
        expect(take(logarithms_out, PyBUF_ND | PyBUF_WRITABLE, &views[1]) == n, "wrong size of the output")
        expect(format_of(&views[0]) == c"d" and format_of(&views[1]) == c"d", "not double")
        for i in range(n):
            (<double*> views[1].buf)[i] = log1p_nonnegative((<const double*> views[0].buf)[i])
    finally:
        for i in range(2):
            PyBuffer_Release(&views[i])
