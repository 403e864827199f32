"""GPT-2 in flat arrays, its forward and backward pass each a sequence of kernels."""

import dataclasses
import zlib

import numpy as np

from gpt2.errors import UserError
from gpt2.formats import llmc, pretrained
from gpt2.formats.tokenizer_folder import GPT2_SIZE
from gpt2.kernels.attention import attention_backward, attention_forward, attention_scratch_shape
from gpt2.kernels.classifier import classifier_backward, classifier_forward, gather_rows, scatter_rows
from gpt2.kernels.dropout import KEEP_ALL, dropout_forward, dropout_residual_forward
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
NO_TARGET = -1
# Where dropout acts: the sum of the embeddings, as of layer 0; in each layer, attention's probabilities, and what
# attention and the MLP add to the residual stream.
EMBEDDINGS, PROBABILITIES, ATTENTION_BRANCH, MLP_BRANCH = range(4)


def activation_layout(config, B, T):
    """The activations of a (B, T) batch that the backward pass needs, in the order of computation.

    The outputs of layernorms and of attention are not among them: the backward pass recomputes those.
    """
    C, L, NH, N = config.C, config.L, config.NH, B * T
    layer = {
        "ln1_mean": (L, N),
        "ln1_rstd": (L, N),
        "qkv": (L, B, T, 3 * C),
        "lse": (L, B, NH, T),
        "residual2": (L, N, C),
        "ln2_mean": (L, N),
        "ln2_rstd": (L, N),
        "fch": (L, N, 4 * C),
        "residual3": (L, N, C),
    }
    last = {"lnf": (N, C), "lnf_mean": (N,), "lnf_rstd": (N,), "logits_lse": (N,), "losses": (N,)}
    return Layout({"encoded": (N, C)} | layer | last, per_layer=layer)


def workspace_layout(config, B, T):
    """Memory that every pass overwrites: "dhidden", the gradient of a layer's hidden activations, and "shared".

    "shared" holds the tensors of either `scratch_layout` or `logits_layout`, which are never needed at the same time.
    """
    shared = max(logits_layout(config, B * T).size, scratch_layout(config, B, T).size)
    return Layout({"dhidden": (B * T, config.C), "shared": (shared,)})


def activations_size(config, B, T):
    """Elements of the flat array for a (B, T) batch: activations and workspace."""
    return activation_layout(config, B, T).size + workspace_layout(config, B, T).size


def scratch_layout(config, B, T):
    """Tensors that every layer reuses, and "dresidual", the gradient of the residual stream."""
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


def logits_layout(config, N):
    """The chunk of logits that exists at a time, out of N rows, and of hidden activations if only some rows count."""
    rows = min(N, CLASSIFIER_ROWS)
    return Layout({"logits": (rows, config.Vp), "counted": (rows, config.C)})


