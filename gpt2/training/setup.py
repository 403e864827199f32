"""How a run starts or resumes: checks that there is room, then data, model, state."""

import dataclasses
import glob
import os
import re

from gpt2.config import PRESETS
from gpt2.data.conversation_loader import ASSISTANT, ConversationLoader
from gpt2.data.dataloader import LLMC, DataLoader, bytes_in_memory, expand
from gpt2.data.texts import refuse_texts
from gpt2.data.vocabulary import agreed_vocabulary, conversations_vocabulary, model_vocabulary, vocabulary_of
from gpt2.distributed import SERIAL
from gpt2.errors import UnavailableError, UserError
from gpt2.formats import pretrained
from gpt2.formats.conversation_file import are_conversations
from gpt2.formats.files import data_dir
from gpt2.formats.run import best_steps, steps
from gpt2.machine import BF16, chosen_precision
from gpt2.model import GPT2
from gpt2.optimizer import OPTIMIZERS, shards
from gpt2.training import checkpoint, resume
from gpt2.training.best import BEST_AT_ONCE
from gpt2.training.budget import checkpoint_bytes, require_disk, require_memory
from gpt2.training.options import MAX_STEPS, RECIPES, SEQ_LEN, SIZES, Resolved, flag
from gpt2.training.run import Run
from gpt2.training.samples import Sampler, readable
from gpt2.training.state import TrainState


def start_run(options, folder, world=SERIAL):
    """Returns the Run that TrainOptions ask for, in a folder that rank 0 of a distributed.World has locked.

    Raises UserError.
    """
    train_data = options.train_data or default_data("train")
    refuse_texts(expand(train_data))
    precision = chosen_precision(options.precision)
    val_data = options.val_data or (_default_val_data(options.train_data) if options.val_every else None)
    config, vocabulary = _initial_config(options, train_data)
    paths = _token_files(options, train_data, val_data)
    talks, vocabulary = _agreed(vocabulary, config, paths)
    if talks:
        config = dataclasses.replace(config, V=max(config.V, vocabulary.size))
    shown = readable(vocabulary) if options.sample_every and world.is_first else None
    seq_len = config.maxT if talks else min(SEQ_LEN, config.maxT)
    seq_len = seq_len if options.seq_len is None else options.seq_len
    loaders = _open_data(options, config, seq_len, (train_data, val_data), talks, world)
    model = _initial_model(options, config)
    choices, epochs = RECIPES[talks, model.is_untrained]
    max_steps = _length(options, loaders[0], options.max_steps, epochs)
    if world.is_first:
        _require_disk(options, config, folder, max_steps)
    given = {name: getattr(options, name) for name in choices if getattr(options, name) is not None}
    lengths = {"seq_len": seq_len, "max_steps": max_steps}
    resolved = Resolved(train_data, val_data, **choices | given | lengths, precision=precision)
    run = _make_run(options, folder, (model, vocabulary, shown), loaders, resolved, world)
    run.require_savable()
    run.require_same()
    return run


def resume_run(found, options, resolved, anyway, folder, world=SERIAL):
    """Returns the Run that continues a checkpoint.Checkpoint in a folder that rank 0 of a distributed.World has locked.

    options, resolved: from resume.resumed_options. anyway: accept other data. Raises UserError.
    """
    in_place = world.of_first(world.is_first and folder.samefile(found.folder))
    precision = chosen_precision(resolved.precision)  # the run may have had another CPU
    val_data = resolved.val_data or (_default_val_data(resolved.train_data) if options.val_every else None)
    config = pretrained.load_config(found.model)
    paths = _token_files(options, resolved.train_data, val_data)
    talks, vocabulary = _agreed(model_vocabulary(found.model), config, paths)
    if talks and vocabulary.size > config.V:
        raise UserError(f"{paths[0]}: has {vocabulary.size:,} tokens, but the model of the run {config.V:,}")
    shown = readable(vocabulary) if options.sample_every and world.is_first else None
    loaders = _open_data(options, config, resolved.seq_len, (resolved.train_data, val_data), talks, world)
    max_steps = _length(options, loaders[0], resolved.max_steps)
    if world.is_first:
        _require_disk(options, config, folder, max_steps - found.step, in_place)
    resolved = dataclasses.replace(resolved, val_data=val_data, max_steps=max_steps, precision=precision)
    resume.say_if_length_changed(found, resolved)
    models = GPT2.load(found.model), vocabulary, shown
    run = _make_run(options, folder, models, loaders, resolved, world)
    run.found, run.in_place, run.saved = found, in_place, found.step if in_place else None
    resume.check_data(found, *loaders, anyway)
    resume.restore_position(found, run.state.loader, anyway)
    try:
        run.state.restore(found)
    except (KeyError, TypeError, ValueError, OverflowError, UserError) as error:
        raise resume.incompatible_checkpoint(found) from error
    run.require_savable()
    run.require_same()
    if world.size > 1:
        own = found if world.is_first else checkpoint.verify(found.folder, found.step)
        world.require_same({f"the checkpoint in {found.folder}": own.manifest})
    found.load_state(run.state.optimizer)
    print(f"[resume] {found.folder} after step {found.step}{resume.changed_versions(found)}", flush=True)
    return run


