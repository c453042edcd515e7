"""FedAvg and its relatives: local training, then the server moves by the mean.

FedProx is `client.proximal_mu`; SCAFFOLD is `client.control_variates`; FedNova
is `cohort.normalization`; FedAvgM, FedAdagrad, FedAdam and FedYogi are
`server.optimizer`.
"""

import optax

from fedjaxrec.algorithms.fednova import normalize_steps
from fedjaxrec.algorithms.scaffold import add_control_variates
from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import Config
from fedjaxrec.examples import draw_examples, leave_out
from fedjaxrec.local_training import make_local_training
from fedjaxrec.models.recommender import Recommender
from fedjaxrec.objectives import OBJECTIVES
from fedjaxrec.optimizers import (
    build_item_optimizer,
    build_optimizer,
    make_schedule,
    stands_still,
)
from fedjaxrec.participation.plan import choose_tile
from fedjaxrec.protection import count_floor
from fedjaxrec.server import Server, make_server


def build_server(
    config: Config,
    server_transform: optax.GradientTransformation | None = None,
    expected_cohort: float | None = None,
    *,
    auto: str = '',
    lazy_rows: bool = True,
) -> Server:
  """Builds the step that the section server asks for.

  Args:
    config: The whole config; server, model.table_dtype, privacy and secure are
      read.
    server_transform: Transform of the raw sum; None for none.
    expected_cohort: See `make_server`.
    auto: What server.row_normalization=auto stands for; empty: contributors,
      or mean where it is hidden who touched a row.
    lazy_rows: False overrules server.lazy_rows.

  Raises:
    ValueError: See `make_server`.
  """
  server = config.server
  # Noise and secure sums hide who touched a row: nothing may depend on it.
  # So does a sum of tables of hashed entries.
  hidden = (config.privacy.enabled or config.secure.is_on
            or config.compression.sketch == 'count')
  normalization = server.row_normalization
  if normalization == 'auto':
    normalization = auto or ('mean' if hidden else 'contributors')
  return make_server(
      build_optimizer(server, server.learning_rate),
      build_optimizer(server, server.learning_rate),
      make_schedule(server.schedule, server.final_fraction, config.rounds),
      row_normalization=normalization,
      lazy_rows=lazy_rows and server.lazy_rows and not hidden,
      transform=server_transform, expected_cohort=expected_cohort,
      table_dtype=config.model.table_dtype,
      count_floor=count_floor(config, expected_cohort))


def make_fedavg(
    config: Config,
    recommender: Recommender,
    num_items: int,
    server_transform: optax.GradientTransformation | None = None,
    expected_cohort: float | None = None,
) -> Algorithm:
  """Builds FedAvg for a recommender.

  Personal: what the model marks so. Travels: the touched rows of the item
  table and the shared parameters, down; their deltas, up.

  Args:
    config: The whole config; objective, client, server, cohort.weighting and
      cohort.normalization are read.
    recommender: The model.
    num_items: Items in the catalogue.
    server_transform: Transform of the raw sum; None for none.
    expected_cohort: See `make_server`.

  References:
    McMahan et al., 2017, `FedAvg <https://arxiv.org/abs/1602.05629>`_.
  """
  client, objective = config.client, config.objective
  train = make_local_training(
      recommender.score, OBJECTIVES[objective.name],
      build_optimizer(client, client.learning_rate),
      build_item_optimizer(client),
      batch_size=client.batch_size, epochs=client.epochs, steps=client.steps,
      l2=objective.l2, proximal_mu=client.proximal_mu,
      lazy_items=stands_still(client), tile_size=choose_tile(client.batch_size),
      numbered=recommender.numbered, penalty=recommender.penalty,
      corrected=client.control_variates)

  def draw(c, key):
    examples = draw_examples(c, key, num_items, objective.drawn_negatives)
    return examples if recommender.new_items is None else leave_out(
        examples, recommender.new_items, num_items)

  steps = build_server(config, server_transform, expected_cohort)
  algorithm = Algorithm(
      init_server=lambda key: steps.init(*recommender.init_server(key)),
      init_personal=recommender.init_personal,
      draw=draw,
      client_update=train,
      server=steps,
      learning_rate_scale=make_schedule(
          client.schedule, client.final_fraction, config.rounds),
      weight_by_examples=config.cohort.weighting == 'examples',
      score=recommender.score, numbered=recommender.numbered)
  if config.cohort.normalization == 'local_steps':
    return normalize_steps(config, algorithm)
  if client.control_variates:
    return add_control_variates(config, algorithm, train)
  return algorithm
