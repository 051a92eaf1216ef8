"""The sample of a stream against its definition: all rows sorted by their keys, and the longest beginning that fits."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from inazuma.rightsize.reservoir import Reservoir


def sample(sizes: dict[int, int], order: list[int], seed: int, most: int, room: int) -> list[int]:
    reservoir: Reservoir[int] = Reservoir(seed, most, room)
    for number in order:
        reservoir.add(number, sizes[number], number)
    return reservoir.items()


@pytest.mark.parametrize(("most", "room"), [(50, 10**9), (10**9, 2000), (40, 2000), (300, 10**9)])
def test_the_longest_beginning_that_fits_whatever_the_order(most, room):
    draw = random.Random(1)
    sizes = {number: draw.choice((1, 5, 50, 400)) for number in range(300)}
    keys = Reservoir(7, 1, 1)
    kept, size = [], 0
    for number in sorted(sizes, key=keys.key):
        size += sizes[number]
        if len(kept) == most or size > room:
            break
        kept.append(number)
    orders = [list(sizes), list(reversed(sizes)), draw.sample(list(sizes), len(sizes))]
    for order in orders:
        assert sample(sizes, order, 7, most, room) == sorted(kept)


def test_every_row_is_as_likely_whatever_its_length():
    """Of rows with lengths 1 and 9, over many seeds, as many of either are kept (but for the one that ends it)."""
    sizes = {number: 9 if number % 2 else 1 for number in range(200)}
    kept = [sample(sizes, list(sizes), seed, 10**9, 300) for seed in range(200)]
    odd = np.mean([number % 2 for number in itertools.chain(*kept)])
    assert 0.48 < odd < 0.515
    places = np.bincount(list(itertools.chain(*kept)), minlength=200)
    # Counts of 200 seeds, binomial with a share of about 0.3: five standard deviations.
    assert abs(places - places.mean()).max() < 5 * (200 * 0.3 * 0.7) ** 0.5


def test_another_seed_is_another_sample():
    sizes = dict.fromkeys(range(100), 1)
    assert sample(sizes, list(sizes), 0, 20, 10**9) != sample(sizes, list(sizes), 1, 20, 10**9)
