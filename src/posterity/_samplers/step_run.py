"""The run folder of a sampler's backend, as emcee's and Eryn's are: what it is called, and reading a run from it.

Up the stream: `run` reads. Down the stream: `walkers` and `branched` know what the steps in it are.
"""

import os
from pathlib import Path

from posterity._reading.run import Run, open_run
from posterity._reading.snapshot import Snapshot


def run_folder(outdir: str | os.PathLike[str], name: str | None) -> Path:
    """The folder of a run, or of the one with a name in it.

    Raises:
        ValueError: the name isn't one of a plain, visible folder.
        NotADirectoryError: it is a file.
    """
    folder = Path(os.fsdecode(outdir))
    if name is not None:
        if not name or name.startswith(".") or "/" in name or "\0" in name:
            raise ValueError(f"name must be a plain, visible folder name, got {name!r}")
        folder /= name
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file and no run folder; import_emcee or import_eryn makes a run of it")
    return folder


class ReadFolder:
    """A run that is only read; it needn't be there yet, and may go and come again."""

    def __init__(self, outdir: Path) -> None:
        self.outdir = outdir
        self._run: Run[object] | None = None

    def snapshot(self) -> Snapshot[object] | None:
        """The run at this moment, to be released; None if there is none."""
        try:
            if self._run is None:
                self._run = open_run(self.outdir)
            return self._run.snapshot()
        except FileNotFoundError:
            self.close()
            return None

    def close(self) -> None:
        """Let go of the run, until it is read again."""
        if self._run is not None:
            self._run.close()
            self._run = None
