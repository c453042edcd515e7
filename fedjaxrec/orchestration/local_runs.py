"""What a run with local differential privacy settles before it compiles."""

import jax.numpy as jnp
import numpy as np

from fedjaxrec.algorithms.messages import message_size
from fedjaxrec.config import Config
from fedjaxrec.data.interactions import Interactions
from fedjaxrec.models.two_tower import SideInputs
from fedjaxrec.orchestration.head_rows import top_rows
from fedjaxrec.participation.samplers import build_sampler
from fedjaxrec.privacy.local import LocalPlan, make_local_plan
from fedjaxrec.protection import noise_key
from fedjaxrec.transforms.head_reports import estimate_popularity

# Keeps the reports of items apart from the other uses of the run's seed.
_REPORT_STREAM = 0x4E901


def prepare(
    config: Config, train: Interactions, side: SideInputs | None = None
) -> tuple[LocalPlan, np.ndarray | None]:
  """Settles local privacy: what a user pays, and the rows that travel.

  Args:
    config: With a section local_privacy that is on.
    train: The training interactions.
    side: The features that model.name=two_tower reads: the towers travel too.

  Raises:
    ValueError: For rows that cannot be chosen, or an upload too short.
  """
  open_rows = choose_head(config, train)
  sampler, _ = build_sampler(config.cohort, train.counts, config.seed)
  return make_local_plan(
      config, train.counts, sampler,
      message_size(config, train.num_items, open_rows, side)), open_rows


def choose_head(config: Config, train: Interactions) -> np.ndarray | None:
  """The rows that travel, bool [num_items]; None: all.

  The most popular ones: by the training interactions where these are declared
  public, otherwise by one locally private report of an item by each client.

  Raises:
    ValueError: If there are no more items than that.
  """
  local = config.local_privacy

  def count():
    if local.head_choice == 'public':
      return np.bincount(train.items, minlength=train.num_items)
    return np.asarray(estimate_popularity(
        local.head_choice, local.head_epsilon,
        jnp.asarray(train.offsets, jnp.int32), jnp.asarray(train.items),
        train.num_items, noise_key(config, _REPORT_STREAM)))

  return top_rows(
      'local_privacy.head_items', local.head_items, train.num_items, count)
