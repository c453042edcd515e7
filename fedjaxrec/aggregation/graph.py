"""Who masks with whom: the random k-regular graph, and how large k must be.

Bell et al., 2020, `Secure single-server aggregation with (poly)logarithmic
overhead <https://eprint.iacr.org/2020/704>`_.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedjaxrec.aggregation import primitives


def draw_neighbors(
    members: Sequence[int], num_neighbors: int, seed: bytes
) -> dict[int, tuple[int, ...]]:
  """Lays the members on a circle at random; neighbours are near on it.

  The Harary graph of a random order: a member's neighbours are the
  num_neighbors / 2 before it and as many behind. Everybody who knows the seed
  computes the same graph. Symmetric, no loops.

  Args:
    members: Distinct ids.
    num_neighbors: Even, or at least len(members) - 1, which makes the graph
      complete.
    seed: Public; 32 bytes.

  Returns:
    Id -> its neighbours, in increasing order.

  Raises:
    ValueError: If num_neighbors is odd and the graph not complete.
  """
  members = sorted(members)
  if num_neighbors >= len(members) - 1:
    return {i: tuple(j for j in members if j != i) for i in members}
  circle = _circle(members, num_neighbors, seed)
  near = {member: _near(circle, place, num_neighbors)
          for place, member in enumerate(circle)}
  return {member: near[member] for member in members}


def draw_neighbors_of(
    member: int, members: Sequence[int], num_neighbors: int, seed: bytes
) -> tuple[int, ...]:
  """The same graph's neighbours of one member alone."""
  members = sorted(members)
  if num_neighbors >= len(members) - 1:
    return tuple(j for j in members if j != member)
  circle = _circle(members, num_neighbors, seed)
  return _near(circle, circle.index(member), num_neighbors)


def _circle(members, num_neighbors, seed):
  if num_neighbors % 2:
    raise ValueError(
        f'num_neighbors={num_neighbors} is odd and below the {len(members)} '
        'members less one: a circle has as many neighbours on each side; '
        'choose an even number.')
  # Sorting by 64 random bits is a uniform order, ties (2^-64 a pair) apart.
  key = primitives.derive(seed, b'fedjaxrec graph', primitives.MASK_KEY_BYTES)
  draws = primitives.Keystream(key).read_into(
      primitives.StreamBuffer(len(members), np.dtype('<u8')))
  order = np.argsort(draws, kind='stable')
  return [members[i] for i in order.tolist()]


def _near(circle, place, num_neighbors):
  half, n = num_neighbors // 2, len(circle)
  return tuple(sorted(
      circle[(place + step) % n]
      for step in range(-half, half + 1) if step))


class GraphChoice(NamedTuple):
  """What a cohort needs.

  Attributes:
    num_neighbors: k.
    threshold: t: shares of k that rebuild a secret.
    privacy_bits: -log2 of the bound on the chance that the graph is no cover.
    correctness_bits: -log2 of the bound on the chance that dropouts alone stop
      the round.
  """
  num_neighbors: int
  threshold: int
  privacy_bits: float
  correctness_bits: float


def failure_bits(
    num_clients: int, num_neighbors: int, threshold: int,
    corrupt_fraction: float, dropout_fraction: float, *,
    active_server: bool = True,
) -> tuple[float, float]:
  """How unlikely a bad graph is, for one k and one t.

  With C the corrupt clients and D the dropouts, both chosen before the graph,
  |C| = floor(corrupt_fraction n), |D| = floor(dropout_fraction n), the graph is
  good for privacy if

    * no honest client has t corrupt neighbours: else its secrets are theirs;
      against a server that tells some neighbours that a client is there and
      others that it is not, no honest client has 2t - k of them: else both of
      its secrets can be gathered;
    * the honest clients that stay are connected: else a part's sum shows. They
      fall apart only where k / 2 clients in a row on the circle are corrupt or
      gone;

  and good for correctness if everybody keeps t neighbours that stay.

  Neighbours are a uniform subset, so each count is hypergeometric; its tail is
  summed exactly, and a union bound taken over the clients. Never better than
  the truth; a bound above 1 gives negative bits.

  Returns:
    (privacy bits, correctness bits): -log2 of the bounds; infinity where the
    event cannot happen.

  References:
    Bell et al., 2020, section 3 (their events E1 to E3). For the server that
    is active: Bonawitz et al., 2017, `Practical secure aggregation
    <https://eprint.iacr.org/2017/281>`_, section 6.2, 2t > n + |C| there.
  """
  n, k = num_clients, min(num_neighbors, num_clients - 1)
  corrupt = math.floor(corrupt_fraction * n)
  gone = math.floor(dropout_fraction * n)
  too_many = min(threshold, 2 * threshold - k) if active_server else threshold
  exposed = _log2_tail(n - 1, corrupt, k, too_many) + math.log2(n)
  apart = -math.inf
  if k < n - 1:
    away = min(n, corrupt + gone)
    apart = math.log2(n) + _log2_choose(n - k // 2, away - k // 2) - (
        _log2_choose(n, away)) if away >= k // 2 else -math.inf
  # P[fewer than t stay] = P[more than k - t are gone].
  short = _log2_tail(n - 1, gone, k, k - threshold + 1) + math.log2(n)
  return -_log2_add(exposed, apart), -short


