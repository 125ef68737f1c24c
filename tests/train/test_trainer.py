"""The loop against the same loop written by hand, and against itself where two ways must agree."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from wellposed.optim import AMP, SAM, WSD
from wellposed.train import Batch, DivergedError, Tensors, Trainer

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
}


class WeightNorm(nn.Module):
    def __init__(self, strength):
        super().__init__()
        self.strength = strength
        self.calls = 0

    def forward(self, model):
        self.calls += 1
        return self.strength * sum(p.square().sum() for p in model.parameters())


class OutputNorm(nn.Module):
    def __init__(self, strength):
        super().__init__()
        self.strength = strength

    def forward(self, outputs):
        return self.strength * outputs.square().mean()


class TwoPass(torch.optim.Optimizer):
    """A gradient step from the gradient at weights moved along the gradient, as sharpness-aware methods take it."""

    def __init__(self, params, lr=0.1, rho=0.2):
        super().__init__(params, {"lr": lr, "rho": rho})

    @torch.no_grad()
    def step(self, closure):
        params = [p for group in self.param_groups for p in group["params"]]
        with torch.enable_grad():
            loss = closure()
        kept = [p.clone() for p in params]
        for p in params:
            p.add_(p.grad, alpha=self.param_groups[0]["rho"])
        with torch.enable_grad():
            closure()
        for p, w in zip(params, kept, strict=True):
            p.copy_(w).sub_(p.grad, alpha=self.param_groups[0]["lr"])
        return loss


class Fixed(Sampler[int]):
    def __init__(self, order):
        self.order = order

    def __iter__(self):
        return iter(self.order)

    def __len__(self):
        return len(self.order)


class Watch:
    """Calls a function at one event."""

    def __init__(self, event, function):
        setattr(self, event, function)


def permutations(seed, epochs, n=26):
    g = torch.Generator().manual_seed(seed)
    return [torch.randperm(n, generator=g) for _ in range(epochs)]


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def by_hand(model, optimizer, table, epochs=3, size=8, seed=4, extra=lambda model, outputs: ()):
    """What the loop is to equal bit for bit; the epochs' mean losses come back."""
    x, y = table
    means = []
    for order in permutations(seed, epochs):
        losses = []
        for start in range(0, 26, size):
            i = order[start : start + size]
            optimizer.zero_grad()
            outputs = model(x[i])
            loss = F.cross_entropy(outputs, y[i])
            for term in extra(model, outputs):
                loss = loss + term
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        means.append(torch.stack(losses).mean().item())
    return means


def fitted(model, data, *, make=OPTIMIZERS["sgd"], penalties=(), loss=None, valid=None, **options):
    loss = nn.CrossEntropyLoss() if loss is None else loss
    options = {"epochs": 3, "batch_size": 8, "seed": 4, "optimizer": make(model.parameters())} | options
    trainer = Trainer(model, loss, penalties, **options)
    trainer.fit(data, valid)
    return trainer


