"""Half precision on the CPU: close to single, overflow skipped cleanly, true gradients wherever a method looks."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from wellposed.optim import SAM
from wellposed.train import Trainer
from wellposed.train.scaling import GradientOverflowError, LossScale


class Recording(torch.optim.AdamW):
    """Keeps the gradients of every closure call."""

    def __init__(self, params, passes=1, **options):
        super().__init__(params, **options)
        self.passes, self.seen = passes, []

    def step(self, closure):
        for _ in range(self.passes):
            loss = closure()
            grads = [p.grad for group in self.param_groups for p in group["params"]]
            self.seen.append(torch.cat([g.flatten() for g in grads]))
        super().step()
        return loss


class InputGradient(nn.Module):
    """A penalty that differentiates the outputs it is given."""

    def forward(self, outputs, features):
        (grad,) = torch.autograd.grad(outputs.sum(), features, create_graph=True)
        return 0.1 * grad.square().mean()


class Spiked(nn.CrossEntropyLoss):
    """Cross-entropy whose gradient leaves float16's range at chosen steps."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def forward(self, outputs, targets, *, step=0):
        return super().forward(outputs, targets) * (1e30 if step in self.steps else 1.0)


def fitted(model, table, precision, *, penalties=(), loss=None, epochs=3, scale=None, passes=1, **options):
    optimizer = Recording(model.parameters(), passes, lr=1e-2)
    loss = nn.CrossEntropyLoss() if loss is None else loss
    options = {"batch_size": 8, "seed": 0, "precision": precision} | options
    trainer = Trainer(model, loss, penalties, optimizer=optimizer, epochs=epochs, **options)
    if scale is not None:
        trainer.loss_scale = scale
    trainer.fit(table)
    return trainer


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
class TestMixed:
    def test_is_close_to_single_precision_and_not_equal(self, mlp, table, precision):
        half, full = mlp(), mlp()
        a, b = fitted(half, table, precision), fitted(full, table, "32-true")
        assert half[0].weight.dtype == torch.float32
        torch.testing.assert_close(a.predict(table[0]), b.predict(table[0]), rtol=0.05, atol=0.03)
        assert not torch.equal(a.predict(table[0]), b.predict(table[0]))
        assert a.history[-1]["loss"] == pytest.approx(b.history[-1]["loss"], abs=0.02)

    def test_computes_in_half_and_gives_single_to_loss_and_user(self, mlp, table, precision):
        seen = {}

        class Look(nn.Module):
            def forward(self, outputs, features):
                seen["outputs"], seen["features"] = outputs.dtype, features.dtype
                return 0.0 * outputs.sum()

        trainer = fitted(mlp(), table, precision, penalties=[Look()], epochs=1)
        half = torch.bfloat16 if precision == "bf16-mixed" else torch.float16
        assert seen == {"outputs": torch.float32, "features": half}
        assert trainer.predict(table[0]).dtype == torch.float32
        assert trainer.predict(table[0]).numpy().shape == (26, 3)

    def test_leaves_inputs_in_single_precision_to_the_model(self, table, precision):
        class Look(nn.Linear):
            def forward(self, x):
                assert x.dtype == torch.float32
                return super().forward(x)

        fitted(Look(6, 3), table, precision)

    def test_closures_leave_true_gradients(self, mlp, table, precision):
        half, full = fitted(mlp(), table, precision, epochs=1), fitted(mlp(), table, "32-true", epochs=1)
        for a, b in zip(half.optimizer.seen, full.optimizer.seen, strict=True):
            torch.testing.assert_close(a, b, rtol=0.1, atol=5e-3)

    def test_closures_leave_true_gradients_at_every_pass(self, mlp, table, precision):
        trainer = fitted(mlp(), table, precision, epochs=1, passes=3)
        assert len(trainer.optimizer.seen) == 12
        for first, second, third in zip(*(trainer.optimizer.seen[k::3] for k in range(3)), strict=True):
            assert torch.equal(first, second)
            assert torch.equal(first, third)

    def test_clips_true_gradients(self, mlp, table, precision):
        trainer = fitted(mlp(), table, precision, clip=0.05)
        assert [g.norm().item() for g in trainer.optimizer.seen] == pytest.approx([0.05] * 12, rel=1e-3)

    def test_accumulates(self, mlp, table, precision):
        x, y = table
        parts = [(x[i], y[i]) for i in torch.arange(26).split(8)]
        split = fitted(mlp(), parts, precision, accumulate=4)
        whole = fitted(mlp(), [table], precision)
        torch.testing.assert_close(weights(split.model), weights(whole.model), rtol=0.05, atol=0.02)
        assert split.step == 3

    def test_penalties_may_differentiate_the_outputs(self, mlp, table, precision):
        scale = LossScale(2.0**8) if precision == "16-mixed" else None
        half = fitted(mlp(), table, precision, penalties=[InputGradient()], scale=scale)
        full = fitted(mlp(), table, "32-true", penalties=[InputGradient()])
        plain = fitted(mlp(), table, "32-true")
        half, full, plain = (run.optimizer.seen[0] for run in (half, full, plain))
        torch.testing.assert_close(half, full, rtol=0.05, atol=2e-3)
        assert (full - plain).abs().max() > 5e-3

    def test_reads_loaders(self, mlp, table, precision):
        trainer = fitted(mlp(), DataLoader(TensorDataset(*table), batch_size=8), precision)
        assert trainer.step == 12


