"""Continual backpropagation: what a replacement keeps, against the algorithm in loops, and its bookkeeping."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from wellposed.adapt import ContinualBackprop
from wellposed.train import Trainer


def mlp(*middle):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), *middle, nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def batch(n=12, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, generator=g, dtype=torch.float64), torch.randn(n, 2, generator=g, dtype=torch.float64)


def train(model, optimizer, renewal, steps, start=0):
    for step in range(start, start + steps):
        x, y = batch(seed=step)
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        renewal.step()


class Slow:
    """Continual backpropagation of one layer from its definition, one number at a time."""

    def __init__(self, units, rho, decay, maturity, utility):
        self.rho, self.decay, self.maturity, self.utility = rho, decay, maturity, utility
        self.age, self.mean, self.worth, self.fraction = [0] * units, [0.0] * units, [0.0] * units, 0.0

    def step(self, h, into, out):
        """Account for outputs ``h`` (batch, units); return the units to replace and all corrected mean outputs."""
        eta, means = self.decay, []
        for i in range(len(self.age)):
            column = [row[i] for row in h]
            self.age[i] += 1
            self.mean[i] = eta * self.mean[i] + (1 - eta) * sum(column) / len(column)
            means.append(self.mean[i] / (1 - eta ** self.age[i]))
            value = sum(abs(row[i]) for row in out)
            if self.utility == "adaptable":
                value *= sum(abs(v - means[i]) for v in column) / len(column) / sum(abs(v) for v in into[i])
            else:
                value *= sum(abs(v) for v in column) / len(column)
            self.worth[i] = eta * self.worth[i] + (1 - eta) * value
        mature = [i for i, age in enumerate(self.age) if age > self.maturity]
        self.fraction += self.rho * len(mature)
        count = int(self.fraction)
        self.fraction -= count
        gone = sorted(mature, key=lambda i: self.worth[i] / (1 - eta ** self.age[i]))[:count]
        for i in gone:
            self.age[i], self.mean[i], self.worth[i] = 0, 0.0, 0.0
        return sorted(gone), means


@pytest.mark.parametrize("utility", ["adaptable", "contribution"])
def test_equals_its_definition(utility):
    """Over 60 steps the same units go, nothing else changes, and the next bias takes over exactly their mean."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    renewal = ContinualBackprop(0.04, 0.9, 5, utility)
    renewal.attach(model, optimizer)
    slow, replaced = Slow(8, 0.04, 0.9, 5, utility), 0
    for step in range(60):
        x, y = batch(seed=step)
        h = model[:2](x).tolist()
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        into, bias, out, last = (p.detach().clone() for p in model.parameters())
        gone, means = slow.step(h, into.tolist(), out.tolist())
        renewal.step()
        kept = [i for i in range(8) if i not in gone]
        assert (model[0].weight[gone] != into[gone]).all()
        assert torch.equal(model[0].weight[kept], into[kept])
        assert torch.equal(model[0].bias[kept], bias[kept])
        assert torch.equal(model[2].weight[:, kept], out[:, kept])
        assert not model[2].weight[:, gone].any()
        assert not model[0].bias[gone].any()
        wanted = last + sum((out[:, i] * means[i] for i in gone), torch.zeros_like(last))
        torch.testing.assert_close(model[2].bias.detach(), wanted)
        (state,) = renewal.state_dict()["layers"]
        assert state["age"].tolist() == slow.age
        assert state["mean"].flatten().tolist() == pytest.approx(slow.mean)
        assert state["utility"].tolist() == pytest.approx(slow.worth)
        assert state["fraction"] == pytest.approx(slow.fraction)
        replaced += len(gone)
    assert replaced > 10


def conv_flat():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))


def conv_conv():
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.GELU(), nn.Dropout(0.0), nn.Conv2d(4, 3, 1))


def conv_norm_conv():
    return nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))


def tokens():
    return nn.Sequential(nn.Flatten(2), nn.Linear(36, 9), nn.SiLU(), nn.Linear(9, 3))


@pytest.mark.parametrize("make", [conv_flat, conv_conv, conv_norm_conv, tokens])
def test_replacing_every_unit_keeps_the_mean_output(make):
    """With decay 0 the mean is that of the batch, so the mean output on it stays, for every kind of layer."""
    torch.manual_seed(0)
    model = make().double()
    x = torch.randn(5, 2, 6, 6, dtype=torch.float64)
    renewal = ContinualBackprop(rho=1.0, decay=0.0, maturity=0)
    renewal.attach(model)
    before = model(x)
    renewal.step()
    after = model(x)
    assert not torch.allclose(after, before)
    dims = [d for d in range(before.ndim) if d != (1 if make in (conv_conv, conv_norm_conv) else before.ndim - 1)]
    torch.testing.assert_close(after.mean(dims), before.mean(dims))


