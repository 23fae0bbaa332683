"""The head of a file of epochs, and the root group at its end: whose file it is, and what its numbers mean.

Before the head there is room for HDF5's superblock, behind it may be the run's metadata, as of the file's beginning.
The root group says all that to HDF5, in attributes, with the metadata as of the sealing, and links the epochs.

Up the stream: `hdf5`. Down the stream: `file_writer` writes them, `file_reader` reads them.
"""

import functools
import struct
from collections.abc import Mapping
from typing import NamedTuple

from posterity.errors import NewerFormat

from . import hdf5
from .checksum import data_sum
from .frame import align
from .layout import FORMAT_VERSION, METADATA_VERSION

HEAD_AT = 64
_HEAD = struct.Struct("<8sIIIIQ16sQ")
HEAD_SIZE = _HEAD.size
_MAGIC = b"POSTfile"
METADATA_AT = 128
_SUM = struct.Struct("<Q")
_METADATA_NAME = "posterity_metadata"
_WORTH_SPLITTING = 15_000  # characters; an attribute has at most 64 KiB


class FileHead(NamedTuple):
    """Whose file it is. `rewrite`: how often its content was written anew. `version`: of its format.

    `metadata_size`: the bytes of the metadata that follow on the head; 0: there are none.
    """

    run_id: bytes
    generation: int
    number: int
    rewrite: int
    version: int = FORMAT_VERSION
    metadata_size: int = 0

    @property
    def first_region(self) -> int:
        """Where the first epoch may begin."""
        return METADATA_AT + align(self.metadata_bytes, 8)

    @property
    def metadata_bytes(self) -> int:
        """What the metadata take from `METADATA_AT` on, with their checksum."""
        return _SUM.size + self.metadata_size if self.metadata_size else 0

    def is_same(self, other: "FileHead | None") -> bool:
        """Whether it is the head of the same file, whatever its format."""
        return other is not None and self[:4] == other[:4]


def encode_head(head: FileHead, metadata: bytes = b"") -> bytes:
    """The first bytes of a file: room for HDF5's superblock, whose file it is, and the run's metadata."""
    fields = (_MAGIC, head.version, head.generation, head.rewrite, head.metadata_size, head.number, head.run_id)
    body = _HEAD.pack(*fields, 0)[:-8]
    first = (bytes(HEAD_AT) + body + _SUM.pack(data_sum(body))).ljust(METADATA_AT, b"\0")
    return (first + _SUM.pack(data_sum(metadata)) + metadata).ljust(head.first_region, b"\0") if metadata else first


def decode_head(data: bytes, name: str) -> FileHead | None:
    """The head in the `HEAD_SIZE` bytes from `HEAD_AT` on; None if it isn't one of ours, or is damaged.

    Raises:
        NewerFormat: a later version wrote it.
    """
    if len(data) < HEAD_SIZE or data[:8] != _MAGIC:
        return None
    _, version, generation, rewrite, metadata_size, number, run_id, digest = _HEAD.unpack(data)
    if digest != data_sum(data[:-8]):
        return None
    if version > METADATA_VERSION:
        raise NewerFormat(f"{name} has format {version}, and this posterity knows {METADATA_VERSION}")
    return FileHead(run_id, generation, number, rewrite, version, metadata_size)


def decode_metadata(data: bytes) -> str | None:
    """The metadata in the `metadata_bytes` from `METADATA_AT` on; None if they are damaged."""
    text = data[_SUM.size :]
    return text.decode(errors="replace") if _SUM.unpack_from(data)[0] == data_sum(text) else None


def encode_root(head: FileHead, groups: Mapping[int, int], metadata: str = "") -> bytes:
    """The root group; `groups`: where each epoch's group is."""
    links = [(f"epoch_{index}", address) for index, address in groups.items()]
    attributes = b"".join(
        [
            hdf5.text_attribute("posterity_run", head.run_id.hex()),
            hdf5.number_attribute("posterity_format", head.version),
            hdf5.number_attribute("generation", head.generation),
            hdf5.number_attribute("number", head.number),
            hdf5.number_attribute("rewrite", head.rewrite),
            _metadata_attributes(metadata),
        ]
    )
    return hdf5.group(links, attributes)


@functools.lru_cache(maxsize=16)
def _metadata_attributes(metadata: str) -> bytes:
    """Metadata as attributes: one, and more of them if it is long."""
    parts = [metadata[i : i + _WORTH_SPLITTING] for i in range(0, len(metadata), _WORTH_SPLITTING)]
    return b"".join(hdf5.text_attribute(_part_name(i), part) for i, part in enumerate(parts))


def _part_name(i: int) -> str:
    return f"{_METADATA_NAME}_{i}" if i else _METADATA_NAME


def metadata_in(root: bytes) -> str | None:
    """The metadata that a root group has."""
    texts = hdf5.text_attributes(root)
    parts = [texts[name] for i in range(len(texts)) if (name := _part_name(i)) in texts]
    return "".join(parts) or None
