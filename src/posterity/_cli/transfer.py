"""`export`, `import`: runs for other tools, and runs from other stores."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from posterity.errors import RunExists

from .arguments import Burn, Json, Pars, RunFolder, Thin
from .exit_codes import Exit, Refused
from .terminal import print_json, progress, say


def export(
    run: RunFolder,
    target: Annotated[Path, Parameter(name="TARGET")],
    /,
    *,
    burn: Burn = 0,
    thin: Thin = 1,
    pars: Pars = None,
) -> Exit:
    """Write a run to a netCDF file or a Zarr store, for xarray and ArviZ.

    Burned samples are left out.

    Args:
        target: the file to make, whose name ends in .nc, or the folder, whose name ends in .zarr.
    """
    from posterity._interop.export import export_netcdf, export_zarr
    from posterity._reading.run import open_run

    exports: dict[str, Callable[..., object]] = {".nc": export_netcdf, ".zarr": export_zarr}
    chosen = exports.get(target.suffix)
    if chosen is None:
        raise Refused(f"TARGET must end in .nc for netCDF, or in .zarr for Zarr; got {target}")
    with open_run(run) as opened, progress("exporting") as shown:
        try:
            chosen(opened, target, burn=burn, thin=thin, pars=pars, progress=shown)
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(str(error.args[0])) from error
    say(f"wrote {target}")
    return Exit.FINE


def import_(
    source: Annotated[Path, Parameter(name="SOURCE")],
    run: Annotated[Path, Parameter(name="RUN")],
    /,
    *,
    epochs_per_file: Annotated[
        int, Parameter(validator=Number(gte=1), help="How many epochs go to one HDF5 file.")
    ] = 1,
    compression: Annotated[str | None, Parameter(help="gzip, zstd or auto; none, if left out.")] = None,
    json: Json = False,
) -> Exit:
    """Make a run of what jexplore, emcee or Eryn wrote.

    What it is, is seen from the source, which stays as it is.

    Args:
        source: a folder of jexplore's, or a file of emcee's `HDFBackend` or of Eryn's.
        run: the run folder to make.
    """
    from posterity._interop.importer import importer_of

    try:
        take_over: Callable[..., Any] = importer_of(source)
    except ValueError as error:
        raise Refused(str(error)) from error
    options = {"epochs_per_file": epochs_per_file, "compression": compression}
    with progress("importing") as shown:
        try:
            result = take_over(source, run, progress=shown, **options)
        except RunExists as error:
            raise RunExists(f"{run} holds a run already; choose another folder") from error
    if json:
        print_json(result)
    else:
        say(str(result))
    return Exit.FINE
