"""Multi-Headed Distillation on one screen: plain JAX, one architecture, one device, for reading.

    python -m experiments.mhd_in_one_file

Zhmoginov et al., CVPR 2023, arXiv 2211.15774. K clients with skewed private digits learn from each
other's predictions on public digits without labels. Client i has a backbone φ_i, a main head z_i^0 and
auxiliary heads z_i^1 … z_i^m; at each step it draws one neighbour j and minimises

    CE(z_i^0(x), y)                                             on its private batch
    + ν_emb · mean_x ‖ē_i(x) − ē_j(x)‖²,   ē = φ / ‖φ‖          on the public batch
    + ν_aux · Σ_k mean_x CE(softmax z_i^k(x), softmax z_q^{k−1}(x))

where q is i or j, whoever's head k − 1 is more confident on x. The library (`mhd_jax/algorithms/mhd.py`)
computes the same, for unlike models, many devices, failing clients and the rest; a test holds them equal.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

CLIENTS, AUX_HEADS, CLASSES, WIDTH = 8, 3, 10, 64
NU_AUX, NU_EMB, SMOOTHING = 0.3, 0.1, 0.1
STEPS, PRIVATE_BATCH, PUBLIC_BATCH = 2000, 32, 64
OPTIMIZER = optax.chain(
    optax.add_decayed_weights(1e-3),
    optax.sgd(optax.cosine_decay_schedule(0.03, STEPS), momentum=0.9),
)


def init(key, features=64):
    """Parameters of one client: two dense layers, and m + 1 linear heads."""
    shapes = {
        "hidden": (features, WIDTH),
        "embedding": (WIDTH, WIDTH),
        "heads": (AUX_HEADS + 1, WIDTH, CLASSES),
    }
    keys = jax.random.split(key, len(shapes))
    params = {
        name: jax.random.normal(k, shape) / np.sqrt(shape[-2])
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    return {**params, "biases": jnp.zeros((AUX_HEADS + 1, CLASSES))}


def forward(params, x):
    """Logits [N, H, C] and embeddings [N, D] of one client."""
    embeddings = jax.nn.relu(jax.nn.relu(x @ params["hidden"]) @ params["embedding"])
    logits = jnp.einsum("nd,hdc->nhc", embeddings, params["heads"]) + params["biases"]
    return logits, embeddings


def unit(embeddings):
    """Embeddings of length 1; those of length 0 have a gradient, too."""
    return embeddings * jax.lax.rsqrt(jnp.square(embeddings).sum(-1, keepdims=True) + 1e-6)


def loss(params, x, y, public, taught):
    """L_i of one client; `taught` are logits [P, H, C] and embeddings [P, D] of its teacher."""
    labels = optax.smooth_labels(jax.nn.one_hot(y, CLASSES), SMOOTHING)
    private = optax.softmax_cross_entropy(forward(params, x)[0][:, 0], labels).mean()

    logits, embeddings = forward(params, public)
    distance = jnp.square(unit(embeddings) - unit(taught[1])).sum(-1).mean()

    # Head k learns from heads k − 1: the teacher's, or its own client's.
    candidates = jax.lax.stop_gradient(jnp.stack([taught[0], logits])[:, :, :-1])  # [2, P, m, C]
    probabilities = jax.nn.softmax(candidates)
    most_confident = probabilities.max(-1).argmax(0)  # [P, m]
    targets = jnp.take_along_axis(probabilities, most_confident[None, :, :, None], 0)[0]
    distillation = optax.softmax_cross_entropy(logits[:, 1:], targets).mean(0).sum()
    return private + NU_EMB * distance + NU_AUX * distillation


@jax.jit
def train_step(params, optimizer, key, x, y, public, graph):
    """One step of all clients, whose arrays have an axis [K] in front; graph [K, K], public [P, F]."""
    outputs = jax.vmap(forward, in_axes=(0, None))(params, public)
    draw = jnp.where(graph > 0, jax.random.gumbel(key, graph.shape), -jnp.inf)
    teachers = draw.argmax(axis=1)
    taught = jax.tree.map(lambda a: jax.lax.stop_gradient(a[teachers]), outputs)
    gradients = jax.vmap(jax.grad(loss), in_axes=(0, 0, 0, None, 0))(params, x, y, public, taught)
    updates, optimizer = jax.vmap(OPTIMIZER.update)(gradients, optimizer, params)
    return optax.apply_updates(params, updates), optimizer


def deal(y, rng):
    """Owners [N] of samples: a client draws its two classes' samples 101 times as often as others."""
    weights = np.ones((CLIENTS, CLASSES))
    for client in range(CLIENTS):
        weights[client, rng.permutation(CLASSES)[:2]] += 100
    shares = weights / weights.sum(axis=0)
    return np.array([rng.choice(CLIENTS, p=shares[:, label]) for label in y])


def main():
    """Trains on the digits, and prints each head's accuracy on all classes, mean over clients."""
    rng = np.random.default_rng(0)
    digits = load_digits()
    x, y = digits.data.astype(np.float32) / 16, digits.target
    test, public, private = np.split(rng.permutation(len(x)), [360, 500])
    owner = deal(y[private], rng)
    graph = jnp.ones((CLIENTS, CLIENTS)) - jnp.eye(CLIENTS)

    key = jax.random.key(0)
    params = jax.vmap(init)(jax.random.split(key, CLIENTS))
    optimizer = jax.vmap(OPTIMIZER.init)(params)
    for step in range(STEPS):
        own = [rng.choice(private[owner == i], PRIVATE_BATCH) for i in range(CLIENTS)]
        common = rng.choice(public, PUBLIC_BATCH, replace=False)
        params, optimizer = train_step(
            params,
            optimizer,
            jax.random.fold_in(key, step),
            x[np.stack(own)],
            y[np.stack(own)],
            x[common],
            graph,
        )
    logits, _ = jax.vmap(forward, in_axes=(0, None))(params, x[test])  # [K, N, H, C]
    correct = np.asarray(logits.argmax(-1) == y[test][None, :, None])
    by_class = np.stack([correct[:, y[test] == c].mean(1) for c in range(CLASSES)])  # [C, K, H]
    for head, accuracy in enumerate(by_class.mean(axis=(0, 1))):
        print(f"{'main' if head == 0 else f'aux {head}'}: {accuracy:.3f}")


if __name__ == "__main__":
    main()