class TestEqualsTheLoopByHand:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_bit_for_bit(self, mlp, table, name):
        mine, theirs = mlp(), mlp()
        means = by_hand(theirs, OPTIMIZERS[name](theirs.parameters()), table)
        trainer = fitted(mine, table, make=OPTIMIZERS[name])
        assert torch.equal(weights(mine), weights(theirs))
        assert [row["loss"] for row in trainer.history] == means
        assert not torch.equal(weights(mine), weights(mlp()))

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_with_penalties(self, mlp, table, name):
        mine, theirs = mlp(), mlp()
        norm, out = WeightNorm(0.1), OutputNorm(0.3)
        extra = lambda model, outputs: (out(outputs), norm(model))  # noqa: E731
        by_hand(theirs, OPTIMIZERS[name](theirs.parameters()), table, extra=extra)
        fitted(mine, table, make=OPTIMIZERS[name], penalties=[norm, out])
        assert torch.equal(weights(mine), weights(theirs))

    def test_from_a_loader_in_the_same_order(self, mlp, table):
        mine, theirs = mlp(), mlp()
        order = torch.cat(permutations(4, 1))
        fitted(mine, table, epochs=1)
        loader = DataLoader(TensorDataset(*table), batch_size=8, sampler=Fixed(order.tolist()))
        fitted(theirs, loader, epochs=1)
        assert torch.equal(weights(mine), weights(theirs))

    def test_from_a_shuffling_loader_as_a_plain_loop_would_read_it(self, mlp, table):
        mine, theirs = mlp(), mlp()
        loader = DataLoader(TensorDataset(*table), batch_size=8, shuffle=True)
        optimizer = OPTIMIZERS["sgd"](theirs.parameters())
        torch.manual_seed(4)
        for _ in range(3):
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(theirs(x), y).backward()
                optimizer.step()
        fitted(mine, loader)
        assert torch.equal(weights(mine), weights(theirs))

    def test_with_dropout_from_the_same_seed(self, table):
        def build():
            torch.manual_seed(1)
            return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))

        mine, theirs = build(), build()
        optimizer = OPTIMIZERS["sgd"](theirs.parameters())
        torch.manual_seed(4)
        by_hand(theirs, optimizer, table)
        fitted(mine, table)
        assert torch.equal(weights(mine), weights(theirs))

    def test_with_a_torch_scheduler(self, mlp, table):
        mine, theirs = mlp(), mlp()
        optimizer = OPTIMIZERS["sgd"](theirs.parameters())
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=12)
        for order in permutations(4, 3):
            for i in order.split(8):
                optimizer.zero_grad()
                F.cross_entropy(theirs(table[0][i]), table[1][i]).backward()
                optimizer.step()
                scheduler.step()
        optimizer = OPTIMIZERS["sgd"](mine.parameters())
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=12)
        fitted(mine, table, optimizer=optimizer, schedule=scheduler)
        assert torch.equal(weights(mine), weights(theirs))

    def test_in_double_precision_with_a_double_model(self, mlp, table):
        data = table[0].double(), table[1]
        mine, theirs = mlp(torch.float64), mlp(torch.float64)
        by_hand(theirs, OPTIMIZERS["sgd"](theirs.parameters()), data)
        fitted(mine, data)
        assert torch.equal(weights(mine), weights(theirs))

    def test_with_an_optimizer_that_clears_gradients_its_own_way(self, mlp, table):
        class Zeros(torch.optim.SGD):
            cleared = 0

            def zero_grad(self, set_to_none=True):
                Zeros.cleared += 1
                super().zero_grad(set_to_none)

        mine, theirs = mlp(), mlp()
        by_hand(theirs, torch.optim.SGD(theirs.parameters(), lr=0.1), table)
        assert Zeros.cleared == 0
        fitted(mine, table, make=lambda p: Zeros(p, lr=0.1))
        assert torch.equal(weights(mine), weights(theirs))
        assert Zeros.cleared == 12


