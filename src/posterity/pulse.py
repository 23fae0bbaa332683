"""How a run grows, seen from its folder."""

from ._admin.follow import Pulse, follow

__all__ = ["Pulse", "follow"]
