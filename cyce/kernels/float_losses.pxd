"""Binary cross-entropy of probabilities, and Kullback-Leibler divergence, of chunks of floats."""
from libc.math cimport fabs
from libc.stdint cimport int32_t, uint32_t

from cyce.kernels.element_points cimport LEAST_VARIANCE, kl
from cyce.kernels.logarithms cimport (
    Logs, Parts, logs_of, logs_of_parts, logs_with_lost, parts_of, parts_of_opposite, parts_where,
    split_numbers, split_opposites, split_probabilities, split_where,
)
from cyce.kernels.machine cimport cyce_float_bits
from cyce.kernels.sums cimport LANES, sum_of_16, whole_lanes
from cyce.kernels.vectors cimport (
    HAS_VECTORS, all_normal_below_one16, divide16, doubles, fill8, fill16, floats, high8, larger8, larger16,
    load16, low8, multiply8, multiply16, multiply_add8, multiply_add16, multiply_subtract16, smaller16,
    store8, store16, subtract8, subtract16, sum8, sum16, sum_rows16, unless_equal8, where_equal16, widen8,
)

cdef enum:
    # What numbers of a chunk take: see ELEMENT_ROOM.
    CHUNK_ROOM = 576

cdef extern from *:
    # What targets are multiplied by, so that no product of one and a logarithm is subnormal.
    const float TARGET_UNIT "0x1p64f"


cdef inline bint all_labels(const float* values, Py_ssize_t n) noexcept nogil:
    """Whether all values are 0 or 1."""
    cdef int n_labels = 0
    cdef Py_ssize_t n_first = min(n, <Py_ssize_t> LANES)
    cdef Py_ssize_t k
    for k in range(n_first):
        n_labels += (values[k] == 0) | (values[k] == 1)
    if n_labels < n_first:
        return False
    for k in range(n_first, n):
        n_labels += (values[k] == 0) | (values[k] == 1)
    return n_labels == n


cdef inline void store_bce_of_labels(
    const Parts* parts, bint are_plain, float* loss_out, float* excess_out
) noexcept nogil:
    """Write losses. are_plain: whether the probabilities are `all_normal_below_one16`."""
    cdef floats least = fill16(-100)
    cdef Logs logs = logs_with_lost(parts)
    if not are_plain:
        # As in torch.
        logs.high = larger16(logs.high, least)
        logs.low = where_equal16(logs.high, least, fill16(0), logs.low)
    # 0 - x: not -0.
    store16(loss_out, subtract16(fill16(0), logs.high))
    store16(excess_out, logs.low)


cdef inline void bce_of_labels(
    const float* input, const float* target, Py_ssize_t n, float* loss_out, float* excess_out
) noexcept nogil:
    """`bce_in_vectors`, of labels: one logarithm each."""
    cdef Parts parts, following
    cdef Py_ssize_t last = (n - 1) // 16 * 16
    cdef Py_ssize_t first = 0
    cdef Py_ssize_t k, ahead
    while first < n and all_normal_below_one16(load16(input + first)):
        parts = parts_where(load16(input + first), load16(target + first), True)
        store_bce_of_labels(&parts, True, loss_out + first, excess_out + first)
        first += 16
    # The rest: see `bce_in_vectors`.
    if first < n:
        following = parts_where(load16(input + first), load16(target + first), False)
    for k in range(first, last + 16, 16):
        parts = following
        ahead = min(k + 16, last)
        # The next one first: see `plain_losses`.
        following = parts_where(load16(input + ahead), load16(target + ahead), False)
        store_bce_of_labels(&parts, False, loss_out + k, excess_out + k)


cdef inline void bce_of_sixteen(
    const float* input, const float* target, bint are_plain, float* loss_out, float* excess_out
) noexcept nogil:
    """`bce_in_vectors`, of any targets. are_plain: whether `all_normal_below_one16`."""
    cdef floats probability = load16(input)
    # Both before their logarithms: instructions that wait for one another fill a CPU's schedulers.
    cdef Parts parts = parts_of(probability, are_plain)
    cdef Parts opposites = parts_of_opposite(probability)
    cdef Logs logs = logs_of(&parts)
    cdef Logs opposite_logs = logs_with_lost(&opposites)
    cdef floats yes = multiply16(load16(target), fill16(TARGET_UNIT))
    cdef floats no = subtract16(fill16(TARGET_UNIT), yes)
    cdef floats no_lost = subtract16(subtract16(fill16(TARGET_UNIT), no), yes)
    cdef floats product, total, added, excess
    if not are_plain:
        logs.high = larger16(logs.high, fill16(-100))
        logs.low = where_equal16(logs.high, fill16(-100), fill16(0), logs.low)
        opposite_logs.high = where_equal16(probability, fill16(1), fill16(-100), opposite_logs.high)
        opposite_logs.low = where_equal16(probability, fill16(1), fill16(0), opposite_logs.low)
    # yes * log + no * opposite_log, and what this loses. With terms of one sign, Knuth's TwoSum holds for a
    # product that is not rounded, too.
    product = multiply16(yes, logs.high)
    total = multiply_add16(no, opposite_logs.high, product)
    added = subtract16(total, product)
    excess = multiply_subtract16(yes, logs.high, product)
    excess = multiply_add16(yes, logs.low, excess)
    excess = multiply_add16(no, opposite_logs.low, excess)
    excess = multiply_add16(no_lost, opposite_logs.high, excess)
    excess = sum16(excess, subtract16(product, subtract16(total, added)))
    excess = sum16(excess, multiply_subtract16(no, opposite_logs.high, added))
    # 0 - x: not -0.
    store16(loss_out, subtract16(fill16(0), total))
    store16(excess_out, excess)


