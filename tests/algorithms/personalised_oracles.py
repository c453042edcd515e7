"""Personalised algorithms on matrix factorisation, slow and obvious.

float64 NumPy, one client after the other on copies of whole tables, gradients
by `oracles.batch_gradients`. Written from the papers. An oracle is

  update(own, table, shared, drawn) -> (own, table, shared)
  score(own, table, shared) -> [num_items]

with table, shared and what is personal as dicts, and own whatever a client
keeps; None before its first round.
"""

import numpy as np

from tests import oracles

add = oracles.add


def copy(tree):
  return {name: np.array(leaf, float) for name, leaf in tree.items()}


def scores(table, shared, layer):
  return np.array([oracles.score(table, shared, layer, i)
                   for i in range(len(table['item']))])


def batches(rows, labels, client, epochs=None):
  """Yields each step's rows and labels."""
  starts = range(0, len(rows), client.batch_size)
  for _ in range(client.epochs if epochs is None else epochs):
    for start in starts:
      batch = slice(start, start + client.batch_size)
      yield rows[batch], labels[batch]


class Oracle:
  """What the oracles share: a config, and everybody's first personal part."""

  def __init__(self, config, layers):
    self.config, self.layers = config, layers

  def gradients(self, table, shared, layer, rows, labels):
    """Gradients of (table, shared, layer)."""
    return oracles.batch_gradients(
        self.config.objective.name, table, shared, layer, rows, labels,
        self.config.objective.l2)[2:]

  def places(self, table, rows):
    """How often each row of the table stands in a batch, and how many do."""
    used = rows[rows < len(table['item'])]
    return np.bincount(used, minlength=len(table['item'])), len(used)

  def descend(self, table, shared, layer, gradients):
    client = self.config.client
    return (add(table, gradients[0], -client.item_learning_rate),
            add(shared, gradients[1], -client.learning_rate),
            add(layer, gradients[2], -client.learning_rate))


def per_row(counts, leaf):
  return counts.reshape(-1, *[1] * (leaf.ndim - 1))


class PFedRec(Oracle):

  def update(self, c, own, table, shared, rows, labels, r):
    layer = self.layers[c] if own is None else own[0]
    rate = self.config.client.learning_rate
    for batch in batches(rows, labels, self.config.client):
      _, g_shared, g_layer = self.gradients(table, shared, layer, *batch)
      shared, layer = add(shared, g_shared, -rate), add(layer, g_layer, -rate)
      g_table, _, _ = self.gradients(table, shared, layer, *batch)
      table = add(table, g_table, -self.config.client.item_learning_rate)
    return (layer, table), table, shared

  def score(self, c, own, table, shared):
    layer, table = (self.layers[c], table) if own is None else own
    return scores(table, shared, layer)


class GPFedRec(PFedRec):
  """own: (layer, table, its neighbours' table)."""

  def update(self, c, own, table, shared, rows, labels, r):
    layer, _, graph = (self.layers[c], None, table) if own is None else own
    size = sum(leaf.size for leaf in table.values())
    for batch in batches(rows, labels, self.config.client):
      g_table, g_shared, g_layer = self.gradients(table, shared, layer, *batch)
      g_table = add(g_table, add(table, graph, -1),
                    2 * self.config.gpfedrec.pull / size)
      table, shared, layer = self.descend(
          table, shared, layer, (g_table, g_shared, g_layer))
    return (layer, table, graph), table, shared

  def mix(self, owns, table):
    """The server's graph; owns of clients without data are None."""
    there = [c for c, own in enumerate(owns) if own is not None]
    flat = [np.concatenate([owns[c][1][n].ravel() for n in sorted(table)])
            for c in there]
    link = np.zeros((len(there), len(there)))
    for i, x in enumerate(flat):
      for j, y in enumerate(flat):
        cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        link[i, j] = cosine if (
            self.config.gpfedrec.similarity == 'similarity') else 1 - cosine
    kept = np.where(
        link > self.config.gpfedrec.threshold * link.mean(), link, 0)
    assert (kept.sum(1) > 0).all() and (kept == 0).any()
    kept /= kept.sum(1, keepdims=True)
    mixed = []
    for weights in np.linalg.matrix_power(kept, self.config.gpfedrec.layers):
      mixed.append({n: sum(w * owns[c][1][n] for w, c in zip(weights, there))
                    for n in table})
    owns = list(owns)
    for c, graph in zip(there, mixed):
      owns[c] = (*owns[c][:2], graph)
    return owns, {n: sum(g[n] for g in mixed) / len(mixed) for n in table}

  def score(self, c, own, table, shared):
    return super().score(c, own and own[:2], table, shared)