def choose_graph(
    num_clients: int,
    corrupt_fraction: float,
    dropout_fraction: float,
    *,
    security_bits: float = 40,
    correctness_bits: float = 30,
    active_server: bool = True,
) -> GraphChoice:
  """The smallest k, and for it the t that leaves most room on both sides.

  Args:
    num_clients: n, clients that advertise keys.
    corrupt_fraction: Clients that may work with the server, as a share of n.
    dropout_fraction: Clients that may fall silent in a round.
    security_bits: The graph is no cover with probability at most 2^-this.
    correctness_bits: Dropouts alone stop a round with probability at most
      2^-this.
    active_server: Also bounds what a server gains that lies about who is there.

  Raises:
    ValueError: If even the complete graph has no such t, which is so from about
      corrupt_fraction + 2 dropout_fraction >= 1 on (active server).

  References:
    Bell et al., 2020, section 3; tails and conditions in `failure_bits`.
  """
  if num_clients < 3:
    raise ValueError(
        f'num_clients={num_clients}: a sum of fewer than 3 hides nobody.')
  for name, value in (('corrupt_fraction', corrupt_fraction),
                      ('dropout_fraction', dropout_fraction)):
    if not 0 <= value < 1:
      raise ValueError(f'{name}={value} must be a share, 0 or more, below 1.')
  complete = num_clients - 1
  for k in [*range(2, complete, 2), complete]:
    best = None
    for t in range(k // 2 + 1, k + 1):
      bits = failure_bits(
          num_clients, k, t, corrupt_fraction, dropout_fraction,
          active_server=active_server)
      room = min(bits[0] - security_bits, bits[1] - correctness_bits)
      if room >= 0 and (best is None or room > best[0]):
        best = room, GraphChoice(k, t, *bits)
    if best is not None:
      return best[1]
  raise ValueError(
      f'corrupt_fraction={corrupt_fraction}, dropout_fraction='
      f'{dropout_fraction}: no graph on num_clients={num_clients} reaches '
      f'security_bits={security_bits} and correctness_bits='
      f'{correctness_bits}; lower a fraction or the bits, or invite more '
      'clients.')


def _log2_choose(n: int, k: int) -> float:
  if not 0 <= k <= n:
    return -math.inf
  return (math.lgamma(n + 1) - math.lgamma(k + 1)
          - math.lgamma(n - k + 1)) / math.log(2)


def _log2_add(a: float, b: float) -> float:
  high, low = max(a, b), min(a, b)
  return high if low == -math.inf else (
      high + math.log1p(2**(low - high)) / math.log(2))


def _log2_tail(total: int, marked: int, drawn: int, at_least: int) -> float:
  """log2 P[X >= at_least], X hypergeometric: marked among the drawn."""
  if at_least <= 0:
    return 0.0
  tails = _log2_tails(total, marked, drawn)
  return tails[at_least] if at_least < len(tails) else -math.inf


@functools.lru_cache(maxsize=8)
def _log2_tails(total, marked, drawn):
  """log2 P[X >= x] for every x; summed from the far end, the small first."""
  whole = _log2_choose(total, drawn)
  tails = [-math.inf] * (drawn + 2)
  for x in range(drawn, -1, -1):
    tails[x] = min(0.0, _log2_add(
        tails[x + 1], _log2_choose(marked, x)
        + _log2_choose(total - marked, drawn - x) - whole))
  return tails