cdef inline double bce_in_vectors(
    const float* input, const float* target, Py_ssize_t n, float* loss_out, float* excess_out
) noexcept nogil:
    """Binary cross-entropies of n > 0 probabilities; half the logarithms where the targets are labels.

    A loss is loss_out - excess_out, times what is returned. Reads and writes a chunk, in sixteens.
    """
    cdef Py_ssize_t k = 0
    if all_labels(target, n):
        bce_of_labels(input, target, n, loss_out, excess_out)
        return 1
    # The second loop has the rest of a chunk: a branch that changes takes longer than what it saves.
    while k < n and all_normal_below_one16(load16(input + k)):
        bce_of_sixteen(input + k, target + k, True, loss_out + k, excess_out + k)
        k += 16
    while k < n:
        bce_of_sixteen(input + k, target + k, False, loss_out + k, excess_out + k)
        k += 16
    return 1 / <double> TARGET_UNIT


cdef inline double sum_of_bce(const float* input, const float* target, Py_ssize_t n) noexcept nogil:
    """Sum of the binary cross-entropies of n > 0 probabilities, where there are vectors."""
    cdef float loss[CHUNK_ROOM]
    cdef float excess[CHUNK_ROOM]
    cdef double total[16]
    cdef float total_excess[16]
    cdef Py_ssize_t end = whole_lanes(n)
    cdef Py_ssize_t k
    cdef double unit
    cdef floats excesses = fill16(0)
    unit = bce_in_vectors(input, target, n, loss, excess)
    for k in range(n, end):
        loss[k] = excess[k] = 0
    sum_rows16(loss, end // 16, total)
    # In float: they are the last digits of at most 32 losses each.
    for k in range(0, end, 16):
        excesses = sum16(excesses, load16(excess + k))
    store16(total_excess, excesses)
    for k in range(16):
        total[k] -= total_excess[k]
    return sum_of_16(total) * unit


cdef inline void bce_by_chunks(
    const float* input, const float* target, Py_ssize_t n, double* loss_out
) noexcept nogil:
    """`bce_of_floats`, where there are no vectors."""
    cdef int32_t power[2][CHUNK_ROOM]
    cdef float fraction[2][CHUNK_ROOM]
    cdef float rest[2][CHUNK_ROOM]
    cdef doubles least = fill8(-100)
    cdef doubles logs, logs_of_opposites, targets
    cdef Py_ssize_t k
    if all_labels(target, n):
        split_where(input, target, n, power[0], fraction[0], rest[0])
        for k in range(0, n, 8):
            logs = larger8(logs_of_parts(power[0] + k, fraction[0] + k, rest[0] + k), least)
            store8(loss_out + k, subtract8(fill8(0), logs))
        return
    split_probabilities(input, n, power[0], fraction[0], rest[0])
    split_opposites(input, n, power[1], fraction[1], rest[1])
    for k in range(0, n, 8):
        logs = larger8(logs_of_parts(power[0] + k, fraction[0] + k, rest[0] + k), least)
        logs_of_opposites = logs_of_parts(power[1] + k, fraction[1] + k, rest[1] + k)
        targets = widen8(target + k)
        logs = multiply_add8(subtract8(fill8(1), targets), logs_of_opposites, multiply8(targets, logs))
        # 0 - x: not -0.
        store8(loss_out + k, subtract8(fill8(0), logs))


cdef inline void bce_of_floats(
    const float* input, const float* target, Py_ssize_t n, double* loss_out
) noexcept nogil:
    """Binary cross-entropies of n > 0 probabilities.

    Reads and writes a chunk, in sixteens.
    """
    cdef float losses[CHUNK_ROOM]
    cdef float excess[CHUNK_ROOM]
    cdef doubles unit
    cdef Py_ssize_t k
    if HAS_VECTORS:
        unit = fill8(bce_in_vectors(input, target, n, losses, excess))
        for k in range(0, n, 8):
            store8(loss_out + k, multiply8(subtract8(widen8(losses + k), widen8(excess + k)), unit))
    else:
        bce_by_chunks(input, target, n, loss_out)


cdef inline bint is_scale_of_floats(double scale) noexcept nogil:
    """Whether two floats hold a scale to 2**-48."""
    return 1e-30 < fabs(scale) < 1e30


cdef inline void slopes_of_bce(
    const float* input, const float* target, Py_ssize_t n, double scale, float* slope_out
) noexcept nogil:
    """`slope_of_bce` of n probabilities, in its steps, times a scale of floats, where there are vectors.

    Reads and writes a chunk, in sixteens.
    """
    # Two signs cancel: the variance is negative, as there is a * b - c only, and so is this.
    cdef floats high = fill16(-<float> scale)
    cdef floats low = fill16(<float> (<double> <float> scale - scale))
    cdef floats highest = fill16(<float> -LEAST_VARIANCE)
    cdef floats probability, smaller, minus_variance, slope
    cdef Py_ssize_t k
    for k in range(0, n, 16):
        probability = load16(input + k)
        smaller = smaller16(probability, subtract16(fill16(1), probability))
        minus_variance = smaller16(multiply_subtract16(smaller, smaller, smaller), highest)
        slope = divide16(subtract16(probability, load16(target + k)), minus_variance)
        store16(slope_out + k, multiply_add16(slope, high, multiply16(slope, low)))


cdef inline bint all_are_split(const float* values, Py_ssize_t n) noexcept nogil:
    """Whether `parts_of` is defined for all values."""
    cdef uint32_t highest = 0
    cdef uint32_t bits
    cdef Py_ssize_t k
    # The bits of these are in order, before those of all others, among them -0.
    for k in range(n):
        bits = cyce_float_bits(values[k])
        highest = bits if bits > highest else highest
    # 2**126
    return highest < <uint32_t> 0x7e800000


cdef inline void store_kl(
    doubles high, doubles low, const float* input, const float* target, bint are_plain, double* loss_out
) noexcept nogil:
    """Write divergences of eight log-probabilities; 0 where the target is."""
    cdef doubles targets = widen8(target)
    cdef doubles products = multiply8(targets, subtract8(sum8(high, low), widen8(input)))
    store8(loss_out, products if are_plain else unless_equal8(products, targets, fill8(0)))


cdef inline void kl_of_sixteen(
    const Parts* parts, const float* input, const float* target, bint are_plain, double* loss_out
) noexcept nogil:
    """Write divergences. are_plain: whether the targets are `all_normal_below_one16`."""
    cdef Logs logs = logs_of(parts)
    store_kl(low8(logs.high), low8(logs.low), input, target, are_plain, loss_out)
    store_kl(high8(logs.high), high8(logs.low), input + 8, target + 8, are_plain, loss_out + 8)


cdef inline void kl_in_vectors(
    const float* input, const float* target, Py_ssize_t n, double* loss_out
) noexcept nogil:
    """`kl_of_floats`, where there are vectors."""
    cdef Parts parts, following
    cdef Py_ssize_t last = (n - 1) // 16 * 16
    cdef Py_ssize_t first = 0
    cdef Py_ssize_t k
    while first < n and all_normal_below_one16(load16(target + first)):
        parts = parts_of(load16(target + first), True)
        kl_of_sixteen(&parts, input + first, target + first, True, loss_out + first)
        first += 16
    if first >= n:
        return
    # The rest of the chunk: see `bce_in_vectors`.
    following = parts_of(load16(target + first), False)
    for k in range(first, last + 16, 16):
        parts = following
        # The next one first: see `plain_losses`.
        following = parts_of(load16(target + min(k + 16, last)), False)
        kl_of_sixteen(&parts, input + k, target + k, False, loss_out + k)
    if not all_are_split(target + first, n - first):
        for k in range(first, n):
            if not 0 <= target[k] < <float> 8.507059173023462e37:
                loss_out[k] = kl(input[k], target[k])


cdef inline void kl_by_chunks(
    const float* input, const float* target, Py_ssize_t n, double* loss_out
) noexcept nogil:
    """`kl_of_floats`, where there are no vectors."""
    cdef int32_t power[CHUNK_ROOM]
    cdef float fraction[CHUNK_ROOM]
    cdef float rest[CHUNK_ROOM]
    cdef doubles targets, differences
    cdef Py_ssize_t k
    split_numbers(target, n, power, fraction, rest)
    for k in range(0, n, 8):
        targets = widen8(target + k)
        differences = subtract8(logs_of_parts(power + k, fraction + k, rest + k), widen8(input + k))
        store8(loss_out + k, unless_equal8(multiply8(targets, differences), targets, fill8(0)))


cdef inline void kl_of_floats(
    const float* input, const float* target, Py_ssize_t n, double* loss_out
) noexcept nogil:
    """Kullback-Leibler divergences of n > 0 log-probabilities.

    Reads and writes a chunk, in sixteens.
    """
    if HAS_VECTORS:
        kl_in_vectors(input, target, n, loss_out)
    else:
        kl_by_chunks(input, target, n, loss_out)
