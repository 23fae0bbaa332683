"""The storing policy: what should happen to memory and disk next. Pure: `plan(registry, ...) -> actions`.

The rules, in words:
- the `inmem_epochs` newest epochs stay in memory; those before them are written as soon as they can be;
- what burn took before it was written is never written, unless somebody still reads it; what it took later goes: whole
  files soon, a part of a file when half of that file is dead, or when somebody asked for it;
- the newest epoch on disk keeps its last sample, whatever burn says: sampling continues from it;
- what the numbers mean is stored before the first of them, and again when it changed;
- a file is published when each epoch that belongs to it was written or burned, or when somebody asked for it.

Up the stream: `registry` is what is looked at. Down the stream: `store` does what the actions say and decides nothing.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from .metadata import Metadata
from .registry import (
    Entry,
    FileSpan,
    Registry,
    mark_burn_stored,
    mark_dropped,
    mark_metadata_stored,
    mark_published,
    mark_rewritten,
    mark_written,
)


class Demand(msgspec.Struct, frozen=True):
    """What somebody waits for, beyond the rules: as counts that only grow.

    Epochs before `write_to` on disk; files of epochs before `publish_to` published; files that the burn `cut_to` cuts
    written anew.
    """

    write_to: int = 0
    publish_to: int = 0
    cut_to: int = 0

    def joined(self, other: "Demand") -> "Demand":
        """What meets this demand and another one."""
        return Demand(
            max(self.write_to, other.write_to),
            max(self.publish_to, other.publish_to),
            max(self.cut_to, other.cut_to),
        )


class Settled(msgspec.Struct, frozen=True):
    """What the rules asked for at one moment, as counts that only grow: what comes later delays nobody.

    Epochs before `write_to` on disk, files of epochs before `publish_to` published; what `burn` takes removed.
    """

    write_to: int
    publish_to: int
    burn: int
    asked_burn: int


class StoreBurn(msgspec.Struct, frozen=True):
    """Make a burn survive a power cut."""

    burn: int
    asked_burn: int


class StoreMetadata(msgspec.Struct, frozen=True):
    """Make what is known of the numbers' meaning survive a power cut."""

    metadata: Metadata


class Part(msgspec.Struct, frozen=True):
    """What of an epoch goes to a file: all but its first `cut` samples; nothing where `cut` is all of them."""

    entry: Entry
    cut: int

    @property
    def is_empty(self) -> bool:
        """Whether no sample of it is stored."""
        return self.cut >= self.entry.nsamples


class WriteEpochs(msgspec.Struct, frozen=True):
    """Add epochs to a file; `publishes`: the file is complete then."""

    file: FileSpan
    parts: tuple[Part, ...]
    publishes: bool


class PublishFile(msgspec.Struct, frozen=True):
    """Give a file that was filling up its name; it holds the epochs before `stop`."""

    file: FileSpan
    stop: int


class RewriteFile(msgspec.Struct, frozen=True):
    """Write a file anew without what the burn took; `is_asked`: somebody waits for that."""

    file: FileSpan
    parts: tuple[Part, ...]
    is_asked: bool


class DropFiles(msgspec.Struct, frozen=True):
    """Remove the files of the epochs from `start` to `stop`: nothing of them is left."""

    start: int
    stop: int
    numbers: tuple[int, ...]


Action: TypeAlias = StoreBurn | StoreMetadata | WriteEpochs | PublishFile | RewriteFile | DropFiles


