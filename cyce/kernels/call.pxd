"""What one call computes, in named fields; plan.pxd decides how its work is cut up.

A `Call` is read by all threads and written by none. A `Tile` is what one thread works at: the positions of
one row, a few rows, or up to TILE positions.
"""
from libc.stdint cimport int64_t

from cyce.kernels.arrays cimport Operand
from cyce.kernels.storage cimport TILE

cdef enum Output:
    # What a call writes to the array of the logits' shape; LOGSUMEXP writes to that of the positions only.
    GRADIENT
    SOFTMAX
    LOG_SOFTMAX
    LOGSUMEXP


cdef enum Phase:
    # Which phases a call runs: all, the first two (reduce and merge), or the third, from merged states.
    ALL
    REDUCE
    FINISH


cdef struct StatsOut:
    # What `cross_entropy` writes for each position on request; (n_positions,).
    char* lse                       # of the arithmetic's type, as are all but the last two
    char* probability
    char* entropy
    char* confidence                # NULL without `Call.has_moments`, as are the next three
    char* brier_score
    char* slope
    char* variance
    int64_t* prediction
    int64_t* rank


cdef struct Call:
    # Pointers that do not apply are NULL. Arrays without a format are of the arithmetic's type.
    Output output
    Phase phase
    Py_ssize_t n_positions
    Py_ssize_t n_classes
    Py_ssize_t first_class          # of a shard: the number of its first class
    Py_ssize_t n_all_classes        # of a shard: the classes of all shards; else n_classes
    Operand logits
    Operand probabilities
    const Operand* class_mask       # bytes; 0 where a position has no such class
    Operand grad                    # or softmax, or log-softmax, or the Hessian's product with `vector`
    const Operand* hessian          # the diagonal, times `hessian_factor` and at least `hessian_floor`
    const Operand* vector           # what the Hessian is multiplied by; NULL, as hessian, in most calls
    double* states                  # (N_FIELDS, n_positions); see merge.pxd
    const char* target              # (n_positions,)
    const char* target_logit        # (n_positions,); of a shard whose statistics are wanted, else NULL
    char target_format
    int64_t ignore_index
    Py_ssize_t n_chosen             # classes of each position that carry masses of their own; see chosen.pxd
    const int64_t* chosen           # (n_positions, n_chosen); of the call alone: no other thread writes to it
    const char* chosen_mass         # (n_positions, n_chosen)
    char* chosen_out                # (n_positions, n_chosen): their log-softmax, or NULL
    const char* weight              # (n_classes,)
    double smoothing
    double dense_scale              # factor of the dense masses, applied at the end
    double dense_scale_lost         # what rounding that loses
    bint has_dense
    const char* sample_weight       # (n_positions,)
    bint all_ignored                # whatever the targets
    double z_loss
    bint is_focal                   # losses are modulated; see `focus_losses` in positions.pxd
    double gamma
    double poly1
    double softcap                  # 0 means unset
    double temperature
    double grad_scale               # upstream gradient / denominator / temperature
    const char* grad_output         # (n_positions,), or NULL: grad_scale alone
    double hessian_factor
    double hessian_floor
    char* loss_out                  # (n_positions,), or NULL; losses, or logsumexp
    const char* entropy_grad        # (n_positions,), or NULL: the upstream gradient of the entropy
    char* entropy_out               # (n_positions,), or NULL
    bint has_stats
    bint has_moments                # statistics that are made of squares, too
    StatsOut stats_out              # `lse` is NULL where the statistics are not wanted themselves
    bint streams                    # the gradient goes past the caches; see streaming.pxd
    bint exps_wait_apart            # between the phases, exponentials wait in scratch memory
    bint by_rows                    # vectors run along the classes of a position
    Py_ssize_t tile_width           # positions
    Py_ssize_t n_tiles
    Py_ssize_t block_classes
    Py_ssize_t n_blocks


