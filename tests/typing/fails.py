"""In each marked line both checkers find an error that it names, mypy's first and then pyright's, and in no other line."""

from posterity import AsyncBackend, DefaultBackend, Epoch, Run, open_run
from posterity.emcee import EmceeBackend
from posterity.importing import import_emcee, import_eryn, import_jexplore


class Mine(Epoch):
    """An epoch class of the user's own."""


# An option that is misspelt.
DefaultBackend(epoch_per_file=3)  # error: arg-type, reportArgumentType
AsyncBackend(outdir="x", inmem_epoch=3)  # error: arg-type, reportArgumentType
open_run("x", trusted_class=["a.B"])  # error: arg-type, reportArgumentType
EmceeBackend("x", epoch_per_file=3)  # error: arg-type, reportArgumentType
import_jexplore("x", "y", epoch_per_file=3)  # error: arg-type, reportArgumentType
import_emcee("x", "y", epoch_per_file=3)  # error: arg-type, reportArgumentType
import_eryn("x", "y", epoch_per_file=3)  # error: arg-type, reportArgumentType
import_emcee("x", "y", mode="w")  # error: arg-type, reportArgumentType

# A value of the wrong type.
DefaultBackend("x")  # error: arg-type, reportArgumentType
DefaultBackend(epochs_per_file="3")  # error: arg-type, reportArgumentType
DefaultBackend(epochs_per_file=None)  # error: arg-type, reportArgumentType
DefaultBackend(max_pending_bytes=1e9)  # error: arg-type, reportArgumentType
DefaultBackend(save_stats="no")  # error: arg-type, reportArgumentType
DefaultBackend(outdir=3)  # error: arg-type, reportArgumentType
AsyncBackend(chains=["walker"])  # error: arg-type, reportArgumentType
AsyncBackend(parameters=[1, 2])  # error: list-item, reportArgumentType
AsyncBackend(diagnose=1)  # error: arg-type, reportArgumentType
EmceeBackend("x", mode="r")  # error: arg-type, reportArgumentType
EmceeBackend("x", compression="lzf")  # error: arg-type, reportArgumentType
import_emcee("x", "y", epochs_per_file="3")  # error: arg-type, reportArgumentType

# A word that isn't one of those.
DefaultBackend(mode="r")  # error: arg-type, reportArgumentType
DefaultBackend(compression="lzf")  # error: arg-type, reportArgumentType
AsyncBackend(on_full="drop")  # error: arg-type, reportArgumentType

# Options have names.
DefaultBackend(0, "x")  # error: call-arg, misc, reportCallIssue
AsyncBackend(0, "x")  # error: call-arg, misc, reportCallIssue

# Epochs are ours, unless it is said.
mine: Mine = DefaultBackend(outdir="x").load()  # error: assignment, reportAssignmentType
runs: list[Run[Mine]] = [open_run("x").asynchronous.blocking]  # error: list-item, reportAssignmentType
