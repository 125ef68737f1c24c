"""What every wrapper shares with the optimizer inside it."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adadelta, Adam

from wellposed.optim import AMP, SAM, AdamW


@pytest.fixture
def weight() -> nn.Parameter:
    return nn.Parameter(torch.ones(2))


def test_groups_state_and_defaults_are_the_base_s_own(weight):
    base = Adam([weight])
    optimizer = SAM(base, rho=0.2)
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state
    assert optimizer.defaults is base.defaults
    assert base.param_groups[0]["rho"] == base.defaults["rho"] == 0.2
    assert isinstance(optimizer, torch.optim.Optimizer)


def test_a_used_base_keeps_its_state(weight):
    base = SGD([weight], lr=0.1, momentum=0.9)
    weight.grad = torch.ones(2)
    base.step()
    assert torch.equal(SAM(base).state[weight]["momentum_buffer"], torch.ones(2))


def test_a_group_keeps_its_own_value_and_a_later_one_takes_the_default(weight):
    optimizer = SAM(SGD([{"params": [weight], "rho": 0.7}], lr=0.1), rho=0.2)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    optimizer.base.add_param_group({"params": [nn.Parameter(torch.ones(1))], "rho": 0.3})
    assert [group["rho"] for group in optimizer.param_groups] == [0.7, 0.2, 0.3]


def test_later_groups_go_through_the_base(weight):
    optimizer = SAM(AdamW([weight], lr=0.3, decoupled="schedule"))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.2})
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.3, 0.2]


def test_states_pass_between_wrapper_and_bare_base(weight):
    wrapped, bare = SAM(SGD([weight], lr=0.3), rho=0.2), SGD([weight], lr=0.1)
    bare.load_state_dict(wrapped.state_dict())
    assert bare.param_groups[0]["lr"] == 0.3
    wrapped.load_state_dict(SGD([weight], lr=0.5).state_dict())
    assert wrapped.param_groups[0]["lr"] == 0.5
    assert wrapped.param_groups[0]["rho"] == 0.2


def test_hooks_fire_once(weight):
    weight.grad = torch.ones(2)
    optimizer = SAM(SGD([weight], lr=0.1))
    fired = []
    optimizer.register_step_post_hook(lambda *_: fired.append("wrapper"))
    optimizer.base.register_step_post_hook(lambda *_: fired.append("base"))
    optimizer.step(weight.sum)
    assert fired == ["base", "wrapper"]


def test_what_cannot_be_wrapped_is_refused(weight):
    with pytest.raises(TypeError, match="optimizer"):
        SAM(SGD)
    with pytest.raises(TypeError, match="cannot wrap SAM"):
        AMP(SAM(SGD([weight], lr=0.1)))
    with pytest.raises(ValueError, match="Adadelta has its own rho"):
        SAM(Adadelta([weight]))
    base = SGD([weight], lr=0.1)
    SAM(base)
    with pytest.raises(ValueError, match="SGD has its own adaptive, rho"):
        SAM(base)
