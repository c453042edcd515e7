"""How the cohort's updates are summed without being seen one by one."""

import dataclasses

from fedjaxrec.config.rules import at_least, check_types, one_of

LEVELS = ('none', 'ideal', 'masked', 'protocol', 'shares', 'he')
ROW_SECRECY = ('dense', 'union', 'chosen')
DISTRIBUTED_NOISE = ('none', 'skellam', 'discrete_gaussian')
TRANSPORTS = ('in_process', 'tcp')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecureConfig:
  """Secure aggregation: at which level it is simulated, and how.

  Attributes:
    level: none (float sums in the clear), ideal (sums modulo 2^bits, no
      cryptography), masked (real masks, keys dealt by the simulator), protocol
      (pairwise masks with key agreement, secret shares, dropout recovery),
      shares (additive shares between several servers) or he (CKKS).
    bits: The ring has 2^bits elements; 0: 16, or the fewest that the cohort and
      the clip norm need.
    l2_clip_norm: Most that a delta may weigh, which bounds the ring; 0: that
      of the privacy section, or 1.
    rows: How the rows that a client touched stay hidden: dense (the whole table
      travels), union (a secure sum finds the union of the cohort's rows, and
      the table restricted to it travels: the server learns the union) or chosen
      (the rows of privacy.head_items travel and no others).
    noise: Noise that the clients add inside the ring, so that the sum is
      private without a trusted server: none, skellam or discrete_gaussian, with
      the privacy section's noise multiplier.
    dropout: Probability that a client of the cohort falls silent at each stage
      of the protocol after its first message.
    num_neighbors: Neighbours of a client in the protocol's graph; 0: chosen for
      the cohort, a quarter of corrupt clients and the dropout.
    threshold: Shares that recover a secret; 0: chosen with num_neighbors.
    min_survivors: Fewest clients whose sum is opened; 0: half of the cohort.
    num_servers: Servers of level=shares.
    transport: in_process or tcp (loopback) for level=protocol.
  """
  level: str = 'none'
  bits: int = 0
  l2_clip_norm: float = 0.0
  rows: str = 'dense'
  noise: str = 'none'
  dropout: float = 0.0
  num_neighbors: int = 0
  threshold: int = 0
  min_survivors: int = 0
  num_servers: int = 2
  transport: str = 'in_process'

  def __post_init__(self):
    check_types(self, 'secure')
    one_of('secure.level', self.level, LEVELS)
    one_of('secure.rows', self.rows, ROW_SECRECY)
    one_of('secure.noise', self.noise, DISTRIBUTED_NOISE)
    one_of('secure.transport', self.transport, TRANSPORTS)
    if self.bits and not 8 <= self.bits <= 32:
      raise ValueError(
          f'secure.bits={self.bits} must lie in [8, 32], or be 0 for the bits '
          'that the cohort and the clip norm need.')
    at_least('secure.l2_clip_norm', self.l2_clip_norm, 0)
    at_least('secure.num_neighbors', self.num_neighbors, 0)
    at_least('secure.threshold', self.threshold, 0)
    at_least('secure.min_survivors', self.min_survivors, 0)
    at_least('secure.num_servers', self.num_servers, 2)
    if not 0 <= self.dropout < 0.5:
      raise ValueError(
          f'secure.dropout={self.dropout} must lie in [0, 0.5): with more, no '
          'threshold is both safe and reached.')
    if self.level == 'none' and self.noise != 'none':
      raise ValueError(
          f'secure.noise={self.noise} with secure.level=none: the clients add '
          'it inside the ring; use secure.level=ideal, or any other.')
    if self.dropout and self.level not in ('masked', 'protocol', 'shares'):
      raise ValueError(
          f'secure.dropout={self.dropout} with secure.level={self.level}: '
          'clients fall silent within a protocol; use secure.level=protocol, '
          'masked or shares.')

  @property
  def is_on(self) -> bool:
    """Whether updates are summed in the ring."""
    return self.level != 'none'

  @property
  def on_host(self) -> bool:
    """Whether the sum is taken on the host, outside the compiled round."""
    return self.level not in ('none', 'ideal')
