"""FedPerGNN: LightGCN on a client's ego graph, uploaded among pseudo-items.

A client knows one hop of the graph: itself and its items. It recommends by

  e_u = (p_u + h_u) / 2,  h_u = sum over its items of v_i / n_u^power

or, with attention, h_u = sum of softmax(LeakyReLU(a . p_u + b . v_i)) v_i; an
item is v_i itself, with the model's biases. p_u never travels; a gradient
reaches every item of the client through h_u.

Pseudo-items: the rows of an upload name a client's items. So it adds rows of
items that it has not, with deltas drawn from a normal distribution of the mean
and covariance of those of its real items. They are drawn once a client, and its
negatives come from the rest: both stand in every upload, so that comparing
rounds finds real and pseudo-items alike.

What that hides: which of the n + m rows that stand in every upload (m
pseudo-items) are real, from who looks at row ids, and at the first two moments
of the deltas. What it does not: how many those rows are; that what is in none
of them has no interaction; which rows a client's taste makes likely, because
pseudo-items are drawn uniformly; and what single deltas tell: those of
interactions have the shape that a gradient has, and normal ones have not. The
deltas themselves are not bounded and no noise is added to them: there is no
guarantee of differential privacy (the section privacy has one).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjaxrec.algorithms import local_steps
from fedjaxrec.algorithms.fedavg import make_fedavg
from fedjaxrec.blocks import Algorithm, widen
from fedjaxrec.config import Config, FedPerGNNConfig
from fedjaxrec.examples import draw_examples, nth_absent, permute
from fedjaxrec.local_training import Contribution, is_off, sum_squares
from fedjaxrec.models.recommender import Recommender
from fedjaxrec.objectives import OBJECTIVES
from fedjaxrec.population import Client

PyTree = Any
# Keep a client's pseudo-items and their deltas apart from its other draws.
_PSEUDO_STREAM = 0x95EED0
_NOISE_STREAM = 0x6A055
_ATTENTION = ('attention_user', 'attention_item')


class Own(NamedTuple):
  """What a client keeps.

  Attributes:
    layer: What the model marks as personal: p_u and its bias.
    around: float32 [dim]: h_u, of the item rows that it last saw.
    trained: float32 []: 1 once it has taken part; until then p_u is 0.
  """
  layer: PyTree
  around: jax.Array
  trained: jax.Array


class EgoExamples(NamedTuple):
  """A client's interactions of one round, and its pseudo-items.

  Attributes:
    rows: int32 [capacity * (1 + num_negatives) + pseudo]: the slots of
      `Examples`, row by row, then the pseudo-items; num_items where unused.
    labels: As in `Examples`.
    used: As in `Examples`.
    pseudo_used: bool [pseudo].
    key: Typed key of the made-up deltas.
  """
  rows: jax.Array
  labels: jax.Array
  used: jax.Array
  pseudo_used: jax.Array
  key: jax.Array


def count_pseudo_items(counts: Any, wanted: int, num_items: int) -> Any:
  """Pseudo-items of clients with so many interactions; at most half the rest.

  Args:
    counts: int array, any shape.
    wanted: fedpergnn.pseudo_items.
    num_items: Items in the catalogue.
  """
  numpy = np if isinstance(counts, np.ndarray) else jnp
  left = numpy.maximum(num_items - counts, 0)  # Padding counts may be above.
  return numpy.minimum(wanted, left // 2) * (counts > 0)


def draw_ego(
    client: Client, key: jax.Array, num_items: int, num_negatives: int,
    num_pseudo: int, pseudo_key: jax.Array
) -> EgoExamples:
  """Draws as `draw_examples` does, from a catalogue without the pseudo-items.

  Args:
    client: One client, without block axis.
    key: Typed key of this client and round.
    num_items: Items in the catalogue.
    num_negatives: Negatives for each interaction.
    num_pseudo: Pseudo-items that a client has at most.
    pseudo_key: Typed key of the run: a client's pseudo-items stay the same.

  Returns:
    EgoExamples. Items, negatives and pseudo-items are distinct.
  """
  count = client.num_examples
  mine = count_pseudo_items(count, num_pseudo, num_items)
  turn = jnp.arange(num_pseudo, dtype=jnp.int32)
  pseudo_used = turn < mine
  drawn = permute(
      jax.random.fold_in(pseudo_key, client.client_id), turn,
      jnp.maximum(num_items - count, 1))
  pseudo = jnp.sort(jnp.where(
      pseudo_used, nth_absent(client.items, count, drawn), num_items))
  # Ids of a catalogue that has no pseudo-items: those below an id are missing.
  left: Any = num_items - mine
  items = client.items - jnp.searchsorted(pseudo, client.items).astype(
      jnp.int32)
  examples = draw_examples(
      client._replace(items=items), key, left, num_negatives)
  rows = jnp.where(
      examples.used, nth_absent(pseudo, mine, examples.rows), num_items)
  return EgoExamples(
      jnp.concatenate([rows.reshape(-1), pseudo]), examples.labels,
      examples.used, pseudo_used, jax.random.fold_in(key, _NOISE_STREAM))


def make_up_deltas(
    deltas: PyTree, known: jax.Array, num_pseudo: int, key: jax.Array
) -> PyTree:
  """Draws normal deltas with the mean and covariance of given ones.

  Args:
    deltas: Leaves [capacity, ...], one client's; the leaves of a row are one
      vector.
    known: bool [capacity]: which rows count.
    num_pseudo: How many are drawn.
    key: Typed key.

  Returns:
    Leaves [num_pseudo, ...]: mean + sum_k z_k (delta_k - mean) / sqrt(n), z
    standard normal, so that the covariance is that of the n deltas (divided by
    n), of any rank. Cost: capacity * num_pseudo normal numbers.
  """
  count = jnp.maximum(known.sum(), 1)
  # A key for each row: no draw depends on the padding behind them.
  normal = jax.vmap(lambda k: jax.random.normal(
      jax.random.fold_in(key, k), (num_pseudo,)))(jnp.arange(len(known)))

  def draw(x):
    mask = widen(known, x)
    mean = jnp.where(mask, x, 0).sum(0, keepdims=True) / count
    centred = jnp.where(mask, x - mean, 0)
    return mean + jnp.tensordot(normal, centred, (0, 0)) / jnp.sqrt(
        count.astype(x.dtype))

  return jax.tree.map(draw, deltas)


def look_around(
    settings: FedPerGNNConfig, user: jax.Array, shared: PyTree,
    items: jax.Array, known: jax.Array, spared: jax.Array | None = None
) -> jax.Array:
  """Aggregates a client's items: h_u.

  Args:
    settings: The section fedpergnn.
    user: float32 [dim]: p_u.
    shared: With the leaves of the attention, where that is used.
    items: float32 [capacity, dim].
    known: bool [capacity]: which of them are the client's.
    spared: int32 [batch]: for each place the item that is left out.

  Returns:
    float32 [dim], or [batch, dim] with spared; 0 where no item is left.
  """
  weights = known.astype(items.dtype)
  if settings.aggregator == 'attention':
    logits = jax.nn.leaky_relu(
        user @ shared['attention_user'] + items @ shared['attention_item'], 0.2)
    if spared is not None:
      others = jnp.arange(len(known))[None, :] != spared[:, None]
      known, logits = known[None, :] & others, logits[None, :]
    logits = jnp.where(known, logits, -jnp.inf)
    # Of nothing, the maximum is kept finite, and so are the gradients.
    top = jnp.where(known.any(-1, keepdims=True),
                    logits.max(-1, keepdims=True), 0)
    weights = jnp.where(known, jnp.exp(logits - jax.lax.stop_gradient(top)), 0)
    total = weights.sum(-1, keepdims=True)
    return weights @ items / jnp.where(total > 0, total, 1)
  total, count = weights @ items, weights.sum()
  if spared is not None:
    total, count = total[None, :] - items[spared], count - 1
  return total / jnp.maximum(count, 1) ** settings.degree_power


def _with_attention(recommender: Recommender, dim: int) -> Recommender:
  """The same model, whose shared parameters have the attention's beside."""
  def init_server(key):
    table, shared = recommender.init_server(key)
    return table, {**shared, **{name: jnp.zeros(dim) for name in _ATTENTION}}

  return recommender._replace(init_server=init_server)


