"""Interactions that stay on the host, of which each call's cohorts are sent.

For populations that do not fit a device: the arrays may be memory-mapped, and
only the clients that a chunk of rounds invites are read and sent, ahead of
time. The clients find the same numbers there, so the results are the same, bit
for bit.
"""

from collections.abc import Callable

import numpy as np

from fedjaxrec.participation.plan import Plan
from fedjaxrec.population import ClientData


def make_cohort_reader(
    offsets: np.ndarray,
    items: np.ndarray,
    labels: np.ndarray,
    num_devices: int,
    homes: range,
    max_cohort: int,
    plan_rounds: int,
) -> Callable[[Plan], tuple[ClientData, Plan]]:
  """Builds read(plan) -> (the data of its clients, the plan by place).

  Args:
    offsets: int64 [num_clients + 1].
    items: int32 [num_interactions], distinct within a client, in any order; may
      be memory-mapped: only what is asked for is read.
    labels: float32 [num_interactions], likewise.
    num_devices: Devices that share the population.
    homes: The devices to read for.
    max_cohort: The largest cohort.
    plan_rounds: Rounds that a plan has room for.

  Returns:
    read; its arrays have one shape whatever the plan, with room for the largest
    clients that a plan can hold, and the leading axis [homes].

  Raises:
    ValueError: If a chunk could hold 2^31 interactions or more.
  """
  num_clients = len(offsets) - 1
  counts = np.diff(offsets)
  per_device = -(-num_clients // num_devices)
  places = min(per_device, max_cohort * plan_rounds)
  width = max(1, max(
      int(np.sort(counts[home::num_devices])[-places:].sum())
      for home in range(num_devices)))
  if width >= 2**31:
    raise ValueError(
        f'engine.rounds_per_call={plan_rounds}: a call could send {width:,} '
        'interactions to a device, and offsets are 32 bits wide; use fewer.')

  def read_device(home, local_index):
    local = np.unique(np.concatenate([x.reshape(-1) for x in local_index]))
    local = local[local < per_device]
    client = local.astype(np.int64) * num_devices + home
    mine = counts[client]
    starts = np.zeros(places + 1, np.int32)
    np.cumsum(mine, out=starts[1:len(mine) + 1])
    starts[len(mine) + 1:] = starts[len(mine)]
    total = starts[-1]
    within = np.arange(total) - np.repeat(starts[:len(mine)], mine)
    source = np.repeat(offsets[client], mine) + within
    who = np.repeat(np.arange(len(client)), mine)
    own_items, own_labels = np.asarray(items[source]), labels[source]
    order = np.lexsort((own_items, who))
    home_of = np.full(places, per_device, np.int32)
    home_of[:len(local)] = local
    data = ClientData(
        starts, np.zeros(width, np.int32), np.zeros(width, np.float32), home_of)
    data.items[:total] = own_items[order]
    data.labels[:total] = own_labels[order]
    place_of = np.full(per_device + 1, places, np.int32)
    place_of[local] = np.arange(len(local))
    return data, tuple(place_of[x] for x in local_index)

  def read(plan: Plan) -> tuple[ClientData, Plan]:
    read_all = [read_device(home, tuple(x[home] for x in plan.local_index))
                for home in homes]
    data = ClientData(*(np.stack(x) for x in zip(*(d for d, _ in read_all))))
    return data, Plan(
        tuple(np.stack(x) for x in zip(*(index for _, index in read_all))),
        plan.num_blocks[homes.start:homes.stop])

  return read
