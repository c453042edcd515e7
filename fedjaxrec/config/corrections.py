"""What corrects for clients that differ, and what it cannot be combined with.

`client.control_variates` is SCAFFOLD, `cohort.normalization=local_steps` is
FedNova.
"""

from typing import Any

NORMALIZATIONS = ('none', 'local_steps')
# Whose clients take local steps, and upload what they made of the server's.
_STEPPING = ('fedavg', 'fedper')
# All of whose parameters are trained.
_FREE_MODELS = ('mf', 'gmf', 'mlp', 'neumf', 'pfedrec')


def sections_on(config: Any) -> tuple[str, ...]:
  """The sections that change what a client sends, or what it is sent.

  Args:
    config: The whole config.

  Returns:
    Those of privacy, compression (rounded downloads too), local_privacy and
    secure that are on, in this order.
  """
  compression = config.compression
  is_on = {
      'privacy': config.privacy.clips,  # There is no noise without a bound.
      'compression': compression.is_on or compression.downlink_bits > 0,
      'local_privacy': config.local_privacy.is_on,
      'secure': config.secure.is_on}
  return tuple(section for section, on in is_on.items() if on)


def check_corrections(config: Any) -> None:
  """Refuses SCAFFOLD and FedNova where their mathematics does not hold.

  Args:
    config: The whole config.

  Raises:
    ValueError: With the way out.
  """
  if config.client.control_variates:
    _check_control_variates(config)
  if config.cohort.normalization != 'none':
    _check_normalization(config)


def _check_control_variates(config: Any) -> None:
  client = config.client
  what = 'client.control_variates=true (SCAFFOLD)'
  if config.algorithm.name == 'fedrecon':
    raise ValueError(
        f'{what} with algorithm.name=fedrecon, whose population is stateless: '
        'a control variate is what a client keeps from round to round; use '
        'client.control_variates=false, or algorithm.name=fedavg.')
  _check_algorithm(config, what, 'client.control_variates=false')
  if config.model.name not in _FREE_MODELS:
    raise ValueError(
        f'{what} with model.name={config.model.name}, parts of which may be '
        'fixed, and would be moved by a correction; use model.name='
        f'{" or ".join(_FREE_MODELS)}.')
  for field in ('optimizer', 'item_optimizer'):
    value = getattr(client, field)
    if value not in ('sgd', ''):
      raise ValueError(
          f'{what} with client.{field}={value}: what its steps add up to is no '
          'sum of gradients, so that no control variate can be had of it; use '
          f'client.{field}=sgd, or server.optimizer={value}.')
  if client.proximal_mu:
    raise ValueError(
        f'{what} with client.proximal_mu={client.proximal_mu}: the pull would '
        'pass for a gradient of the client, and be corrected away; use one of '
        'the two.')
  if config.cohort.weighting != 'equal':
    raise ValueError(
        f'{what} with cohort.weighting={config.cohort.weighting}: the control '
        'variates are a mean over clients; use cohort.weighting=equal.')
  if config.cohort.normalization != 'none':
    raise ValueError(
        f'{what} with cohort.normalization={config.cohort.normalization}: a '
        'control variate is of steps that were taken, not of normalised ones; '
        'use one of the two.')
  if config.personalization.finetune_steps:
    raise ValueError(
        f'{what} with personalization.finetune_steps='
        f'{config.personalization.finetune_steps}: fine-tuning has no control '
        'variates to go on with; use 0, or client.control_variates=false.')
  _check_chain(
      config, what, 'its clients upload the change of their control variates '
      'beside their deltas, which no clip norm, code or budget is made for; '
      'use client.control_variates=false, or client.proximal_mu against drift')


def _check_normalization(config: Any) -> None:
  client = config.client
  what = f'cohort.normalization={config.cohort.normalization} (FedNova)'
  _check_algorithm(config, what, 'cohort.normalization=none')
  if client.steps:
    raise ValueError(
        f'{what} with client.steps={client.steps}: all clients take as many '
        'steps, so that there is nothing to normalise; use '
        'cohort.normalization=none, which is the same, or client.steps=0.')
  names = {
      'optimizer': client.optimizer,
      'item_optimizer': client.item_optimizer or client.optimizer}
  for field, value in names.items():
    if value not in ('sgd', 'momentum'):
      raise ValueError(
          f'{what} with client.{field}={value}: its delta is no sum of '
          'gradients with known coefficients, by which it could be divided; '
          f'use client.{field}=sgd or momentum, or as many steps of every '
          'client by client.steps and cohort.normalization=none.')
  if client.proximal_mu and 'momentum' in names.values():
    raise ValueError(
        f'{what} with client.proximal_mu={client.proximal_mu} and momentum: '
        'the coefficients of the two together are not worked out; use one of '
        'them.')
  rate = max(client.learning_rate, client.item_learning_rate)
  if client.proximal_mu * rate >= 1:
    raise ValueError(
        f'{what} with client.proximal_mu={client.proximal_mu} and a learning '
        f'rate of {rate}: a step of the pull would pass its aim (mu times rate '
        'must be below 1); lower one of them.')
  _check_chain(
      config, what, 'it divides deltas by what clients report of their steps, '
      'in the clear; use client.steps with cohort.normalization=none: all '
      'clients take as many, so that there is nothing to normalise')


def _check_algorithm(config: Any, what: str, off: str) -> None:
  if config.algorithm.name not in _STEPPING:
    raise ValueError(
        f'{what} with algorithm.name={config.algorithm.name}: it corrects the '
        'local steps of plain federated averaging; use '
        f'algorithm.name={" or ".join(_STEPPING)}, or {off}.')


def _check_chain(config: Any, what: str, reason: str) -> None:
  for section in sections_on(config):
    raise ValueError(f'{what} with a section {section} that is on: {reason}.')
