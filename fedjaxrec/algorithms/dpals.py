"""Private alternating least squares: the sums of `ials`, bounded and noisy.

The first round counts the items, with noise; with dpals.item_fraction below 1
it chooses the items that are trained, and the second round counts those again.
Every other round is a sweep. A client solves for its vector on all its items,
clips it to the norm Gamma (privacy.l2_clip_norm), and contributes to at most k
items, or to all of them with weights c_i of sum c_i^2 = k. The server sees

  A_i = sum c p p' + N(0, s_A^2),  b_i = sum c p + N(0, s_b^2),
  G = sum p p' + N(0, s_G^2),

symmetric, A_i and G projected to positive semi-definite matrices, and solves
for the items as `ials` does, with noisy counts in the penalties.

One client moves (G, b, A) by at most (Gamma^2, sqrt(k) Gamma, sqrt(k) Gamma^2)
in norm. With the shares f of 1 / z^2, s_G = z Gamma^2 / sqrt(f_G) and so on, so
that every round is one Gaussian mechanism of the noise multiplier z =
privacy.noise_multiplier; one that counts has the norm sqrt(k) to hide.

Differences from the authors' released code: items to contribute to are drawn
afresh in every round; the items' penalties are those of `ials`; every matrix is
noised as the triangle that travels.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.algorithms import least_squares
from fedjaxrec.algorithms.ials import (
    NOT_ALONE,
    empty_statistics,
    init_state,
    refuse_transform,
    solve_block,
)
from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import Config
from fedjaxrec.local_training import Contribution, View
from fedjaxrec.models.recommender import Recommender
from fedjaxrec.protection import noise_key
from fedjaxrec.server import ServerState, Sum, make_whole_server
from fedjaxrec.transforms.noise import add_gaussian_noise

# Keeps the noise's keys apart from the other uses of the run's seed.
_NOISE_STREAM = 0xD9A15


class Sensitivities(NamedTuple):
  """How far one client, there or not, can move each sum, in L2 norm.

  Attributes:
    gramian: Of G, packed.
    vectors: Of the b_i of all items together.
    item_gramians: Of the A_i of all items together, packed.
    counts: Of the items' counts.
  """
  gramian: float
  vectors: float
  item_gramians: float
  counts: float


def sensitivities(config: Config) -> Sensitivities:
  """The bounds that the clients keep, by their clipping and weights."""
  bound = config.privacy.l2_clip_norm
  root = math.sqrt(config.dpals.items_per_client)
  return Sensitivities(bound**2, root * bound, root * bound**2, root)


def noise_stddevs(config: Config) -> Sensitivities:
  """The noise on an entry of each sum, for the noise multiplier of a round."""
  z, dpals = config.privacy.noise_multiplier, config.dpals
  most = sensitivities(config)
  rest = 1 - dpals.gramian_share - dpals.vector_share
  return Sensitivities(
      z * most.gramian / math.sqrt(dpals.gramian_share),
      z * most.vectors / math.sqrt(dpals.vector_share),
      z * most.item_gramians / math.sqrt(rest),
      z * most.counts)


def describe_noise(config: Config) -> dict[str, Any]:
  """What the summary's section `privacy` says of these sums and their noise."""
  return {
      'mechanism': 'gaussian on statistics (dpals)',
      'noise_stddev_items': None, 'noise_stddev_shared': None,
      'statistics': {
          'sensitivity': sensitivities(config)._asdict(),
          'noise_stddev': noise_stddevs(config)._asdict(),
          'items_per_client': config.dpals.items_per_client,
          'rounds_that_count': config.dpals.num_count_rounds}}


def make_noise(config: Config) -> optax.GradientTransformation:
  """The noise on (item statistics, whole statistics), as they are summed."""
  stddev = noise_stddevs(config)
  key = noise_key(config, _NOISE_STREAM)
  return add_gaussian_noise(
      ({'gramian': stddev.item_gramians, 'vector': stddev.vectors,
        'count': stddev.counts}, {'gramian': stddev.gramian}), key)


def project(matrices: jax.Array) -> jax.Array:
  """The nearest positive semi-definite matrices of symmetric ones.

  Args:
    matrices: [..., dim, dim]. Near in Frobenius norm; an eigendecomposition
      each.
  """
  values, basis = jnp.linalg.eigh(matrices)
  scaled = basis * jnp.maximum(values, 0)[..., None, :]
  return jnp.matmul(scaled, jnp.swapaxes(basis, -1, -2),
                    precision=jax.lax.Precision.HIGHEST)


def choose_weights(
    counts: jax.Array, eligible: jax.Array, order: jax.Array, budget: int,
    sampling: str, exponent: float) -> jax.Array:
  """One client's weights of its items: sum of squares at most budget.

  Args:
    counts: float32 [capacity]: noisy counts of its items.
    eligible: bool [capacity].
    order: int32 [capacity]: a random order.
    budget: k.
    sampling: uniform, tail or adaptive.
    exponent: Of the counts, for adaptive.

  Returns:
    float32 [capacity]; 0 for what is not eligible.
  """
  if sampling == 'adaptive':
    raw = jnp.where(eligible, jnp.maximum(counts, 1) ** exponent, 0)
    square = jnp.square(raw).sum()
    return raw * jnp.sqrt(budget / jnp.where(square > 0, square, 1))
  first = jnp.zeros_like(counts) if sampling == 'uniform' else counts
  place = jnp.lexsort((order, jnp.where(eligible, first, jnp.inf)))
  rank = jnp.zeros(len(counts), jnp.int32).at[place].set(
      jnp.arange(len(counts), dtype=jnp.int32))
  return (eligible & (rank < budget)).astype(jnp.float32)


