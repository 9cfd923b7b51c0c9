"""FedJAX's own federated averaging: 64 clients with an MLP of 199,210 parameters.

In each round every client takes ten steps of 32 of its 100 images of 784 pixels.
"""

import importlib.metadata
import itertools

import fedjax
import jax
import jax.numpy as jnp
import numpy as np
from fedjax.algorithms import fed_avg
from turns import take_turns

if not hasattr(jax, "tree_map"):  # FedJAX calls it by its old name; so it can be raced on a new JAX
    jax.tree_map = jax.tree.map  # type: ignore[attr-defined]

_CLIENTS, _SAMPLES, _WIDTHS = 64, 100, (784, 200, 200, 10)


def _logits(params, x):
    for weights, biases in params[:-1]:
        x = jax.nn.relu(x @ weights + biases)
    weights, biases = params[-1]
    return x @ weights + biases


def _loss(params, batch, rng):
    del rng
    log_p = jax.nn.log_softmax(_logits(params, batch["x"]))
    return -jnp.mean(jnp.take_along_axis(log_p, batch["y"][:, None], axis=1))


def main() -> None:
    """Takes a round in each turn."""
    rng = np.random.default_rng(0)
    params = [
        (jnp.asarray(rng.normal(0, n**-0.5, (n, m)), jnp.float32), jnp.zeros(m))
        for n, m in itertools.pairwise(_WIDTHS)
    ]
    clients = [
        (
            str(k).encode(),
            fedjax.ClientDataset(
                {
                    "x": rng.normal(size=(_SAMPLES, 784)).astype(np.float32),
                    "y": rng.integers(0, 10, _SAMPLES),
                }
            ),
            jax.random.key(k),
        )
        for k in range(_CLIENTS)
    ]
    batches = fedjax.ShuffleRepeatBatchHParams(batch_size=32, num_epochs=None, num_steps=10)
    local, server = fedjax.optimizers.sgd(0.1), fedjax.optimizers.sgd(1.0)
    algorithm = fed_avg.federated_averaging(jax.grad(_loss), local, server, batches)
    state = [algorithm.init(params)]

    def work() -> None:
        state[0], _ = algorithm.apply(state[0], clients)
        jax.block_until_ready(state[0].params)

    take_turns(work, {"fedjax": importlib.metadata.version("fedjax"), "jax": jax.__version__})


if __name__ == "__main__":
    main()
