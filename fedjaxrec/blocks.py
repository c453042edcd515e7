"""What a block of clients does in a round: read, train, send.

`Algorithm` is what makes one federated method differ from another; a block is
the clients that train side by side. `rounds` walks over the blocks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjaxrec.local_training import Contribution, View
from fedjaxrec.population import (
    ByItem,
    Client,
    gather_clients,
    gather_personal,
    scatter_personal,
)
from fedjaxrec.server import Server, ServerState
from fedjaxrec.touched_rows import read_rows
from fedjaxrec.transforms.clip import l2_norm
from fedjaxrec.uplink import Uplink, send

PyTree = Any


class Algorithm(NamedTuple):
  """All that a federated algorithm is.

  Attributes:
    init_server: key -> ServerState.
    init_personal: key -> what one client keeps; leaves of a `ByItem` have the
      leading axis [num_items].
    draw: (Client, key) -> examples; examples.rows (int32, any shape [...], with
      num_items for unused slots) are the item rows that the client touches.
    client_update: (View, examples, num_examples) -> (Contribution, personal),
      for a block of clients; leaves of View.item_rows are [B, *rows.shape,
      ...], and so are those of a `ByItem` in personal.
    server: The server's step.
    learning_rate_scale: round_index -> the clients' factor.
    weight_by_examples: Whether a client's weight is its number of interactions;
      otherwise 1.
    score: The recommender's score, for evaluation; the rows of a `ByItem` in
      personal are those of item_rows.
    aggregated_score: The score of the one model for all, where it is not
      `score` with the mean of the personal parameters. None: it is.
    broadcast: ServerState -> what every client downloads whole.
    empty_contribution: ServerState -> zeros of what the cohort sums up to:
      (item leaves [num_items, ...], whole leaves).
    mix_clients: (ServerState, personal of all clients) -> the same two, after
      the server's step: for servers that see more than the sum, each client's
      upload, which a secure sum would not let them. None for the others.
    refit: (View, examples, num_examples) -> personal: a block of clients fitted
      to the shared model as it is, for evaluation and for clients that did not
      train. None where a client's parameters come from its rounds.
    touched_rows: int array of clients' interactions -> item rows that each
      touches in a round; None: its items and their drawn negatives.
    is_encoded: Whether what a client keeps comes of `refit` alone, and rounds
      leave it as it is.
    traffic: ServerState -> (downloaded, uploaded), each (item leaves, whole
      leaves), of which shapes alone are read: what a message holds, where that
      is not what the cohort sums up to. None: it is.
    not_alone: Why the control without federation says nothing here; empty where
      contributions are deltas, which a client can add up by itself.
    numbered: Whether `score` wants rows as `population.Numbered`; the whole
      catalogue it takes as it is.
  """
  init_server: Callable[[jax.Array], ServerState]
  init_personal: Callable[[jax.Array], PyTree]
  draw: Callable[[Client, jax.Array], Any]
  client_update: Callable[..., tuple[Contribution, PyTree]]
  server: Server
  learning_rate_scale: Callable[[jax.Array], jax.Array]
  weight_by_examples: bool
  score: Callable[[PyTree, PyTree, PyTree], jax.Array]
  aggregated_score: Callable[[PyTree, PyTree, PyTree], jax.Array] | None = None
  broadcast: Callable[[ServerState], PyTree] = lambda server: server.shared
  empty_contribution: Callable[[ServerState], tuple[PyTree, PyTree]] = (
      lambda server: jax.tree.map(
          lambda x: jnp.zeros(x.shape, jnp.float32),
          (server.item_table, server.shared)))
  mix_clients: (
      Callable[[ServerState, PyTree], tuple[ServerState, PyTree]] | None
  ) = None
  refit: Callable[..., PyTree] | None = None
  touched_rows: Callable[[Any], Any] | None = None
  is_encoded: bool = False
  traffic: Callable[[ServerState], tuple[PyTree, PyTree]] | None = None
  not_alone: str = ''
  numbered: bool = False


class Trained(NamedTuple):
  """What a block of clients leaves behind.

  Attributes:
    rows: int32 [B, ...]: the item rows that are sent; num_items for none.
    start: The touched rows as the server holds them, float32 [B, ..., ...]:
      those of `rows`, but where whole tables are sent.
    delta: Deltas of (these rows, the shared parameters), leaves [B, ...].
    weight: float32 [B]; 0 for who does not count.
    reports: The block's sum.
    personal: That of all clients.
    metrics: (loss sum, loss terms, reported, examples, rejected, bytes sent);
      the last as `split_bytes` has them, () where they are not counted.
  """
  rows: jax.Array
  start: PyTree
  delta: PyTree
  weight: jax.Array
  reports: PyTree
  personal: PyTree
  metrics: PyTree


class WithMemory(NamedTuple):
  """What a client keeps where its uplink has a memory.

  Attributes:
    personal: As the algorithm has it.
    memory: (ByItem of item leaves, shared leaves): what was not sent yet.
  """
  personal: PyTree
  memory: tuple[ByItem, PyTree]


def make_block_work(
    algorithm: Algorithm,
    num_clients: int,
    num_items: int,
    num_devices: int,
    axis_name: str | None,
    uplink: Uplink,
) -> Callable:
  """Builds begin(server, data, key) -> (read_block, train): a round's work.

  Args:
    algorithm: What clients and server do.
    num_clients: Clients in the population.
    num_items: Items in the catalogue.
    num_devices: Devices that share the population.
    axis_name: The mapped axis of the devices; None on a single one.
    uplink: What happens to a delta on its way to the sum.

  Returns:
    begin. With the server's state at the round's start, this device's data and
    the run's key: read_block(capacity, members) -> (clients, keys, examples),
    and train(capacity, members, personal) -> Trained.
  """
  per_device = -(-num_clients // num_devices)

  def begin(start, data, key):
    round_key = jax.random.fold_in(key, start.round_index)
    device = 0 if axis_name is None else jax.lax.axis_index(axis_name)

    def locate(members):
      """The local indices of a block; past the end for a padding client."""
      if data.home is None:
        return members
      return data.home.at[members].get(mode='fill', fill_value=per_device)

    def read_block(capacity, members):
      """A block's clients, their keys, and what they train on."""
      local = locate(members)
      client_id = jnp.where(
          local < per_device, local * num_devices + device, num_clients)
      clients = gather_clients(data, members, client_id, capacity, num_items)
      keys = jax.vmap(lambda c: jax.random.fold_in(round_key, c))(client_id)
      return clients, keys, jax.vmap(algorithm.draw)(clients, keys)

    codec_key = jax.random.fold_in(round_key, num_clients)
    learning_rate_scale = algorithm.learning_rate_scale(start.round_index)
    whole = algorithm.broadcast(start)

    def send_block(rows, delta, trained, keys, personal, members):
      """Sends a block's deltas: (rows that travel, Sent, bytes sent)."""
      used = (rows < num_items) & widen(trained, rows)
      if uplink.open_rows is not None:
        used &= uplink.open_rows.at[rows].get(mode='clip')
      if uplink.is_dense:
        delta = (spread(delta[0], rows, num_items), delta[1])
        rows = jnp.broadcast_to(
            jnp.arange(num_items, dtype=jnp.int32), (len(members), num_items))
        used = jnp.broadcast_to(
            trained[:, None] if uplink.open_rows is None
            else trained[:, None] & uplink.open_rows[None, :], rows.shape)
      memory: PyTree = ()
      if uplink.has_memory:
        held = gather_personal(personal.memory, members, rows)
        memory = (held[0].rows, held[1])
      sent = jax.vmap(
          lambda d, u, m, k: send(
              uplink, d, u, m, start.transform_state, k, codec_key)
      )(delta, used, memory, keys)
      measure = uplink.message_length
      num_bytes: PyTree = ()
      if measure is not None:
        num_bytes = split_bytes(jnp.where(trained, jax.vmap(
            lambda d, u: measure(d, u, num_items))(sent.delta, used), 0))
      return rows, sent, num_bytes

    def train(capacity, members, personal):
      clients, keys, examples = read_block(capacity, members)
      members = locate(members)
      rows = examples.rows
      held = jax.tree.map(
          lambda x: read_rows(x, rows).astype(jnp.float32), start.item_table)
      downloaded = held
      if uplink.downlink is not None:
        downloaded = uplink.downlink(held, rows.ndim)
      view = View(
          downloaded,
          jax.tree.map(
              lambda x: jnp.broadcast_to(x, (len(members), *x.shape)), whole),
          gather_personal(
              personal.personal if uplink.has_memory else personal,
              members, rows),
          learning_rate_scale)
      contribution, own = algorithm.client_update(
          view, examples, clients.num_examples)
      delta = (contribution.item_rows, contribution.shared)
      weight = clients.num_examples.astype(jnp.float32)
      if not algorithm.weight_by_examples:
        weight = (weight > 0).astype(jnp.float32)
      loss = (contribution.loss_sum, contribution.loss_count)
      rejected = jnp.int32(0)
      num_bytes: PyTree = ()
      reports: PyTree = ()
      rows_sent, keepers = rows, members
      trained = weight > 0
      if uplink.is_plain:
        # Nobody looks at its deltas on the way: a row past the table and a
        # client past the population go nowhere, and no pass over them is due.
        finite = finite_clients(delta)
        rows_sent = jnp.where(widen(finite, rows), rows, num_items)
        keepers = jnp.where(finite, members, per_device)
        delta = (delta[0], jax.tree.map(
            lambda x: jnp.where(widen(finite, x), x, jnp.zeros((), x.dtype)),
            delta[1]))
        weight = jnp.where(finite, weight, 0)
        rejected = (trained & ~finite).sum(dtype=jnp.int32)
        loss = jax.tree.map(lambda x: jnp.where(finite, x, 0), loss)
      else:
        rows_sent, sent, num_bytes = send_block(
            rows, delta, trained, keys, personal, members)
        counts = trained & sent.accepted
        delta, weight = sent.delta, jnp.where(counts, weight, 0)
        rejected = (trained & ~sent.accepted).sum(dtype=jnp.int32)
        loss = jax.tree.map(lambda x: jnp.where(sent.accepted, x, 0), loss)
        reports = jax.tree.map(
            lambda x: jnp.where(counts, x.astype(jnp.float32), 0).sum(0),
            sent.reports)
        # A client that is rejected has learnt nothing worth keeping.
        own = jax.tree.map(
            lambda new, old: jnp.where(widen(sent.accepted, new), new, old),
            own, view.personal)
        if not uplink.keeps_zeros:
          # A padding client sends nothing, whatever a transform made of it.
          delta = jax.tree.map(
              lambda x: jnp.where(
                  widen(counts, x), x, jnp.zeros((), x.dtype)), delta)
        if uplink.has_memory:
          own = WithMemory(own, (ByItem(sent.memory[0]), sent.memory[1]))
      if uplink.has_memory:
        personal = WithMemory(
            scatter_personal(personal.personal, members, rows, own.personal),
            scatter_personal(personal.memory, members, rows_sent, own.memory))
      else:
        personal = scatter_personal(personal, keepers, rows, own)
      metrics = (
          loss[0].sum(), loss[1].sum(), (weight > 0).sum(dtype=jnp.int32),
          contribution.num_examples.sum().astype(jnp.float32), rejected,
          num_bytes)
      return Trained(
          rows_sent, held, delta, weight, reports, personal, metrics)

    return read_block, train

  return begin


