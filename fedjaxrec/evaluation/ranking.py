"""Ranks every user's relevant items, in batches of users. Device side.

Ties are pessimistic: an item that nobody asked for and that scores as high as a
relevant one stands above it. So a constant model finds nothing.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjaxrec.config import PROTOCOLS
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.evaluation import candidates as candidates_lib
from fedjaxrec.evaluation.metrics import Ranks, check_ks
from fedjaxrec.population import gather_personal

PyTree = Any

# Up to this many relevant items a user, one counting pass for each of them is
# cheaper than sorting the candidates (measured on a CPU; on 3,706 items a sort
# costs as much as some 350 passes).
_MAX_COUNTING_PASSES = 256


def make_ranker(
    score: Callable[[PyTree, PyTree, PyTree], jax.Array],
    targets: Interactions,
    excluded: Sequence[Interactions],
    num_items: int,
    *,
    protocol: str,
    batch_size: int,
    seed: int,
    negatives: np.ndarray | None = None,
    top_k: int = 0,
    candidates: np.ndarray | None = None,
) -> Callable[[PyTree, PyTree, PyTree], Ranks]:
  """Builds rank_fn(personal, item_table, shared) -> Ranks.

  Each relevant item (each of the user's targets) is ranked against the user's
  non-relevant candidates:
    full: All items but the user's excluded and relevant ones.
    sampled-99: 99 items a user, drawn once with `seed`, uniform and distinct,
      from what is neither excluded nor relevant; or the given `negatives`, of
      which entries equal to a relevant item do not count. Held-out items that
      are in neither argument may be drawn: a ranker for validation does not
      know the test items.

  A NaN never helps: as the score of a relevant item it is minus infinity, as
  that of another candidate plus infinity. A model that scores NaN everywhere
  therefore ranks every relevant item last.

  Cost: one compiled function, called for every batch of `batch_size` users (the
  last one padded); it compiles once for all batches and all calls. Its memory
  is O(batch_size * num_items) for full ranking and for lists, O(batch_size *
  (99 + relevant items) * model dimension) for sampled without lists, unless a
  row has num_items numbers: as for lists, all items are scored then, and the
  asked ones read off. The excluded pairs stay on the device as flat arrays and
  become a mask batch by batch. On 2 CPU cores the full ranking of 6,040 users x
  3,706 items by 64 dimensions takes 0.1 s, with lists of 20 items 0.2 s.

  Args:
    score: (personal, item_rows, shared) -> float [num_rows]; one client.
    targets: The relevant items. Users without one are left out.
    excluded: Interactions that are no candidates: train, and for the test set
      also validation. Disjoint from the targets.
    num_items: Size of the catalogue.
    protocol: full or sampled-99.
    batch_size: Users ranked at once; no effect on the result beyond float
      summation order within `score`.
    seed: Seed of the drawn negatives.
    negatives: int [num_users, n] published negatives, used by sampled-99 only,
      and taken as they are, whatever the `candidates`.
    top_k: Length of the recommendation lists in `Ranks.top`; 0: none. Under
      either protocol they are made from the whole catalogue without the
      excluded items; equal scores are listed by item id, and NaN last.
    candidates: bool [num_items]: the items that are ranked and listed; None:
      all. Cold items are ranked among themselves.

  Returns:
    rank_fn. Leaves of personal have the leading axis [num_users] (in a
    ByItem [num_users, num_items]), of item_table [num_items]. It raises
    ValueError, before compiling, if they do not.

  Raises:
    ValueError: If there are no targets, if a target is also excluded (a leak)
      or no candidate, if a user has too few items to draw negatives from, if
      `top_k` exceeds the catalogue, or for an unknown protocol.
  """
  if protocol not in PROTOCOLS:
    raise ValueError(
        f'evaluation.protocol={protocol!r} is not known; choose one of '
        f'{", ".join(PROTOCOLS)}.')
  if batch_size < 1:
    raise ValueError(
        f'evaluation.batch_size={batch_size} must be at least 1.')
  check_ks([top_k] if top_k else [], num_items)
  candidates_lib.check_ranker_inputs(targets, excluded, num_items)
  if candidates is not None:
    candidates_lib.check_candidates(candidates, targets)
  counts = np.diff(targets.offsets)
  users = np.flatnonzero(counts).astype(np.int32)
  counts = counts[users]
  max_relevant = int(counts.max())
  batch_size = min(batch_size, users.size)
  num_batches = -(-users.size // batch_size)
  padding = num_batches * batch_size - users.size

  blocked_pairs = candidates_lib.make_pairs(excluded, users, batch_size)
  # A padding slot repeats the last user and has no relevant item.
  plan = {
      'user': np.pad(users, (0, padding), mode='edge'),
      'offset': np.pad(np.cumsum(counts) - counts, (0, padding)).astype(
          np.int32),
      'count': np.pad(counts, (0, padding)).astype(np.int32),
      'relevant': targets.items,
      'blocked_slot': blocked_pairs.slot,
      'blocked_item': blocked_pairs.item,
      'blocked_start': blocked_pairs.starts,
  }
  if protocol != 'full':
    if negatives is None:
      negatives = candidates_lib.sample_negatives(
          [targets, *excluded], users, num_items, int(protocol.split('-')[1]),
          seed, candidates)
    else:
      negatives = candidates_lib.published_negatives(negatives, targets, users)
    plan['negative'] = np.pad(negatives, ((0, padding), (0, 0)), mode='edge')
  if candidates is not None:
    plan['unlisted'] = ~candidates
  plan = jax.device_put(plan)

  rank_batch = _make_rank_batch(
      score, protocol, num_items, batch_size, max_relevant,
      blocked_pairs.width, top_k)

  def rank_fn(personal: PyTree, item_table: PyTree, shared: PyTree) -> Ranks:
    _check_leading_axis('personal', personal, 'num_users', targets.num_users)
    _check_leading_axis('item_table', item_table, 'num_items', num_items)
    # Once, and not with every batch, where the caller holds NumPy arrays.
    parameters = jax.device_put((personal, item_table, shared))
    results = []
    waiting = None
    for batch in range(num_batches):
      running = rank_batch(
          plan, jax.device_put(np.int32(batch)), *parameters)
      # One batch computes while one is fetched: more would hold more memory.
      if waiting is not None:
        results.append(jax.device_get(waiting))
      waiting = running
    results.append(jax.device_get(waiting))
    rank, num_candidates, item = (
        np.concatenate([result[i] for result in results])[:users.size]
        for i in range(3))
    valid = np.arange(max_relevant) < counts[:, None]
    top = None
    if top_k:
      top = np.concatenate([result[3] for result in results])[:users.size]
    return Ranks(np.repeat(users, counts), rank[valid],
                 np.repeat(num_candidates, counts), top, item[valid])

  return rank_fn


@functools.lru_cache(maxsize=64)
def _make_rank_batch(
    score, protocol, num_items, batch_size, max_relevant, blocked_width, top_k
):
  """Builds the compiled ranking of one batch.

  Everything of one ranker is in its plan, so rankers of the same shape and
  score share what is compiled: those of many runs side by side, for example.
  """
  def score_all(personal, item_table, shared):
    # The slot keeps vmap going where a model has no personal parameters.
    scores = jax.vmap(lambda _, mine: score(mine, item_table, shared))(
        jnp.arange(batch_size), personal)
    return _checked(scores, (batch_size, num_items))

  def score_few(personal, item_table, shared, asked):
    item_rows = jax.tree.map(
        lambda leaf: leaf.at[asked].get(mode='clip'), item_table)
    places = jnp.arange(batch_size)
    few = jax.vmap(lambda _, mine, rows: score(mine, rows, shared))(
        places, gather_personal(personal, places, asked), item_rows)
    return _checked(few, asked.shape)

  def blocked_mask(plan, batch):
    start = plan['blocked_start'][batch]
    row, item = (
        jax.lax.dynamic_slice_in_dim(plan[name], start, blocked_width)
        for name in ('blocked_slot', 'blocked_item'))
    # Rows of later batches, and the padding, lie past the end and are dropped.
    blocked = jnp.zeros((batch_size, num_items), bool).at[
        row - batch * batch_size, item].set(True, mode='drop')
    if 'unlisted' in plan:
      blocked |= plan['unlisted'][None, :]
    return blocked

  @jax.jit
  def rank_batch(plan, batch, personal, item_table, shared):
    user, offset, count = (
        jax.lax.dynamic_slice_in_dim(
            plan[name], batch * batch_size, batch_size)
        for name in ('user', 'offset', 'count'))
    personal = jax.tree.map(lambda leaf: leaf[user], personal)
    column = jnp.arange(max_relevant, dtype=jnp.int32)[None, :]
    valid = column < count[:, None]
    relevant = jnp.where(  # int32 [B, R]; num_items is no item.
        valid, plan['relevant'].at[offset[:, None] + column].get(mode='clip'),
        num_items)
    top: Any = None
    scores: Any = None
    # A gather of rows that long would be larger, and slower, than all scores.
    if protocol == 'full' or top_k or _row_size(item_table) >= num_items:
      scores = score_all(personal, item_table, shared)
    if protocol == 'full' or top_k:
      blocked = blocked_mask(plan, batch)
    if top_k:
      top = _recommend(scores, blocked, top_k)
    if protocol == 'full':
      wanted = jnp.take_along_axis(scores, relevant, axis=1, mode='clip')
      rows = jnp.arange(batch_size)[:, None]
      is_candidate = ~blocked.at[rows, relevant].set(True, mode='drop')
      others = scores
    else:
      negative = jax.lax.dynamic_slice_in_dim(
          plan['negative'], batch * batch_size, batch_size)
      asked = jnp.concatenate([relevant, negative], axis=1)
      if scores is None:
        few = score_few(personal, item_table, shared, asked)
      else:
        few = jnp.take_along_axis(scores, asked, axis=1, mode='clip')
      wanted, others = few[:, :max_relevant], few[:, max_relevant:]
      is_candidate = negative < num_items
    rank, order, num_candidates = _rank(wanted, valid, others, is_candidate)
    item = jnp.take_along_axis(relevant, order, axis=1)
    return rank, num_candidates, item, top

  return rank_batch


def _rank(wanted, valid, others, is_candidate):
  """Ranks the relevant items of a batch; the ranks come out ascending.

  Args:
    wanted: float32 [B, R] scores of the relevant items.
    valid: bool [B, R]; whether there is such an item.
    others: float32 [B, M] scores of the others.
    is_candidate: bool [B, M]; whether the others count.

  Returns:
    int32 [B, R] ranks, int32 [B, R] whose place they are, and int32 [B] numbers
    of candidates.
  """
  wanted = jnp.where(jnp.isnan(wanted), -jnp.inf, wanted)
  others = jnp.where(jnp.isnan(others), jnp.inf, others)
  num_candidates = jnp.sum(is_candidate, axis=1, dtype=jnp.int32)
  max_relevant = wanted.shape[1]

  if max_relevant <= _MAX_COUNTING_PASSES:
    others = jnp.where(is_candidate, others, jnp.nan)  # NaN >= x is never true.
    def count_above(j, above):
      count = jnp.sum(
          others >= wanted[:, j][:, None], axis=1, dtype=jnp.int32)
      return above.at[:, j].set(count)
    # As many passes as this batch needs, not as the longest of all users.
    above = jax.lax.fori_loop(
        0, jnp.max(jnp.sum(valid, axis=1)), count_above,
        jnp.zeros(wanted.shape, jnp.int32))
  else:
    # In descending order; what does not count stands last.
    falling = jnp.sort(jnp.where(is_candidate, -others, jnp.inf), axis=1)
    above = jax.vmap(
        lambda row, score: jnp.searchsorted(row, score, side='right'))(
            falling, -wanted)
    # What does not count was counted only for a score of minus infinity.
    above = jnp.minimum(above.astype(jnp.int32), num_candidates[:, None])
  order = jnp.argsort(jnp.where(valid, -wanted, jnp.inf), axis=1, stable=True)
  place = jnp.arange(max_relevant, dtype=jnp.int32)[None, :]
  rank = jnp.take_along_axis(above, order, axis=1) + place
  return rank, order, num_candidates


def _recommend(scores, blocked, top_k):
  """Returns the best items that are not blocked: int32 [B, top_k], -1: none."""
  lowest = jnp.finfo(scores.dtype).min
  scores = jnp.where(jnp.isnan(scores), lowest, jnp.maximum(scores, lowest))
  best, items = jax.lax.top_k(jnp.where(blocked, -jnp.inf, scores), top_k)
  return jnp.where(best == -jnp.inf, -1, items)


def _row_size(item_table):
  """Numbers in the rows of one item."""
  return sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(item_table))


def _checked(scores, shape):
  if scores.shape != shape:
    raise ValueError(
        f'score(...).shape={scores.shape[1:]} for item_rows of {shape[1]} '
        f'rows: a model returns one score a row, {shape[1:]}.')
  return scores.astype(jnp.float32)


def _check_leading_axis(name, tree, size_name, size):
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if not np.ndim(leaf) or np.shape(leaf)[0] != size:
      raise ValueError(
          f'{name}{jax.tree_util.keystr(path)}.shape={np.shape(leaf)} must '
          f'have the leading axis [{size_name}={size}]; pass the leaves in the '
          'order of the ids, without padding.')
