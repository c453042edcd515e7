"""From a config and training interactions to compiled rounds.

This is the one place where the rooms meet: sampler, plan, placement, algorithm
and compiled call. It needs JAX, Flax and Optax alone, no flags and no run
directory, so that benchmarks use the same engine as `fedjaxrec train`.
"""

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjaxrec import parallel, population, rounds
from fedjaxrec.algorithms.leaky_negatives import draw_from_pool
from fedjaxrec.algorithms.messages import message_size
from fedjaxrec.algorithms.registry import build_algorithm
from fedjaxrec.algorithms.sequential import label_interactions
from fedjaxrec.blocks import Algorithm, WithMemory
from fedjaxrec.config import Config
from fedjaxrec.config.corrections import sections_on
from fedjaxrec.hosted_clients import make_cohort_reader
from fedjaxrec.hosted_rounds import SumOnHost, make_hosted_execute
from fedjaxrec.memory import (
    Memory,
    check_personal_tables,
    estimate_memory,
)
from fedjaxrec.models.recommender import Recommender
from fedjaxrec.models.registry import build_recommender
from fedjaxrec.models.two_tower import SideInputs
from fedjaxrec.participation.plan import Plan, make_planner, most_blocks
from fedjaxrec.participation.samplers import Sampler, build_sampler
from fedjaxrec.participation.sizes import (
    choose_block_size,
    choose_classes,
)
from fedjaxrec.population import ClientData
from fedjaxrec.protection import build_protection
from fedjaxrec.refit import Refit, make_refit
from fedjaxrec.rounds import RoundMetrics
from fedjaxrec.server import ServerState
from fedjaxrec.touched_rows import choose_num_slots
from fedjaxrec.transforms.correlated_noise import Strategy
from fedjaxrec.transforms.error_feedback import check_error_feedback
from fedjaxrec.uplink import PLAIN, Uplink

PyTree = Any
ClientTransform = Callable[[jax.Array], optax.GradientTransformation]

_MAX_ROUNDS_PER_CALL = 50


class State(NamedTuple):
  """All that changes from round to round.

  Attributes:
    server: The same on every device.
    personal: Leaves [num_devices, clients_per_device, ...], at home.
  """
  server: ServerState
  personal: PyTree


class Simulation(NamedTuple):
  """A federated run, ready to go.

  Attributes:
    init: () -> State, from the config's seed.
    run: (State, first_round, num_rounds) -> (State, RoundMetrics with leaves
      [rounds_per_call]). first_round is the state's round_index, which the host
      must not wait for the device to learn; num_rounds is at most
      rounds_per_call. The state is donated: use the one returned. Returns
      before the device is done. It is `execute` on `plan`:
    plan: (first_round, num_rounds) -> the chunk's data and plan, at their
      devices; host work, which goes on while the devices execute.
    execute: (State, plan, num_rounds) -> (State, RoundMetrics).
    temporary_bytes: () -> bytes that the compiled call needs on a device beside
      its arguments and results, as the compiler counts them; compiles.
    restore: (ServerState, personal by client) -> State, of NumPy arrays.
    personal_by_client: State -> the clients' own parameters, leaves
      [num_clients, ...] of NumPy arrays.
    clients_by_client: The same of all that clients keep, as `restore` wants it:
      with an uplink that has a memory, that too. In several processes all of
      them call this and `personal_by_client`.
    shapes: () -> shapes and types of the server's state, of clients_by_client
      and of personal_by_client; nothing is computed.
    rounds_per_call: Most rounds of one call.
    algorithm: What clients and server do.
    placement: The devices.
    capacities: The size classes.
    block_size: Clients trained at once.
    max_cohort: The largest cohort that a round can have.
    sampler: round_index -> client ids: who is invited.
    key: The key of the clients' draws.
    memory: What it needs of each device, estimated.
    refit: (ServerState, personal by client) -> personal by client, fitted to
      the shared model; None where the algorithm has no such step.
    side: The features that it was given.
  """
  init: Callable[[], State]
  run: Callable[[State, int, int], tuple[State, RoundMetrics]]
  plan: Callable[[int, int], tuple[ClientData, Plan]]
  execute: Callable[
      [State, tuple[ClientData, Plan], int], tuple[State, RoundMetrics]]
  temporary_bytes: Callable[[], int]
  restore: Callable[[ServerState, PyTree], State]
  personal_by_client: Callable[[State], PyTree]
  clients_by_client: Callable[[State], PyTree]
  shapes: Callable[[], tuple[ServerState, PyTree, PyTree]]
  rounds_per_call: int
  algorithm: Algorithm
  placement: parallel.Placement
  capacities: tuple[int, ...]
  block_size: int
  max_cohort: int
  sampler: Sampler
  key: jax.Array
  memory: Memory
  refit: Refit | None = None
  side: SideInputs | None = None


