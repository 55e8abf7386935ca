"""Binary cross-entropy of probabilities, and Kullback-Leibler divergence, of chunks of floats."""
from libc.stdint cimport int32_t, uint32_t

from cyce.kernels.element_points cimport kl
from cyce.kernels.logarithms cimport (
    Logs, Parts, logs_of, logs_of_parts, logs_with_lost, parts_of, parts_of_opposite, parts_where,
    split_numbers, split_opposites, split_probabilities, split_where,
)
from cyce.kernels.machine cimport cyce_float_bits
from cyce.kernels.sums cimport LANES
from cyce.kernels.vectors cimport (
    HAS_VECTORS, doubles, fill8, fill16, floats, high8, larger8, load16, low8, multiply8, multiply_add8,
    smaller8, store8, subtract8, subtract16, sum8, unless_equal8, where_equal16, widen8,
)

cdef enum:
    # What the parts of a chunk's logarithms take: see ELEMENT_ROOM.
    CHUNK_ROOM = 576


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


cdef inline void store_bce(
    doubles minus_high, doubles low, doubles opposite_minus_high, doubles opposite_low, const float* target,
    double* loss_out,
) noexcept nogil:
    """Write losses of eight probabilities; -log is 100 at most, as in torch."""
    cdef doubles targets = widen8(target)
    cdef doubles cost = smaller8(subtract8(minus_high, low), fill8(100))
    cdef doubles cost_of_opposite = smaller8(subtract8(opposite_minus_high, opposite_low), fill8(100))
    cdef doubles loss = multiply8(subtract8(fill8(1), targets), cost_of_opposite)
    store8(loss_out, multiply_add8(targets, cost, loss))


cdef inline void bce_of_labels(
    const float* input, const float* target, Py_ssize_t n, double* loss_out
) noexcept nogil:
    """`bce_of_floats`, of labels: one logarithm each."""
    cdef Parts following = parts_where(load16(input), load16(target))
    cdef Parts parts
    cdef Logs logs
    cdef floats minus_high
    cdef Py_ssize_t last = (n - 1) // 16 * 16
    cdef Py_ssize_t k, ahead
    for k in range(0, last + 16, 16):
        parts = following
        ahead = min(k + 16, last)
        # The next one first: see `plain_losses`.
        following = parts_where(load16(input + ahead), load16(target + ahead))
        logs = logs_with_lost(&parts)
        # 0 - x: not -0.
        minus_high = subtract16(fill16(0), logs.high)
        store8(loss_out + k, smaller8(subtract8(low8(minus_high), low8(logs.low)), fill8(100)))
        store8(loss_out + k + 8, smaller8(subtract8(high8(minus_high), high8(logs.low)), fill8(100)))


cdef inline void bce_in_vectors(
    const float* input, const float* target, Py_ssize_t n, double* loss_out
) noexcept nogil:
    """`bce_of_floats`, of any targets."""
    cdef Parts parts, opposites
    cdef Logs logs, opposite_logs
    cdef floats probability, minus_high, opposite_minus_high
    cdef Py_ssize_t k
    for k in range(0, n, 16):
        probability = load16(input + k)
        # Both before their logarithms: instructions that wait for one another fill a CPU's schedulers.
        parts = parts_of(probability)
        opposites = parts_of_opposite(probability)
        logs = logs_of(&parts)
        opposite_logs = logs_with_lost(&opposites)
        # 0 - x: not -0.
        minus_high = subtract16(fill16(0), logs.high)
        opposite_minus_high = subtract16(fill16(0), opposite_logs.high)
        # -log(0): anything above 100.
        opposite_minus_high = where_equal16(probability, fill16(1), fill16(200), opposite_minus_high)
        store_bce(
            low8(minus_high), low8(logs.low), low8(opposite_minus_high), low8(opposite_logs.low), target + k,
            loss_out + k,
        )
        store_bce(
            high8(minus_high), high8(logs.low), high8(opposite_minus_high), high8(opposite_logs.low),
            target + k + 8, loss_out + k + 8,
        )


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
    """Binary cross-entropies of n > 0 probabilities; half the logarithms where the targets are labels.

    Reads and writes a chunk, in sixteens.
    """
    if not HAS_VECTORS:
        bce_by_chunks(input, target, n, loss_out)
    elif all_labels(target, n):
        bce_of_labels(input, target, n, loss_out)
    else:
        bce_in_vectors(input, target, n, loss_out)


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
    doubles high, doubles low, const float* input, const float* target, double* loss_out
) noexcept nogil:
    """Write divergences of eight log-probabilities; 0 where the target is."""
    cdef doubles targets = widen8(target)
    cdef doubles products = multiply8(targets, subtract8(sum8(high, low), widen8(input)))
    store8(loss_out, unless_equal8(products, targets, fill8(0)))


cdef inline void kl_in_vectors(
    const float* input, const float* target, Py_ssize_t n, double* loss_out
) noexcept nogil:
    """`kl_of_floats`, where there are vectors."""
    cdef Parts following = parts_of(load16(target))
    cdef Parts parts
    cdef Logs logs
    cdef Py_ssize_t last = (n - 1) // 16 * 16
    cdef Py_ssize_t k
    for k in range(0, last + 16, 16):
        parts = following
        # The next one first: see `plain_losses`.
        following = parts_of(load16(target + min(k + 16, last)))
        logs = logs_of(&parts)
        store_kl(low8(logs.high), low8(logs.low), input + k, target + k, loss_out + k)
        store_kl(high8(logs.high), high8(logs.low), input + k + 8, target + k + 8, loss_out + k + 8)
    if not all_are_split(target, n):
        for k in range(n):
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
