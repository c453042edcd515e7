"""What a secure sum has cost by the time it ends, with a sum or without one."""

from typing import NamedTuple

# Stage -> client -> bytes.
Traffic = dict[str, dict[int, int]]


class Cost(NamedTuple):
  """What was really sent and computed.

  Attributes:
    uplink_bytes: From the clients.
    downlink_bytes: To the clients.
    client_s: Processor seconds of all clients together.
    server_s: Processor seconds of the servers.
    between_bytes: Bytes between servers.
    key_holder_s: Processor seconds of whoever else holds a key.
  """
  uplink_bytes: Traffic
  downlink_bytes: Traffic
  client_s: float
  server_s: float
  between_bytes: int = 0
  key_holder_s: float = 0.0


NOTHING = Cost({}, {}, 0.0, 0.0)


class SumNotRevealed(ValueError):
  """Too few clients are left, so that their sum stays closed.

  Attributes:
    rejected: Client -> why it was refused.
    cost: What it took to come so far.
  """

  def __init__(self, message: str, rejected: dict[int, str], cost: Cost):
    super().__init__(message)
    self.rejected, self.cost = dict(rejected), cost