def make_fedpergnn(
    config: Config,
    recommender: Recommender,
    num_items: int,
    server_transform: optax.GradientTransformation | None = None,
    expected_cohort: float | None = None,
) -> Algorithm:
  """Builds FedPerGNN, on matrix factorisation.

  Personal: p_u, the user's bias, and h_u, which is computed anew from the final
  table for evaluation (`refit`); a client that never trained recommends by h_u
  / 2. Travels: the touched rows, those of the pseudo-items among them, down and
  up, and the shared parameters. A client steps through its interactions in
  batches, and every step moves all its items.

  Against the paper: one hop (its expansion by the embeddings of neighbours,
  whom a third party matches by encrypted items, is left out: it would show that
  party every user's vector); any objective, and its squared error with
  objective.name=squared_error; no noise on each entry of an upload; the
  pseudo-items of a client stay the same. LightGCN divides by the root of the
  items' degrees too, which would have to be published.

  Cost of a client: its capacity for each step beside the batch, batch times
  capacity with attention, and capacity * pseudo_items normal numbers a round.

  Args:
    config: The whole config; the section fedpergnn is read.
    recommender: The factorisation.
    num_items: Items in the catalogue.
    server_transform: See `make_server`.
    expected_cohort: See `make_server`.

  Raises:
    ValueError: For another model than mf, or a client optimizer other than sgd.

  References:
    Wu et al., 2022, A federated graph neural network framework for
    privacy-preserving personalization, Nature Communications 13 (3091); He et
    al., 2020, `LightGCN <https://arxiv.org/abs/2002.02126>`_; Velickovic et
    al., 2018, `GAT <https://arxiv.org/abs/1710.10903>`_.
  """
  local_steps.require_sgd(config)
  if config.model.name != 'mf':
    raise ValueError(
        f'model.name={config.model.name} with algorithm.name=fedpergnn, whose '
        'user vector and item vectors are added up and multiplied; use '
        'model.name=mf, or algorithm.name=fedavg.')
  client, settings = config.client, config.fedpergnn
  objective, l2 = OBJECTIVES[config.objective.name], config.objective.l2
  num_negatives, dim = config.objective.drawn_negatives, config.model.dim
  if settings.aggregator == 'attention':
    recommender = _with_attention(recommender, dim)

  def score_as(user, layer, rows, shared):
    return recommender.score(
        {**layer, 'user': user}, rows,
        {n: x for n, x in shared.items() if n not in _ATTENTION})

  def loss(layer, mine, others, shared, batch):
    place, known = batch.rows, batch.whole
    positives = jax.tree.map(lambda x: x[place], mine)
    user, items = layer['user'], mine['item']
    around = look_around(settings, user, shared, items, known)
    targets = jnp.broadcast_to(around[None, :], (len(place), dim))
    if settings.spare_target:
      targets = look_around(settings, user, shared, items, known, place)
    first = jax.vmap(lambda h, row: score_as(
        (user + h) / 2, layer, jax.tree.map(lambda x: x[None], row),
        shared))(targets, positives)
    rest = score_as((user + around) / 2, layer,
                    local_steps.flatten_rows(others), shared)
    scores = jnp.concatenate([first, rest.reshape(len(place), -1)], 1)
    loss_sum, count = objective(scores, batch.labels, batch.used)
    value = loss_sum / jnp.maximum(count, 1)
    if not is_off(l2):
      there = batch.used[:, 0].astype(jnp.float32)
      weighed = jax.tree.map(lambda x: x * widen(there, x), positives)
      value += l2 * (sum_squares(layer) + sum_squares(shared) + (
          sum_squares(weighed) + sum_squares(others)) / local_steps.num_used(
              batch))
    return value, (loss_sum, count.astype(jnp.float32))

  def step(rows, whole, batch):
    layer, mine, shared = whole
    others = jax.tree.map(lambda x: x[:, 1:], rows)
    gradients, (loss_sum, count) = jax.grad(
        loss, argnums=(0, 1, 2, 3), has_aux=True)(
            layer, mine, others, shared, batch)
    rate = batch.scale * client.learning_rate
    item_rate = batch.scale * client.item_learning_rate
    layer, mine, others, shared = map(
        local_steps.descend, (layer, mine, others, shared), gradients,
        (rate, item_rate, item_rate, rate))
    rows = jax.tree.map(lambda x, o: x.at[:, 1:].set(o), rows, others)
    return rows, (layer, mine, shared), loss_sum, count

  run = local_steps.make_local_steps(
      step, batch_size=client.batch_size, epochs=client.epochs,
      steps=client.steps)

  def split(item_rows, used):
    """Slots as in `Examples`, and the client's own items."""
    block, capacity, width = used.shape
    slots = jax.tree.map(
        lambda x: x[:, :capacity * width].reshape(
            block, capacity, width, *x.shape[2:]), item_rows)
    return slots, jax.tree.map(lambda x: x[:, :, 0], slots)

  def see(layer, items, known, shared):
    return jax.vmap(lambda user, x, k, s: look_around(settings, user, s, x, k))(
        layer['user'], items['item'], known, shared)

  def client_update(view, examples, num_examples):
    slots, start = split(view.item_rows, examples.used)
    known = examples.used[:, :, 0]
    place = jnp.broadcast_to(
        jnp.arange(known.shape[1], dtype=jnp.int32), known.shape)
    trained = run(
        slots, (view.personal.layer, start, view.shared), examples,
        num_examples, view.learning_rate_scale, fixed=place, fixed_whole=known)
    layer, mine, shared = trained.whole
    rows = jax.tree.map(
        lambda x, own: x.at[:, :, 0].set(own), trained.rows, mine)
    deltas = jax.vmap(
        lambda d, k, key: make_up_deltas(d, k, settings.pseudo_items, key))(
            optax.tree.sub(mine, start), known, examples.key)

    def join(moved, made_up):
      flat = moved.reshape(len(moved), -1, *moved.shape[3:])
      there = widen(examples.pseudo_used, made_up)
      return jnp.concatenate([flat, jnp.where(there, made_up, 0)], 1)

    return Contribution(
        jax.tree.map(join, optax.tree.sub(rows, slots), deltas),
        optax.tree.sub(shared, view.shared), trained.loss_sum,
        trained.loss_count, trained.num_examples), Own(
            layer, see(layer, mine, known, shared),
            jnp.ones_like(view.personal.trained))

  def refit(view, examples, num_examples):
    del num_examples
    own = view.personal
    _, mine = split(view.item_rows, examples.used)
    layer = {**own.layer, 'user': own.layer['user'] * own.trained[:, None]}
    return own._replace(around=see(
        layer, mine, examples.used[:, :, 0], view.shared))

  def score(own, item_rows, shared):
    return score_as((own.trained * own.layer['user'] + own.around) / 2,
                    own.layer, item_rows, shared)

  # A stream of its own, that the seed may be a traced number.
  pseudo_key = jax.random.fold_in(jax.random.key(config.seed), _PSEUDO_STREAM)

  def touched_rows(counts):
    counts = np.asarray(counts, np.int64)
    pseudo = count_pseudo_items(counts, settings.pseudo_items, num_items)
    return counts + pseudo + np.minimum(
        num_negatives * counts, num_items - pseudo - counts)

  return make_fedavg(
      config, recommender, num_items, server_transform, expected_cohort
  )._replace(
      draw=lambda one_client, key: draw_ego(
          one_client, key, num_items, num_negatives, settings.pseudo_items,
          pseudo_key),
      init_personal=lambda key: Own(
          recommender.init_personal(key), jnp.zeros(dim), jnp.float32(0)),
      client_update=client_update, refit=refit, score=score,
      touched_rows=touched_rows)
