"""What a client trains on in a round: slots of the item table, in batches.

A client's training items and the negatives drawn for them are distinct, so each
gets a slot of its own in the round's local table, and a batch is a contiguous
slice of it: local training needs no scatter. Shuffling and drawing use a keyed
bijection, element by element, so that a client's draw depends on its key alone
and not on the padding of its size class.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjaxrec.population import Client

# After r rounds, two neighbours are still neighbours with probability 2^-r.
_ROUNDS = 8


class Examples(NamedTuple):
  """A client's interactions of one round, in training order.

  Attributes:
    rows: int32 [capacity, 1 + num_negatives]: the interaction's item and its
      negatives; num_items where a slot is unused. Distinct where used.
    labels: float32 [capacity]: the interaction's rating.
    used: bool, the shape of rows: slots that hold an item.
  """
  rows: jax.Array
  labels: jax.Array
  used: jax.Array


def leave_out(
    examples: Examples, absent: np.ndarray, num_items: int) -> Examples:
  """Empties the slots of items that are not there.

  A negative drawn among all items becomes none, so those left are uniform over
  the items that are there, and fewer.

  Args:
    examples: Of one client.
    absent: bool [num_items]; no client has an interaction with one.
    num_items: Items in the catalogue.
  """
  gone = jnp.asarray(absent).at[examples.rows].get(
      mode='fill', fill_value=True)
  return examples._replace(
      rows=jnp.where(gone, num_items, examples.rows),
      used=examples.used & ~gone)


def mix_bits(h: jax.Array) -> jax.Array:
  """A bijection of uint32 that scatters its input over all bits (lowbias32).

  For draws in a simulation, never for what must be kept secret.
  """
  h = (h ^ (h >> 16)) * jnp.uint32(0x7feb352d)
  h = (h ^ (h >> 15)) * jnp.uint32(0x846ca68b)
  return h ^ (h >> 16)


def permute(
    key: jax.Array, x: jax.Array, size: jax.Array, stream: int = 0
) -> jax.Array:
  """Maps 0..size-1 one to one onto itself, by a pseudo-random bijection.

  A random shift, then rounds of the swap-or-not shuffle: round r pairs x with
  k_r - x (modulo size) and swaps the pair if a hash of it says so. Each image
  is uniform up to size / 2^32 (the shift); pairs of images are so up to about
  2^-8.

  Args:
    key: Typed key. One key and one stream are one permutation.
    x: int32, any shape, values in [0, size); others give values of no meaning.
    size: int32 [], at least 1.
    stream: Tells apart the permutations made from one key.

  Returns:
    int32, x's shape. Cost: about 100 integer operations an element; no sort.

  References:
    Hoang, Morris and Rogaway, 2012, An Enciphering Scheme Based on a Card
    Shuffle, CRYPTO. The mixing function is the hash lowbias32 of Wellons'
    search for 32-bit integer hashes, 2018.
  """
  # A few words a client, mixed from the key: threefry would draw them as well,
  # and take most of the round's compile time.
  data = jax.random.key_data(key).astype(jnp.uint32).reshape(-1)
  low, high = data[0], data[-1]
  num_words = 2 * (_ROUNDS + 1)
  counter = stream * num_words + jnp.arange(num_words, dtype=jnp.uint32)
  words = mix_bits(mix_bits(low + counter * jnp.uint32(0x9e3779b9)) ^ high)
  size = size.astype(jnp.uint32)
  pivots, salts = words[:_ROUNDS + 1] % size, words[_ROUNDS + 1:]

  def swap_or_not(r, x):
    pivot = pivots[r]
    partner = pivot - x
    partner = jnp.where(pivot < x, partner + size, partner)
    swap = mix_bits(jnp.maximum(x, partner) ^ salts[r]) >> 31 == 1
    return jnp.where(swap, partner, x)

  x = x.astype(jnp.uint32) + pivots[_ROUNDS]
  x = jnp.where(x >= size, x - size, x)
  # A loop, not unrolled: it costs nothing to run and half as much to compile.
  return jax.lax.fori_loop(0, _ROUNDS, swap_or_not, x).astype(jnp.int32)


def nth_absent(
    present: jax.Array, num_present: jax.Array, n: jax.Array
) -> jax.Array:
  """Returns the n-th smallest id (from 0) that is not in a sorted list.

  Args:
    present: int32 [capacity]; the first num_present are sorted and distinct.
    num_present: int32 [].
    n: int32, any shape.
  """
  place = jnp.arange(present.shape[0], dtype=jnp.int32)
  # Absent ids below present[k]; unused places must stay above every n.
  absent_below = jnp.where(
      place < num_present, present - place, jnp.iinfo(jnp.int32).max)
  return n + jnp.searchsorted(
      absent_below, n.reshape(-1), side='right').reshape(n.shape).astype(
          jnp.int32)


def draw_examples(
    client: Client, key: jax.Array, num_items: int, num_negatives: int
) -> Examples:
  """Shuffles a client's interactions and draws their negatives.

  Negatives are distinct and come from all items without a *training*
  interaction of the client: held-out items are among them, as they must be
  (excluding them would leak the test set into training). Where the catalogue
  has fewer than n * num_negatives such items, every one of them is used once,
  spread evenly over the interactions.

  Args:
    client: One client, without block axis.
    key: Typed key of this client and round.
    num_items: Items in the catalogue.
    num_negatives: Negatives for each interaction, 0 for none.
  """
  capacity = client.items.shape[0]
  count = client.num_examples
  place = jnp.arange(capacity, dtype=jnp.int32)
  used = place < count
  order = permute(key, place, jnp.maximum(count, 1))
  items = jnp.where(used, client.items.at[order].get(mode='clip'), num_items)
  labels = jnp.where(used, client.labels.at[order].get(mode='clip'), 0.0)
  if not num_negatives:
    return Examples(items[:, None], labels, used[:, None])
  # Draw k * count + place, so that a shortage falls on all alike.
  turn = jnp.arange(num_negatives, dtype=jnp.int32)
  draw = place[:, None] + count * turn[None, :]
  num_absent = num_items - count
  absent = permute(key, draw, jnp.maximum(num_absent, 1), stream=1)
  negatives = jnp.where(
      used[:, None] & (draw < num_absent),
      nth_absent(client.items, count, absent), num_items)
  rows = jnp.concatenate([items[:, None], negatives], 1)
  return Examples(rows, labels, rows < num_items)
