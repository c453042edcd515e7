"""Popular items, from one locally private report of every client."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjaxrec.transforms.reports import (
    FrequencyOracle,
    make_hadamard_response,
    make_randomized_response,
    make_unary_encoding,
)

ORACLES: dict[str, Callable[[int, float], FrequencyOracle]] = {
    'randomized_response': make_randomized_response,
    'one_hot': make_unary_encoding,
    'hadamard': make_hadamard_response,
}
# Clients whose messages are made at once: a one-hot message is a row of items.
_CLIENTS_AT_ONCE = 256


def estimate_popularity(
    name: str, epsilon: float, offsets: jax.Array, items: jax.Array,
    num_items: int, key: jax.Array
) -> jax.Array:
  """Estimates how many clients would name each item, from one report of each.

  A client names one of its items, drawn uniformly, and none without any.

  Formal guarantee: epsilon local differential privacy of each client's report,
  the only thing that is read of it; unit of privacy: one report of one client.

  Wire cost: see the table in `reports`. Error: `FrequencyOracle.stddev`.

  Args:
    name: A key of ORACLES.
    epsilon: Of one report, above 0 and at most 15.
    offsets: int32 [num_clients + 1].
    items: int32 [num_interactions]: client c has offsets[c]:offsets[c + 1].
    num_items: Items in the catalogue.
    key: Typed key; every client folds its id into it.

  Returns:
    float32 [num_items]: unbiased; may be negative.
  """
  oracle = ORACLES[name](num_items, epsilon)
  num_clients = len(offsets) - 1

  def message(client):
    draw_key, report_key = jax.random.split(jax.random.fold_in(key, client))
    start = offsets[client]
    count = offsets[client + 1] - start
    chosen = (jax.random.uniform(draw_key) * count).astype(jnp.int32)
    item = jnp.where(count > 0, items.at[
        start + jnp.clip(chosen, 0, count - 1)].get(mode='clip'), num_items)
    return oracle.report(item.astype(jnp.int32), report_key)

  @jax.jit
  def tally(clients):
    return oracle.tally(jax.vmap(message)(clients))

  total = sum(
      tally(jnp.arange(first, min(first + _CLIENTS_AT_ONCE, num_clients)))
      for first in range(0, num_clients, _CLIENTS_AT_ONCE))
  return oracle.estimate(total, num_clients)
