"""Carries messages over TCP on the loopback interface, clients in processes.

A frame is its length in four bytes, and its bytes. A connection opens with a
frame that holds the client's id, and belongs to it from then on; that it really
is that client, the signatures show. No TLS: whoever reads along sees what the
server sees.
"""

import contextlib
import multiprocessing
import selectors
import socket
import struct
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fedjaxrec.aggregation.identity import Identity, Registry
from fedjaxrec.aggregation.messages import HEADER_BYTES, STAGES, Stage
from fedjaxrec.aggregation.parameters import RoundParameters
from fedjaxrec.aggregation.protocol_client import ProtocolClient

HOST = '127.0.0.1'
_LENGTH = struct.Struct('<I')
_READ_BYTES = 2**20


class _Connection:
  """One client's socket, and what is on its way."""

  def __init__(self, sock: socket.socket):
    self.socket = sock
    self.client: int | None = None  # Until its first frame.
    self.incoming = bytearray()
    self.outgoing = bytearray()


class TcpTransport:
  """The server's end: waits for its clients, then exchanges with all at once.

  A client that closes its connection is gone; one that sends a frame longer
  than any message is cut off; one that does not answer within `timeout_s` has
  dropped out, and what it sends later is yielded by a later exchange.
  """

  def __init__(self, timeout_s: float, max_frame_bytes: int):
    self.timeout_s = timeout_s
    self._max_frame_bytes = max_frame_bytes
    self._listener = socket.create_server((HOST, 0), backlog=1024)
    self._listener.setblocking(False)
    self.address = self._listener.getsockname()
    self._selector = selectors.DefaultSelector()
    self._selector.register(self._listener, selectors.EVENT_READ, None)
    self._open: set[_Connection] = set()
    self._connections: dict[int, _Connection] = {}
    self._early: list[tuple[int, bytes]] = []  # Came before it was asked.

  def wait_for(self, clients: set[int]) -> set[int]:
    """Accepts connections until these clients are there, or time is up."""
    deadline = time.monotonic() + self.timeout_s
    while not clients <= self._connections.keys():
      if time.monotonic() >= deadline:
        break
      self._early += self._turn(deadline)
    return clients & self._connections.keys()

  def exchange(self, stage, requests):
    """Yields (client, message) as they come, until none is waited for."""
    del stage
    deadline = time.monotonic() + self.timeout_s
    waiting = set()
    for client, request in requests.items():
      connection = self._connections.get(client)
      if connection is not None:
        connection.outgoing += _LENGTH.pack(len(request)) + request
        self._watch(connection)
        waiting.add(client)
    early, self._early = self._early, []
    yield from early
    while waiting and time.monotonic() < deadline:
      for client, message in self._turn(deadline):
        waiting.discard(client)
        yield client, message
      waiting &= self._connections.keys()

  def close(self):
    """Closes everything; a remote client's seconds are not known here: 0."""
    for connection in self._open:
      connection.socket.close()
    self._listener.close()
    self._selector.close()
    return 0.0

  def _watch(self, connection):
    events = selectors.EVENT_READ
    if connection.outgoing:
      events |= selectors.EVENT_WRITE
    self._selector.modify(connection.socket, events, connection)

  def _turn(self, deadline):
    """One look at the sockets; yields the whole frames that came."""
    wait = max(0.0, deadline - time.monotonic())
    for key, events in self._selector.select(wait):
      connection = key.data
      if connection is None:
        sock, _ = self._listener.accept()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(sock)
        self._open.add(connection)
        self._selector.register(sock, selectors.EVENT_READ, connection)
        continue
      try:
        if events & selectors.EVENT_WRITE:
          sent = connection.socket.send(connection.outgoing)
          del connection.outgoing[:sent]
          self._watch(connection)
        if events & selectors.EVENT_READ:
          data = connection.socket.recv(_READ_BYTES)
          if not data:
            raise ConnectionError
          connection.incoming += data
      except BlockingIOError:
        continue
      except OSError:
        self._drop(connection)
        continue
      yield from self._frames(connection)

  def _frames(self, connection):
    while len(connection.incoming) >= _LENGTH.size:
      size, = _LENGTH.unpack_from(connection.incoming)
      if size > self._max_frame_bytes:
        if connection.client is not None:
          yield connection.client, b''  # Read by the server as malformed.
        self._drop(connection)
        return
      if len(connection.incoming) < _LENGTH.size + size:
        return
      frame = bytes(connection.incoming[_LENGTH.size:_LENGTH.size + size])
      del connection.incoming[:_LENGTH.size + size]
      if connection.client is not None:
        yield connection.client, frame
      elif not self._admit(connection, frame):
        return

  def _admit(self, connection, frame):
    client = _LENGTH.unpack(frame)[0] if len(frame) == _LENGTH.size else None
    if client is None or client in self._connections:
      self._drop(connection)
      return False
    connection.client = client
    self._connections[client] = connection
    return True

  def _drop(self, connection):
    self._selector.unregister(connection.socket)
    connection.socket.close()
    self._open.discard(connection)
    client = connection.client
    if client is not None and self._connections.get(client) is connection:
      del self._connections[client]