class TestOverflow:
    def test_skips_the_step_and_lowers_the_scale(self, mlp, table):
        model = mlp()
        trainer = fitted(model, table, "16-mixed", loss=Spiked(range(100)), epochs=1)
        assert torch.equal(weights(model), weights(mlp()))
        assert not trainer.optimizer.state
        assert trainer.loss_scale.scale == 2.0**16 * 0.5**4
        assert trainer.step == 4

    def test_leaves_the_optimizer_s_state_as_it_was(self, mlp, table):
        """A run with overflows in its second half ends where one of half the length ends."""
        spiked, short = mlp(), mlp()
        a = fitted(spiked, table, "16-mixed", loss=Spiked(range(4, 8)), epochs=2)
        b = fitted(short, table, "16-mixed", epochs=1)
        assert torch.equal(weights(spiked), weights(short))
        for p, q in zip(a.optimizer.state.values(), b.optimizer.state.values(), strict=True):
            assert all(torch.equal(p[key], q[key]) for key in p)
        assert all(p.grad is None for p in spiked.parameters())

    def test_in_the_first_epochs_is_no_divergence(self, mlp, table):
        """A scale that is far too large comes down by itself, and the loss is reported all the while."""
        scale = LossScale(scale=2.0**40)
        trainer = fitted(mlp(), table, "16-mixed", batch_size=26, epochs=40, scale=scale)
        losses = [row["loss"] for row in trainer.history]
        assert scale.scale < 2.0**30
        assert losses[0] == losses[5] == pytest.approx(1.2, abs=0.5)
        assert losses[-1] < losses[0]

    def test_in_the_second_pass_of_a_sharpness_aware_method_leaves_no_trace(self, mlp, table):
        class SpikedAgain(nn.CrossEntropyLoss):
            """Overflows in every second pass."""

            calls = 0

            def forward(self, outputs, targets):
                self.calls += 1
                return super().forward(outputs, targets) * (1e30 if self.calls % 2 == 0 else 1.0)

        model, loss = mlp(), SpikedAgain()
        optimizer = SAM(torch.optim.AdamW(model.parameters()))
        trainer = Trainer(model, loss, optimizer=optimizer, epochs=1, batch_size=8, seed=0, precision="16-mixed")
        trainer.fit(table)
        assert loss.calls == 8
        assert torch.equal(weights(model), weights(mlp()))
        assert not optimizer.base.state
        assert trainer.loss_scale.scale == 2.0**16 * 0.5**4

    def test_scale_grows_after_good_steps(self, mlp, table):
        scale = LossScale(scale=8.0, interval=3)
        fitted(mlp(), table, "16-mixed", epochs=2, scale=scale)
        assert (scale.scale, scale.good_steps) == (8.0 * 2**2, 2)


class TestLossScale:
    def test_divides_gradients(self):
        p, frozen = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        p.grad = torch.tensor([2.0, 4.0, 8.0])
        LossScale(scale=2.0).unscale_([p, frozen])
        assert torch.equal(p.grad, torch.tensor([1.0, 2.0, 4.0]))
        assert frozen.grad is None
        LossScale().unscale_([frozen])

    @pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
    def test_refuses_what_is_not_finite_and_clears_it(self, bad):
        p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
        p.grad, q.grad = torch.ones(3), torch.tensor([1.0, bad])
        with pytest.raises(GradientOverflowError):
            LossScale().unscale_([p, q])
        assert p.grad is None
        assert q.grad is None

    def test_accepts_large_gradients_that_are_finite(self):
        p = nn.Parameter(torch.ones(3))
        p.grad = torch.full((3,), 1e37)
        LossScale(scale=1.0).unscale_([p])
        assert torch.equal(p.grad, torch.full((3,), 1e37))

    def test_restores_its_state(self):
        one, two = LossScale(interval=5), LossScale(interval=5)
        one.update(overflow=True)
        one.update(overflow=False)
        two.load_state_dict(one.state_dict())
        assert (two.scale, two.good_steps) == (2.0**15, 1)


@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16)])
def test_true_precisions_convert_model_and_inputs(mlp, table, precision, dtype):
    model = mlp()
    trainer = fitted(model, table, precision)
    assert model[0].weight.dtype == dtype
    assert trainer.history[-1]["loss"] < trainer.history[0]["loss"]
    assert trainer.predict(table[0]).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
