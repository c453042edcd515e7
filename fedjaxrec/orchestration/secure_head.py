"""Chooses the rows that travel by one noisy secure sum, trusting no server.

Before the first round every client with an interaction sends one message: its
0/1 vector of items, scaled to norm 1 and rounded into a ring, with its share of
the noise in it. They are summed at the level of the run, so that nobody sees
the popularity of the items without noise; it is one more release in the run's
ledger, and the rows that travel follow from it.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjaxrec.aggregation import ranges
from fedjaxrec.aggregation.packing import packed_bytes
from fedjaxrec.aggregation.row_union import RowLayout
from fedjaxrec.config import CohortConfig, Config, PrivacyConfig
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.orchestration.head_rows import top_rows
from fedjaxrec.orchestration.secure_account import add_up
from fedjaxrec.orchestration.secure_sums import make_sum_on_host
from fedjaxrec.privacy import distributed
from fedjaxrec.privacy.integer_noise import DistributedNoise
from fedjaxrec.protection import (
  build_protection,
  make_run_ring,
  noise_key,
  noise_share,
)

# Keeps its rounding and its noise apart from other uses of the run's seed.
_HEAD_STREAM = 0x4EADD
# Integers of a unit vector, at least, and for each root of an item: rounding
# then adds a 64th to the squared norm, at most.
_LEAST_SCALE, _SCALE_A_ROOT = 64.0, 4.0
# Numbers that are encoded in one call.
_CHUNK = 1 << 22
# A share of noise is this many standard deviations from zero once in 1e22.
_SHARE_REACH = 10


class HeadChoice(NamedTuple):
  """The rows that a noisy secure sum has chosen, and what it took.

  Attributes:
    open_rows: bool [num_items]: the rows that travel.
    popularity: float32 [num_items]: what the sum said, noise included.
    account: For summary.json: clients, survivors, bits, bytes of all of them
      together, seconds.
  """
  open_rows: np.ndarray
  popularity: np.ndarray
  account: dict[str, Any]


def calibrate_head(
    config: Config, num_clients: int, num_items: int, delta: float
) -> DistributedNoise:
  """Settles the noise of the sum, for its share of the budget.

  Args:
    config: With secure.noise and privacy.head_source=private.
    num_clients: Clients with an interaction: all of them are asked.
    num_items: Items in the catalogue.
    delta: Of the run.

  Returns:
    The noise of this one sum: L2 sensitivity 1 before rounding, unit the
    client. The sum is opened with half of the clients or more.

  Raises:
    ValueError: If its share of epsilon is out of reach, or no ring holds it.
  """
  privacy = config.privacy
  noise = distributed.calibrate_distributed(
      DistributedNoise(
          mechanism=config.secure.noise, noise_multiplier=1.0,
          dimension=num_items, scale=_least_scale(num_items),
          min_survivors=_fewest(config, num_clients)),
      privacy.head_epsilon_share * privacy.epsilon, sampling_prob=1.0,
      rounds=1, delta=delta)
  ring = make_run_ring(
      head_config(config, noise.noise_multiplier, num_clients, num_items),
      num_clients, num_clients, num_items)
  # It is as wide as whole bits make it: more integers are less rounding.
  return dataclasses.replace(noise, scale=ring.scale)


def head_config(
    config: Config, noise_multiplier: float, num_clients: int, num_items: int
) -> Config:
  """The run's config, made that of the one sum that chooses the rows."""
  fewest, scale = _fewest(config, num_clients), _least_scale(num_items)
  noise = noise_multiplier * (num_clients / fewest) ** 0.5 * scale
  return dataclasses.replace(
      config, cohort=CohortConfig(size=0),
      secure=dataclasses.replace(
          config.secure, rows='dense', l2_clip_norm=0.0, rotation=0,
          min_survivors=fewest,
          bits=max(8, ranges.required_bits(
              num_clients, 1.0, scale + 1, noise))),
      privacy=PrivacyConfig(
          noise_multiplier=noise_multiplier, l2_clip_norm=1.0))


def _fewest(config, num_clients):
  return max(config.secure.min_survivors, math.ceil(num_clients / 2), 2)


def _least_scale(num_items):
  return max(_LEAST_SCALE, _SCALE_A_ROOT * num_items**0.5)


