"""The references as their formulas say it: one user, one item at a time."""

import numpy as np

from fedjaxrec.data.interactions import Interactions


def make_interactions(seed, num_users=9, num_items=12, most=7):
  """Random histories; the last user and the last item have none."""
  generator = np.random.default_rng(seed)
  rows = [generator.permutation(num_items - 1)[:generator.integers(1, most)]
          for _ in range(num_users - 1)] + [np.empty(0, int)]
  users = np.repeat(np.arange(num_users), [len(row) for row in rows])
  return Interactions.from_dense(
      users, np.concatenate(rows).astype(int), np.arange(num_users),
      np.arange(num_items))


def histories(data):
  return [set(data.items[data.offsets[u]:data.offsets[u + 1]].tolist())
          for u in range(data.num_users)]


def item_knn_scores(data, num_neighbors, shrinkage, shown=None):
  sets = histories(data)
  users_of = [{u for u, s in enumerate(sets) if i in s}
              for i in range(data.num_items)]

  def similarity(i, j):
    both = len(users_of[i] & users_of[j])
    if i == j or not both:
      return 0.0
    return both / (np.sqrt(len(users_of[i]) * len(users_of[j])) + shrinkage)

  scores = np.zeros((data.num_users, data.num_items))
  for i in range(data.num_items):
    all_of_them = [similarity(i, j) for j in range(data.num_items)]
    kept = all_of_them
    if num_neighbors:
      least = sorted(all_of_them, reverse=True)[num_neighbors - 1]
      kept = [s if s >= least - 1e-12 else 0.0 for s in all_of_them]
    for u, mine in enumerate(shown or sets):
      scores[u, i] = sum(kept[j] for j in mine)
  return scores


def ease_weights(data, l2):
  """Column by column: a ridge regression on all the other items."""
  x = np.zeros((data.num_users, data.num_items))
  for u, mine in enumerate(histories(data)):
    for i in mine:
      x[u, i] = 1
  weights = np.zeros((data.num_items, data.num_items))
  for i in range(data.num_items):
    others = [j for j in range(data.num_items) if j != i]
    a = x[:, others]
    weights[others, i] = np.linalg.solve(
        a.T @ a + l2 * np.eye(len(others)), a.T @ x[:, i])
  return x, weights


def ials_loss(data, users, items, config):
  """The objective, pair by pair."""
  a0, lam, nu = (config.unobserved_weight, config.regularization,
                 config.frequency_exponent)
  sets = histories(data)
  loss = 0.0
  for u, p in enumerate(users):
    for i, v in enumerate(items):
      loss += a0 * (p @ v) ** 2 + (i in sets[u]) * (1 - p @ v) ** 2
    loss += lam * (len(sets[u]) + a0 * len(items)) ** nu * (p @ p)
  for i, v in enumerate(items):
    count = sum(i in s for s in sets)
    loss += lam * (count + a0 * len(users)) ** nu * (v @ v)
  return loss


def ials_half(histories_, factors, config):
  """Solves one side, row by row."""
  a0, lam, nu = (config.unobserved_weight, config.regularization,
                 config.frequency_exponent)
  result = []
  for mine in histories_:
    if not mine:
      result.append(np.zeros(factors.shape[1]))
      continue
    matrix = lam * (len(mine) + a0 * len(factors)) ** nu * np.eye(
        factors.shape[1])
    right = np.zeros(factors.shape[1])
    for i, v in enumerate(factors):
      matrix += a0 * np.outer(v, v)
      if i in mine:
        matrix += np.outer(v, v)
        right += v
    result.append(np.linalg.solve(matrix, right))
  return np.array(result)


def transposed(sets, num_items):
  return [{u for u, s in enumerate(sets) if i in s} for i in range(num_items)]
