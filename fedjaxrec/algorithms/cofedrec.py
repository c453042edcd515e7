"""CoFedRec: the server clusters items, and by one cluster of them the clients.

Per round: k-means of the mean item table gives clusters of the items; a client
and a cluster are drawn; clients whose rows of that cluster are like the drawn
client's get the mean of their tables, the others keep their own. The clusters
travel down, as the classes of a contrastive loss.

The server sees every client's table, not their sum alone: no secure sum and no
privacy mechanism of this project stands between.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.algorithms import local_steps, whole_table
from fedjaxrec.algorithms.fedavg import make_fedavg
from fedjaxrec.blocks import Algorithm, widen
from fedjaxrec.config import Config
from fedjaxrec.local_training import is_off
from fedjaxrec.models.recommender import Recommender
from fedjaxrec.population import ByItem

PyTree = Any
# Keep the server's draws apart from each other's.
_CLUSTER_STREAM, _CORE_STREAM, _CATEGORY_STREAM = 0xC0FED0, 0xC0FED1, 0xC0FED2


class Own(NamedTuple):
  """What is kept of a client, by it and by the server.

  Attributes:
    layer: What the model marks as personal.
    table: Its item table, whole: as it left it, or its group's mean.
    last: int32 []: the round that it last took part in; -1 before the first.
  """
  layer: PyTree
  table: ByItem
  last: jax.Array


def cluster_items(
    table: PyTree, num_clusters: int, num_steps: int, key: jax.Array
) -> jax.Array:
  """Clusters the items of a table by k-means.

  Args:
    table: Leaves [num_items, ...]; the leaves of an item are one vector.
    num_clusters: At most the number of items.
    num_steps: Steps of Lloyd's algorithm, always all of them.
    key: Typed key: of the items that the centres begin at.

  Returns:
    int32 [num_items]. Of equally near centres the first counts; a centre that
    nobody is near to stays. Cost: items * clusters * numbers a step.
  """
  points = whole_table.flatten_each(table)
  centres = points[jax.random.permutation(key, len(points))[:num_clusters]]

  def assign(centres):
    distance = jnp.sum(jnp.square(centres), 1)[None, :] - (
        2 * points @ centres.T)
    return jnp.argmin(distance, 1).astype(jnp.int32)

  def step(_, centres):
    member = jax.nn.one_hot(assign(centres), num_clusters, dtype=points.dtype)
    size = member.sum(0)[:, None]
    return jnp.where(size > 0, member.T @ points / jnp.maximum(size, 1),
                     centres)

  return assign(jax.lax.fori_loop(0, num_steps, step, centres))


def compare_clients(
    tables: PyTree, core: jax.Array, category: jax.Array
) -> jax.Array:
  """Compares everybody's rows of some items with one client's.

  Args:
    tables: Leaves [num_clients, num_items, ...].
    core: int32 []: the client.
    category: bool [num_items]: the items.

  Returns:
    float32 [num_clients]: the cosines of the items' rows, summed over them; a
    row of zeros has the cosine 0.
  """
  def products(x, y):
    return sum(jnp.sum((a * b).reshape(*a.shape[:2], -1), -1)
               for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y),
                               strict=True))

  of_core = jax.tree.map(
      lambda x: jnp.broadcast_to(x[core][None], x.shape), tables)
  norms = jnp.sqrt(products(tables, tables))
  both = norms * norms[core][None, :]
  cosine = products(tables, of_core) / jnp.where(both > 0, both, 1)
  return jnp.where(category[None, :], cosine, 0).sum(1)


def split_at_elbow(similarity: jax.Array, there: jax.Array) -> jax.Array:
  """Finds the clients above the elbow of their sorted similarities.

  Args:
    similarity: float32 [num_clients].
    there: bool [num_clients]: who counts.

  Returns:
    bool [num_clients]: from the largest down to the one that lies farthest from
    the straight line between the largest and the smallest, this one included;
    the first of equals.
  """
  count = there.sum()
  order = jnp.argsort(jnp.where(there, -similarity, jnp.inf), stable=True)
  place = jnp.arange(len(order))
  falling = similarity[order]
  last = falling[jnp.maximum(count - 1, 0)]
  line = falling[0] + (last - falling[0]) * place / jnp.maximum(count - 1, 1)
  # Distances from the line are these times one cosine.
  elbow = jnp.argmax(jnp.where(place < count, jnp.abs(falling - line), -1))
  chosen = (place <= elbow) & (place < count)
  return jnp.zeros(len(order), bool).at[order].set(chosen)


def contrastive_loss(
    rows: jax.Array, classes: jax.Array, used: jax.Array, temperature: float
) -> jax.Array:
  """The supervised contrastive loss of a batch's rows, mean over the rows.

  Of row a, with z the row at length 1 and P the other rows of its class:
  -mean over p in P of log(exp(z_a z_p / t) / sum over b != a exp(z_a z_b / t)).

  Args:
    rows: float32 [n, numbers].
    classes: int [n].
    used: bool [n]: rows that count.
    temperature: t.

  Returns:
    float32 []. A row without another of its class adds 0. Cost: n^2 numbers.

  References:
    Khosla et al., 2020, `Supervised Contrastive Learning
    <https://arxiv.org/abs/2004.11362>`_.
  """
  squares = jnp.sum(jnp.square(rows), 1, keepdims=True)
  unit = rows * jax.lax.rsqrt(jnp.where(squares > 0, squares, 1))
  others = (used[:, None] & used[None, :]) & ~jnp.eye(len(rows), dtype=bool)
  logits = jnp.where(others, unit @ unit.T / temperature, -jnp.inf)
  # A row that is alone has nothing to sum: kept finite, for its gradient.
  logits = jnp.where(others.any(1, keepdims=True), logits, 0)
  log_prob = jnp.where(
      others, logits - jax.nn.logsumexp(logits, 1, keepdims=True), 0)
  same = others & (classes[:, None] == classes[None, :])
  mean = jnp.where(same, log_prob, 0).sum(1) / jnp.maximum(same.sum(1), 1)
  return -mean.sum() / jnp.maximum(used.sum(), 1)


def make_cofedrec(
    config: Config,
    recommender: Recommender,
    num_items: int,
    server_transform: optax.GradientTransformation | None = None,
    expected_cohort: float | None = None,
) -> Algorithm:
  """Builds CoFedRec, for model.name=pfedrec or any other model.

  A client starts from its own table, or from its group's mean where the server
  sent that. Per batch, as PFedRec: a step of what is personal and shared; the
  loss again, with contrast * the contrastive loss of the interactions' rows
  (from the second round on); then a step of the rows. It recommends with its
  table as the server's answer left it. The server's item table is the mean of
  the round's uploads, and the one model for all: the section server steps
  shared parameters only, of which model.name=pfedrec has none.

  Personal: what the model marks so. Travels: whole tables up; down a table (the
  bytes count one for everybody, though who keeps its own needs none), the
  clusters, 4 bytes an item, and the round. Published for MovieLens 100K: all
  clients, 30 item clusters, contrast 0.005, temperature 0.1, rates, batch and
  rounds as PFedRec's. Against the published form: the contrastive loss is of
  the interactions of a batch, not of the whole catalogue (num_items^2 products
  a step), and has no factor of a base temperature (0.1 / 0.5).

  Memory: a table a client, num_clients * num_items * dim * 4 bytes; refused
  above personalization.table_limit_gib. Needs one device.

  Args:
    config: The whole config; the section cofedrec is read.
    recommender: The model.
    num_items: Items in the catalogue.
    server_transform: None: the server needs each client's table.
    expected_cohort: None, likewise.

  Raises:
    ValueError: For a client optimizer other than sgd, a transform of the sum,
      or more clusters than items.

  References:
    He et al., 2024, `Co-clustering for Federated Recommender System
    <https://arxiv.org/abs/2411.01690>`_.
  """
  local_steps.require_sgd(config)
  if server_transform is not None:
    raise ValueError(
        'server_transform with algorithm.name=cofedrec: its server takes each '
        "client's table, and no sum; train without privacy, compression and "
        'secure sums, or by algorithm.name=pfedrec.')
  client, settings = config.client, config.cofedrec
  if settings.item_clusters > num_items:
    raise ValueError(
        f'cofedrec.item_clusters={settings.item_clusters} with num_items='
        f'{num_items}: a cluster has at least one item; lower it.')
  item_rate = whole_table.choose_item_rate(client, num_items, settings.lr_eta)
  loss = local_steps.make_batch_loss(recommender.score, config.objective)

  def item_loss(rows, layer, shared, cluster, strength, batch):
    value, _ = loss(layer, rows, shared, batch)
    if is_off(settings.contrast):
      return value
    interactions = whole_table.flatten_each(
        jax.tree.map(lambda x: x[:, 0], rows))
    return value + strength * settings.contrast * contrastive_loss(
        interactions, cluster[:, 0], batch.used[:, 0], settings.temperature)

  def step(slots, whole, batch):
    rows, cluster = slots
    layer, shared, strength = whole
    (layer_gradient, shared_gradient), (loss_sum, count) = jax.grad(
        loss, argnums=(0, 2), has_aux=True)(layer, rows, shared, batch)
    rate = batch.scale * client.learning_rate
    layer = local_steps.descend(layer, layer_gradient, rate)
    shared = local_steps.descend(shared, shared_gradient, rate)
    gradient = jax.grad(item_loss)(
        rows, layer, shared, cluster, strength, batch)
    rows = local_steps.descend(rows, gradient, batch.scale * item_rate)
    return (rows, cluster), (layer, shared, strength), loss_sum, count

  run = whole_table.make_table_steps(
      step, batch_size=client.batch_size, epochs=client.epochs,
      steps=client.steps)
  server_key = jax.random.key(config.seed)

  def cluster(server):
    """Keeps the clusters of its table where a transform's state would be."""
    key = jax.random.fold_in(
        jax.random.fold_in(server_key, _CLUSTER_STREAM), server.round_index)
    return server._replace(transform_state=cluster_items(
        server.item_table, settings.item_clusters, settings.cluster_steps, key))

  def broadcast(server):
    return {'shared': server.shared, 'cluster': server.transform_state,
            'round': server.round_index}

  def client_update(view, examples, num_examples):
    own, sent = view.personal, view.shared
    view = view._replace(shared=sent['shared'])
    start = local_steps.select(
        own.last >= 0, own.table.rows, view.item_rows)
    # The clusters of an untrained table say nothing.
    strength = (sent['round'] > 0).astype(jnp.float32)
    trained = run(
        (start, sent['cluster']), (own.layer, view.shared, strength), examples,
        num_examples, view.learning_rate_scale)
    layer, shared, _ = trained.whole
    rows, _ = trained.rows
    return (local_steps.contribution(view, trained, rows, shared),
            Own(layer, ByItem(rows), sent['round']))

  def mix_clients(server, own):
    # The server has counted the round already that clients took part in.
    there = own.last == server.round_index - 1
    server = cluster(server._replace(item_table=whole_table.mean_table(
        there, own.table.rows, server.item_table)))
    items = server.transform_state

    def draw(stream, choices):
      key = jax.random.fold_in(
          jax.random.fold_in(server_key, stream), server.round_index)
      chance = jax.random.uniform(key, choices.shape)
      return jnp.argmax(jnp.where(choices, chance, -1))

    sizes = jnp.zeros(settings.item_clusters).at[items].add(1)
    category = items == draw(_CATEGORY_STREAM, sizes > 0)
    similarity = compare_clients(
        own.table.rows, draw(_CORE_STREAM, there), category)
    group = split_at_elbow(similarity, there)
    tables = jax.tree.map(
        lambda x, mean: jnp.where(widen(group, x), mean[None], x),
        own.table.rows, whole_table.mean_over(group, own.table.rows))
    return server, own._replace(table=ByItem(tables))

  fedavg = make_fedavg(
      config, recommender, num_items, None, expected_cohort)
  algorithm = fedavg._replace(
      init_server=lambda key: cluster(fedavg.init_server(key)),
      init_personal=lambda key: Own(
          *whole_table.begin_alike(config, recommender), jnp.int32(-1)),
      client_update=client_update, broadcast=broadcast,
      mix_clients=mix_clients)
  return whole_table.keep_tables(
      algorithm, config, recommender, num_items, lambda own: own.last >= 0)