class GPT2:
    """A GPT-2 model and the memory to train it.

    Attributes: `config`; `params_flat` and `grads_flat`, the flat arrays; `params` and `grads`, dicts of name -> shaped
    view of them (see `layout.parameter_layout`); `acts`, the same for the activations that the last forward pass kept
    for a backward pass, empty before the first; `scratch`, for tensors that every pass overwrites. Gradients are
    allocated when first used: `has_gradients` is False for a model that only evaluates. `vocabulary` is the SHA-256 of
    the vocabulary's tokens, as `save` writes it: see llmc.save_model. `tokenizer` is what `generate` uses, a
    gpt2.Tokenizer or the TokenizerFolder that it is made from; None for GPT-2's, and if it is unknown. `bf16` is
    whether matrix products round their factors to bfloat16: False at first.
    """

    def __init__(self, config, seed=0, dtype=np.float32):
        """Makes a model with GPT-2's random initialisation, the same for the same seed.

        dtype: np.float32; np.float64 is for checking gradients.
        """
        params_flat = allocate(parameter_layout(config).size, dtype, "the parameters")
        self._own(config, params_flat)
        _initialise(self.params, config, seed)
        self._random = zlib.crc32(params_flat)

    def _own(self, config, params_flat):
        self.config = config
        self._params_flat = params_flat
        self.params = parameter_layout(config).views(params_flat)
        self.acts, self.scratch = {}, {}
        self._grads_flat = self._grads = None
        self._acts_flat = allocate(0, params_flat.dtype, "the activations")
        self._shape = None  # (B, T) that the activations are cut up for
        self._batch = None  # (tokens, targets, dropout) of the last forward pass that was completed
        self._bf16 = False
        self._random = None  # the checksum of random parameters, None for trained ones
        self.tokenizer = None
        self.vocabulary = None if config.V == GPT2_SIZE else llmc.UNKNOWN_VOCABULARY

    def __repr__(self):
        arrays = {"parameters": self._params_flat, "gradients": self._grads_flat, "activations": self._acts_flat}
        sizes = {what: array.nbytes for what, array in arrays.items() if array is not None and array.size}
        units = {
            what: f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB" for what, size in sizes.items()
        }
        memory = ", ".join(f"{what} {size}" for what, size in units.items())
        return f"GPT2({self.config}), {self.config.num_parameters:,} parameters\nmemory: {memory}"

    @property
    def params_flat(self):
        return self._params_flat

    @params_flat.setter
    def params_flat(self, array):
        _require_in_place("params_flat", self._params_flat, array)

    @property
    def grads_flat(self):
        if self._grads_flat is None:
            self._grads_flat = allocate(self.params_flat.size, self.params_flat.dtype, "the gradients")
        return self._grads_flat

    @grads_flat.setter
    def grads_flat(self, array):
        _require_in_place("grads_flat", self._grads_flat, array)

    @property
    def grads(self):
        if self._grads is None:
            self._grads = parameter_layout(self.config).views(self.grads_flat)
        return self._grads

    @property
    def bf16(self):
        return self._bf16

    @bf16.setter
    def bf16(self, rounds):
        if rounds and self.params_flat.dtype != np.float32:
            raise ValueError(f"a model in {self.params_flat.dtype} has no bfloat16 products: float32 expected")
        self._bf16 = bool(rounds)

    @property
    def has_gradients(self):
        return self._grads_flat is not None

    @property
    def is_untrained(self):
        """Whether the parameters are random: as they were initialised, to the last bit, or loaded from such a file."""
        if self._random is not None and self._random != zlib.crc32(self.params_flat):
            self._random = None
        return self._random is not None

    @classmethod
    def _from_parameters(cls, config, params_flat, is_untrained, vocabulary, tokenizer):
        model = cls.__new__(cls)
        model._own(config, params_flat)
        model.vocabulary, model.tokenizer = vocabulary, tokenizer
        if is_untrained:
            model._random = zlib.crc32(params_flat)
        return model

    @classmethod
    def load(cls, path):
        """Reads a model file in llm.c's format (float32 or bfloat16), the folder of a run, or a Hugging Face folder."""
        weights = pretrained.load_path(path)
        return cls._from_parameters(*weights, pretrained.has_random_weights(path), *pretrained.find_vocabulary(path))

    @classmethod
    def from_pretrained(cls, name, data_dir=None, writable=True):
        """A model by its name, as `pretrained.load_weights` takes it: "gpt2-large", "owner/name", a file, a folder."""
        weights = pretrained.load_weights(name, data_dir, writable)
        return cls._from_parameters(*weights, pretrained.has_random_weights(name), *pretrained.find_vocabulary(name))

    def grown(self, V):
        """Returns a model with V tokens, more than this one has, which must not be used any more.

        The new rows of wte are the mean of the old ones. Raises UserError if there is too little memory.
        """
        config = dataclasses.replace(self.config, V=V)
        layout, params_flat = parameter_layout(config), self._params_flat
        is_untrained = self.is_untrained
        if config.Vp != self.config.Vp:
            params_flat = allocate(layout.size, params_flat.dtype, "the parameters")
            for name, tensor in layout.views(params_flat).items():
                tensor[: len(self.params[name])] = self.params[name]
        wte = layout.views(params_flat)["wte"]
        wte[self.config.V : V] = wte[: self.config.V].mean(axis=0, dtype=np.float64)
        model = self._from_parameters(config, params_flat, is_untrained, self.vocabulary, self.tokenizer)
        model.bf16 = self.bf16
        return model

    def __reduce__(self):
        # A copy's tensors must be views of its own arrays. It starts without gradients and activations.
        parameters = self.config, self.params_flat, self.is_untrained, self.vocabulary, self.tokenizer
        return type(self)._from_parameters, parameters, {"_bf16": self._bf16}

    def save(self, path):
        """Writes the parameters in llm.c's format, version 3, with `vocabulary`, and `is_untrained` as a flag."""
        llmc.save_model(path, self.config, self.params_flat, untrained=self.is_untrained, vocabulary=self.vocabulary)

    def zero_grad(self):
        """Sets all gradients to zero."""
        self.grads_flat.fill(0)

    def forward(self, tokens, targets=None):
        """Runs the model; returns the mean cross-entropy in nats, or None without targets.

        tokens, targets: integers (B,T) below V, T at most maxT. A target of -1 has no loss and does not count, but one
        must. What a backward pass needs is kept until the next call.
        """
        tokens, targets = self._begin(tokens, targets)
        self._forward_trunk(tokens)
        loss = None if targets is None else self._classify(targets)
        self._batch = tokens, targets, None
        return loss

    def backward(self):
        """Adds the gradients of the last forward pass's mean loss to `grads`."""
        tokens, targets, dropout = self._batch or (None, None, None)
        if targets is None:
            raise RuntimeError("backward() needs a completed forward(tokens, targets) before it")
        self._classify(targets, beta=1.0)
        self._backward_trunk(tokens, dropout, beta=1.0)

    def overwrite_gradients(self, tokens, targets, dropout=None, weight=1.0):
        """Sets `grads` to the gradients of the mean loss of a batch; returns that loss.

        The same as zero_grad(), forward() and backward(), but faster: nothing is cleared first, and the logits are
        computed once instead of twice. tokens, targets: as in `forward`. dropout: a kernels.dropout.Dropout, or None
        to drop nothing, as `forward` does. weight: what the gradients, not the loss, are multiplied by.
        """
        return self._forward_backward(tokens, targets, dropout, weight, beta=0.0)

    def add_gradients(self, tokens, targets, dropout=None, weight=1.0):
        """Does the same as `overwrite_gradients`, but adds to `grads`: for the further micro-batches of a step."""
        return self._forward_backward(tokens, targets, dropout, weight, beta=1.0)

    def _forward_backward(self, tokens, targets, dropout, weight, beta):
        tokens, targets = self._begin(tokens, targets)
        _ = self.grads  # allocated before anything changes: there may be no memory for them
        self._forward_trunk(tokens, dropout)
        loss = self._classify(targets, beta, weight)
        self._backward_trunk(tokens, dropout, beta)
        self._batch = tokens, targets, dropout
        return loss

    def logits(self, tokens):
        """Returns the logits, (B,T,V), for tokens (B,T)."""
        self.forward(tokens)
        B, T = self._shape
        out = np.empty((B * T, self.config.V), self.params_flat.dtype)
        for rows, logits in self._classifier_chunks(B * T):
            matmul_nt(logits, self.acts["lnf"][rows], self.params["wte"], self.bf16)
            out[rows] = logits[:, : self.config.V]
        return out.reshape(B, T, self.config.V)

    def last_logits(self, tokens):
        """Returns the logits of the last position only, (B,V), for tokens (B,T)."""
        self.forward(tokens)
        B, T = self._shape
        last = self.acts["lnf"].reshape(B, T, -1)[:, -1].copy()
        out = np.empty((B, self.config.Vp), self.params_flat.dtype)
        matmul_nt(out, last, self.params["wte"], self.bf16)
        return out[:, : self.config.V]

    def generate(self, prompt="", max_new_tokens=256, seed=None, *, tokenizer=None, **sampling):
        """Returns the prompt, a str, with the text that the model continues it by, up to the end of the text.

        An empty prompt starts a new document. seed: draws the same text again; None draws another each time. tokenizer:
        a gpt2.Tokenizer, default the model's own. sampling: temperature, top_k, top_p, min_p, repetition_penalty, see
        gpt2.inference.sampling.Sampling. The text is that of `gpt2 generate` with these options. It may be longer than
        maxT: see gpt2.inference.context.Context. Raises UserError for values out of range, and without a vocabulary.
        """
        from gpt2.inference.completion import complete

        return complete(self, prompt, max_new_tokens, seed, tokenizer, **sampling)

    def attention(self, tokens, layer):
        """Returns the attention probabilities of one layer, (B,NH,T,T): a row is a query's, over the keys up to it.

        The kernels keep no such matrix, so each call runs a forward pass. tokens: as in `forward`. layer: 0 to L - 1.
        """
        if not 0 <= layer < self.config.L:
            raise UserError(f"layer {layer}: the model's layers are 0 to {self.config.L - 1}")
        self.forward(tokens)
        return attention_probabilities(self.acts["qkv"][layer], self.config.NH)

    def _begin(self, tokens, targets):
        """Returns the batch as int32 copies, checked, with the activations ready for it."""
        tokens, targets = self._checked(tokens), None if targets is None else self._checked(targets, NO_TARGET)
        if targets is not None and targets.shape != tokens.shape:
            raise UserError(f"targets of shape {targets.shape} do not go with tokens of shape {tokens.shape}")
        if targets is not None and targets.max() == NO_TARGET:
            raise UserError("no token of the batch has a target: expected one at least")
        self._batch = None
        self._reserve(*tokens.shape)
        return tokens, targets

    def _checked(self, tokens, lowest=0):
        tokens = np.asarray(tokens)
        if tokens.ndim != 2 or tokens.size == 0 or tokens.dtype.kind not in "iu":
            raise UserError(f"tokens of shape {tokens.shape}, {tokens.dtype}: integers (B, T) expected, at least one")
        if tokens.shape[1] > self.config.maxT:
            raise UserError(f"{tokens.shape[1]} tokens in a row, but the model's positions end at {self.config.maxT}")
        if tokens.min() < lowest or tokens.max() >= self.config.V:
            raise UserError(f"a token is not between 0 and the vocabulary's last, {self.config.V - 1}")
        # A copy: the backward pass trusts what was checked here.
        return np.array(tokens, dtype=np.int32, order="C")

    def _reserve(self, B, T):
        """Prepares the activations for a (B,T) batch, in the array there is if that is large enough."""
        if self._shape == (B, T):
            return
        size = activations_size(self.config, B, T)
        if size > self._acts_flat.size:
            # Frees the smaller array first, and has none if there is no room for the larger.
            self.acts, self.scratch, self._shape = {}, {}, None
            self._acts_flat = self._acts_flat[:0].copy()
            self._acts_flat = allocate(size, self.params_flat.dtype, f"the activations of {B}x{T} tokens")
        kept = activation_layout(self.config, B, T)
        self.acts = kept.views(self._acts_flat[: kept.size])
        workspace = workspace_layout(self.config, B, T).views(self._acts_flat[kept.size : size])
        self.scratch = {"dhidden": workspace["dhidden"]}
        for part in (scratch_layout(self.config, B, T), logits_layout(self.config, B * T)):
            self.scratch |= part.views(workspace["shared"][: part.size])
        self._shape = (B, T)

    def _forward_trunk(self, tokens, dropout=None):
        """Everything up to the final layernorm."""
        p, a, s = self.params, self.acts, self.scratch
        B, T = tokens.shape
        N, C = a["encoded"].shape
        encoder_forward(a["encoded"].reshape(B, T, C), tokens, p["wte"], p["wpe"])
        if dropout:
            dropout_forward(a["encoded"], a["encoded"], dropout.mask(0, EMBEDDINGS))
        residual, ln, atty = a["encoded"], s["ln"], s["atty"].reshape(N, C)
        for l in range(self.config.L):
            layernorm_forward(ln, a["ln1_mean"][l], a["ln1_rstd"][l], residual, p["ln1w"][l], p["ln1b"][l])
            matmul_forward(a["qkv"][l].reshape(N, 3 * C), ln, p["qkvw"][l], p["qkvb"][l], self.bf16)
            mask = _mask(dropout, l, PROBABILITIES)
            attention_forward(s["atty"], a["lse"][l], a["qkv"][l], s["attention_scratch"], mask, self.bf16)
            residual2, residual3 = a["residual2"][l], a["residual3"][l]
            mask = _mask(dropout, l, ATTENTION_BRANCH)
            _branch_forward(residual2, residual, atty, p["attprojw"][l], p["attprojb"][l], mask, self.bf16)
            layernorm_forward(ln, a["ln2_mean"][l], a["ln2_rstd"][l], residual2, p["ln2w"][l], p["ln2b"][l])
            matmul_gelu_forward(s["fch_gelu"], a["fch"][l], ln, p["fcw"][l], p["fcb"][l], self.bf16)
            mask = _mask(dropout, l, MLP_BRANCH)
            _branch_forward(residual3, residual2, s["fch_gelu"], p["fcprojw"][l], p["fcprojb"][l], mask, self.bf16)
            residual = residual3
        layernorm_forward(a["lnf"], a["lnf_mean"], a["lnf_rstd"], residual, p["lnfw"], p["lnfb"])

    def _classify(self, targets, beta=None, weight=1.0):
        """Returns the mean loss of targets (B,T) other than NO_TARGET; the rows of the others do no work.

        Unless beta is None, it also does the classifier's backward pass, down to "dhidden": each chunk of logits
        becomes its own gradient, times weight, in place. dwte is first multiplied by beta.
        """
        a, s, V, wte = self.acts, self.scratch, self.config.V, self.params["wte"]
        targets = targets.reshape(-1)
        counted = np.flatnonzero(targets != NO_TARGET)
        N, is_masked = counted.size, counted.size < targets.size
        if is_masked:
            a["losses"].fill(0)
            s["dhidden"].fill(0)
        for chunk, logits in self._classifier_chunks(N):
            lse = a["logits_lse"][chunk]
            if is_masked:
                rows, losses = counted[chunk], np.empty(chunk.stop - chunk.start, lse.dtype)
                hidden = dhidden = s["counted"][: rows.size]
                gather_rows(hidden, a["lnf"], rows)
            else:
                rows, losses, hidden, dhidden = chunk, a["losses"][chunk], a["lnf"][chunk], s["dhidden"][chunk]
            matmul_nt(logits, hidden, wte, self.bf16)
            classifier_forward(losses, lse, logits, targets[rows], V)
            if beta is not None:
                classifier_backward(logits, lse, targets[rows], weight / N, V)
                matmul_tn(self.grads["wte"], logits, hidden, beta, self.bf16)
                matmul_nn(dhidden, logits, wte, self.bf16)
                beta = 1.0
            if is_masked:
                a["losses"][rows] = losses
                scatter_rows(s["dhidden"], dhidden, rows)
        losses = a["losses"][counted] if is_masked else a["losses"]
        return float(losses.sum(dtype=np.float64) / N)

    def _classifier_chunks(self, N):
        """Yields (range of rows, place for their logits) over N rows."""
        logits = self.scratch["logits"]
        for start in range(0, N, CLASSIFIER_ROWS):
            rows = slice(start, min(N, start + CLASSIFIER_ROWS))
            yield rows, logits[: rows.stop - start]

    def _backward_trunk(self, tokens, dropout, beta):
        """From the gradient of the final layernorm's output, in "dhidden", down to the embeddings.

        The gradients of parameters are first multiplied by beta: 0 overwrites them. The products do that as they write;
        the other tensors are small, and dwte has been begun by the classifier.
        """
        p, g, a, s = self.params, self.grads, self.acts, self.scratch
        B, T = tokens.shape
        L, C = self.config.L, self.config.C
        if beta == 0:
            for name in g.keys() - {"wte", "qkvw", "attprojw", "fcw", "fcprojw"}:
                g[name].fill(0)
        dresidual = s["dresidual"]
        dresidual.fill(0)
        last = a["residual3"][L - 1], p["lnfw"], a["lnf_mean"], a["lnf_rstd"]
        layernorm_backward(dresidual, g["lnfw"], g["lnfb"], s["dhidden"], *last)
        for l in reversed(range(L)):
            self._mlp_backward(l, dropout, beta)
            self._attention_backward(l, dropout, beta)
        if dropout:
            dropout_forward(dresidual, dresidual, dropout.mask(0, EMBEDDINGS))
        encoder_backward(g["wte"], g["wpe"], dresidual.reshape(B, T, C), tokens)

    def _mlp_backward(self, l, dropout, beta):
        """From the residual stream after layer l's MLP to the stream before it."""
        p, g, a, s = self.params, self.grads, self.acts, self.scratch
        dresidual, dhidden, dfch, ln = s["dresidual"], s["dhidden"], s["dfch"], s["ln"]
        dbranch = self._branch_gradient(_mask(dropout, l, MLP_BRANCH))
        matmul_gelu_backward(dfch, s["fch_gelu"], dbranch, a["fch"][l], p["fcprojw"][l], self.bf16)
        matmul_parameters_backward(g["fcprojw"][l], g["fcprojb"][l], dbranch, s["fch_gelu"], beta, self.bf16)
        residual, mean, rstd = a["residual2"][l], a["ln2_mean"][l], a["ln2_rstd"][l]
        layernorm_forward(ln, mean, rstd, residual, p["ln2w"][l], p["ln2b"][l])
        matmul_backward(dhidden, g["fcw"][l], g["fcb"][l], dfch, ln, p["fcw"][l], beta, self.bf16)
        layernorm_backward(dresidual, g["ln2w"][l], g["ln2b"][l], dhidden, residual, p["ln2w"][l], mean, rstd)

    def _attention_backward(self, l, dropout, beta):
        """From the residual stream after layer l's attention to the stream before it."""
        p, g, a, s = self.params, self.grads, self.acts, self.scratch
        dresidual, dhidden, ln = s["dresidual"], s["dhidden"], s["ln"]
        dbranch = self._branch_gradient(_mask(dropout, l, ATTENTION_BRANCH))
        matmul_nn(dhidden, dbranch, p["attprojw"][l], self.bf16)
        datty, mask = dhidden.reshape(s["atty"].shape), _mask(dropout, l, PROBABILITIES)
        attention_backward(
            s["dqkv"], datty, a["qkv"][l], s["atty"], a["lse"][l], s["attention_scratch"], mask, self.bf16
        )
        atty, dqkv = s["atty"].reshape(dhidden.shape), s["dqkv"].reshape(len(dhidden), -1)
        matmul_parameters_backward(g["attprojw"][l], g["attprojb"][l], dbranch, atty, beta, self.bf16)
        residual = a["residual3"][l - 1] if l else a["encoded"]
        mean, rstd = a["ln1_mean"][l], a["ln1_rstd"][l]
        layernorm_forward(ln, mean, rstd, residual, p["ln1w"][l], p["ln1b"][l])
        matmul_backward(dhidden, g["qkvw"][l], g["qkvb"][l], dqkv, ln, p["qkvw"][l], beta, self.bf16)
        layernorm_backward(dresidual, g["ln1w"][l], g["ln1b"][l], dhidden, residual, p["ln1w"][l], mean, rstd)

    def _branch_gradient(self, mask):
        """Returns the gradient of what a branch adds to the residual stream, valid until "ln" is overwritten."""
        if mask is KEEP_ALL:
            return self.scratch["dresidual"]
        dropout_forward(self.scratch["ln"], self.scratch["dresidual"], mask)
        return self.scratch["ln"]


