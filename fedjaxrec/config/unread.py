"""Settings that a run would not read, refused rather than passed over."""

from typing import Any

from fedjaxrec.config.algorithms import LOOK_AT_EACH

# Whose settings are the section meta.
_META = ('reptile', 'fomaml', 'perfedavg')


def check_unread(config: Any) -> None:
  """Refuses settings without an effect on the algorithm that was chosen.

  Args:
    config: The whole config.

  Raises:
    ValueError: With the way out.
  """
  name = config.algorithm.name
  if name in LOOK_AT_EACH and config.cohort.weighting != 'equal':
    raise ValueError(
        f'cohort.weighting={config.cohort.weighting} with algorithm.name='
        f"{name}: its server makes plain means of the clients' tables; use "
        'cohort.weighting=equal, or algorithm.name=pfedrec.')
  if name in _META:
    _check_meta(config.meta, name)


def _check_meta(meta: Any, name: str) -> None:
  if meta.epochs != 1 and name != 'fomaml':
    raise ValueError(
        f'meta.epochs={meta.epochs} with algorithm.name={name}: only fomaml '
        'adapts by passes in a round; use 1 (client.epochs are the passes of '
        'what is uploaded), or algorithm.name=fomaml.')
  if meta.hessian and name != 'perfedavg':
    raise ValueError(
        f'meta.hessian={meta.hessian} with algorithm.name={name}, which drops '
        'the second order; use false, or algorithm.name=perfedavg.')