class FedRAP(Oracle):
  """own: (layer, its additions); `additions` is everybody's first one."""

  additions = None

  def update(self, c, own, table, shared, rows, labels, r):
    layer, extra = own or (self.layers[c], self.additions)
    settings, client = self.config.fedrap, self.config.client
    strength = np.tanh(r / 10) if settings.rising else 1
    factor = 1.0
    for batch in batches(rows, labels, client):
      counts, used = self.places(table, batch[0])
      g_sum, g_shared, g_layer = self.gradients(
          add(table, extra), shared, layer, *batch)
      numbers = used * sum(leaf[0].size for leaf in table.values())
      g_table, g_extra = copy(g_sum), copy(g_sum)
      for n, leaf in table.items():
        apart = per_row(counts, leaf) * (
            2 * settings.independence * strength / numbers * (extra[n] - leaf))
        g_extra[n] -= apart
        g_table[n] += apart + per_row(counts, leaf) * (
            strength * settings.sparsity * np.sign(leaf))
      item_rate = factor * client.item_learning_rate
      rate = factor * client.learning_rate
      table, extra = add(table, g_table, -item_rate), add(
          extra, g_extra, -item_rate)
      shared, layer = add(shared, g_shared, -rate), add(layer, g_layer, -rate)
      factor *= settings.batch_decay
    return (layer, extra), table, shared

  def score(self, c, own, table, shared):
    layer, extra = own or (self.layers[c], self.additions)
    return scores(add(table, extra), shared, layer)


class OwnModel(Oracle):
  """own: (global model's layer, [own table, shared, layer], known rows, a)."""

  def start(self, c, own, table, shared):
    if own is None:
      return (self.layers[c], (table, shared, self.layers[c]),
              np.zeros(len(table['item']), bool), self.config.apfl.alpha)
    layer, (mine, own_shared, own_layer), known, alpha = own
    mine = {n: np.where(per_row(known, leaf), leaf, table[n])
            for n, leaf in mine.items()}
    return layer, (mine, own_shared, own_layer), known, alpha

  def touch(self, known, rows):
    known = known.copy()
    known[rows[rows < len(known)]] = True
    return known


class Ditto(OwnModel):

  def update(self, c, own, table, shared, rows, labels, r):
    layer, mine, known, alpha = self.start(c, own, table, shared)
    start_table, start_shared = table, shared
    for batch in batches(rows, labels, self.config.client):
      counts, used = self.places(table, batch[0])
      table, shared, layer = self.descend(
          table, shared, layer, self.gradients(table, shared, layer, *batch))
      g_table, g_shared, g_layer = self.gradients(*mine, *batch)
      pull, client = self.config.ditto.pull, self.config.client
      most = 1 / client.item_learning_rate
      for n in g_table:
        g_table[n] += per_row(counts, g_table[n]) * (
            min(pull / used, most) * (mine[0][n] - start_table[n]))
      g_shared = add(g_shared, add(mine[1], start_shared, -1),
                     min(pull, 1 / client.learning_rate))
      mine = self.descend(*mine, (g_table, g_shared, g_layer))
    return (layer, mine, self.touch(known, rows), alpha), table, shared

  def score(self, c, own, table, shared):
    return scores(*self.start(c, own, table, shared)[1])


class APFL(OwnModel):

  def update(self, c, own, table, shared, rows, labels, r):
    layer, mine, known, alpha = self.start(c, own, table, shared)
    rates = (self.config.client.item_learning_rate,
             *[self.config.client.learning_rate] * 2)
    for batch in batches(rows, labels, self.config.client):
      table, shared, layer = self.descend(
          table, shared, layer, self.gradients(table, shared, layer, *batch))
      served = (table, shared, layer)
      gradients = self.gradients(*self.mix(alpha, mine, served), *batch)
      # Rows that are not the client's are the server's: no difference there.
      slope = sum(((v[n] - w[n]) * g[n]).sum() for v, w, g in zip(
          mine, served, gradients) for n in v)
      mine = tuple(add(v, g, -alpha * rate)
                   for v, g, rate in zip(mine, gradients, rates))
      alpha = np.clip(alpha - self.config.apfl.alpha_rate * slope, 0, 1)
    return (layer, mine, self.touch(known, rows), alpha), table, shared

  def mix(self, alpha, mine, served):
    return tuple(
        {n: alpha * v[n] + (1 - alpha) * w[n] for n in v}
        for v, w in zip(mine, served))

  def score(self, c, own, table, shared):
    layer, mine, _, alpha = self.start(c, own, table, shared)
    return scores(*self.mix(alpha, mine, (table, shared, layer)))


class FedRep(Oracle):
  """own: the personal layer."""

  def head(self, table, shared, layer, rows, labels, epochs, rate):
    for batch in batches(rows, labels, self.config.client, epochs):
      layer = add(
          layer, self.gradients(table, shared, layer, *batch)[2], -rate)
    return layer

  def base(self, table, shared, layer, rows, labels):
    for batch in batches(rows, labels, self.config.client):
      table, shared, _ = self.descend(
          table, shared, layer, self.gradients(table, shared, layer, *batch))
    return table, shared

  def update(self, c, own, table, shared, rows, labels, r):
    layer = self.head(
        table, shared, own or self.layers[c], rows, labels,
        self.config.fedrep.head_epochs, self.config.client.learning_rate)
    return layer, *self.base(table, shared, layer, rows, labels)

  def score(self, c, own, table, shared):
    return scores(table, shared, own or self.layers[c])


class FedRecon(FedRep):
  """starts: (round, client) -> the fresh layer of a reconstruction."""

  starts = None

  def update(self, c, own, table, shared, rows, labels, r):
    settings = self.config.fedrecon
    layer = self.head(
        table, shared, self.starts(r, c), rows[::2], labels[::2],
        settings.epochs, settings.learning_rate)
    return layer, *self.base(table, shared, layer, rows[1::2], labels[1::2])
