"""Parametrizations go on and off a model without moving what it computes, whatever else sits on its weights."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from wellposed.weights import DropConnect, Mixout, WeightCompander
from wellposed.weights.reparametrize import source, weighted_layers


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))


X = torch.arange(9)


class TestWeightedLayers:
    def test_linear_and_convolutional_by_default(self):
        model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Conv1d(2, 2, 1), "c": nn.ConvTranspose3d(2, 2, 1)})
        model["d"] = nn.ModuleList([nn.Embedding(2, 2), nn.LayerNorm(2), nn.BatchNorm1d(2)])
        assert [name for name, _ in weighted_layers(model)] == ["a", "b", "c"]

    def test_where_sees_every_layer_with_a_matrix_and_no_other(self):
        asked = []
        list(weighted_layers(net(), lambda name, module: asked.append(name) or True))
        assert asked == ["0", "1", "3", "5"]

    def test_nothing_chosen_is_an_error(self):
        with pytest.raises(ValueError, match="ReLU has no linear"):
            list(weighted_layers(nn.ReLU()))
        with pytest.raises(ValueError, match="`where`"):
            list(weighted_layers(net(), lambda *_: False))

    def test_a_bare_layer_is_a_model(self):
        layer = WeightCompander().apply(nn.Linear(3, 2))
        assert parametrize.is_parametrized(layer, "weight")


class TestTiedWeights:
    def tied(self):
        model = net()
        model[3].weight = model[1].weight = nn.Parameter(torch.randn(4, 4) / 2)
        model[1].in_features = model[1].out_features = model[3].in_features = 4
        model[1].bias, model[3].bias = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
        model[5] = nn.Linear(4, 2)
        return model.eval()

    @pytest.mark.parametrize("method", [WeightCompander(), Mixout(), DropConnect()], ids=lambda m: type(m).__name__)
    def test_stay_tied(self, method):
        model = self.tied()
        before = model(X)
        method.apply(model)
        assert source(model[1]) is source(model[3])
        torch.testing.assert_close(model(X), before)
        with torch.no_grad():
            source(model[1]).mul_(0.5)
        assert torch.equal(model[1].weight, model[3].weight)
        after = model(X)
        torch.testing.assert_close(copy.deepcopy(model)(X), after)
        method.remove(model)
        assert model[1].weight is model[3].weight
        assert not any(parametrize.is_parametrized(module) for module in model.modules())
        torch.testing.assert_close(model(X), after)

    def test_a_pair_is_learnt_once(self):
        model = WeightCompander().apply(self.tied())
        assert sum(name.endswith("alpha") for name, _ in model.named_parameters()) == 2


class TestOtherParametrizations:
    def test_weight_norm_under_ours_stays_and_the_function_too(self):
        model = net()
        parametrizations.weight_norm(model[1])
        before = model(X)
        WeightCompander().apply(model)
        assert len(model[1].parametrizations["weight"]) == 2
        torch.testing.assert_close(model(X), before)
        WeightCompander().remove(model)
        assert len(model[1].parametrizations["weight"]) == 1
        assert not parametrize.is_parametrized(model[3])
        torch.testing.assert_close(model(X), before)

    def test_one_put_on_over_ours_stays(self):
        model = WeightCompander().apply(net())
        with torch.no_grad():
            source(model[1]).mul_(2)
        parametrize.register_parametrization(model[1], "weight", Doubled())
        before = model(X)
        WeightCompander().remove(model)
        assert isinstance(model[1].parametrizations["weight"][0], Doubled)
        torch.testing.assert_close(model(X), before)

    def test_ours_go_off_one_by_one(self):
        model, first, second = net().eval(), WeightCompander(), Mixout()
        second.apply(first.apply(model))
        before = model(X)
        first.remove(model)
        torch.testing.assert_close(model(X), before)
        with pytest.raises(ValueError, match="no weight"):
            first.remove(model)
        second.remove(model)
        torch.testing.assert_close(model(X), before)

    def test_one_that_cannot_be_set_is_refused_and_nothing_moves(self):
        model = net()
        parametrize.register_parametrization(model[5], "weight", Doubled())
        before, keys = model(X), list(model.state_dict())
        with pytest.raises(ValueError, match=r"'5'.*Doubled"):
            WeightCompander().apply(model)
        torch.testing.assert_close(model(X), before)
        assert list(model.state_dict()) == keys
        assert isinstance(model[5].parametrizations["weight"][0], Doubled)

    def test_noise_needs_nothing_to_be_set(self):
        model = net().eval()
        parametrize.register_parametrization(model[5], "weight", Doubled())
        before = model(X)
        Mixout().apply(model)
        torch.testing.assert_close(model(X), before)


class Doubled(nn.Module):
    """A parametrization without an inverse."""

    def forward(self, weight):
        return 2 * weight
