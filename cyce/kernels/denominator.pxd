"""What the mean divides by, and which positions count.

A position counts unless its target is ignored or its sample weight is 0. The mean divides by the sum of
(weight of the target's class) * (sample weight) over these; with class probabilities, whose class weights are
part of the masses, by the sum of the sample weights. `normalizer` replaces that. If it is 0, nothing counts:
the mean is 0 / 0 = NaN as in torch, or 0 with empty="zero".

Blocks of targets are counted on their own and added up in order, so that the number of threads does not
change a bit.
"""
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cython cimport floating
from cython.parallel cimport prange
from libc.math cimport NAN
from libc.stdint cimport int64_t
from libc.string cimport memset

from cyce.kernels.call cimport Call
from cyce.kernels.machine cimport check, cyce_enter, cyce_environment, cyce_leave
from cyce.kernels.plan cimport CHUNK, lies_within
from cyce.kernels.sums cimport add, settled
from cyce.kernels.targets cimport is_bad, load_targets

cdef enum:
    # Targets that are counted together.
    TARGET_BLOCK = 8192
    # Below this many positions, starting threads costs more.
    MIN_THREADED = 24576


cdef struct PositionCount:
    double weight
    Py_ssize_t bad                  # the first position whose target is no class, or -1


cdef inline PositionCount count_block(
    const Call* call, const floating* weight, Py_ssize_t block, char* counts_out
) noexcept nogil:
    """Weighted count of one block of positions."""
    cdef PositionCount count
    cdef int64_t targets[CHUNK]
    cdef double lost = 0
    cdef double mass
    cdef const floating* sample_weight = <const floating*> call.sample_weight
    cdef bint weighted = weight != NULL or sample_weight != NULL
    cdef Py_ssize_t n_classes = call.n_all_classes
    cdef Py_ssize_t n_own_classes = call.n_classes
    cdef Py_ssize_t first_class = call.first_class
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
                n_bad += is_bad(targets[k], n_classes, ignore_index)
                n_counted += targets[k] != ignore_index
        if n_bad > 0:
            k = 0
            while not is_bad(targets[k], n_classes, ignore_index):
                k += 1
            count.bad = first + k
        elif weighted:
            for k in range(n):
                mass = 1.0
                if call.target != NULL:
                    check(not is_bad(targets[k], n_classes, ignore_index))
                    mass = 0.0 if targets[k] == ignore_index else 1.0
                    # A shard knows the weights of its own classes alone, and has no use for the sum.
                    if mass != 0 and weight != NULL and lies_within(targets[k] - first_class, n_own_classes):
                        mass = weight[targets[k] - first_class]
                if sample_weight != NULL and mass != 0:
                    mass *= sample_weight[first + k]
                add[double](&count.weight, &lost, mass)
        if counts_out != NULL:
            for k in range(n):
                counts_out[first + k] = (call.target == NULL or targets[k] != ignore_index) and (
                    sample_weight == NULL or sample_weight[first + k] != 0
                )
        first += n
    count.weight = settled(count.weight, lost) if weighted else <double> n_counted
    cyce_leave(&found)
    return count


cdef inline int count_blocks(
    const Call* call, const floating* weight, int num_threads, char* counts_out, PositionCount* total
) except -1 nogil:
    """Weighted count of the positions that count, and the first bad target."""
    cdef Py_ssize_t n_blocks = (call.n_positions + TARGET_BLOCK - 1) // TARGET_BLOCK
    # One, or as many as the pass: libgomp ends threads that a smaller team leaves out.
    cdef int n_threads = num_threads if call.n_positions >= MIN_THREADED else 1
    cdef Py_ssize_t block
    cdef double lost = 0
    cdef PositionCount* counts
    total.weight = 0
    total.bad = -1
    if n_blocks <= 1:
        total[0] = count_block(call, weight, 0, counts_out)
        return 0
    counts = <PositionCount*> PyMem_RawMalloc(n_blocks * sizeof(PositionCount))
    if counts == NULL:
        with gil:
            raise MemoryError("no memory for counting the targets")
    for block in prange(n_blocks, num_threads=n_threads, schedule="static"):
        counts[block] = count_block(call, weight, block, counts_out)
    for block in range(n_blocks):
        add[double](&total.weight, &lost, counts[block].weight)
        if counts[block].bad >= 0 and total.bad < 0:
            total.bad = counts[block].bad
    total.weight = settled(total.weight, lost)
    PyMem_RawFree(counts)
    return 0


cdef inline int count_positions(
    const Call* call, char format, int num_threads, char* counts_out, PositionCount* total
) except -1 nogil:
    """The sum of the weights of all positions, and the first bad target.

    format: of the weights. counts_out: whether each position counts, (n_positions,), or NULL.
    """
    if call.target == NULL and call.sample_weight == NULL:
        # n_positions; without classes NaN, as in torch
        total.weight = <double> (call.n_positions * call.n_all_classes) / call.n_all_classes
        total.bad = -1
        if counts_out != NULL:
            memset(counts_out, True, call.n_positions)
    elif format == c"f":
        count_blocks[float](call, <const float*> call.weight, num_threads, counts_out, total)
    else:
        count_blocks[double](call, <const double*> call.weight, num_threads, counts_out, total)
    return 0


cdef inline double choose_denominator(
    double weight, Py_ssize_t n_positions, double normalizer, bint zero_if_empty, bint* is_empty_out
) noexcept nogil:
    """What the mean divides by, given the sum of the weights; normalizer: 0 means unset."""
    is_empty_out[0] = normalizer == 0 and (weight == 0 or n_positions == 0)
    if normalizer != 0:
        return normalizer
    if is_empty_out[0]:
        # 0 / 0, whatever smoothing adds to the sum; or 0 / 1.
        return 1.0 if zero_if_empty else NAN
    return weight
