"""The algorithms by name. A new algorithm is one file, one line here,
and its name in `ALGORITHMS` of `config/learning.py`.
"""

from collections.abc import Callable
from typing import Any

from fedjaxrec.algorithms.apfl import make_apfl
from fedjaxrec.algorithms.cofedrec import make_cofedrec
from fedjaxrec.algorithms.ditto import make_ditto
from fedjaxrec.algorithms.dpals import make_dpals
from fedjaxrec.algorithms.fcf import make_fcf
from fedjaxrec.algorithms.fedavg import make_fedavg
from fedjaxrec.algorithms.fedease import make_fedease
from fedjaxrec.algorithms.fedmf import make_fedmf
from fedjaxrec.algorithms.fedper import make_fedper, make_fedrep
from fedjaxrec.algorithms.fedpergnn import make_fedpergnn
from fedjaxrec.algorithms.fedrap import make_fedrap
from fedjaxrec.algorithms.fedrecon import make_fedrecon
from fedjaxrec.algorithms.gpfedrec import make_gpfedrec
from fedjaxrec.algorithms.ials import make_ials
from fedjaxrec.algorithms.maml import make_fomaml, make_perfedavg
from fedjaxrec.algorithms.metamf import make_metamf
from fedjaxrec.algorithms.pfedrec import make_pfedrec
from fedjaxrec.algorithms.reptile import make_reptile
from fedjaxrec.algorithms.sequential import make_sequential
from fedjaxrec.blocks import Algorithm
from fedjaxrec.config import FACTORISATIONS, Config
from fedjaxrec.models.recommender import Recommender

ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    'fedavg': make_fedavg,
    'ials': make_ials,
    'dpals': make_dpals,
    'fcf': make_fcf,
    'fedmf': make_fedmf,
    'fedease': make_fedease,
    'sequential': make_sequential,
    'pfedrec': make_pfedrec,
    'gpfedrec': make_gpfedrec,
    'fedrap': make_fedrap,
    'fedrecon': make_fedrecon,
    'ditto': make_ditto,
    'fedper': make_fedper,
    'fedrep': make_fedrep,
    'apfl': make_apfl,
    'reptile': make_reptile,
    'fomaml': make_fomaml,
    'perfedavg': make_perfedavg,
    'metamf': make_metamf,
    'fedpergnn': make_fedpergnn,
    'cofedrec': make_cofedrec,
}


def build_algorithm(
    config: Config, recommender: Recommender, num_items: int, **server: Any
) -> Algorithm:
  """Returns the algorithm that `config.algorithm.name` names.

  Args:
    config: The whole config.
    recommender: The model.
    num_items: Items in the catalogue.
    **server: server_transform and expected_cohort, see `make_server`.

  Raises:
    ValueError: For client.item_optimizer where no client would read it; the
      others of plain steps refuse it themselves.
  """
  if config.client.item_optimizer and config.algorithm.name in FACTORISATIONS:
    raise ValueError(
        f'client.item_optimizer={config.client.item_optimizer} with '
        f'algorithm.name={config.algorithm.name}, whose clients take no '
        'gradient steps on item rows; leave it empty, or use '
        'algorithm.name=fedavg.')
  return ALGORITHMS[config.algorithm.name](
      config, recommender, num_items, **server)