def attention_probabilities(qkv, NH):
    """Returns softmax(q k^T / sqrt(HS)), causal: (B,NH,T,T), for qkv (B,T,3C), of the same dtype."""
    B, T, channels = qkv.shape
    HS = channels // (3 * NH)
    q, k, _ = qkv.reshape(B, T, 3, NH, HS).transpose(2, 0, 3, 1, 4)
    scores = q @ k.swapaxes(-1, -2) / qkv.dtype.type(np.sqrt(HS))
    scores[..., ~np.tri(T, dtype=bool)] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    probabilities = np.exp(scores, out=scores)
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    return probabilities


def _mask(dropout, l, place):
    return dropout.mask(l, place) if dropout else KEEP_ALL


def _branch_forward(out, residual, inp, weight, bias, mask, bf16):
    """out = residual + dropout(inp @ weight.T + bias)."""
    if mask is KEEP_ALL:
        matmul_residual_forward(out, residual, inp, weight, bias, bf16)
    else:
        matmul_forward(out, inp, weight, bias, bf16)
        dropout_residual_forward(out, residual, mask)


def _require_in_place(name, present, assigned):
    """Raises AttributeError unless `assigned` is the array that is there, as it is after `model.grads_flat *= 2`."""
    if assigned is not present:
        raise AttributeError(f"{name}: other arrays are views of it: assign to {name}[:], in place")


def _initialise(params, config, seed):
    """GPT-2's random initialisation (Radford et al., 2019, section 2.3).

    Weights and embeddings are normal with standard deviation 0.02, divided by sqrt(2L) for those that feed the residual
    stream; layernorms are the identity, biases 0.
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
