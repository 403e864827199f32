"""GPT-2 in plain float64 NumPy: the slow, independent oracle that the tests compare the package with.

Every layer is written from its formula, with whole matrices, and shares nothing with the package but the names of the
16 tensors. A backward function takes the gradient of the layer's output, then the layer's inputs, and returns the
gradients of those inputs; it keeps nothing from the forward pass.
"""

import hashlib
import math
import struct

import numpy as np

LAYER_NAMES = ("ln1w", "ln1b", "qkvw", "qkvb", "attprojw", "attprojb")
LAYER_NAMES += ("ln2w", "ln2b", "fcw", "fcb", "fcprojw", "fcprojb")
DECAYED = {"wte", "wpe", "qkvw", "attprojw", "fcw", "fcprojw"}


def embedding(tokens, wte, wpe):
    """tokens (B,T), wte (Vp,C), wpe (maxT,C) -> (B,T,C)."""
    return wte[tokens] + wpe[: tokens.shape[1]]


def embedding_backward(dout, tokens, wte, wpe):
    dwte, dwpe = np.zeros(wte.shape), np.zeros(wpe.shape)
    np.add.at(dwte, tokens, dout)
    dwpe[: tokens.shape[1]] = dout.sum(axis=0)
    return dwte, dwpe


def normalised(x):
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)


def layernorm(x, weight, bias):
    """x (...,C), weight and bias (C,) -> (...,C)."""
    return normalised(x) * weight + bias


def layernorm_backward(dout, x, weight, bias):
    C = x.shape[-1]
    norm = normalised(x)
    # The Jacobian of one row: (I - 1/C - norm norm^T / C) / sqrt(variance + eps).
    jacobian = np.eye(C) - 1 / C - norm[..., :, None] * norm[..., None, :] / C
    dnorm = (dout * weight)[..., None, :]
    dx = (dnorm @ jacobian)[..., 0, :] / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    return dx, _over_rows(dout * norm), _over_rows(dout)


def linear(x, weight, bias):
    """x (...,C), weight (OC,C), bias (OC,) -> (...,OC)."""
    return x @ weight.T + bias


def linear_backward(dout, x, weight, bias):
    rows, drows = x.reshape(-1, x.shape[-1]), dout.reshape(-1, dout.shape[-1])
    return dout @ weight, drows.T @ rows, _over_rows(dout)


def attention_scores(qkv, NH):
    """qkv (B,T,3C) -> scaled scores (B,NH,T,T), minus infinity for keys in a query's future."""
    q, k, _ = _heads(qkv, NH)
    T, HS = q.shape[-2:]
    return np.where(np.tri(T, dtype=bool), q @ _transposed(k) / np.sqrt(HS), -np.inf)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log_sum_exp(x):
    highest = x.max(axis=-1)
    return highest + np.log(np.exp(x - highest[..., None]).sum(axis=-1))


def attention(qkv, NH, mask=1.0):
    """Causal self-attention: qkv (B,T,3C), a mask (B,NH,T,T) of its probabilities -> (B,T,C)."""
    _, _, v = _heads(qkv, NH)
    return _merged((mask * softmax(attention_scores(qkv, NH))) @ v)


def attention_backward(dout, qkv, NH, mask=1.0):
    q, k, v = _heads(qkv, NH)
    (dout,) = _heads(dout, NH, parts=1)
    p = softmax(attention_scores(qkv, NH))
    dp = mask * (dout @ _transposed(v))
    dscores = p * (dp - (dp * p).sum(axis=-1, keepdims=True)) / np.sqrt(q.shape[-1])
    gradients = dscores @ k, _transposed(dscores) @ q, _transposed(mask * p) @ dout
    return np.concatenate([_merged(gradient) for gradient in gradients], axis=-1)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_backward(dout, x):
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    dinner = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    return dout * (0.5 * (1 + np.tanh(inner)) + 0.5 * x / np.cosh(inner) ** 2 * dinner)


