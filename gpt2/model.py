"""GPT-2: five flat arrays' worth of model, and its forward and backward pass as a sequence of kernels."""

import functools
import math

import numpy as np

from gpt2.errors import UserError
from gpt2.formats import llmc, pretrained
from gpt2.kernels.attention import attention_backward, attention_forward, attention_scratch_shape
from gpt2.kernels.classifier import classifier_backward, classifier_forward
from gpt2.kernels.encoder import encoder_backward, encoder_forward
from gpt2.kernels.layernorm import layernorm_backward, layernorm_forward
from gpt2.kernels.matmul import (
    matmul_backward,
    matmul_forward,
    matmul_gelu_backward,
    matmul_gelu_forward,
    matmul_nn,
    matmul_nt,
    matmul_parameters_backward,
    matmul_residual_forward,
    matmul_tn,
)
from gpt2.layout import MATRICES, Layout, parameter_layout
from gpt2.memory import allocate

# Rows whose logits exist at a time: at GPT-2's vocabulary 256 rows are 51 MB.
CLASSIFIER_ROWS = 256


def activation_layout(config, B, T):
    """What a forward pass keeps for the backward pass, layer by layer, then scratch.

    The outputs of layernorms and of attention are not kept: the backward pass makes them again. The logits lie where
    the layers' scratch does (see scratch_layout), in "shared": neither is needed while the other is.
    """
    C, L, NH, N = config.C, config.L, config.NH, B * T
    return Layout(
        {
            "encoded": (N, C),
            "ln1_mean": (L, N),
            "ln1_rstd": (L, N),
            "qkv": (L, B, T, 3 * C),
            "lse": (L, B, NH, T),
            "residual2": (L, N, C),
            "ln2_mean": (L, N),
            "ln2_rstd": (L, N),
            "fch": (L, N, 4 * C),
            "residual3": (L, N, C),
            "lnf": (N, C),
            "lnf_mean": (N,),
            "lnf_rstd": (N,),
            "logits_lse": (N,),
            "losses": (N,),
            "dnarrow": (N, C),
            "shared": (max(math.prod(logits_shape(config, N)), scratch_layout(config, B, T).size),),
        }
    )


def scratch_layout(config, B, T):
    """What each layer uses anew, and "dresidual", which goes down through all of them: none of it outlives a pass."""
    C, N = config.C, B * T
    return Layout(
        {
            "attention_scratch": attention_scratch_shape(B, T, config.NH),
            "ln": (N, C),
            "atty": (B, T, C),
            "fch_gelu": (N, 4 * C),
            "dqkv": (B, T, 3 * C),
            "dfch": (N, 4 * C),
            "dresidual": (N, C),
        }
    )


def logits_shape(config, N):
    """Shape of the logits that exist at a time."""
    return min(N, CLASSIFIER_ROWS), config.Vp


