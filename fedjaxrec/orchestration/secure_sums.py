"""Sums the messages of a run's rounds by a protocol, and keeps the account.

For the secure levels whose sums are taken on the host. Keys and masks come
from the operating system; who falls silent is part of the simulation, drawn
from the run's seed, so that a run repeats.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjaxrec.aggregation import protocol, row_union
from fedjaxrec.aggregation.cost import Cost, SumNotRevealed
from fedjaxrec.aggregation.graph import choose_graph, failure_bits
from fedjaxrec.aggregation.identity import Identity, Registry, create_identity
from fedjaxrec.aggregation.messages import STAGES, Reason, Stage
from fedjaxrec.aggregation.parameters import RoundParameters
from fedjaxrec.aggregation.protocol_server import RoundAborted
from fedjaxrec.aggregation.row_union import RowLayout
from fedjaxrec.config import Config
from fedjaxrec.config.secure import SecureConfig
from fedjaxrec.hosted_rounds import HostSum
from fedjaxrec.orchestration.secure_account import RoundAccount

# Keeps the draws of who falls silent apart from the seed's other uses.
_DROPOUT_STREAM = 0xD209
# Clients that may work with the server, which the graph is chosen for.
CORRUPT = 0.25
# Stages at which silence keeps a client's vector out of the sum.
_BEFORE_UPLOAD = Stage.MASKED_INPUT
# CKKS sums stay below this; see `homomorphic.MAX_SUM`.
_HE_ROOM = 2.0**12


class _Outcome(NamedTuple):
  """One secure sum, of any level."""
  total: np.ndarray
  survivors: tuple[int, ...]


class SecureSums:
  """Sums a round's messages; a `SumOnHost` with an account.

  Attributes:
    threshold: Fewest clients whose sum is opened.
    accounts: Round -> its account, until `take` hands it over.
    key_holder: Who could decrypt what, with secure.level=he; empty before the
      first round.
  """

  def __init__(self, config: Config, bits: int, max_message: float,
               cohort: int, layout: RowLayout,
               open_rows: np.ndarray | None = None,
               l2_bound: float | None = None):
    """See `make_sum_on_host`."""
    self._secure: SecureConfig = config.secure
    self._seed, self._bits = config.seed, bits
    self._max_message, self._l2_bound = max_message, l2_bound
    self._layout = layout
    self._open_rows = None if open_rows is None else np.flatnonzero(open_rows)
    self.threshold = config.secure.survivor_threshold(cohort)
    self._registry = Registry()
    self._identities: dict[int, Identity] = {}
    self.accounts: dict[int, RoundAccount] = {}
    self._account = RoundAccount()
    self.key_holder = ''

  def __call__(
      self, messages: dict[int, np.ndarray], round_index: int
  ) -> HostSum:
    """Sums what survives; zeros and nobody where the round is aborted."""
    account = self._account = RoundAccount(asked=len(messages))
    self.accounts[round_index] = account
    nothing = HostSum(np.zeros(self._layout.dimension, np.uint32), 0, ())
    fewest = max(self.threshold, 3 if self._uses_graph else 2)
    if len(messages) < fewest:
      account.aborted = 'too_few_invited'
      return nothing
    silent = draw_dropouts(
        sorted(messages), self._secure.dropout, self._seed, round_index)
    try:
      total, survivors = self._sum_rows(messages, round_index, silent)
    except RoundAborted as error:
      account.aborted = error.reason.value
      account.add(error.cost, error.rejected.values())
      return nothing
    account.survivors = len(survivors)
    return HostSum(total, len(survivors), survivors)

  @property
  def _uses_graph(self) -> bool:
    return self._secure.level in ('masked', 'protocol')

  def take(self, round_index: int) -> dict[str, Any]:
    """Hands over a round's account, as JSON types; it is forgotten here."""
    return self.accounts.pop(round_index).to_json()

  def _sum_rows(self, messages, round_index, silent) -> _Outcome:
    """Sums whole messages, or those of their rows that travel."""
    layout, rows = self._layout, self._open_rows
    if self._secure.rows == 'union':
      before, silent = split_dropouts(silent)
      union = self._sum({
          client: row_union.random_multiples(
              row_union.touched(vector, layout))
          for client, vector in messages.items()},
          row_union.UNION_BITS, 2 * round_index, before, None)
      found = union.total != 0
      self._account.union_rows = int(found.sum())
      rows = row_union.padded_rows(found)
      messages = {client: messages[client] for client in union.survivors}
    if rows is not None:
      messages = {client: row_union.restrict(vector, rows, layout)
                  for client, vector in messages.items()}
    total, survivors = self._sum(
        messages, self._bits, 2 * round_index + 1, silent, self._l2_bound)
    return _Outcome(total if rows is None else row_union.expand(
        total, rows, layout), survivors)

  def _sum(
      self, vectors: Mapping[int, np.ndarray], bits: int, number: int,
      silent: dict[int, Stage], l2_bound: float | None
  ) -> _Outcome:
    """One secure sum at the run's level, into the account."""
    secure = self._secure
    result: Any
    gone = {c for c, stage in silent.items() if stage <= _BEFORE_UPLOAD}
    if secure.level == 'masked':
      graph = choose_for(secure, len(vectors))
      result = protocol.run_masked_sum(
          vectors, bits=bits, num_neighbors=graph[0],
          min_survivors=self.threshold, round_index=number, dropouts=gone)
    elif secure.level == 'protocol':
      result = self._run_protocol(vectors, bits, number, silent)
    elif secure.level == 'shares':
      from fedjaxrec.aggregation.secret_shares import run_shared_sum
      with _as_aborted():
        result = run_shared_sum(
            vectors, bits=bits, num_servers=secure.num_servers,
            l2_bound=l2_bound, dropouts=gone & vectors.keys(),
            min_survivors=self.threshold)
    else:
      with _as_aborted():
        result = self._run_homomorphic(vectors, bits)
    self._account.add(
        Cost(result.uplink_bytes, result.downlink_bytes, result.client_s,
             result.server_s, getattr(result, 'between_bytes', 0),
             getattr(result, 'key_holder_s', 0.0)),
        result.rejected.values())
    return _Outcome(result.sum, tuple(result.survivors))

  def _run_protocol(self, vectors, bits, number, silent):
    for client in vectors.keys() - self._identities.keys():
      identity = self._identities[client] = create_identity(client)
      self._registry.enrol(client, identity.public_key)
    try:
      k, t = choose_for(self._secure, len(vectors))
    except ValueError as error:
      # The cohort differs from round to round: for this one there is no graph.
      raise RoundAborted(
          Reason.TOO_FEW_SURVIVORS, Stage.ADVERTISE, {}, str(error)) from error
    dropouts: dict[str, list[int]] = {label: [] for label in STAGES}
    for client, stage in silent.items():
      dropouts[stage.label].append(client)
    return protocol.run_secure_sum(
        vectors, bits=bits, num_neighbors=k, threshold=t,
        min_survivors=self.threshold, registry=self._registry,
        identities=self._identities, round_index=number, dropouts=dropouts,
        transport=self._secure.transport)

  def _run_homomorphic(self, vectors, bits):
    """Encrypts the signed integers, scaled to fit, and rounds the sum back."""
    from fedjaxrec.aggregation.homomorphic import run_homomorphic_sum
    # A power of two, so that scaling loses nothing.
    room = _HE_ROOM / len(vectors)
    unit = 2.0 ** np.floor(np.log2(room / self._max_message))
    result = run_homomorphic_sum(
        {client: to_signed(vector, bits) * unit
         for client, vector in vectors.items()},
        min_survivors=self.threshold)
    self.key_holder = result.who_can_decrypt
    whole = np.rint(result.sum.astype(np.float64) / unit).astype(np.int64)
    total = (whole & (2**bits - 1)).astype(np.uint32)
    # The simulator may look, which no party could.
    plain = np.zeros_like(total)
    for client in result.survivors:
      plain += vectors[client]
    self._account.exact = np.array_equal(
        total, plain & np.uint32(2**bits - 1))
    return result._replace(sum=total)


