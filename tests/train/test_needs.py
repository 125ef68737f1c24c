"""What methods name they get, exactly that, and nothing that nobody named is computed."""

import pytest
import torch
from torch import nn

from wellposed.train import Tensors, Trainer
from wellposed.train.needs import NEEDS, needs_of


def trained(model, loss, data, penalties=(), **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, loss, penalties, optimizer=optimizer, epochs=2, batch_size=8, seed=0, **options)
    trainer.fit(data)
    return trainer


class Penalty(nn.Module):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.given = []


class OnFeatures(Penalty):
    def forward(self, features, outputs, model):
        self.given.append((features, outputs, [len(m._forward_pre_hooks) for m in model.modules()]))
        return features.square().mean()


class OnOutputs(Penalty):
    def forward(self, outputs, model):
        self.given.append([len(m._forward_pre_hooks) for m in model.modules()])
        return outputs.square().mean()


class RunsTheModel(nn.Module):
    def forward(self, model, inputs):
        return 0.0 * model(inputs + 100.0).sum()


class OnLosses(nn.Module):
    def forward(self, losses):
        return losses.max()


class OnGroup(nn.Module):
    def forward(self, group, losses):
        return losses[group == 1].sum()


class OnTeacher(nn.Module):
    def forward(self, outputs, teacher, inputs):
        return (outputs - teacher(inputs)).square().mean()


class Recorded(nn.CrossEntropyLoss):
    """Cross-entropy that remembers with which reduction it was called."""

    def __init__(self):
        super().__init__()
        self.called = []

    def forward(self, outputs, targets):
        self.called.append(self.reduction)
        return super().forward(outputs, targets)


class TestNames:
    def test_in_their_order_without_those_passed_by_position(self):
        def loss(outputs, targets, *, progress, index):
            return outputs, targets, progress, index

        assert needs_of(loss, supplied=2) == ("progress", "index")
        assert needs_of(loss) == ("outputs", "targets", "progress", "index")

    def test_an_unknown_name_is_refused_with_method_name_and_nearest(self, mlp, table):
        class Typo(nn.Module):
            def forward(self, featurs):
                return featurs.sum()

        with pytest.raises(TypeError, match=r"Typo needs 'featurs'.*did you mean 'features'\?"):
            trained(mlp(), nn.CrossEntropyLoss(), table, [Typo()])

    def test_an_unknown_name_of_a_loss_is_refused(self, mlp, table):
        class MyLoss(nn.Module):
            def forward(self, outputs, targets, *, indx):
                return outputs.sum() + targets.sum() + indx.sum()

        with pytest.raises(TypeError, match=r"MyLoss needs 'indx'.*'index'"):
            trained(mlp(), MyLoss(), table)

    def test_an_unknown_name_with_a_default_keeps_its_default(self):
        def penalty(outputs, eps=1e-3):
            return outputs.sum() * eps

        assert needs_of(penalty) == ("outputs",)

    @pytest.mark.parametrize("function", [lambda *args: args, lambda outputs, **rest: (outputs, rest)])
    def test_open_signatures_are_refused(self, function):
        with pytest.raises(TypeError, match=r"takes \*(args|rest): a method must name"):
            needs_of(function)

    def test_a_missing_teacher_is_refused_by_the_name_of_who_needs_it(self, mlp, table):
        with pytest.raises(ValueError, match="OnTeacher needs a teacher"):
            trained(mlp(), nn.CrossEntropyLoss(), table, [OnTeacher()])

    def test_a_missing_group_is_refused_by_the_name_of_who_needs_it(self, mlp, table):
        with pytest.raises(ValueError, match="OnGroup needs 'group', which the training data does not carry"):
            trained(mlp(), nn.CrossEntropyLoss(), table, [OnGroup()])


