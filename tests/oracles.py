"""FedAvg on matrix factorisation, slow and obvious; the engine must agree.

Written from the papers and the config's help, in float64 NumPy: one client
after the other, each on a copy of the WHOLE item table, every gradient derived
by hand. Nothing is imported from the engine, so a shared mistake would have to
be made twice. Only who takes part and what is drawn come from outside.

Parameters are dicts of arrays, with the names of the engine's:
  table     {'item': [num_items, dim], 'item_bias': [num_items]}
  shared    {'bias': []}
  personal  {'user': [dim], 'user_bias': []}
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np


class Population(NamedTuple):
  """A small population; items of a client are distinct, in no order."""
  offsets: np.ndarray
  items: np.ndarray
  labels: np.ndarray
  num_items: int

  @property
  def counts(self):
    return np.diff(self.offsets)

  def client(self, c):
    mine = slice(self.offsets[c], self.offsets[c + 1])
    return self.items[mine], self.labels[mine]


def make_population(counts, num_items, seed=0):
  rng = np.random.default_rng(seed)
  items = [rng.permutation(num_items)[:n] for n in counts]
  return Population(
      np.concatenate([[0], np.cumsum(counts)]),
      np.concatenate(items).astype(np.int32),
      rng.uniform(0.5, 1.5, sum(counts)).astype(np.float32), num_items)


def tolerance(steps, roundings, gain=1.0):
  """The absolute error that float32 may have against these oracles.

  A rounding is off by at most 2^-24 of a number, and all numbers here are of
  order 1. A step makes `roundings` of them one after the other; the steps'
  errors add up. An error in a gradient comes out `gain` times as large: 1 at
  most for sgd and momentum, learning rate times the largest gradient over eps
  for an adaptive optimizer, which divides by a root that may be as small as
  eps.
  """
  return 2.0**-24 * steps * roundings * gain


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


# --- The client --------------------------------------------------------------


def score(table, shared, personal, item):
  return (personal['user'] @ table['item'][item] + table['item_bias'][item]
          + personal['user_bias'] + shared['bias'])


def loss_and_slopes(objective, scores, labels, used):
  """Returns the summed loss, its number of terms, and d(mean loss)/d(score)."""
  loss, count = 0.0, 0
  slopes = np.zeros(scores.shape)
  for b in range(scores.shape[0]):
    for k in range(scores.shape[1]):
      if not used[b, k]:
        continue
      s = scores[b, k]
      if objective == 'bce':
        label = 1 if k == 0 else 0
        likelihood = sigmoid(s) if label else 1 - sigmoid(s)
        loss -= math.log(likelihood)
        slopes[b, k] += sigmoid(s) - label
        count += 1
      elif objective == 'bpr' and k > 0 and used[b, 0]:
        wins = sigmoid(scores[b, 0] - s)
        loss -= math.log(wins)
        slopes[b, 0] -= 1 - wins
        slopes[b, k] += 1 - wins
        count += 1
      elif objective == 'softmax' and k == 0 and used[b, 1:].any():
        there = np.flatnonzero(used[b])
        share = np.exp(scores[b, there]) / np.exp(scores[b, there]).sum()
        loss -= math.log(share[0])
        slopes[b, there] += share
        slopes[b, 0] -= 1
        count += 1
      elif objective == 'squared_error' and k == 0:
        loss += (s - labels[b])**2
        slopes[b, k] += 2 * (s - labels[b])
        count += 1
    rivals = [k for k in range(1, scores.shape[1]) if used[b, k]]
    if objective == 'bpr_max' and used[b, 0] and rivals:
      r = scores[b, rivals]
      share = np.exp(r - r.max()) / np.exp(r - r.max()).sum()
      wins = sigmoid(scores[b, 0] - r)
      won, penalty = share @ wins, share @ r**2
      loss += penalty - math.log(won)
      steep = share * wins * (1 - wins)
      slopes[b, 0] -= steep.sum() / won
      slopes[b, rivals] += (
          (steep - share * (wins - won)) / won
          + 2 * share * r + share * (r**2 - penalty))
      count += 1
  return loss, count, slopes / max(count, 1)


def batch_gradients(objective, table, shared, personal, rows, labels, l2):
  """Gradients of one batch with respect to everything, whole table included.

  Args:
    rows: int [batch, 1 + num_negatives]; num_items where there is no item.
    labels: [batch] ratings.
    l2: Weight of |personal|^2 + |shared|^2 + mean over the batch |row|^2.
  """
  used = rows < len(table['item'])
  scores = np.zeros(rows.shape)
  for place in zip(*np.nonzero(used)):
    scores[place] = score(table, shared, personal, rows[place])
  loss, count, slopes = loss_and_slopes(objective, scores, labels, used)
  g_table = {name: np.zeros_like(leaf) for name, leaf in table.items()}
  g_shared = {'bias': 2 * l2 * shared['bias']}
  g_personal = {name: 2 * l2 * leaf for name, leaf in personal.items()}
  for place in zip(*np.nonzero(used)):
    item, slope = rows[place], slopes[place]
    g_table['item'][item] += slope * personal['user']
    g_table['item_bias'][item] += slope
    for name in table:
      g_table[name][item] += 2 * l2 * table[name][item] / used.sum()
    g_personal['user'] += slope * table['item'][item]
    g_personal['user_bias'] += slope
    g_shared['bias'] += slope
  return loss, count, g_table, g_shared, g_personal


def init_optimizer(params):
  zeros = lambda: {name: np.zeros_like(leaf) for name, leaf in params.items()}
  return {'t': 0, 'm': zeros(), 'v': zeros()}


def optimizer_step(name, gradient, state, learning_rate, momentum=0.9, b1=0.9,
                   b2=0.99, eps=1e-3):
  """Returns what to add to the parameters, and the new state.

  Reddi et al., 2021, Algorithm 2, with Adam's and Yogi's bias correction.
  """
  t, m, v, step = state['t'] + 1, {}, {}, {}
  for leaf, g in gradient.items():
    m[leaf], v[leaf] = state['m'][leaf], state['v'][leaf]
    if name == 'sgd':
      direction = g
    elif name == 'momentum':
      m[leaf] = momentum * m[leaf] + g
      direction = m[leaf]
    elif name == 'adagrad':
      v[leaf] = v[leaf] + g**2
      direction = g / (np.sqrt(v[leaf]) + eps)
    elif name == 'rowwise_adagrad':  # v: the same number all along a row.
      v[leaf] = np.array([
          old + np.mean(row**2) for old, row in zip(v[leaf], g)])
      direction = g / (np.sqrt(v[leaf]) + eps)
    else:
      m[leaf] = b1 * m[leaf] + (1 - b1) * g
      if name == 'adam':
        v[leaf] = b2 * v[leaf] + (1 - b2) * g**2
      elif name == 'yogi':
        v[leaf] = v[leaf] - (1 - b2) * g**2 * np.sign(v[leaf] - g**2)
      direction = m[leaf] / (1 - b1**t) / (
          np.sqrt(v[leaf] / (1 - b2**t)) + eps)
    step[leaf] = -learning_rate * direction
  return step, {'t': t, 'm': m, 'v': v}


def add(tree, other, scale=1.0):
  return {name: leaf + scale * other[name] for name, leaf in tree.items()}


class Client(NamedTuple):
  """What a client sends: deltas, after - before; and its loss."""
  table: dict
  shared: dict
  loss_sum: float
  loss_count: int
  num_examples: int  # Scores computed.


def train_client(table, shared, personal, rows, labels, *, objective='bce',
                 l2=0.0, optimizer='sgd', item_optimizer='', learning_rate=0.1,
                 item_learning_rate=0.1, momentum=0.9, epochs=1, steps=0,
                 batch_size=64, proximal_mu=0.0, learning_rate_scale=1.0,
                 control_variates=False):
  """Trains one client on a copy of everything; returns (Client, personal).

  Control variates have an oracle of their own.

  Args:
    rows: int [interactions, 1 + num_negatives], in training order.
    labels: [interactions].
    steps: Gradient steps; 0: epochs passes over the batches.
    Others: as in ClientConfig and ObjectiveConfig.
  """
  assert not control_variates
  start_table, start_shared = table, shared
  states = [init_optimizer(tree) for tree in (table, shared, personal)]
  batches = [slice(start, start + batch_size)
             for start in range(0, len(rows), batch_size)]
  steps = steps or epochs * len(batches)
  loss_sum, loss_count, num_examples = 0.0, 0, 0
  for step in range(steps if batches else 0):
    batch = batches[step % len(batches)]
    num_examples += (rows[batch] < len(table['item'])).sum()
    loss, count, g_table, g_shared, g_personal = batch_gradients(
        objective, table, shared, personal, rows[batch], labels[batch], l2)
    loss_sum, loss_count = loss_sum + loss, loss_count + count
    # FedProx: mu / 2 |table and shared - what was downloaded|^2.
    g_table = add(g_table, add(table, start_table, -1), proximal_mu)
    g_shared = add(g_shared, add(shared, start_shared, -1), proximal_mu)
    moved = []
    for name, tree, gradient, state, rate in zip(
        (item_optimizer or optimizer, optimizer, optimizer),
        (table, shared, personal), (g_table, g_shared, g_personal), states,
        (item_learning_rate, learning_rate, learning_rate)):
      update, new_state = optimizer_step(
          name, gradient, state, rate * learning_rate_scale, momentum)
      state.update(new_state)
      moved.append(add(tree, update))
    table, shared, personal = moved
  return Client(
      add(table, start_table, -1), add(shared, start_shared, -1), loss_sum,
      loss_count, num_examples), personal


# --- The server --------------------------------------------------------------


def server_step(params, states, total, weight, row_weight, *, optimizer='sgd',
                learning_rate=1.0, momentum=0.9, b1=0.9, b2=0.99, eps=1e-3,
                row_normalization='mean', lazy_rows=True,
                learning_rate_scale=1.0):
  """Moves (table, shared) by the cohort's weighted sums of deltas.

  Args:
    params: (table, shared).
    states: Their optimizers' states.
    total: (table, shared): the deltas, summed with the clients' weights.
    weight: The cohort's summed weight.
    row_weight: [num_items]: summed weight of the clients that hold the row.
    Others: as in ServerConfig.

  Returns:
    (params, states).
  """
  if weight == 0:
    return params, states
  table, shared = params
  settings = {'momentum': momentum, 'b1': b1, 'b2': b2, 'eps': eps}
  rate = learning_rate * learning_rate_scale
  mean = {name: leaf / weight for name, leaf in total[1].items()}
  gradient = {name: -leaf for name, leaf in mean.items()}
  shared_step, shared_state = optimizer_step(
      optimizer, gradient, states[1], rate, **settings)
  gradient = {name: np.zeros_like(leaf) for name, leaf in table.items()}
  for item in range(len(row_weight)):
    divisor = {'mean': weight, 'sum': 1, 'contributors': row_weight[item]}
    if row_weight[item]:
      for name in table:
        gradient[name][item] = (
            -total[0][name][item] / divisor[row_normalization])
  step, state = optimizer_step(
      optimizer, gradient, states[0], rate, **settings)
  for item in range(len(row_weight)):
    if lazy_rows and not row_weight[item]:
      for name in table:
        step[name][item] = 0
        for moment in ('m', 'v'):
          state[moment][name][item] = states[0][moment][name][item]
  return (add(table, step), add(shared, shared_step)), (state, shared_state)


# --- The rounds --------------------------------------------------------------


def schedule(kind, final_fraction, round_index, rounds):
  progress = round_index / (rounds - 1) if rounds > 1 else 0.0
  if kind == 'cosine':
    return final_fraction + (1 - final_fraction) * (
        1 + math.cos(math.pi * progress)) / 2
  if kind == 'exponential':
    return final_fraction**progress
  return 1.0


def fields(config, *without):
  """A config's fields as keyword arguments."""
  return {field.name: getattr(config, field.name)
          for field in dataclasses.fields(config) if field.name not in without}


