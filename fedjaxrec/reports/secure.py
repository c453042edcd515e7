"""Secure sums in words: what the table and the report say of them."""

from collections.abc import Mapping
from typing import Any


def secure_facts(secure: Mapping[str, Any]) -> dict[str, Any]:
  """What a person wants to know of the section `secure` of summary.json."""
  facts = {
      'Level': f'{secure["level"]}, modulo 2^{secure["bits"]}',
      'Trusted': secure['trusted'],
      'The server learns': secure['server_learns'],
      'Rows that travel': f'{secure["rows_travelling"]:,} '
                          f'({secure["rows"]})',
      'Upload a client, round': f'{secure["uplink_bytes_per_client"]:,.0f} '
                                f'bytes ({secure["bytes"]})',
      'Download a client, round':
          f'{secure["downlink_bytes_per_client"]:,.0f} bytes',
      'In a sum': f'{secure["survivors"]:,.1f} clients in the mean, at least '
                  f'{secure["min_survivors"]:,}; rounds without a sum: '
                  f'{secure["aborted_rounds"]:,}',
      'Noise of the clients': secure['noise'] != 'none' and secure['noise'],
      'Entries cut at': secure['entry_bound'],
      'Neighbours, threshold': secure['num_neighbors'] and (
          f'{secure["num_neighbors"]}, {secure["threshold"] or "none"}'),
      'Refused': secure['rejected'],
      'Processor seconds': secure['measured_rounds'] and (
          f'{secure["client_s"]:.2f} of all clients, {secure["server_s"]:.2f} '
          f'of the servers, in {secure["measured_rounds"]:,} rounds'),
      'Exact': None if secure['exact'] else (
          'no: a decrypted sum was off by more than half an integer'),
  }
  return {name: value for name, value in facts.items() if value}