def default_data(split):
    """The token files of TinyShakespeare, or those of the plays that stand in for it. Raises UserError."""
    tiny, plays = (data_dir() / f"{name}_{split}.bin" for name in ("tiny_shakespeare", "shakespeare"))
    if tiny.exists():
        return (str(tiny),)
    if not plays.exists():
        raise UserError(
            f"{tiny}: no such file; make it with: python prepro_tinyshakespeare.py, or name another with --{split}-data"
        )
    print(f"{tiny} is not there, {plays} (the complete plays) stands in for it: losses are not comparable")
    return (str(plays),)


def _default_val_data(train_data):
    """The validation files that go with training files, or by default TinyShakespeare's.

    train_data: paths and globs, or None. Where one last says "train", as in mine_train.bin, its counterpart says "val",
    without the number of a part: mine_val.bin for mine_train_*.bin. Raises UserError unless each has one.
    """
    if train_data is None:
        return default_data("val")
    counterparts = []
    for path in train_data:
        folder, name = os.path.split(path)
        counterpart = os.path.join(folder, re.sub(r"(.*)(?<![A-Za-z])train(?![A-Za-z])", r"\1val", name))
        whole = re.sub(r"_[0-9*?]+(?=\.bin$)", "", counterpart)
        if counterpart != path and not glob.glob(counterpart) and os.path.exists(whole):
            counterpart = whole
        if counterpart == path or not (os.path.exists(counterpart) or glob.glob(counterpart)):
            beside = "" if counterpart == path else f" ({counterpart})"
            raise UserError(
                f"--train-data {path}: no validation data beside it{beside}; name some with --val-data, "
                "or train without: --val-every 0"
            )
        counterparts.append(counterpart)
    return tuple(dict.fromkeys(counterparts))


def _token_files(options, train_data, val_data):
    """Returns the paths of the token files that a run reads. Raises UserError."""
    return expand([*train_data, *(val_data if options.val_every else ())])


def _agreed(vocabulary, config, paths):
    """Returns (whether token files hold conversations, the vocabulary of these and of the model). Raises UserError."""
    if talks := are_conversations(paths):
        return talks, conversations_vocabulary(vocabulary, config.V, paths)
    return talks, agreed_vocabulary(vocabulary, config.V, paths)


def _make_run(options, folder, model_parts, loaders, resolved, world):
    """model_parts: the model, its vocabulary, and the one to show samples with."""
    model, vocabulary, shown = model_parts
    model.vocabulary, model.tokenizer = vocabulary.sha256, vocabulary
    model.bf16 = resolved.precision == BF16
    train_loader, val_loader = loaders
    make_optimizer = OPTIMIZERS[options.optimizer]
    shard = shards(model.params_flat.size, world.size)[world.rank]
    optimizer = make_optimizer(model, options.beta1, options.beta2, options.eps, options.weight_decay, shard)
    run = Run(options, folder, TrainState(model, optimizer, train_loader, resolved, world), val_loader, vocabulary)
    if shown:
        run.sampler = Sampler(model, shown, options.sample_tokens, options.prompt, options.seed)
    return run


def _initial_config(options, train_data):
    """Returns the sizes and the vocabulary of the model that --init names; from scratch, that of the training data.

    Raises UserError, for options that do not go with it, too.
    """
    given = {name: getattr(options, name) for name in ("size", *SIZES) if getattr(options, name) is not None}
    if options.init != "scratch":
        if given:
            raise UserError(f"{', '.join(map(flag, given))}: only with --init scratch: other models have their sizes")
        return pretrained.load_config(options.init), model_vocabulary(options.init)
    sizes = {SIZES[name]: value for name, value in given.items() if name in SIZES}
    vocabulary = vocabulary_of(expand(train_data)[0])
    V = PRESETS["gpt2"].V if vocabulary.size is None else vocabulary.size
    try:
        return dataclasses.replace(PRESETS[options.size or "gpt2"], V=V, **sizes), vocabulary
    except UserError as error:
        raise UserError(f"--init scratch: {error}; choose other --channels or --heads") from error


