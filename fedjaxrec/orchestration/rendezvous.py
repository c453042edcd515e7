"""How processes find each other, before JAX is asked to join them.

JAX ends a process that waits in vain from C++, without an exception. So the
processes meet here first, by plain sockets at the coordinator's address: the
first one counts who came, and a process that is missing has a number.
"""

import contextlib
import json
import socket
import time
from typing import Any

_RETRY_S = 0.2
_MAX_MESSAGE = 4096


def split_address(address: str) -> tuple[str, int]:
  """Splits host:port; the host of an IPv6 address stands in brackets."""
  host, _, port = address.rpartition(':')
  return host.removeprefix('[').removesuffix(']'), int(port)


def meet(
    address: str, num_processes: int, process_id: int, timeout_s: float
) -> None:
  """Returns when all processes have come; the port is free again then.

  Args:
    address: host:port of process 0, as all processes see it.
    num_processes: How many come.
    process_id: This one's number, from 0.
    timeout_s: Seconds to wait for the others.

  Raises:
    ValueError: If somebody does not come in time, comes twice, or was told
      another number of processes; in every process that can be reached.
  """
  deadline = time.monotonic() + timeout_s
  if process_id == 0:
    _receive_all(address, num_processes, timeout_s, deadline)
  else:
    _report(address, num_processes, process_id, timeout_s, deadline)


def _receive_all(
    address: str, num_processes: int, timeout_s: float, deadline: float
) -> None:
  """Process 0: waits for the others and tells them how it went."""
  present: dict[int, socket.socket] = {}
  error = None
  with contextlib.ExitStack() as stack:
    server = stack.enter_context(_listen(address))
    while error is None and len(present) < num_processes - 1:
      server.settimeout(max(deadline - time.monotonic(), 0.001))
      try:
        connection = stack.enter_context(server.accept()[0])
      except TimeoutError:
        missing = sorted(set(range(1, num_processes)) - set(present))
        error = (
            f'parallel.coordinator={address}: {len(present) + 1} of parallel.'
            f'num_processes={num_processes} processes joined within parallel.'
            f'join_timeout_s={timeout_s:g}; missing: parallel.process_id='
            f'{", ".join(map(str, missing))}. Check that they were started, '
            'that their hosts reach this address (names, firewall), and that '
            'all were given the same coordinator.')
        break
      hello = _read(connection, min(5.0, deadline - time.monotonic()))
      if hello is None:  # Not one of ours, or one that went away.
        continue
      # One that was started again comes a second time.
      present = {i: c for i, c in present.items() if not _is_gone(c)}
      error = _refusal(hello, num_processes, present)
      if error:
        _write(connection, {'error': error})
      else:
        present[hello['process_id']] = connection
    for connection in present.values():
      _write(connection, {'error': error})
  if error:
    raise ValueError(error)


def _refusal(
    hello: dict[str, Any], num_processes: int, present: dict[int, Any]
) -> str | None:
  """Why a process that came cannot be one of the run, if so."""
  process_id, theirs = hello['process_id'], hello['num_processes']
  if theirs != num_processes:
    return (f'parallel.num_processes={theirs} in process {process_id}, and '
            f'{num_processes} in process 0: give all processes the same.')
  if process_id in present or not 0 < process_id < num_processes:
    return (f'parallel.process_id={process_id} came twice or is out of range: '
            f'number the processes 0 to {num_processes - 1}.')
  return None


def _report(
    address: str, num_processes: int, process_id: int, timeout_s: float,
    deadline: float
) -> None:
  """Process 1, 2, ...: says that it is there and waits for the others."""
  host, port = split_address(address)
  name = f'parallel.coordinator={address}, parallel.process_id={process_id}'
  reason = 'no answer'
  while (left := deadline - time.monotonic()) > 0:
    try:
      connection = socket.create_connection((host, port), timeout=left)
    except OSError as failure:
      reason = failure.strerror or str(failure) or reason
      time.sleep(min(_RETRY_S, max(deadline - time.monotonic(), 0)))
      continue
    with connection:
      _write(connection, {
          'process_id': process_id, 'num_processes': num_processes})
      # Process 0 may have begun to wait later: its word is the last.
      answer = _read(connection, left + timeout_s)
    if answer is None:  # It went away, perhaps to be started again.
      reason = 'the connection was closed'
      time.sleep(min(_RETRY_S, max(deadline - time.monotonic(), 0)))
      continue
    if answer['error']:
      raise ValueError(answer['error'])
    return
  raise ValueError(
      f'{name}: process 0 was not reached within parallel.join_timeout_s='
      f'{timeout_s:g} ({reason}). How many others wait is not known here. '
      'Check that process 0 was started on that host, that this host reaches '
      'it at that name and port (names, firewall), and that no other program '
      'has the port.')


def _listen(address: str) -> socket.socket:
  _, port = split_address(address)
  dual = socket.has_dualstack_ipv6()
  try:
    return socket.create_server(
        ('', port), family=socket.AF_INET6 if dual else socket.AF_INET,
        dualstack_ipv6=dual, backlog=1024)
  except OSError as error:
    raise ValueError(
        f'parallel.coordinator={address}: process 0 cannot listen there '
        f'({error.strerror}); choose a port that is free on its host.'
    ) from error


def _is_gone(connection: socket.socket) -> bool:
  """Whether the other side has closed; nobody sends a second message."""
  connection.settimeout(0)
  try:
    return not connection.recv(1, socket.MSG_PEEK)
  except BlockingIOError:
    return False
  except OSError:
    return True


def _write(connection: socket.socket, message: dict[str, Any]) -> None:
  try:
    connection.sendall(json.dumps(message).encode() + b'\n')
  except OSError:
    pass  # It went away; it will be missed where it matters.


def _read(connection: socket.socket, timeout_s: float) -> dict | None:
  """One message; None where there is none, or none of ours."""
  connection.settimeout(max(timeout_s, 0.001))
  text = b''
  try:
    while not text.endswith(b'\n') and len(text) < _MAX_MESSAGE:
      part = connection.recv(_MAX_MESSAGE)
      if not part:
        return None
      text += part
    message = json.loads(text)
  except (OSError, ValueError):
    return None
  known = isinstance(message, dict) and (
      'error' in message
      or all(type(message.get(name)) is int
             for name in ('process_id', 'num_processes')))
  return message if known else None
