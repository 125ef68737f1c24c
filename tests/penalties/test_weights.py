"""NormLoss and StructuredSparsity: identities, closed forms, and loops over single weights in float64."""

import math
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from wellposed.penalties import NormLoss, StructuredSparsity

ALL = ("shape", "channel", "filter", "layer")


def layers():
    """One of each kind of layer with a matrix or kernel, in float64."""
    torch.manual_seed(0)
    return nn.ModuleList(
        [
            nn.Linear(5, 3),
            nn.Conv1d(4, 6, 3),
            nn.Conv2d(4, 6, (2, 3), groups=2),
            nn.ConvTranspose2d(4, 6, 2),
            nn.ConvTranspose2d(4, 6, 2, groups=2),
            nn.Conv2d(3, 3, 3, groups=3),
        ]
    ).double()


def entries(layer):
    """Every weight as (output unit, input unit, kernel position, value), from the definition of the layer."""
    weight = layer.weight.detach()
    groups = getattr(layer, "groups", 1)
    found = []
    for at in product(*map(range, weight.shape)):
        if isinstance(layer, nn.ConvTranspose2d):
            i, o = at[0], at[1] + at[0] // (weight.shape[0] // groups) * weight.shape[1]
        else:
            o, i = at[0], at[1] + at[0] // (weight.shape[0] // groups) * weight.shape[1]
        found.append((o, i, at[2:], weight[at].item()))
    return found


def slow_norms(layer, group):
    """Root of the sum of squares of every group, and its size, one weight at a time."""
    squares, sizes = {}, {}
    for o, i, k, value in entries(layer):
        key = {"filter": o, "channel": i, "shape": (i, k), "layer": 0}[group]
        squares[key] = squares.get(key, 0.0) + value**2
        sizes[key] = sizes.get(key, 0) + 1
    return [(math.sqrt(squares[key]), sizes[key]) for key in squares]


class TestNormLoss:
    def test_equals_its_definition(self):
        model = layers()
        slow = sum((1 - norm) ** 2 for layer in model for norm, _ in slow_norms(layer, "filter"))
        assert NormLoss(0.3)(model).item() == pytest.approx(0.3 * slow, abs=1e-12)

    def test_zero_if_and_only_if_every_row_has_unit_norm(self):
        layer = nn.Linear(5, 3).double()
        with torch.no_grad():
            layer.weight /= layer.weight.norm(dim=1, keepdim=True)
        assert NormLoss(1.0)(layer).item() < 1e-30
        with torch.no_grad():
            layer.weight[1] *= 1.01
        assert NormLoss(1.0)(layer).item() == pytest.approx(1e-4)

    def test_weight_normalised_layers_of_unit_length_cost_nothing(self):
        layer = parametrizations.weight_norm(nn.Conv2d(3, 4, 3).double())
        assert NormLoss(1.0)(layer).item() > 1e-3
        with torch.no_grad():
            layer.parametrizations.weight.original0.fill_(1)
        assert NormLoss(1.0)(layer).item() < 1e-28

    def test_gradient_is_along_the_row_in_closed_form(self):
        layer = nn.Linear(5, 3).double()
        NormLoss(0.3)(layer).backward()
        w = layer.weight.detach()
        torch.testing.assert_close(layer.weight.grad, 0.6 * (1 - 1 / w.norm(dim=1, keepdim=True)) * w)
        assert layer.bias.grad is None

    def test_gradient_flow_ends_at_unit_norm_in_the_same_direction(self):
        layer = nn.Linear(5, 3).double()
        with torch.no_grad():
            layer.weight *= torch.tensor([[0.01], [1.0], [50.0]])
        start = layer.weight.detach().clone()
        optimizer = torch.optim.SGD([layer.weight], lr=0.05)
        for _ in range(400):
            optimizer.zero_grad()
            NormLoss(1.0)(layer).backward()
            optimizer.step()
        torch.testing.assert_close(layer.weight.detach(), start / start.norm(dim=1, keepdim=True))

    def test_a_row_of_zeros_has_a_finite_gradient(self):
        layer = nn.Linear(5, 3)
        nn.init.zeros_(layer.weight)
        NormLoss(1.0)(layer).backward()
        assert torch.equal(layer.weight.grad, torch.zeros(3, 5))

    def test_tied_weights_count_once_and_embeddings_and_norms_not_at_all(self):
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        second.weight = first.weight
        others = nn.Sequential(nn.Embedding(7, 4), nn.BatchNorm1d(4))
        torch.testing.assert_close(NormLoss()(nn.Sequential(first, second, others)), NormLoss()(first))
        with pytest.raises(ValueError, match="no linear or convolutional"):
            NormLoss()(others)

    def test_where_chooses_layers(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2), nn.Embedding(3, 2))
        chosen = NormLoss(where=lambda name, module: name == "2" or module is model[1])
        torch.testing.assert_close(
            chosen(model), NormLoss()(model[1]) + 1e-2 * (1 - model[2].weight.norm(dim=1)).square().sum()
        )
        with pytest.raises(ValueError, match="where"):
            NormLoss(where=lambda name, module: False)(model)

    def test_half_precision_weights_are_summed_in_float32(self):
        layer = nn.Linear(4000, 2).to(torch.float16)
        nn.init.constant_(layer.weight, 10.0)
        value = NormLoss(1.0)(layer)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(2 * (1 - math.sqrt(4e5)) ** 2, rel=1e-5)