def plan(
    registry: Registry,
    *,
    inmem_epochs: int,
    demand: Demand,
    pinned_burn: int | None,
    nfetched: int | None = None,
    is_in_doubt: bool = False,
    batch_bytes: int = 1 << 26,
) -> list[Action]:
    """What to do next, in this order; empty when memory and disk are as they should be.

    `pinned_burn`: the lowest burn among the snapshots that are being read; what they need isn't removed. `nfetched`:
    epochs before this one came from the device that computed them, and can be written; None: all. `is_in_doubt`: the
    disk failed, and not for want of room; then files go only after all else was done. At most about `batch_bytes` are
    to be written by one plan, so that other things get their turn.
    """
    actions: list[Action] = []
    target = write_target(registry, inmem_epochs, demand)
    target = target if nfetched is None else min(target, nfetched)
    is_stored = registry.burn <= registry.stored_burn and registry.asked_burn <= registry.stored_asked_burn
    if not is_stored and (max(target, registry.nwritten) > 0 or demand.cut_to > registry.stored_burn):
        actions.append(StoreBurn(registry.burn, registry.asked_burn))
    if not registry.is_metadata_stored and max(target, registry.nwritten) > 0:
        actions.append(StoreMetadata(registry.metadata))
    gone = reclaimable(registry, pinned_burn)
    unread = registry.burn if pinned_burn is None else min(registry.burn, pinned_burn)
    writes = _writes(registry, target, unread, batch_bytes)
    rewrites = _rewriting(registry, demand, gone)
    drops = _drops(registry, gone)
    actions += [] if is_in_doubt else drops
    actions += _publishing(registry, demand)
    last = drops if is_in_doubt else []
    if rewrites and rewrites[0].file in [write.file for write in writes]:
        # It was planned from what is in the file now, so it can't come after a write to it. Unless somebody waits for
        # it, it comes when the file is full: it needs more room than a write does.
        actions += rewrites if rewrites[0].is_asked else []
        return [*actions, *writes, *last]
    return [*actions, *writes, *rewrites, *last]


def done(registry: Registry, action: Action) -> Registry:
    """The registry after an action has survived a power cut."""
    match action:
        case StoreBurn():
            return mark_burn_stored(registry, action.burn, action.asked_burn)
        case StoreMetadata():
            return mark_metadata_stored(registry, action.metadata)
        case WriteEpochs():
            written = mark_written(registry, [part.cut for part in action.parts])
            return mark_published(written, action.file.stop) if action.publishes else written
        case PublishFile():
            return mark_published(registry, action.stop)
        case RewriteFile():
            return mark_rewritten(registry, action.file.start, [part.cut for part in action.parts])
        case DropFiles():
            return mark_dropped(registry, action.stop)


def write_target(registry: Registry, inmem_epochs: int, demand: Demand) -> int:
    """Epochs before this one belong on disk."""
    return min(registry.next_index, max(registry.next_index - inmem_epochs, demand.write_to))


def pending(registry: Registry, inmem_epochs: int) -> tuple[int, int]:
    """Epochs and bytes that belong on disk by the rules and aren't there yet: what is in the mailbox."""
    entries, start = registry.entries, registry.nwritten
    stop = len(entries) - inmem_epochs
    if stop <= start:
        return 0, 0
    last = entries[stop - 1]
    return stop - start, last.before + last.nbytes - entries[start].before


def memory_floor(registry: Registry, inmem_epochs: int) -> int:
    """Epochs before this one are on disk and needn't stay in memory."""
    return min(registry.nwritten, max(0, registry.next_index - inmem_epochs))


def reclaimable(registry: Registry, pinned_burn: int | None) -> int:
    """The position up to which samples may be removed from disk: burned for good, and nobody reads them."""
    burn = min(registry.burn, registry.stored_burn)
    return burn if pinned_burn is None else min(burn, pinned_burn)


def is_met(registry: Registry, demand: Demand, pinned_burn: int | None) -> bool:
    """Whether a demand holds, but for what a reader's snapshot delays."""
    if registry.nwritten < demand.write_to or registry.npublished < demand.publish_to:
        return False
    if registry.stored_burn < demand.cut_to or (registry.nwritten > 0 and not registry.is_metadata_stored):
        return False
    return not _rewriting(registry, demand, reclaimable(registry, pinned_burn))


def settled(registry: Registry, inmem_epochs: int, demand: Demand) -> Settled:
    """What the rules ask for now."""
    target = max(write_target(registry, inmem_epochs, demand), registry.nwritten)
    publish_to = 0
    if target:
        file = registry.file_of(target - 1)
        publish_to = file.stop if file.stop <= target else file.start
    return Settled(target, publish_to, registry.burn, registry.asked_burn)


def is_settled(registry: Registry, asked: Settled, demand: Demand, pinned_burn: int | None) -> bool:
    """Whether memory and disk are as the rules asked at one moment, but for what a reader's snapshot delays."""
    if registry.nwritten < asked.write_to or registry.npublished < asked.publish_to:
        return False
    if registry.nwritten:
        is_stored = registry.stored_burn >= asked.burn and registry.stored_asked_burn >= asked.asked_burn
        if not (is_stored and registry.is_metadata_stored):
            return False
    gone = min(asked.burn, reclaimable(registry, pinned_burn))
    return not (_drops(registry, gone, asked.write_to) or _rewriting(registry, demand, gone, asked.write_to))


