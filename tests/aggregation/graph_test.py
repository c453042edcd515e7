"""Tests of fedjaxrec.aggregation.graph."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjaxrec.aggregation import graph

SEED = b's' * 32


@given(st.integers(3, 40), st.integers(1, 20), st.integers(0, 255))
def test_every_member_has_k_neighbors_and_they_have_it(n, half, seed):
  members = [7 * i + 3 for i in range(n)]
  seed = bytes([seed]) * 32
  neighbors = graph.draw_neighbors(members, 2 * half, seed)
  assert list(neighbors) == members
  for member, near in neighbors.items():
    assert len(set(near)) == len(near) == min(2 * half, n - 1)
    assert list(near) == sorted(near)
    assert member not in near
    assert all(member in neighbors[other] for other in near)
    assert near == graph.draw_neighbors_of(member, members, 2 * half, seed)


def test_the_seed_decides_the_graph_and_the_order_of_members_does_not():
  first = graph.draw_neighbors(range(50), 6, SEED)
  assert first == graph.draw_neighbors(range(49, -1, -1), 6, SEED)
  assert first != graph.draw_neighbors(range(50), 6, b't' * 32)


def test_each_pair_is_as_often_neighbors():
  """Of 11 members with 4 neighbours, a pair is one in 4/10 of the graphs."""
  draws, count = 400, 0
  for draw in range(draws):
    seed = draw.to_bytes(32, 'little')
    count += 1 in graph.draw_neighbors_of(0, range(11), 4, seed)
  # Five standard deviations of a binomial.
  assert abs(count - 0.4 * draws) < 5 * math.sqrt(draws * 0.4 * 0.6)


def test_an_odd_degree_is_refused():
  with pytest.raises(ValueError, match='num_neighbors=3'):
    graph.draw_neighbors(range(9), 3, SEED)


def hypergeometric_tail(total, marked, drawn, at_least):
  return sum(
      Fraction(math.comb(marked, x) * math.comb(total - marked, drawn - x),
               math.comb(total, drawn))
      for x in range(max(at_least, 0), min(marked, drawn) + 1))


@pytest.mark.parametrize(('n', 'k', 't', 'corrupt', 'gone'), [
  (1000, 64, 42, 0.05, 0.1), (300, 40, 25, 0.1, 0.1), (200, 30, 16, 0.2, 0.2)])
def test_the_bounds_are_the_exact_tails(n, k, t, corrupt, gone):
  """In rational arithmetic."""
  c, g = int(corrupt * n), int(gone * n)
  def bits(probability):
    return -math.log2(probability)
  passive, short = graph.failure_bits(
      n, k, t, corrupt, gone, active_server=False)
  apart = n * Fraction(math.comb(n - k // 2, c + g - k // 2),
                       math.comb(n, c + g))
  assert passive == pytest.approx(
      bits(n * hypergeometric_tail(n - 1, c, k, t) + apart), rel=1e-8)
  assert short == pytest.approx(
      bits(n * hypergeometric_tail(n - 1, g, k, k - t + 1)), rel=1e-8)
  active, _ = graph.failure_bits(n, k, t, corrupt, gone)
  assert active == pytest.approx(
      bits(n * hypergeometric_tail(n - 1, c, k, 2 * t - k) + apart), rel=1e-8)


def test_what_cannot_happen_has_no_bound():
  # 5 corrupt of 100 cannot be 2 * 21 - 32 = 10; 10 gone leave 22 of 32.
  assert graph.failure_bits(100, 32, 21, 0.05, 0.1) == (math.inf, math.inf)


@pytest.mark.parametrize('active', [True, False])
def test_the_choice_keeps_its_word_and_a_smaller_degree_does_not(active):
  choice = graph.choose_graph(1000, 0.05, 0.05, active_server=active)
  k, t = choice.num_neighbors, choice.threshold
  assert choice[2:] == graph.failure_bits(
      1000, k, t, 0.05, 0.05, active_server=active)
  assert choice.privacy_bits >= 40
  assert choice.correctness_bits >= 30
  for smaller in range(k // 2, k - 1):
    privacy, correctness = graph.failure_bits(
        1000, k - 2, smaller, 0.05, 0.05, active_server=active)
    assert privacy < 40 or correctness < 30


def test_a_server_that_lies_costs_neighbors():
  assert (graph.choose_graph(500, 0.1, 0.05).num_neighbors
          > graph.choose_graph(
              500, 0.1, 0.05, active_server=False).num_neighbors)


def test_fractions_that_no_graph_bears_are_refused():
  with pytest.raises(ValueError, match='corrupt_fraction=0.5'):
    graph.choose_graph(40, 0.5, 0.4)
  with pytest.raises(ValueError, match='num_clients=2'):
    graph.choose_graph(2, 0.1, 0.1)
  with pytest.raises(ValueError, match='dropout_fraction=1'):
    graph.choose_graph(10, 0.1, 1)
