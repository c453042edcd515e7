"""Sequence models and their federated rounds, slow and obvious, in float64.

Written from the papers' equations, place by place; gradients by central
differences of the loss, on the whole item table. Parameters are dicts with the
engine's names; nothing is imported from the engine.
"""

import copy
import math

import numpy as np


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def layer_norm(x, norm):
  centred = x - x.mean()
  return centred / np.sqrt((centred**2).mean() + 1e-6) * norm['scale'] + (
      norm['bias'])


def encode_sasrec(table, shared, items, num_heads):
  """The states of a sequence of item ids, the earliest first: a list."""
  dim = table['item'].shape[1]
  width = dim // num_heads
  first = len(shared['position']) - len(items)
  states = [math.sqrt(dim) * table['item'][item] + shared['position'][first + t]
            for t, item in enumerate(items)]
  for index in sorted(shared['blocks']):
    block = shared['blocks'][index]
    normed = [layer_norm(x, block['attention_norm']) for x in states]
    after = []
    for t, x in enumerate(states):
      parts = []
      for head in range(num_heads):
        mine = slice(head * width, (head + 1) * width)
        query = (normed[t] @ block['query']['kernel'])[mine]
        logits = np.array([
            query @ (normed[u] @ block['key']['kernel'])[mine]
            for u in range(t + 1)]) / math.sqrt(width)
        weights = np.exp(logits) / np.exp(logits).sum()
        parts.append(sum(
            weights[u] * (normed[u] @ block['value']['kernel'])[mine]
            for u in range(t + 1)))
      x = x + np.concatenate(parts)
      hidden = layer_norm(x, block['forward_norm']) @ (
          block['widen']['kernel']) + block['widen']['bias']
      after.append(x + np.maximum(hidden, 0) @ block['narrow']['kernel']
                   + block['narrow']['bias'])
    states = after
  return [layer_norm(x, shared['last_norm']) for x in states]


def encode_gru4rec(table, shared, items):
  """The same of the recurrent network."""
  dim = table['item'].shape[1]
  inputs, gates = shared['inputs'], shared['gates']['kernel']
  candidate = shared['candidate']['kernel']
  state, states = np.zeros(dim), []
  for item in items:
    given = table['item'][item] @ inputs['kernel'] + inputs['bias']
    own = state @ gates
    update = sigmoid(given[:dim] + own[:dim])
    reset = sigmoid(given[dim:2 * dim] + own[dim:])
    new = np.tanh(given[2 * dim:] + (reset * state) @ candidate)
    state = (1 - update) * state + update * new
    states.append(state)
  return states


def score(table, state, item):
  bias = table['item_bias'][item] if 'item_bias' in table else 0.0
  return state @ table['item'][item] + bias


def client_loss(encode, table, shared, items, negatives):
  """The mean binary cross-entropy of a sequence.

  Args:
    encode: (table, shared, items) -> states.
    table: The whole item table.
    shared: The network.
    items: The sequence.
    negatives: For each item a list of negatives; the first one's is empty.
  """
  states = encode(table, shared, items[:-1])
  terms = []
  for t in range(1, len(items)):
    terms.append(-math.log(sigmoid(score(table, states[t - 1], items[t]))))
    terms += [-math.log(sigmoid(-score(table, states[t - 1], j)))
              for j in negatives[t]]
  return sum(terms) / max(len(terms), 1)


def leaves(tree):
  """Every array of a nested dict."""
  for value in tree.values():
    if isinstance(value, dict):
      yield from leaves(value)
    else:
      yield value


def descend(loss, table, shared, item_rate, rate):
  """One gradient step on copies of (table, shared), by central differences."""
  moved = copy.deepcopy((table, shared))
  probe = copy.deepcopy((table, shared))
  step = 1e-5
  for side, size in ((0, item_rate), (1, rate)):
    for leaf, new in zip(leaves(probe[side]), leaves(moved[side])):
      for place in np.ndindex(leaf.shape):
        value = leaf[place]
        leaf[place] = value + step
        above = loss(*probe)
        leaf[place] = value - step
        slope = (above - loss(*probe)) / (2 * step)
        leaf[place] = value
        new[place] -= size * slope
  return moved


def mean_of(models):
  """The mean of several (table, shared)."""
  result = copy.deepcopy(models[0])
  for side in (0, 1):
    for target, *parts in zip(
        leaves(result[side]), *(leaves(model[side]) for model in models)):
      target[...] = np.mean(parts, 0)
  return result
