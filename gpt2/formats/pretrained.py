"""Model weights by name: an llm.c model file, a run folder, a Hugging Face folder, or a model on the hub."""

import contextlib
import pathlib
import re
import sys

from gpt2.config import PRESETS
from gpt2.errors import UnavailableError, UserError
from gpt2.formats import architecture, files
from gpt2.formats.huggingface import CONFIG, CONFIG_LIMIT, load_folder, read_config, read_weights
from gpt2.formats.llmc import (
    UNKNOWN_VOCABULARY,
    is_untrained,
    load_model,
    map_model,
    model_vocabulary,
    read_sizes,
    save_model,
)
from gpt2.formats.run import MANIFEST, RUN_VOCABULARY, is_checkpoint, newest_model
from gpt2.formats.tensors import INDEX, INDEX_LIMIT, WEIGHTS, shard_names
from gpt2.formats.tokenizer_folder import CARRIED, read_tokenizer_folder, token_digest, token_list
from gpt2.layout import parameter_layout
from gpt2.memory import require

# Released models: their names in PRESETS -> their repositories on the hub.
RELEASED = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}
GPT2_REPOSITORY = RELEASED["gpt2"]
GPT2_REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
GPT2_SHA256 = "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"
# The hub's command-line tool is installed next to the Python interpreter.
FETCH_COMMAND = (
    f"{pathlib.Path(sys.executable).with_name('hf')} download {GPT2_REPOSITORY} {WEIGHTS} --revision {GPT2_REVISION}"
)
PROBE_SECONDS = 5
SIZE_LIMITS = {CONFIG: CONFIG_LIMIT, INDEX: INDEX_LIMIT}
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def load_weights(name, data_dir=None, writable=True, bfloat16=False):
    """Returns (GPT2Config, params) of a model, params float32 (parameter_layout(config).size,).

    name: one of RELEASED; an llm.c model file (FILE.bin), version 1, 3 or 5; a run folder, for its newest model; a
    Hugging Face folder; or OWNER/NAME on the Hugging Face hub, for a GPT-2 in safetensors files. A released name
    always means the hub, even if there is a folder of that name. Downloads stay in the hub's cache.
    data_dir: where gpt2 is kept, converted to gpt2_124M.bin; default files.data_dir().
    writable: False memory-maps a version 3 file (see llmc.map_model) without checking its values. Otherwise NaNs and
    infinities are errors. bfloat16: with writable=False, also map a version 5 file; its params are uint16.
    Raises UserError, and UnavailableError, within seconds, if the hub is unreachable or does not have the model.
    """
    path, repository = _locate(name)
    if path is not None:
        return load_path(path, writable, bfloat16)
    if repository in RELEASED.values():
        architecture.require(name)
    if repository == GPT2_REPOSITORY:
        return _load_gpt2(pathlib.Path(data_dir or files.data_dir()), writable, bfloat16)
    config, revision = _hub_config(repository)
    require(4 * parameter_layout(config).size, f"the model {name}")
    return config, read_weights(fetch_weights(repository, revision), config)


def load_config(name):
    """Returns the GPT2Config of a model, without reading or downloading its weights.

    name, errors: as for `load_weights`. For a hub model that is not in RELEASED, config.json is downloaded.
    """
    path, repository = _locate(name)
    if path is None:
        return _hub_config(repository)[0]
    path = _inside(path)
    if path.is_dir():
        return read_config(path / CONFIG)
    with files.open_to_read(path) as file:
        return read_sizes(file, path)[0]


def has_random_weights(name):
    """Returns whether a model's weights are flagged as random, which only a model file can be. Raises UserError.

    name: of a model that was loaded before, as for `load_weights`.
    """
    path, _ = _locate(name)
    path = None if path is None else _inside(path)
    return path is not None and path.is_file() and is_untrained(path)


def find_vocabulary(name):
    """Returns (sha256, TokenizerFolder or None) of a model's vocabulary, by its name as for `load_weights`.

    sha256: what the model says of it, 64 hexadecimal digits, None for GPT-2's, or llmc.UNKNOWN_VOCABULARY. The folder
    is a Hugging Face model's own; beside FILE.bin it is FILE_vocabulary, in a run folder `vocabulary`. Raises
    UserError.
    """
    path, repository = _locate(name)
    if path is None and repository in RELEASED.values():
        return None, None
    path = _fetched_tokenizer(repository) if path is None else _inside(path)
    if path.is_dir():
        folder = read_tokenizer_folder(path)
        return UNKNOWN_VOCABULARY if folder.problem else token_digest(token_list(folder.tokenizer)), folder
    beside = vocabulary_path(path)
    if not beside.is_dir() and is_checkpoint(path):
        beside = path.with_name(RUN_VOCABULARY)
    sha256, folder = model_vocabulary(path), read_tokenizer_folder(beside) if beside.is_dir() else None
    if sha256 == UNKNOWN_VOCABULARY and folder and not folder.problem:  # the folder alone says it
        sha256 = token_digest(token_list(folder.tokenizer))
    return sha256, folder


def vocabulary_path(path):
    """Returns the path of the folder for the vocabulary of a model file."""
    path = pathlib.Path(path)
    return path.with_name(f"{path.stem}_vocabulary")


def load_path(path, writable=True, bfloat16=False):
    """Loads a model from a file or folder; other arguments, return value and errors as for `load_weights`."""
    path = _inside(path)
    if path.is_dir():
        return load_folder(path)
    return load_model(path) if writable else map_model(path, bfloat16)