def _drops(registry: Registry, gone: int, before: int | None = None) -> list[Action]:
    """Whole files at the beginning of the run, but never the one with the newest epoch on disk.

    `before`: only files of epochs before this one are looked at.
    """
    numbers: list[int] = []
    stop = registry.ndropped
    end = min(registry.nwritten - 1, registry.npublished)
    end = end if before is None else min(end, before)
    while stop < end:
        file = registry.file_of(stop)
        if file.stop > end or not registry.entries[file.stop - 1].is_burned(gone):
            break
        numbers.append(file.number)
        stop = file.stop
    return [DropFiles(registry.ndropped, stop, tuple(numbers))] if numbers else []


def _writes(registry: Registry, target: int, unread: int, batch_bytes: int) -> list[WriteEpochs]:
    """`unread`: the burn that counts here: of what it takes nobody reads."""
    actions: list[WriteEpochs] = []
    index = registry.nwritten
    stop = _batch_stop(registry, target, batch_bytes)
    while index < stop:
        file = registry.file_of(index)
        end = min(file.stop, stop)
        parts = _parts(registry.entries[index:end], unread, has_newest=end == stop)
        actions.append(WriteEpochs(file, parts, publishes=end == file.stop))
        index = end
    return actions


def _batch_stop(registry: Registry, target: int, batch_bytes: int) -> int:
    """At least one epoch, and as many as fit into a batch."""
    start = registry.nwritten
    most = registry.bytes_before(start) + batch_bytes
    stop = bisect_right(registry.entries, most, start, target, key=lambda entry: entry.before + entry.nbytes)
    return max(stop, min(start + 1, target))


def _parts(entries: Sequence[Entry], burn: int, *, has_newest: bool) -> tuple[Part, ...]:
    """What of some epochs goes to their file. `has_newest`: the last of them is the newest on disk."""
    if burn <= entries[0].first:
        return tuple([Part(entry, 0) for entry in entries])
    newest = entries[-1].index if has_newest else -1
    return tuple(_part(entry, burn, is_newest=entry.index == newest) for entry in entries)


def _part(entry: Entry, burn: int, *, is_newest: bool) -> Part:
    burned = entry.burned(burn)
    return Part(entry, min(burned, entry.nsamples - 1) if is_newest else burned)


def _publishing(registry: Registry, demand: Demand) -> list[Action]:
    """A file can be complete without a write: the grouping changed, the rest of it was burned, or a crash came between.

    After a crash there can be several.
    """
    actions: list[Action] = []
    asked = min(demand.publish_to, registry.next_index)
    start = registry.npublished
    while start < registry.nwritten:
        file = registry.file_of(start)
        is_asked = asked > registry.npublished and registry.nwritten >= asked
        if registry.nwritten < file.stop and not is_asked:
            break
        start = min(file.stop, registry.nwritten)
        actions.append(PublishFile(file, start))
    return actions


def _rewriting(registry: Registry, demand: Demand, gone: int, before: int | None = None) -> list[RewriteFile]:
    """The one file that a burn ends in, if it is worth it. `before`: only if it has an epoch before this one."""
    at = min(registry.epoch_at(gone), registry.nwritten - 1)
    if gone == 0 or at < registry.ndropped or (before is not None and at >= before):
        return []
    file = registry.file_of(at)
    start, stop = file.start, min(file.stop, registry.nwritten)
    old = [Part(registry.entries[i], registry.cuts[i]) for i in range(start, stop)]
    new = [_cut_further(part, gone, is_newest=part.entry.index == registry.nwritten - 1) for part in old]
    total, left = sum(map(_part_bytes, old)), sum(map(_part_bytes, new))
    if left == total:
        return []
    asked = any(part.cut < part.entry.burned(min(gone, demand.cut_to)) for part in old)
    if not asked and 2 * left > total:
        return []
    return [RewriteFile(file, tuple(new), asked)]


def _cut_further(part: Part, burn: int, *, is_newest: bool) -> Part:
    return Part(part.entry, max(part.cut, _part(part.entry, burn, is_newest=is_newest).cut))


def _part_bytes(part: Part) -> float:
    """About how many bytes of an epoch are in its file."""
    return part.entry.nbytes * (1 - part.cut / max(1, part.entry.nsamples))
