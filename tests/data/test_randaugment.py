"""RandAugment: every operation against PIL on 8-bit images, the draws, the identities."""

import itertools
import math
from collections import Counter

import pytest
import torch

from wellposed.data import RandAugment
from wellposed.data import randaugment as ops

WITH_MAGNITUDE = [name for name in ops.OPERATIONS if name not in ("identity", "autocontrast", "equalize")]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pixels() -> torch.Tensor:
    """8-bit images of low contrast, with a smooth part and noise, not square."""
    g = seeded(1)
    ramp = torch.linspace(40, 150, 17)[None, None, None, :] + torch.linspace(0, 30, 14)[None, None, :, None]
    return (ramp + 25 * torch.randn(5, 3, 14, 17, generator=g)).clamp(0, 255).to(torch.uint8)


def through_pil(pixels: torch.Tensor, change) -> torch.Tensor:
    """Each image through PIL, back as 8-bit values."""
    image = pytest.importorskip("PIL.Image")
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.asarray(change(image.fromarray(p.permute(1, 2, 0).numpy()))) for p in pixels]
    return torch.stack([torch.from_numpy(a.copy()).permute(2, 0, 1) for a in arrays])


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference in steps of 1/255."""
    return (ours * 255 - theirs).abs().max().item()


def factor(value: float, n: int = 5) -> torch.Tensor:
    return torch.full((n, 1, 1, 1), value)


def test_autocontrast_is_pils_up_to_its_truncation(pixels):
    imageops = pytest.importorskip("PIL.ImageOps")
    assert distance(ops.autocontrast(pixels / 255), through_pil(pixels, imageops.autocontrast)) < 1.001


def test_equalize_is_pils_exactly(pixels):
    imageops = pytest.importorskip("PIL.ImageOps")
    big = pixels.repeat(1, 1, 6, 5)
    assert distance(ops.equalize(big / 255), through_pil(big, imageops.equalize)) < 1e-3


@pytest.mark.parametrize("bits", [1, 3, 4, 7, 8])
def test_posterize_is_pils_exactly(pixels, bits):
    imageops = pytest.importorskip("PIL.ImageOps")
    theirs = through_pil(pixels, lambda image: imageops.posterize(image, bits))
    assert distance(ops.posterize(pixels / 255, bits), theirs) < 1e-3


@pytest.mark.parametrize("threshold", [0, 51, 128, 256])
def test_solarize_is_pils_exactly(pixels, threshold):
    imageops = pytest.importorskip("PIL.ImageOps")
    theirs = through_pil(pixels, lambda image: imageops.solarize(image, threshold))
    assert distance(ops.solarize(pixels / 255, threshold / 255), theirs) < 1e-3


@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
@pytest.mark.parametrize("value", [0.1, 0.64, 1.0, 1.36, 1.9])
def test_enhancements_are_pils_up_to_its_rounding(pixels, name, value):
    """PIL rounds grey, mean or smoothed image to 8 bits, then truncates the blend: 1 + |1 - factor| steps at most."""
    enhance = pytest.importorskip("PIL.ImageEnhance")
    theirs = through_pil(pixels, lambda image: getattr(enhance, name)(image).enhance(value))
    ours = getattr(ops, name.lower())(pixels / 255, factor(value))
    assert distance(ours, theirs) < 1.01 + abs(1 - value)


GEOMETRIC = [(name, sign) for name in ops.GEOMETRIC for sign in (0, 1)]


@pytest.mark.parametrize(("name", "sign"), GEOMETRIC)
@pytest.mark.parametrize("magnitude", [3, 9, 14])
def test_warps_are_pils_exactly(pixels, name, sign, magnitude):
    """Nearest neighbours from the same matrix; the fill is grey."""
    image = pytest.importorskip("PIL.Image")
    matrix = ops.matrices(magnitude, 0.43, 14, 17)[ops.GEOMETRIC.index(name), sign]
    coefficients = matrix.flatten().tolist()

    def change(one):
        return one.transform(one.size, image.Transform.AFFINE, coefficients, fillcolor=(99, 99, 99))

    ours = ops.warp(pixels / 255, matrix.expand(5, 2, 3), torch.full((3,), 99 / 255))
    assert distance(ours, through_pil(pixels, change)) < 1e-3


@pytest.mark.parametrize("sign", [0, 1])
def test_rotation_is_pils_about_the_centre(pixels, sign):
    matrix = ops.matrices(9, 0.45, 14, 17)[0, sign]
    theirs = through_pil(pixels, lambda image: image.rotate([-27, 27][sign], fillcolor=(99, 99, 99)))
    ours = ops.warp(pixels / 255, matrix.expand(5, 2, 3), torch.full((3,), 99 / 255))
    assert distance(ours, theirs) < 1e-3


def test_the_matrices_at_magnitude_ten_are_the_paper_s_largest():
    minus, plus = ops.matrices(10, 0.45, 100, 200).transpose(0, 1)
    cos, sin = math.cos(math.pi / 6), math.sin(math.pi / 6)
    torch.testing.assert_close(plus[0, :, :2], torch.tensor([[cos, -sin], [sin, cos]]))
    assert plus[1, 0, 1].item() == pytest.approx(0.3)
    assert plus[2, 1, 0].item() == pytest.approx(0.3)
    assert plus[3].tolist() == [[1, 0, 90], [0, 1, 0]]
    assert plus[4].tolist() == [[1, 0, 0], [0, 1, 45]]
    torch.testing.assert_close(minus[1:, :, 2], -plus[1:, :, 2])


def only(name: str, magnitude: int, images: torch.Tensor, monkeypatch, **options) -> torch.Tensor:
    """What RandAugment makes of images for all of which ``name`` is drawn."""
    transform = RandAugment(1, magnitude, generator=seeded(), **options)
    index = ops.OPERATIONS.index(name)
    real = torch.randint

    def drawn(high, size, **kwargs):
        return torch.full(size, index) if high == len(ops.OPERATIONS) else real(high, size, **kwargs)

    monkeypatch.setattr(torch, "randint", drawn)
    return transform(images, torch.zeros(len(images)))[0]


@pytest.mark.parametrize("name", ["identity", *WITH_MAGNITUDE])
def test_magnitude_zero_is_the_identity_to_the_bit(name, monkeypatch):
    x = torch.rand(6, 3, 8, 9, generator=seeded(2))
    assert torch.equal(only(name, 0, x, monkeypatch), x)


@pytest.mark.parametrize(
    "name", [name for name in ops.OPERATIONS if name not in ("identity", "autocontrast", "equalize")]
)
def test_every_operation_grows_with_the_magnitude(name, monkeypatch):
    """Farther from the original on average; for the warps, more of the image is fill."""
    ramp = torch.linspace(0.05, 0.95, 32)
    x = (ramp[:, None] * torch.tensor([1.0, 0.6, 0.3])[:, None, None] + ramp * 0.02).expand(8, 3, 32, 32).contiguous()
    change = []
    for magnitude in (0, 3, 6, 10):
        with monkeypatch.context() as patch:
            change.append((only(name, magnitude, x, patch) - x).abs().mean().item())
    assert change[0] == 0
    assert all(a < b for a, b in itertools.pairwise(change))


@pytest.mark.parametrize("magnitude", [10, 20, 30])
def test_magnitudes_beyond_ten_stay_within_the_range(magnitude):
    x = torch.rand(64, 3, 8, 8, generator=seeded(2))
    out, _ = RandAugment(3, magnitude, generator=seeded())(x, x)
    assert out.min() >= 0
    assert out.max() <= 1


def test_enhancing_factors_and_bits_at_the_row_s_settings(monkeypatch):
    """Brightness scales by 1 +- 0.9 level (not below 0.1), posterize keeps 8 - 4 level bits."""
    half = torch.full((200, 1, 4, 4), 0.25)
    for magnitude, expected in ((9, {0.25 * 0.19, 0.25 * 1.81}), (28, {0.025, 0.25 * 3.52})):
        with monkeypatch.context() as patch:
            seen = {round(v, 4) for v in only("brightness", magnitude, half, patch).unique().tolist()}
        assert seen == {round(v, 4) for v in expected}
    levels = torch.arange(256.0).view(1, 1, 16, 16) / 255
    for magnitude, bits in ((2, 7), (10, 4), (30, 1)):
        with monkeypatch.context() as patch:
            assert len(only("posterize", magnitude, levels, patch).unique()) == 2**bits


def test_operations_and_signs_are_uniform_and_independent(monkeypatch):
    counts: Counter[tuple[int, int]] = Counter()

    def count(self, images, drawn, sign):
        counts.update(zip(drawn.tolist(), sign.tolist(), strict=True))

    monkeypatch.setattr(RandAugment, "_layer", count)
    n = 7000
    RandAugment(4, generator=seeded())(torch.zeros(n, 1, 2, 2), torch.zeros(n))
    cells = len(ops.OPERATIONS) * 2
    expected = 4 * n / cells
    assert len(counts) == cells
    statistic = sum((c - expected) ** 2 / expected for c in counts.values())
    assert statistic < 56  # 99.9 % of chi-square with 27 degrees of freedom is 55.5


def test_images_of_a_batch_get_operations_of_their_own():
    x = torch.rand(1, 3, 16, 16, generator=seeded(3)).expand(100, 3, 16, 16)
    out, _ = RandAugment(1, generator=seeded())(x, x)
    kinds = len(torch.unique(out.flatten(1), dim=0))
    assert kinds == 1 + 2 + 2 + 9 * 2  # identity, two without a magnitude, posterize and solarize, nine with a sign


def test_the_batch_is_what_its_images_are_one_by_one(monkeypatch):
    """Grouping by operation mixes nothing up: each image equals the operation drawn for it, alone."""
    x = torch.rand(40, 3, 10, 12, generator=seeded(4))
    transform = RandAugment(1, 7)
    drawn = torch.randint(len(ops.OPERATIONS), (40,), generator=seeded(5))
    sign = torch.randint(2, (40,), generator=seeded(6)) * 2 - 1
    together = x.clone()
    transform._layer(together, drawn, sign)
    for i in range(40):
        alone = x[i : i + 1].clone()
        transform._layer(alone, drawn[i : i + 1], sign[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-6, rtol=0)


def test_num_ops_zero_is_the_identity():
    x = torch.rand(4, 3, 8, 8)
    assert RandAugment(0)(x, x)[0] is x


def test_color_does_nothing_to_one_channel(monkeypatch):
    x = torch.rand(6, 1, 8, 8, generator=seeded(2))
    assert torch.equal(only("color", 9, x, monkeypatch), x)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_numbers_of_channels_are_handled(channels):
    x = torch.rand(64, channels, 8, 8, generator=seeded(2))
    out, _ = RandAugment(2, generator=seeded())(x, x)
    assert out.shape == x.shape
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (1, 9)])
def test_tiny_images_are_handled(size):
    x = torch.rand(64, 3, *size, generator=seeded(2))
    out, _ = RandAugment(2, generator=seeded())(x, x)
    assert out.shape == x.shape


@pytest.mark.parametrize(
    ("low", "high"),
    [(-1.0, 1.0), ((-2.1, -2.0, -1.8), (2.2, 2.4, 2.6)), (0.0, 255.0)],
    ids=["signed", "normal", "bytes"],
)
def test_a_value_range_commutes_with_the_augmentation(low, high):
    """Normalise then augment equals augment then normalise, on 8-bit values, but where rounding meets a threshold."""
    u = torch.randint(256, (60, 3, 12, 12), generator=seeded(2), dtype=torch.uint8).double() / 255
    bottom, top = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (low, high))
    plain, _ = RandAugment(1, generator=seeded())(u, u)
    ranged, _ = RandAugment(1, low=low, high=high, generator=seeded())(u * (top - bottom) + bottom, u)
    torch.testing.assert_close((ranged - bottom) / (top - bottom), plain, atol=1e-9, rtol=0)


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="num_ops=-1"):
        RandAugment(-1)
    with pytest.raises(ValueError, match=r"low=1\.0, high=0\.0"):
        RandAugment(low=1.0, high=0.0)
