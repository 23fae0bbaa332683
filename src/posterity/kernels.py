"""Kernels of JAX for `run_kernel`: of one chain, as BlackJAX has them, and NumPyro's.

Neither BlackJAX nor NumPyro is imported here: who has a kernel of theirs has done that.

Up the stream: a sampler. Down the stream: `kernelrun`. What users of these need is here, whatever module it is in.
"""

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from .epochkernel import Kernel
from .jaxtrees import Tree, jax, jnp, members_of, settled
from .kernelrun import run_kernel, run_kernel_async
from .pytrees import get_info, get_info_async, get_positions, get_positions_async

if TYPE_CHECKING:
    from jax import Array as JaxArray

__all__ = [
    "ChainKernel",
    "Kernel",
    "NumpyroKernel",
    "Tuned",
    "get_info",
    "get_info_async",
    "get_positions",
    "get_positions_async",
    "run_kernel",
    "run_kernel_async",
]

_NUMPYRO_INFO = (
    "accept_prob",
    "adapt_state.step_size",
    "diverging",
    "energy",
    "num_steps",
    "potential_energy",
)


# ---- kernels of one chain, such as BlackJAX's ------------------------------------------------------------------------


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


# ---- NumPyro's -------------------------------------------------------------------------------------------------------


class NumpyroKernel(Kernel):
    """A kernel of NumPyro's, such as `NUTS(model)`, for many chains at once.

    The positions are what `MCMC.get_samples` gives: the values of the sites, constrained, deterministic ones too.

    Args:
        kernel: one of `numpyro.infer`'s kernels. It is copied, and may be one that was used.
        args, kwargs: what the model takes.
        nchain: how many chains there are; they are moved as with `chain_method="vectorized"`.
        num_warmup: how many of the first steps adapt the kernel.
        keep_warmup: whether these are part of the run. Then a warm-up too can be killed and continued, and a backend
            with `burn=num_warmup` discards what it gave. Otherwise a new run begins after them.
        init_params: where the chains begin, as in `MCMC.run`, with the axis of chains first.
        extra_fields: attributes of the kernel's state that are stored of each draw, such as "adapt_state.step_size". By
            default those that ArviZ has a name for, and the log density.
    """

    def __init__(
        self,
        kernel: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        nchain: int,
        num_warmup: int,
        keep_warmup: bool = False,
        init_params: Tree = None,
        extra_fields: Sequence[str] | None = None,
    ) -> None:
        if nchain < 1 or num_warmup < 0:
            raise ValueError(f"nchain must be at least 1 and num_warmup at least 0, got {nchain} and {num_warmup}")
        self.nchain = nchain
        self.num_warmup = num_warmup
        self.keep_warmup = keep_warmup
        self._kernel = self._given = copy.deepcopy(kernel)
        self._args = tuple(args)
        self._kwargs = dict(kwargs or {})
        self._init_params = init_params
        self._extra_fields = extra_fields
        self._likes: dict[object, Tree] = {}

    def start(self, key: "JaxArray") -> Tree:
        """The chains at the beginning of a run; see `Kernel`."""
        state = self._first(key)
        return state if self.keep_warmup else self._warm_up(state)

    def like(self, key: "JaxArray") -> Tree:
        """Their shapes; see `Kernel`. NumPyro looks for points to begin from, and sets the kernel up; no warm-up."""
        kind = (key.dtype, key.shape)
        if kind not in self._likes:
            self._likes[kind] = jax.eval_shape(lambda state: state, self._first(key))
        return self._likes[kind]

    def _first(self, key: "JaxArray") -> Tree:
        self._kernel = copy.deepcopy(self._given)  # NumPyro's vectorize themselves once more each time
        keys = jax.random.split(key, self.nchain)
        return settled(self._kernel.init(keys, self.num_warmup, self._init_params, self._args, self._kwargs))

    @cached_property
    def _warm_up(self) -> Any:
        def warm_up(state: Tree) -> Tree:
            return jax.lax.fori_loop(0, self.num_warmup, lambda _, state: settled(self._step(state)), state)

        return jax.jit(warm_up)

    def _step(self, state: Tree) -> Tree:
        return self._kernel.sample(state, self._args, self._kwargs)

    def move(self, state: Tree) -> tuple[Tree, Tree, Tree]:
        """Move all chains by one step; see `Kernel`."""
        state = self._step(state)
        constrain = self._kernel.postprocess_fn(self._args, self._kwargs)
        position = jax.vmap(constrain)(_attribute(state, self._kernel.sample_field))
        return state, position, self._info(state)

    def _info(self, state: Tree) -> dict[str, Any]:
        if self._extra_fields is not None:
            return {name: _attribute(state, name) for name in self._extra_fields}
        info = {name: value for name in _NUMPYRO_INFO if (value := _attribute(state, name, None)) is not None}
        if "potential_energy" in info:
            info["lp"] = -info.pop("potential_energy")
        return info


_NOTHING = object()


def _attribute(value: Any, path: str, default: Any = _NOTHING) -> Any:
    """An attribute of an attribute, and so on."""
    for name in path.split("."):
        if default is not _NOTHING and not hasattr(value, name):
            return default
        value = getattr(value, name)
    return value
