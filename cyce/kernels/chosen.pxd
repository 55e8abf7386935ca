"""Chosen classes: a few of each position that carry masses of their own.

They are the target of a loss (`cyce.SparseTarget`), or what log-probabilities are wanted of: the gradient of
sum(g * log_softmax) is that of a loss with masses -g. Their logits are looked up before anything is written,
since the gradient may be where the logits are, and their gradients are written last, each from its own
exponential. Classes that are named twice carry the sum of their masses. A mass of 0 stands for no class.

There are n_chosen classes for each position. They and their masses belong to the call alone.
"""
from cython cimport floating
from libc.math cimport INFINITY
from libc.stdint cimport int64_t

from cyce.kernels.call cimport Call, Tile
from cyce.kernels.machine cimport check
from cyce.kernels.masses cimport dense_masses, dense_scale_of
from cyce.kernels.merge cimport decay_of
from cyce.kernels.plan cimport lies_within
from cyce.kernels.storage cimport load_one, store_one
from cyce.kernels.sums cimport add, add_product, difference_lost, finite_or_zero, settled_of, sum_lost
from cyce.kernels.transforms cimport changes_logits, has_mask, has_slopes, mask_at, transform


cdef inline const int64_t* chosen_at(const Call* call, const Tile* tile, Py_ssize_t k) noexcept nogil:
    """The chosen classes of a position of a tile."""
    return call.chosen + (tile.first + k) * call.n_chosen


cdef inline const floating* masses_at(
    const Call* call, const Tile* tile, Py_ssize_t k, floating like
) noexcept nogil:
    """What they carry."""
    return <const floating*> call.chosen_mass + (tile.first + k) * call.n_chosen


cdef inline floating* chosen_logits_at(
    const Call* call, const Tile* tile, Py_ssize_t k, floating like
) noexcept nogil:
    """Their logits, after the options that change logits."""
    return <floating*> tile.chosen_logits + k * call.n_chosen


cdef inline floating* chosen_slopes_at(
    const Call* call, const Tile* tile, Py_ssize_t k, floating like
) noexcept nogil:
    """Slopes of the softcap at the chosen logits, where there is one."""
    return <floating*> tile.chosen_logits + (call.tile_width + k) * call.n_chosen


cdef inline void look_up_chosen(const Call* call, Tile* tile, floating like) noexcept nogil:
    """Look up the logits of the chosen classes."""
    cdef floating* logits
    cdef const int64_t* chosen
    cdef Py_ssize_t k, j
    for k in range(tile.width):
        chosen = chosen_at(call, tile, k)
        logits = chosen_logits_at(call, tile, k, like)
        for j in range(call.n_chosen):
            check(lies_within(chosen[j], call.n_classes))
            logits[j] = load_one(
                &call.logits, tile.logits_at[k] + chosen[j] * call.logits.class_stride, like
            )
        if changes_logits(call):
            transform(
                call, <const floating*> logits, call.n_chosen, logits,
                chosen_slopes_at(call, tile, k, like) if has_slopes(call) else <floating*> NULL,
            )
        if has_mask(call):
            for j in range(call.n_chosen):
                if not mask_at(call, tile, k, chosen[j]):
                    logits[j] = -INFINITY


cdef inline void add_chosen_losses(
    const Call* call, Tile* tile, double* loss, double* loss_lost, floating like
) noexcept nogil:
    """Add the losses of the chosen classes."""
    cdef const floating* masses
    cdef double mass, mass_lost, gap, gap_lost, distance, logit
    cdef Py_ssize_t k, j
    for k in range(tile.width):
        masses = masses_at(call, tile, k, like)
        mass = mass_lost = gap = gap_lost = 0
        for j in range(call.n_chosen):
            # A class without mass adds nothing, even where its logit is -inf.
            if masses[j] != 0:
                logit = chosen_logits_at(call, tile, k, like)[j]
                distance = tile.row_max[k] - logit
                add_product[floating](
                    &gap, &gap_lost, masses[j], 0.0, distance,
                    finite_or_zero(difference_lost(tile.row_max[k], logit, distance)), 0,
                )
                add(&mass, &mass_lost, masses[j])
        add_product[floating](
            &gap, &gap_lost, mass, mass_lost, tile.log_normalizer[k], tile.log_lost[k], 0
        )
        add_product[floating](&loss[k], &loss_lost[k], 1.0, 0.0, gap, finite_or_zero(gap_lost), 0)
        tile.total[k] += settled_of(mass, mass_lost, like)


