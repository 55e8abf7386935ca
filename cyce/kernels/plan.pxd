"""How the work of a call is cut up: rows or tiles, and how large tiles and blocks are.

Where the classes of a position are contiguous and not few, vectors run along the classes of each position
(`by_rows`, rows.pxd). Everywhere else (images, sequences, few classes) they run across the positions of a
tile (tiles.pxd). In both, what is computed once per position runs across the positions of the tile. The
classes of a tile are cut into blocks of a fixed size, at most. How the work is cut depends on the layout of
the arrays alone, never on the number of threads.
"""
from libc.stdint cimport int64_t, uint64_t

from cyce.kernels.call cimport Call, Tile
from cyce.kernels.machine cimport check
from cyce.kernels.storage cimport TILE, arithmetic_of, size_of
from cyce.kernels.sums cimport whole_lanes

cdef enum:
    # A tile's logits have at most so many bytes, unless it has the fewest positions. Logits, packed logits,
    # the gradient and what is prefetched then fit into L1; twice as wide tiles take 1.1 times as long.
    TILE_BYTES = 8192
    # The fewest positions, so that what is done once for a tile is little; of more than MANY_CLASSES, half.
    NARROW = 64
    # The same where classes are apart, and a tile has a piece of memory for each of them. Of more than
    # MANY_CLASSES, each of which is on another page, pieces are as long as they can be: halves would take
    # 1.1 to 1.4 times as long.
    NARROW_PIECES = 128
    MANY_CLASSES = 64
    # Classes of a row that are looked up, weighted and stored together.
    CHUNK = 256
    # Classes of a row that are reduced together, at most: beside so many, what is computed once is little.
    ROW_BLOCK = 8192
    # Short rows in a tile, and the most logits of these: what is computed once per row then becomes
    # vectors, and the exponentials are still in the cache when they are finished.
    ROW_TILE = 16
    ROW_TILE_LOGITS = 8192
    # Classes of a tile that are reduced together if there are more than twice as many, and the most blocks of
    # these: blocks grow with the classes, so that what is kept of them stays small.
    TILE_BLOCK = 64
    MAX_TILE_BLOCKS = 256
    # Below this many classes a tile of positions beats one position at a time: 3 times at 65 classes.
    ROW_MIN_CLASSES = 128


cdef inline void plan(Call* call) noexcept:
    """Choose how the work is cut up, from the layout of the arrays alone."""
    cdef Py_ssize_t itemsize = size_of(arithmetic_of(call.logits.format))
    cdef Py_ssize_t least_width
    call.by_rows = (
        call.logits.class_stride == 1 and call.grad.class_stride == 1
        and (call.hessian == NULL or call.hessian.class_stride == 1)
        and call.n_classes >= ROW_MIN_CLASSES
    )
    if call.logits.class_stride == 1:
        least_width = NARROW if call.n_classes <= MANY_CLASSES else NARROW // 2
    else:
        least_width = NARROW_PIECES if call.n_classes <= MANY_CLASSES else TILE
    call.tile_width = TILE
    while call.tile_width > least_width and call.n_classes > TILE_BYTES // itemsize // call.tile_width:
        call.tile_width //= 2
    if call.by_rows:
        call.block_classes = min(<Py_ssize_t> ROW_BLOCK, whole_lanes(call.n_classes))
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


cdef inline Py_ssize_t classes_of_block(const Call* call, Py_ssize_t block) noexcept nogil:
    """Number of classes in a block."""
    return min(call.block_classes, call.n_classes - block * call.block_classes)


cdef inline void check_block(const Call* call, const Tile* tile, Py_ssize_t block) noexcept nogil:
    """Check that a block lies within the classes, and a tile within its scratch memory."""
    check(0 <= block < call.n_blocks)
    check(block * call.block_classes < call.n_classes)
    check(not call.by_rows or call.block_classes <= ROW_BLOCK)
    check(not call.by_rows or block == 0 or call.block_classes == ROW_BLOCK)
    check(0 < tile.width <= tile.lanes <= call.tile_width <= TILE)
    check(tile.first + tile.width <= call.n_positions)


cdef inline bint lies_within(int64_t number, Py_ssize_t n) noexcept nogil:
    """Whether 0 <= number < n."""
    # One comparison: a negative number is large as an unsigned one.
    return <uint64_t> number < <uint64_t> n
