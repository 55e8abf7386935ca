"""When a gradient goes past the caches (streaming stores), and where exponentials wait for it.

Between the phases, exponentials wait in the gradient's own memory, which may be that of the logits: a block
is read before it is written. Where that is not possible, because a gradient much larger than the caches goes
past them (`Call.streams`), or has another storage than the arithmetic, they wait in scratch memory, if they
are few; else they are computed again (`restarts`). A tile of one block stays packed.
"""
from cython cimport floating

from cyce.kernels.call cimport LOG_SOFTMAX, Call
from cyce.kernels.storage cimport is_native, size_of
from cyce.kernels.transforms cimport has_slopes

cdef enum:
    # Gradients of at least this many bytes stream, unless they overwrite the logits: beside these, little of
    # them would be left in the caches.
    MIN_STREAM = 32 << 20
    # Most bytes of exponentials of rows that wait in scratch memory, of which each thread has its own. Rows
    # gain by it even where they do not fit into L2.
    MOST_WAITING_BYTES = 2 << 20


cdef inline bint needs_logits(const Call* call) noexcept nogil:
    """Whether the gradient is made of the logits and their exponentials: that of the entropy is."""
    return call.entropy_grad != NULL


cdef inline bint may_wait_apart(const Call* call, floating like) noexcept nogil:
    """Whether the exponentials of a tile are few enough to wait in scratch memory."""
    return call.by_rows and (
        <size_t> (call.tile_width * call.n_classes) * sizeof(floating) <= MOST_WAITING_BYTES
    )


cdef inline bint restarts(const Call* call, floating like) noexcept nogil:
    """Whether exponentials do not wait, but are computed again, with the slopes, from the logits."""
    if call.grad.start == NULL or call.output == LOG_SOFTMAX or may_wait_apart(call, like):
        return False
    if has_slopes(call) or needs_logits(call):
        return True
    return call.n_blocks > 1 and not is_native(call.grad.format, like)


cdef inline bint may_stream(const Call* call, floating like) noexcept nogil:
    """Whether the gradient may go past the caches."""
    if call.grad.start == NULL or call.grad.start == call.logits.start:
        return False
    if <size_t> (call.n_positions * call.n_classes * size_of(call.grad.format)) < MIN_STREAM:
        return False
    if call.by_rows:
        return may_wait_apart(call, like)
    return (
        is_native(call.grad.format, like)
        and call.n_blocks == 1 and call.output != LOG_SOFTMAX
        and not (has_slopes(call) or needs_logits(call))
        # Rows of two or three are not stored by lines.
        and (call.grad.class_stride != 1 or call.n_classes > 3)
    )


cdef inline void choose_memory(Call* call, bint split, floating like) noexcept nogil:
    """Choose where the gradient goes, and where exponentials wait for it."""
    call.streams = may_stream(call, like) and not split
    call.exps_wait_apart = (
        call.grad.start != NULL and call.output != LOG_SOFTMAX and may_wait_apart(call, like)
        and (
            call.streams or needs_logits(call) or not is_native(call.grad.format, like)
            # Slopes at the maxima are computed from the logits.
            or has_slopes(call) and call.grad.start == call.logits.start
        )
    )