class TestAccumulation:
    @pytest.fixture
    def parts(self, table):
        """Four batches, the last one smaller, and the batch that they are together."""
        x, y = table[0].double(), table[1]
        return [(x[i], y[i]) for i in torch.arange(26).split(8)], [(x, y)]

    def both(self, mlp, parts, **options):
        split, whole = mlp(torch.float64), mlp(torch.float64)
        a = fitted(split, parts[0], accumulate=4, **options)
        b = fitted(whole, parts[1], accumulate=1, **options)
        assert a.step == b.step == 3
        torch.testing.assert_close(weights(split), weights(whole), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(a.history[-1]["loss"], b.history[-1]["loss"], rtol=1e-10, atol=1e-12)
        return split

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_equals_the_joined_batch(self, mlp, parts, name, reduction):
        loss = nn.CrossEntropyLoss(reduction=reduction)
        make = {"sgd": lambda p: torch.optim.SGD(p, lr=0.01), "adamw": OPTIMIZERS["adamw"]}[name]
        self.both(mlp, parts, make=make, loss=loss)

    def test_charges_a_penalty_on_the_weights_once_a_step(self, mlp, parts):
        norm = WeightNorm(0.1)
        self.both(mlp, parts, penalties=[norm, OutputNorm(0.3)])
        assert norm.calls == 3 + 3

    def test_gives_two_passes_the_whole_batch(self, mlp, parts):
        two = self.both(mlp, parts, make=TwoPass)
        one = mlp(torch.float64)
        fitted(one, parts[1], make=lambda p: torch.optim.SGD(p, lr=0.1))
        assert (weights(one) - weights(two)).abs().max() > 1e-4

    @pytest.mark.parametrize("wrapper", [SAM, AMP])
    def test_gives_sharpness_aware_methods_the_whole_batch(self, mlp, parts, wrapper):
        self.both(mlp, parts, make=lambda p: wrapper(torch.optim.SGD(p, lr=0.1)), clip=1.0)

    def test_clips_the_whole_gradient(self, mlp, parts):
        self.both(mlp, parts, clip=0.05, make=lambda p: torch.optim.SGD(p, lr=0.1))

    def test_weighs_batches_by_their_weights(self, mlp, table):
        x, y = table[0].double(), table[1]
        weight = torch.rand(26, dtype=torch.float64)
        items = [Batch(x[i], y[i], weight=weight[i]) for i in torch.arange(26).split(8)]
        self.both(mlp, (items, [Batch(x, y, weight=weight)]))

    def test_of_a_last_group_that_is_shorter_counts_what_is_there(self, mlp, parts):
        model, other = mlp(torch.float64), mlp(torch.float64)
        assert fitted(model, parts[0], accumulate=3, epochs=1).step == 2
        x, y = parts[1][0]
        fitted(other, [(x[:24], y[:24]), (x[24:], y[24:])], epochs=1)
        torch.testing.assert_close(weights(model), weights(other), rtol=1e-10, atol=1e-12)


class TestData:
    def test_weights_equal_repeated_rows(self, mlp, table):
        x, y = table[0].double(), table[1]
        counts = torch.arange(26) % 3
        rows = torch.repeat_interleave(torch.arange(26), counts)
        mine, theirs = mlp(torch.float64), mlp(torch.float64)
        fitted(mine, Tensors(x, y, weight=counts.double()), batch_size=99)
        fitted(theirs, (x[rows], y[rows]), batch_size=99)
        torch.testing.assert_close(weights(mine), weights(theirs), rtol=1e-10, atol=1e-12)

    def test_zero_weight_equals_absence(self, mlp, table):
        x, y = table[0].double(), table[1]
        mine, theirs = mlp(torch.float64), mlp(torch.float64)
        fitted(mine, Tensors(x, y, weight=(torch.arange(26) >= 9).double()), batch_size=99)
        fitted(theirs, (x[9:], y[9:]), batch_size=99)
        torch.testing.assert_close(weights(mine), weights(theirs), rtol=1e-10, atol=1e-12)

    def test_a_sampler_decides_what_is_seen(self, mlp, table):
        mine, theirs = mlp(), mlp()
        fitted(mine, table, sampler=Fixed(list(range(10))), batch_size=5)
        x, y = table
        fitted(theirs, [(x[:5], y[:5]), (x[5:10], y[5:10])])
        assert torch.equal(weights(mine), weights(theirs))

    def test_transforms_come_first_and_in_order(self, mlp, table):
        class Plus(nn.Module):
            def forward(self, inputs, targets):
                return inputs + 1, targets

        class Double(nn.Module):
            def forward(self, inputs, targets):
                return inputs * 2, targets.flip(0)

        mine, theirs = mlp(), mlp()
        x, y = table
        fitted(mine, [(x, y)], transforms=[Plus(), Double()])
        fitted(theirs, [((x + 1) * 2, y.flip(0))])
        assert torch.equal(weights(mine), weights(theirs))

    def test_index_and_group_reach_the_methods(self, mlp, table):
        x, y = table
        group = torch.arange(26) % 3

        class Memory(nn.CrossEntropyLoss):
            def __init__(self):
                super().__init__()
                self.register_buffer("seen", torch.zeros(26, dtype=torch.int64))

            def forward(self, outputs, targets, *, index, group):
                assert torch.equal(y[index], targets)
                assert torch.equal(group, index % 3)
                self.seen += torch.zeros_like(self.seen).index_add_(0, index, torch.ones_like(index))
                return super().forward(outputs, targets)

        loss = Memory()
        fitted(mlp(), Tensors(x, y, group), loss=loss)
        assert torch.equal(loss.seen, torch.full((26,), 3))

    def test_without_a_sample_is_refused(self, mlp):
        with pytest.raises(ValueError, match="no sample"):
            fitted(mlp(), (torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)))


