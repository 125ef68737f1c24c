"""What every penalty promises, asked of each one that ``wellposed.penalties`` exports."""

import copy
import inspect
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wellposed import penalties
from wellposed.space import Choice, IntUniform, LogUniform, Uniform
from wellposed.train.needs import needs_of

N, C = 8, 3
FACTS = {"num_classes": C, "num_samples": N}
PENALTIES = [
    penalty
    for name in penalties.__all__
    if isinstance(penalty := getattr(penalties, name), type) and issubclass(penalty, nn.Module)
]
STOPPED = {"VAT": "holds the prediction it compares with constant"}
"""Penalties whose gradient is by design not that of their value."""


class Situation:
    """A model, a batch, and whatever a penalty may name."""

    def __init__(self, dtype=torch.float64, n=N):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, C)).to(dtype)
        self.inputs = torch.randn(n, 5, dtype=dtype)
        self.targets = torch.arange(n) % C

    def supply(self, names):
        features = self.model[:2](self.inputs)
        outputs = self.model[2](features)
        losses = F.cross_entropy(outputs, self.targets, reduction="none")
        n = len(self.inputs)
        known = {
            "model": self.model, "inputs": self.inputs, "targets": self.targets, "outputs": outputs,
            "features": features, "loss": losses.mean(), "losses": losses, "index": torch.arange(n),
            "group": torch.arange(n) % 2, "teacher": copy.deepcopy(self.model).requires_grad_(False), "epoch": 0,
            "step": 0, "progress": 0.0,
        }  # fmt: skip
        return {name: known[name] for name in names}

    def value(self, penalty, seed=1):
        given = self.supply(needs_of(penalty.forward))
        torch.manual_seed(seed)
        return penalty(**given)


def build(penalty, **options):
    """The penalty with its defaults, and with what a recipe fills in."""
    asked = inspect.signature(penalty).parameters
    return penalty(**{name: fact for name, fact in FACTS.items() if name in asked}, **options)


def test_the_penalties_are_found():
    assert {penalties.NormLoss, penalties.VAT} <= set(PENALTIES)


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: p.__name__)
class TestEveryPenalty:
    def test_is_a_scalar_that_scales_with_its_strength(self, penalty):
        one, three = (Situation().value(build(penalty, strength=s)) for s in (0.5, 1.5))
        assert one.shape == ()
        assert one.item() != 0
        torch.testing.assert_close(three, 3 * one)

    def test_strength_can_be_driven(self, penalty):
        driven = build(penalty, strength=0.5)
        driven.strength = 1.5
        torch.testing.assert_close(Situation().value(driven), Situation().value(build(penalty, strength=1.5)))

    def test_without_strength_it_is_a_zero_that_draws_and_computes_nothing(self, penalty):
        situation, off = Situation(), build(penalty, strength=0.0)
        given = situation.supply(needs_of(off.forward))
        state = torch.get_rng_state()
        passes = []
        situation.model.register_forward_hook(lambda *_: passes.append(1))
        value = off(**given)
        assert value.shape == ()
        assert value.item() == 0
        assert value.grad_fn is None
        assert not passes
        assert torch.equal(torch.get_rng_state(), state)

    def test_strength_comes_first_and_is_not_negative(self, penalty):
        assert next(iter(inspect.signature(penalty).parameters)) == "strength"
        with pytest.raises(ValueError, match="strength=-1"):
            build(penalty, strength=-1.0)

    def test_its_gradient_is_that_of_its_value(self, penalty):
        """Along a random direction in the parameters, by central differences."""
        if penalty.__name__ in STOPPED:
            pytest.skip(STOPPED[penalty.__name__])
        situation, made = Situation(), build(penalty, strength=0.7)
        parameters = list(situation.model.parameters())
        gradients = torch.autograd.grad(situation.value(made), parameters, allow_unused=True, materialize_grads=True)
        direction = [torch.randn_like(p) for p in parameters]
        ends = []
        for h in (1e-5, -2e-5):
            with torch.no_grad():
                torch._foreach_add_(parameters, direction, alpha=h)
            ends.append(situation.value(made).item())
        slope = sum((g * d).sum().item() for g, d in zip(gradients, direction, strict=True))
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(slope, rel=1e-5, abs=1e-8)

    def test_copies_and_restored_states_agree(self, penalty):
        made = build(penalty, strength=0.7)
        value = Situation().value(made)
        other = build(penalty, strength=0.7)
        other.load_state_dict(made.state_dict())
        assert torch.equal(Situation().value(copy.deepcopy(made)), value)
        assert torch.equal(Situation().value(other), value)

    def test_one_sample_gives_a_finite_value_and_gradient(self, penalty):
        situation = Situation(n=1)
        value = situation.value(build(penalty))
        assert torch.isfinite(value)
        if value.requires_grad:
            value.backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in situation.model.parameters())

    def test_runs_under_autocast(self, penalty):
        situation = Situation(torch.float32)
        plain = situation.value(build(penalty))
        with torch.autocast("cpu", torch.bfloat16):
            cast = situation.value(build(penalty))
        cast.backward()
        assert cast.dtype == torch.float32
        torch.testing.assert_close(cast, plain, rtol=0.1, atol=1e-3)

    def test_frozen_models_are_fine(self, penalty):
        situation = Situation()
        situation.model[0].requires_grad_(False)
        assert torch.isfinite(situation.value(build(penalty)))

    def test_declares_what_a_search_needs(self, penalty):
        arguments = inspect.signature(penalty).parameters
        assert "strength" in penalty.space
        for name, range_ in penalty.space.items():
            assert name in arguments
            assert isinstance(range_, Uniform | LogUniform | IntUniform | Choice)
        assert set(penalty.suits) <= {"classification", "regression", "table", "image"}
        assert all(isinstance(reason, str) for reason in getattr(penalty, "exempt", {}).values())


def compile_all():
    """Every penalty that does not say why not, and its gradient, traced whole, against itself untraced."""
    for penalty in PENALTIES:
        if "compile" in getattr(penalty, "exempt", {}):
            continue
        situation, made = Situation(), build(penalty)
        parameters = list(situation.model.parameters())
        torch._dynamo.reset()
        values = []
        for called in (made, torch.compile(made, fullgraph=True, backend="eager")):
            given = situation.supply(needs_of(made.forward))
            torch.manual_seed(1)
            values.append(called(**given))
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*(torch.autograd.grad(v, parameters, materialize_grads=True) for v in values))


def test_every_penalty_compiles_into_one_graph_or_says_why_not():
    """In a process of its own: the checks of shapes and types that the tests run under cannot be traced."""
    code = f"import runpy; runpy.run_path({__file__!r})['compile_all']()"
    subprocess.run([sys.executable, "-c", code], check=True)
