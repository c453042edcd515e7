"""The secure sums of a run: built from its config, told in its summary."""

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjaxrec.aggregation import exposure, ranges, row_union
from fedjaxrec.aggregation.ring import Ring, is_rotated
from fedjaxrec.aggregation.rotation import rotated_together
from fedjaxrec.aggregation.row_union import RowLayout
from fedjaxrec.algorithms.messages import message_shapes, message_size
from fedjaxrec.blocks import make_block_work
from fedjaxrec.communication.secure import secure_bytes
from fedjaxrec.config import Config
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.data.splits import Split
from fedjaxrec.models.two_tower import SideInputs
from fedjaxrec.orchestration import secure_account
from fedjaxrec.orchestration.head_rows import top_rows
from fedjaxrec.orchestration.private_runs import PrivateRun
from fedjaxrec.orchestration.secure_head import (
  HeadChoice,
  calibrate_head,
  choose_head,
)
from fedjaxrec.orchestration.secure_sums import (
  SecureSums,
  choose_for,
  graph_bits,
  make_sum_on_host,
)
from fedjaxrec.participation.samplers import build_sampler
from fedjaxrec.privacy import distributed
from fedjaxrec.privacy.distributed_plan import (
  DistributedPlan,
  make_distributed_plan,
)
from fedjaxrec.privacy.integer_noise import DistributedNoise
from fedjaxrec.privacy.plan import default_delta
from fedjaxrec.protection import make_run_ring, noise_share, ring_clip_norm
from fedjaxrec.simulation import Simulation
from fedjaxrec.uplink import PLAIN

# A share of noise is this many standard deviations from zero once in 1e22.
_SHARE_REACH = 10
# What `exposure.LEVELS` says of the protocol holds but for a chance of 2^-40.
_PROMISED_BITS = 40
# Rounds whose union is drawn again, where nothing counted it in the run.
_UNION_ROUNDS = 5


class SecureRun(NamedTuple):
  """What a config's secure sums come to, before anything compiles.

  Attributes:
    config: The run's; with secure.noise, the noise in place of the budget.
    open_rows: bool [num_items]: the only rows that travel; None: all.
    sums: Who sums on the host; None where the compiled round does.
    private: What the clients' noise guarantees, with secure.noise.
    head: The choice of rows by a sum of its own, with
      privacy.head_source=private.
  """
  config: Config
  open_rows: np.ndarray | None
  sums: SecureSums | None
  private: PrivateRun | None
  head: HeadChoice | None = None


def prepare(
    config: Config, train: Interactions, num_items: int,
    open_rows: np.ndarray | None = None, *, side: SideInputs | None = None
) -> SecureRun | None:
  """Builds what secure sums need; None for a run without.

  Args:
    config: The run's, with what central privacy made of it.
    train: Training interactions.
    num_items: Items in the catalogue.
    open_rows: bool [num_items]: the rows that central privacy has chosen.
    side: The features that model.name=two_tower reads.

  Raises:
    ValueError: For rows that cannot be chosen, and for what could not run, or
      keep its budget.
  """
  if not config.secure.is_on:
    return None
  check_rotation(config, num_items, side)
  private = None
  if config.privacy.head_source == 'private' and open_rows is None:
    return _prepare_private_head(config, train, num_items)
  if open_rows is None:
    # Popularity that is declared to be public.
    open_rows = top_rows(
        'privacy.head_items', config.privacy.head_items, num_items,
        lambda: np.bincount(train.items, minlength=num_items))
  if config.secure.noise != 'none':
    plan = calibrate_noise(config, train.counts, num_items, open_rows)
    config = with_noise(config, plan.noise.noise_multiplier)
    private = PrivateRun(plan, config, None, open_rows)
  return SecureRun(
      config, open_rows, open_sums(config, train.counts, num_items, open_rows),
      private)


def _prepare_private_head(
    config: Config, train: Interactions, num_items: int
) -> SecureRun:
  """As `prepare`; a noisy sum of its own chooses the rows."""
  # How many rows travel is known before it is known which they are.
  wanted = np.arange(num_items) < config.privacy.head_items
  plan = calibrate_noise(config, train.counts, num_items, wanted)
  assert plan.head is not None  # The config asks for it.
  head = choose_head(config, plan.head, train)
  calibrated = with_noise(config, plan.noise.noise_multiplier)
  return SecureRun(
      calibrated, head.open_rows,
      open_sums(calibrated, train.counts, num_items, head.open_rows),
      PrivateRun(plan, calibrated, None, head.open_rows), head)


