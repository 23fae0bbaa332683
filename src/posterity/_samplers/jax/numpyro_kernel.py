"""NumPyro's kernels, for many chains at once. NumPyro isn't imported: who has a kernel of it has done that.

Up the stream: a sampler. Down the stream: `jax/run_kernel`.
"""

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .kernel import Kernel
from .trees import Tree, jax, settled

if TYPE_CHECKING:
    from jax import Array as JaxArray

_NUMPYRO_INFO = (
    "accept_prob",
    "adapt_state.step_size",
    "diverging",
    "energy",
    "num_steps",
    "potential_energy",
)


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
