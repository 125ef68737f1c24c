"""What every method on weights promises, asked of each one that ``wellposed.weights`` exports."""

import copy
import inspect
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from wellposed import weights
from wellposed.space import Choice, IntUniform, LogUniform, Uniform
from wellposed.weights.reparametrize import source

METHODS = [
    method
    for name in weights.__all__
    if isinstance(method := getattr(weights, name), type) and hasattr(method, "apply") and hasattr(method, "remove")
]
X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 8), nn.ReLU(),
        nn.Linear(8, 2),
    )  # fmt: skip


def trained(model):
    """The model after a few steps."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    return model


def test_the_methods_are_found():
    assert {weights.Mixout, weights.WeightCompander} <= set(METHODS)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
class TestEveryMethodOnWeights:
    def test_goes_on_and_off_in_place_without_moving_the_outputs(self, method):
        model = trained(net()).eval()
        before, keys = model(X), list(model.state_dict())
        made = method()
        assert made.apply(model) is model
        torch.testing.assert_close(model(X), before)
        trained(model).eval()
        after = model(X)
        assert not torch.allclose(after, before)
        assert made.remove(model) is model
        torch.testing.assert_close(model(X), after)
        assert list(model.state_dict()) == keys
        assert all(isinstance(layer.weight, nn.Parameter) for layer in (model[0], model[4], model[6]))

    def test_optimizers_built_before_keep_the_weights(self, method):
        model = net()
        held = {id(p) for p in model.parameters()}
        method().apply(model)
        assert all(id(source(model[at])) in held for at in (0, 4, 6))
        method().remove(model)
        assert {id(p) for p in model.parameters()} == held

    def test_state_dict_goes_into_a_fresh_model(self, method):
        model, other = (method().apply(net(seed)) for seed in (0, 7))
        trained(model).eval()
        other.load_state_dict(model.state_dict())
        assert torch.equal(other.eval()(X), model(X))

    def test_copies_are_independent(self, method):
        model = method().apply(net())
        twin = copy.deepcopy(model).eval()
        before = twin(X)
        trained(model).eval()
        assert torch.equal(twin(X), before)
        method().remove(twin)
        torch.testing.assert_close(twin(X), before)
        assert parametrize.is_parametrized(model[4])

    def test_twice_is_refused_and_changes_nothing(self, method):
        model = net()
        made = method()
        made.apply(model, where=lambda name, _: name == "6")
        keys = list(model.state_dict())
        with pytest.raises(ValueError, match=r"'6'.*already"):
            made.apply(model)
        assert list(model.state_dict()) == keys

    def test_where_chooses(self, method):
        model = method().apply(net(), where=lambda name, module: isinstance(module, nn.Linear) and name != "6")
        assert [n for n, m in model.named_modules() if parametrize.is_parametrized(m, "weight")] == ["4"]

    def test_nothing_to_apply_to_or_to_remove_is_an_error(self, method):
        with pytest.raises(ValueError, match="no linear"):
            method().apply(nn.ReLU())
        with pytest.raises(ValueError, match="no weight"):
            method().remove(net())

    def test_frozen_weights_stay_frozen(self, method):
        model = net()
        model[4].requires_grad_(False)
        method().apply(model)
        assert not source(model[4]).requires_grad
        method().remove(model)
        assert not model[4].weight.requires_grad
        assert model[6].weight.requires_grad

    def test_trains_under_autocast(self, method):
        model = method().apply(net())
        with torch.autocast("cpu", torch.bfloat16):
            value = model(X).float().square().mean()
        value.backward()
        assert torch.isfinite(value)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())

    def test_declares_what_a_search_needs(self, method):
        arguments = inspect.signature(method).parameters
        for name, range_ in method.space.items():
            assert name in arguments
            assert isinstance(range_, Uniform | LogUniform | IntUniform | Choice)
        assert set(method.suits) <= {"classification", "regression", "table", "image"}


def compile_all():
    """A model under every method, in training, traced whole, against itself untraced."""
    for method in METHODS:
        model = method().apply(net())
        parameters = list(model.parameters())
        torch._dynamo.reset()
        values = []
        for called in (model, torch.compile(model, fullgraph=True, backend="eager")):
            torch.manual_seed(1)
            values.append(called(X).square().mean())
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*(torch.autograd.grad(v, parameters) for v in values))


def test_models_under_every_method_compile_into_one_graph():
    """In a process of its own: the checks of shapes and types that the tests run under cannot be traced."""
    code = f"import runpy; runpy.run_path({__file__!r})['compile_all']()"
    subprocess.run([sys.executable, "-c", code], check=True)