def make_sum_on_host(
    config: Config, bits: int, max_message: float, cohort: int,
    layout: RowLayout, open_rows: np.ndarray | None = None,
    l2_bound: float | None = None, max_cohort: int = 0,
) -> SecureSums:
  """Builds the sums of a run, or refuses what could not run.

  Keys are made when a client is first invited and enrolled on the spot; a run
  that is continued in another process makes new ones. In a round the protocol
  uses two of its round numbers: for the union of rows and for the values.

  Formal guarantee: that of the level (SECURITY.md), for the clients' messages
  as the compiled round made them. Aborted rounds leave zeros and nobody.

  Args:
    config: The run's; secure.level is one of masked, protocol, shares, he.
    bits: Of the ring of the values.
    max_message: Largest size of a client's signed integers, noise included.
    cohort: Clients expected in a round.
    layout: Where the rows stand in a message.
    open_rows: bool [num_items]: the only rows that travel, with
      secure.rows=chosen.
    l2_bound: Largest norm of a client's integers, for secure.norm_check.
    max_cohort: Most clients of a round; 0: those that are expected.

  Raises:
    ValueError: For a graph, a threshold or a library that is not to be had, or
      integers too large for the proof of their norm.
  """
  secure, most = config.secure, max_cohort or cohort
  if l2_bound is not None:
    rows = layout.num_items if open_rows is None else int(open_rows.sum())
    _check_proof(bits, l2_bound, layout.size_of(rows), most)
  if secure.level in ('masked', 'protocol'):
    k, t = choose_for(secure, cohort)
    if k % 2 and k < most - 1:
      raise ValueError(
          f'secure.num_neighbors={k} is odd, and a round has up to {most} '
          'clients: on the circle that the graph is drawn from everybody has '
          f'as many neighbours on each side; use an even number, or {most - 1} '
          'for the complete graph.')
    fewest = secure.survivor_threshold(cohort)
    # Refuses by the protocol's own rules.
    RoundParameters(
        cohort=tuple(range(cohort)), round_index=0, bits=bits,
        dimension=layout.dimension, num_neighbors=k, threshold=t,
        min_survivors=fewest, registry_digest=b'')
  if secure.level == 'he':
    from fedjaxrec.aggregation.homomorphic import KeyHolder
    KeyHolder()  # Refuses where the library is absent.
  return SecureSums(
      config, bits, max_message, cohort, layout, open_rows, l2_bound)


