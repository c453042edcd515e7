"""GPFedRec: the server links alike clients; each gets its neighbours' table.

The server sees every client's table, not their sum alone: no secure sum and no
privacy mechanism of this project stands between.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.algorithms import local_steps, whole_table
from fedjaxrec.algorithms.fedavg import make_fedavg
from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import Config
from fedjaxrec.models.recommender import Recommender
from fedjaxrec.population import ByItem

PyTree = Any


class Own(NamedTuple):
  """What is kept of a client, by it and by the server.

  Attributes:
    layer: What the model marks as personal.
    table: Its item table, whole, as it left it and the server has it.
    graph: The mean of its neighbours' tables, from the server.
    trained: float32 []: 1 once both are there.
  """
  layer: PyTree
  table: ByItem
  graph: ByItem
  trained: jax.Array


def link_clients(
    tables: jax.Array, there: jax.Array, kind: str, threshold: float
) -> jax.Array:
  """Builds the graph of the clients.

  Args:
    tables: float32 [N, numbers]: their tables, flat.
    there: bool [N]: who has one.
    kind: similarity (cosine) or as_released (1 - cosine).
    threshold: A link is kept where it is above threshold * the mean of all.

  Returns:
    float32 [N, N] with rows that sum up to 1. Who has no link left is linked to
    itself. Cost: O(N^2 * numbers).
  """
  norm = jnp.sqrt(jnp.sum(jnp.square(tables), 1, keepdims=True))
  unit = tables / jnp.where(norm > 0, norm, 1)
  link = unit @ unit.T
  if kind == 'as_released':
    # A client is at distance 0 from itself, and not a rounding beside it.
    link = jnp.where(jnp.eye(len(link), dtype=bool), 0, 1 - link)
  pair = there[:, None] & there[None, :]
  mean = jnp.where(pair, link, 0).sum() / jnp.maximum(pair.sum(), 1)
  kept = jnp.where(pair & (link > threshold * mean), link, 0)
  total = kept.sum(1, keepdims=True)
  return jnp.where(
      total > 0, kept / jnp.where(total > 0, total, 1), jnp.eye(len(link)))


def make_gpfedrec(
    config: Config,
    recommender: Recommender,
    num_items: int,
    server_transform: optax.GradientTransformation | None = None,
    expected_cohort: float | None = None,
) -> Algorithm:
  """Builds GPFedRec, for model.name=pfedrec or any other model.

  A client starts from the global table and minimises, per batch, the model's
  loss + pull * mean (V_u - R_u)^2, the mean over its whole table: rows outside
  the batch move towards R_u as well. The server links clients by their tables'
  cosine, R_u is the mean of u's neighbours' tables, and the global table is the
  mean of all R_u. The client recommends with V_u. The section server steps
  shared parameters only, of which model.name=pfedrec has none.

  Personal: what the model marks so. Travels: the client's whole table up, the
  global table and R_u down. With similarity=as_released clients are linked by
  1 - cosine, so to the least alike, as the released code does. Other than it,
  p_u stays with the client. Published: all clients, pull 1, threshold 1, one
  layer; rates, batch and rounds as PFedRec's.

  Memory: two tables a client, 2 * num_clients * num_items * dim * 4 bytes, and
  as much again while they are mixed; refused above
  personalization.table_limit_gib. Needs one device.

  Args:
    config: The whole config.
    recommender: The model.
    num_items: Items in the catalogue.
    server_transform: None: the server needs each client's table.
    expected_cohort: None, likewise.

  Raises:
    ValueError: For a client optimizer other than sgd, or a cohort that is not
      everybody.

  References:
    Zhang et al., 2024, `GPFedRec <https://arxiv.org/abs/2305.07866>`_.
  """
  local_steps.require_sgd(config)
  if config.cohort.size or config.cohort.sampler != 'uniform':
    raise ValueError(
        f'cohort.size={config.cohort.size} and cohort.sampler='
        f'{config.cohort.sampler} with algorithm.name=gpfedrec: its graph has '
        'every client in every round; use cohort.size=0 with the uniform '
        'sampler, or algorithm.name=pfedrec.')
  client, settings = config.client, config.gpfedrec
  item_rate = whole_table.choose_item_rate(client, num_items, settings.lr_eta)
  loss = local_steps.make_batch_loss(recommender.score, config.objective)

  def step(rows, whole, batch):
    layer, shared = whole
    gradients, (loss_sum, count) = jax.grad(
        loss, argnums=(0, 1, 2), has_aux=True)(layer, rows, shared, batch)
    rate = batch.scale * client.learning_rate
    layer, rows, shared = map(
        local_steps.descend, (layer, rows, shared), gradients,
        (rate, batch.scale * item_rate, rate))
    return rows, (layer, shared), loss_sum, count

  table_shapes, _ = jax.eval_shape(
      recommender.init_server, jax.eval_shape(lambda: jax.random.key(0)))
  table_size = sum(x.size for x in jax.tree.leaves(table_shapes))
  run = whole_table.make_table_steps(
      step, batch_size=client.batch_size, epochs=client.epochs,
      steps=client.steps, drift=whole_table.pull_towards(
          2 * item_rate * settings.pull / table_size))

  def client_update(view, examples, num_examples):
    own = view.personal
    # Nothing is linked before the first round: there the pull is to the start.
    graph = local_steps.select(
        own.trained > 0, own.graph.rows, view.item_rows)
    trained = run(view.item_rows, (own.layer, view.shared), examples,
                  num_examples, view.learning_rate_scale, graph)
    layer, shared = trained.whole
    return (local_steps.contribution(view, trained, trained.rows, shared),
            Own(layer, ByItem(trained.rows), own.graph,
                jnp.ones_like(own.trained)))

  def mix_clients(server, own):
    there = own.trained > 0
    graph = link_clients(
        whole_table.flatten_each(own.table.rows), there, settings.similarity,
        settings.threshold)

    def over_links(x):
      mixed = x.reshape(len(x), -1)
      for _ in range(settings.layers):
        mixed = graph @ mixed
      return mixed.reshape(x.shape)

    mixed = jax.tree.map(over_links, own.table.rows)
    table = whole_table.mean_table(there, mixed, server.item_table)
    return (server._replace(item_table=table),
            own._replace(graph=ByItem(mixed)))

  def init_personal(key):
    del key
    layer, nothing = whole_table.begin_alike(config, recommender)
    return Own(layer, nothing, nothing, jnp.float32(0))

  algorithm = make_fedavg(
      config, recommender, num_items, server_transform, expected_cohort
  )._replace(
      init_personal=init_personal, client_update=client_update,
      mix_clients=mix_clients)
  return whole_table.keep_tables(
      algorithm, config, recommender, num_items, lambda own: own.trained > 0)