def with_noise(config: Config, noise_multiplier: float) -> Config:
  """The config with the noise in place of the budget, its rows chosen."""
  return dataclasses.replace(config, privacy=dataclasses.replace(
      config.privacy, epsilon=0.0, noise_multiplier=noise_multiplier,
      head_source='public'))


def check_rotation(
    config: Config, num_items: int, side: SideInputs | None = None) -> None:
  """Refuses a secure.rotation that no part of a message is long enough for.

  Raises:
    ValueError: With the longest that is rotated.
  """
  rotation = config.secure.rotation
  if not rotation:
    return
  table, shared = message_shapes(config, num_items, side)
  shapes = [x.shape[1:] for x in jax.tree.leaves(table)] + [
      x.shape for x in jax.tree.leaves(shared)]
  if any(is_rotated(shape, rotation) for shape in shapes):
    return
  longest = max(map(math.prod, shapes), default=0)
  raise ValueError(
      f'secure.rotation={rotation} with model.name={config.model.name}, '
      f'model.dim={config.model.dim}: the longest vector that could be rotated '
      f'(an item row, a shared array) has {longest} entries; use '
      + (f'secure.rotation={rotated_together(longest)} or less, or '
         if longest > 1 else '') + 'secure.rotation=0.')


def expected_cohort(config: Config, num_examples: np.ndarray) -> int:
  """Clients expected in a round."""
  return config.cohort.size or int((num_examples > 0).sum())