def spread(item_rows: PyTree, rows: jax.Array, num_items: int) -> PyTree:
  """Lays touched rows out as whole tables: leaves [B, num_items, ...]."""
  flat = rows.reshape(len(rows), -1)
  return jax.tree.map(
      lambda x: jax.vmap(lambda r, d: jnp.zeros(
          (num_items, *d.shape[1:]), d.dtype).at[r].add(d, mode='drop'))(
              flat, x.reshape(*flat.shape, *x.shape[rows.ndim:])), item_rows)


def finite_clients(delta: PyTree) -> jax.Array:
  """Which clients' deltas have an L2 norm that is finite: bool [B].

  So a NaN or an infinity anywhere is found, and a norm above 1.8e19 as well, as
  `uplink.send` has it.

  Args:
    delta: Leaves [B, ...].

  Returns:
    bool [B]. Cost: a pass that adds up squares, which on a CPU takes far less
    than a maximum of magnitudes, or a sum of x * 0.
  """
  return jnp.isfinite(jax.vmap(l2_norm)(delta))


def split_bytes(num_bytes: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Sums int32 [B] without overflow: int32 [] of 4,096 bytes, and of bytes.

  Exact for half a million clients that send 8 TiB.
  """
  return (num_bytes >> 12).sum(), (num_bytes & 4095).sum()


def widen(values: jax.Array, leaf: jax.Array) -> jax.Array:
  """Values of a leaf's leading axes, to be broadcast over all of it.

  Args:
    values: [B], or more of the axes: [B, rows].
    leaf: [B, ...], or [B, rows, ...].

  Returns:
    values, with a 1 for each axis of the leaf that it has not.
  """
  return values.reshape(*values.shape, *[1] * (leaf.ndim - values.ndim))


def parameters_and_sum(
    empty_contribution: Callable[[ServerState], tuple[PyTree, PyTree]]
) -> Callable[[ServerState], tuple[PyTree, PyTree]]:
  """Builds `Algorithm.traffic`: parameters down, what the cohort sums up.

  For servers that keep more parameters, or sum more, than FedAvg's.
  """
  return lambda server: (
      (server.item_table, server.shared), empty_contribution(server))
