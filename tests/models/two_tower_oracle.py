"""Two towers, slow and obvious: float64 NumPy, every gradient by hand.

One client after the other, each on a copy of the whole item table and of the
towers; towers have one hidden layer, or none. Nothing comes from the engine but
the start, who takes part and what is drawn.
"""

import numpy as np


def copy(tree):
  """A pytree of dicts, in float64."""
  if isinstance(tree, dict):
    return {name: copy(leaf) for name, leaf in tree.items()}
  return np.array(tree, np.float64)


def add(tree, other, scale=1.0):
  if isinstance(tree, dict):
    return {name: add(leaf, other[name], scale) for name, leaf in tree.items()}
  return tree + scale * other


def zeros(tree):
  return add(tree, tree, -1)


def forward(tower, x):
  """Returns the output, and the hidden layer (None where there is none)."""
  hidden = None
  if 'hidden' in tower:
    (layer,) = tower['hidden'].values()
    hidden = np.maximum(x @ layer['kernel'] + layer['bias'], 0)
    x = hidden
  return x @ tower['output']['kernel'] + tower['output']['bias'], hidden


def backward(tower, gradient, x, slope):
  """Adds to `gradient` what a slope of the output says of the weights."""
  _, hidden = forward(tower, x)
  below = x if hidden is None else hidden
  gradient['output']['kernel'] += np.outer(below, slope)
  gradient['output']['bias'] += slope
  if hidden is None:
    return
  ((name, layer),) = gradient['hidden'].items()
  slope = (tower['output']['kernel'] @ slope) * (hidden > 0)
  layer['kernel'] += np.outer(x, slope)
  layer['bias'] += slope


class Client:
  """One client's model: its features, and the parameters it reads."""

  def __init__(self, x, items, is_new):
    self.x, self.items, self.is_new = x, items, is_new

  def user(self, personal, shared):
    q = np.zeros(0)
    if 'user' in personal:
      q = personal['user']
    if self.x is not None:
      made, _ = forward(shared['user_tower'], self.x)
      q = made + (personal['user'] if 'user' in personal else 0)
    return q

  def item(self, table, shared, i):
    v, b = table['item'][i], table['item_bias'][i]
    if self.is_new[i]:
      v, b = 0 * v, 0 * b
    if self.items is not None:
      made, _ = forward(shared['item_tower'], self.items[i])
      v, b = v + made[:-1], b + made[-1]
    return v, b

  def query(self, personal, shared, moment):
    q = self.user(personal, shared)
    if moment is not None:
      q = q + moment @ shared['context_map']['kernel']
    return q

  def score(self, table, shared, personal, i, moment=None):
    v, b = self.item(table, shared, i)
    return (self.query(personal, shared, moment) @ v + b + shared['bias']
            + personal.get('user_bias', 0.0))

  def gradients(self, table, shared, personal, rows, moments, l2, spreadout):
    """Of one batch of BCE, by hand; rows: int [batch, 1 + num_negatives]."""
    used = rows < len(table['item'])
    count = used.sum()
    g_table, g_shared, g_personal = map(zeros, (table, shared, personal))
    for b, k in zip(*np.nonzero(used)):
      i = rows[b, k]
      q = self.query(personal, shared, moments[b])
      s = self.score(table, shared, personal, i, moments[b])
      slope = (1 / (1 + np.exp(-s)) - (k == 0)) / count
      v, _ = self.item(table, shared, i)
      v_slope = slope * q
      partners = [rows[b, j] for j in np.flatnonzero(used[b]) if j != k]
      for j in partners:  # Each pair counts from both of its ends.
        other, _ = self.item(table, shared, j)
        v_slope = v_slope + (
            spreadout * 4 * (v @ other) * other / len(partners) / count)
      if not self.is_new[i]:
        g_table['item'][i] += v_slope
        g_table['item_bias'][i] += slope
      g_table['item'][i] += 2 * l2 * table['item'][i] / count
      g_table['item_bias'][i] += 2 * l2 * table['item_bias'][i] / count
      if self.items is not None:
        backward(shared['item_tower'], g_shared['item_tower'], self.items[i],
                 np.append(v_slope, slope))
      if self.x is not None:
        backward(shared['user_tower'], g_shared['user_tower'], self.x,
                 slope * v)
      if moments[b] is not None:
        g_shared['context_map']['kernel'] += np.outer(moments[b], slope * v)
      g_shared['bias'] += slope
      if 'user' in personal:
        g_personal['user'] += slope * v
        g_personal['user_bias'] += slope
    return (g_table, add(g_shared, shared, 2 * l2),
            add(g_personal, personal, 2 * l2))

  def train(self, table, shared, personal, rows, moments, settings,
            spreadout):
    """Plain gradient steps; returns the three trees after them."""
    client = settings.client
    for _ in range(client.epochs):
      for start in range(0, len(rows), client.batch_size):
        batch = slice(start, start + client.batch_size)
        g = self.gradients(
            table, shared, personal, rows[batch], moments[batch],
            settings.objective.l2, spreadout)
        table = add(table, g[0], -client.item_learning_rate)
        shared = add(shared, g[1], -client.learning_rate)
        personal = add(personal, g[2], -client.learning_rate)
    return table, shared, personal