def test_a_replaced_unit_has_its_normalisation_renewed():
    torch.manual_seed(0)
    model = conv_norm_conv()
    norm = model[1]
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.fill_(5.0)
    renewal = ContinualBackprop(rho=0.25, decay=0.0, maturity=0)
    renewal.attach(model)
    model(torch.randn(5, 2, 6, 6))
    renewal.step()
    fresh = torch.tensor([norm.weight[i] == 1 for i in range(4)])
    assert fresh.sum() == 1
    assert not norm.bias[fresh].any()
    assert not norm.running_mean[fresh].any()
    assert (norm.running_var[fresh] == 1).all()
    assert (norm.weight[~fresh] == 5).all()


@pytest.mark.parametrize(
    ("activation", "gain"),
    [
        (nn.ReLU(), 2**0.5),
        (nn.Tanh(), 5 / 3),
        (nn.LeakyReLU(0.5), (2 / 1.25) ** 0.5),
        (nn.Sigmoid(), 1),
        (nn.SELU(), 1),
    ],
)
def test_fresh_weights_are_uniform_within_the_bound(activation, gain):
    model = nn.Sequential(nn.Linear(27, 400), activation, nn.Linear(400, 1))
    nn.init.constant_(model[0].weight, 9.0)
    renewal = ContinualBackprop(rho=1.0, maturity=0)
    renewal.attach(model)
    model(torch.randn(4, 27))
    renewal.step()
    bound = gain * math.sqrt(3 / 27)
    assert 0.99 * bound < model[0].weight.abs().max().item() <= bound
    assert model[0].weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert abs(model[0].weight.mean().item()) < 0.02 * bound


def test_without_a_rate_nothing_moves_and_nothing_is_kept():
    model, twin = mlp(), mlp()
    renewal = ContinualBackprop(rho=0.0, maturity=0)
    optimizers = [torch.optim.Adam(m.parameters()) for m in (model, twin)]
    renewal.attach(model, optimizers[0])
    train(model, optimizers[0], renewal, 5)
    other = ContinualBackprop()
    other.step = lambda: None
    train(twin, optimizers[1], other, 5)
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=0, atol=0)
    assert not any(kept["age"].any() for kept in renewal.state_dict()["layers"])


