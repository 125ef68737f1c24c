"""Cutout and FeatureMask: how much they erase, where, and how often."""

import math

import pytest
import torch

from wellposed.data import Cutout, FeatureMask


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def erased(transform: Cutout, n: int, h: int, w: int, c: int = 1) -> torch.Tensor:
    out, _ = transform(torch.ones(n, c, h, w), torch.zeros(n))
    return out == 0


def squares(h: int, w: int, length: int) -> set[frozenset[tuple[int, int]]]:
    """Every set of pixels a square can erase, from the definition, centre by centre and pixel by pixel."""
    found = set()
    for cy in range(h):
        for cx in range(w):
            y0, x0 = cy - length // 2, cx - length // 2
            pixels = [(y, x) for y in range(h) for x in range(w) if 0 <= y - y0 < length and 0 <= x - x0 < length]
            found.add(frozenset(pixels))
    return found


@pytest.mark.parametrize(("h", "w", "length"), [(8, 8, 3), (6, 9, 4), (5, 5, 8), (7, 4, 1)])
def test_cutout_erases_exactly_the_squares_of_the_definition(h, w, length):
    masks = erased(Cutout(length, generator=seeded()), 2000, h, w)[:, 0]
    seen = {frozenset(map(tuple, mask.nonzero().tolist())) for mask in masks}
    assert seen == squares(h, w, length)


def test_all_channels_lose_the_same_square_and_the_rest_is_untouched():
    x = torch.randn(50, 3, 8, 8, generator=seeded(1))
    out, _ = Cutout(4, generator=seeded())(x, torch.zeros(50))
    gone = out == 0
    assert torch.equal(gone[:, 0], gone[:, 1])
    assert torch.equal(gone[:, 0], gone[:, 2])
    assert torch.equal(out[~gone], x[~gone])


def test_the_square_is_whole_exactly_when_its_centre_is_far_from_the_border():
    size, length = 12, 4
    masks = erased(Cutout(length, generator=seeded()), 3000, size, size)[:, 0]
    counts = masks.flatten(1).sum(1)
    assert counts.max() == length**2
    whole = (size - length + 1) ** 2 / size**2
    assert (counts == length**2).double().mean().item() == pytest.approx(whole, abs=4 * math.sqrt(whole / 3000))


@pytest.mark.parametrize(("h", "w", "length"), [(32, 32, 16), (20, 12, 6)])
def test_the_expected_area_for_an_even_side(h, w, length):
    n = 20000
    area = erased(Cutout(length, generator=seeded()), n, h, w).flatten(1).sum(1).double()
    half = length // 2
    expected = (length * h - half**2) / h * (length * w - half**2) / w
    assert area.mean().item() == pytest.approx(expected, abs=4 * area.std().item() / math.sqrt(n))


def test_centres_are_uniform_over_the_pixels():
    n, h, w = 12000, 4, 5
    hit = erased(Cutout(1, generator=seeded()), n, h, w).sum(0).double().flatten()
    statistic = ((hit - n / (h * w)) ** 2 / (n / (h * w))).sum().item()
    assert statistic < 45  # 99.9 % of chi-square with 19 degrees of freedom is 43.8


def test_more_holes_erase_more_and_length_zero_nothing():
    x = torch.rand(200, 1, 16, 16) + 0.1
    areas = [(Cutout(4, holes, generator=seeded())(x, x)[0] == 0).sum().item() for holes in (1, 2, 4)]
    assert areas[0] < areas[1] < areas[2]
    assert Cutout(0)(x, x)[0] is x


def test_a_square_larger_than_the_image_erases_it():
    assert erased(Cutout(40), 5, 8, 8).all()


def test_infinite_pixels_outside_the_square_stay():
    x = torch.full((20, 1, 9, 9), math.inf)
    out, _ = Cutout(3, generator=seeded())(x, x)
    assert torch.isinf(out).flatten(1).any(1).all()


@pytest.mark.parametrize(("p", "d", "k"), [(0.1, 20, 2), (0.1, 4, 1), (0.5, 7, 4), (0.99, 5, 4), (0.3, 10, 3)])
def test_every_row_loses_the_stated_number_of_features(p, d, k):
    out, _ = FeatureMask(p, generator=seeded())(torch.ones(300, d), torch.zeros(300))
    assert (out == 0).sum(1).tolist() == [k] * 300


def test_every_subset_of_features_is_as_likely():
    n = 10000
    out, _ = FeatureMask(0.4, generator=seeded())(torch.ones(n, 5), torch.zeros(n))
    code = ((out == 0) * torch.tensor([1, 2, 4, 8, 16])).sum(1)
    counts = torch.stack([(code == c).sum() for c in code.unique()]).double()
    assert len(counts) == math.comb(5, 2)
    assert ((counts - n / 10) ** 2 / (n / 10)).sum().item() < 28  # 99.9 % of chi-square with 9 degrees is 27.9


def test_what_a_row_keeps_is_not_rescaled():
    x = torch.randn(64, 10, generator=seeded(2))
    out, _ = FeatureMask(0.3, generator=seeded())(x, x)
    kept = out != 0
    assert torch.equal(out[kept], x[kept])


def test_a_single_feature_and_p_zero_are_left_alone():
    x = torch.randn(6, 1)
    assert FeatureMask(0.5)(x, x)[0] is x
    x = torch.randn(6, 4)
    assert FeatureMask(0.0)(x, x)[0] is x


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="length=-1"):
        Cutout(-1)
    with pytest.raises(ValueError, match="holes=0"):
        Cutout(4, 0)
    with pytest.raises(ValueError, match=r"p=1\.0.*\[0, 1\)"):
        FeatureMask(1.0)