def _length(options, loader, steps, epochs=None):
    """The steps of a run, from --epochs if given; a last update may go on into the next epoch.

    steps, or else epochs: if --epochs is not given, either may be None, and MAX_STEPS is for both.
    """
    if options.epochs is not None or steps is None:
        epochs = options.epochs or epochs
        steps = MAX_STEPS if epochs is None else -(-epochs * loader.num_batches // options.grad_accum_steps)
    return steps


def _require_memory(options, config, seq_len, data_bytes, world):
    """Raises UserError if there is too little memory; data_bytes: what the loaders will hold."""
    # A prompt has at most as many tokens as bytes.
    sample_length = min(config.maxT, max(1, len(options.prompt.encode())) + options.sample_tokens)
    sample_length = sample_length if options.sample_every and world.is_first else 0
    arrays = len(OPTIMIZERS[options.optimizer].STATE)
    require_memory(config, options.batch_size, seq_len, sample_length, data_bytes, arrays, world)


def _require_disk(options, config, folder, left, in_place=False):
    """Raises UserError if there is too little disk.

    left: steps to take. in_place: whether the checkpoints in the folder are the run's own, to be replaced.
    """
    present = len(steps(folder)) if in_place else 0
    saves = -(-max(0, left) // options.checkpoint_every) if options.checkpoint_every else 1
    # Old checkpoints go only after the new one is complete.
    at_once = max(1, present, min(present + saves, options.keep + 1))
    if options.keep_best:
        at_once += BEST_AT_ONCE
        present += len(best_steps(folder)) if in_place else 0
    arrays = len(OPTIMIZERS[options.optimizer].STATE)
    require_disk(config, folder, at_once, present * checkpoint_bytes(config, arrays), arrays)


def _open_data(options, config, T, data, talks, world):
    """Returns the loaders of both splits, that of the validation None if there is none, if there is memory for the run.

    data: the token files of both splits. talks: whether those hold conversations. Validation takes smaller batches if
    its split is shorter than one, so that a short text can be trained on. Raises UserError.
    """
    if config.maxT < T:
        raise UserError(f"--seq-len {T}: the model's positions end at {config.maxT}")
    train_data, val_data = data
    B, V = options.batch_size, config.V
    if talks:
        if options.shuffle == LLMC:
            raise UserError(f"--shuffle {LLMC}: llm.c has no order for conversations; leave out {LLMC}")
        train_loader = ConversationLoader(train_data, B, T, V, options.seed, options.loss_on, options.grad_accum_steps)
        val_loader = ConversationLoader(val_data, B, T, V, None, options.loss_on) if options.val_every else None
        widest = max(loader.widest for loader in (train_loader, val_loader) if loader)
        _require_memory(options, config, widest, 0, world)
        _require_batches(train_loader, world)
        return train_loader, val_loader
    if options.loss_on != ASSISTANT:
        raise UserError(f"--loss-on {options.loss_on}: is for conversations; of a text, every token has a loss")
    data_bytes = bytes_in_memory(train_data) + (bytes_in_memory(val_data) if options.val_every else 0)
    _require_memory(options, config, T, data_bytes, world)
    shuffle_seed = {True: options.seed, False: None}.get(options.shuffle, options.shuffle)
    train_loader = DataLoader(train_data, B, T, V, shuffle_seed)
    _require_batches(train_loader, world)
    return train_loader, DataLoader(val_data, B, T, V, shrink=True) if options.val_every else None


def _require_batches(loader, world):
    """Raises UserError if an epoch has fewer batches than there are ranks to take one each."""
    if loader.num_batches < world.size:
        raise UserError(
            f"{loader.file_names()}: {loader.num_batches:,} batches of {loader.B} sequences, fewer than the "
            f"{world.size} ranks; start fewer, or choose a smaller --batch-size or --seq-len"
        )


def _initial_model(options, config):
    """Returns the model that --init names, of random weights if those of GPT-2 cannot be had.

    It grows if config.V is more than its own: conversations bring control tokens along.
    """
    if options.init == "scratch":
        return GPT2(config, options.seed)
    try:
        model = GPT2.from_pretrained(options.init)
    except UnavailableError as error:
        if options.init != "gpt2":
            raise
        print(
            f"GPT-2's released weights cannot be had: {error}. The run starts from random weights instead: "
            "expect a loss of 11 at first and no sensible text. Once the network is there, this command fetches them, "
            f"and the next run starts from them: {pretrained.FETCH_COMMAND}",
            flush=True,
        )
        return GPT2(config, options.seed)
    if config.V == model.config.V:
        return model
    print(f"the vocabulary grows from {model.config.V:,} to {config.V:,} tokens: new ones start as the mean of the old")
    return model.grown(config.V)
