"""Small rounds of the secure sum, for the tests of their parts."""

import numpy as np

from fedjaxrec.aggregation import identity, messages, protocol, transport
from fedjaxrec.aggregation.messages import Kind, Stage
from fedjaxrec.aggregation.parameters import RoundParameters
from fedjaxrec.aggregation.protocol_client import ProtocolClient
from fedjaxrec.aggregation.protocol_server import ProtocolServer

REGISTRY, IDENTITIES = identity.enrol_clients(
    range(12), np.random.default_rng(0).bytes)


def draw_inputs(n=8, d=20, bits=16, seed=0):
  """Client -> uint32 [d]."""
  generator = np.random.default_rng(seed)
  return {i: generator.integers(0, 2**bits, d, dtype=np.uint64).astype(
      np.uint32) for i in range(n)}


def plain_sum(inputs, survivors, bits):
  """The oracle: in Python integers."""
  return [sum(int(inputs[i][column]) for i in survivors) % 2**bits
          for column in range(len(next(iter(inputs.values()))))]


def secure_sum(inputs, **changes):
  """`run_secure_sum` with small settings and fresh claims on rounds."""
  settings = {
      'bits': 16, 'num_neighbors': 6, 'threshold': 4, 'min_survivors': 3,
      'round_index': 0, 'registry': REGISTRY, 'identities': {
          i: identity.Identity(i, IDENTITIES[i].private_key)
          for i in inputs if i in IDENTITIES}}
  return protocol.run_secure_sum(inputs, **{**settings, **changes})


class SmallRound:
  """A server and its clients, whose every message a test can reach."""

  def __init__(self, n=8, d=20, bits=16, num_neighbors=6, threshold=4,
               min_survivors=3, round_index=0, registry=REGISTRY,
               identities=IDENTITIES, inputs=None, seed=0, dimension=None):
    self.inputs = draw_inputs(n, d, bits) if inputs is None else inputs
    # Fresh claims on round numbers: the shared identities stay unused.
    self.identities = {i: identity.Identity(i, identities[i].private_key)
                       for i in self.inputs}
    self.parameters = RoundParameters(
        cohort=tuple(self.inputs), round_index=round_index, bits=bits,
        dimension=dimension or d, num_neighbors=num_neighbors,
        threshold=threshold, min_survivors=min_survivors,
        registry_digest=registry.digest())
    entropy = np.random.default_rng(seed).bytes
    self.clients = {
        i: ProtocolClient(self.identities[i], self.parameters, registry,
                          vector, entropy)
        for i, vector in self.inputs.items()}
    self.server = ProtocolServer(self.parameters, registry, entropy)

  def run(self, tamper=None, dropouts=None):
    """Plays to the end."""
    return protocol.run_round(self.server, transport.InProcessTransport(
        self.clients, transport.check_dropouts(dropouts or {}), tamper))

  def play_until(self, stage):
    """Plays honestly; returns the requests of `stage`, not yet delivered."""
    requests = self.server.begin(Stage.ADVERTISE)
    for done in range(stage):
      for client, request in requests.items():
        assert self.server.receive(
            client, self.clients[client].handle(request)) is None
      requests = self.server.begin(Stage(done + 1))
    return requests

  def write(self, client, kind, payload):
    """A message with other contents and the client's right signature."""
    return messages.encode(
        kind, self.parameters.round_index, client, payload,
        self.identities[client].sign, self.clients[client]._session)

  def plain_sum(self, survivors):
    """The oracle."""
    return plain_sum(self.inputs, survivors, self.parameters.bits)


def request(round_, kind, payload, round_index=None, sender=messages.SERVER):
  """A request as a server would write it."""
  if round_index is None:
    round_index = round_.parameters.round_index
  return messages.encode(kind, round_index, sender, payload)


def read_reason(answer):
  """Why a client left, or None if it answered."""
  message = messages.decode(answer, signed=True)
  if message.kind is not Kind.ABORT:
    return None
  return messages.decode_reason(message.payload)
