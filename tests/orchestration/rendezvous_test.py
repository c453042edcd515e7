"""Processes meet, or are told why they do not. Here they are threads."""

import contextlib
import socket
import threading
import time

import pytest

from fedjaxrec.orchestration import rendezvous


@pytest.fixture
def address():
  with socket.socket() as probe:
    probe.bind(('', 0))
    return f'localhost:{probe.getsockname()[1]}'


def meet(address, comers, timeout_s=30.0, pause_s=0.0):
  """What each of the (process_id, num_processes) is told; None for nothing."""
  told = [None] * len(comers)

  def come(place, process_id, num_processes):
    try:
      rendezvous.meet(address, num_processes, process_id, timeout_s)
    except ValueError as error:
      told[place] = str(error)

  threads = [threading.Thread(target=come, args=(place, *comer))
             for place, comer in enumerate(comers)]
  for thread in threads:
    thread.start()
    time.sleep(pause_s)
  for thread in threads:
    thread.join(60)
    assert not thread.is_alive()
  return told


@pytest.mark.parametrize('order', [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_they_meet_whoever_comes_first(address, order):
  assert meet(address, [(i, 3) for i in order], pause_s=0.05) == [None] * 3


def test_one_process_meets_nobody(address):
  assert meet(address, [(0, 1)]) == [None]


def test_the_port_is_free_again_at_once(address):
  for _ in range(2):
    assert meet(address, [(0, 2), (1, 2)]) == [None] * 2


def test_who_is_missing_is_named_to_all_who_came(address):
  told = meet(address, [(0, 4), (2, 4)], timeout_s=0.5)
  assert told[0] == told[1]
  assert (f'parallel.coordinator={address}: 2 of parallel.num_processes=4 '
          'processes joined within parallel.join_timeout_s=0.5; missing: '
          'parallel.process_id=1, 3.') in told[0]
  assert 'firewall' in told[0]


def test_without_process_0_nobody_waits_for_ever(address):
  begin = time.monotonic()
  told, = meet(address, [(1, 2)], timeout_s=0.5)
  assert 0.4 < time.monotonic() - begin < 20
  assert told.startswith(
      f'parallel.coordinator={address}, parallel.process_id=1: process 0 was')
  assert 'join_timeout_s=0.5' in told and 'refused' in told


def test_a_host_that_does_not_exist_is_named():
  told, = meet('no-such-host.invalid:1234', [(1, 2)], timeout_s=0.3)
  assert 'parallel.coordinator=no-such-host.invalid:1234' in told


@pytest.mark.parametrize(('comers', 'message'), [
    ([(0, 3), (1, 3), (1, 3)], 'parallel.process_id=1 came twice'),
    ([(0, 3), (1, 2), (2, 3)], 'parallel.num_processes=2 in process 1, and 3'),
    ([(0, 2), (2, 2)], 'parallel.process_id=2 came twice or is out of range'),
])
def test_contradictions_end_all_at_once(comers, message, address):
  begin = time.monotonic()
  told = meet(address, comers, timeout_s=2.0, pause_s=0.1)
  assert message in told[0]
  assert all(words for words in told[:2])
  assert time.monotonic() - begin < 30


def test_a_port_that_is_taken_is_refused(address):
  port = rendezvous.split_address(address)[1]
  with socket.create_server(('', port)):
    told, = meet(address, [(0, 2)], timeout_s=1.0)
  assert f'parallel.coordinator={address}: process 0 cannot listen' in told


def test_a_process_that_was_started_again_is_one(address):
  """It came, went away and came again, before the last one came."""
  host, port = rendezvous.split_address(address)

  def come_and_go():
    for _ in range(100):
      with contextlib.suppress(OSError):
        with socket.create_connection((host, port), timeout=1) as connection:
          connection.sendall(b'{"process_id": 1, "num_processes": 3}\n')
          time.sleep(0.2)
        return
      time.sleep(0.05)

  visitor = threading.Thread(target=come_and_go)
  visitor.start()
  told = meet(address, [(0, 3), (1, 3), (2, 3)], pause_s=0.5)
  visitor.join()
  assert told == [None] * 3


@pytest.mark.parametrize('words', [
    b'', b'GET / HTTP/1.1\r\n\r\n', b'[]\n', b'{"process_id": "1"}\n',
    b'{"process_id": 1, "num_processes": true}\n', b'\xff' * 9000])
def test_what_is_none_of_ours_is_left_alone(words, address):
  host, port = rendezvous.split_address(address)
  told = []

  def stranger():
    for _ in range(100):
      with contextlib.suppress(OSError):
        with socket.create_connection((host, port), timeout=1) as connection:
          connection.sendall(words)
        return
      time.sleep(0.02)

  first = threading.Thread(
      target=lambda: told.extend(meet(address, [(0, 2)])))
  first.start()
  stranger()
  told.extend(meet(address, [(1, 2)]))
  first.join(60)
  assert told == [None, None]


@pytest.mark.parametrize(('address', 'parts'), [
    ('node1:12355', ('node1', 12355)), ('[::1]:80', ('::1', 80)),
    ('10.0.0.1:1', ('10.0.0.1', 1))])
def test_an_address_is_a_host_and_a_port(address, parts):
  assert rendezvous.split_address(address) == parts
