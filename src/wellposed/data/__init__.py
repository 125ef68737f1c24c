"""Which examples, how often, in what form: what changes the batch before the model sees it."""

from wellposed.data.erase import Cutout, FeatureMask
from wellposed.data.mix import Mixup
from wellposed.data.randaugment import RandAugment
from wellposed.data.select import EL2N, el2n, grand, keep_hardest

__all__ = ["EL2N", "Cutout", "FeatureMask", "Mixup", "RandAugment", "el2n", "grand", "keep_hardest"]