def call_interval(config: Config, max_cohort: int) -> int:
  """Rounds of one compiled call: no more than lie between two host stops.

  Args:
    config: The whole config.
    max_cohort: The largest cohort; a call's plan has at most 2^24 places.
  """
  if config.engine.rounds_per_call:
    return min(config.engine.rounds_per_call, config.rounds)
  stops = [config.rounds, _MAX_ROUNDS_PER_CALL, max(1, 2**24 // max_cohort)]
  stops += [n for n in (config.evaluation.every, config.checkpoint.every) if n]
  return min(stops)


def _interactions_on_devices(
    config: Config, num_examples: np.ndarray, places: int) -> int:
  """Interactions that lie on the devices at once, at most."""
  if config.engine.data == 'device':
    return int(num_examples.sum())
  return int(np.sort(num_examples)[-places:].sum())


class Parts(NamedTuple):
  """What a run computes, before it is said where and for whom.

  Attributes:
    algorithm: What clients and server do.
    uplink: The way of a delta to the sum.
    server_key: Of the server's initial parameters.
    personal_key: Of the clients' initial parameters.
    client_key: Of the clients' draws.
  """
  algorithm: Algorithm
  uplink: Uplink
  server_key: jax.Array
  personal_key: jax.Array
  client_key: jax.Array


def make_parts(
    config: Config,
    recommender: Recommender,
    num_items: int,
    *,
    client_transform: ClientTransform | None = None,
    uplink: Uplink | None = None,
    expected_cohort: float | None = None,
    server_transform: optax.GradientTransformation | None = None,
    transform_algorithm: Callable[[Algorithm], Algorithm] = lambda a: a,
    held_out: np.ndarray | None = None,
) -> Parts:
  """Builds what a run computes; pure, so it may be called while tracing.

  Args:
    config: The whole config; scalars that only enter arithmetic, and the seed,
      may be traced (see `study`).
    recommender: The model.
    num_items: Items in the catalogue.
    client_transform: See `make_simulation`, as for the others.
    uplink: See there.
    expected_cohort: See there.
    server_transform: See there.
    transform_algorithm: See there.
    held_out: See there.
  """
  algorithm = transform_algorithm(draw_from_pool(
      build_algorithm(
          config, recommender, num_items, server_transform=server_transform,
          expected_cohort=expected_cohort), config, held_out, num_items))
  if uplink is None:
    uplink = PLAIN if client_transform is None else Uplink(
        transform=lambda key, *_: client_transform(key))
  if uplink.has_memory:
    algorithm = _add_memory(algorithm)
  return Parts(
      algorithm, uplink, *jax.random.split(jax.random.key(config.seed), 3))


def _add_memory(algorithm: Algorithm) -> Algorithm:
  """The same algorithm, whose clients remember what they have not sent."""
  def init(key):
    table, shared = algorithm.empty_contribution(algorithm.init_server(key))
    return WithMemory(
        algorithm.init_personal(key), (population.ByItem(table), shared))

  return algorithm._replace(init_personal=init)


def make_simulation(
    config: Config,
    offsets: np.ndarray,
    items: np.ndarray,
    labels: np.ndarray,
    num_items: int,
    *,
    client_transform: ClientTransform | None = None,
    uplink: Uplink | None = None,
    expected_cohort: float | None = None,
    server_transform: optax.GradientTransformation | None = None,
    transform_algorithm: Callable[[Algorithm], Algorithm] = lambda a: a,
    open_rows: np.ndarray | None = None,
    strategy: Strategy | None = None,
    held_out: np.ndarray | None = None,
    sum_on_host: SumOnHost | None = None,
    side: SideInputs | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Simulation:
  """Builds a simulation; nothing compiles before its first call.

  Args:
    config: The whole config.
    offsets: int64 [num_clients + 1]: client c has the interactions
      offsets[c]:offsets[c + 1].
    items: int32 [num_interactions], distinct within a client; for
      algorithm.name=sequential, and for fedease with a window or a recency, in
      order of time.
    labels: float32 [num_interactions].
    num_items: Items in the catalogue.
    client_transform: key -> Optax transform of one client's delta, the pair
      (item rows, shared): short for an uplink with nothing else.
    uplink: What happens to a client's delta on its way to the sum. Without any
      of these, what the sections privacy, local_privacy, compression and
      secure ask for.
    expected_cohort: What a mean divides by, instead of who reported.
    server_transform: Optax transform of the raw sum, before it is divided.
    transform_algorithm: Changes the algorithm before it is compiled.
    open_rows: bool [num_items]: the only rows that travel, where
      privacy.head_items or local_privacy.head_items asks for it.
    strategy: The matrix of privacy.mechanism=banded and blt.
    held_out: int32 [num_clients, n]: items that are spared as negatives, only
      for objective.negative_pool=pfedrec-leaky; num_items for none.
    sum_on_host: Sums a round's messages, for the secure levels that do it
      outside the compiled round.
    side: Features of clients and items, for model.name=two_tower.
    devices: Devices to choose from; None: all, of all processes.

  Raises:
    ValueError: If the cohort or the devices asked for are not there.
  """
  num_examples = np.diff(offsets)
  num_clients = len(num_examples)
  labels = label_interactions(config, offsets, labels)
  if side is not None and side.train_moments is not None:
    if len(side.train_moments) != len(items):
      raise ValueError(
          f'side.train_moments has {len(side.train_moments)} entries, but '
          f'there are {len(items)} interactions; give one each, in order.')
    labels = side.train_moments
  sampler, max_cohort = build_sampler(config.cohort, num_examples, config.seed)
  placement = parallel.choose_placement(config.parallel, devices)
  num_devices = placement.num_devices
  if side is not None and side.users is not None and (
      len(side.users) != num_clients):
    raise ValueError(
        f'side.users has {len(side.users)} rows, but there are {num_clients} '
        'clients; give one row a client, in the order of their ids.')
  recommender = build_recommender(
      config.model, num_items, side and (config.two_tower, side))
  asked = sections_on(config)
  if asked and not (client_transform or uplink or server_transform):
    protection = build_protection(
        config, float(config.cohort.size or (num_examples > 0).sum()),
        max_cohort, None if open_rows is None else jnp.asarray(open_rows),
        None if config.secure.noise == 'none' else message_size(
            config, num_items, open_rows), strategy)
    uplink, server_transform, expected_cohort = protection
  elif asked:
    raise ValueError(
        'client_transform, uplink or server_transform with a section privacy, '
        'local_privacy, compression (downlink_bits too) or secure that is on: '
        'the given ones would replace what these promise; use one of the two '
        'ways.')
  algorithm, uplink, server_key, personal_key, client_key = make_parts(
      config, recommender, num_items, client_transform=client_transform,
      uplink=uplink, expected_cohort=expected_cohort,
      server_transform=server_transform,
      transform_algorithm=transform_algorithm, held_out=held_out)
  check_personal_tables(
      algorithm, num_clients, config.personalization.table_limit_gib)
  if uplink.has_memory:
    table, shared = jax.eval_shape(
        lambda key: algorithm.empty_contribution(algorithm.init_server(key)),
        server_key)
    check_error_feedback(
        num_clients, table, shared, config.compression.error_feedback_limit_gib)
  device = placement.devices[0]
  on_cpu = device.platform == 'cpu'
  block_size = choose_block_size(
      config, device.platform, max_cohort, num_examples,
      0 if on_cpu else (device.memory_stats() or {}).get('bytes_limit', 0))
  capacities = choose_classes(config, num_examples)
  rounds_per_call = call_interval(config, max_cohort)
  num_slots = 0
  if (placement.mode == 'single' and algorithm.server.rows_stand_still
      and uplink.codec is None and not uplink.is_dense):
    num_slots = choose_num_slots(
        algorithm.draw, num_items, capacities, most_blocks(
            num_examples, capacities, block_size, max_cohort), block_size)
  memory = estimate_memory(
      config, algorithm, uplink, num_clients=num_clients, num_items=num_items,
      num_interactions=_interactions_on_devices(
          config, num_examples, max_cohort * rounds_per_call),
      num_devices=num_devices,
      capacity=capacities[-1], block_size=block_size, max_cohort=max_cohort,
      rounds_per_call=rounds_per_call, num_slots=num_slots)
  planner = make_planner(
      num_examples, capacities, block_size, num_devices, max_cohort,
      rounds_per_call)
  if config.engine.data == 'host':
    read_cohorts = make_cohort_reader(
        offsets, items, labels, num_devices, placement.homes, max_cohort,
        rounds_per_call)
  else:
    resident = parallel.put_at_home(
        population.place_clients(
            offsets, items, labels, num_devices, placement.homes), placement)
  one_round = rounds.make_round(
      algorithm, capacities, num_clients, num_items, num_devices,
      placement.axis_name, num_slots, uplink)
  run_rounds = parallel.distribute(rounds.make_run_rounds(one_round), placement)
  hosted = None
  if config.secure.on_host:
    if sum_on_host is None:
      raise ValueError(
          f'secure.level={config.secure.level} without sum_on_host: its sums '
          'are taken on the host; give one, or use secure.level=ideal.')
    hosted = make_hosted_execute(one_round, rounds_per_call)
  client_key_everywhere = parallel.put_everywhere(client_key, placement)

  init_server = jax.jit(algorithm.init_server)
  init_personal = population.make_init_personal(
      algorithm.init_personal, num_clients, num_devices, placement.homes)
  features = None if side is None or side.users is None else (
      population.by_home(side.users, num_devices)[
          placement.homes.start:placement.homes.stop])

  def init():
    return State(
        parallel.put_everywhere(init_server(server_key), placement),
        parallel.put_at_home(population.fill_known(
            init_personal(personal_key), features), placement))

  def plan(first_round, num_rounds):
    if num_rounds > rounds_per_call:
      raise ValueError(
          f'num_rounds={num_rounds} is more than rounds_per_call='
          f'{rounds_per_call}: plans have room for no more; call again.')
    planned = planner(sampler, first_round, num_rounds)
    if config.engine.data == 'host':
      return parallel.put_at_home(read_cohorts(planned), placement)
    return resident, parallel.put_at_home(planned, placement)

  def execute(state, chunk, num_rounds):
    data, chunk = chunk
    if hosted is not None:
      server, personal, metrics = hosted(
          state.server, state.personal, data, chunk, num_rounds, client_key,
          sum_on_host)
      return State(server, personal), metrics
    server, personal, metrics = run_rounds(
        state.server, state.personal, data, chunk,
        parallel.put_everywhere(np.int32(num_rounds), placement),
        client_key_everywhere)
    return State(server, personal), metrics

  ahead = concurrent.futures.ThreadPoolExecutor(1)
  planned_ahead: dict[int, concurrent.futures.Future] = {}

  def run(state, first_round, num_rounds):
    # The next call's plan is made, and its cohorts read and sent, while the
    # devices are busy with this one. It has as many rounds as fit, because how
    # many of them are run is data.
    future = planned_ahead.pop(first_round, None)
    chunk = future.result() if future else plan(
        first_round, rounds_that_fit(first_round, num_rounds))
    result = execute(state, chunk, num_rounds)
    following = first_round + num_rounds
    planned_ahead.clear()
    if num_rounds and following < config.rounds:
      planned_ahead[following] = ahead.submit(
          plan, following, rounds_that_fit(following, 0))
    return result

  def rounds_that_fit(first_round, at_least):
    return max(at_least, min(rounds_per_call, config.rounds - first_round))

  def temporary_bytes():
    state = init()
    analysis = run_rounds.lower(
        state.server, state.personal, *plan(0, 1), np.int32(1),
        client_key_everywhere).compile().memory_analysis()
    return analysis.temp_size_in_bytes

  def restore(server, personal):
    return State(
        parallel.put_everywhere(server, placement),
        parallel.put_at_home(jax.tree.map(
            lambda x: population.by_home(np.asarray(x), num_devices),
            personal), placement))

  def clients_by_client(state):
    return jax.tree.map(
        lambda x: population.by_client(x, num_clients),
        parallel.gather(state.personal, placement))

  def shapes():
    keys = jax.eval_shape(
        lambda key: jax.random.split(key, num_clients), personal_key)
    clients = jax.eval_shape(jax.vmap(algorithm.init_personal), keys)
    return (jax.eval_shape(algorithm.init_server, server_key), clients,
            clients.personal if uplink.has_memory else clients)

  def personal_by_client(state):
    return clients_by_client(state._replace(
        personal=state.personal.personal) if uplink.has_memory else state)

  return Simulation(
      init, run, plan, execute, temporary_bytes, restore, personal_by_client,
      clients_by_client, shapes, rounds_per_call, algorithm, placement,
      capacities, block_size, max_cohort, sampler, client_key, memory,
      make_refit(algorithm, offsets, items, labels, num_items, capacities,
                 block_size, client_key), side)