class TestFeatures:
    def test_are_the_input_of_the_last_linear_layer(self, mlp, table):
        model, penalty = mlp(), OnFeatures()
        seen = []
        model[2].register_forward_hook(lambda _, inputs, outputs: seen.append((inputs[0], outputs)))
        trained(model, nn.CrossEntropyLoss(), table, [penalty])
        assert len(penalty.given) == 8
        for (features, outputs, _), (x, z) in zip(penalty.given, seen, strict=True):
            assert features is x
            assert outputs is z

    def test_are_the_input_of_the_named_layer(self, mlp, table):
        penalty = OnFeatures()
        trained(mlp(), nn.CrossEntropyLoss(), table, [penalty], features_of="0")
        assert penalty.given[0][0].shape == (8, 6)

    def test_of_an_unknown_layer_are_refused(self, table):
        model = nn.Sequential()
        model.add_module("trunk", nn.Linear(6, 8))
        model.add_module("head", nn.Linear(8, 3))
        with pytest.raises(ValueError, match=r"features_of='heads': .*did you mean 'head'\?"):
            trained(model, nn.CrossEntropyLoss(), table, [OnFeatures()], features_of="heads")

    def test_without_a_linear_layer_must_be_named(self, table):
        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.ones(3))

            def forward(self, x):
                return x[:, :3] * self.w

        with pytest.raises(ValueError, match="OnFeatures needs features"):
            trained(Scaled(), nn.CrossEntropyLoss(), table, [OnFeatures()])

    def test_are_hooked_only_on_demand_and_only_while_fitting(self, mlp, table):
        for penalty, hooks in ((OnOutputs(), 0), (OnFeatures(), 1)):
            model = mlp()
            trained(model, nn.CrossEntropyLoss(), table, [penalty])
            last = penalty.given[-1]
            assert sum(last if isinstance(penalty, OnOutputs) else last[2]) == hooks
            assert not any(m._forward_pre_hooks for m in model.modules())

    def test_hook_goes_when_fitting_fails(self, mlp, table):
        model = mlp()
        with pytest.raises(ValueError, match="group"):
            trained(model, nn.CrossEntropyLoss(), table, [OnFeatures(), OnGroup()])
        assert not any(m._forward_pre_hooks for m in model.modules())

    def test_are_those_of_the_batch_even_if_another_penalty_runs_the_model(self, mlp, table):
        alone, after = OnFeatures(), OnFeatures()
        trained(mlp(), nn.CrossEntropyLoss(), table, [alone])
        trained(mlp(), nn.CrossEntropyLoss(), table, [RunsTheModel(), after])
        assert all(torch.equal(a[0], b[0]) for a, b in zip(alone.given, after.given, strict=True))


class TestLosses:
    def test_are_kept_only_on_demand(self, mlp, table):
        plain, each = Recorded(), Recorded()
        trained(mlp(), plain, table, [OnOutputs()])
        trained(mlp(), each, table, [OnLosses()])
        assert set(plain.called) == {"mean"}
        assert set(each.called) == {"none"}
        assert each.reduction == "mean"

    def test_reduction_comes_back_when_the_loss_fails(self, mlp, table):
        class Failing(Recorded):
            def forward(self, outputs, targets):
                raise RuntimeError("no")

        loss = Failing()
        with pytest.raises(RuntimeError, match="no"):
            trained(mlp(), loss, table, [OnLosses()])
        assert loss.reduction == "mean"

    def test_of_a_loss_without_them_are_refused(self, mlp, table):
        class Scalar(nn.Module):
            def forward(self, outputs, targets):
                return outputs.square().mean() + 0 * targets.sum()

        with pytest.raises(TypeError, match="Scalar has no reduction"):
            trained(mlp(), Scalar(), table, [OnLosses()])


def test_every_need_is_what_the_table_says(mlp, table):
    x, y = table
    group = torch.arange(26) % 4
    teacher = mlp()

    class Everything(Penalty):
        def forward(
            self, model, inputs, targets, outputs, features, loss, losses, index, group, teacher, epoch, step, progress
        ):
            self.given.append(dict(locals()))
            return 0.0 * outputs.sum()

    class Shift(nn.Module):
        def forward(self, inputs, targets):
            return inputs + 1, targets

    model, penalty = mlp(), Everything()
    trained(model, nn.CrossEntropyLoss(), Tensors(x, y, group), [penalty], teacher=teacher, transforms=[Shift()])
    assert [g["epoch"] for g in penalty.given] == [0] * 4 + [1] * 4
    assert [g["step"] for g in penalty.given] == list(range(8))
    assert [g["progress"] for g in penalty.given] == [k / 8 for k in range(8)]
    first_epoch = torch.cat([g["index"] for g in penalty.given[:4]])
    assert torch.equal(first_epoch.sort().values, torch.arange(26))
    for given in penalty.given:
        assert set(NEEDS) <= set(given)
        assert given["model"] is model
        assert given["teacher"] is teacher
        i = given["index"]
        assert torch.equal(given["inputs"], x[i] + 1)
        assert torch.equal(given["targets"], y[i])
        assert torch.equal(given["group"], group[i])
        expected = nn.functional.cross_entropy(given["outputs"], y[i], reduction="none")
        assert torch.equal(given["losses"], expected)
        assert torch.equal(given["loss"], expected.mean())
        assert torch.equal(model[2].weight.new_tensor(given["features"].shape), torch.tensor([float(len(i)), 8.0]))
        assert all(given[name].requires_grad for name in ("outputs", "features", "loss", "losses"))
