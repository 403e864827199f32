"""Trains some steps with PyTorch: GPT-2 from plain nn modules, eager or torch.compile, float32 or autocast to bf16."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from bench import common


class Attention(nn.Module):
    def __init__(self, C, NH):
        super().__init__()
        self.NH = NH
        self.qkv = nn.Linear(C, 3 * C)
        self.proj = nn.Linear(C, C)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.NH, C // self.NH).transpose(1, 2) for part in self.qkv(x).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, C, NH):
        super().__init__()
        self.ln1 = nn.LayerNorm(C)
        self.attention = Attention(C, NH)
        self.ln2 = nn.LayerNorm(C)
        self.fc = nn.Linear(C, 4 * C)
        self.fcproj = nn.Linear(4 * C, C)

    def forward(self, x):
        x = x + self.attention(self.ln1(x))
        return x + self.fcproj(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self, maxT, V, L, NH, C):
        super().__init__()
        self.wte = nn.Embedding(V, C)
        self.wpe = nn.Embedding(maxT, C)
        self.blocks = nn.ModuleList([Block(C, NH) for _ in range(L)])
        self.lnf = nn.LayerNorm(C)
        self.lm_head = nn.Linear(C, V, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens, targets):
        """Returns the mean cross-entropy of tokens (B,T) and targets (B,T)."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = self.lm_head(self.lnf(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


@torch.no_grad()
def load(path):
    """Reads a model file in llm.c's format, version 3, tensor by tensor, so there is no second copy of the model."""
    with open(path, "rb") as file:
        magic, version, maxT, V, L, NH, C, Vp = np.fromfile(file, "<i4", 256)[:8].tolist()
        assert (magic, version) == (20240326, 3)
        model = GPT2(maxT, V, L, NH, C)

        def read(parameter):
            data = np.fromfile(file, "<f4", parameter.numel())
            parameter.copy_(torch.from_numpy(data).view_as(parameter))

        read(model.wte.weight)
        file.seek(4 * (Vp - V) * C, 1)  # the padding of the vocabulary
        read(model.wpe.weight)
        for name in ("ln1", "attention.qkv", "attention.proj", "ln2", "fc", "fcproj"):
            modules = [block.get_submodule(name) for block in model.blocks]
            for module in modules:
                read(module.weight)
            for module in modules:
                read(module.bias)
        read(model.lnf.weight)
        read(model.lnf.bias)
    return model


def main():
    job = common.read_job()
    torch.set_num_threads(job["threads"])
    model = load(job["model"])
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": common.WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=common.LEARNING_RATE, fused=True)
    if job["mode"] == "compile":
        model = torch.compile(model)
    tokens, targets = map(torch.from_numpy, common.batch(job))

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=job["precision"] == "bf16"):
            loss = model(tokens, targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    step_ms, losses = common.time_steps(step, job)
    common.answer([torch, np], step_ms=step_ms, losses=losses)


if __name__ == "__main__":
    main()
