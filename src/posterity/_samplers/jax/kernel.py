"""What a sampler in JAX must be to be run epoch by epoch, and an epoch of it as one jitted function.

An epoch takes all its steps on the device, by `lax.scan`, and gives its samples with the axes that they have on disk.

Up the stream: the kernels of `kernels`, or your own. Down the stream: `jax/run_kernel` has epochs computed and stored.
"""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .pytrees import Node, leaves_of, parameter_names
from .trees import Tree, describe, escaped, jax, ravelled, settled, storable

if TYPE_CHECKING:
    from jax import Array as JaxArray

# What ArviZ calls what samplers tell.
ARVIZ_NAMES = {
    "accept_prob": "acceptance_rate",
    "adapt_state.step_size": "step_size",
    "is_divergent": "diverging",
    "logdensity": "lp",
    "num_integration_steps": "n_steps",
    "num_steps": "n_steps",
    "num_trajectory_expansions": "tree_depth",
}


class Kernel(ABC):
    """What `run_kernel` needs of a sampler: all its chains at once, each array with the axis of chains first.

    `ChainKernel` and `NumpyroKernel` are such; for any other sampler write `start`, `like` and `move`. What JAX
    compiles belongs to the object: use the same one to go on.
    """

    @abstractmethod
    def start(self, key: "JaxArray", /) -> Tree:
        """The state that a new run begins with, its random keys included. May take long: a warm-up, for example."""

    @abstractmethod
    def like(self, key: "JaxArray", /) -> Tree:
        """A state of the same structure, shapes and dtypes. Arrays or `jax.ShapeDtypeStruct`s; to be had quickly."""

    @abstractmethod
    def move(self, state: Tree, /) -> tuple[Tree, Tree, Tree]:
        """Take one step, in a function that is jitted. Returns the next state, the position and the info."""

    def parameters(self, key: "JaxArray | None" = None) -> list[str]:
        """A name for each component of "p", for the option `parameters` of a backend: "slope", "offset[0]"."""
        return parameter_names(self.structures(self.like(jax.random.key(0) if key is None else key))[0])

    def structures(self, state: Tree) -> tuple[Node, Node]:
        """How the position and the info after such a state are stored; only its shapes matter."""
        _, position, info = jax.eval_shape(self._move, state)
        return _structures(position, info)

    def sample_epoch(self, state: Tree, nsamples: int, thin: int) -> tuple[Tree, dict[str, Any]]:
        """Have the device take the steps of an epoch; returns before it has.

        Returns:
            The state after them; and the samples, name -> `(nchain, dim, nsamples)`.
        """
        return self._epoch(state, nsamples, thin)  # type: ignore[no-any-return]

    @cached_property
    def _move(self) -> Any:
        return jax.jit(self.move)  # traced once, for its shapes and for the epoch

    @cached_property
    def _epoch(self) -> Any:
        return jax.jit(self._traced_epoch, static_argnums=(1, 2))

    def _traced_epoch(self, state: Tree, nsamples: int, thin: int) -> tuple[Tree, dict[str, Any]]:

        def draw(state: Tree, _: None) -> tuple[Tree, dict[str, Any]]:
            if thin > 1:
                state = jax.lax.fori_loop(0, thin - 1, lambda _, state: settled(self._move(state)[0]), state)
            state, position, info = self._move(state)
            return settled(state), _samples(position, info)

        state, samples = jax.lax.scan(draw, state, length=nsamples)
        return state, {name: array.transpose(1, 2, 0) for name, array in samples.items()}


def _structures(position: Tree, info: Tree) -> tuple[Node, Node]:
    """Where the leaves are kept: those of the position in "p", each of the info in samples of its own."""
    names = ["p"]

    def new_name(path: str) -> str:
        name = escaped(ARVIZ_NAMES.get(path, path or "info"))
        while name in names:
            name = f"info.{name}"
        names.append(name)
        return name

    return describe(position, new_name, like=jax.eval_shape(ravelled, position)), describe(info, new_name)


def _samples(position: Tree, info: Tree) -> dict[str, Any]:
    """The samples of one draw, name -> `(nchain, dim)`."""
    samples = {"p": ravelled(position)}
    for structure, tree in zip(_structures(position, info), (position, info), strict=True):
        for leaf, array in zip(leaves_of(structure), jax.tree.leaves(tree), strict=True):
            if leaf.name != "p":
                samples[leaf.name] = storable(array).reshape(len(array), -1)
    return samples
