"""Carries messages between the server and clients of this process.

A transport brings each client its request and yields what comes back. What is
not answered in its time is not there; nobody is waited for.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from fedjaxrec.aggregation.messages import STAGES, Stage
from fedjaxrec.aggregation.protocol_client import ProtocolClient

# (stage, client, its answer) -> what the server gets instead: for drills.
Tamper = Callable[[Stage, int, bytes], Iterable[bytes]]


class Transport(Protocol):
  """What the round needs of a way to its clients."""

  def exchange(
      self, stage: Stage, requests: Mapping[int, bytes]
  ) -> Iterator[tuple[int, bytes]]:
    """Sends each client its request; yields (client, message) as they come."""

  def close(self) -> float:
    """Lets the clients go; returns their processor seconds, together."""


def check_dropouts(
    dropouts: Mapping[str, Iterable[int]]
) -> dict[int, Stage]:
  """Reads stage -> clients that fall silent in it, as client -> first stage.

  Raises:
    ValueError: If a stage has no such name.
  """
  first: dict[int, Stage] = {}
  for label, clients in dropouts.items():
    if label not in STAGES:
      raise ValueError(
          f'dropouts: stage={label!r} is not known; choose of '
          f'{", ".join(STAGES)}.')
    stage = Stage(STAGES.index(label))
    for client in clients:
      first[client] = min(stage, first.get(client, stage))
  return first


class InProcessTransport:
  """Calls the clients one after the other, on this core."""

  def __init__(
      self, clients: Mapping[int, ProtocolClient],
      dropouts: Mapping[int, Stage] | None = None,
      tamper: Tamper | None = None,
  ):
    self._clients, self._tamper = clients, tamper
    self._dropouts = dropouts or {}
    self._client_s = 0.0

  def exchange(self, stage, requests):
    """Yields the answers in the order of the requests."""
    for client, request in requests.items():
      if self._dropouts.get(client, len(STAGES)) <= stage:
        continue
      begin = time.thread_time()
      answer = self._clients[client].handle(request)
      self._client_s += time.thread_time() - begin
      if self._tamper is None:
        yield client, answer
      else:
        for changed in self._tamper(stage, client, answer):
          yield client, changed

  def close(self):
    """Returns the clients' seconds."""
    return self._client_s
