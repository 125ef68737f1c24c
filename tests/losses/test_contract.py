"""What every classification loss promises, asked of each one that ``wellposed.losses`` exports."""

import copy
import inspect
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from wellposed import losses
from wellposed.space import Choice, IntUniform, LogUniform, Uniform

N, C = 16, 5
FACTS = {"num_classes": C, "num_samples": N}
NEEDS = {"index": torch.arange(N), "step": 0}
"""What a loop would supply. One step: a loss with a memory moves it at the first call and not again."""

INFINITE_UNDER_MASKS = {
    "LabelSmoothing": "every class, masked ones too, gets a share of the target",
    "MaxSup": "the mean logit is charged",
    "Squentropy": "the logits' squares are charged",
    "SquareLoss": "the logits' squares are charged",
}

CLASSIFICATION = [
    loss
    for name in losses.__all__
    if isinstance(loss := getattr(losses, name), type) and "classification" in loss.suits
]


def build(loss, **options):
    """The loss with its defaults, and with what a recipe fills in."""
    asked = inspect.signature(loss).parameters
    return loss(**{name: fact for name, fact in FACTS.items() if name in asked}, **options)


def needs(loss, rows=N):
    """The needs that the loss names, for the first ``rows`` samples."""
    asked = list(inspect.signature(loss.forward).parameters)[2:]
    return {name: NEEDS[name][:rows] if name == "index" else NEEDS[name] for name in asked}


def value(loss, outputs, targets):
    return loss(outputs, targets, **needs(loss, len(outputs)))


@pytest.fixture
def z():
    return torch.randn(N, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def y():
    return torch.randint(C, (N,), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def q():
    """Mixtures of two classes, and of one class with itself."""
    g = torch.Generator().manual_seed(2)
    share = torch.rand(N, 1, generator=g, dtype=torch.float64)
    first, second = (F.one_hot(torch.randint(C, (N,), generator=g), C) for _ in range(2))
    return share * first + (1 - share) * second


def test_the_losses_are_found():
    assert {losses.CrossEntropy, losses.ELR} <= set(CLASSIFICATION)


@pytest.mark.parametrize("loss", CLASSIFICATION, ids=lambda loss: loss.__name__)
class TestEveryClassificationLoss:
    def test_one_hot_targets_agree_with_indices(self, loss, z, y):
        by_index, by_distribution = (value(build(loss), z, targets) for targets in (y, F.one_hot(y, C).double()))
        torch.testing.assert_close(by_distribution, by_index)

    def test_gradients_at_class_indices(self, loss, z, y):
        loss = build(loss)
        assert torch.autograd.gradcheck(lambda v: value(loss, v, y[:4]), z[:4].requires_grad_())

    def test_gradients_at_distributions(self, loss, z, q):
        loss = build(loss)
        assert torch.autograd.gradcheck(lambda v: value(loss, v, q[:4]), z[:4].requires_grad_())

    def test_second_derivatives(self, loss, z, q):
        loss = build(loss)
        assert torch.autograd.gradgradcheck(lambda v: value(loss, v, q[:2]), z[:2].requires_grad_())

    @pytest.mark.parametrize("soft", [False, True])
    def test_reductions_agree(self, loss, z, y, q, soft):
        targets = q if soft else y
        mean, total, each = (value(build(loss, reduction=name), z, targets) for name in ("mean", "sum", "none"))
        assert each.shape == (N,)
        torch.testing.assert_close(total, each.sum())
        torch.testing.assert_close(mean, each.mean())

    def test_samples_do_not_meet(self, loss, z, q):
        whole = value(build(loss, reduction="none"), z, q)
        torch.testing.assert_close(value(build(loss, reduction="none"), z[:1], q[:1]), whole[:1])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("soft", [False, True])
    def test_half_precision_is_computed_in_single(self, loss, z, y, q, dtype, soft):
        half, targets = z.to(dtype), q.to(dtype) if soft else y
        got = value(build(loss), half, targets)
        assert got.dtype == torch.float32
        assert torch.equal(got, value(build(loss), half.float(), targets.float() if soft else targets))

    @pytest.mark.parametrize("target", [0, 1, 2])
    @pytest.mark.parametrize("soft", [False, True])
    def test_probabilities_of_exactly_0_and_1_stay_finite(self, loss, target, soft):
        z = torch.tensor([[1e4, -1e4, 0.0, 1e4, 5.0]], dtype=torch.float16, requires_grad=True)
        y = torch.tensor([target])
        got = value(build(loss), z, F.one_hot(y, C).float() if soft else y)
        (grad,) = torch.autograd.grad(got, z)
        assert got.isfinite()
        assert grad.isfinite().all()

    @pytest.mark.parametrize("soft", [False, True])
    def test_a_class_at_minus_infinity_is_as_good_as_absent(self, loss, z, y, q, soft):
        if loss.__name__ in INFINITE_UNDER_MASKS:
            pytest.skip(INFINITE_UNDER_MASKS[loss.__name__])
        masked = torch.cat([z[:, :-1], torch.full((N, 1), -torch.inf, dtype=z.dtype)], 1).requires_grad_()
        y = y % (C - 1)
        targets = F.one_hot(y, C).double() if soft else y
        one = build(loss)
        got = value(one, masked, targets)
        (grad,) = torch.autograd.grad(got, masked)
        assert grad.isfinite().all()
        assert grad[:, -1].eq(0).all()
        far = torch.cat([z[:, :-1], torch.full((N, 1), -1e6, dtype=z.dtype)], 1)
        torch.testing.assert_close(got, value(build(loss), far, targets))

    def test_a_copy_computes_the_same(self, loss, z, y):
        original = build(loss)
        assert torch.equal(value(copy.deepcopy(original), z, y), value(original, z, y))

    @pytest.mark.parametrize("targets", [torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64), torch.zeros(4, 1)])
    def test_targets_of_another_shape_are_refused(self, loss, targets):
        with pytest.raises((ValueError, TypeError)):
            value(build(loss), torch.zeros(4, C), targets)

    def test_another_reduction_is_refused(self, loss):
        with pytest.raises(ValueError, match="'average'"):
            build(loss, reduction="average")

    def test_the_space_names_constructor_arguments(self, loss):
        asked = inspect.signature(loss).parameters
        for name, span in loss.space.items():
            assert name in asked
            for end in span.options if isinstance(span, Choice) else (span.low, span.high):
                build(loss, **{name: end})
            assert isinstance(span, Uniform | LogUniform | IntUniform | Choice)


def compile_all():
    """Every loss and its gradient, traced whole, against itself untraced."""
    z = torch.randn(N, C, generator=torch.Generator().manual_seed(0), requires_grad=True)
    q = z.detach().roll(1, 0).softmax(1)
    for loss in CLASSIFICATION:
        for targets in (q.argmax(1), q):
            torch._dynamo.reset()
            traced = torch.compile(build(loss), fullgraph=True, backend="eager")(z, targets, **needs(build(loss)))
            plain = value(build(loss), z, targets)
            assert torch.equal(traced, plain), loss
            assert torch.equal(*(torch.autograd.grad(v, z)[0] for v in (traced, plain))), loss


def test_every_loss_compiles_into_one_graph():
    """In a process of its own: the checks of shapes and types that the tests run under cannot be traced."""
    code = f"import runpy; runpy.run_path({__file__!r})['compile_all']()"
    subprocess.run([sys.executable, "-c", code], check=True)