def cross_entropy(logits, targets):
    """logits (...,V), targets (...) -> the loss of each row, in nats."""
    return log_sum_exp(logits) - np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


def cross_entropy_backward(dout, logits, targets):
    one_hot = np.arange(logits.shape[-1]) == targets[..., None]
    return dout[..., None] * (softmax(logits) - one_hot)


def dropout_masks(p, seed, step, micro_step):
    """Returns a function mask(layer, place, *shape): an array of 0 and 1 / (1 - p), as kernels/dropout.py defines it.

    The last dimension counts the mask's columns, those before it its rows. Places: 0 the sum of the embeddings, 1
    attention's probabilities, 2 and 3 what attention and the MLP add to the residual stream.
    """

    def mask(layer, place, *shape):
        key = hashlib.sha256(struct.pack("<5q", seed, step, micro_step, layer, place)).digest()[:8]
        gamma, mix1, mix2 = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)
        row = np.frombuffer(key, "<u8") + gamma * np.arange(1, math.prod(shape[:-1]) + 1, dtype=np.uint64)
        row = (row ^ row >> 30) * mix1
        row = (row ^ row >> 27) * mix2
        row ^= row >> 31
        low, high = row.astype(np.uint32)[:, None], (row >> 32).astype(np.uint32)[:, None]
        x = np.arange(shape[-1], dtype=np.uint32) ^ low
        x = (x ^ x >> 16) * np.uint32(0x7FEB352D)
        x = (x ^ x >> 15 ^ high) * np.uint32(0x846CA68B)
        return ((x ^ x >> 16) >= int(p * 2**32)).reshape(shape) / (1 - p)

    return mask


def no_dropout(layer, place, *shape):
    return 1.0


def forward(params, config, tokens, mask=no_dropout):
    """Returns (logits (B,T,V), trace): trace has each block's intermediate values, then the last residual and lnf.

    params: dict of the 16 tensors of any float type; rows of wte from V on are not read. mask: see dropout_masks.
    """
    params = _float64(params)
    B, T = tokens.shape
    residual = mask(0, 0, B, T, config.C) * embedding(tokens, params["wte"], params["wpe"])
    trace = []
    for l in range(config.L):
        p = {name: params[name][l] for name in LAYER_NAMES}
        a = {"residual": residual}
        a["ln1"] = layernorm(residual, p["ln1w"], p["ln1b"])
        a["qkv"] = linear(a["ln1"], p["qkvw"], p["qkvb"])
        a["atty"] = attention(a["qkv"], config.NH, mask(l, 1, B, config.NH, T, T))
        attproj = linear(a["atty"], p["attprojw"], p["attprojb"])
        a["residual2"] = residual + mask(l, 2, B, T, config.C) * attproj
        a["ln2"] = layernorm(a["residual2"], p["ln2w"], p["ln2b"])
        a["fch"] = linear(a["ln2"], p["fcw"], p["fcb"])
        residual = a["residual2"] + mask(l, 3, B, T, config.C) * linear(gelu(a["fch"]), p["fcprojw"], p["fcprojb"])
        trace.append(a)
    lnf = layernorm(residual, params["lnfw"], params["lnfb"])
    trace += [residual, lnf]
    return lnf @ params["wte"][: config.V].T, trace


