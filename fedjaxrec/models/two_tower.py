"""Two towers: users and items by their features, and by vectors of their own.

s_ui = q_u . v_i + b_i + b_u + b with

  q_u        = UserTower(x_u) + p_u + W c
  (v_i, b_i) = ItemTower(y_i) + row i of the item table

x_u are a user's features (age, occupation), y_i an item's (genre, year). A
tower is a linear map, or a perceptron with `hidden` layers. c is the moment of
asking: time of day and week, and how long ago the client's last interaction was
(two_tower.context); a client's clock knows it, and it never travels.

Where things live. Personal: x_u, p_u and b_u; features are no parameters, and
no round changes them. Travels: touched item rows, and both towers whole, down;
their deltas, up. y_i is public catalogue data that every device has: it is
looked up by the row's number, and neither sent nor counted.

What an upload shows. x_u never travels, but it is an input of the user tower:
without a secure sum or noise, the server sees in the delta of the tower's first
layer which features are not 0 (one-hot columns move alone). Only a secure sum
hides one client's delta, and only differential privacy bounds what a sum says.

New items. An item that joins after training (`new_items`) is never drawn as a
negative, and its row counts as zero: it is scored by its features alone.

References:
  Ning et al., 2021, `Learning Federated Representations and Recommendations
  with Limited Negatives <https://arxiv.org/abs/2108.07931>`_: two towers with
  spreadout; Yu et al., 2020, `Federated Learning with Only Positive Labels
  <https://arxiv.org/abs/2004.10342>`_: spreadout in place of negatives. Ours is
  on the client, over the pairs of an interaction's item and its negatives
  instead of over a batch of positives: with negatives drawn from the catalogue
  that is an unbiased sample of its pairs, but for the item itself.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjaxrec.config import ModelConfig, TwoTowerConfig
from fedjaxrec.data.context import NAMES as CONTEXT_NAMES
from fedjaxrec.data.context import decode_moments
from fedjaxrec.models.recommender import (
    ItemTable,
    Personal,
    Recommender,
    make_recommender,
)
from fedjaxrec.population import Known, Moment, Numbered

PyTree = Any


class SideInputs(NamedTuple):
  """What is known beside the interactions, as NumPy arrays.

  Attributes:
    users: float32 [num_users, width]; None where there is none.
    items: float32 [num_items, width]; None where there is none.
    new_items: bool [num_items]: items that join after training; None: none.
    train_moments: float32 [interactions]: when each training interaction was,
      as `data.context.encode_moments` has it; None: no context is read.
    fold_in_moments: The same of what held-out users show.
    validation_moments: float32 [num_users]: when each is asked in validation.
    test_moments: The same of the test.
  """
  users: np.ndarray | None = None
  items: np.ndarray | None = None
  new_items: np.ndarray | None = None
  train_moments: np.ndarray | None = None
  fold_in_moments: np.ndarray | None = None
  validation_moments: np.ndarray | None = None
  test_moments: np.ndarray | None = None


class Tower(nnx.Module):
  """A perceptron on features; without hidden layers a linear map."""

  def __init__(self, width: int, hidden: tuple[int, ...], out: int,
               scale: float, rngs: nnx.Rngs):
    widths = (width, *hidden)
    self.hidden = nnx.List(
        [nnx.Linear(*pair, rngs=rngs)
         for pair in zip(widths[:-1], widths[1:], strict=True)])
    self.output = nnx.Linear(
        widths[-1], out, kernel_init=nnx.initializers.normal(scale), rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps float32 [..., width] to [..., out]."""
    for layer in self.hidden:
      x = jax.nn.relu(layer(x))
    return self.output(x)


class TwoTower(nnx.Module):
  """The parameters, and what is known; see the head of this file.

  Features stand beside the parameters of their row, so that a row has its own;
  `make_two_tower` keeps them out of what is initialised, moved and sent.

  Cost: a client keeps its features and, with a vector, dim + 1 numbers; an item
  row weighs dim + 1 numbers. Without item features rows start at random, with
  them at zero: a row then says what the features do not.
  """

  def __init__(
      self, config: ModelConfig, settings: TwoTowerConfig, user_width: int,
      item_width: int, has_new: bool, has_context: bool, num_items: int,
      key: jax.Array
  ):
    user_key, item_key, tower_key = jax.random.split(key, 3)
    dim, scale = config.dim, config.init_scale
    rngs = nnx.Rngs(tower_key)
    self.has_vector = settings.personal_vector
    if self.has_vector:
      self.user = Personal(scale * jax.random.normal(user_key, (dim,)))
      self.user_bias = Personal(jnp.zeros(()))
    row_scale = 0.0 if item_width else scale
    self.item = ItemTable(
        row_scale * jax.random.normal(item_key, (num_items, dim)))
    self.item_bias = ItemTable(jnp.zeros(num_items))
    self.bias = nnx.Param(jnp.zeros(()))
    if user_width:
      self.user_features = Personal(jnp.zeros(user_width))
      self.user_tower = Tower(
          user_width, settings.user_hidden, dim, scale, rngs)
    if item_width:
      self.item_features = ItemTable(jnp.zeros((num_items, item_width)))
      self.item_tower = Tower(
          item_width, settings.item_hidden, dim + 1, scale, rngs)
    if has_context:
      width = len(CONTEXT_NAMES)
      self.context = ItemTable(jnp.zeros((num_items, width)))
      self.context_map = nnx.Linear(
          width, dim, use_bias=False,
          kernel_init=nnx.initializers.normal(scale), rngs=rngs)
    if has_new:
      self.is_new = ItemTable(jnp.zeros(num_items, bool))

  def encode_items(self) -> tuple[jax.Array, jax.Array]:
    """Every row's vector [num_rows, dim] and bias [num_rows]."""
    vectors, biases = self.item[...], self.item_bias[...]
    if hasattr(self, 'is_new'):
      is_new = self.is_new[...]
      vectors = jnp.where(is_new[:, None], 0, vectors)
      biases = jnp.where(is_new, 0, biases)
    if hasattr(self, 'item_tower'):
      made = self.item_tower(self.item_features[...])
      vectors, biases = vectors + made[:, :-1], biases + made[:, -1]
    return vectors, biases

  def __call__(self) -> jax.Array:
    """Scores every row: float32 [num_rows]."""
    vectors, biases = self.encode_items()
    query, bias = jnp.zeros(vectors.shape[1]), self.bias[...]
    if hasattr(self, 'user_tower'):
      query = query + self.user_tower(self.user_features[...])
    if self.has_vector:
      query, bias = query + self.user[...], bias + self.user_bias[...]
    scores = vectors @ query + biases + bias
    if hasattr(self, 'context_map'):
      scores += (vectors * self.context_map(self.context[...])).sum(-1)
    return scores


