"""A LoopLM written down slowly from the papers: what the fast one is held against.

Straight-through estimators by `detach`, attention by an explicit softmax, every token's objective
by itself. It reads the parameters of the model under test, in their own precision.
"""

import math

import torch
from torch import Tensor

from kernels.model.model import LoopLM


def fake_ternary(w: Tensor) -> Tensor:
    g = w.abs().mean().clamp(min=1e-5)
    return w + ((w / g).round().clamp(-1, 1) * g - w).detach()


def fake_int8(x: Tensor) -> Tensor:
    s = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    return x + ((x * s).round().clamp(-128, 127) / s - x).detach()


class Reference:
    """The same function as `model`, from the same parameters."""

    def __init__(self, model: LoopLM) -> None:
        self.config = model.config
        self.p = dict(model.named_parameters())

    def linear(self, name: str, x: Tensor) -> Tensor:
        w = self.p[f"{name}.weight"]
        if not self.config.ternary:
            return x @ w.T
        return fake_int8(x) @ fake_ternary(w).T

    def norm(self, name: str, x: Tensor) -> Tensor:
        rms = (x.square().mean(-1, keepdim=True) + self.config.norm_eps).sqrt()
        return x / rms * self.p[f"{name}.weight"]

    def rotate(self, x: Tensor) -> Tensor:
        """Position s turns the plane of components (i, i + D/2) by s * base^(-2i/D)."""
        D = x.shape[-1]
        out = torch.empty_like(x)
        for s in range(x.shape[-2]):
            for i in range(D // 2):
                angle = s * self.config.rope_base ** (-2 * i / D)
                # single precision, as the model's tables are
                cos = torch.tensor(math.cos(angle)).float().to(x.dtype)
                sin = torch.tensor(math.sin(angle)).float().to(x.dtype)
                a, b = x[..., s, i], x[..., s, i + D // 2]
                out[..., s, i] = a * cos - b * sin
                out[..., s, i + D // 2] = b * cos + a * sin
        return out

    def attention(self, name: str, x: Tensor) -> Tensor:
        B, S, C = x.shape
        heads = (B, S, self.config.heads, C // self.config.heads)
        q, k, v = (self.linear(f"{name}.{n}", x).view(heads).transpose(1, 2) for n in "qkv")
        q, k = self.rotate(q), self.rotate(k)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        future = torch.ones(S, S, dtype=torch.bool).triu(1)
        y = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        y = y.transpose(1, 2).reshape(B, S, C)
        return self.linear(f"{name}.o", self.norm(f"{name}.sub_norm", y))

    def ffn(self, name: str, x: Tensor) -> Tensor:
        hidden = self.linear(f"{name}.gate", x).relu() ** 2 * self.linear(f"{name}.up", x)
        return self.linear(f"{name}.down", self.norm(f"{name}.sub_norm", hidden))

    def states(self, tokens: Tensor) -> list[Tensor]:
        h = self.p["embedding.weight"][tokens]
        states: list[Tensor] = []
        for _ in range(self.config.loops):
            for number in range(self.config.layers):
                n = f"layers.{number}"
                y = self.attention(f"{n}.attention", self.norm(f"{n}.attention_norm_in", h))
                h = h + self.norm(f"{n}.attention_norm_out", y)
                y = self.ffn(f"{n}.ffn", self.norm(f"{n}.ffn_norm_in", h))
                h = h + self.norm(f"{n}.ffn_norm_out", y)
            h = self.norm("norm", h)
            states.append(h)
        return states

    def logits(self, h: Tensor) -> Tensor:
        return h @ self.p.get("head.weight", self.p["embedding.weight"]).T

    def objective(self, tokens: Tensor, documents: Tensor, beta: float) -> Tensor:
        """Token by token, exit by exit."""
        states = self.states(tokens[:, :-1])
        gates = [
            (h @ self.p["exit_gate.weight"].T + self.p["exit_gate.bias"]).squeeze(-1)
            for h in states
        ]
        total = torch.zeros((), dtype=states[0].dtype)
        for b in range(tokens.shape[0]):
            for s in range(tokens.shape[1] - 1):
                if documents[b, s] != documents[b, s + 1]:
                    continue
                left = torch.ones((), dtype=total.dtype)
                for t, h in enumerate(states):
                    leave = gates[t][b, s].sigmoid() if t < len(states) - 1 else 1.0
                    p = left * leave
                    left = left * (1.0 - leave)
                    ce = -self.logits(h[b, s]).log_softmax(-1)[tokens[b, s + 1]]
                    total = total + p * ce + beta * p * p.log()
        return total
