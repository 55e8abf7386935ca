"""Scratch memory of a pass: what a thread needs, and how it is divided."""
from cython cimport floating

from cyce.kernels.call cimport Call, Tile
from cyce.kernels.machine cimport CACHE_LINE
from cyce.kernels.merge cimport N_BLOCK_FIELDS
from cyce.kernels.streaming cimport needs_logits, restarts
from cyce.kernels.transforms cimport has_slopes

cdef struct Scratch:
    # How the memory that a thread computes in is divided, in bytes, all whole cache lines.
    size_t tile
    size_t stats
    size_t exps
    size_t slopes
    size_t packed
    size_t chosen


cdef inline size_t whole_lines(size_t n_bytes) noexcept nogil:
    """n_bytes, rounded up to whole cache lines."""
    return (n_bytes + CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE


cdef inline Scratch scratch_of(const Call* call, floating like) noexcept nogil:
    """What a thread needs: a tile, the fields of its blocks, exponentials, slopes, and a packed block."""
    cdef Scratch scratch
    cdef size_t block = call.block_classes * call.tile_width
    if call.by_rows:
        # Logits, exponentials and, where these are computed again, slopes.
        block = call.block_classes * (3 if has_slopes(call) and restarts(call, like) else 2)
    else:
        # Slopes of a block of a tile are packed, too, what an entropy's gradient is made of, and the Hessian.
        block *= 1 + has_slopes(call) + needs_logits(call) + (call.hessian != NULL)
    scratch.tile = whole_lines(sizeof(Tile))
    scratch.stats = whole_lines(
        <size_t> (call.n_blocks * N_BLOCK_FIELDS * call.tile_width) * sizeof(double)
    )
    scratch.exps = 0
    if call.exps_wait_apart:
        scratch.exps = whole_lines(<size_t> (call.tile_width * call.n_classes) * sizeof(floating))
    scratch.slopes = 0
    if has_slopes(call) and call.by_rows and call.grad.start != NULL and not restarts(call, like):
        scratch.slopes = whole_lines(<size_t> (call.tile_width * call.n_classes) * sizeof(floating))
    scratch.packed = whole_lines(block * sizeof(floating))
    # Logits, and the softcap's slopes there.
    scratch.chosen = whole_lines(
        <size_t> ((1 + has_slopes(call)) * call.tile_width * call.n_chosen) * sizeof(floating)
    )
    return scratch


cdef inline size_t size_of_scratch(const Scratch* sizes) noexcept nogil:
    """Bytes of all parts."""
    return sizes.tile + sizes.chosen + sizes.stats + sizes.exps + sizes.slopes + sizes.packed