class TestStructuredSparsity:
    @pytest.mark.parametrize("group", ALL)
    @pytest.mark.parametrize("size_scaling", [False, True])
    def test_equals_its_definition(self, group, size_scaling):
        model = layers()
        slow = sum(
            norm * (math.sqrt(size) if size_scaling else 1)
            for layer in model
            for norm, size in slow_norms(layer, group)
        )
        penalty = StructuredSparsity(0.3, (group,), size_scaling=size_scaling)
        assert penalty(model).item() == pytest.approx(0.3 * slow, abs=1e-12)

    def test_kinds_of_groups_add_up(self):
        model = layers()
        parts = [StructuredSparsity(0.3, (group,))(model) for group in ALL]
        torch.testing.assert_close(StructuredSparsity(0.3, ALL)(model), torch.stack(parts).sum())

    def test_groups_of_one_are_l1_and_one_group_is_frobenius(self):
        column, layer = nn.Linear(1, 7).double(), nn.Conv2d(2, 3, 3).double()
        torch.testing.assert_close(StructuredSparsity(1.0, ("filter",))(column), column.weight.abs().sum())
        torch.testing.assert_close(StructuredSparsity(1.0, ("layer",))(layer), layer.weight.norm())

    def test_scales_with_the_weights(self):
        model = layers()
        before = StructuredSparsity(0.3, ALL)(model)
        with torch.no_grad():
            for layer in model:
                layer.weight *= 3
        torch.testing.assert_close(StructuredSparsity(0.3, ALL)(model), 3 * before)

    def test_zero_groups_have_a_finite_gradient(self):
        layer = nn.Conv2d(2, 3, 3)
        nn.init.zeros_(layer.weight)
        StructuredSparsity(1.0, ALL)(layer).backward()
        assert torch.equal(layer.weight.grad, torch.zeros_like(layer.weight))

    @pytest.mark.parametrize("group", ALL)
    @pytest.mark.parametrize("size_scaling", [False, True])
    def test_proximal_step_satisfies_its_optimality_condition(self, group, size_scaling):
        """x minimises |x - w|^2 / 2 + t R(x): w - x is t dR(x) where x is not zero, and within the ball where it is."""
        t = 2.0
        for layer in layers():
            w = layer.weight.detach().clone()
            penalty = StructuredSparsity(0.15, (group,), size_scaling=size_scaling)
            threshold = 0.95 * sum(norm for norm, _ in slow_norms(layer, group)) / len(slow_norms(layer, group))
            penalty.strength = threshold / t / (math.sqrt(slow_norms(layer, group)[0][1]) if size_scaling else 1)
            before = slow_norms(layer, group)
            penalty.prox_(layer, t)
            after = slow_norms(layer, group)
            assert [b == 0 for b, _ in after] == [a <= threshold for a, _ in before]
            layer.zero_grad()
            penalty(layer).backward()
            x = layer.weight.detach()
            nonzero = layer.weight.grad != 0
            torch.testing.assert_close((w - x)[nonzero], t * layer.weight.grad[nonzero])

    def test_proximal_step_of_nested_groups_is_the_exact_one(self):
        torch.manual_seed(1)
        layer = nn.Conv2d(2, 3, 2).double()
        w = layer.weight.detach().clone()
        penalty, t = StructuredSparsity(0.1, ("shape", "channel", "layer")), 1.0
        penalty.prox_(layer, t)
        best = layer.weight.detach().clone()
        assert not torch.equal(best, w)

        def objective(x):
            with torch.no_grad():
                layer.weight.copy_(x)
            return (0.5 * (x - w).square().sum() + t * penalty(layer)).item()

        lowest = objective(best)
        for scale in (1e-4, 1e-3, 1e-2, 1e-1):
            assert all(objective(best + scale * torch.randn_like(best)) > lowest for _ in range(50))
            assert all(objective(best * (1 + s * scale)) > lowest for s in (-1, 1))

    def test_zeros_are_exact_stay_and_grow_with_the_strength(self):
        shares = []
        for strength in (0.0, 0.3, 0.6, 10.0):
            torch.manual_seed(2)
            layer = nn.Linear(6, 40)
            penalty = StructuredSparsity(strength, ("filter",))
            penalty.prox_(layer, 1.0)
            shares.append((layer.weight == 0).all(1).float().mean().item())
            zeros = layer.weight == 0
            penalty.prox_(layer, 1.0)
            assert (layer.weight[zeros] == 0).all()
            assert torch.isfinite(layer.weight).all()
        assert shares[0] == 0 < shares[1] < shares[2] < shares[3] == 1

    def test_units_without_weights_can_be_cut_out(self):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(5, 12, bias=False), nn.ReLU(), nn.Linear(12, 3))
        StructuredSparsity(0.55, ("filter",), where=lambda name, _: name == "0").prox_(model, 1.0)
        kept = model[0].weight.any(1)
        assert 0 < kept.sum() < 12
        small = nn.Sequential(nn.Linear(5, int(kept.sum()), bias=False), nn.ReLU(), nn.Linear(int(kept.sum()), 3))
        with torch.no_grad():
            small[0].weight.copy_(model[0].weight[kept])
            small[2].weight.copy_(model[2].weight[:, kept])
            small[2].bias.copy_(model[2].bias)
        x = torch.randn(9, 5)
        torch.testing.assert_close(small(x), model(x))

    def test_channels_last_weights_are_shrunk_in_place(self):
        layer = nn.Conv2d(8, 4, 3).to(memory_format=torch.channels_last)
        StructuredSparsity(100.0, ("filter",)).prox_(layer, 1.0)
        assert not layer.weight.any()

    def test_wrong_use_is_refused(self):
        with pytest.raises(ValueError, match="'row'"):
            StructuredSparsity(groups=("row",))
        with pytest.raises(ValueError, match=r"groups=\(\)"):
            StructuredSparsity(groups=())
        with pytest.raises(ValueError, match="step_size=-1"):
            StructuredSparsity().prox_(nn.Linear(2, 2), -1.0)
        with pytest.raises(ValueError, match="parametrized"):
            StructuredSparsity().prox_(parametrizations.weight_norm(nn.Linear(2, 2)), 1.0)
