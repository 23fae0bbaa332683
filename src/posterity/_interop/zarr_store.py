"""A folder with a Zarr v3 group that is written. Needs the extra `zarr`.

Up the stream: `export` says what to write.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posterity._reading.variables import Plain
from posterity._system.arrays import Array
from posterity.errors import MissingExtra

try:
    import zarr
    from zarr.codecs import ZstdCodec
except ImportError as error:
    raise MissingExtra("Zarr needs the package zarr: pip install 'posterity[zarr]'") from error


class ZarrFolder:
    """A new Zarr v3 group. `level`: zstd's; None: no compression."""

    chunk_bytes = 8 << 20  # each is a file

    def __init__(self, path: Path, level: int | None) -> None:
        if level is not None and not 1 <= level <= 22:
            raise ValueError(f"compression must be zstd's level, 1 to 22, got {level}")
        self._compressors = None if level is None else [ZstdCodec(level=level)]
        self._root = zarr.create_group(path, zarr_format=3)
        self._groups: dict[str, Any] = {}

    def group(self, name: str, attributes: Mapping[str, Plain]) -> None:
        """Make a group."""
        self._groups[name] = self._root.create_group(name, attributes=dict(attributes))

    def define(
        self, group: str, name: str, dims: Mapping[str, int], like: Array, attributes: Mapping[str, Plain], chunk: int
    ) -> None:
        """Make a variable; see `export.Sink`."""
        self._groups[group].create_array(
            name,
            shape=tuple(dims.values()),
            dtype=str if like.dtype.kind == "U" else like.dtype.newbyteorder("="),
            chunks=tuple(chunk if dim == "draw" else max(1, length) for dim, length in dims.items()),
            compressors=self._compressors,
            attributes=dict(attributes),
            dimension_names=tuple(dims),
        )

    def write(self, group: str, name: str, where: tuple[slice, ...], values: Array) -> None:
        """Store some of a variable's numbers."""
        self._groups[group][name][where] = values


def is_zarr(path: Path) -> bool:
    """Whether it is a folder with a Zarr v3 group or array."""
    return (path / "zarr.json").is_file()
