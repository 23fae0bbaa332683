"""Dtypes as text, in layouts, in what samplers' backends record, and in JSON.

The text may come from a hostile file: reading it runs nothing.
"""

import ast
from typing import Any

import numpy as np


def dtype_to_text(dtype: np.dtype[np.generic]) -> str:
    """A dtype as text; `dtype_from_text` gives an equal one."""
    return dtype.str if dtype.names is None else repr(_without_metadata(dtype).descr)


def _without_metadata(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """An equal dtype without the notes that h5py keeps in dtypes: NumPy would write them down as well."""
    if dtype.subdtype is not None:
        return np.dtype((_without_metadata(dtype.subdtype[0]), dtype.subdtype[1]))
    if dtype.fields is None or dtype.names is None:
        return np.dtype(dtype.str)
    fields = [dtype.fields[name] for name in dtype.names]
    parts = {
        "names": list(dtype.names),
        "formats": [_without_metadata(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "titles": [field[2] if len(field) > 2 else None for field in fields],
        "itemsize": dtype.itemsize,
    }
    return np.dtype(parts)  # type: ignore[call-overload,no-any-return]  # NumPy's types leave "titles" out


def dtype_from_text(text: str) -> np.dtype[np.generic]:
    """The dtype that `dtype_to_text` wrote. The text may come from a hostile file: nothing in it is run.

    Raises:
        ValueError: the text doesn't describe a dtype of plain bytes.
    """
    try:
        descr: Any = ast.literal_eval(text) if text[:1] in "[('" else text
        dtype = np.lib.format.descr_to_dtype(descr)
    except (TypeError, SyntaxError, IndexError, RecursionError, MemoryError) as error:
        raise ValueError(f"not a dtype: {text[:80]!r}") from error
    if dtype.hasobject:
        raise ValueError(f"not a dtype of plain bytes: {text[:80]!r}")
    return dtype
