"""The random numbers of each episode, the inverse of the cumulative distribution, and top-k and top-p, by hand."""

from __future__ import annotations

import math

import numpy
import pytest
import torch

from rlhfctl.generation.generator import inverse_cdf, truncated, uniforms


def test_noise_is_that_of_its_seed_stream_and_episode() -> None:
    given = uniforms(3, 0, 5, 40)
    assert numpy.array_equal(given, uniforms(3, 0, 5, 40)) and numpy.array_equal(given[:7], uniforms(3, 0, 5, 7))
    assert given.min() >= 0 and given.max() < 1
    others = [uniforms(4, 0, 5, 40), uniforms(3, 1, 5, 40), uniforms(3, 1 << 32, 5, 40)]
    others += [uniforms(3, 0, episode, 40) for episode in range(5)]
    numbers = numpy.concatenate([given, *others])
    assert len(set(numbers.tolist())) == len(numbers)  # no two positions of any two share a number
    many = numpy.concatenate([uniforms(0, 0, episode, 10) for episode in range(2000)])
    counts, _ = numpy.histogram(many, bins=20, range=(0, 1))
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 43.8  # chi-squared with 19 degrees of freedom, p = 0.001


def test_inverse_cdf_on_numbers_by_hand() -> None:
    probabilities = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    almost = math.nextafter(1.0, 0.0)
    noise = [0.0, 0.2, 0.25, 0.5, 0.7499, 0.75, 0.9, almost]
    given = inverse_cdf(probabilities.repeat(len(noise), 1), torch.tensor(noise, dtype=torch.float64))
    assert given.tolist() == [1, 1, 3, 3, 3, 4, 4, 4]
    # what top-k and top-p leave does not add up to 1: shares of what is left
    assert inverse_cdf(torch.tensor([[0.1, 0.0, 0.1]] * 3), torch.tensor([0.0, 0.49, 0.51])).tolist() == [0, 0, 2]
    alone = torch.zeros(2, 5)
    alone[:, 3] = 1e-30
    assert inverse_cdf(alone, torch.tensor([0.0, almost], dtype=torch.float64)).tolist() == [3, 3]


def test_no_token_of_probability_zero_is_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        probabilities = torch.rand(4000, 50, generator=generator, dtype=dtype).softmax(-1)
        probabilities *= torch.rand(4000, 50, generator=generator) < 0.2
        probabilities[:, -10:] = 0  # so that rounding up at the end would be seen
        probabilities[:, 20] += 1e-9
        noise = torch.rand(4000, generator=generator, dtype=torch.float64)
        noise[:1000], noise[1000:2000] = 0.0, math.nextafter(1.0, 0.0)
        given = inverse_cdf(probabilities, noise)
        assert bool((probabilities.gather(-1, given[:, None]) > 0).all())


def test_frequencies_are_the_probabilities() -> None:
    n, shares = 20000, [0.5, 0.3, 0.15, 0.05]
    noise = torch.tensor([uniforms(1, 0, episode, 1)[0] for episode in range(n)])
    given = inverse_cdf(torch.tensor([shares]).repeat(n, 1), noise).tolist()
    for token, share in enumerate(shares):
        assert given.count(token) / n == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5)


def test_truncation_keeps_the_likeliest_by_hand() -> None:
    given = torch.tensor([[0.1, 0.4, 0.05, 0.25, 0.2]])
    assert torch.equal(truncated(given, 0, 1.0), given)
    assert truncated(given, 2, 1.0).tolist() == [pytest.approx([0, 0.4, 0, 0.25, 0])]
    assert truncated(given, 9, 1.0).tolist() == [pytest.approx(given[0].tolist())]
    assert truncated(given, 0, 0.6).tolist() == [pytest.approx([0, 0.4, 0, 0.25, 0])]  # the one that reaches 0.6
    assert truncated(given, 0, 0.66).tolist() == [pytest.approx([0, 0.4, 0, 0.25, 0.2])]
    assert truncated(given, 0, 1e-6).tolist() == [pytest.approx([0, 0.4, 0, 0, 0])]
    # top-p within what top-k left: 0.4 of 0.85 is less than half, 0.65 is more
    assert truncated(given, 3, 0.5).tolist() == [pytest.approx([0, 0.4, 0, 0.25, 0])]
    assert truncated(torch.full((1, 4), 0.25), 2, 1.0).tolist() == [[0.25, 0.25, 0, 0]]  # the first of equals