def make_dpals(
    config: Config,
    recommender: Recommender,
    num_items: int,
    server_transform: optax.GradientTransformation | None = None,
    expected_cohort: float | None = None,
) -> Algorithm:
  """Builds DPALS.

  Formal guarantee: with every client in every round, a round's sums are a
  Gaussian mechanism of the noise multiplier privacy.noise_multiplier for one
  client's data replaced by none, for ideal noise; the items' vectors are a
  function of them. A client's own vector depends on its data without noise and
  stays with it: joint differential privacy. The number of clients counts as
  public. Without noise there is no guarantee.

  Cost: as `ials`, and an eigendecomposition an item and round.

  Args:
    config: The whole config; sections ials, dpals, privacy and the seed.
    recommender: As in `ials`.
    num_items: Items in the catalogue.
    server_transform: Not supported: the noise is its own.
    expected_cohort: Stands for the number of clients; None: those that
      reported, which with cohort.size=0 are all that have an interaction.

  References:
    Chien et al., 2021, `Private alternating least squares
    <https://arxiv.org/abs/2107.09802>`_; the weights after Krichene et al.,
    2023, `Multi-task differential privacy under distribution skew
    <https://arxiv.org/abs/2302.07975>`_.
  """
  refuse_transform(server_transform, 'dpals')
  settings, dim = config.dpals, config.model.dim
  a0, bound = config.ials.unobserved_weight, config.privacy.l2_clip_norm
  init_items, init_personal = least_squares.make_vectors(recommender)
  noise = make_noise(config)
  num_head = math.ceil(settings.item_fraction * num_items)
  multiplier = config.privacy.noise_multiplier
  noiseless = isinstance(multiplier, (int, float)) and multiplier == 0
  repair = (lambda matrices: matrices) if noiseless else project

  def init(key):
    table = init_items(key)
    return init_state(
        table, {'counts': jnp.zeros(num_items), 'head': jnp.ones(num_items)}
    )._replace(transform_state=noise.init(None))

  def client_update(view: View, examples, num_examples):
    users, loss = solve_block(config, num_items, view, examples, num_examples)
    norm = jnp.linalg.norm(users, axis=1)
    # A client whose solution is not finite sends nothing.
    sent = jnp.where(jnp.isfinite(norm)[:, None], users * jnp.minimum(
        1, bound / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))[:, None], 0)
    look_up = jax.vmap(lambda x, rows: x.at[rows].get(mode='clip'))
    eligible = examples.used & (
        look_up(view.shared['head'], examples.rows) > 0)
    counts = look_up(view.shared['counts'], examples.rows)

    def weigh(sampling):
      return jax.vmap(lambda n, e, o: choose_weights(
          n, e, o, settings.items_per_client, sampling,
          settings.adaptive_exponent))(counts, eligible, examples.order)

    counting = view.shared['round'] < settings.num_count_rounds  # [B]
    steps = (~counting & (num_examples > 0)).astype(jnp.float32)
    weights = weigh(settings.sampling) * steps[:, None]
    packed = least_squares.pack_outer(sent) * steps[:, None]
    counted = jnp.where(counting[:, None], weigh('uniform'), 0)
    rows = {'gramian': weights[..., None] * packed[:, None, :],
            'vector': weights[..., None] * sent[:, None, :], 'count': counted}
    return Contribution(
        rows, {'gramian': packed}, loss, num_examples.astype(jnp.float32),
        num_examples), {'user': users}

  def update(state: ServerState, total: Sum) -> ServerState:
    (items, whole), noise_state = noise.update(
        (total.item_table, total.shared), state.transform_state)
    clients = total.weight if expected_cohort is None else expected_cohort
    shared = state.shared

    def count():
      counts = jnp.maximum(items['count'], 1)
      head = shared['head']
      if settings.item_fraction < 1:
        top = jax.lax.top_k(counts, num_head)[1]
        head = jnp.where(
            state.round_index == 0, jnp.zeros_like(head).at[top].set(1), head)
      return state.item_table['item'], {'counts': counts, 'head': head}

    def solve():
      table = least_squares.solve_items(
          items['gramian'], items['vector'],
          a0 * repair(least_squares.unpack(whole['gramian'], dim)[None])[0],
          least_squares.penalty(config, shared['counts'], clients), repair)
      # What is not trained has no noise either.
      return table * shared['head'][:, None], shared

    table, shared = jax.lax.cond(
        state.round_index < settings.num_count_rounds, count, solve)
    return state._replace(
        round_index=state.round_index + 1, item_table={'item': table},
        shared=shared, transform_state=noise_state)

  def broadcast(server: ServerState):
    return {'gramian': least_squares.gramian(server.item_table['item']),
            'round': server.round_index, **server.shared}

  return Algorithm(
      init_server=init,
      init_personal=init_personal,
      draw=least_squares.draw_slots,
      client_update=client_update,
      server=make_whole_server(
          lambda table, shared: init_state(table, shared), update),
      learning_rate_scale=lambda round_index: jnp.float32(1),
      weight_by_examples=False,
      score=least_squares.score,
      broadcast=broadcast,
      empty_contribution=lambda server: empty_statistics(num_items, dim),
      refit=lambda view, examples, num_examples: {'user': solve_block(
          config, num_items, view, examples, num_examples)[0]},
      touched_rows=lambda counts: counts,
      not_alone=NOT_ALONE)