class _ItemVectors(TwoTower):
  """The same parameters, called for the item vectors."""

  def __call__(self) -> jax.Array:
    return self.encode_items()[0]


def make_two_tower(
    config: ModelConfig, settings: TwoTowerConfig, side: SideInputs,
    num_items: int
) -> Recommender:
  """Builds the two-tower recommender of some features.

  `init_personal` leaves room for a client's features, `Known`, which
  `population.fill_known` fills. `score` takes rows as `Numbered`, or the whole
  catalogue in the order of its ids; its `penalty` is the spreadout term.

  Args:
    config: dim and init_scale are read.
    settings: The towers.
    side: The features.
    num_items: Items in the catalogue.

  Raises:
    ValueError: For features of another catalogue.
  """
  for name, table in (('items', side.items), ('new_items', side.new_items)):
    if table is not None and len(table) != num_items:
      raise ValueError(
          f'side.{name} has {len(table)} rows, but num_items={num_items}; give '
          'one row an item, in the order of their ids.')
  has_context = side.train_moments is not None
  has_new = side.new_items is not None and bool(side.new_items.any())
  user_width, item_width = (
      0 if table is None else table.shape[1]
      for table in (side.users, side.items))

  def build(model: type[TwoTower]) -> Recommender:
    return make_recommender(lambda key: model(
        config, settings, user_width, item_width, has_new, has_context,
        num_items, key))

  base, encoder = build(TwoTower), build(_ItemVectors)
  public = {name: jnp.asarray(table) for name, table in (
      ('item_features', side.items),
      ('is_new', side.new_items if has_new else None)) if table is not None}
  moments = jnp.asarray(decode_moments()) if has_context else None
  known = {*public, *(['context'] if has_context else [])}

  def init_server(key):
    table, shared = base.init_server(key)
    return {name: leaf for name, leaf in table.items()
            if name not in known}, shared

  def init_personal(key):
    own = base.init_personal(key)
    if user_width:
      own['user_features'] = Known(own['user_features'])
    if has_context:
      own['moment'] = Moment(jnp.zeros(()))
    return own

  def informed(personal, item_rows):
    """Puts features in their places, those of each row by its number."""
    if user_width:
      known = personal['user_features'].values
      personal = personal | {'user_features': jax.lax.stop_gradient(known)}
    codes = None
    if isinstance(item_rows, Numbered):
      item_rows, numbers, codes = item_rows
    elif len(item_rows['item_bias']) == num_items:
      numbers = jnp.arange(num_items)
    else:
      raise ValueError(
          f'item_rows of {len(item_rows["item_bias"])} rows out of num_items='
          f'{num_items} without their numbers: features are looked up by them; '
          'give Numbered(rows, numbers).')
    # A slot without an item has the number num_items: zeros.
    item_rows = item_rows | {
        name: table.at[numbers].get(mode='fill', fill_value=0)
        for name, table in public.items()}
    if moments is not None:
      if codes is None:
        codes = jnp.broadcast_to(personal['moment'].code, numbers.shape)
      item_rows['context'] = moments[
          jax.lax.stop_gradient(codes).astype(jnp.int32)]
      personal = {name: leaf for name, leaf in personal.items()
                  if name != 'moment'}
    return personal, item_rows

  def score(personal, item_rows, shared):
    personal, item_rows = informed(personal, item_rows)
    return base.score(personal, item_rows, shared)

  def spreadout(personal, item_rows, shared, used):
    personal, item_rows = informed(personal, item_rows)
    vectors = encoder.score(personal, item_rows, shared)
    groups = jnp.where(
        used[..., None], vectors.reshape(*used.shape, -1), 0)  # [B, G, dim]
    products = jnp.square(jnp.einsum('bgd,bhd->bgh', groups, groups))
    others = products.sum((1, 2)) - jnp.einsum('bgg->b', products)
    partners = jnp.maximum(used.sum(1) - 1, 1)
    return settings.spreadout * (others / partners).sum()

  return Recommender(
      init_server, init_personal, score, numbered=True,
      penalty=spreadout if settings.spreadout else None,
      new_items=side.new_items if has_new else None)
