"""What is computed once per position, after its blocks are merged: losses, pivots, statistics.

With maximum m and rest r: loss = (m - x_target) + log1p(r). The gradient of class c is
scale * (total mass * softmax_c - mass_c). One class of a position, the pivot (the target or, with class
probabilities, the maximum), has its gradient computed apart, without that cancellation (`finish_pivots`): at
the target, where it is the maximum, it is -r / (1 + r), not p - 1.

For doubles, what the logarithm and the last products lose is carried along (`*_lost`), and rounded once, at
the end.
"""
from cython cimport floating
from libc.math cimport INFINITY, NAN
from libc.stdint cimport int64_t

from cyce.kernels.call cimport Call, StatsOut, Tile
from cyce.kernels.chosen cimport add_chosen_losses, split_chosen_masses
from cyce.kernels.masses cimport dense_masses, dense_scale_of, mass_without
from cyce.kernels.math cimport (
    exponent_bias, inverse_for_float, log1p_in_parts, log_for_float, power_of, round_shift,
)
from cyce.kernels.merge cimport decay_of
from cyce.kernels.plan cimport lies_within
from cyce.kernels.points cimport comes_before
from cyce.kernels.reference cimport exp_scaled
from cyce.kernels.storage cimport TILE, load_one
from cyce.kernels.sums cimport (
    LANES, add_double, add_product, difference_lost, finite_or_zero, settled, settled_of, sum_lost,
    sum_of_lanes,
)
from cyce.kernels.streaming cimport needs_logits
from cyce.kernels.transforms cimport changes_logits, has_mask, mask_at, slope_at, transform


cdef inline bint needs_softmax(const Call* call) noexcept nogil:
    """Whether anything is made of the softmax, which losses and log-sum-exps are not."""
    return (
        call.grad.start != NULL or call.hessian != NULL or call.has_stats or call.is_focal
        or call.n_chosen > 0 or call.entropy_out != NULL
    )


cdef inline void normalize_positions(const Call* call, Tile* tile, floating like) noexcept nogil:
    """Normalizers of a tile, from its rests."""
    cdef double rest, logarithm
    cdef Py_ssize_t k
    for k in range(tile.lanes):
        # An infinite maximum has no softmax: NaN, as in torch.
        rest = tile.rest[k] if tile.row_max[k] - tile.row_max[k] == 0 else NAN
        if floating is float:
            tile.rest[k] = rest
            logarithm = log_for_float(1.0 + rest, rest)
            # That has no NaN.
            tile.log_normalizer[k] = logarithm if rest == rest else NAN
            tile.log_lost[k] = 0
        else:
            tile.rest[k] = settled(rest, tile.rest_lost[k])
            tile.rest_lost[k] += rest - tile.rest[k]
            tile.inverse[k] = 1.0 / (1.0 + tile.rest[k])
            logarithm = log1p_in_parts(tile.rest[k], &tile.log_lost[k])
            tile.log_lost[k] += tile.rest_lost[k] * tile.inverse[k]
            tile.log_normalizer[k] = logarithm + tile.log_lost[k]
            tile.log_lost[k] = finite_or_zero(tile.log_lost[k] - (tile.log_normalizer[k] - logarithm))
    if floating is float:
        if needs_softmax(call):
            for k in range(tile.lanes):
                tile.inverse[k] = inverse_for_float(1.0 + tile.rest[k])


cdef inline floating logit_of(
    const Call* call, const Tile* tile, Py_ssize_t k, Py_ssize_t c, floating like
) noexcept nogil:
    """Logit of class c of a position, as it was given; -inf where there is no such class."""
    if has_mask(call) and not mask_at(call, tile, k, c):
        return -INFINITY
    return load_one(&call.logits, tile.logits_at[k] + c * call.logits.class_stride, like)


