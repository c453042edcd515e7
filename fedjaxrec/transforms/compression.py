"""From a config to the transform that compresses one client's delta."""

from collections.abc import Callable

import jax
import optax

from fedjaxrec.config.compression import CompressionConfig
from fedjaxrec.transforms import quantize, rotate, sketch, sparsify

MakeCompression = Callable[
    [jax.Array, jax.Array], optax.GradientTransformationExtraArgs]


def build_compression(config: CompressionConfig) -> MakeCompression | None:
  """Builds what the config names, without its memory.

  Sparsifies, then quantizes; or rotates and quantizes; or sketches and
  quantizes the sketch. With error feedback every part is taken in the form that
  is a contraction, otherwise in the one without bias where there is one
  (random_k, sketches). The memory itself is the caller's, who keeps it between
  rounds: see `error_feedback.with_error_feedback` and `error_feedback_step`.

  Clip before it, and again after it where the chain lets the norm grow (see
  each part) and a bound must hold.

  Args:
    config: The chain. Wire cost: `communication.wire_bytes`.

  Returns:
    None for no compression; otherwise (client_key, round_key) -> transform of
    one client's delta, with the extra argument `mask` (a tree prefix of the
    delta, see `leaves.rows_in_use`). client_key is this client's in this round;
    round_key is the same for all clients of the round, and only the basis or
    the hashes of a sketch come from it. A count sketch wants the leaves of all
    items, in their order, for its tables to add up.
  """
  if not config.is_on:
    return None
  unbiased = not config.error_feedback

  def make(client_key, round_key):
    select_key, round_off_key, rotation_key = jax.random.split(client_key, 3)
    quantizer = {
        'none': optax.identity,
        'sign': quantize.sign,
        'ternary': lambda: quantize.ternary(round_off_key),
        'qsgd': lambda: quantize.qsgd(config.bits, round_off_key),
    }[config.quantize]()
    if config.sketch == 'low_rank':
      return sketch.low_rank(
          config.rank, round_key, unbiased=unbiased, inner=quantizer)
    if config.sketch == 'count':
      return sketch.count_sketch(
          config.sketch_width, config.sketch_depth, round_key,
          unbiased=unbiased, inner=quantizer)
    if config.rotate:
      return rotate.with_rotation(quantizer, rotation_key)
    sparsifier = {
        'none': optax.identity,
        'top_k': lambda: sparsify.top_k(
            config.fraction, granularity=config.granularity),
        'random_k': lambda: sparsify.random_k(
            config.fraction, select_key, granularity=config.granularity,
            unbiased=unbiased),
        'threshold': lambda: sparsify.threshold(config.threshold),
    }[config.sparsify]()
    return optax.chain(sparsifier, quantizer)

  return make
