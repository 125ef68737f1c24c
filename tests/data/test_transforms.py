"""What every batch transform of the room promises, whichever it is."""

import copy
import inspect

import pytest
import torch
from torch import nn

from wellposed import data

TRANSFORMS = [
    method for name in data.__all__ if inspect.isclass(method := getattr(data, name)) and issubclass(method, nn.Module)
]


def build(method: type[nn.Module], seed: int = 0) -> nn.Module:
    facts = {"num_classes": 3} if "num_classes" in inspect.signature(method).parameters else {}
    return method(**facts, generator=torch.Generator().manual_seed(seed))


def batch(
    method: type[nn.Module], n: int = 12, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    shape = (n, 3, 9, 10) if method.suits == ("image",) else (n, 20)
    return torch.rand(shape, generator=g).to(dtype), torch.randint(3, (n,), generator=g)


def test_the_room_has_transforms():
    assert {"Cutout", "FeatureMask", "Mixup", "RandAugment"} <= {method.__name__ for method in TRANSFORMS}


@pytest.mark.parametrize("method", TRANSFORMS, ids=lambda m: m.__name__)
class TestEveryTransform:
    def test_it_is_the_identity_in_eval_mode(self, method):
        x, y = batch(method)
        transform = build(method).eval()
        state = transform.generator.get_state()
        new_x, new_y = transform(x, y)
        assert new_x is x
        assert new_y is y
        assert torch.equal(transform.generator.get_state(), state)

    def test_it_changes_the_batch_but_not_the_callers_tensors(self, method):
        x, y = batch(method)
        before = x.clone(), y.clone()
        new_x, _ = build(method)(x, y)
        assert not torch.equal(new_x, x)
        assert torch.equal(x, before[0])
        assert torch.equal(y, before[1])

    def test_the_generator_decides_everything(self, method):
        x, y = batch(method)
        torch.manual_seed(5)
        first = build(method)(x, y)
        untouched = torch.get_rng_state()
        torch.manual_seed(6)
        second = build(method)(x, y)
        other = build(method, seed=3)(x, y)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert not torch.equal(first[0], other[0])
        torch.manual_seed(5)
        assert torch.equal(torch.get_rng_state(), untouched)

    def test_without_a_generator_the_global_one_decides(self, method):
        x, y = batch(method)
        transform = build(method)
        transform.generator = None
        torch.manual_seed(5)
        first = transform(x, y)[0]
        torch.manual_seed(5)
        assert torch.equal(transform(x, y)[0], first)
        assert not torch.equal(transform(x, y)[0], first)

    def test_a_saved_generator_continues_bit_for_bit(self, method):
        x, y = batch(method)
        transform = build(method)
        transform(x, y)
        state = transform.generator.get_state()
        expected = transform(x, y)[0]
        transform.generator.set_state(state)
        assert torch.equal(transform(x, y)[0], expected)

    def test_a_deep_copy_draws_the_same(self, method):
        x, y = batch(method)
        transform = build(method)
        twin = copy.deepcopy(transform)
        assert torch.equal(transform(x, y)[0], twin(x, y)[0])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_the_type_is_kept_and_the_values_are_near_single_precision(self, method, dtype):
        x, y = batch(method, dtype=dtype)
        new_x, _ = build(method)(x, y)
        single, _ = build(method)(x.float(), y)
        assert new_x.dtype == dtype
        tolerance = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float64: 1e-6}[dtype]
        torch.testing.assert_close(new_x.float(), single, atol=tolerance, rtol=0)

    @pytest.mark.parametrize("n", [0, 1])
    def test_empty_and_single_batches(self, method, n):
        x, y = batch(method, n=n)
        new_x, new_y = build(method)(x, y)
        assert new_x.shape == x.shape
        assert len(new_y) == n
        assert torch.isfinite(new_x).all()

    def test_a_strided_batch_gives_what_a_contiguous_one_does(self, method):
        x, y = batch(method)
        strided = x.transpose(0, 1).contiguous().transpose(0, 1)
        assert not strided.is_contiguous()
        assert torch.equal(build(method)(strided, y)[0], build(method)(x, y)[0])

    def test_gradients_reach_the_inputs(self, method):
        x, y = batch(method)
        new_x, _ = build(method)(x.requires_grad_(), y)
        (grad,) = torch.autograd.grad(new_x.sum(), x)
        assert torch.isfinite(grad).all()
        assert grad.abs().sum() > 0

    def test_inputs_that_it_cannot_take_are_refused(self, method):
        x = torch.zeros(3, 2, 4, 4, dtype=torch.int64) if method.suits != ("table",) else torch.zeros(3, 2, 2)
        with pytest.raises((ValueError, TypeError)):
            build(method)(x, torch.zeros(3, dtype=torch.int64))
