"""What a method can be a remedy for: the catalogue's one vocabulary of troubles."""

from collections.abc import Mapping
from types import MappingProxyType

REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "adversarial": "small, chosen changes of the input change the output",
        "class-imbalance": "some classes, groups or target values are rare",
        "collapse": "features, modes, experts or samples shrink to a few",
        "cost": "training or inference takes too much time, memory or labour",
        "distribution-shift": "test data come from elsewhere than the training data",
        "entanglement": "one latent unit mixes several factors",
        "few-data": "there are few training examples of any kind",
        "few-labels": "labels are few, coarse or missing",
        "forgetting": "learning something new destroys what was known",
        "ill-posed": "the data alone do not determine the answer",
        "instability": "training diverges, spikes or depends on the seed",
        "label-noise": "some training labels are wrong",
        "lost-plasticity": "the model can no longer learn new things",
        "memorisation": "single training examples are stored and can be read out",
        "metric-mismatch": "the loss is not what counts in the end",
        "misalignment": "the outputs are not those that people prefer",
        "miscalibration": "stated probabilities are not the observed frequencies",
        "no-guarantee": "nothing is proved about the error to expect",
        "opacity": "nobody can tell what the model uses",
        "outliers": "some inputs, targets or gradients are corrupted or heavy-tailed",
        "overfitting": "the test error is well above the training error",
        "redundant-data": "not all examples or features are worth keeping, or worth it equally",
        "sample-quality": "generated samples are poor or all alike",
        "size": "the model has too many parameters or bits",
        "slow-training": "training takes too many steps",
        "spurious-correlation": "the model leans on a cue that only happens to predict",
        "task-conflict": "several tasks, losses or modalities hinder each other",
        "tuning": "hyper-parameters are costly to choose",
        "underfitting": "even the training set is not fitted",
        "unpredictability": "what a bigger or longer run will give is unknown",
        "unwanted-knowledge": "the model knows something that it must forget",
        "weak-features": "learned features do not separate, order or transfer well",
    }
)
"""Every remedy a row may name, with the trouble it is for."""

SYNONYMS: Mapping[str, str] = MappingProxyType(
    {
        "adversarial": "adversarial examples attack perturbation robustness certified robust",
        "class-imbalance": "imbalanced classes long-tailed long tail minority rare unbalanced fairness worst group",
        "collapse": "representation collapse mode collapse diversity neural collapse dead units",
        "cost": "cheap fast slow inference efficient efficiency memory speed compute latency",
        "distribution-shift": "domain shift domain generalization out-of-distribution OOD covariate shift transfer",
        "entanglement": "disentanglement disentangled factors latent",
        "few-data": "small data low data little data limited data few samples data-efficient",
        "few-labels": "semi-supervised unlabelled weak supervision few-shot pseudo-labels scarce labels",
        "forgetting": "catastrophic forgetting continual learning lifelong sequential tasks",
        "ill-posed": "inverse problem underdetermined reconstruction prior sparse recovery",
        "instability": "unstable training divergence diverging loss spikes exploding gradients NaN seed variance",
        "label-noise": "noisy labels label noise mislabelled data wrong incorrect corrupted annotation errors",
        "lost-plasticity": "loss of plasticity dead neurons dormant stops learning",
        "memorisation": "memorization privacy leak verbatim extraction differential privacy",
        "metric-mismatch": "surrogate loss ranking metric dice evaluation measure",
        "misalignment": "preference human feedback RLHF DPO reward alignment",
        "miscalibration": "calibration overconfidence overconfident uncertainty ECE confidence reliability",
        "no-guarantee": "generalization bound theorem theory rate proof",
        "opacity": "interpretability explanation explainable attribution black box",
        "outliers": "robust loss heavy tails contamination corrupted byzantine",
        "overfitting": "generalization gap regularization overfit overfitted",
        "redundant-data": "data selection coreset subset pruning examples data mixture curation feature selection",
        "sample-quality": "FID generation image quality diversity repetition",
        "size": "compression pruning quantization sparsity distillation small model low bit",
        "slow-training": "convergence speed acceleration conditioning faster optimization",
        "spurious-correlation": "shortcut bias spurious features simplicity bias gradient starvation worst group",
        "task-conflict": "multi-task multimodal gradient conflict negative transfer merging",
        "tuning": "hyperparameter hyper-parameter search learning rate sensitivity robust to settings",
        "underfitting": "underfit capacity high training error",
        "unpredictability": "scaling law extrapolation forecast loss curve prediction",
        "unwanted-knowledge": "machine unlearning erase forget concept removal",
        "weak-features": "representation learning embedding metric contrastive self-supervised transfer retrieval",
    }
)
"""Other words under which a person would look for each remedy."""
