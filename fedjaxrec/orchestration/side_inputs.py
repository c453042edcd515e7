"""The side features that a run's model reads, in the order of its ids."""

from fedjaxrec.config import Config
from fedjaxrec.data.feature_files import load_features
from fedjaxrec.data.splits import Split
from fedjaxrec.models.two_tower import SideInputs


def load_side_inputs(config: Config, split: Split) -> SideInputs | None:
  """Loads what model.name=two_tower reads; None for other models.

  Where the split's items of validation and test are cold (item_holdout,
  citeulike-a), these are new items: they join after training.

  Args:
    config: The run.
    split: Its data.

  Raises:
    FileNotFoundError, ValueError: See `load_features`.
  """
  if config.model.name != 'two_tower':
    return None
  found = load_features(
      config.data, split.train.user_ids, split.train.item_ids)
  new_items = None
  if (split.test_candidates is not None
      and split.validation_candidates is not None):
    new_items = split.test_candidates | split.validation_candidates
  return SideInputs(
      found.users and found.users.matrix(),
      found.items and found.items.matrix(), new_items)