class ClientJob(NamedTuple):
  """What one process needs to be some of the clients."""
  address: tuple[str, int]
  parameters: RoundParameters
  registry: Registry
  # (id, private key, last round) of each, and its vector.
  clients: list[tuple[tuple[int, bytes, int], np.ndarray]]
  dropouts: dict[int, Stage]
  timeout_s: float


def serve_clients(job: ClientJob, report) -> None:
  """Runs clients, a thread each, until the server closes; reports seconds."""
  seconds = [0.0] * len(job.clients)

  def serve(place):
    key, vector = job.clients[place]
    client = ProtocolClient(
        Identity(*key), job.parameters, job.registry, vector)
    with contextlib.suppress(OSError):
      seconds[place] = run_client(
          client, job.address, job.dropouts.get(client.id), job.timeout_s)

  threads = [threading.Thread(target=serve, args=(place,), daemon=True)
             for place in range(len(job.clients))]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  report.send(sum(seconds))
  report.close()


def run_client(
    client: ProtocolClient, address: tuple[str, int],
    drop_at: Stage | None = None, timeout_s: float = 60.0,
) -> float:
  """Connects a client and answers until the server closes.

  Args:
    client: The client.
    address: Of the server.
    drop_at: The stage whose request it answers by closing the connection.
    timeout_s: How long it waits for a request.

  Returns:
    Processor seconds of the thread.
  """
  begin = time.thread_time()
  with socket.create_connection(address, timeout_s) as sock:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    send_frame(sock, _LENGTH.pack(client.id))
    for stage in range(len(STAGES)):
      request = receive_frame(sock)
      if request is None or stage == drop_at:
        break
      send_frame(sock, client.handle(request))
    else:
      receive_frame(sock)  # The server closes when it has read the last one.
  return time.thread_time() - begin


def send_frame(sock: socket.socket, data: bytes) -> None:
  """Sends one frame."""
  sock.sendall(_LENGTH.pack(len(data)) + data)


def receive_frame(sock: socket.socket) -> bytes | None:
  """Receives one frame; None if the other side has closed."""
  header = _receive_exactly(sock, _LENGTH.size)
  return None if header is None else _receive_exactly(
      sock, _LENGTH.unpack(header)[0])


def _receive_exactly(sock, size):
  parts = []
  while size:
    part = sock.recv(min(size, _READ_BYTES))
    if not part:
      return None
    parts.append(part)
    size -= len(part)
  return b''.join(parts)


class ProcessTransport(TcpTransport):
  """A TCP transport with its clients spread over processes of this machine."""

  def __init__(
      self, identities: Mapping[int, Identity], parameters: RoundParameters,
      registry: Registry, inputs: Mapping[int, np.ndarray],
      dropouts: Mapping[int, Stage], *, num_processes: int = 2,
      timeout_s: float = 60.0,
  ):
    """Starts the processes and waits for the clients' connections."""
    super().__init__(timeout_s, max_message_bytes(parameters))
    context = multiprocessing.get_context('spawn')
    ids = list(inputs)
    self._workers = []
    for place in range(min(num_processes, len(ids))):
      part = ids[place::num_processes]
      job = ClientJob(
          self.address, parameters, registry,
          [((i, identities[i].private_key, identities[i].last_round),
            inputs[i]) for i in part],
          {i: dropouts[i] for i in part if i in dropouts}, timeout_s)
      here, there = context.Pipe(duplex=False)
      process = context.Process(
          target=serve_clients, args=(job, there), daemon=True)
      process.start()
      there.close()
      self._workers.append((process, here))
    self.wait_for(set(ids))

  def close(self):
    """Closes the connections, ends the processes, sums their seconds."""
    super().close()
    seconds = 0.0
    for process, report in self._workers:
      with contextlib.suppress(EOFError, OSError):
        if report.poll(self.timeout_s):
          seconds += report.recv()
      report.close()
      process.join(self.timeout_s)
      if process.is_alive():
        process.kill()
        process.join()
    return seconds


def max_message_bytes(parameters: RoundParameters) -> int:
  """No honest message of a client is longer."""
  return (HEADER_BYTES + 1024 + 256 * len(parameters.cohort)
          + 4 * parameters.dimension)
