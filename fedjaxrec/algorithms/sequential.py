"""FedAvg on sequences: the client's user vector is what it did last.

For models that encode a sequence (SASRec, GRU4Rec). Every place of a client's
sequence predicts the item of the next one, against negatives drawn for it; all
that is trained is shared, and a user is the encoding of the training sequence.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjaxrec.algorithms.fedavg import make_fedavg
from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import Config
from fedjaxrec.examples import Examples, nth_absent, permute
from fedjaxrec.local_training import make_local_training
from fedjaxrec.models.recommender import PyTree, Recommender
from fedjaxrec.objectives import OBJECTIVES
from fedjaxrec.optimizers import (
    build_item_optimizer,
    build_optimizer,
    stands_still,
)
from fedjaxrec.population import Client, places_of

# offsets, items and labels of a run.
Training = tuple[np.ndarray, np.ndarray, np.ndarray]
# More interactions than a client can have: its sequence is one batch.
_WHOLE = 2**30
# Algorithms that read the order of a client's interactions, and no ratings.
ORDERED = ('sequential', 'fedease')


def make_sequential(
    config: Config,
    recommender: Recommender,
    num_items: int,
    server_transform: optax.GradientTransformation | None = None,
    expected_cohort: float | None = None,
) -> Algorithm:
  """Builds FedAvg on the clients' own sequences.

  A client reads its latest model.max_length + 1 training interactions in order
  of time. Each of them but the first is a target: the state of the places
  before it scores it against objective.num_negatives items that the client has
  no training interaction with (distinct; held-out items are among them). The
  loss is the mean over the sequence, which is one batch: client.batch_size is
  without effect, and client.epochs and client.steps count steps on it.

  Personal: nothing that is trained. `refit` encodes the latest model.max_length
  training interactions, with the shared model as it is; evaluation ranks with
  that, for validation and for the test alike, so that a validation item is no
  more known to this method than to the others. Users who never trained are
  encoded in the same way. Travels: the rows of the sequence and of its
  negatives, and the network, down; their deltas, up. A client of one
  interaction has nothing to predict and sends zeros.

  Cost of a client: a step is one pass over the sequence, forward and backward,
  and (max_length + 1) (1 + negatives) rows of memory at most.

  Args:
    config: The whole config; objective, client, server and cohort.weighting
      are read.
    recommender: A model with `encode`.
    num_items: Items in the catalogue.
    server_transform: See `make_server`.
    expected_cohort: See `make_server`.

  References:
    The models'; trained as by McMahan et al., 2017, `FedAvg
    <https://arxiv.org/abs/1602.05629>`_. No published federated training of
    these models was followed.
  """
  client, objective = config.client, config.objective
  length, num_negatives = config.model.max_length, objective.drawn_negatives
  train = make_local_training(
      recommender.score, OBJECTIVES[objective.name],
      build_optimizer(client, client.learning_rate),
      build_item_optimizer(client), batch_size=_WHOLE, epochs=client.epochs,
      steps=client.steps, l2=objective.l2, proximal_mu=client.proximal_mu,
      lazy_items=stands_still(client),
      score_batch=lambda _, rows, used, shared: score_sequence(
          recommender, rows, used, shared))
  encode = jax.vmap(encoder(recommender))

  def client_update(view, examples, num_examples):
    contribution, _ = train(
        view._replace(personal=()),
        examples._replace(used=examples.used & has_past(examples.used)),
        num_examples)
    return contribution, view.personal

  def refit(view, examples, num_examples):
    del num_examples
    latest = jax.tree.map(lambda x: x[:, -length:, 0], view.item_rows)
    states = encode(latest, examples.used[:, -length:, 0], view.shared)
    return {'state': states[:, -1]}

  return make_fedavg(
      config, recommender, num_items, server_transform, expected_cohort
  )._replace(
      draw=lambda c, key: draw_sequence(
          c, key, num_items, num_negatives, length),
      client_update=client_update, refit=refit, is_encoded=True,
      touched_rows=lambda counts: touched_rows(
          counts, num_negatives, num_items, length))


def draw_sequence(
    client: Client, key: jax.Array, num_items: int, num_negatives: int,
    max_length: int
) -> Examples:
  """A client's latest interactions in order of time, and their negatives.

  Args:
    client: One client, without block axis; its labels are places in its
      sequence (`label_interactions`).
    key: Typed key of this client and round.
    num_items: Items in the catalogue.
    num_negatives: Negatives for each target.
    max_length: Targets at most.

  Returns:
    Examples of min(capacity, max_length + 1) places, at least 2, filled from
    the end. The first used place has no negatives, for nothing comes before it.
    Items and negatives are distinct. A draw depends on the key and the distance
    from the end alone, and not on the padding.
  """
  capacity, count = client.items.shape[0], client.num_examples
  room = max(2, min(capacity, max_length + 1))
  from_end = count - 1 - client.labels.astype(jnp.int32)
  mine = (jnp.arange(capacity) < count) & (from_end < room)
  # A place before the first would count from the end.
  items = jnp.full(room, num_items, jnp.int32).at[
      jnp.where(mine, room - 1 - from_end, room)].set(client.items, mode='drop')
  num_targets = jnp.minimum(count, max_length + 1) - 1
  target = room - 1 - jnp.arange(room, dtype=jnp.int32)
  turn = jnp.arange(num_negatives, dtype=jnp.int32)
  draw = target[:, None] + num_targets * turn[None, :]
  num_absent = num_items - count
  absent = permute(key, draw, jnp.maximum(num_absent, 1))
  negatives = jnp.where(
      (target[:, None] < num_targets) & (draw < num_absent),
      nth_absent(client.items, count, absent), num_items)
  rows = jnp.concatenate([items[:, None], negatives], 1)
  return Examples(
      rows, jnp.where(items < num_items, 1.0, 0.0), rows < num_items)


def has_past(used: jax.Array) -> jax.Array:
  """Whether an item comes before a place: bool [..., length, 1].

  Args:
    used: bool [..., length, 1 + num_negatives], filled from the end.
  """
  before = used[..., :-1, :1]
  return jnp.concatenate(
      [jnp.zeros_like(used[..., :1, :1]), before], axis=-2)


def score_sequence(
    recommender: Recommender, rows: PyTree, used: jax.Array, shared: PyTree
) -> jax.Array:
  """Scores every target and its negatives by the state before it.

  Args:
    recommender: A model with `encode`.
    rows: Leaves [length, 1 + num_negatives, ...], one client's.
    used: bool [length, 1 + num_negatives]: targets and their negatives. The
      place before a target holds an item, too.
    shared: The shared parameters.

  Returns:
    float32, the shape of used; of no meaning in the first place.
  """
  items = jax.tree.map(lambda x: x[:-1, 0], rows)
  # What is before a target is there; so is nothing else but the last item.
  states = encoder(recommender)(items, used[1:, 0], shared)
  before = jnp.concatenate([jnp.zeros_like(states[:1]), states])
  return jax.vmap(lambda state, slots: recommender.score(
      {'state': state}, slots, shared))(before, rows)


def encoder(recommender: Recommender) -> Callable[..., jax.Array]:
  """The recommender's encode.

  Raises:
    ValueError: If the model reads no sequence.
  """
  if recommender.encode is None:
    raise ValueError(
        'recommender.encode=None: this model reads no sequence; use '
        'model.name=sasrec or gru4rec.')
  return recommender.encode


def touched_rows(
    counts: np.ndarray, num_negatives: int, num_items: int, max_length: int
) -> np.ndarray:
  """Item rows of clients with so many interactions: int64, counts's shape."""
  counts = np.asarray(counts, np.int64)
  items = np.minimum(counts, max_length + 1)
  return items + np.minimum(
      num_negatives * np.maximum(items - 1, 0), num_items - counts)


def label_interactions(
    config: Config, offsets: np.ndarray, labels: np.ndarray
) -> np.ndarray:
  """What clients read beside an item: its rating, or its place in time.

  Rows of a client are in order of time before they are sorted by item, which
  is where its places come from.

  Args:
    config: The whole config.
    offsets: int64 [num_clients + 1].
    labels: float32 [num_interactions]: the ratings.

  Returns:
    labels, or for the algorithms that are ORDERED float32 [num_interactions]:
    0, 1, ... within a client; exact up to 2^24.
  """
  if config.algorithm.name not in ORDERED:
    return labels
  return places_of(offsets).astype(np.float32)


def label_members(
    config: Config, training: Sequence[Training]) -> Sequence[Training]:
  """The same for the (offsets, items, labels) of several runs.

  What runs share they still share afterwards.
  """
  if config.algorithm.name not in ORDERED:
    return training
  made: dict[int, np.ndarray] = {}
  for offsets, _, labels in training:
    if id(offsets) not in made:
      made[id(offsets)] = label_interactions(config, offsets, labels)
  return [(offsets, items, made[id(offsets)]) for offsets, items, _ in training]
