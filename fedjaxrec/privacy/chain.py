"""Lines of JSON, each with the hash of the line before it."""

import hashlib
import json
from typing import Any

GENESIS = '0' * 64


def canonical(value: Any) -> bytes:
  """Returns JSON types as the one byte string that stands for them."""
  return json.dumps(value, sort_keys=True, separators=(',', ':'),
                    allow_nan=False, ensure_ascii=True).encode()


def seal(body: dict[str, Any], previous: str) -> tuple[bytes, str]:
  """Returns the line of a body, with its end, and the line's digest.

  Args:
    body: JSON types; `previous` and `hash` are added.
    previous: Digest of the line before; GENESIS for the first.
  """
  body = {**body, 'previous': previous}
  digest = hashlib.sha256(canonical(body)).hexdigest()
  return canonical({**body, 'hash': digest}) + b'\n', digest


def unseal(line: bytes, previous: str) -> tuple[dict[str, Any], str]:
  """Returns the body of a line and the line's digest, or refuses it.

  Raises:
    ValueError: If the line does not have its digest, or follows another line.
  """
  try:
    body = json.loads(line)
    digest = body.pop('hash')
    matches = hashlib.sha256(canonical(body)).hexdigest() == digest
  except (ValueError, KeyError, AttributeError, TypeError):
    matches = False
  if not matches:
    raise ValueError('edited or damaged, the line does not have its hash.')
  if body.get('previous') != previous:
    raise ValueError('the line before it is missing, moved or replaced.')
  return body, digest
