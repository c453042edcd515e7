"""Reports of one item under local privacy, and the counts they add up to.

A client encodes one item so that no two items can be told apart by more than
e^epsilon; the server adds the reports up and corrects the sums without bias.

With k items, e = e^epsilon and n reports:

| oracle | bits a report | variance of a count of zero |
|---|---|---|
| k-ary randomized response | log2(k + 1) | n (e + k - 1) / (e - 1)^2 |
| optimised unary encoding | k | 4 n e / (e - 1)^2 |
| Hadamard response | log2(k) + 1 | n (e + 1)^2 / (e - 1)^2 |
| count-mean sketch | width + log2(hashes) | n sqrt(e) / (sqrt(e) - 1)^2 + |

(+: and what hash collisions add.)

The tallies are integers and add, so they travel through a secure sum. No flag
uses the count-mean sketch or `pad_and_sample`: they are for use outside the
engine, where items are counted and no model is trained.

A user with k items who reports each of them spends k * epsilon, because all
reports are about one user: `epsilon_of_reports`. `pad_and_sample` makes one
report of one item instead, for epsilon.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjaxrec.transforms.local_privacy import (
  above_zero,
  round_prob_down,
  round_prob_up,
)


class FrequencyOracle(NamedTuple):
  """One way to report an item, and to count the reports.

  An item is an int32 in [0, num_items), or num_items for none at all. Formal
  guarantee of every oracle: epsilon local differential privacy of one report:
  the probabilities of any message, given any two items (or none), differ by a
  factor of at most e^epsilon. Unit of privacy: one report of one client.

  Attributes:
    report: (item int32 [], key) -> message: what travels.
    tally: (messages, leaves [n, ...]) -> int32 [...]: sums that add over
      clients; exact up to 2^31 reports.
    estimate: (tally, num_reports) -> float32 [num_items]: unbiased estimates
      of how many of the reports were about each item; may be negative.
    stddev: (num_reports, count=0) -> the stddev of the estimate of an item that
      count of the reports were about.
    bits: Length of a message.
    keep_prob: Chance that what belongs to the item is reported as it is.
    flip_prob: Chance of the same report from something else.
  """
  report: Callable[[jax.Array, jax.Array], Any]
  tally: Callable[[Any], jax.Array]
  estimate: Callable[[jax.Array, float], jax.Array]
  stddev: Callable[..., float]
  bits: float
  keep_prob: float
  flip_prob: float


def make_randomized_response(num_items: int, epsilon: float) -> FrequencyOracle:
  """k-ary randomized response: the item, or now and then another one.

  keep_prob: of the true value; flip_prob: of each other one, none included.

  Args:
    num_items: Items in the catalogue.
    epsilon: Of one report, above 0.

  References:
    Kairouz, Bonawitz and Ramage, 2016, `Discrete Distribution Estimation under
    Local Privacy <https://arxiv.org/abs/1602.07387>`_.
  """
  _check(num_items, epsilon)
  # One more value than items: none. A draw keeps the value, or takes one of the
  # others uniformly.
  keep = round_prob_down(_share(epsilon, num_items))
  flip = (1 - keep) / num_items
  if not keep > flip:
    raise ValueError(
        f'epsilon={epsilon} with num_items={num_items}: float32 draws cannot '
        'tell the true item from another one; use Hadamard response.')

  def report(item, key):
    keep_key, other_key = jax.random.split(key)
    # The others are what is left when the values behind item move up by one.
    other = jax.random.randint(other_key, (), 0, num_items)
    other = other + (other >= item)
    return jnp.where(jax.random.uniform(keep_key) < keep, item, other)

  def tally(messages):
    return jnp.zeros(num_items + 1, jnp.int32).at[messages].add(1)

  def estimate(sums, num_reports):
    return (sums[:num_items] - num_reports * flip) / (keep - flip)

  return FrequencyOracle(
      report, tally, estimate, _binomial_stddev(keep, flip),
      math.log2(num_items + 1), keep, flip)


def make_unary_encoding(num_items: int, epsilon: float) -> FrequencyOracle:
  """Optimised unary encoding: a one-hot vector with its bits flipped.

  keep_prob: that the item's bit is 1, a half; flip_prob: that another bit is 1.
  The message is bool [num_items]; a message of none is flips alone.

  Args:
    num_items: Items in the catalogue.
    epsilon: Of one report, above 0.

  References:
    Wang et al., 2017, Locally Differentially Private Protocols for Frequency
    Estimation (USENIX Security), section 4.3.
  """
  _check(num_items, epsilon)
  keep, flip = 0.5, round_prob_up(_share(-epsilon, 1))

  def report(item, key):
    prob = jnp.where(jnp.arange(num_items) == item, keep, flip)
    return jax.random.uniform(key, (num_items,)) < prob

  def tally(messages):
    return messages.sum(0, dtype=jnp.int32)

  def estimate(sums, num_reports):
    return (sums - num_reports * flip) / (keep - flip)

  return FrequencyOracle(
      report, tally, estimate, _binomial_stddev(keep, flip), num_items, keep,
      flip)


def make_hadamard_response(num_items: int, epsilon: float) -> FrequencyOracle:
  """Hadamard response: a place where the item's row of signs is probably +.

  The rows of a Hadamard matrix agree with each other in half of their places.
  The message is a place, uniform among those of one sign of the item's row:
  keep_prob is the chance of the sign +, flip_prob that of -. Few bits, and the
  variance of unary encoding for small epsilon; for large epsilon that of one
  random bit a report remains.

  Args:
    num_items: Items in the catalogue.
    epsilon: Of one report, above 0.

  References:
    Acharya, Sun and Zhang, 2019, `Hadamard Response: Estimating Distributions
    Privately, Efficiently, and with Little Communication
    <https://arxiv.org/abs/1802.04705>`_; here with all other places of the row
    at the lower probability, which is its high-privacy form.
  """
  _check(num_items, epsilon)
  # Rows 1 to num_items + 1, none included: row 0 has no minus.
  log_size = (num_items + 1).bit_length()
  keep = round_prob_down(_share(epsilon, 1))
  mean_sign = 2 * keep - 1

  def report(item, key):
    sign_key, place_key = jax.random.split(key)
    row = jnp.uint32(item + 1)
    place = jax.random.bits(place_key) & jnp.uint32(2**log_size - 1)
    minus = jax.lax.population_count(row & place) & 1
    wants_minus = jax.random.uniform(sign_key) >= keep
    # Switching the lowest bit of the row switches the sign, one place to one.
    lowest = row & (~row + 1)
    return jnp.where((minus == 1) == wants_minus, place, place ^ lowest).astype(
        jnp.int32)

  def tally(messages):
    return jnp.zeros(2**log_size, jnp.int32).at[messages].add(1)

  def estimate(sums, num_reports):
    del num_reports
    # The signed sums of all rows, by the fast transform; whole numbers.
    for bit in range(log_size):
      pairs = sums.reshape(-1, 2, 2**bit)
      sums = jnp.stack(
          [pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1)
    return sums.reshape(-1)[1:num_items + 1] / mean_sign

  def stddev(num_reports, count=0):
    return math.sqrt(num_reports / mean_sign**2 - count)

  return FrequencyOracle(
      report, tally, estimate, stddev, log_size, keep, 1 - keep)


def make_count_mean_sketch(
    num_items: int, epsilon: float, num_hashes: int, width: int, key: jax.Array
) -> FrequencyOracle:
  """Count-mean sketch: a flipped one-hot vector of a hash of the item.

  The message is (hash int32 [], bool [width]): one of num_hashes public hash
  functions, and its bucket one-hot with each bit flipped with flip_prob; its
  size does not grow with the catalogue. The two vectors of two items differ in
  two bits, so a bit gets half of epsilon.

  Error: stddev is that of the flips. On top, items of one bucket are taken for
  each other: with counts c_j this has, over the choice of the hashes, a stddev
  of about sqrt(sum_j c_j^2 / (num_hashes * width)).

  Args:
    num_items: Items in the catalogue.
    epsilon: Of one report, above 0.
    num_hashes: Hash functions; memory of the public table: 4 * num_hashes *
      num_items bytes.
    width: Buckets, at least 2.
    key: Of the hash functions: public, the same for all clients.

  References:
    Apple Differential Privacy Team, 2017, Learning with Privacy at Scale.
  """
  _check(num_items, epsilon)
  if num_hashes < 1 or width < 2:
    raise ValueError(
        f'num_hashes={num_hashes} and width={width}: at least one hash '
        'function and two buckets are needed.')
  flip = round_prob_up(_share(-epsilon / 2, 1))
  buckets = jax.random.randint(key, (num_hashes, num_items + 1), 0, width)

  def report(item, key):
    hash_key, flip_key = jax.random.split(key)
    which = jax.random.randint(hash_key, (), 0, num_hashes)
    one_hot = jnp.arange(width) == buckets[which, item]
    return which, one_hot ^ (jax.random.uniform(flip_key, (width,)) < flip)

  def tally(messages):
    which, bits = messages
    return jnp.zeros((num_hashes, width), jnp.int32).at[which].add(
        bits.astype(jnp.int32))

  def estimate(sums, num_reports):
    # Reports whose bucket is the item's, first with the flips taken out, then
    # without the share that falls into any bucket.
    found = jnp.take_along_axis(sums, buckets[:, :num_items], axis=1).sum(0)
    found = (found - num_reports * flip) / (1 - 2 * flip)
    return (found - num_reports / width) * width / (width - 1)

  def stddev(num_reports, count=0):
    del count
    return (math.sqrt(num_reports * flip * (1 - flip)) / (1 - 2 * flip)
            * width / (width - 1))

  return FrequencyOracle(
      report, tally, estimate, stddev, width + math.log2(num_hashes), 1 - flip,
      flip)


def pad_and_sample(
    items: jax.Array,
    count: jax.Array,
    list_length: int,
    num_items: int,
    key: jax.Array,
) -> jax.Array:
  """Draws the one item that a user reports, as if all had list_length items.

  A user with fewer draws none for the places that are left; one with more draws
  uniformly among all of them. Multiplied by list_length the estimates are
  unbiased for the users with at most list_length items; an item of a user with
  k more is counted list_length / k.

  Formal guarantee: none by itself; what is drawn goes into one report. Drawing
  from the bare list instead would need no padding, but its estimates would
  depend on how many items each user has, which is private.

  Args:
    items: int32 [slots]: the user's items first.
    count: int32 []: how many there are.
    list_length: Items that a user is taken to have; public.
    num_items: Items in the catalogue; what stands for none.
    key: Typed key of this user and release.

  Returns:
    int32 []: an item, or num_items.
  """
  place = jnp.floor(
      jax.random.uniform(key) * jnp.maximum(count, list_length)).astype(
          jnp.int32)
  return jnp.where(
      place < count, items.at[place].get(mode='clip'), num_items).astype(
          jnp.int32)


def epsilon_of_reports(epsilon: float, num_reports: int) -> float:
  """What num_reports reports about one user cost: basic composition."""
  return above_zero('epsilon', epsilon) * num_reports


def _check(num_items, epsilon):
  if num_items < 1:
    raise ValueError(
        f'num_items={num_items} must be at least 1: what can be reported.')
  if not 0 < epsilon <= 15:
    raise ValueError(
        f'epsilon={epsilon} must be above 0 and at most 15: float32 draws have '
        'no chances below 2^-23; above 15 a report hides nothing anyway.')


def _share(log_odds, others):
  """e^log_odds / (e^log_odds + others)."""
  return 1 / (1 + others * math.exp(-log_odds))


def _binomial_stddev(keep, flip):
  """Of (sum - n flip) / (keep - flip), where count of n reports are kept."""
  def stddev(num_reports, count=0):
    return math.sqrt(
        count * keep * (1 - keep) + (num_reports - count) * flip * (1 - flip)
    ) / (keep - flip)

  return stddev
