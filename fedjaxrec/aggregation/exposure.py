"""What a run at each level shows to whom, in words for summary and report."""

LEVELS = {
    'ideal': (
        'Sums modulo 2^bits without cryptography: the server is trusted with '
        'every update. The result is bit for bit that of the levels below.'),
    'masked': (
        'Real masks under keys that the operator of the simulation dealt: an '
        'upload is uniform, and the operator could open each of them.'),
    'protocol': (
        'Pairwise masks with agreed keys and shared secrets. Trusted: the '
        'registry of keys, and that at most a quarter of the clients work with '
        'a server that follows the protocol.'),
    'shares': (
        'Additive shares between servers that follow the protocol; trusted: '
        'that one of them keeps its shares to itself.'),
    'he': (
        'CKKS ciphertexts; trusted: whoever holds the one secret key.'),
}
ROWS = {
    'dense': 'The whole table travels: which rows a client touched stays '
             'hidden.',
    'union': 'The server learns which rows the cohort touched together, not '
             'who did nor how many; of a cohort in which one client touches '
             'rows that nobody else does, those rows.',
    'chosen': 'Only the rows of privacy.head_items travel, the same for '
              'everybody: which of them a client touched stays hidden.',
}
ALWAYS = ('The server learns the sum, who took part and when, and how many '
          'bytes each sent; the sum itself is protected by noise only.')


def what_the_server_learns(level: str, rows: str) -> str:
  """The sentences of a level and of a way to send rows."""
  said = f'{ALWAYS} {ROWS[rows]}'
  return said if level != 'ideal' else (
      'Everything, as nothing is encrypted in this simulation. With '
      f'cryptography around the same sums: {said}')
