"""`verify`, `repair`, `compact`: looking after what lies on disk."""

import logging
from typing import Annotated

from cyclopts import Parameter

from .arguments import Json, RunFolder
from .exit_codes import Exit
from .terminal import count, print_json, progress, say, size

_SHOWN = 50


def verify(run: RunFolder, /, *, json: Json = False) -> Exit:
    """Compare every byte of a run with its checksum.

    All of the run is read once. Ends with 1 if something is damaged. A writer isn't disturbed.
    """
    from posterity._admin.verify import verify as look

    with progress("verifying") as shown:
        findings = look(run, progress=shown)
    if json:
        print_json(findings)
    else:
        say(f"{findings.folder}: {count(findings.nepochs, 'good epoch')}, {size(findings.nbytes)}")
        for problem in findings.problems[:_SHOWN]:
            say(f"  {problem}")
        if len(findings.problems) > _SHOWN:
            say(f"  and {len(findings.problems) - _SHOWN} more; --json lists all")
        if findings.is_good:
            say("all is as it was written")
        else:
            say(f"{count(len(findings.problems), 'problem')}; `posterity repair` makes a run open again")
    return Exit.FINE if findings.is_good else Exit.NO


def repair(
    run: RunFolder,
    /,
    *,
    names: Annotated[
        str | None, Parameter(help="How its files are named, epochs_%%d.h5 for example, where the journal is lost.")
    ] = None,
    json: Json = False,
) -> Exit:
    """Make a damaged run open again; nothing is deleted.

    A journal that is damaged or lost is written anew from the files. What isn't the run's is set aside, under another
    name. Numbers that are damaged stay damaged; the other epochs can be read. Ends with 1 if epochs are lost.
    Nobody may write the run meanwhile.
    """
    from posterity._admin.repair import repair as mend

    with progress("repairing"):
        repairs = mend(run, outfile_fmt=names)
    if json:
        print_json(repairs)
    else:
        say(str(repairs))
    return Exit.NO if repairs.lost else Exit.FINE


def compact(run: RunFolder, /, *, json: Json = False) -> Exit:
    """Give back the room on disk that a run needs no more.

    That is burned samples, and the history in its journal. A run that was closed has given back nearly
    all of it by itself. Nobody may write the run meanwhile.
    """
    from posterity._admin.compact import compact as squeeze

    logging.getLogger("posterity.service").setLevel(logging.ERROR)  # that the run is continued is no news here
    with progress("compacting"):
        result = squeeze(run)
    if json:
        print_json(result)
    else:
        say(f"files: {size(result.file_bytes_before)}, now {size(result.file_bytes)}")
        say(f"journal: {size(result.journal_bytes_before)}, now {size(result.journal_bytes)}")
    return Exit.FINE
