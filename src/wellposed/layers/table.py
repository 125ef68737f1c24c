"""A network for encoded tables: categories embedded, then layers of one width."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wellposed.space import Choice, IntUniform, Space, Uniform

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class BlockEmbedding(nn.Module):
    r"""Some blocks of columns of a matrix mapped linearly to a few dimensions each, the other columns left as they are.

    A block :math:`x_b` becomes :math:`x_b E_b` with :math:`E_b \in \mathbb{R}^{w_b \times d}`. For a one-hot block that
    is the row of an embedding table, for a mixture of two rows the same mixture of their embeddings, and it has a
    gradient in :math:`x_b`. All :math:`E_b` are rows of one ``weight``, standard normal at the start as in
    ``torch.nn.Embedding``.

    Args:
        widths: width of each run of columns, in order; their sum is the number of columns.
        embedded: whether each run is a block to embed.
        dim: dimensions of an embedding.

    Shape:
        inputs ``(N, sum(widths))``; outputs ``(N, out_features)``, runs in the same order.

    Source:
        Guo, Berkhahn, "Entity Embeddings of Categorical Variables", 2016.
    """

    def __init__(self, widths: Sequence[int], embedded: Sequence[bool], dim: int) -> None:
        super().__init__()
        self.widths = list(widths)
        self.embedded = list(embedded)
        self.dim = dim
        self.rows = [w for w, block in zip(widths, embedded, strict=True) if block]
        self.out_features = sum(dim if block else w for w, block in zip(widths, embedded, strict=True))
        self.weight = nn.Parameter(torch.empty(sum(self.rows), dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the embeddings anew."""
        nn.init.normal_(self.weight)

    def forward(self, inputs: Float[Tensor, "N D"]) -> Float[Tensor, "N E"]:
        """Return ``inputs`` with its blocks embedded."""
        tables = iter(self.weight.split(self.rows))
        runs = zip(inputs.split(self.widths, 1), self.embedded, strict=True)
        return torch.cat([run @ next(tables) if block else run for run, block in runs], 1)

    def extra_repr(self) -> str:
        """The sizes, for ``print``."""
        return f"{sum(self.widths)}, {self.out_features}, blocks={len(self.rows)}, dim={self.dim}"


class TableMLP(nn.Sequential):
    r"""A multi-layer perceptron for the matrix of a :class:`~wellposed.tables.Encoder`.

    With :math:`h_0` the inputs, their wide categories and texts embedded, and :math:`\phi` the activation,

    .. math:: h_l = \mathrm{Dropout}(\phi(W_l h_{l-1} + b_l)), \qquad z = W h_L + b

    A block of at most ``embedding`` columns is left one-hot, as the first layer embeds it anyhow. The last layer is
    ``head``; the dropout modules are there at any ``dropout``, so that it can be scheduled.

    Args:
        layout: the encoder's layout, blocks ``(column, kind, start, stop)`` that follow on each other; or the number of
            columns, none of them embedded.
        outputs: number of classes, or 1 for a regression.
        width: units of a hidden layer.
        depth: hidden layers, 0 for a linear model.
        dropout: probability of a hidden unit to be zeroed, in ``[0, 1)``.
        embedding: dimensions of the embedding of a category or text wider than that.
        activation: ``"relu"``, ``"gelu"`` or ``"silu"``.
        norm: whether a layer normalisation stands before each activation.

    Shape:
        inputs ``(N, D)``; outputs ``(N, outputs)``.

    Raises:
        ValueError: for a size that is not positive, blocks with a gap, ``dropout`` out of range, or another activation.

    Source:
        Gorishniy, Rubachev, Khrulkov, Babenko, "Revisiting Deep Learning Models for Tabular Data", 2021, for the plain
        perceptron; Guo, Berkhahn, "Entity Embeddings of Categorical Variables", 2016.
    """

    space: ClassVar[Space] = {
        "width": Choice((64, 128, 256, 512)),
        "depth": IntUniform(1, 4),
        "dropout": Uniform(0.0, 0.5),
        "embedding": Choice((8, 16, 32)),
        "activation": Choice(("relu", "gelu", "silu")),
        "norm": Choice((False, True)),
    }
    suits: ClassVar[tuple[str, ...]] = ("table",)

    def __init__(
        self,
        layout: Sequence[tuple[str, str, int, int]] | int,
        outputs: int,
        width: int = 128,
        depth: int = 2,
        dropout: float = 0.1,
        *,
        embedding: int = 16,
        activation: str = "relu",
        norm: bool = False,
    ) -> None:
        for name, value, least in (
            ("outputs", outputs, 1),
            ("width", width, 1),
            ("depth", depth, 0),
            ("embedding", embedding, 1),
        ):
            if value < least:
                raise ValueError(f"{name}={value}: must be at least {least}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: must lie in [0, 1)")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: expected one of {', '.join(map(repr, ACTIVATIONS))}")
        widths, embedded = _runs(layout, embedding)
        embed = BlockEmbedding(widths, embedded, embedding) if any(embedded) else nn.Identity()
        features = embed.out_features if isinstance(embed, BlockEmbedding) else sum(widths)
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Linear(features, width), *([nn.LayerNorm(width)] if norm else [])]
            layers += [ACTIVATIONS[activation](), nn.Dropout(dropout)]
            features = width
        body, head = nn.Sequential(*layers), nn.Linear(features, outputs)
        super().__init__(OrderedDict(embed=embed, body=body, head=head))

    def forward(self, inputs: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """Return logits, or values, of ``inputs``."""
        outputs: Tensor = super().forward(inputs)
        return outputs


def _runs(layout: Sequence[tuple[str, str, int, int]] | int, embedding: int) -> tuple[list[int], list[bool]]:
    """Widths of the blocks to embed and of the runs of columns between them, and which are which."""
    if isinstance(layout, int):
        layout = [("", "number", 0, layout)]
    widths: list[int] = []
    embedded: list[bool] = []
    end = 0
    for column, kind, start, stop in layout:
        if start != end or stop < start:
            raise ValueError(f"layout: {column!r} stands at {start} to {stop}, expected to start at {end}")
        end = stop
        wide = kind in ("category", "text") and stop - start > embedding
        if wide or not widths or embedded[-1]:
            widths.append(stop - start)
            embedded.append(wide)
        else:
            widths[-1] += stop - start
    if end < 1:
        raise ValueError(f"layout: {end} columns, expected at least 1")
    return widths, embedded