def _locate(name):
    """Returns (path, None) for a local model, (None, repository) for one on the hub."""
    repository, path = RELEASED.get(str(name), str(name)), pathlib.Path(name)
    if str(name) not in RELEASED:
        if path.exists() or path.suffix == ".bin":
            return path, None
        if not REPOSITORY.fullmatch(repository):
            raise UserError(
                f"{name}: no such file or folder; expected FILE.bin, a run folder, a Hugging Face folder, "
                f"or a model on the Hugging Face hub: {', '.join(RELEASED)}, or OWNER/NAME"
            )
    return None, repository


def _inside(path):
    """Returns the newest model file in a run folder; any other path unchanged."""
    path = pathlib.Path(path)
    if (path / MANIFEST).exists() and not (path / CONFIG).exists():
        return newest_model(path)
    return path


def _hub_config(repository):
    """Returns (GPT2Config, commit hash); the commit is None for a released model, whose config is known.

    Other models' config.json is downloaded first, so an unsupported one is refused before its weights are downloaded.
    """
    for name, released in RELEASED.items():
        if released == repository:
            return PRESETS[name], None
    path = fetch(repository, CONFIG)
    # In the hub's cache the folder is named after the commit.
    return read_config(path), path.parent.name


def fetch_weights(repository, revision=None):
    """Returns the path of a model's model.safetensors, or of its index, with the shards beside it, as `fetch` does."""
    import huggingface_hub

    if not isinstance(huggingface_hub.try_to_load_from_cache(repository, INDEX, revision=revision), str):
        try:
            return fetch(repository, WEIGHTS, revision)
        except UnavailableError as error:
            if not _is_absent(error.__cause__):
                raise
    index = fetch(repository, INDEX, revision)
    for name in shard_names(index):
        fetch(repository, name, index.parent.name)
    return index


def fetch(repository, filename, revision=None):
    """Returns the path of a model's file in the hub's cache, downloading it if necessary.

    repository: OWNER/NAME. revision: a commit; None takes the cached one, or else the newest.
    Raises UnavailableError, with the reason, within seconds if there is no network.
    """
    import huggingface_hub  # slow to import, and most runs do not need it

    file = {"repo_id": repository, "filename": filename, "revision": revision}
    try:
        path = huggingface_hub.try_to_load_from_cache(**file)
        if not isinstance(path, str):
            # Probe first: the download itself would retry an unreachable hub for half a minute, with warnings.
            url = huggingface_hub.hf_hub_url(**file)
            size = huggingface_hub.get_hf_file_metadata(url, timeout=PROBE_SECONDS).size
            limit = SIZE_LIMITS.get(filename)
            if limit is not None and size is not None and size > limit:
                raise ValueError(f"it has {size:,} bytes, expected at most {limit:,}")
            path = huggingface_hub.hf_hub_download(**file)
    except Exception as error:  # from the hub, from its HTTP library (which varies by version), from the disk
        local = "" if repository in RELEASED.values() else "no such file or folder, and "
        raise UnavailableError(
            f"{repository}: {local}cannot download {filename} from the Hugging Face hub: {_reason(error, filename)}"
        ) from error
    return pathlib.Path(path)


def _fetched_tokenizer(repository):
    """Returns the path of a model's folder in the hub's cache, with those of CARRIED that can be had."""
    import huggingface_hub

    config = fetch(repository, CONFIG)
    revision = config.parent.name
    for name in CARRIED:
        cached = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
        if cached is not None:  # there, or known not to be
            continue
        try:
            fetch(repository, name, revision)
        except UnavailableError as error:
            if not _is_absent(error.__cause__):
                print(f"{error}; what is in the cache of its tokenizer counts", file=sys.stderr, flush=True)
                break
            with contextlib.suppress(Exception):  # notes in the cache that there is none
                huggingface_hub.hf_hub_download(repository, name, revision=revision)
    return config.parent


def _reason(error, filename):
    """Returns why a download failed, in one line; the library's own messages span several."""
    from huggingface_hub import errors as hub_errors

    if _is_absent(error):
        return f"the model has no {filename}"
    if isinstance(error, hub_errors.GatedRepoError):
        return "access is gated: accept the model's terms on its page there, then log in with: hf auth login"
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        return "no such model, or a private one: check the name, or log in with: hf auth login"
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _is_absent(error):
    """Whether the hub said that a model does not have a file."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    return isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)


def _load_gpt2(data_dir, writable, bfloat16):
    """Loads GPT-2 124M from `data_dir`/gpt2_124M.bin, first converting the hub's weights if it is missing."""
    path, preset = data_dir / "gpt2_124M.bin", PRESETS["gpt2"]
    if path.exists():
        config, params = load_path(path, writable, bfloat16)
        if config != preset:
            raise UserError(f"{path}: expected GPT-2 124M, found {config}; delete the file, and it is made again")
        return config, params
    params = read_weights(fetch_gpt2(), preset)
    files.make_folder(data_dir)
    save_model(path, preset, params, vocabulary=None)
    return preset, params


def fetch_gpt2():
    """Returns the path of GPT-2 124M's model.safetensors, as `fetch` does, after checking its SHA-256.

    Raises UserError if the file is corrupt.
    """
    path = fetch(GPT2_REPOSITORY, WEIGHTS, GPT2_REVISION)
    if (found := files.sha256(path)) != GPT2_SHA256:
        path = path.resolve()  # the cache entry is a symlink; its target is what must be deleted
        raise UserError(f"{path}: corrupt: SHA-256 {found}, expected {GPT2_SHA256}; delete it and try again")
    return path
