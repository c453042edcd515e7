"""The publisher's terms, shown when a data set is first used."""

import functools
import sys

MOVIELENS = """\
{name} is published by GroupLens, University of Minnesota, for research:
  - acknowledge its use in publications:
    F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets:
    History and Context. ACM Transactions on Interactive Intelligent Systems
    (TiiS) 5, 4, Article 19. https://doi.org/10.1145/2827872
  - do not redistribute it without separate permission;
  - do not use it for commercial or revenue-bearing purposes without
    permission, and do not state or imply endorsement by its publisher.
Full terms: https://grouplens.org/datasets/movielens/ (README of the set).
"""


@functools.cache
def licence_notice(name: str) -> None:
  """Prints MovieLens' terms and citation to stderr, once a process and name."""
  print(MOVIELENS.format(name=name), file=sys.stderr, flush=True)