cdef inline void split_chosen_masses(const Call* call, Tile* tile, floating like) noexcept nogil:
    """Split the masses of the chosen classes at the pivot."""
    cdef const int64_t* chosen
    cdef const floating* masses
    cdef Py_ssize_t k, j
    for k in range(tile.width):
        chosen = chosen_at(call, tile, k)
        masses = masses_at(call, tile, k, like)
        for j in range(call.n_chosen):
            if <Py_ssize_t> chosen[j] == tile.pivot[k]:
                tile.pivot_mass[k] += masses[j]
            else:
                tile.other_mass[k] += masses[j]


cdef inline void write_chosen(const Call* call, const Tile* tile, floating like) noexcept nogil:
    """Write the log-softmax of the chosen classes; 0 for ignored positions."""
    cdef floating* out = <floating*> call.chosen_out + tile.first * call.n_chosen
    cdef double distance, nll, nll_lost, logit
    cdef Py_ssize_t k, j
    for k in range(tile.width):
        for j in range(call.n_chosen):
            nll = nll_lost = 0
            if tile.counts[k]:
                logit = chosen_logits_at(call, tile, k, like)[j]
                distance = tile.row_max[k] - logit
                nll = distance + tile.log_normalizer[k]
                nll_lost = (
                    difference_lost(tile.row_max[k], logit, distance)
                    + sum_lost(distance, tile.log_normalizer[k], nll) + tile.log_lost[k]
                )
            # 0 - x: not -0.
            out[k * call.n_chosen + j] = <floating> (0.0 - (nll + finite_or_zero(nll_lost)))


cdef inline double mass_of_class(
    const int64_t* chosen, const floating* masses, Py_ssize_t n, int64_t number
) noexcept nogil:
    """What a class carries that is among n chosen ones."""
    cdef Py_ssize_t n_named = 0
    cdef Py_ssize_t j, found = 0
    cdef double mass = 0
    # Two loops that are vectorised: few classes are named twice.
    for j in range(n):
        n_named += chosen[j] == number
    for j in range(n):
        found += j if chosen[j] == number else 0
    if n_named == 1:
        return masses[found]
    for j in range(n):
        mass += masses[j] if chosen[j] == number else <floating> 0.0
    return mass


cdef inline void write_gradients_of_chosen(const Call* call, const Tile* tile, floating like) noexcept nogil:
    """Write the gradients at the chosen classes but the pivot, over those without their masses."""
    cdef const int64_t* chosen
    cdef const floating* masses
    cdef double softmax, factor, logit, mass, unused
    cdef floating gradient, room
    cdef Py_ssize_t k, j
    for k in range(tile.width):
        if not tile.counts[k]:
            continue
        chosen = chosen_at(call, tile, k)
        masses = masses_at(call, tile, k, like)
        for j in range(call.n_chosen):
            if masses[j] == 0 or <Py_ssize_t> chosen[j] == tile.pivot[k]:
                continue
            logit = chosen_logits_at(call, tile, k, like)[j]
            softmax = decay_of(logit, tile.row_max[k], like) * tile.inverse[k]
            factor = tile.total[k]
            if call.entropy_grad != NULL:
                factor = tile.base[k] + (
                    0.0 if softmax == 0 else tile.number_scale[k] * (tile.row_max[k] - logit)
                )
            mass = mass_of_class(chosen, masses, call.n_chosen, chosen[j])
            if call.has_dense:
                mass += dense_scale_of(call, tile, k, &unused) * dense_masses(
                    call, tile, k, chosen[j], 1, &room
                )[0]
            gradient = <floating> (tile.scale[k] * (softmax * factor - mass))
            if has_slopes(call):
                gradient *= chosen_slopes_at(call, tile, k, like)[j]
            store_one(gradient, &call.grad, tile.grad_at[k] + chosen[j] * call.grad.class_stride)