def test_new_units_are_left_alone_until_mature():
    model, renewal = mlp(), ContinualBackprop(rho=1.0, decay=0.5, maturity=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    renewal.attach(model, optimizer)
    ages = []
    for step in range(9):
        train(model, optimizer, renewal, 1, start=step)
        ages.append(renewal.state_dict()["layers"][0]["age"].tolist())
    assert [age[0] for age in ages] == [1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert all(len(set(age)) == 1 for age in ages)


def test_fractions_add_up_to_the_rate():
    model, renewal = mlp(), ContinualBackprop(rho=0.01, maturity=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    renewal.attach(model, optimizer)
    replaced = 0
    for step in range(100):
        train(model, optimizer, renewal, 1, start=step)
        replaced += sum((kept["age"] == 0).sum().item() for kept in renewal.state_dict()["layers"])
    assert replaced == pytest.approx(0.01 * 100 * (8 + 6), abs=2)


@pytest.mark.parametrize(
    "optimizer",
    [lambda p: torch.optim.Adam(p, amsgrad=True), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)],
    ids=["adam", "momentum"],
)
def test_the_optimizers_moments_are_renewed_for_those_weights_only(optimizer):
    model = mlp()
    optimizer = optimizer(model.parameters())
    renewal = ContinualBackprop(rho=0.13, decay=0.0, maturity=3)
    renewal.attach(model, optimizer)
    train(model, optimizer, renewal, 3)
    x, y = batch(seed=3)
    optimizer.zero_grad()
    F.mse_loss(model(x), y).backward()
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict()["state"])
    renewal.step()
    gone = (renewal.state_dict()["layers"][0]["age"] == 0).nonzero().flatten()
    assert len(gone) == 1
    assert not (renewal.state_dict()["layers"][1]["age"] == 0).any()
    for place, index in ((0, (gone,)), (1, (gone,)), (2, (slice(None), gone))):
        for name, kept in optimizer.state_dict()["state"][place].items():
            wanted = before[place][name].clone()
            if wanted.ndim:
                assert wanted[index].any()
                wanted[index] = 0
            assert torch.equal(kept, wanted)
    for place in (3, 4, 5):
        torch.testing.assert_close(optimizer.state_dict()["state"][place], before[place], rtol=0, atol=0)


def test_a_resumed_run_has_the_same_bits():
    def start():
        model = mlp()
        renewal = ContinualBackprop(rho=0.05, decay=0.9, maturity=3)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        renewal.attach(model, optimizer)
        return model, optimizer, renewal

    whole, first, second = start(), start(), start()
    train(*whole, 20)
    train(*first, 9)
    for part, kept in zip(second, first, strict=True):
        part.load_state_dict(copy.deepcopy(kept.state_dict()))
    train(*second, 11, start=9)
    torch.testing.assert_close(second[0].state_dict(), whole[0].state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(second[2].state_dict(), whole[2].state_dict(), rtol=0, atol=0)
    assert not torch.equal(first[0][0].weight, second[0][0].weight)


def test_an_accumulated_batch_counts_as_the_whole_one():
    models = [mlp(), mlp()]
    renewals = [ContinualBackprop(rho=0.3, maturity=0) for _ in models]
    for model, renewal in zip(models, renewals, strict=True):
        renewal.attach(model)
    x, _ = batch()
    models[0](x)
    for part in (x[:7], x[7:11], x[11:]):
        models[1](part)
    for renewal in renewals:
        renewal.step()
    torch.testing.assert_close(models[0].state_dict(), models[1].state_dict())
    torch.testing.assert_close(renewals[0].state_dict(), renewals[1].state_dict())


def test_only_training_passes_with_gradients_count():
    model, renewal = mlp(), ContinualBackprop(maturity=0)
    renewal.attach(model)
    x, _ = batch()
    with torch.no_grad():
        model(x)
    model.eval()(x)
    copy.deepcopy(model).train()(x)
    renewal.step()
    assert not any(kept["age"].any() for kept in renewal.state_dict()["layers"])
    renewal.detach()
    model.train()(x)
    with pytest.raises(RuntimeError, match="attach"):
        renewal.step()


def test_draws_come_from_its_own_generator():
    def weight(generator):
        model, renewal = mlp(), ContinualBackprop(rho=1.0, maturity=0, generator=generator)
        renewal.attach(model)
        model(batch()[0])
        state = torch.get_rng_state()
        renewal.step()
        assert torch.equal(torch.get_rng_state(), state)
        return model[0].weight

    one, same, other = (weight(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    torch.manual_seed(5)
    seeded = weight(None)
    assert torch.equal(seeded, weight(None))


def test_layers_can_be_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.out = nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.out(torch.relu(self.into(x)))

    model, renewal = Net().double(), ContinualBackprop(rho=1.0, maturity=0)
    with pytest.raises(ValueError, match=r"Net.*nn\.Sequential"):
        renewal.attach(model)
    renewal.attach(model, layers=[(model.into, nn.ReLU(), model.out)])
    model(batch()[0])
    renewal.step()
    assert not model.out.weight.any()


def test_hidden_layers_are_found_in_nested_sequences_and_blocks():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4))

        def forward(self, x):
            return x + self.inner(x)

    head = nn.Sequential(nn.Dropout(), nn.Linear(7, 2))
    model = nn.Sequential(Block(), nn.Sequential(nn.Linear(4, 7), nn.ELU()), head)
    renewal = ContinualBackprop()
    renewal.attach(model)
    assert [len(kept["age"]) for kept in renewal.state_dict()["layers"]] == [7, 5]


def test_what_cannot_be_renewed_is_refused_with_the_reason():
    shared = nn.Linear(4, 4)
    chains = {
        "parametrized": nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2)),
        "frozen": nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.ReLU(), nn.Linear(4, 2)),
        "more than once": nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), shared),
        "does not take the 4 units": nn.Sequential(nn.Conv1d(2, 4, 1), nn.ReLU(), nn.Conv1d(4, 4, 1, groups=4)),
        "ConvTranspose1d": nn.Sequential(nn.ConvTranspose1d(2, 4, 1), nn.ReLU(), nn.Conv1d(4, 4, 1)),
        "no nn.Sequential with an activation": nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
    }
    for reason, model in chains.items():
        with pytest.raises(ValueError, match=reason):
            ContinualBackprop().attach(model)
    renewal = ContinualBackprop()
    renewal.attach(mlp())
    with pytest.raises(ValueError, match="detach"):
        renewal.attach(mlp())
    with pytest.raises(ValueError, match="1 layers, 2"):
        renewal.load_state_dict({"layers": renewal.state_dict()["layers"][:1], "generator": None})


def test_arguments_out_of_range_are_refused():
    for options in ({"rho": 1.5}, {"decay": 1.0}, {"maturity": -1}, {"utility": "use"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ContinualBackprop(**options)


def test_in_the_loop():
    model = mlp().float()
    start = copy.deepcopy(model.state_dict())
    trainer = Trainer(
        model,
        nn.MSELoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        callbacks=[ContinualBackprop(rho=0.1, maturity=0)],
        epochs=2,
        batch_size=4,
        accumulate=2,
        accelerator="cpu",
    )
    trainer.fit(tuple(part.float() for part in batch(16)))
    changed = (model[0].weight != start["0.weight"]).all(1)
    assert 0 < changed.sum() <= 4
    assert not model[2]._forward_pre_hooks


def test_processes_pool_their_statistics(tmp_path):
    """A group of one process gives what no group gives."""
    models = [mlp(), mlp()]
    renewals = [ContinualBackprop(rho=0.3, maturity=0) for _ in models]
    for model, renewal in zip(models, renewals, strict=True):
        renewal.attach(model)
        model(batch()[0])
    renewals[0].step()
    store = f"file://{tmp_path / 'group'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        renewals[1].step()
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(models[0].state_dict(), models[1].state_dict(), rtol=0, atol=0)
