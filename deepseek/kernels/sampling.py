"""What a draw asks of a whole vocabulary, in loops compiled by Numba: probabilities, the highest, the nucleus, a choice.

Nothing is put in order. The value that parts what is kept from what is not is closed in on, by half of all floats that are
left each time, and what lies above it is counted or added up, which fills vector registers.

Shape letters: N candidates, M of them that are asked for.
"""

import math

import numba
import numpy as np

from deepseek.kernels.llvm import FASTMATH, KERNEL_OPTIONS, exp

FOLD = 16  # logits of which the highest is looked at first
LOWEST = np.float32(-87)  # e to that is the least float32 of full precision


@numba.njit(fastmath=FASTMATH, **KERNEL_OPTIONS)
def softmax_entropy(logits_N):
    """(probabilities (N,), their entropy in nats) of logits; less than e**-87 of the highest counts as 0."""
    peak, total, sunk = np.float32(-np.inf), np.float32(0), np.float32(0)
    for top in _tops(logits_N, min(4 * FOLD, len(logits_N))):
        peak = max(peak, top)
    shares_N = np.empty_like(logits_N)
    for n in range(len(logits_N)):
        below = logits_N[n] - peak
        share = exp(below) if below > LOWEST else np.float32(0)
        shares_N[n] = share
        total += share
        sunk += share * max(below, LOWEST)
    for n in range(len(logits_N)):
        shares_N[n] /= total
    return shares_N, max(0.0, math.log(total) - sunk / total)


@numba.njit(**KERNEL_OPTIONS)
def top_k_indices(logits_N, count):
    """The places of the `count` highest logits, and of those as high as the lowest of these; ascending."""
    columns = len(logits_N) // FOLD
    if columns < 4 * count:
        return _reaching(logits_N, _last_of(logits_N, count))
    # Laid in columns of FOLD logits, the highest of each are many high ones: what is lower than `count` of them is not meant.
    tops = _tops(logits_N, columns)
    bound = _last_of(tops, count)
    few, found = np.empty(len(logits_N), np.int64), 0
    high = _reaching(tops, bound)
    for start in range(0, len(logits_N), columns):
        for column in high:
            n = start + column
            if n < len(logits_N) and logits_N[n] >= bound:
                few[found] = n
                found += 1
    few = few[:found]
    return few[_reaching(logits_N[few], _last_of(logits_N[few], count))]


@numba.njit(**KERNEL_OPTIONS)
def _tops(values_N, columns):
    """The highest number of each column, of all numbers laid in rows that long."""
    tops = values_N[:columns].copy()
    for start in range(columns, len(values_N), columns):
        row = values_N[start : start + columns]
        for n in range(len(row)):
            value, top = row[n], tops[n]
            tops[n] = value if value > top else top
    return tops


@numba.njit(**KERNEL_OPTIONS)
def _reaching(values_N, bound):
    """The places of the numbers of at least `bound`."""
    places, found = np.empty(len(values_N), np.int64), 0
    for n in range(len(values_N)):
        if values_N[n] >= bound:
            places[found] = n
            found += 1
    return places[:found]


@numba.njit(fastmath=FASTMATH, **KERNEL_OPTIONS)
def _last_of(values_N, count):
    """The count-th highest of some numbers."""
    low, high = _rank(-np.inf), _rank(np.inf)
    while low < high:  # the highest float that `count` numbers reach is one of them
        middle = (low + high + 1) >> 1
        bound, reached = _ranked(middle), np.float32(0)
        for n in range(len(values_N)):
            reached += np.float32(values_N[n] >= bound)
        low, high = (middle, high) if reached >= count else (low, middle - 1)
    return _ranked(low)


@numba.njit(inline="always")
def _rank(number):
    """The place of a float32 among all, lower ones before higher ones: its bits, those of negative ones turned round."""
    bits = np.int64(np.float32(number).view(np.int32))
    return bits if bits >= 0 else bits ^ 0x7FFFFFFF


@numba.njit(inline="always")
def _ranked(rank):
    """The float32 of that place."""
    return np.int32(rank if rank >= 0 else rank ^ 0x7FFFFFFF).view(np.float32)


@numba.njit(**KERNEL_OPTIONS)
def top_p_indices(shares_N, p):
    """The places of the fewest highest shares that reach `p` together, ascending; of equal ones the first."""
    low, high = 1, _rank(1)
    while low < high:  # the least float over 0 that what is above it does not reach p
        middle = (low + high) >> 1
        low, high = (middle + 1, high) if _above(shares_N, _ranked(middle)) >= p else (low, middle)
    bound = _ranked(low)
    places, found, missing = _reaching(shares_N, bound), 0, math.ceil((p - _above(shares_N, bound)) / bound)
    for n in places:
        equal = shares_N[n] == bound
        if not equal or missing > 0:
            places[found] = n
            found += 1
        missing -= equal
    return places[:found]


@numba.njit(fastmath=FASTMATH, **KERNEL_OPTIONS)
def _above(shares_N, bound):
    """What the shares higher than `bound` are together."""
    total = np.float32(0)
    for n in range(len(shares_N)):
        total += shares_N[n] * np.float32(shares_N[n] > bound)
    return total


@numba.njit(**KERNEL_OPTIONS)
def sample_index(shares_N, uniform):
    """The place on which a number from 0 to 1 falls, where the shares are laid side by side."""
    total, reached, n = 0.0, 0.0, 0
    for share in shares_N:
        total += share
    for n in range(len(shares_N)):
        reached += shares_N[n]
        if reached > uniform * total:
            break
    return n


@numba.njit(**KERNEL_OPTIONS)
def lookup_probs(ids_N, shares_N, ids_M):
    """(shares (M,), whether they have one (M,)) of some ids; those of the candidates ascend."""
    shares_M, there_M = np.empty(len(ids_M), np.float32), np.empty(len(ids_M), np.bool_)
    for m in range(len(ids_M)):
        low, high = 0, len(ids_N) - 1
        while low < high:
            middle = (low + high) >> 1
            low, high = (middle + 1, high) if ids_N[middle] < ids_M[m] else (low, middle)
        there_M[m] = ids_N[low] == ids_M[m]
        shares_M[m] = shares_N[low] if there_M[m] else 0
    return shares_M, there_M


@numba.njit(**KERNEL_OPTIONS)
def array_equal(one_N, other_M):
    """Whether two rows hold the same numbers."""
    same, n = len(one_N) == len(other_M), 0
    while same and n < len(one_N):
        same = one_N[n] == other_M[n]
        n += 1
    return same
