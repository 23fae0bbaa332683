"""Every option as users give it."""

from pathlib import Path
from typing import Any, Literal

import numpy as np

from posterity import AsyncBackend, DefaultBackend, Parameter
from posterity.emcee import EmceeBackend
from posterity.importing import import_emcee, import_eryn, import_jexplore

everything = DefaultBackend(
    100,
    outdir=Path("my_run"),
    outfile_fmt="run_%04d.h5",
    epochs_per_file=10,
    inmem_epochs=2,
    save_stats=False,
    compression="zstd",
    compression_level=3,
    shuffle=True,
    mode="x",
    max_pending_bytes=1 << 28,
    max_pending_epochs=100,
    max_device_bytes=1 << 28,
    on_full="raise",
    retry_after_s=0.5,
    retry_at_most_s=10,
    warn_free_bytes=10 * 1024**3,
    exit_timeout_s=30,
    flush_on_sigterm=True,
    reader_threads=2,
    diagnose=["p", "ll"],
    trusted_classes=["my_sampler.Epoch"],
    parameters=["m1", Parameter("chi", unit="1")],
    chains={"temperature": 4, "walker": 16},
    attributes={"event": "GW150914", "f_low": 20.0, "detectors": ["H1", "L1"]},
)

nothing = DefaultBackend()
none = AsyncBackend(outfile_fmt=None, compression=None, parameters=None, chains=None, attributes=None)

names = ["a", "b"]
sizes = {"walker": 8}
kept = {"seed": 1}
AsyncBackend(burn=int(np.int64(7)), parameters=names, chains=sizes, attributes=kept, diagnose=True)
AsyncBackend(parameters={"p": names, "ll": ("ll",)}, diagnose=("p",), trusted_classes=())
AsyncBackend(parameters=(f"x{i}" for i in range(3)))


def from_a_file(config: dict[str, Any]) -> DefaultBackend:
    """What a configuration says is checked when it is given."""
    return DefaultBackend(outdir="my_run", **config)


def chosen(mode: Literal["a", "w"], compression: Literal["gzip", "auto"]) -> DefaultBackend:
    """The words that an option takes are literals."""
    return DefaultBackend(mode=mode, compression=compression)


import_jexplore("old", "new", epochs_per_file=10, attributes=kept)
import_emcee("old.h5", "new", name="mcmc", compression="gzip", parameters=names)
import_eryn("old.h5", "new", on_full="wait", burn=10).samples.bit_length()
EmceeBackend("run", "chain", compression="gzip", compression_opts=3, inmem_epochs=2, parameters=names, mode="w")