class GPT2:
    """A GPT-2 model and the memory to train it.

    Attributes: `config`; `params_flat` and `grads_flat`, the flat arrays; `params` and `grads`, dicts of name -> shaped
    view of them (see `layout.parameter_layout`), the gradients from their first use on; `acts`, the same for the
    activations, from the first forward pass on.
    """

    def __init__(self, config, seed=0, dtype=np.float32):
        """Makes a model with GPT-2's random initialisation, the same for the same seed.

        dtype: np.float32; np.float64 is for checking gradients.
        """
        params_flat = allocate(parameter_layout(config).size, dtype, "the parameters")
        self._own(config, params_flat)
        _initialise(self.params, config, seed)

    def _own(self, config, params_flat):
        self.config = config
        self.params_flat = params_flat
        self.params = parameter_layout(config).views(params_flat)
        self._acts_flat = allocate(0, params_flat.dtype, "the activations")
        self._shape = self._tokens = self._targets = None
        self._accumulate = None

    @functools.cached_property
    def grads_flat(self):
        # Allocated when they are first needed: a model that only evaluates has none.
        return allocate(self.params_flat.size, self.params_flat.dtype, "the gradients")

    @functools.cached_property
    def grads(self):
        return parameter_layout(self.config).views(self.grads_flat)

    @classmethod
    def _from_parameters(cls, config, params_flat):
        model = cls.__new__(cls)
        model._own(config, params_flat)
        return model

    @classmethod
    def load(cls, path):
        """Reads a model file in llm.c's format (float32 or bfloat16), the folder of a run, or a Hugging Face folder."""
        return cls._from_parameters(*pretrained.load_path(path))

    @classmethod
    def from_pretrained(cls, name, data_dir="data", writable=True):
        """A model by its name, as `pretrained.load_weights` takes it: "gpt2-large", "owner/name", a file, a folder."""
        return cls._from_parameters(*pretrained.load_weights(name, data_dir, writable))

    def __reduce__(self):
        # A copy's tensors must be views of its own arrays. It starts without gradients and activations.
        return type(self)._from_parameters, (self.config, self.params_flat)

    def save(self, path):
        """Writes the parameters in llm.c's format, version 3."""
        llmc.save_model(path, self.config, self.params_flat)

    def zero_grad(self):
        """Sets all gradients to zero."""
        self._accumulate = None
        self.grads_flat.fill(0)

    def forward(self, tokens, targets=None, accumulate=None):
        """Runs the model; returns the mean cross-entropy in nats, or None without targets.

        tokens, targets: integers (B,T) below V, T at most maxT. What a backward pass needs is kept until the next call.
        accumulate: whether backward(), which will follow, adds to the gradients (True) or overwrites them (False, which
        saves a zero_grad). Its part in the classifier then happens here, while each chunk of logits is at hand, so
        this call changes the gradient of wte, and another call before backward() is refused, unless it overwrites or
        zero_grad() came between. With None, backward() makes the logits once more, and adds.
        """
        if self._accumulate is not None and (accumulate is None or accumulate):
            raise RuntimeError("backward() must follow forward(accumulate=...), or zero_grad() if that is given up")
        tokens, targets = self._checked(tokens), None if targets is None else self._checked(targets)
        if targets is not None and targets.shape != tokens.shape:
            raise UserError(f"targets of shape {targets.shape} do not go with tokens of shape {tokens.shape}")
        self._reserve(*tokens.shape)
        if accumulate is not None and targets is not None:
            _ = self.grads  # for which there may be no memory: nothing has changed yet
        self._tokens, self._targets = tokens, targets
        self._forward_trunk(tokens)
        self._accumulate = None if accumulate is None or targets is None else bool(accumulate)
        return None if targets is None else self._classify(targets.reshape(-1), self._accumulate)

    def logits(self, tokens):
        """Returns the logits, (B,T,V), for tokens (B,T)."""
        self.forward(tokens)
        B, T = self._tokens.shape
        out = np.empty((B * T, self.config.V), self.params_flat.dtype)
        for rows, logits in self._classifier_chunks():
            matmul_nt(logits, self.acts["lnf"][rows], self.params["wte"])
            out[rows] = logits[:, : self.config.V]
        return out.reshape(B, T, self.config.V)

    def last_logits(self, tokens):
        """Returns the logits of the last position only, (B,V), for tokens (B,T)."""
        self.forward(tokens)
        B, T = self._tokens.shape
        last = self.acts["lnf"].reshape(B, T, -1)[:, -1].copy()
        out = np.empty((B, self.config.Vp), self.params_flat.dtype)
        matmul_nt(out, last, self.params["wte"])
        return out[:, : self.config.V]

    def backward(self):
        """Adds the gradients of the last forward call's mean loss to `grads`, or writes them if it said so."""
        if self._targets is None:
            raise RuntimeError("backward() needs a forward(tokens, targets) before it")
        if self._accumulate is None:
            self._classify(self._targets.reshape(-1), accumulate=True)
        self._backward_trunk(self._tokens, beta=0.0 if self._accumulate is False else 1.0)
        self._accumulate = None

    def _checked(self, tokens):
        tokens = np.asarray(tokens)
        if tokens.ndim != 2 or tokens.size == 0 or tokens.dtype.kind not in "iu":
            raise UserError(f"tokens of shape {tokens.shape}, {tokens.dtype}: integers (B, T) expected, at least one")
        if tokens.shape[1] > self.config.maxT:
            raise UserError(f"{tokens.shape[1]} tokens in a row, but the model's positions end at {self.config.maxT}")
        if tokens.min() < 0 or tokens.max() >= self.config.V:
            raise UserError(f"a token is not between 0 and the vocabulary's last, {self.config.V - 1}")
        # A copy: the backward pass trusts what was checked here.
        return np.array(tokens, dtype=np.int32, order="C")

    def _reserve(self, B, T):
        """Makes room for the activations of a (B,T) batch: the array in hand serves if it is large enough."""
        if self._shape == (B, T):
            return
        layout = activation_layout(self.config, B, T)
        if layout.size > self._acts_flat.size:
            # Lets go of the smaller array first, and holds none should there be no room for the larger.
            self.acts = self._shape = self._targets = None
            self._acts_flat = self._acts_flat[:0].copy()
            self._acts_flat = allocate(layout.size, self.params_flat.dtype, f"the activations of {B}x{T} tokens")
        self.acts = layout.views(self._acts_flat[: layout.size])
        shared = self.acts["shared"]
        for part in (scratch_layout(self.config, B, T), Layout({"logits": logits_shape(self.config, B * T)})):
            self.acts |= part.views(shared[: part.size])
        self._shape = (B, T)

    def _forward_trunk(self, tokens):
        """Everything up to the final layernorm."""
        p, a, L = self.params, self.acts, self.config.L
        B, T = tokens.shape
        N, C = a["encoded"].shape
        encoder_forward(a["encoded"].reshape(B, T, C), tokens, p["wte"], p["wpe"])
        residual, ln, atty = a["encoded"], a["ln"], a["atty"].reshape(N, C)
        for l in range(L):
            layernorm_forward(ln, a["ln1_mean"][l], a["ln1_rstd"][l], residual, p["ln1w"][l], p["ln1b"][l])
            matmul_forward(a["qkv"][l].reshape(N, 3 * C), ln, p["qkvw"][l], p["qkvb"][l])
            attention_forward(a["atty"], a["lse"][l], a["qkv"][l], a["attention_scratch"])
            residual2, residual3 = a["residual2"][l], a["residual3"][l]
            matmul_residual_forward(residual2, residual, atty, p["attprojw"][l], p["attprojb"][l])
            layernorm_forward(ln, a["ln2_mean"][l], a["ln2_rstd"][l], residual2, p["ln2w"][l], p["ln2b"][l])
            matmul_gelu_forward(a["fch_gelu"], a["fch"][l], ln, p["fcw"][l], p["fcb"][l])
            matmul_residual_forward(residual3, residual2, a["fch_gelu"], p["fcprojw"][l], p["fcprojb"][l])
            residual = residual3
        layernorm_forward(a["lnf"], a["lnf_mean"], a["lnf_rstd"], residual, p["lnfw"], p["lnfb"])

    def _backward_trunk(self, tokens, beta):
        """From the gradient of the final layernorm's output, in "dnarrow", down to the embeddings.

        The gradients of parameters are first multiplied by beta: 0 overwrites them. The products do so as they write;
        the other tensors are small, and wte's gradient has been begun by the classifier.
        """
        p, g, a, L = self.params, self.grads, self.acts, self.config.L
        B, T = tokens.shape
        N, C = a["encoded"].shape
        if beta == 0:
            for name in g.keys() - {"wte", "qkvw", "attprojw", "fcw", "fcprojw"}:
                g[name].fill(0)
        dresidual, dnarrow, dqkv, dfch = a["dresidual"], a["dnarrow"], a["dqkv"].reshape(N, 3 * C), a["dfch"]
        ln = a["ln"]
        residual = a["residual3"][L - 1]
        mean, rstd = a["lnf_mean"], a["lnf_rstd"]
        dresidual.fill(0)
        layernorm_backward(dresidual, g["lnfw"], g["lnfb"], dnarrow, residual, p["lnfw"], mean, rstd)
        for l in reversed(range(L)):
            matmul_gelu_backward(dfch, a["fch_gelu"], dresidual, a["fch"][l], p["fcprojw"][l])
            matmul_parameters_backward(g["fcprojw"][l], g["fcprojb"][l], dresidual, a["fch_gelu"], beta)
            residual, mean, rstd = a["residual2"][l], a["ln2_mean"][l], a["ln2_rstd"][l]
            layernorm_forward(ln, mean, rstd, residual, p["ln2w"][l], p["ln2b"][l])
            matmul_backward(dnarrow, g["fcw"][l], g["fcb"][l], dfch, ln, p["fcw"][l], beta)
            layernorm_backward(dresidual, g["ln2w"][l], g["ln2b"][l], dnarrow, residual, p["ln2w"][l], mean, rstd)
            matmul_nn(dnarrow, dresidual, p["attprojw"][l])
            datty, scratch = dnarrow.reshape(B, T, C), a["attention_scratch"]
            attention_backward(a["dqkv"], datty, a["qkv"][l], a["atty"], a["lse"][l], scratch)
            atty = a["atty"].reshape(N, C)
            matmul_parameters_backward(g["attprojw"][l], g["attprojb"][l], dresidual, atty, beta)
            residual = a["residual3"][l - 1] if l else a["encoded"]
            mean, rstd = a["ln1_mean"][l], a["ln1_rstd"][l]
            layernorm_forward(ln, mean, rstd, residual, p["ln1w"][l], p["ln1b"][l])
            matmul_backward(dnarrow, g["qkvw"][l], g["qkvb"][l], dqkv, ln, p["qkvw"][l], beta)
            layernorm_backward(dresidual, g["ln1w"][l], g["ln1b"][l], dnarrow, residual, p["ln1w"][l], mean, rstd)
        encoder_backward(g["wte"], g["wpe"], dresidual.reshape(B, T, C), tokens)

    def _classifier_chunks(self):
        """Yields (range of rows, place for their logits) over all rows."""
        logits = self.acts["logits"]
        N = self.acts["lnf"].shape[0]
        for start in range(0, N, CLASSIFIER_ROWS):
            rows = slice(start, min(N, start + CLASSIFIER_ROWS))
            yield rows, logits[: rows.stop - start]

    def _classify(self, targets, accumulate):
        """Returns the mean loss. Unless accumulate is None, also does the backward pass down to "dnarrow", in which
        each chunk of logits becomes its own gradient.
        """
        a, V, wte, N = self.acts, self.config.V, self.params["wte"], targets.size
        beta = 1.0 if accumulate else 0.0
        for rows, logits in self._classifier_chunks():
            lnf, lse = a["lnf"][rows], a["logits_lse"][rows]
            matmul_nt(logits, lnf, wte)
            classifier_forward(a["losses"][rows], lse, logits, targets[rows], V)
            if accumulate is not None:
                classifier_backward(logits, lse, targets[rows], 1.0 / N, V)
                matmul_nn(a["dnarrow"][rows], logits, wte)
                matmul_tn(self.grads["wte"], logits, lnf, beta)
                beta = 1.0
        return float(a["losses"].sum(dtype=np.float64) / N)


def _initialise(params, config, seed):
    """GPT-2's random initialisation (Radford et al., 2019, section 2.3): weights and embeddings are normal with
    standard deviation 0.02, those that end in the residual stream divided by sqrt(2L); layernorms are the identity,
    biases 0.
    """
    rng = np.random.default_rng(seed)
    for name, tensor in params.items():
        if name in ("ln1w", "ln2w", "lnfw"):
            tensor.fill(1)
        elif name in MATRICES:
            deviation = 0.02 / np.sqrt(2 * config.L) if name in ("attprojw", "fcprojw") else 0.02
            rng.standard_normal(out=tensor, dtype=tensor.dtype)
            tensor *= tensor.dtype.type(deviation)
    params["wte"][config.V :] = 0