cdef struct Ahead:
    # What is prefetched while a block of a tile is reduced: for class c and position k, the cache line at
    # start + c * class_step + k * step. Steps are in bytes.
    const char* start
    Py_ssize_t class_step
    Py_ssize_t step


cdef struct Tile:
    # The positions that a thread works at; entry k is position first + k. Arrays come first, so that
    # they are aligned to vectors, as the tile is.
    Py_ssize_t logits_at[TILE]
    Py_ssize_t grad_at[TILE]
    Py_ssize_t probabilities_at[TILE]
    Py_ssize_t mask_at[TILE]
    Py_ssize_t hessian_at[TILE]
    Py_ssize_t vector_at[TILE]
    Py_ssize_t pivot[TILE]          # the class whose gradient is computed apart, less first_class
    double pivot_logit[TILE]
    double pivot_slope[TILE]        # of the softcap there
    double pivot_mass[TILE]         # what is subtracted from (total mass) * softmax at the pivot
    double other_mass[TILE]         # the total without that
    double pivot_gradient[TILE]
    double hard[TILE]
    double n_left[TILE]             # classes that the mask leaves; unset without a mask
    double scale[TILE]              # upstream gradient / denominator
    # The gradient of an entropy, and a product, is softmax * (base + number_scale * number): the gap of a
    # class, or its number of the vector, less `top`.
    double base[TILE]
    double number_scale[TILE]
    double focal_ratio[TILE]        # loss / (1 - probability of the target), before it is modulated
    double hessian_scale[TILE]      # see curvature.pxd, as for those that follow
    double variance_part[TILE]
    double square_part[TILE]
    double hessian_at_top[TILE]     # at a class whose softmax is above a half
    double miss_inverse[TILE]       # of a focal loss, as are those that follow
    double share_part[TILE]
    double share_mass[TILE]
    double pivot_hessian[TILE]
    double dot[TILE]                # sum of exp(logit - row_max) * (number of the vector - top)
    double top[TILE]                # number of the vector at the maximum
    double row_max[TILE]
    double argmax[TILE]             # less first_class
    double rest[TILE]               # sum of exp(logit - row_max) over all classes but one at the maximum
    double rest_lost[TILE]
    double mass[TILE]               # sum of the dense masses
    double mass_lost[TILE]
    double gap[TILE]                # sum of dense mass * (row_max - logit)
    double gap_lost[TILE]
    double total[TILE]              # the mass of all classes and of z-loss: the factor of softmax
    double spread[TILE]             # sum of exp(logit - row_max) * (row_max - logit)
    double spread_2[TILE]           # sum of exp(logit - row_max) * (row_max - logit)**2
    double squares[TILE]            # sum of exp(logit - row_max)**2 over the classes of the rest
    double rank[TILE]               # number of classes before the target's
    double log_normalizer[TILE]     # log(1 + rest)
    double log_lost[TILE]           # what rounding that loses; 0 for floats, where it does not count
    double inverse[TILE]            # 1 / (1 + rest)
    float pivot_number[TILE]        # the pivot among few classes or of a plain loss; -1 where there is none
    float plain_factor[TILE]        # see plain.pxd, as for the next one
    float plain_gradient[TILE]
    bint counts[TILE]
    char* chosen_logits             # (width, n_chosen); see chosen.pxd
    Py_ssize_t first
    Py_ssize_t width
    Py_ssize_t lanes                # width, rounded up to whole vectors
    Py_ssize_t pitch                # Call.tile_width: how far apart packed classes are, and statistics
    bint contiguous                 # the positions are neighbours in memory
    bint grad_contiguous
    bint probabilities_contiguous
    bint hessian_contiguous
    bint vector_contiguous
    Ahead logits_ahead              # those of the next tile
    Ahead grad_ahead                # where this tile will write
    Py_ssize_t n_ignored
    bint has_bad_target


cdef struct PassResult:
    # Of all positions.
    double loss                     # the sum
    Py_ssize_t n_counted            # that are not ignored
    bint has_bad_target
