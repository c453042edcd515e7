"""What a client minimises over a batch.

A new objective is one function, one line in `OBJECTIVES`, and its name in
`OBJECTIVES` of `config/learning.py`.

An objective is a function (scores, labels, used) -> (loss_sum, count) with
scores float32 [batch, 1 + num_negatives] (column 0 is the interaction, the rest
its negatives), labels float32 [batch] and used bool, the shape of scores. The
batch's loss is loss_sum / count.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Objective = Callable[
    [jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]

# Keeps the negatives' scores of bpr_max from growing.
_BPR_MAX_PENALTY = 1.0


def binary_cross_entropy(
    scores: jax.Array, labels: jax.Array, used: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """-log sigma(s) for interactions, -log sigma(-s) for negatives; mean."""
  del labels  # Any interaction is a 1, whatever its rating.
  signs = jnp.where(jnp.arange(scores.shape[1]) == 0, 1.0, -1.0)[None, :]
  loss = jnp.where(used, jax.nn.softplus(-signs * scores), 0.0)
  return loss.sum(), used.sum()


def bayesian_personalized_ranking(
    scores: jax.Array, labels: jax.Array, used: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """-log sigma(s_interaction - s_negative), mean over the pairs.

  References:
    Rendle et al., 2009, `BPR <https://arxiv.org/abs/1205.2618>`_.
  """
  del labels
  pair = used[:, 1:] & used[:, :1]
  loss = jax.nn.softplus(scores[:, 1:] - scores[:, :1])
  return jnp.where(pair, loss, 0.0).sum(), pair.sum()


def bpr_max(
    scores: jax.Array, labels: jax.Array, used: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """-log sum_j s_j sigma(r - r_j) + sum_j s_j r_j^2, mean over interactions.

  r is the interaction's score, r_j a negative's, and s their softmax: the
  higher a negative stands, the more it counts. Interactions without a negative
  do not count.

  References:
    Hidasi and Karatzoglou, 2018, `Recurrent Neural Networks with Top-k Gains
    <https://arxiv.org/abs/1706.03847>`_; the penalty's weight is 1.
  """
  del labels
  pair = used[:, 1:] & used[:, :1]
  rivals = scores[:, 1:]
  # Finite, so that a place without a negative has no NaN.
  share = jax.nn.log_softmax(jnp.where(pair, rivals, -1e9), -1)
  wins = jax.nn.logsumexp(
      share + jax.nn.log_sigmoid(scores[:, :1] - rivals), -1, where=pair)
  penalty = jnp.where(pair, jnp.exp(share) * jnp.square(rivals), 0).sum(-1)
  counts = pair.any(-1)
  loss = jnp.where(counts, _BPR_MAX_PENALTY * penalty - wins, 0.0)
  return loss.sum(), counts.sum()


def sampled_softmax(
    scores: jax.Array, labels: jax.Array, used: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """-log softmax of the interaction among itself and its negatives; mean.

  Negatives are uniform over the catalogue, so the correction by the log of
  their probability is the same for all and falls out. A client's other
  interactions are no negatives: within one user's data they are positives.
  Interactions without a negative do not count.

  References:
    Jean et al., 2015, `On Using Very Large Target Vocabulary
    <https://arxiv.org/abs/1412.2007>`_.
  """
  del labels
  counts = used[:, 0] & used[:, 1:].any(-1)
  # Finite, so that a place without anything has no NaN.
  masked = jnp.where(used, scores, -1e9)
  loss = jax.nn.logsumexp(masked, -1) - masked[:, 0]
  return jnp.where(counts, loss, 0.0).sum(), counts.sum()


def squared_error(
    scores: jax.Array, labels: jax.Array, used: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """(score - rating)^2 of the interactions, mean; negatives do not count."""
  loss = jnp.where(used[:, 0], jnp.square(scores[:, 0] - labels), 0.0)
  return loss.sum(), used[:, 0].sum()


OBJECTIVES: dict[str, Objective] = {
    'bce': binary_cross_entropy,
    'bpr': bayesian_personalized_ranking,
    'bpr_max': bpr_max,
    'softmax': sampled_softmax,
    'squared_error': squared_error,
}
