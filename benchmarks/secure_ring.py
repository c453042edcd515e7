r"""What does the ring of a secure sum cost inside the compiled round?

Plain float sums, clipped float sums and clipped sums modulo 2^16, side by side
in one run, in two kinds of local work: `mf` (one epoch of SGD on 40 explicit
ratings in two steps, 16 dimensions: the lightest work that the speed benchmarks
have, and so the hardest bar) and `negatives` (implicit feedback with 4
negatives for each of 106 interactions, 32 dimensions, ML-100K's catalogue).

The bar, at most 1.3, is on `against_plain`: the ring round over the round that
neither clips nor encodes. `against_clipped` has the same clipping on both
sides: what the ring alone costs.

  python benchmarks/secure_ring.py
  python benchmarks/secure_ring.py --cohort=1000 --repeats=9 --works=negatives
"""

import dataclasses

import harness
from absl import app, flags
from mf_work import make_mf_config, make_rounds_call

from fedjaxrec.config import Config, PrivacyConfig
from fedjaxrec.config.secure import SecureConfig
from fedjaxrec.simulation import make_simulation

_WORKS = flags.DEFINE_list('works', ['mf', 'negatives'], 'Kinds of local work.')
_COHORT = flags.DEFINE_integer('cohort', 1000, 'Clients a round.')
_BITS = flags.DEFINE_integer('bits', 16, 'The ring is modulo 2^bits.')
_CLIP = flags.DEFINE_float('clip_norm', 1.0, 'Clip norm.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Rounds of a timed call.')
_REPEATS = flags.DEFINE_integer('repeats', 7, 'Timed calls of each.')
_BLOCK = flags.DEFINE_integer('block', 0, 'Clients trained at once; 0: auto.')


def make_work(name: str) -> tuple[Config, tuple, int]:
  """A kind of local work: config, population and items."""
  if name == 'mf':
    config = make_mf_config(
        dim=16, batch=20, cohort=_COHORT.value, block=_BLOCK.value)
    return config, harness.make_population(2 * _COHORT.value, 40, 1000), 1000
  if name == 'negatives':
    config = make_mf_config(
        dim=32, batch=51, cohort=_COHORT.value, block=_BLOCK.value,
        num_negatives=4)
    return config, harness.make_population(
        2 * _COHORT.value, 106, 1682), 1682
  raise ValueError(
      f'works={name} is not known; choose of mf, negatives.')


def main(_):
  """One row a kind of work and a kind of sum."""
  harness.print_row(machine=harness.describe_machine())
  clips = PrivacyConfig(l2_clip_norm=_CLIP.value)
  ring = SecureConfig(level='ideal', bits=_BITS.value)
  rows = []
  for work in _WORKS.value:
    config, population, num_items = make_work(work)
    variants = {
        'plain': config,
        'clipped': dataclasses.replace(config, privacy=clips),
        'ring': dataclasses.replace(config, privacy=clips, secure=ring)}
    times = harness.measure({
        name: make_rounds_call(
            make_simulation(variant, *population, num_items), _ROUNDS.value)
        for name, variant in variants.items()}, _REPEATS.value)
    for name, found in times.items():
      rows.append(harness.print_row(
          work=work, sum=name, cohort=_COHORT.value, bits=_BITS.value,
          compile_s=found['first_s'],
          round_s=found['median_s'] / _ROUNDS.value,
          min_round_s=found['min_s'] / _ROUNDS.value,
          against_plain=found['min_s'] / times['plain']['min_s'],
          against_clipped=found['min_s'] / times['clipped']['min_s']))
  harness.print_table(rows)


if __name__ == '__main__':
  app.run(main)