class Result(NamedTuple):
  table: dict
  shared: dict
  personal: list  # One dict a client.
  losses: list  # One a round.


def run(config, table, shared, personal, cohorts, draw):
  """Runs as many federated rounds as there are cohorts.

  Args:
    config: The run's config.
    table: Initial item table.
    shared: Initial shared parameters.
    personal: A list: every client's initial personal parameters.
    cohorts: A list of lists of client ids.
    draw: (round, client) -> (rows, labels) of the client's interactions.
  """
  personal = list(personal)
  params = (table, shared)
  states = (init_optimizer(table), init_optimizer(shared))
  losses = []
  for r, cohort in enumerate(cohorts):
    total = tuple({name: np.zeros_like(leaf) for name, leaf in tree.items()}
                  for tree in params)
    weight, row_weight = 0.0, np.zeros(len(table['item']))
    loss_sum, loss_count = 0.0, 0
    for c in cohort:
      rows, labels = draw(r, c)
      sent, personal[c] = train_client(
          *params, personal[c], rows, labels,
          objective=config.objective.name, l2=config.objective.l2,
          learning_rate_scale=schedule(
              config.client.schedule, config.client.final_fraction, r,
              config.rounds),
          **fields(config.client, 'schedule', 'final_fraction'))
      w = len(labels) if config.cohort.weighting == 'examples' else 1
      total = (add(total[0], sent.table, w), add(total[1], sent.shared, w))
      weight += w
      for item in set(rows[rows < len(row_weight)]):
        row_weight[item] += w
      loss_sum, loss_count = loss_sum + sent.loss_sum, (
          loss_count + sent.loss_count)
    params, states = server_step(
        params, states, total, weight, row_weight,
        learning_rate_scale=schedule(
            config.server.schedule, config.server.final_fraction, r,
            config.rounds),
        **fields(config.server, 'schedule', 'final_fraction'))
    losses.append(loss_sum / max(loss_count, 1))
  return Result(*params, personal, losses)
