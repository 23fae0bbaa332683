"""What owns something of the system, a descriptor or a thread, can't be copied: the copy would give it back as well.

Then the original would read from, write to and close whatever else got the same number meanwhile. So `copy`, `deepcopy`
(and with it `dataclasses.asdict`) and `pickle` are refused before anything happens.
"""

from typing import ClassVar, NoReturn


class Uncopyable:
    """Refuses to be copied or pickled. `_INSTEAD`: what to send, or to keep, in its place."""

    __slots__ = ()
    _INSTEAD: ClassVar[str] = "it belongs to an open run of this process"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} can't be copied or pickled: {self._INSTEAD}")
