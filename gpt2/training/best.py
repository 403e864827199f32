"""--keep-best: the checkpoint of the lowest validation loss, in a folder of its own inside the run's."""

import shutil

from gpt2.data.vocabulary import save_vocabulary
from gpt2.formats.files import atomic_write, make_folder, open_to_read
from gpt2.formats.run import BEST, RUN_VOCABULARY, checkpoint_paths
from gpt2.training import checkpoint
from gpt2.training.run_folder import require_lock

BEST_AT_ONCE = 3  # the most in the folder: two, and the one being written


class BestCheckpoint:
    """The best checkpoint of a run, in the folder `best` inside the run's.

    Until the run's next checkpoint is saved there may be two: the one that a killed run would go back to stays beside a
    better one. Attributes: `folder`; `step` of the best one, None if there is none.
    """

    def __init__(self, run_folder, vocabulary):
        """vocabulary: the model's, which is put beside it."""
        self._run_folder, self.folder, self._vocabulary = run_folder, run_folder / BEST, vocabulary
        self.step = self._settled = None

    def resume(self, found, step):
        """Continues with the best checkpoint, of `step`, of the run that the checkpoint.Checkpoint `found` is from.

        Copies it if that run is in another folder. Raises UserError, naming the file, if it is missing or damaged.
        """
        best = checkpoint.verify(found.folder / BEST, step)
        require_lock(self._run_folder)
        self._make_folder()
        if not self.folder.samefile(best.folder):
            for source, target in zip((best.model, best.state), checkpoint_paths(self.folder, step), strict=True):
                with open_to_read(source) as old, atomic_write(target) as new:
                    shutil.copyfileobj(old, new, 2**20)
        checkpoint.write_manifest(self.folder, best.manifest)
        self.step = self._settled = step

    def save(self, model, optimizer, progress, chunks=None):
        """Saves a better one, that of progress["step"]; arguments and errors as for checkpoint.write."""
        require_lock(self._run_folder)
        self._make_folder()
        checkpoint.write(self.folder, model, optimizer, progress, self._run_folder, chunks)
        self.step = progress["step"]
        checkpoint.remove_all_but(self.folder, {self.step, self._settled})

    def _make_folder(self):
        make_folder(self.folder)
        save_vocabulary(self._vocabulary, self.folder / RUN_VOCABULARY)  # if it is not there

    def settle(self):
        """Removes what is not the best; to be called when the run's newest checkpoint, or its metrics, know of it."""
        if self.step is not None:
            require_lock(self._run_folder)
            checkpoint.remove_all_but(self.folder, {self.step})
            self._settled = self.step
