"""Tests of fedjaxrec.aggregation.tcp: clients in processes, over sockets."""

import socket
import struct
import threading
import time

import pytest

from fedjaxrec.aggregation import protocol, tcp
from fedjaxrec.aggregation.messages import Reason, Stage
from tests.secure_rounds import (
  SmallRound,
  draw_inputs,
  plain_sum,
  secure_sum,
)


def test_processes_over_tcp_give_the_sum_and_the_bytes_of_one_process():
  inputs = draw_inputs(d=5000)
  dropouts = {'share_keys': [1], 'masked_input': [2], 'unmask': [4]}
  here, there = (
      secure_sum(inputs, dropouts=dropouts, threshold=4, num_neighbors=8,
                 transport=transport, timeout_s=20, min_survivors=4)
      for transport in ('in_process', 'tcp'))
  assert there.sum.tolist() == here.sum.tolist() == plain_sum(
      inputs, [0, 3, 4, 5, 6, 7], 16)
  assert there.survivors == here.survivors
  assert there.uplink_bytes == here.uplink_bytes
  assert there.downlink_bytes == here.downlink_bytes
  assert there.rejected == here.rejected == {}
  assert there.client_s > 0


class Sockets:
  """A round over TCP whose clients are threads, and some strangers."""

  def __init__(self, small, timeout_s=0.5):
    self.small = small
    self.transport = tcp.TcpTransport(
        timeout_s, tcp.max_message_bytes(small.parameters))
    self.threads = []

  def start(self, clients):
    for client in clients:
      thread = threading.Thread(
          target=tcp.run_client,
          args=(self.small.clients[client], self.transport.address))
      thread.start()
      self.threads.append(thread)

  def connect(self, client):
    sock = socket.create_connection(self.transport.address, 5)
    tcp.send_frame(sock, struct.pack('<I', client))
    return sock

  def run(self):
    self.transport.wait_for(set(self.small.clients))
    result = protocol.run_round(self.small.server, self.transport)
    for thread in self.threads:
      thread.join()
    return result


def test_a_client_that_never_answers_is_not_waited_for_twice():
  sockets = Sockets(SmallRound())
  sockets.start(range(7))
  silent = sockets.connect(7)
  begin = time.monotonic()
  result = sockets.run()
  assert time.monotonic() - begin < 5 * sockets.transport.timeout_s
  assert result.survivors == tuple(range(7))
  assert result.sum.tolist() == sockets.small.plain_sum(range(7))
  silent.close()


def test_a_frame_longer_than_any_message_cuts_its_client_off():
  sockets = Sockets(SmallRound())
  sockets.start(range(7))
  flood = sockets.connect(7)
  flood.sendall(struct.pack('<I', 2**31))
  result = sockets.run()
  assert result.rejected == {7: Reason.MALFORMED}
  assert result.survivors == tuple(range(7))
  flood.close()


def test_noise_from_a_connection_is_refused_and_a_late_message_too():
  small = SmallRound()
  sockets = Sockets(small)
  sockets.start(range(5))
  silent, noisy, late = (sockets.connect(client) for client in (5, 6, 7))
  tcp.send_frame(noisy, b'?' * 40)
  def answer():
    # Client 5 answers once, and holds the next stage open until time is up;
    # in that stage client 7's first answer comes.
    tcp.send_frame(silent, small.clients[5].handle(tcp.receive_frame(silent)))
    request = tcp.receive_frame(late)
    tcp.receive_frame(silent)
    tcp.send_frame(late, small.clients[7].handle(request))
  thread = threading.Thread(target=answer)
  thread.start()
  result = sockets.run()
  thread.join()
  assert result.rejected == {6: Reason.MALFORMED, 7: Reason.LATE}
  assert result.survivors == tuple(range(5))
  assert result.sum.tolist() == small.plain_sum(range(5))
  for sock in (silent, noisy, late):
    sock.close()


def test_a_client_id_belongs_to_the_first_that_connects():
  sockets = Sockets(SmallRound())
  sockets.start([0])
  assert sockets.transport.wait_for({0}) == {0}
  second = sockets.connect(0)
  sockets.start(range(1, 8))
  result = sockets.run()
  assert result.survivors == tuple(range(8))
  assert second.recv(1) == b''  # Closed by the server.
  second.close()


@pytest.mark.parametrize('first', [b'', b'abcde'])
def test_a_connection_without_an_id_is_closed(first):
  sockets = Sockets(SmallRound(), timeout_s=0.3)
  stranger = socket.create_connection(sockets.transport.address, 5)
  tcp.send_frame(stranger, first)
  assert sockets.transport.wait_for({0}) == set()
  assert stranger.recv(1) == b''
  stranger.close()
  sockets.transport.close()


def test_whoever_is_not_connected_is_not_waited_for():
  sockets = Sockets(SmallRound(), timeout_s=5)
  begin = time.monotonic()
  assert not list(sockets.transport.exchange(Stage.ADVERTISE, {3: b'x'}))
  assert time.monotonic() - begin < 1
  sockets.transport.close()