def choose_head(
    config: Config, noise: DistributedNoise, train: Interactions
) -> HeadChoice:
  """Sums the clients' vectors with their noise, and takes the largest entries.

  Formal guarantee: the popularity, and so the choice, is (epsilon, delta)-DP of
  one client's data, epsilon being privacy.head_epsilon_share of the run's,
  against the server and everybody who sees the sum, for ideal noise and the
  fewest survivors; the run's ledger composes it with the rounds.

  Cost: items x clients numbers are encoded, and on the host kept at once.

  Args:
    config: The run's.
    noise: See `calibrate_head`.
    train: Training interactions.

  Raises:
    ValueError: If there are no more items than rows wanted, or so few clients
      answer that the sum is not opened.
  """
  found: list[tuple[np.ndarray, dict[str, Any]]] = []

  def count():
    found.append(sum_popularity(config, noise, train))
    return found[0][0]

  rows = top_rows(
      'privacy.head_items', config.privacy.head_items, train.num_items, count)
  assert rows is not None  # Some are wanted.
  return HeadChoice(rows, *found[0])


def sum_popularity(
    config: Config, noise: DistributedNoise, train: Interactions
) -> tuple[np.ndarray, dict[str, Any]]:
  """The noisy sum, float32 [num_items], and its account."""
  num_items = train.num_items
  clients = np.flatnonzero(train.counts)
  inner = head_config(
      config, noise.noise_multiplier, len(clients), num_items)
  ring = make_run_ring(inner, len(clients), len(clients), num_items)
  codec = build_protection(
      inner, len(clients), len(clients), dimension=num_items).uplink.codec
  assert codec is not None  # Secure sums have one.
  key = noise_key(config, _HEAD_STREAM)

  @jax.jit
  def encode(vectors, ids):
    def one(vector, client):
      return codec.encode(
          ((vector,), ()), jax.random.fold_in(key, client), key, 1)[0][0][0]
    return jax.vmap(one)(vectors, ids)

  secure = inner.secure
  account: dict[str, Any] = {
      'clients': len(clients), 'survivors': len(clients), 'bits': ring.bits,
      'scale': ring.scale, 'min_survivors': secure.min_survivors,
      'noise_multiplier': inner.privacy.noise_multiplier,
      'uplink_bytes': len(clients) * packed_bytes(num_items, ring.bits),
      'downlink_bytes': 0, 'client_s': 0.0, 'server_s': 0.0,
      'key_holder_s': 0.0}
  if secure.on_host:
    share = noise_share(inner, ring, len(clients))
    sums = make_sum_on_host(
        inner, ring.bits, ring.levels + _SHARE_REACH * share, len(clients),
        RowLayout(num_items, (1,), 0))
    messages: dict[int, np.ndarray] = {}
    for ids, vectors in _vectors(train, clients):
      encoded = np.asarray(encode(vectors, ids))
      messages |= {int(c): x for c, x in zip(ids, encoded) if c >= 0}
    total, reported, _ = sums(messages, 0)
    spent = add_up([sums.take(0)])
    if not reported:
      raise ValueError(
          f'secure.dropout={secure.dropout} with privacy.head_source=private: '
          f'of {len(clients):,} clients fewer than {secure.min_survivors:,} '
          f'are left in the sum that chooses the rows ({spent.aborts}), which '
          'is not opened then; lower secure.dropout, or use '
          'privacy.head_source=public.')
    account |= {
        'survivors': reported,
        'uplink_bytes': sum(spent.uplink_bytes.values()),
        'downlink_bytes': sum(spent.downlink_bytes.values()),
        'client_s': spent.client_s, 'server_s': spent.server_s,
        'key_holder_s': spent.key_holder_s}
  else:
    total, reported = np.zeros(num_items, np.uint32), len(clients)
    for ids, vectors in _vectors(train, clients):
      total += np.asarray(encode(vectors, ids))[ids >= 0].sum(
          0, dtype=np.uint32)
  decoded = jax.jit(lambda x, n: codec.decode(
      ((x,), ()), jax.random.fold_in(key, len(train.counts)), n)[0][0])(
          jnp.asarray(total), jnp.float32(reported))
  return np.asarray(decoded), account


def _vectors(
    train: Interactions, clients: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Chunks of (ids [size], unit vectors [size, num_items]); -1 is nobody."""
  size = max(1, min(len(clients), _CHUNK // train.num_items))
  for start in range(0, len(clients), size):
    ids = np.full(size, -1, np.int32)
    chunk = clients[start:start + size]
    ids[:len(chunk)] = chunk
    vectors = np.zeros((size, train.num_items), np.float32)
    for row, client in enumerate(chunk):
      items = np.unique(
          train.items[train.offsets[client]:train.offsets[client + 1]])
      vectors[row, items] = len(items) ** -0.5
    yield ids, vectors