cdef inline double logsumexp_at(
    const Call* call, const Tile* tile, Py_ssize_t k, floating like
) noexcept nogil:
    """Log-sum-exp of one position; an infinite maximum itself, unless a logit is NaN."""
    cdef double lse = tile.row_max[k] + tile.log_normalizer[k]
    cdef floating logit
    cdef Py_ssize_t c
    if floating is double:
        lse += finite_or_zero(sum_lost(tile.row_max[k], tile.log_normalizer[k], lse) + tile.log_lost[k])
    if not -INFINITY < tile.row_max[k] < INFINITY:
        lse = tile.row_max[k]
        for c in range(call.n_classes):
            logit = logit_of(call, tile, k, c, like)
            lse = lse if logit == logit else NAN
    return lse


cdef inline void finish_logsumexp(const Call* call, const Tile* tile, floating like) noexcept nogil:
    """Write the log-sum-exp of a tile's positions."""
    cdef Py_ssize_t k
    for k in range(tile.width):
        (<floating*> call.loss_out)[tile.first + k] = <floating> logsumexp_at(call, tile, k, like)


cdef inline double log_softmax_parts(
    const Tile* tile, Py_ssize_t k, double* subtracted_then_out, floating like
) noexcept nogil:
    """The log-sum-exp in two parts: what is subtracted from a logit first, and what is subtracted then.

    float: the maximum, whose difference to a logit is exact in double, and the logarithm. double: their sum,
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


# ---------------------------------------------------------------------------------------------
# Losses


cdef inline void begin_losses(
    const Call* call, Tile* tile, double* loss, double* loss_lost, floating like
) noexcept nogil:
    """Losses of the hard masses; begin what the gradients are made of."""
    cdef double distance, nll, nll_lost
    cdef Py_ssize_t k
    if floating is double:
        for k in range(tile.lanes):
            loss_lost[k] = 0
    for k in range(tile.lanes):
        loss[k] = 0
        # A target of weight 0 adds nothing, even where its logit is -inf.
        distance = 0.0 if tile.hard[k] == 0 else tile.row_max[k] - tile.pivot_logit[k]
        nll = distance + tile.log_normalizer[k]
        nll_lost = sum_lost(distance, tile.log_normalizer[k], nll) + tile.log_lost[k]
        if tile.hard[k] != 0:
            nll_lost += difference_lost(tile.row_max[k], tile.pivot_logit[k], distance)
        add_product[floating](&loss[k], &loss_lost[k], tile.hard[k], 0.0, nll, finite_or_zero(nll_lost), 0)
    if needs_softmax(call) or call.has_dense or call.z_loss != 0:
        for k in range(tile.lanes):
            tile.total[k] = tile.pivot_mass[k] = tile.hard[k]
            tile.other_mass[k] = 0


cdef inline void add_dense_loss(
    Tile* tile, Py_ssize_t k, double dense_scale, double dense_scale_lost, double* loss, double* loss_lost,
    floating like,
) noexcept nogil:
    """Add the loss of the dense masses of one position."""
    cdef double dense_loss = tile.gap[k]
    cdef double dense_lost = tile.gap_lost[k]
    add_product[floating](
        &dense_loss, &dense_lost, tile.mass[k], tile.mass_lost[k], tile.log_normalizer[k], tile.log_lost[k], 0
    )
    add_product[floating](&loss[k], &loss_lost[k], dense_scale, dense_scale_lost, dense_loss, dense_lost, 0)
    tile.total[k] += dense_scale * settled_of(tile.mass[k], tile.mass_lost[k], like)


cdef inline void add_dense_losses(
    const Call* call, Tile* tile, double* loss, double* loss_lost, floating like
) noexcept nogil:
    """Add the losses of the dense masses."""
    cdef double dense_scale, dense_scale_lost
    cdef Py_ssize_t k
    if has_mask(call):
        for k in range(tile.lanes):
            dense_scale = dense_scale_of(call, tile, k, &dense_scale_lost)
            add_dense_loss(tile, k, dense_scale, dense_scale_lost, loss, loss_lost, like)
    else:
        for k in range(tile.lanes):
            add_dense_loss(tile, k, call.dense_scale, call.dense_scale_lost, loss, loss_lost, like)


cdef inline void add_z_losses(
    const Call* call, Tile* tile, double* loss, double* loss_lost, floating like
) noexcept nogil:
    """Add z_loss * lse**2."""
    cdef double lse, lse_lost, square, square_lost
    cdef Py_ssize_t k
    for k in range(tile.lanes):
        lse = tile.row_max[k] + tile.log_normalizer[k]
        lse_lost = sum_lost(tile.row_max[k], tile.log_normalizer[k], lse) + tile.log_lost[k]
        square = square_lost = 0
        add_product[floating](&square, &square_lost, lse, lse_lost, lse, lse_lost, 0)
        add_product[floating](&loss[k], &loss_lost[k], call.z_loss, 0.0, square, square_lost, 0)
        tile.other_mass[k] += 2.0 * call.z_loss * lse
        tile.total[k] += 2.0 * call.z_loss * lse


cdef inline void focus_losses(
    const Call* call, Tile* tile, double* loss, double* loss_lost, floating like
) noexcept nogil:
    """Modulate the losses: (1 - p)**gamma * (loss + poly1 * hard mass * (1 - p)), p the target's probability.

    The gradient of the factor is that of one more mass on the target. With o = 1 - p, which is the
    probability of the others where the target is the maximum, and at least 1/2 elsewhere, nothing cancels.
    """
    cdef double probability, others, power, ratio, mass, focused, focused_lost
    cdef Py_ssize_t k
    for k in range(tile.lanes):
        probability = decay_of(tile.pivot_logit[k], tile.row_max[k], like) * tile.inverse[k]
        others = 1.0 - probability
        if tile.pivot_logit[k] == tile.row_max[k]:
            others = tile.rest[k] * tile.inverse[k]
        power = power_of(others, call.gamma)
        # Where nothing is left to the others, the limit; and where nothing is left to the target.
        ratio = loss[k] / others if others > 1e-290 else tile.hard[k]
        tile.focal_ratio[k] = ratio
        mass = probability * (call.gamma * ratio + call.poly1 * tile.hard[k] * (call.gamma + 1.0))
        mass = mass if probability > 0 else 0.0
        tile.total[k] += mass
        tile.pivot_mass[k] += mass
        if call.grad.start != NULL:
            tile.scale[k] *= power
        focused = focused_lost = 0
        add_product[floating](&focused, &focused_lost, power, 0.0, loss[k], loss_lost[k], 0)
        add_product[floating](
            &focused, &focused_lost, power * others, 0.0, call.poly1 * tile.hard[k], 0.0, 0
        )
        # Infinite where the target has no probability.
        loss[k] = focused
        loss_lost[k] = finite_or_zero(focused_lost)


cdef inline double sum_of_losses(
    const Call* call, const Tile* tile, const double* loss, floating like
) noexcept nogil:
    """Sum of the losses of a tile."""
    cdef double total[LANES]
    cdef double lost[LANES]
    cdef Py_ssize_t group, k
    for k in range(LANES):
        total[k] = lost[k] = 0
    if call.by_rows:
        for k in range(tile.width):
            add_double(&total[0], &lost[0], loss[k], like)
    else:
        for group in range(tile.lanes // LANES):
            for k in range(LANES):
                add_double(&total[k], &lost[k], loss[group * LANES + k], like)
        sum_of_lanes(total, lost, like)
    return settled(total[0], lost[0])


cdef inline double settle_losses(const Call* call, Tile* tile, double* loss, floating like) noexcept nogil:
    """Weigh the losses of a tile, leave out what is ignored, and write them; returns their sum."""
    cdef floating* loss_out = <floating*> call.loss_out
    cdef Py_ssize_t k
    if call.sample_weight != NULL:
        for k in range(tile.width):
            loss[k] *= (<const floating*> call.sample_weight)[tile.first + k]
    # An ignored position has loss 0 and gradient 0: in tiles, all terms of a gradient have this scale as a
    # factor; rows write zeros (`row_finish_block`).
    if tile.n_ignored or tile.width < tile.lanes:
        for k in range(tile.lanes):
            if not tile.counts[k]:
                loss[k] = 0
                tile.scale[k] = 0
    if loss_out != NULL:
        for k in range(tile.width):
            loss_out[tile.first + k] = <floating> loss[k]
    return sum_of_losses(call, tile, loss, like)


cdef inline double finish_losses(const Call* call, Tile* tile, floating like) noexcept nogil:
    """Losses of a tile and what its gradient is made of; returns the sum of the losses."""
    cdef double loss[TILE]
    cdef double loss_lost[TILE]
    cdef Py_ssize_t k
    begin_losses(call, tile, loss, loss_lost, like)
    if call.has_dense:
        add_dense_losses(call, tile, loss, loss_lost, like)
    if call.n_chosen:
        add_chosen_losses(call, tile, loss, loss_lost, like)
    if call.is_focal:
        focus_losses(call, tile, loss, loss_lost, like)
    if call.z_loss != 0:
        add_z_losses(call, tile, loss, loss_lost, like)
    if floating is double:
        for k in range(tile.lanes):
            loss[k] = settled(loss[k], loss_lost[k])
    return settle_losses(call, tile, loss, like)


# ---------------------------------------------------------------------------------------------
# Pivots


cdef inline double sum_loses(const Call* call) noexcept nogil:
    """The most that rounding takes from the sum of a position's dense masses, if that is 1.

    Each addition in double loses up to half an ulp: one per class of a lane or, where vectors run across
    positions, of a block; then five to add up the lanes, and one per block.
    """
    cdef Py_ssize_t n = min(call.block_classes, call.n_classes)
    return <double> ((n // LANES if call.by_rows else n) + 5 + call.n_blocks) * 1.2e-16


cdef inline void begin_entropy_gradients(const Call* call, Tile* tile, floating like) noexcept nogil:
    """Add the gradient of the entropy to those of the losses.

    With gaps d to the maximum and their mean D, as the softmax weights them, it is softmax * (d - D).
    Together, softmax * (base + upstream * d) with base = total mass - upstream * D.
    """
    cdef double upstream, mean_gap
    cdef Py_ssize_t k
    for k in range(tile.lanes):
        tile.base[k] = tile.number_scale[k] = 0
    for k in range(tile.width):
        if tile.counts[k]:
            upstream = (<const floating*> call.entropy_grad)[tile.first + k]
            mean_gap = tile.spread[k] * tile.inverse[k]
            tile.number_scale[k] = upstream
            tile.base[k] = tile.total[k] - upstream * mean_gap
            tile.other_mass[k] += upstream * ((tile.row_max[k] - tile.pivot_logit[k]) - mean_gap)
    # What remains as a factor of the softmax.
    for k in range(tile.lanes):
        tile.total[k] = 1


cdef inline void find_pivots(const Call* call, Tile* tile, floating like) noexcept nogil:
    """With class probabilities, make the maxima the pivots; split the masses at all pivots."""
    cdef double others, terms, scale, unused
    cdef floating dense, room
    cdef Py_ssize_t k
    if call.target == NULL:
        for k in range(tile.width):
            tile.pivot[k] = <Py_ssize_t> tile.argmax[k]
            tile.pivot_logit[k] = tile.row_max[k]
        if changes_logits(call):
            for k in range(tile.width):
                if lies_within(tile.pivot[k], call.n_classes):
                    tile.pivot_slope[k] = slope_at(call, logit_of(call, tile, k, tile.pivot[k], like))
    if call.n_chosen:
        split_chosen_masses(call, tile, like)
    if needs_logits(call):
        begin_entropy_gradients(call, tile, like)
    if not call.has_dense:
        return
    for k in range(tile.width):
        # There is no maximum where all is NaN or -inf.
        if tile.counts[k] and lies_within(tile.pivot[k], call.n_classes):
            dense = dense_masses(call, tile, k, tile.pivot[k], 1, &room)[0]
            others = settled(tile.mass[k] - dense, tile.mass_lost[k])
            if floating is float:
                # Where the target and the softmax put nearly all on one class, the sum of the masses is too
                # coarse: what it may have lost counts beside the two terms of the gradient (`finish_pivots`).
                terms = max(others, dense * tile.rest[k] * tile.inverse[k])
                if sum_loses(call) * tile.mass[k] > 2e-8 * terms and call.n_classes == call.n_all_classes:
                    others = mass_without(call, tile, k, tile.pivot[k], like)
            scale = dense_scale_of(call, tile, k, &unused)
            tile.pivot_mass[k] += scale * dense
            tile.other_mass[k] += scale * others


cdef inline bint has_other_masses(const Call* call) noexcept nogil:
    """Whether classes that are no pivot may have masses."""
    return call.has_dense or call.n_chosen > 0 or call.z_loss != 0 or needs_logits(call)


cdef inline double target_softmax(double pivot_logit, double row_max, double inverse) noexcept nogil:
    """Softmax of a target, as precise as a float is: enough for 1 - softmax, where it is at most 1/2."""
    cdef float gap = <float> (pivot_logit - row_max)
    # e**-87 is near the smallest normal number.
    return inverse * exp_scaled(
        gap, <float> 0, round_shift[float](0) + exponent_bias[float](0), <float> -87
    )


cdef inline void finish_pivots(const Call* call, Tile* tile, floating like) noexcept nogil:
    """Gradients at the pivots, rounded to the type of `like`.

    There, total * softmax - mass may cancel: softmax may be nearly 1, and a mass nearly the total. It is
    (total - mass) * softmax - mass * (1 - softmax), whose first difference is known as the mass of the other
    classes, and whose second is the softmax of the others.
    """
    cdef double softmax[TILE]
    cdef double others[TILE]
    cdef bint is_maximum
    cdef Py_ssize_t k
    if call.target == NULL:
        for k in range(tile.lanes):
            softmax[k] = tile.inverse[k]
            others[k] = tile.rest[k] * tile.inverse[k]
    else:
        if floating is float and not has_other_masses(call):
            for k in range(tile.lanes):
                softmax[k] = target_softmax(tile.pivot_logit[k], tile.row_max[k], tile.inverse[k])
        else:
            for k in range(tile.lanes):
                softmax[k] = decay_of(tile.pivot_logit[k], tile.row_max[k], like) * tile.inverse[k]
        for k in range(tile.lanes):
            is_maximum = tile.pivot_logit[k] == tile.row_max[k]
            others[k] = tile.rest[k] * tile.inverse[k] if is_maximum else 1.0 - softmax[k]
    for k in range(tile.width):
        tile.pivot_gradient[k] = <floating> (
            tile.scale[k] * (softmax[k] * tile.other_mass[k] - tile.pivot_mass[k] * others[k])
        )
    if changes_logits(call):
        for k in range(tile.width):
            tile.pivot_gradient[k] = <floating> tile.pivot_gradient[k] * <floating> tile.pivot_slope[k]


# ---------------------------------------------------------------------------------------------
# Statistics


cdef inline void rank_without_order(
    const Call* call, Tile* tile, Py_ssize_t k, floating like
) noexcept nogil:
    """Prediction and rank of a position that has NaN or an infinite maximum. NaN ranks first, as in NumPy."""
    cdef floating logit
    cdef floating best = NAN
    cdef double pivot_logit = tile.pivot_logit[k]
    cdef Py_ssize_t c
    tile.rank[k] = tile.argmax[k] = 0
    for c in range(call.n_classes):
        logit = logit_of(call, tile, k, c, like)
        transform(call, <const floating*> &logit, 1, &logit, <floating*> NULL)
        if c == 0 or logit > best or (logit != logit and best == best):
            tile.argmax[k] = <double> c
            best = logit
        if logit != logit:
            tile.rank[k] += pivot_logit == pivot_logit or c < tile.pivot[k]
        elif pivot_logit == pivot_logit:
            tile.rank[k] += comes_before(logit, c, pivot_logit, tile.pivot[k])


cdef inline void finish_moments(const Call* call, const Tile* tile, floating like) noexcept nogil:
    """Write the statistics of a tile's positions that are made of squares; for ignored ones 0.

    The Brier score is the sum of (softmax_c - [c is the target])**2. At the maximum, the target's term is the
    square of the probability of the others: nothing cancels. Elsewhere its probability is at most 1/2. The
    slope is the derivative of the loss by the logarithm of a factor of the logits.
    """
    cdef const StatsOut* out = &call.stats_out
    cdef double confidence, brier_score, slope, variance, mean_gap, probability, inverse
    cdef Py_ssize_t k
    for k in range(tile.width):
        confidence = brier_score = slope = variance = 0
        if tile.counts[k]:
            confidence = inverse = tile.inverse[k]
            if <double> tile.pivot[k] == tile.argmax[k]:
                brier_score = (tile.rest[k] * tile.rest[k] + tile.squares[k]) * inverse * inverse
            else:
                probability = decay_of(tile.pivot_logit[k], tile.row_max[k], like) * inverse
                brier_score = (1.0 + tile.squares[k]) * inverse * inverse + (1.0 - 2.0 * probability)
            # Of the logits, below the maximum.
            mean_gap = tile.spread[k] * inverse
            slope = (tile.row_max[k] - tile.pivot_logit[k]) - mean_gap
            variance = tile.spread_2[k] * inverse - mean_gap * mean_gap
            variance = 0.0 if variance < 0 else variance
        (<floating*> out.confidence)[tile.first + k] = <floating> confidence
        (<floating*> out.brier_score)[tile.first + k] = <floating> brier_score
        (<floating*> out.slope)[tile.first + k] = <floating> slope
        (<floating*> out.variance)[tile.first + k] = <floating> variance


cdef inline double entropy_at(const Tile* tile, Py_ssize_t k) noexcept nogil:
    """Entropy of the softmax of a position."""
    return tile.log_normalizer[k] + tile.spread[k] * tile.inverse[k]


cdef inline void finish_entropies(const Call* call, const Tile* tile, floating like) noexcept nogil:
    """Write the entropies of a tile's positions; 0 for ignored ones."""
    cdef Py_ssize_t k
    for k in range(tile.width):
        (<floating*> call.entropy_out)[tile.first + k] = (
            <floating> entropy_at(tile, k) if tile.counts[k] else <floating> 0.0
        )


cdef inline void finish_stats(const Call* call, Tile* tile, floating like) noexcept nogil:
    """Write the statistics of a tile's positions; for ignored ones 0, and -1 for classes and ranks."""
    cdef const StatsOut* out = &call.stats_out
    cdef double lse, probability, entropy
    cdef Py_ssize_t k, position
    if call.has_moments:
        finish_moments(call, tile, like)
    for k in range(tile.width):
        position = tile.first + k
        lse = probability = entropy = 0
        out.prediction[position] = out.rank[position] = -1
        if tile.counts[k]:
            # Of shards, the states have it.
            if tile.rest[k] != tile.rest[k] and call.logits.start != NULL:
                rank_without_order(call, tile, k, like)
            lse = logsumexp_at(call, tile, k, like)
            probability = decay_of(tile.pivot_logit[k], tile.row_max[k], like) * tile.inverse[k]
            entropy = entropy_at(tile, k)
            out.prediction[position] = <int64_t> tile.argmax[k]
            out.rank[position] = <int64_t> tile.rank[k]
        (<floating*> out.lse)[position] = <floating> lse
        (<floating*> out.probability)[position] = <floating> probability
        (<floating*> out.entropy)[position] = <floating> entropy
