"""Runs to look at, and the command line called in this process."""

import json
import shutil
from pathlib import Path

import h5py
import msgspec
import numpy as np

from posterity import DefaultBackend
from posterity._cli import main

NCHAIN, DIM = 4, 2
JEXPLORES = Path(__file__).parents[1] / "fixtures" / "jexplore-0.0.3" / "epochs_2.h5"


def draws(nsamples, *, seed=1, nchain=NCHAIN, dim=DIM):
    """Samples `(nchain, dim, nsamples)` that don't depend on each other."""
    return np.random.default_rng(seed).normal(size=(nchain, dim, nsamples))


def write_run(outdir, *, nepochs=6, nsamples=50, burn=0, close=True, **options):
    """A run of a few epochs; its samples are `draws`, cut into epochs."""
    p = draws(nepochs * nsamples)
    backend = DefaultBackend(outdir=outdir, epochs_per_file=2, **options)
    for i in range(nepochs):
        part = p[:, :, i * nsamples : (i + 1) * nsamples]
        backend.ingest({"samples": {"p": part, "ll": -(part**2).sum(axis=1, keepdims=True) / 2}})
    backend.set_burn(burn)
    backend.flush()
    if close:
        backend.close()
    return backend


def folder_of_jexplores(folder, indices):
    """A folder as jexplore leaves it, with some epochs; a published file of ours reads as its files do."""
    folder.mkdir()
    for index in indices:
        path = folder / f"epochs_{index + 1}.h5"
        shutil.copy(JEXPLORES, path)
        with h5py.File(path, "r+") as file:
            if index != 1:
                file.move("epoch_1", f"epoch_{index}")
            file[f"epoch_{index}/samples/p"][...] += 100 * index
    return folder


class Cli:
    """`posterity`, called in this process. It has no terminal."""

    def __init__(self, capsys):
        self._capsys = capsys

    def __call__(self, *words, code=0):
        """Run a command line that ends with `code`; returns what it printed to standard output."""
        self._capsys.readouterr()
        ended = main([str(word) for word in words])
        printed = self._capsys.readouterr()
        self.errors = printed.err
        assert ended == code, f"{ended}: {printed.out}{printed.err}"
        assert "Traceback" not in printed.err
        return printed.out

    def json(self, kind, *words, code=0):
        """The one JSON document that a command prints, as a struct of a kind."""
        out = self(*words, "--json", code=code)
        json.loads(out)  # one document, and nothing else
        return msgspec.json.decode(out, type=kind)