class TestRandomness:
    class Noise(nn.Module):
        def __init__(self, generator=None):
            super().__init__()
            self.generator = generator

        def forward(self, inputs, targets):
            return inputs + torch.randn(inputs.shape, generator=self.generator), targets

    def test_the_seed_decides_the_order(self, mlp, table):
        one, two, other = mlp(), mlp(), mlp()
        for model, seed in ((one, 1), (two, 1), (other, 2)):
            fitted(model, table, seed=seed)
        assert torch.equal(weights(one), weights(two))
        assert not torch.equal(weights(one), weights(other))

    def test_without_a_seed_the_global_generator_decides(self, mlp, table):
        runs = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            runs.append(weights(fitted(mlp(), table, seed=None).model))
        assert torch.equal(runs[0], runs[1])
        assert not torch.equal(runs[0], runs[2])

    def test_transforms_borrow_the_loop_s_generator(self, mlp, table):
        noise = self.Noise()
        seen = []
        watch = Watch("on_step_start", lambda t: seen.append(noise.generator is t.generator))
        once, twice = mlp(), mlp()
        fitted(once, table, transforms=[noise], callbacks=[watch])
        assert all(seen)
        assert noise.generator is None
        fitted(twice, table, transforms=[noise])
        assert torch.equal(weights(once), weights(twice))

    def test_transforms_keep_the_generator_they_came_with(self, mlp, table):
        own = torch.Generator().manual_seed(0)
        before = own.get_state()
        noise = self.Noise(own)
        fitted(mlp(), table, transforms=[noise])
        assert noise.generator is own
        assert not torch.equal(before, own.get_state())


