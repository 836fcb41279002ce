"""Layers shared by the networks: initialisation, MLP trunk, masked attention."""

from __future__ import annotations

import math

import torch as th
from torch import nn
from torch.nn import functional as F

HIDDEN_GAIN = math.sqrt(2.0)
"""Orthogonal gain in front of a ReLU."""
OUTPUT_GAIN = 0.01
"""Small gain on policy outputs: the first policy is close to uniform."""


def linear(n_in: int, n_out: int, gain: float = HIDDEN_GAIN) -> nn.Linear:
    """Linear layer with orthogonal weights and zero bias."""
    layer = nn.Linear(n_in, n_out)
    nn.init.orthogonal_(layer.weight, gain=gain)
    nn.init.zeros_(layer.bias)
    return layer


def mlp_trunk(n_in: int, hidden_size: int, layer_norm: bool = True, n_layers: int = 2) -> nn.Sequential:
    """``n_layers`` of Linear, ReLU and (optionally) LayerNorm; no norm on the raw input, which would alias coordinates."""
    layers: list[nn.Module] = []
    for index in range(n_layers):
        layers += [linear(n_in if index == 0 else hidden_size, hidden_size), nn.ReLU()]
        if layer_norm:
            layers.append(nn.LayerNorm(hidden_size))
    return nn.Sequential(*layers)


def orthogonal_gru(n_in: int, hidden_size: int) -> nn.GRU:
    """One-layer GRU over (L, R, n_in) with orthogonal weights and zero biases."""
    gru = nn.GRU(n_in, hidden_size)
    for name, parameter in gru.named_parameters():
        if "weight" in name:
            nn.init.orthogonal_(parameter)
        else:
            nn.init.zeros_(parameter)
    return gru


def gru_step(gru: nn.GRU, inputs: th.Tensor, hidden: th.Tensor) -> th.Tensor:
    """One step of a one-layer GRU without the sequence machinery: (R, n_in), (R, H) -> (R, H)."""
    w_ih, w_hh, b_ih, b_hh = gru.all_weights[0]
    return th.gru_cell(inputs, hidden, w_ih, w_hh, b_ih, b_hh)


class GELU(nn.GELU):
    """``nn.GELU`` over (R, ..., W) that computes on few different numbers of rows.

    On the CPU torch has oneDNN compile and keep a kernel for every shape it meets, up to a thousand of some 50 kB each. A
    rollout has another number of assignments every time, so rows of zeros fill up to the next of a few sizes. Results stay the
    same, to the bit.
    """

    def forward(self, input: th.Tensor) -> th.Tensor:
        n_rows = len(input)
        n_more = next_size(n_rows) - n_rows
        if not n_more or input.device.type != "cpu":
            return super().forward(input)
        return super().forward(F.pad(input, (*[0, 0] * (input.dim() - 1), 0, n_more)))[:n_rows]


def next_size(n_rows: int) -> int:
    """The smallest of the sizes 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, ... (four per doubling) that holds ``n_rows``."""
    step = 1 << max((n_rows - 1).bit_length() - 3, 0)
    return -(-n_rows // step) * step


class Attention(nn.Module):
    """Multi-head scaled dot-product attention.

    :param width: size of a token
    :param n_heads: must divide ``width``
    """

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        if width % n_heads:
            raise ValueError(f"n_heads must divide the token width, got width {width} and n_heads {n_heads}.")
        self.n_heads = n_heads
        self.query = linear(width, width, OUTPUT_GAIN)
        self.key = linear(width, width, OUTPUT_GAIN)
        self.value = linear(width, width, OUTPUT_GAIN)
        self.output = linear(width, width, OUTPUT_GAIN)

    def forward(self, query: th.Tensor, memory: th.Tensor, mask: th.Tensor | None = None) -> th.Tensor:
        """(R, Q, W) looks at (R, K, W); ``mask`` (Q, K) bool says who may be seen. Returns (R, Q, W)."""
        rows, n_query, width = query.shape
        n_memory = memory.shape[1]

        def split(tokens: th.Tensor, length: int) -> th.Tensor:
            # from (R, length, heads * size) to (R, heads, length, size)
            return tokens.view(rows, length, self.n_heads, width // self.n_heads).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            split(self.query(query), n_query),
            split(self.key(memory), n_memory),
            split(self.value(memory), n_memory),
            attn_mask=mask,
        )
        # from (R, heads, Q, size) to (R, Q, heads * size)
        joined: th.Tensor = self.output(mixed.transpose(1, 2).reshape(rows, n_query, width))
        return joined


def causal_mask(n_tokens: int, device: th.device) -> th.Tensor:
    """(n, n) bool, True where a token may look: at itself and at what came before."""
    return th.ones(n_tokens, n_tokens, dtype=th.bool, device=device).tril()
