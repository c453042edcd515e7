"""What every benchmark shares: the work, the clock and the printed rows.

Imports the engine alone (JAX, Flax, Optax, NumPy, absl), so that a benchmark
runs on a machine that has nothing else.
"""

import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

HUGE_PAGES = 'glibc.malloc.hugetlb=1'


def describe_machine() -> dict[str, Any]:
  """Processor, cores, devices, versions, date: the conditions of a figure."""
  processor = platform.processor() or platform.machine()
  try:
    with open('/proc/cpuinfo', encoding='ascii', errors='replace') as file:
      processor = next(
          line.split(':', 1)[1].strip() for line in file
          if line.startswith('model name'))
  except (OSError, StopIteration):
    pass
  device = jax.devices()[0]
  return {
      'processor': processor, 'cores': os.cpu_count(),
      'device': f'{len(jax.devices())} x {device.device_kind}',
      'python': platform.python_version(), 'jax': jax.__version__,
      'date': datetime.date.today().isoformat()}


def use_huge_pages() -> None:
  """Starts this program anew with memory in huge pages, if it has not them.

  The C library reads the variable when a process starts: transparent huge pages
  for large arrays, where the system has them on request (`madvise`). Then a
  row of a large table is found by fewer steps through the page tables.
  """
  if HUGE_PAGES not in os.environ.get('GLIBC_TUNABLES', ''):
    tunables = os.environ.get('GLIBC_TUNABLES')
    os.environ['GLIBC_TUNABLES'] = ':'.join(
        filter(None, [tunables, HUGE_PAGES]))
    os.execv(sys.executable, [sys.executable, *sys.argv])


def print_row(**row: Any) -> dict[str, Any]:
  """Prints one row as one JSON object on one line, and returns it."""
  plain = {
      key: float(f'{value:.6g}') if isinstance(
          value, (float, np.floating)) else value
      for key, value in row.items()}
  print(json.dumps(plain), flush=True)
  return plain


def print_table(rows: Sequence[dict[str, Any]]) -> None:
  """Prints rows as a table for a person, below the JSON lines."""
  if not rows:
    return
  columns = list(dict.fromkeys(key for row in rows for key in row))
  cells = [columns] + [
      [_cell(row.get(column)) for column in columns] for row in rows]
  widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
  print()
  for line in cells:
    print('  '.join(cell.rjust(width) for cell, width in zip(
        line, widths, strict=True)))


def _cell(value: Any) -> str:
  if value is None:
    return ''
  return f'{value:.4g}' if isinstance(value, float) else str(value)


def measure(
    variants: dict[str, Callable[[], Any]], repeats: int
) -> dict[str, dict[str, float]]:
  """Times calls side by side: every repeat runs each variant once.

  Args:
    variants: Name -> call; the call returns arrays, which are waited for. The
      first call of each is counted apart: it compiles.
    repeats: Timed calls of each.

  Returns:
    Name -> {first_s, median_s, min_s, max_s}: wall-clock seconds.
  """
  def once(call):
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin

  first = {name: once(call) for name, call in variants.items()}
  times: dict[str, list[float]] = {name: [] for name in variants}
  for _ in range(repeats):
    for name, call in variants.items():
      times[name].append(once(call))
  return {
      name: {'first_s': first[name], 'median_s': statistics.median(ts),
             'min_s': min(ts), 'max_s': max(ts)}
      for name, ts in times.items()}


def make_population(
    num_clients: int, history: int, num_items: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Clients with equally many distinct, sorted, spread items and ratings.

  Returns:
    offsets int64 [num_clients + 1], items int32, labels float32.
  """
  rng = np.random.default_rng(seed)
  stride = num_items // history
  if not stride:
    raise ValueError(
        f'history={history} is above items={num_items}; a client has an item '
        'once.')
  # One item of each of `history` equal stretches: distinct without a check.
  items = np.empty((num_clients, history), np.int32)
  step = max(1, 10**8 // history)
  for start in range(0, num_clients, step):
    part = items[start:start + step]
    part[:] = rng.integers(0, stride, part.shape, np.int32)
    part += np.arange(history, dtype=np.int32) * stride
  offsets = np.arange(num_clients + 1, dtype=np.int64) * history
  labels = rng.integers(1, 6, num_clients * history, np.int8)
  return offsets, items.reshape(-1), labels.astype(np.float32)


def make_long_tailed_population(
    counts: np.ndarray | None = None, num_items: int = 1682
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Clients of very different sizes, with uniform items and ratings of 1.

  Args:
    counts: int [num_clients]: their sizes; None: log-normal, like ML-100K.
    num_items: Items in the catalogue.

  Returns:
    offsets int64 [num_clients + 1], items int32, labels float32.
  """
  rng = np.random.default_rng(0)
  if counts is None:
    counts = np.clip(np.exp(rng.normal(4.16, 1.0, 943)), 18, 735).astype(int)
  items = np.concatenate(
      [np.sort(rng.choice(num_items, n, replace=False)) for n in counts])
  offsets = np.concatenate([[0], np.cumsum(counts)])
  return offsets, items.astype(np.int32), np.ones(len(items), np.float32)