def loss_and_gradients(params, config, tokens, targets, mask=no_dropout):
    """Returns (mean loss, dict of the 16 gradients), the gradients in the shapes of `params`. mask: see `forward`.

    targets: -1 where there is none, and no loss.
    """
    logits, trace = forward(params, config, tokens, mask)
    B, T = tokens.shape
    params = _float64(params)
    grads = {name: np.zeros(tensor.shape) for name, tensor in params.items()}
    V = config.V
    residual, lnf = trace[-2:]
    weights = (targets >= 0) / np.count_nonzero(targets >= 0)
    targets = np.maximum(targets, 0)
    dlogits = cross_entropy_backward(weights, logits, targets)
    dlnf, grads["wte"][:V], _ = linear_backward(dlogits, lnf, params["wte"][:V], np.zeros(V))
    dresidual, grads["lnfw"], grads["lnfb"] = layernorm_backward(dlnf, residual, params["lnfw"], params["lnfb"])
    for l in reversed(range(config.L)):
        p, g, a = {name: params[name][l] for name in LAYER_NAMES}, {}, trace[l]
        dfcproj = mask(l, 3, B, T, config.C) * dresidual
        dgelu, g["fcprojw"], g["fcprojb"] = linear_backward(dfcproj, gelu(a["fch"]), p["fcprojw"], p["fcprojb"])
        dln2, g["fcw"], g["fcb"] = linear_backward(gelu_backward(dgelu, a["fch"]), a["ln2"], p["fcw"], p["fcb"])
        dresidual2, g["ln2w"], g["ln2b"] = layernorm_backward(dln2, a["residual2"], p["ln2w"], p["ln2b"])
        dresidual = dresidual + dresidual2
        dattproj = mask(l, 2, B, T, config.C) * dresidual
        datty, g["attprojw"], g["attprojb"] = linear_backward(dattproj, a["atty"], p["attprojw"], p["attprojb"])
        dqkv = attention_backward(datty, a["qkv"], config.NH, mask(l, 1, B, config.NH, T, T))
        dln1, g["qkvw"], g["qkvb"] = linear_backward(dqkv, a["ln1"], p["qkvw"], p["qkvb"])
        dresidual1, g["ln1w"], g["ln1b"] = layernorm_backward(dln1, a["residual"], p["ln1w"], p["ln1b"])
        dresidual = dresidual + dresidual1
        for name in LAYER_NAMES:
            grads[name][l] = g[name]
    dencoded = mask(0, 0, B, T, config.C) * dresidual
    dwte, grads["wpe"] = embedding_backward(dencoded, tokens, params["wte"], params["wpe"])
    grads["wte"] += dwte
    return float((weights * cross_entropy(logits, targets)).sum()), grads


def adamw(param, grad, m, v, step, lr, beta1, beta2, eps, weight_decay):
    """One AdamW step, counted from 1. Returns (param, m, v)."""
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad**2
    m_unbiased, v_unbiased = m / (1 - beta1**step), v / (1 - beta2**step)
    param = param - lr * weight_decay * param - lr * m_unbiased / (np.sqrt(v_unbiased) + eps)
    return param, m, v


def train(params, config, batches, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """Takes an AdamW step for each (tokens, targets) of `batches`; returns (the losses before them, the parameters)."""
    params = _float64(params)
    moments = {name: (np.zeros(tensor.shape), np.zeros(tensor.shape)) for name, tensor in params.items()}
    losses = []
    for step, (tokens, targets) in enumerate(batches, start=1):
        loss, grads = loss_and_gradients(params, config, tokens, targets)
        losses.append(loss)
        for name, grad in grads.items():
            decay = weight_decay if name in DECAYED else 0.0
            params[name], *moments[name] = adamw(params[name], grad, *moments[name], step, lr, beta1, beta2, eps, decay)
    return losses, params


def _float64(params):
    return {name: np.asarray(tensor, dtype=np.float64) for name, tensor in params.items()}


def _over_rows(x):
    return x.reshape(-1, x.shape[-1]).sum(axis=0)


def _transposed(x):
    return np.swapaxes(x, -1, -2)


def _heads(x, NH, parts=3):
    """(B,T,parts*C) -> parts of (B,NH,T,HS)."""
    B, T, channels = x.shape
    return x.reshape(B, T, parts, NH, channels // (parts * NH)).transpose(2, 0, 3, 1, 4)


def _merged(x):
    """(B,NH,T,HS) -> (B,T,C)."""
    B, NH, T, HS = x.shape
    return x.transpose(0, 2, 1, 3).reshape(B, T, NH * HS)