def make_layout(
    config: Config, num_items: int, side: SideInputs | None = None
) -> RowLayout:
  """Where the rows stand in a client's message."""
  table, shared = message_shapes(config, num_items, side)
  return RowLayout(
      num_items,
      tuple(x.size // num_items for x in jax.tree.leaves(table)),
      sum(x.size for x in jax.tree.leaves(shared)))


def open_ring(
    config: Config, num_examples: np.ndarray, num_items: int,
    open_rows: np.ndarray | None = None, side: SideInputs | None = None
) -> Ring:
  """The ring that the compiled rounds of a run use."""
  _, max_cohort = build_sampler(config.cohort, num_examples, config.seed)
  return make_run_ring(
      config, expected_cohort(config, num_examples), max_cohort,
      message_size(config, num_items, open_rows, side))


def open_sums(
    config: Config, num_examples: np.ndarray, num_items: int,
    open_rows: np.ndarray | None = None
) -> SecureSums | None:
  """Builds the sums that are taken on the host; None where none are.

  Args:
    config: The run's, its noise calibrated.
    num_examples: int [num_clients]: training interactions.
    num_items: Items in the catalogue.
    open_rows: bool [num_items]: the only rows that travel.

  Raises:
    ValueError: See `make_sum_on_host`.
  """
  if not config.secure.on_host:
    return None
  ring = open_ring(config, num_examples, num_items, open_rows)
  _, max_cohort = build_sampler(config.cohort, num_examples, config.seed)
  cohort = expected_cohort(config, num_examples)
  share = noise_share(config, ring, cohort)
  l2_bound = None
  if config.secure.norm_check:
    clip_norm = ring_clip_norm(config)
    # The longest that rounding can make it, and one for the proof's own floor.
    l2_bound = 1 + ranges.rounded_l2_bound(
        1.001 * clip_norm * ring.scale,
        message_size(config, num_items, open_rows), 0)
  return make_sum_on_host(
      config, ring.bits, ring.levels + _SHARE_REACH * share, cohort,
      make_layout(config, num_items), open_rows, l2_bound, max_cohort)


def calibrate_noise(
    config: Config, num_examples: np.ndarray, num_items: int,
    open_rows: np.ndarray | None = None
) -> DistributedPlan:
  """Settles the noise that the clients add, and what it hides.

  The server invites the clients and so knows who takes part: drawing a cohort
  hides nobody from it. Each client is in as many sums as the sampler invites it
  to, and its loss is that of so many, the busiest client's.

  Formal guarantee: (epsilon, delta)-differential privacy of one client's data,
  for one client more or less, against the server and everybody who sees the
  sums, none of whom hold the noise of the fewest survivors; for ideal noise.

  Args:
    config: With secure.noise, and in its section privacy an epsilon or a noise
      multiplier.
    num_examples: int [num_clients].
    num_items: Items in the catalogue.
    open_rows: bool [num_items]: the only rows that travel.

  Returns:
    The plan, whose noise multiplier keeps the budget in the run's ring.

  Raises:
    ValueError: For a budget that the ring cannot keep, or what would not be
      private.
  """
  privacy, secure = config.privacy, config.secure
  sampler, max_cohort = build_sampler(config.cohort, num_examples, config.seed)
  cohort = expected_cohort(config, num_examples)
  totals = count_participations(sampler, config.rounds, len(num_examples))
  num_clients = int((num_examples > 0).sum())
  delta = privacy.delta or default_delta(num_clients)
  noise = DistributedNoise(
      mechanism=secure.noise, noise_multiplier=privacy.noise_multiplier or 1.0,
      l2_clip_norm=privacy.l2_clip_norm or math.hypot(
          privacy.item_clip_norm, privacy.shared_clip_norm),
      scale=1e6, dimension=message_size(config, num_items, open_rows),
      min_survivors=secure.survivor_threshold(cohort))
  head = None
  if privacy.head_source == 'private':
    head = calibrate_head(config, num_clients, num_items, delta)
  if privacy.epsilon:
    noise = distributed.calibrate_distributed(
        noise, privacy.epsilon, bits=secure.bits or 16, max_cohort=max_cohort,
        sampling_prob=1.0, rounds=max(1, totals[-1]), delta=delta,
        others=[head] if head else [])
    config = with_noise(config, noise.noise_multiplier)
  ring = open_ring(config, num_examples, num_items, open_rows)
  return make_distributed_plan(
      dataclasses.replace(config, privacy=privacy),
      dataclasses.replace(noise, scale=ring.scale), num_clients, cohort, totals,
      delta, head)


def count_participations(
    sampler: Callable[[int], np.ndarray], rounds: int, num_clients: int
) -> list[int]:
  """Up to each round, the rounds of the client that is invited to most."""
  times, totals = np.zeros(num_clients, np.int64), []
  for r in range(rounds):
    times[np.asarray(sampler(r), np.int64)] += 1
    totals.append(int(times.max()))
  return totals


def draw_unions(
    simulation: Simulation, num_clients: int, num_items: int, rounds: int
) -> list[int]:
  """Rows that cohorts touch together, of a few rounds spread over the run.

  Draws those rounds' examples again, as the clients did; trains nobody.
  """
  begin = make_block_work(
      simulation.algorithm, num_clients, num_items,
      simulation.placement.num_devices, 'device', PLAIN)
  server = simulation.algorithm.init_server(jax.random.key(0))

  def touched(data, plan, round_index):
    local_index, num_blocks = plan
    read_block, _ = begin(
        server._replace(round_index=round_index), data, simulation.key)
    found = jnp.zeros(num_items, bool)
    for index, capacity in enumerate(simulation.capacities):
      found = jax.lax.fori_loop(
          0, num_blocks[index],
          lambda b, found, index=index, capacity=capacity: found.at[
              read_block(capacity, local_index[index][b])[2].rows.reshape(-1)
          ].set(True, mode='drop'), found)
    return found

  run = jax.jit(jax.vmap(
      touched, in_axes=(0, 0, None), axis_name='device'))
  sizes = []
  for r in np.unique(np.linspace(0, rounds - 1, _UNION_ROUNDS).astype(int)):
    data, plan = simulation.plan(int(r), 1)
    found = run(data, jax.tree.map(lambda x: x[:, 0], tuple(plan)), r)
    sizes.append(int(np.asarray(found).any(axis=0).sum()))
  return sizes


def add_accounts(
    run: SecureRun | None, lines: Sequence[dict[str, Any]]
) -> None:
  """Puts what its sums cost on the host into the lines of their rounds."""
  if run is not None and run.sums is not None:
    for line in lines:
      line[secure_account.FIELD] = run.sums.take(line['round'] - 1)


def describe(
    run: SecureRun, split: Split, simulation: Simulation,
    lines: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
  """The section `secure` of summary.json.

  Args:
    run: Its secure sums.
    split: Its data.
    simulation: Its compiled rounds.
    lines: Of metrics.jsonl, of the whole run.
  """
  config, open_rows, sums, _, head = run
  accounts = [line[secure_account.FIELD] for line in lines
              if secure_account.FIELD in line]
  totals = secure_account.add_up(accounts)
  secure, num_items = config.secure, split.num_items
  num_examples = split.train.counts
  ring = open_ring(
      config, num_examples, num_items, open_rows, simulation.side)
  layout = make_layout(config, num_items, simulation.side)
  cohort = expected_cohort(config, num_examples)
  unions: list[int] = []
  if secure.rows == 'union' and simulation.placement.num_processes == 1:
    unions = totals.union_rows if sums is not None else draw_unions(
        simulation, len(num_examples), num_items, config.rounds)
  travelling = num_items if open_rows is None else int(np.sum(open_rows))
  if unions:
    travelling = round(sum(
        row_union.padded_size(n, num_items) for n in unions) / len(unions))
  payload = secure_bytes(
      num_items, sum(layout.row_sizes), layout.shared_size, ring.bits,
      secure.rows, travelling)
  reported = [line['reported'] for line in lines]
  rejected = collections.Counter(
      not_finite_or_too_long=sum(line['rejected'] for line in lines))
  section = {
      'level': secure.level, 'bits': ring.bits, 'scale': ring.scale,
      'levels': ring.levels, 'entry_bound': secure.entry_bound or None,
      'rotation': secure.rotation, 'dimension': layout.dimension,
      'rows': secure.rows, 'rows_travelling': payload.rows,
      'union_rows': sum(unions) / len(unions) if unions else None,
      'noise': secure.noise, 'num_neighbors': None, 'threshold': None,
      'min_survivors': secure.survivor_threshold(cohort),
      'survivors': sum(reported) / max(1, sum(n > 0 for n in reported)),
      'aborted_rounds': sum(n == 0 for n in reported), 'aborts': {},
      'aborted': None,
      'uplink_payload_bytes_per_client': payload.up,
      'downlink_payload_bytes_per_client': payload.down,
      'bytes': 'payload alone: nothing is encrypted',
      'measured_rounds': 0, 'exact': True, 'client_s': 0.0, 'server_s': 0.0,
      'key_holder_s': 0.0, 'trusted': exposure.LEVELS[secure.level],
      'server_learns': exposure.what_the_server_learns(
          secure.level, secure.rows),
  }
  if head is not None:
    section['head_sum'] = head.account
    section['server_learns'] += (
        ' Before the first round: the popularity of all items, summed over all '
        'clients with the noise that they added to it, by which the rows that '
        'travel are chosen.')
  up, down = float(payload.up), float(payload.down)
  if sums is not None:
    rejected += collections.Counter(totals.rejected)
    if secure.level in ('masked', 'protocol'):
      k, t = choose_for(secure, cohort)
      section |= {'num_neighbors': k, 'threshold': (
          t if secure.level == 'protocol' else None)}
    if secure.level == 'protocol':
      section['graph_bits'] = graph_bits(secure, cohort)
      if section['graph_bits'] < _PROMISED_BITS:
        section['trusted'] += (
            ' With the graph and the threshold given here, that holds but for '
            f'a chance of 2^-{max(0.0, section["graph_bits"]):.1f}.')
    section |= secure_account.describe(totals)
    if sums.key_holder:
      section['trusted'] = sums.key_holder
    asked = totals.participations + totals.aborted_participations
    section['total_bytes'] = float(
        sum(totals.uplink_bytes.values()) + totals.aborted_uplink_bytes
        + sum(totals.downlink_bytes.values()) + totals.aborted_downlink_bytes
        + payload.down * asked)
    if totals.participations:
      up = sum(totals.uplink_bytes.values()) / totals.participations
      down += sum(totals.downlink_bytes.values()) / totals.participations
  return section | {
      'rejected': {k: v for k, v in rejected.items() if v},
      'uplink_bytes_per_client': up, 'downlink_bytes_per_client': down}


def count_upload(
    traffic: dict[str, float], secure: Mapping[str, Any] | None
) -> dict[str, float]:
  """The byte counts of a run, with what secure sums move in place of rows."""
  if secure is None:
    return traffic
  before = (traffic['uplink_bytes_per_client']
            + traffic['downlink_bytes_per_client'])
  up, down = (
      secure[f'{way}_bytes_per_client'] for way in ('uplink', 'downlink'))
  head = secure.get('head_sum', {})
  return traffic | {
      'uplink_bytes_per_client': up, 'downlink_bytes_per_client': down,
      # Where it was measured, with all that aborted rounds moved.
      'total_bytes': secure.get(
          'total_bytes', traffic['total_bytes'] / before * (up + down)) + (
              head.get('uplink_bytes', 0) + head.get('downlink_bytes', 0))}