def _check_proof(bits: int, l2_bound: float, length: int, most: int) -> None:
  """Refuses a ring with integers too large for the proof of their norm."""
  from fedjaxrec.aggregation.secret_shares import make_statement

  def fits(bound):
    try:
      make_statement(bound, length, most)
    except ValueError:
      return False
    return True

  if fits(l2_bound):
    return
  # A bit less halves the integers, but not what rounding adds to each.
  rounding = 1 + length**0.5
  enough = next((b for b in range(bits - 1, 7, -1) if fits(
      rounding + (l2_bound - rounding) * 2.0**(b - bits))), None)
  raise ValueError(
      f'secure.bits={bits} with secure.norm_check=true: up to {most} clients '
      f'prove norms of up to {l2_bound:.6g} integers over {length} numbers, '
      'and squares and sums must stay below 2^61; use '
      + (f'secure.bits={enough} or fewer, or ' if enough else '')
      + 'secure.norm_check=false.')


def draw_dropouts(
    cohort: list[int], dropout: float, seed: int, round_index: int
) -> dict[int, Stage]:
  """Who falls silent, and at which stage; the first stage is never skipped.

  Args:
    cohort: Client ids, increasing.
    dropout: Probability at each of the stages after the first.
    seed: The run's.
    round_index: The round.
  """
  if not dropout:
    return {}
  generator = np.random.default_rng([seed, _DROPOUT_STREAM, round_index])
  falls = generator.random((len(cohort), len(STAGES) - 1)) < dropout
  return {client: Stage(1 + int(row.argmax()))
          for client, row in zip(cohort, falls) if row.any()}


def split_dropouts(
    silent: dict[int, Stage]
) -> tuple[dict[int, Stage], dict[int, Stage]]:
  """Who is gone before the union is found, and who only leaves later."""
  before = {c: s for c, s in silent.items() if s <= _BEFORE_UPLOAD}
  return before, {c: s for c, s in silent.items() if c not in before}


@functools.lru_cache(maxsize=64)
def choose_for(secure: SecureConfig, cohort: int) -> tuple[int, int]:
  """The graph's degree and the threshold for a cohort.

  As asked for, or the smallest that hides a client, but for a chance of 2^-40,
  from a server that follows the protocol and a quarter of the clients, and that
  the dropouts of all stages together do not stop.

  Raises:
    ValueError: If no graph does.
  """
  # Masks that are dealt are taken off whoever leaves.
  gone = 0.0 if secure.level == 'masked' else (
      1 - (1 - secure.dropout) ** (len(STAGES) - 1))
  complete = cohort - 1
  if not secure.num_neighbors:
    # With room for a round in which more leave than on average, if there is.
    spread = 2 * (gone * (1 - gone) / cohort) ** 0.5
    found = None
    with contextlib.suppress(ValueError):
      found = choose_graph(
          cohort, CORRUPT, gone + spread, correctness_bits=20,
          active_server=False)
    try:
      found = found or choose_graph(
          cohort, CORRUPT, gone, correctness_bits=20, active_server=False)
    except ValueError as error:
      raise ValueError(
          f'secure.dropout={secure.dropout} with a cohort of {cohort}: {error} '
          'Or give secure.num_neighbors and secure.threshold yourself, and '
          'fewer guarantees.') from error
    return found.num_neighbors, found.threshold
  k = secure.num_neighbors
  degree = min(k, complete)
  if secure.threshold:
    return k, min(secure.threshold, degree)
  return k, max(range(degree // 2 + 1, degree + 1), key=lambda t: min(
      failure_bits(cohort, k, t, CORRUPT, gone, active_server=False)))


def graph_bits(secure: SecureConfig, cohort: int) -> float:
  """Minus the binary logarithm of the chance that the graph hides somebody not.

  From a server that follows the protocol and a quarter of the clients.
  """
  k, t = choose_for(secure, cohort)
  return float(failure_bits(
      cohort, k, t, CORRUPT, 0.0, active_server=False)[0])


def to_signed(vector: np.ndarray, bits: int) -> np.ndarray:
  """Ring elements as integers around zero: int64 [d]."""
  signed = vector.astype(np.int64)
  return np.where(signed >> (bits - 1), signed - 2**bits, signed)


@contextlib.contextmanager
def _as_aborted() -> Iterator[None]:
  """A sum that is not revealed is a round without one."""
  try:
    yield
  except SumNotRevealed as error:
    raise RoundAborted(
        Reason.TOO_FEW_SURVIVORS, Stage.MASKED_INPUT, error.rejected,
        str(error), error.cost) from error
