"""Who is invited to a round: one function a sampler, and one that chooses.

A sampler is a pure function round_index -> client ids: it can be asked for any
round at any time, so a resumed run draws the cohorts of the uninterrupted one.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

from fedjaxrec.config import CohortConfig

Sampler = Callable[[int], np.ndarray]

# Keeps the cohorts apart from other uses of the run's seed.
_STREAM = 0xC0404


def _generator(seed: int, index: int) -> np.random.Generator:
  return np.random.default_rng([_STREAM, seed, index])


def uniform(eligible: np.ndarray, size: int, seed: int) -> Sampler:
  """`size` clients without replacement, every round afresh."""
  def sample(round_index):
    chosen = _generator(seed, round_index).choice(
        len(eligible), size, replace=False, shuffle=False)
    return eligible[chosen]
  return sample


def poisson(
    eligible: np.ndarray, size: int, seed: int, cap: int
) -> Sampler:
  """Each client by itself with probability size / eligible; at most `cap`.

  A larger draw is cut to a uniform subset of `cap` clients, which the privacy
  accounting must be told (truncated Poisson sampling).
  """
  probability = size / len(eligible)

  def sample(round_index):
    generator = _generator(seed, round_index)
    # Given their number, the members are uniform: no draw per client.
    drawn = generator.binomial(len(eligible), probability)
    chosen = generator.choice(
        len(eligible), min(drawn, cap), replace=False, shuffle=False)
    return eligible[chosen]
  return sample


def shuffled(eligible: np.ndarray, size: int, seed: int) -> Sampler:
  """Every client once an epoch, in an order shuffled afresh each epoch.

  An epoch that `size` does not divide ends with a smaller cohort.
  """
  rounds_per_epoch = -(-len(eligible) // size)

  @functools.lru_cache(maxsize=1)
  def order(epoch):
    return _generator(seed, epoch).permutation(len(eligible))

  def sample(round_index):
    epoch, place = divmod(round_index, rounds_per_epoch)
    return eligible[order(epoch)[place * size:(place + 1) * size]]
  return sample


def cyclic(eligible: np.ndarray, size: int, seed: int) -> Sampler:
  """Every client once an epoch, in one order that all epochs keep.

  So a client waits ceil(eligible / size) rounds from one participation to its
  next, exactly. The last cohort of an epoch may be smaller.
  """
  rounds_per_epoch = -(-len(eligible) // size)
  order = eligible[_generator(seed, 0).permutation(len(eligible))]

  def sample(round_index):
    place = round_index % rounds_per_epoch
    return order[place * size:(place + 1) * size]
  return sample


def cyclic_poisson(
    eligible: np.ndarray, size: int, seed: int, groups: int, cap: int
) -> Sampler:
  """Poisson sampling of group t mod groups in round t; at most `cap` clients.

  The groups are drawn once, at random, and differ by at most one client; the
  probability is size / group, so that `size` clients are expected.
  """
  order = eligible[_generator(seed, 0).permutation(len(eligible))]
  parts = [order[g::groups] for g in range(groups)]
  samplers = [poisson(part, size, seed, cap) for part in parts]

  def sample(round_index):
    # The stream of round t + 1: the one of 0 has drawn the groups.
    return samplers[round_index % groups](round_index + 1)
  return sample


def weighted(
    eligible: np.ndarray, size: int, seed: int, weights: np.ndarray
) -> Sampler:
  """`size` clients without replacement, in proportion to `weights`.

  Gumbel keys: the same law as drawing one after the other in proportion to the
  weights of those left (Efraimidis and Spirakis, 2006).
  """
  with np.errstate(divide='ignore'):
    log_weights = np.log(weights[eligible])

  def sample(round_index):
    noise = _generator(seed, round_index).gumbel(size=len(eligible))
    keys = log_weights + noise
    chosen = np.argpartition(-keys, size - 1)[:size]
    return eligible[chosen]
  return sample


def poisson_cap(eligible: int, size: int) -> int:
  """A cap that a Poisson cohort passes with probability below 1e-9.

  By Bernstein's inequality, with P(draw >= size + t) <= 1e-9.
  """
  bound = math.log(1e9)
  variance = size * (1 - size / eligible)
  excess = bound / 3 + math.sqrt(bound**2 / 9 + 2 * bound * variance)
  return min(eligible, size + math.ceil(excess))


def read_weights(path: str, num_clients: int) -> np.ndarray:
  """Reads the weighted sampler's weights.

  Raises:
    ValueError: If the file is missing, is no .npy file, has the wrong number of
      weights, or holds one that is negative or not finite.
  """
  try:
    # An .npz archive is no array, and an array need not hold numbers.
    weights = np.asarray(np.load(path, allow_pickle=False), np.float64)
  except (OSError, ValueError, TypeError, EOFError) as error:
    raise ValueError(
        f'cohort.weights_path={path!r} is no readable .npy file of numbers '
        f'({error}); write one with numpy.save, one weight a client.'
    ) from error
  if weights.shape != (num_clients,):
    raise ValueError(
        f'cohort.weights_path={path!r} has the shape {weights.shape}; it needs '
        f'one weight for each of the {num_clients} clients.')
  if not np.isfinite(weights).all() or (weights < 0).any():
    raise ValueError(
        f'cohort.weights_path={path!r} holds a weight that is negative or not '
        'finite; weights are shares of the cohort, 0 for never.')
  return weights


def build_sampler(
    config: CohortConfig, num_examples: np.ndarray, seed: int
) -> tuple[Sampler, int]:
  """Returns the sampler that `config` asks for, and its largest cohort.

  Args:
    config: The cohort's config.
    num_examples: int [num_clients]: training interactions; a client with none
      is never invited.
    seed: The run's seed.

  Raises:
    ValueError: If the cohort is larger than the clients that can take part.
  """
  eligible = np.flatnonzero(num_examples).astype(np.int32)
  weights = None
  if config.sampler == 'weighted':
    weights = read_weights(config.weights_path, len(num_examples))
    eligible = eligible[weights[eligible] > 0]
  if not len(eligible):
    raise ValueError(
        f'cohort.sampler={config.sampler}: none of num_clients='
        f'{len(num_examples)} has a training interaction (and a weight above '
        '0); check the filters of --data and the split.')
  size = config.size or len(eligible)
  if size > len(eligible):
    raise ValueError(
        f'cohort.size={size} is larger than the {len(eligible)} clients that '
        'can take part; use a smaller cohort, or 0 for all of them.')
  if config.sampler in ('poisson', 'cyclic_poisson'):
    if config.cap and config.cap < size:
      raise ValueError(
          f'cohort.cap={config.cap} is below the {size} clients that '
          f'cohort.size={config.size} asks for: more than half of the rounds '
          'would be truncated; raise it, or use 0.')
    pool = -(-len(eligible) // (config.groups or 1))
    cap = min(config.cap or poisson_cap(pool, size), pool)
    if not config.groups:
      return poisson(eligible, size, seed, cap), cap
    if size > len(eligible) // config.groups:
      raise ValueError(
          f'cohort.size={config.size} with cohort.groups={config.groups}: a '
          f'group has only {len(eligible) // config.groups} of the '
          f'{len(eligible)} clients that can take part; use smaller cohorts, '
          'or fewer groups.')
    return cyclic_poisson(eligible, size, seed, config.groups, cap), cap
  if weights is not None:
    return weighted(eligible, size, seed, weights), size
  sampler = {'uniform': uniform, 'shuffled': shuffled,
             'cyclic': cyclic}[config.sampler]
  return sampler(eligible, size, seed), size
