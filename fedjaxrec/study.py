"""Many runs in one program: seeds and scalars as a leading axis of a whole run.

The members of a study differ in their seed and in scalars that only enter
arithmetic (learning rates, L2, ...). The compiled run of one member is written
with a config whose differing scalars are traced, and `jax.vmap`ped: everything
that depends on a seed (initial values, cohorts, draws) follows. So an ablation
over 8 seeds compiles once, and an accelerator works on 8 tables at a time.

Numbers are those of the single runs, to the order of float sums. A loop's trip
count is the same for all members (a vmapped loop with a trip count for each
would copy its whole carry every turn): cohorts are planned to the largest
number of blocks of any member, and the places that are left over are padding.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjaxrec import parallel, population, rounds
from fedjaxrec.algorithms.sequential import label_members
from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import Config
from fedjaxrec.config.corrections import sections_on
from fedjaxrec.memory import check_personal_tables, estimate_memory
from fedjaxrec.models.registry import build_recommender
from fedjaxrec.participation.plan import Plan, make_planner, room_of_plan
from fedjaxrec.participation.samplers import build_sampler
from fedjaxrec.participation.sizes import (
    choose_block_size,
    choose_classes,
)
from fedjaxrec.protection import build_protection
from fedjaxrec.refit import Refit, make_refit
from fedjaxrec.rounds import RoundMetrics
from fedjaxrec.simulation import (
    State,
    call_interval,
    make_parts,
)
from fedjaxrec.study_fields import (
    program_key,
    read_field,
    trace_fields,
    traceable,
)
from fedjaxrec.touched_rows import choose_num_slots
from fedjaxrec.transforms.error_feedback import check_error_feedback

PyTree = Any
Training = tuple[np.ndarray, np.ndarray, np.ndarray]

AXIS = 'members'


class Member(NamedTuple):
  """One member as evaluation sees it; stands where a `Simulation` does.

  Attributes:
    init: () -> State as NumPy arrays; personal leaves [num_clients, ...].
    personal_by_client: State -> the clients' own parameters.
    clients_by_client: State -> all that clients keep.
    algorithm: With the member's scalars; members that differ in the seed alone
      share it, and so what is compiled with it.
    placement: The devices.
    key: The key of the clients' draws.
    refit: As `Simulation.refit`.
    side: None: members read no features.
  """
  init: Callable[[], State]
  personal_by_client: Callable[[State], PyTree]
  clients_by_client: Callable[[State], PyTree]
  algorithm: Algorithm
  placement: parallel.Placement
  key: jax.Array
  refit: Refit | None = None
  side: None = None


class Study(NamedTuple):
  """Runs side by side, ready to go.

  Attributes:
    init: () -> State; leaves have the leading axis [members].
    plan: (first_round, num_rounds) -> the chunk's plan at its devices.
    execute: (State, plan, num_rounds) -> (State, RoundMetrics with leaves
      [members, rounds_per_call]). The state is donated. Returns before the
      devices are done.
    run: (State, first_round, num_rounds) -> the same, with its own plan.
    restore: State of NumPy arrays -> State at its devices.
    to_host: State -> State of NumPy arrays.
    members: One for each config given.
    rounds_per_call: Most rounds of one call.
    placement: The devices that share the members.
    max_cohort: The largest cohort that a round of any member can have.
  """
  init: Callable[[], State]
  plan: Callable[[int, int], Plan]
  execute: Callable[[State, Plan, int], tuple[State, RoundMetrics]]
  run: Callable[[State, int, int], tuple[State, RoundMetrics]]
  restore: Callable[[State], State]
  to_host: Callable[[State], State]
  members: tuple[Member, ...]
  rounds_per_call: int
  placement: parallel.Placement
  max_cohort: int


def protect(
    config: Config, num_examples: np.ndarray, max_cohort: int
) -> dict[str, Any]:
  """What the sections privacy, compression and secure ask of `make_parts`."""
  if not sections_on(config):
    return {}
  expected = float(config.cohort.size or (num_examples > 0).sum())
  return build_protection(config, expected, max_cohort)._asdict()


def member_bytes(
    config: Config, num_examples: np.ndarray, num_items: int) -> int:
  """About what one member needs on a device, but for data that all share.

  Args:
    config: A member's config.
    num_examples: int [num_clients]: training interactions.
    num_items: Items in the catalogue.
  """
  _, max_cohort = build_sampler(config.cohort, num_examples, config.seed)
  parts = make_parts(
      config, build_recommender(config.model, num_items), num_items,
      **protect(config, num_examples, max_cohort))
  needed = estimate_memory(
      config, parts.algorithm, parts.uplink, num_clients=len(num_examples),
      num_items=num_items, num_interactions=int(num_examples.sum()),
      num_devices=1, capacity=choose_classes(config, num_examples)[-1],
      block_size=choose_block_size(
          config, jax.default_backend(), max_cohort, num_examples),
      max_cohort=max_cohort,
      rounds_per_call=call_interval(config, max_cohort))
  return needed.total - needed.data


def choose_devices(
    config: Config, devices: Sequence[jax.Device] | None, num_members: int
) -> parallel.Placement:
  """The devices that share the members; no more than there are members.

  Raises:
    ValueError: For pmap, several processes, and sums or data on the host.
  """
  settings = config.parallel
  if settings.mode == 'pmap' or settings.coordinator:
    raise ValueError(
        f'parallel.mode={settings.mode} with parallel.coordinator='
        f'{settings.coordinator!r}: a study runs in one process, and shares '
        'its members among devices by shard_map; use parallel.mode=auto.')
  if config.secure.on_host:
    raise ValueError(
        f'secure.level={config.secure.level} in a study: its sums are taken on '
        'the host, one run at a time; use secure.level=ideal, which has the '
        'same sums, or `fedjaxrec train`.')
  if config.engine.data != 'device':
    raise ValueError(
        f'engine.data={config.engine.data} in a study: its members share the '
        'data on the device; use engine.data=device, or `fedjaxrec train`.')
  found = parallel.choose_placement(
      settings, jax.local_devices() if devices is None else devices)
  chosen = found.devices[:num_members]
  return parallel.Placement(
      'single' if len(chosen) == 1 else 'shard_map', chosen)


def make_study(
    configs: Sequence[Config],
    training: Sequence[Training],
    num_items: int,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Study:
  """Builds a study; nothing compiles before its first call.

  Memory: a copy of tables, personal parameters and a block's slots for every
  member (`member_bytes`); data that all members share is there once a device.
  Several devices share the members, which then need not talk to each other.

  Args:
    configs: The members', of one `program_key`.
    training: For each member (offsets, items, labels) as `make_simulation`
      takes them, of equally many clients. Where all are the same objects, the
      data is placed once.
    num_items: Items in the catalogue.
    devices: Devices to choose from; None: all local ones.

  Raises:
    ValueError: If the configs cannot share a program, or the cohort or the
      devices asked for are not there.
  """
  if len({program_key(config) for config in configs}) != 1:
    raise ValueError(
        f'num_members={len(configs)}: members of one program differ in their '
        'seed and in scalars that are zero throughout or nowhere '
        f'({", ".join(traceable(configs[0]))}); make a study for each '
        '`program_key`.')
  num_members, first = len(configs), configs[0]
  if first.model.name == 'two_tower':
    raise ValueError(
        'model.name=two_tower in a study: its members share one program, which '
        'has no place for features; use `fedjaxrec train` for each setting, or '
        'model.name=mf.')
  training = label_members(first, training)
  num_clients = len(training[0][0]) - 1
  counts = [np.diff(offsets) for offsets, _, _ in training]
  if len({(len(count), np.count_nonzero(count)) for count in counts}) != 1:
    raise ValueError(
        'members of one program need equally many clients, and as many with an '
        'interaction; make a study for each of these numbers.')
  placement = choose_devices(first, devices, num_members)
  # Every device has equally many lanes; the last member fills what is over.
  lanes = -(-num_members // placement.num_devices) * placement.num_devices
  lane = [min(i, num_members - 1) for i in range(lanes)]

  recommender = build_recommender(first.model, num_items)
  shares_data = all(
      mine is theirs for other in training[1:]
      for mine, theirs in zip(training[0], other))
  capacities = choose_classes(
      first, counts[0] if shares_data else np.concatenate(counts))
  samplers, cohorts = zip(*(
      build_sampler(config.cohort, count, config.seed)
      for config, count in zip(configs, counts)))
  max_cohort = max(cohorts)
  # As many clients at once on a device as in a single run, whoever's they are.
  block_size = max(1, choose_block_size(
      first, placement.devices[0].platform, max_cohort, counts[0]) * (
          placement.num_devices) // lanes)
  rounds_per_call = call_interval(first, max_cohort * lanes)
  planners = [
      make_planner(count, capacities, block_size, 1, cohort, rounds_per_call)
      for count, cohort in zip(counts, cohorts)]

  varied = [name for name in traceable(first)
            if len({read_field(config, name) for config in configs}) > 1]
  # Stacked one by one, Python's numbers stay weakly typed, as constants are.
  scalars = {name: jnp.stack([
      jnp.asarray(float(read_field(configs[i], name))) for i in lane])
      for name in varied}
  scalars['seed'] = jnp.asarray([configs[i].seed for i in lane], jnp.int32)

  def build(config):
    return make_parts(
        config, recommender, num_items,
        **protect(config, counts[0], max_cohort))

  def parts_of(values):
    return build(trace_fields(first, values))

  known = build(first)
  if known.uplink.has_memory:
    table, shared = jax.eval_shape(
        lambda key: known.algorithm.empty_contribution(
            known.algorithm.init_server(key)), known.server_key)
    check_error_feedback(
        num_clients * num_members, table, shared,
        first.compression.error_feedback_limit_gib)
  check_personal_tables(
      known.algorithm, num_clients * num_members,
      first.personalization.table_limit_gib)
  num_slots = 0
  if (known.algorithm.server.rows_stand_still and known.uplink.codec is None
      and not known.uplink.is_dense):
    # Each member walks over the most blocks of each class that any member has.
    num_slots = choose_num_slots(
        known.algorithm.draw, num_items, capacities, np.max([
            room_of_plan(count, capacities, block_size, 1, cohort)
            for count, cohort in zip(counts, cohorts)], 0), block_size)

  def init_one(values):
    parts = parts_of(values)
    init = lambda i: parts.algorithm.init_personal(
        jax.random.fold_in(parts.personal_key, i))
    return State(parts.algorithm.init_server(parts.server_key),
                 jax.vmap(init)(jnp.arange(num_clients)))

  def run_one(values, state, data, local_index, num_blocks, num_rounds):
    parts = parts_of(values)
    run = rounds.make_run_rounds(rounds.make_round(
        parts.algorithm, capacities, num_clients, num_items,
        num_slots=num_slots, uplink=parts.uplink))
    server, personal, metrics = run(
        state.server, state.personal, data, Plan(local_index, num_blocks),
        num_rounds, parts.client_key)
    return State(server, personal), metrics

  data_axis = None if shares_data else 0
  call = jax.vmap(run_one, (0, 0, data_axis, 0, None, None))
  init_all = jax.vmap(init_one)
  spread, copied = PartitionSpec(AXIS), PartitionSpec()
  mesh = Mesh(np.array(placement.devices), (AXIS,))
  if placement.mode != 'single':
    # Each device sees its own members only, so trip counts are its own, too.
    call = jax.shard_map(
        call, mesh=mesh, check_vma=False, out_specs=spread,
        in_specs=(spread, spread, copied if shares_data else spread,
                  (spread,) * len(capacities), copied, copied))
    init_all = jax.shard_map(
        init_all, mesh=mesh, check_vma=False, in_specs=spread,
        out_specs=spread)
  call, init_all = jax.jit(call, donate_argnums=(1,)), jax.jit(init_all)

  def put(tree, spec=spread):
    return jax.device_put(tree, placement.devices[0] if (
        placement.mode == 'single') else NamedSharding(mesh, spec))

  def stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(_same_size(leaves)), *trees)

  placed = [jax.tree.map(lambda x: x[0], population.place_clients(*part))
            for part in (training[:1] if shares_data else training)]
  data = put(placed[0], copied) if shares_data else put(
      stack([placed[i] for i in lane]))
  scalars = put(scalars)

  def init():
    return init_all(scalars)

  def plan(first_round, num_rounds):
    if num_rounds > rounds_per_call:
      raise ValueError(
          f'num_rounds={num_rounds} is more than rounds_per_call='
          f'{rounds_per_call}: plans have room for no more; call again.')
    plans = [planner(sampler, first_round, num_rounds)
             for planner, sampler in zip(planners, samplers)]
    blocks = np.max([p.num_blocks[0] for p in plans], 0)
    index = tuple(
        np.stack([padded[i] for i in lane]) for padded in (
            _same_blocks([p.local_index[c][0] for p in plans], num_clients)
            for c in range(len(capacities))))
    return Plan(put(index), put(blocks, copied))

  def execute(state, chunk, num_rounds):
    state, metrics = call(
        scalars, state, data, *chunk, np.int32(num_rounds))
    return state, jax.tree.map(lambda x: x[:num_members], metrics)

  def run(state, first_round, num_rounds):
    return execute(state, plan(first_round, num_rounds), num_rounds)

  def to_host(state):
    return jax.tree.map(lambda x: np.asarray(x)[:num_members], state)

  def restore(state):
    return put(jax.tree.map(lambda x: np.asarray(x)[lane], state))

  @functools.cache
  def start():
    return to_host(init())

  algorithms: dict[tuple, Algorithm] = {}

  def make_member(index):
    config = configs[index]
    values = tuple(read_field(config, name) for name in varied)
    parts = build(config)
    offsets, items, labels = training[index]
    return Member(
        lambda: jax.tree.map(lambda x: x[index], start()),
        lambda state: (state.personal.personal if parts.uplink.has_memory
                       else state.personal),
        lambda state: state.personal,
        algorithms.setdefault(values, parts.algorithm), placement,
        parts.client_key,
        make_refit(parts.algorithm, offsets, items, labels, num_items,
                   capacities, block_size, parts.client_key))

  return Study(
      init, plan, execute, run, restore, to_host,
      tuple(map(make_member, range(num_members))), rounds_per_call, placement,
      max_cohort)


def _same_size(leaves: Sequence[np.ndarray]) -> list[np.ndarray]:
  """Fills the last axis of shorter leaves with zeros: nobody reads them."""
  widest = max(leaf.shape[-1] for leaf in leaves)
  return [np.pad(leaf, [(0, 0)] * (leaf.ndim - 1)
                 + [(0, widest - leaf.shape[-1])]) for leaf in leaves]


def _same_blocks(
    indices: Sequence[np.ndarray], num_clients: int
) -> list[np.ndarray]:
  """Fills int32 [rounds, blocks, B] of fewer blocks with padding clients."""
  most = max(index.shape[1] for index in indices)
  return [np.pad(index, [(0, 0), (0, most - index.shape[1]), (0, 0)],
                 constant_values=num_clients) for index in indices]


def member_state(state: State, index: int) -> State:
  """One member's state, of a State on the host; no copy."""
  return jax.tree.map(lambda x: x[index], state)
