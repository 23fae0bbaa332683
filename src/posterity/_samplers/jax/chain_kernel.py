"""A kernel that moves one chain, as BlackJAX has them, for many chains. BlackJAX isn't imported here.

Up the stream: a sampler. Down the stream: `jax/run_kernel`.
"""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from .kernel import Kernel
from .trees import Tree, jax, jnp, members_of, settled

if TYPE_CHECKING:
    from jax import Array as JaxArray


class Tuned(NamedTuple):
    """What a warm-up found: the chain's state, and the keyword arguments that each step gets from then on."""

    state: Tree
    tuning: dict[str, Any]


class Chains(NamedTuple):
    """All that the next step depends on. `key`: one for each chain, which each step splits."""

    key: "JaxArray"
    chains: Tree
    tuning: dict[str, Any]


def state_position(state: Tree) -> Tree:
    """Where a chain is, if its state has a `position`: BlackJAX's states do."""
    return state.position


def simple_info(state: Tree, info: Tree) -> dict[str, Any]:
    """What BlackJAX tells as one number for each draw: those fields of the info, and the log density."""
    members = (members_of(info) or []) if info is not None else []
    numbers = {str(key): part for key, part in members if members_of(part) is None and jnp.shape(part) == ()}
    return numbers | ({"logdensity": state.logdensity} if hasattr(state, "logdensity") else {})


class ChainKernel(Kernel):
    """A kernel that moves one chain, such as BlackJAX's, for many chains: `ChainKernel(nuts.step, start, nchain=4)`.

    Args:
        step: `step(key, state) -> (state, info)` of one chain. If `start` gives a `Tuned`, each step gets what was
            found: `step(key, state, **tuning)`.
        start: `start(key) -> state` of one chain, for a new run; or `Tuned(state, tuning)` after a warm-up. JAX must be
            able to trace it. Or the states of all chains, with the axis of chains first.
        nchain: how many chains there are.
        position: `position(state)`: the pytree of numbers that is stored as samples "p".
        info: `info(state, info)`: the pytree of what else is stored of each draw. By default the log density and
            those fields of BlackJAX's info that are one number.

    All functions are for one chain.
    """

    def __init__(
        self,
        step: Callable[..., tuple[Tree, Tree]],
        start: "Callable[[JaxArray], Tree] | Tree",
        *,
        nchain: int,
        position: Callable[[Tree], Tree] = state_position,
        info: Callable[[Tree, Tree], Tree] = simple_info,
    ) -> None:
        if nchain < 1:
            raise ValueError(f"nchain must be at least 1, got {nchain}")
        self.nchain = nchain
        self._step = step
        self._start = start
        self._position = position
        self._info = info

    def start(self, key: "JaxArray") -> Chains:
        """The chains at the beginning of a run; see `Kernel`."""
        return self._jitted_start(key)  # type: ignore[no-any-return]

    def like(self, key: "JaxArray") -> Chains:
        """Their shapes; see `Kernel`. Nothing is computed: no warm-up when a run goes on."""
        return jax.eval_shape(self._first, key)  # type: ignore[no-any-return]

    @cached_property
    def _jitted_start(self) -> Any:
        return jax.jit(self._first)

    def _first(self, key: "JaxArray") -> Chains:
        key, start_key = jax.random.split(key)
        if callable(self._start):
            begun = jax.vmap(self._start)(jax.random.split(start_key, self.nchain))
        else:
            begun = self._start
        state, tuning = begun if isinstance(begun, Tuned) else (begun, {})
        return settled(Chains(jax.random.split(key, self.nchain), state, tuning))  # type: ignore[no-any-return]

    def move(self, state: Chains) -> tuple[Chains, Tree, Tree]:
        """Move each chain by one step; see `Kernel`."""
        keys = jax.vmap(jax.random.split)(state.key)

        def move_one(key: "JaxArray", chain: Tree, tuning: dict[str, Any]) -> tuple[Tree, Tree, Tree]:
            chain, info = self._step(key, chain, **tuning)
            return chain, self._position(chain), self._info(chain, info)

        chains, position, info = jax.vmap(move_one)(keys[:, 1], state.chains, state.tuning)
        return state._replace(key=keys[:, 0], chains=chains), position, info
