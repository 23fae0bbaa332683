"""Changes of names that the journal speaks of already and that are still to be made, here or after a crash.

Up the stream: `recovery` finds those that a crash left, `data_files` brings those of its own work. Down the stream:
`store` has them made once the record that tells of them is synced.
"""

from collections.abc import Iterable

import msgspec

from posterity._format.file_reader import Reader
from posterity._system.disk import Disk
from posterity.errors import ForeignFiles


class Chore(msgspec.Struct, frozen=True):
    """A change of names that was decided and journaled and is still to be made; making it twice does no harm.

    `what`: "publish" gives a new file its name, "replace" puts it in the place of an older one of ours, "aside" does so
    where there may be none, "remove" takes a name away.
    """

    what: str
    name: str
    as_name: str = ""


class Chores:
    """What is still to be done to the names of a folder, in its order.

    `asides`: files from before a reset, which stay as long as somebody reads them.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._waiting: list[Chore] = []
        self._old_names: list[str] = []
        self.asides: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._waiting or self._old_names)

    def add(self, chores: Iterable[Chore]) -> None:
        """Have these done after those that wait."""
        self._waiting += chores

    def do(self, run_id: bytes, *, old_is_read: bool = True) -> None:
        """Do all of them; one that fails stays, with those after it. The new names are synced on return.

        `old_is_read`: somebody still reads what was there before a reset.

        Raises:
            ForeignFiles: a name that is needed was taken by somebody else.
        """
        is_done = not self
        while self._waiting:
            self._do(self._waiting[0], run_id)
            del self._waiting[0]
        if self.asides and not old_is_read:
            is_done = False
            while self.asides:
                self._disk.remove(self.asides[0], missing_ok=True)
                del self.asides[0]
        if not is_done:
            self._disk.sync_names()
        while self._old_names:  # not before: a power cut might take both names. Whether this is synced doesn't matter
            self._disk.remove(self._old_names[0], missing_ok=True)
            del self._old_names[0]

    def _do(self, chore: Chore, run_id: bytes) -> None:
        if chore.what == "remove":
            self._disk.remove(chore.name, missing_ok=True)
            return
        try:
            if chore.what in ("replace", "aside") or self._is_of(run_id, chore.as_name):
                self._disk.replace(chore.name, chore.as_name)
            else:
                self._disk.publish(chore.name, chore.as_name)
        except FileExistsError as error:
            raise ForeignFiles(
                f"{self._disk.folder / chore.as_name} was put there by somebody else: move it, and the run goes on by "
                f"itself; until then its epochs are safe in {chore.name}"
            ) from error
        except FileNotFoundError:
            if chore.what != "aside" and chore.as_name not in self._disk.names():
                raise
        self._old_names.append(chore.name)

    def _is_of(self, run_id: bytes, name: str) -> bool:
        """Whether a published name is an older state of a file of the run."""
        try:
            with Reader.open(self._disk, name) as reader:
                head = reader.read_head()
        except FileNotFoundError:
            return False
        return head is not None and head.run_id == run_id
