"""A model's weights by name: a file in llm.c's format, the folder of a training run, or a model of Hugging Face's, in a
folder or on the hub.
"""

import pathlib
import re
import sys

from gpt2.config import PRESETS
from gpt2.errors import UnavailableError, UserError
from gpt2.formats.files import make_folder, open_to_read, sha256
from gpt2.formats.huggingface import CONFIG, WEIGHTS, load_folder, read_config, read_weights
from gpt2.formats.llmc import load_model, map_model, read_sizes, save_model
from gpt2.formats.run import MANIFEST, newest_model
from gpt2.layout import parameter_layout
from gpt2.memory import require

# The released models: the names they go by, those of PRESETS -> their repositories on the hub.
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
# The hub's own command, which stands beside the Python that runs this.
FETCH_COMMAND = (
    f"{pathlib.Path(sys.executable).with_name('hf')} download {GPT2_REPOSITORY} {WEIGHTS} --revision {GPT2_REVISION}"
)
PROBE_SECONDS = 5
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def load_weights(name, data_dir="data", writable=True):
    """Returns (GPT2Config, params) of a model, params float32 (parameter_layout(config).size,).

    name: one of RELEASED; FILE.bin in llm.c's format, version 1, 3 or 5; the folder of a training run, for the newest
    model in it; a Hugging Face folder; or OWNER/NAME on the Hugging Face hub, of any GPT-2 that is stored in one
    model.safetensors. A released name means the hub even where a folder is called so. What the hub gives stays in its
    cache; `data_dir` keeps gpt2 converted, as gpt2_124M.bin.
    writable: False maps a file of version 3 (see modelfile.map_model) instead of reading it, and its numbers are then
    not checked; otherwise a tensor with a number that is not finite is refused.
    Raises UserError, and UnavailableError within seconds if the hub cannot be asked or does not have the model.
    """
    path, repository = _locate(name)
    if path is not None:
        return load_path(path, writable)
    if repository == GPT2_REPOSITORY:
        return _load_gpt2(pathlib.Path(data_dir), writable)
    config, revision = _hub_config(repository)
    require(4 * parameter_layout(config).size, f"the model {name}")
    return config, read_weights(fetch(repository, WEIGHTS, revision), config)


def load_config(name):
    """Returns the GPT2Config of a model that `load_weights` knows by this name, and raises what that does.

    No weights are read or fetched; of a model on the hub that is not one of RELEASED, config.json is fetched.
    """
    path, repository = _locate(name)
    if path is None:
        return _hub_config(repository)[0]
    path = _inside(path)
    if path.is_dir():
        return read_config(path / CONFIG)
    with open_to_read(path) as file:
        return read_sizes(file, path)[0]


def load_path(path, writable=True):
    """Returns and raises what `load_weights` does, for a file or a folder on this machine."""
    path = _inside(path)
    if path.is_dir():
        return load_folder(path)
    return load_model(path) if writable else map_model(path)


def _locate(name):
    """Returns (path, None) of a model on this machine, or (None, its repository on the hub)."""
    repository, path = RELEASED.get(str(name), str(name)), pathlib.Path(name)
    if str(name) not in RELEASED:
        if path.exists() or path.suffix == ".bin":
            return path, None
        if not REPOSITORY.fullmatch(repository):
            raise UserError(
                f"{name}: no such file or folder; expected FILE.bin, the folder of a training run, a Hugging Face "
                f"folder, or a name on its hub: {', '.join(RELEASED)}, or OWNER/NAME"
            )
    return None, repository


def _inside(path):
    """The path of what is to be read: of a training run's folder its newest model file, else the path itself."""
    path = pathlib.Path(path)
    if (path / MANIFEST).exists() and not (path / CONFIG).exists():
        return newest_model(path)
    return path


def _hub_config(repository):
    """Returns (GPT2Config, the commit that it is of): the commit is None where the sizes are known without asking.

    Those of another model come first: one that cannot be used is refused before its weights are fetched.
    """
    for name, config in PRESETS.items():
        if RELEASED[name] == repository:
            return config, None
    path = fetch(repository, CONFIG)
    # The hub's cache keeps the files of a commit in a folder that is called so.
    return read_config(path), path.parent.name


def fetch(repository, filename, revision=None):
    """Returns the path of a model's file in the hub's cache, downloaded if it is not there yet.

    repository: OWNER/NAME. revision: a commit; None takes what the cache has, or else the newest.
    Raises UnavailableError, within seconds if there is no network, saying why the file cannot be had.
    """
    import huggingface_hub  # here, as it takes time and memory, and most runs have their weights

    file = {"repo_id": repository, "filename": filename, "revision": revision}
    try:
        path = huggingface_hub.try_to_load_from_cache(**file)
        if not isinstance(path, str):
            # The download itself would try an unreachable hub again and again, for half a minute and with warnings.
            huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(**file), timeout=PROBE_SECONDS)
            path = huggingface_hub.hf_hub_download(**file)
    except Exception as error:  # the hub's, its HTTP library's (which one varies by version), the disk's
        local = "" if repository in RELEASED.values() else "no such file or folder, and "
        raise UnavailableError(
            f"{repository}: {local}cannot fetch {filename} from the Hugging Face hub: {_reason(error, filename)}"
        ) from error
    return pathlib.Path(path)


def _reason(error, filename):
    """Why the hub does not give a file, in one line; the library's own messages have several."""
    from huggingface_hub import errors as hub_errors

    if isinstance(error, hub_errors.GatedRepoError):
        return "it asks who you are: accept the model's terms on its page there, then log in with: hf auth login"
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        return "it has no such model, or a private one: check the name, or log in with: hf auth login"
    if isinstance(error, hub_errors.EntryNotFoundError) and not isinstance(error, hub_errors.LocalEntryNotFoundError):
        return f"the model there has no {filename} (only models in one such file can be read)"
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _load_gpt2(data_dir, writable):
    """Loads GPT-2 124M from `data_dir`/gpt2_124M.bin, which is made from the hub's weights if it isn't there."""
    path, preset = data_dir / "gpt2_124M.bin", PRESETS["gpt2"]
    if path.exists():
        config, params = load_path(path, writable)
        if config != preset:
            raise UserError(f"{path}: expected GPT-2 124M, found {config}; delete the file to have it made anew")
        return config, params
    params = read_weights(fetch_gpt2(), preset)
    make_folder(data_dir)
    save_model(path, preset, params)
    return preset, params


def fetch_gpt2():
    """Returns the path of GPT-2 124M's model.safetensors as `fetch` does, verified.

    Raises UserError for a file that is there but corrupt.
    """
    path = fetch(GPT2_REPOSITORY, WEIGHTS, GPT2_REVISION)
    if (found := sha256(path)) != GPT2_SHA256:
        path = path.resolve()  # in the cache the name is a link; what must go is the file behind it
        raise UserError(f"{path}: corrupt: SHA-256 {found}, expected {GPT2_SHA256}; delete it and try again")
    return path