class TestSchedules:
    class Falling:
        """Halves from the first step to the last."""

        def over(self, total):
            self.total = total
            return lambda step: 1 - 0.5 * step / total

    def test_multiply_every_group_s_rate(self, mlp, table):
        model, rates, falling = mlp(), [], self.Falling()
        groups = [{"params": model[0].parameters(), "lr": 0.2}, {"params": model[2].parameters()}]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        watch = Watch("on_step_end", lambda t: rates.append([g["lr"] for g in t.optimizer.param_groups]))
        fitted(model, table, optimizer=optimizer, schedule=falling, callbacks=[watch])
        assert falling.total == 12
        assert rates == [[0.2 * (1 - 0.5 * k / 12), 0.1 * (1 - 0.5 * k / 12)] for k in range(12)]

    def test_of_the_package_end_where_they_should(self, mlp, table):
        rates = []
        watch = Watch("on_step_end", lambda t: rates.append(t.optimizer.param_groups[0]["lr"]))
        fitted(mlp(), table, schedule=WSD(warmup=0.25, decay=0.25), callbacks=[watch])
        schedule = WSD(warmup=0.25, decay=0.25).over(12)
        assert rates == [0.1 * schedule(k) for k in range(12)]
        assert rates[3] == 0.1

    def test_change_what_is_learnt(self, mlp, table):
        with_it, without = mlp(), mlp()
        fitted(with_it, table, schedule=self.Falling())
        fitted(without, table)
        assert not torch.equal(weights(with_it), weights(without))

    def test_that_are_none_are_refused(self, mlp, table):
        with pytest.raises(TypeError, match=r"over\(total_steps\)"):
            fitted(mlp(), table, schedule=lambda step: 1.0)
        optimizer = torch.optim.SGD(mlp().parameters(), lr=0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        with pytest.raises(TypeError, match="ReduceLROnPlateau"):
            fitted(mlp(), table, schedule=plateau)

    def test_drive_hyper_parameters_of_optimizers_and_methods(self, mlp, table):
        model, seen, norm = mlp(), [], WeightNorm(0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
        drives = [(optimizer, "momentum", lambda progress: progress / 2), (norm, "strength", lambda progress: progress)]
        watch = Watch("on_step_start", lambda t: seen.append((optimizer.param_groups[0]["momentum"], norm.strength)))
        fitted(model, table, optimizer=optimizer, penalties=[norm], drives=drives, callbacks=[watch])
        assert seen == [((k + 1) / 24, (k + 1) / 12) for k in range(12)]
        assert norm.calls == 12

    @pytest.mark.parametrize("name", ["momentm", "stength"])
    def test_drive_of_no_hyper_parameter_is_refused(self, mlp, table, name):
        optimizer = torch.optim.SGD(mlp().parameters(), lr=0.1)
        target = optimizer if name == "momentm" else WeightNorm(0.1)
        with pytest.raises(ValueError, match=f"no hyper-parameter '{name}', did you mean"):
            fitted(mlp(), table, optimizer=optimizer, drives=[(target, name, float)])


class TestClipping:
    def norms(self, mlp, table, scale, clip):
        model, norms = mlp(), []

        class Recording(torch.optim.SGD):
            def step(self, closure):
                loss = closure()
                norms.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())
                return loss

        class Large(nn.CrossEntropyLoss):
            def forward(self, outputs, targets):
                return scale * super().forward(outputs, targets)

        fitted(model, table, optimizer=Recording(model.parameters(), lr=0.1), loss=Large(), clip=clip)
        return norms

    def test_shortens_long_gradients_and_no_others(self, mlp, table):
        assert self.norms(mlp, table, 100.0, 0.5) == pytest.approx([0.5] * 12, rel=1e-4)
        assert min(self.norms(mlp, table, 100.0, None)) > 1
        assert self.norms(mlp, table, 1e-3, 0.5) == self.norms(mlp, table, 1e-3, None)

    @pytest.mark.parametrize("clip", [0.0, -1.0])
    def test_to_no_length_is_refused(self, mlp, table, clip):
        with pytest.raises(ValueError, match="clip="):
            fitted(mlp(), table, clip=clip)


class TestCallbacks:
    def test_events_come_in_order_with_the_clock(self, mlp, table):
        told = []
        names = ("fit_start", "epoch_start", "step_start", "step_end", "epoch_end", "fit_end")
        callbacks = [
            Watch(f"on_{name}", lambda t, name=name: told.append((name, t.epoch, t.step, t.progress))) for name in names
        ]
        fitted(mlp(), table, batch_size=20, epochs=2, callbacks=callbacks)
        assert told == [
            ("fit_start", 0, 0, 0.0),
            ("epoch_start", 0, 0, 0.0),
            ("step_start", 0, 0, 0.0),
            ("step_end", 0, 1, 0.25),
            ("step_start", 0, 1, 0.25),
            ("step_end", 0, 2, 0.5),
            ("epoch_end", 1, 2, 0.5),
            ("epoch_start", 1, 2, 0.5),
            ("step_start", 1, 2, 0.5),
            ("step_end", 1, 3, 0.75),
            ("step_start", 1, 3, 0.75),
            ("step_end", 1, 4, 1.0),
            ("epoch_end", 2, 4, 1.0),
            ("fit_end", 2, 4, 1.0),
        ]

    def test_see_gradients_and_the_batch_after_a_step(self, mlp, table):
        seen = []

        def look(trainer):
            seen.append((len(trainer.batch), all(p.grad is not None for p in trainer.model.parameters())))

        fitted(mlp(), table, epochs=1, callbacks=[Watch("on_step_end", look)])
        assert seen == [(8, True)] * 3 + [(2, True)]

    def test_unknown_events_are_refused_with_the_nearest(self, mlp, table):
        with pytest.raises(TypeError, match=r"Watch.on_step_ends is no event.*did you mean 'on_step_end'\?"):
            fitted(mlp(), table, callbacks=[Watch("on_step_ends", print)])

    def test_that_handle_nothing_are_refused(self, mlp, table):
        with pytest.raises(TypeError, match="handles no event"):
            fitted(mlp(), table, callbacks=[object()])


class TestSamplersAreTold:
    class Scored(Fixed):
        def __init__(self):
            super().__init__(list(range(26)))
            self.told = []

        def update(self, *, index, outputs, targets, step):
            self.told.append((index, outputs, targets, step))

    def test_what_they_name_batch_by_batch(self, mlp, table):
        sampler, model = self.Scored(), mlp()
        before = model(table[0]).detach()
        fitted(model, table, sampler=sampler, accumulate=4, epochs=1)
        assert [len(i) for i, *_ in sampler.told] == [8, 8, 8, 2]
        assert torch.equal(torch.cat([i for i, *_ in sampler.told]), torch.arange(26))
        assert torch.equal(torch.cat([y for _, _, y, _ in sampler.told]), table[1])
        torch.testing.assert_close(torch.cat([z for _, z, _, _ in sampler.told]), before)
        assert {step for *_, step in sampler.told} == {0}
        assert not any(z.requires_grad for _, z, _, _ in sampler.told)

    def test_outputs_of_the_first_pass_not_of_the_perturbed_weights(self, mlp, table):
        sampler, model = self.Scored(), mlp()
        before = model(table[0]).detach()
        fitted(model, table, sampler=sampler, accumulate=4, epochs=1, make=lambda p: TwoPass(p, rho=5.0))
        torch.testing.assert_close(torch.cat([z for _, z, _, _ in sampler.told]), before)

    def test_nothing_the_loop_does_not_give_them(self, mlp, table):
        class Greedy(Fixed):
            def update(self, *, features):
                pass

        with pytest.raises(TypeError, match=r"Greedy\.update needs 'features'"):
            fitted(mlp(), table, sampler=Greedy([1]))


class TestLooking:
    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))

    @pytest.fixture
    def trainer(self, model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        metrics = {"accuracy": lambda z, y: (z.argmax(1) == y).float().mean().item()}
        return Trainer(model, nn.CrossEntropyLoss(), optimizer=optimizer, batch_size=2, metrics=metrics)

    def test_predicts_in_order_in_evaluation_mode(self, model, trainer, table):
        model.eval()
        expected = model(table[0]).detach()
        model.train()
        loader = DataLoader(TensorDataset(*table), batch_size=7)
        for data in (table[0], table, Tensors(*table), loader):
            torch.testing.assert_close(trainer.predict(data), expected)
        assert torch.equal(trainer.predict(table[0], batch_size=26), expected)
        assert trainer.predict(table[0][:0]).shape == (0, 3)

    def test_measures_loss_and_metrics(self, model, trainer, table):
        z = trainer.predict(table[0])
        measured = trainer.evaluate(table)
        assert measured["loss"] == pytest.approx(F.cross_entropy(z, table[1]).item())
        assert measured["accuracy"] == pytest.approx((z.argmax(1) == table[1]).double().mean().item())

    def test_leaves_every_module_s_mode_and_statistics(self, model, trainer, table):
        model.train()
        model[1].eval()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        trainer.predict(table[0])
        trainer.evaluate(table)
        assert [m.training for m in model.modules()] == [True, True, False, True, True]
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    def test_leaves_modes_when_a_forward_fails(self, model, trainer):
        with pytest.raises(RuntimeError):
            trainer.predict(torch.zeros(4, 5))
        assert model.training

    def test_leaves_out_a_loss_that_needs_more(self, mlp, table):
        class ByIndex(nn.CrossEntropyLoss):
            def forward(self, outputs, targets, *, index):
                return super().forward(outputs, targets)

        trainer = fitted(mlp(), table, loss=ByIndex(), valid=table, metrics={"zero": lambda z, y: 0.0})
        assert set(trainer.history[0]) == {"epoch", "loss", "lr", "valid_zero", "seconds"}

    def test_history_has_a_row_an_epoch(self, mlp, table):
        trainer = fitted(mlp(), table, valid=table, metrics={"mean": lambda z, y: z.mean().item()})
        assert [row["epoch"] for row in trainer.history] == [0.0, 1.0, 2.0]
        assert set(trainer.history[0]) == {"epoch", "loss", "lr", "valid_loss", "valid_mean", "seconds"}
        assert trainer.history[-1]["valid_loss"] == pytest.approx(trainer.evaluate(table)["loss"])


class TestParameters:
    def test_frozen_ones_stay_as_they_are(self, mlp, table):
        model = mlp()
        model[0].weight.requires_grad_(False)
        before = model[0].weight.clone()
        fitted(model, table, clip=1.0)
        assert torch.equal(model[0].weight, before)
        assert not torch.equal(model[0].bias, mlp()[0].bias)

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_without_gradients_stay_as_they_are(self, mlp, table, name):
        model = mlp()
        model.register_parameter("spare", nn.Parameter(torch.ones(3)))
        fitted(model, table, make=OPTIMIZERS[name], clip=1.0)
        assert torch.equal(model.spare, torch.ones(3))
        assert not torch.equal(model[0].weight, mlp()[0].weight)

    def test_of_several_groups_keep_their_own_rates(self, mlp, table):
        model = mlp()
        groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}]
        fitted(model, table, optimizer=torch.optim.SGD(groups, lr=0.1))
        assert torch.equal(model[0].weight, mlp()[0].weight)
        assert not torch.equal(model[2].weight, mlp()[2].weight)


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"epochs": 0}, "epochs=0"),
            ({"batch_size": 0}, "batch_size=0"),
            ({"accumulate": 0}, "accumulate=0"),
            ({"patience": 0}, "patience=0"),
            ({"checkpoint": "c", "checkpoint_every": 0}, "checkpoint_every=0"),
            ({"checkpoint_every": 3}, "checkpoint_every=3 needs a file"),
        ],
    )
    def test_options_out_of_range_are_refused(self, mlp, table, options, message):
        with pytest.raises(ValueError, match=message):
            fitted(mlp(), table, **options)

    def test_a_loss_that_diverges_is_an_error(self, mlp, table):
        with pytest.raises(DivergedError, match=r"the loss is nan in epoch 0.*clip=1"):
            fitted(mlp(), (table[0] * torch.nan, table[1]))

    def test_a_failing_method_leaves_transforms_and_model_usable(self, mlp, table):
        class Failing(nn.Module):
            def __init__(self):
                super().__init__()
                self.generator = None

            def forward(self, inputs, targets):
                raise RuntimeError("broken")

        failing, model = Failing(), mlp()
        with pytest.raises(RuntimeError, match="broken"):
            fitted(model, table, transforms=[failing])
        assert failing.generator is None
        assert torch.equal(weights(model), weights(mlp()))


def test_learns_something(mlp):
    random.seed(0)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=g)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 1).long()
    trainer = fitted(mlp(), (x, y), epochs=20, make=lambda p: torch.optim.AdamW(p, lr=1e-2))
    accuracy = (trainer.predict(x).argmax(1) == y).double().mean().item()
    assert accuracy > 0.9
    assert math.isclose(trainer.progress, 1.0)
