"""From a config to what protects an update: clip, compress, encode, noise.

The order is the guarantee. On a client: clip (rows first, then the whole);
compress; clip again where compression may have made the delta longer; encode
for the secure sum. On the server: noise on the raw sum, before anything scales
it.
"""

import dataclasses
import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjaxrec.aggregation import distributed_noise
from fedjaxrec.aggregation.ring import Ring, make_ring
from fedjaxrec.config import Config
from fedjaxrec.transforms import adaptive_clip, released_counts
from fedjaxrec.transforms.clip import (
  clip_by_l2,
  clip_groups_by_l2,
  clip_item_rows,
)
from fedjaxrec.transforms.compression import build_compression
from fedjaxrec.transforms.correlated_noise import (
  Strategy,
  add_correlated_noise,
)
from fedjaxrec.transforms.error_feedback import with_error_feedback
from fedjaxrec.transforms.local_update import build_local_privacy
from fedjaxrec.transforms.message_length import build_message_length
from fedjaxrec.transforms.noise import add_gaussian_noise
from fedjaxrec.transforms.parts import in_units_of, only_rows
from fedjaxrec.transforms.quantize import round_rows
from fedjaxrec.uplink import PLAIN, Codec, Uplink

PyTree = Any

# The ring's width where none is asked for, and it is enough.
_RING_BITS = 16
# Keeps the noise's keys apart from the other uses of the run's seed.
_NOISE_STREAM = 0x4015E
_COUNT_STREAM = 0xC0147
_LOCAL_STREAM = 0x10CA1
# What a run's releases do not depend on; the seed has a key of its own.
_WITHOUT_EFFECT = {'seed', 'engine', 'parallel', 'checkpoint', 'evaluation',
                   'data.path', 'data.cache_dir'}


class Protection(NamedTuple):
  """What `make_simulation` takes of it.

  Attributes:
    uplink: The clients' side.
    server_transform: The server's side, on the raw sum; None for none.
    expected_cohort: What a mean divides by; None: who reported.
  """
  uplink: Uplink
  server_transform: optax.GradientTransformation | None
  expected_cohort: float | None


def build_protection(
    config: Config,
    expected_cohort: float,
    max_cohort: int,
    open_rows: jax.Array | None = None,
    dimension: int | None = None,
    strategy: Strategy | None = None,
) -> Protection:
  """Builds the protection that the sections privacy, compression, secure ask.

  privacy.noise_multiplier is used as it stands: calibrate it first, from
  privacy.epsilon (`privacy.plan`). Scalars may be traced.

  Formal guarantee: with the noise multiplier z, every round's noisy sum is the
  Gaussian mechanism of multiplier z on the clients' clipped deltas, unit the
  client, under adding or removing one; with privacy.deployment_cohort the noise
  is smaller by cohort / deployment_cohort, and the guarantee is that of the
  deployment, not of this simulation.

  Args:
    config: The whole config.
    expected_cohort: Clients expected in a round, a public number.
    max_cohort: Most clients of a round.
    open_rows: bool [num_items]: the only rows that travel, where
      privacy.head_items asks for it.
    dimension: Numbers of the model that travel: for secure.noise.
    strategy: The matrix of privacy.mechanism=banded and blt.

  Raises:
    ValueError: If the ring is too small, or the budget is not calibrated yet.
  """
  privacy, secure = config.privacy, config.secure
  if _is_zero(privacy.noise_multiplier) and privacy.enabled:
    raise ValueError(
        f'privacy.noise_multiplier=0 with privacy.epsilon={privacy.epsilon}: '
        'the noise is calibrated before a simulation is built; use '
        'fedjaxrec.train, or give privacy.noise_multiplier.')
  if config.algorithm.name == 'dpals':
    # It bounds its own sums, and makes them noisy itself.
    return Protection(PLAIN, None, None)
  if privacy.head_items and open_rows is None:
    raise ValueError(
        f'privacy.head_items={privacy.head_items} without open_rows: which '
        'rows these are is chosen from the data, before a simulation is built.')
  if privacy.mechanism != 'gaussian' and strategy is None:
    raise ValueError(
        f'privacy.mechanism={privacy.mechanism!r} without a strategy: its '
        'matrix is optimised for the run, before a simulation is built; use '
        'fedjaxrec.train.')
  if config.local_privacy.is_on:
    return Protection(
        Uplink(is_dense=True, downlink=_downlink(config),
               transform=build_local_privacy(
                   config.local_privacy, open_rows,
                   noise_key(config, _LOCAL_STREAM))), None, None)
  adaptive = privacy.clipping == 'adaptive'
  server_chain = _server_chain(config, expected_cohort, open_rows, strategy)
  if privacy.release_counts:
    server_chain = released_counts.with_counts(
        server_chain, _count_stddev(config, expected_cohort),
        noise_key(config, _COUNT_STREAM))
  codec = None
  if secure.is_on:
    codec = _make_codec(
        config, expected_cohort, max_cohort, open_rows, dimension)
  # Where rows are clipped, the clipping of the whole is second in the chain.
  place = 1 if privacy.clips_rows else 0
  uplink = Uplink(
      clip_norm=None if _codec_clips(config) else _fused_clip(config),
      transform=None if _codec_clips(config) else _client_chain(config),
      report=(lambda state: state[place].report) if adaptive
      else PLAIN.report,
      has_memory=config.compression.error_feedback,
      # Noise stands in every entry, whatever the client touched; and hashed
      # entries add up by item.
      is_dense=(secure.on_host and secure.noise != 'none'
                or config.compression.sketch == 'count'),
      codec=codec,
      open_rows=open_rows,
      count_norm=privacy.count_clip_norm if privacy.release_counts else None,
      downlink=_downlink(config),
      message_length=None if codec is not None else build_message_length(
          config.compression))
  return Protection(
      uplink, server_chain,
      float(expected_cohort) if privacy.enabled else None)


def _downlink(config):
  """How downloaded rows are rounded; None where they are not."""
  bits = config.compression.downlink_bits
  return (lambda rows, axes: round_rows(rows, axes, bits)) if bits else None


def count_floor(config: Config, expected_cohort: float | None) -> Any:
  """The least that a noisy count of contributors is read as.

  Args:
    config: The whole config, its noise calibrated; scalars may be traced.
    expected_cohort: Clients expected in a round; None where nothing is private.

  Returns:
    None where no counts are released.
  """
  if not config.privacy.release_counts or expected_cohort is None:
    return None
  return released_counts.count_floor(_count_stddev(config, expected_cohort))


def _count_stddev(config, expected_cohort):
  return released_counts.count_noise_stddev(
      config.privacy, _cohort_share(config.privacy, expected_cohort))


def noise_key(config: Config, stream: int) -> jax.Array:
  """The key of a run's noise: of its seed, and of all that its sums depend on.

  Two runs of one seed that differ in anything but performance and evaluation
  (two epsilons, say) draw different noise: with the same, the difference of
  what they release would hold no noise at all.

  Args:
    config: The whole config; floats and the seed may be traced.
    stream: Tells apart the noises of one run.
  """
  texts: list[str] = []
  numbers: list[Any] = []

  def visit(node, prefix):
    for field in dataclasses.fields(node):
      name, value = prefix + field.name, getattr(node, field.name)
      if name in _WITHOUT_EFFECT:
        continue
      if dataclasses.is_dataclass(value):
        visit(value, f'{name}.')
      elif isinstance(value, (float, jax.Array)):
        numbers.append(value)
      else:
        texts.append(f'{name}={value!r}')

  visit(config, '')
  digest = hashlib.sha256('\n'.join(texts).encode()).digest()
  key = jax.random.fold_in(jax.random.key(config.seed), stream)
  for start in (0, 4):
    key = jax.random.fold_in(
        key, int.from_bytes(digest[start:start + 4], 'little'))
  mixed = jnp.uint32(0)
  for number in numbers:
    bits = jax.lax.bitcast_convert_type(jnp.float32(number), jnp.uint32)
    mixed = (mixed ^ bits) * jnp.uint32(0x9e3779b1)
    mixed ^= mixed >> 15
  return jax.random.fold_in(key, mixed)


def _is_zero(value: Any) -> bool:
  """Whether a number is 0; a traced one stands for a number that is not."""
  return isinstance(value, (int, float)) and value == 0


class _Report(NamedTuple):
  report: jax.Array


def _clip_and_report(clip_norm):
  def update(updates, state, params=None):
    del state, params
    clipped, report = adaptive_clip.clip_and_report(updates, clip_norm)
    return clipped, _Report(report)

  return optax.GradientTransformation(
      lambda params: _Report(jnp.float32(0)), update)


def _fused_clip(config: Config):
  """The bound of the whole delta where it is clipped first, by the engine."""
  clip_norm = ring_clip_norm(config)
  if (_is_zero(clip_norm) or config.privacy.clips_groups
      or config.privacy.clips_rows or config.privacy.clipping == 'adaptive'):
    return None
  return lambda state: clip_norm


def _client_chain(config: Config):
  """Builds one client's chain, as `Uplink.transform` is, or None."""
  privacy = config.privacy
  compress = build_compression(config.compression)
  clip_norm = ring_clip_norm(config)

  def clip(state):
    if privacy.clips_groups:
      return clip_groups_by_l2(
          (privacy.item_clip_norm, privacy.shared_clip_norm))
    if privacy.clipping == 'adaptive':
      return clip_by_l2(state.clip_norm)
    return clip_by_l2(clip_norm)

  clips = not _is_zero(clip_norm) or privacy.clips_groups
  fused = _fused_clip(config) is not None
  rows = [clip_item_rows(privacy.row_clip_norm)] if privacy.clips_rows else []
  if compress is None and not rows and (fused or not clips):
    return None

  def make(key, round_key, state):
    if privacy.release_counts:
      state = state[0]  # Beside it: that of the counts' noise.
    chain = [*rows]
    if clips and not fused:
      chain.append(
          _clip_and_report(state.clip_norm)
          if privacy.clipping == 'adaptive' else clip(state))
    if compress is not None:
      compressor = compress(key, round_key)
      chain.append(
          with_error_feedback(compressor)
          if config.compression.error_feedback else compressor)
      chain += rows
      if clips:
        chain.append(clip(state))
    return optax.chain(*chain)

  return make


def _server_chain(
    config: Config, expected_cohort: float, open_rows,
    strategy: Strategy | None
):
  """Builds the noise on the raw sum, or None."""
  privacy = config.privacy
  if not privacy.enabled or config.secure.noise != 'none':
    return None  # Or the clients have added it already.
  key = noise_key(config, _NOISE_STREAM)
  share = _cohort_share(privacy, expected_cohort)
  multiplier = privacy.noise_multiplier * share
  if privacy.clipping == 'adaptive':
    inner = adaptive_clip.add_noise_and_adapt(
        multiplier, (privacy.bit_noise_stddev or expected_cohort / 20) * share,
        expected_cohort, key, initial_clip_norm=privacy.l2_clip_norm,
        quantile=privacy.target_quantile,
        learning_rate=privacy.clip_learning_rate)

    def update(updates, state, params=None, *, reports):
      del params
      noisy, state = inner.update(
          adaptive_clip.Reported(updates, reports), state)
      return noisy.update, state

    noise = optax.GradientTransformationExtraArgs(inner.init, update)
  elif strategy is not None:
    norms = ((privacy.item_clip_norm, privacy.shared_clip_norm)
             if privacy.clips_groups else (privacy.l2_clip_norm,) * 2)
    noise = in_units_of(norms, add_correlated_noise(
        multiplier * (2**0.5 if privacy.clips_groups else 1), 1.0, strategy,
        key))
  elif privacy.clips_groups:
    # The same multiplier on both, and the root of the squares between them.
    factor = 2**0.5
    noise = add_gaussian_noise(
        (multiplier * privacy.item_clip_norm * factor,
         multiplier * privacy.shared_clip_norm * factor), key)
  else:
    noise = add_gaussian_noise(multiplier * privacy.l2_clip_norm, key)
  return noise if open_rows is None else only_rows(noise, open_rows)


def _cohort_share(privacy, expected_cohort):
  """The factor on all noise of a simulated deployment."""
  if not privacy.deployment_cohort:
    return 1.0
  return expected_cohort / privacy.deployment_cohort


def ring_clip_norm(config: Config) -> float:
  """The bound of a delta's norm: the privacy section's, or the ring's own."""
  if not _is_zero(config.privacy.l2_clip_norm):
    return config.privacy.l2_clip_norm
  if config.privacy.clips_groups:
    return (config.privacy.item_clip_norm**2
            + config.privacy.shared_clip_norm**2) ** 0.5
  return (config.secure.l2_clip_norm or 1.0) if config.secure.is_on else 0.0


def _codec_clips(config: Config) -> bool:
  """Whether a clipping by one norm is all of the chain: the codec's norm."""
  privacy = config.privacy
  return (config.secure.is_on and privacy.clipping == 'fixed'
          and not (privacy.clips_groups or privacy.clips_rows
                   or config.compression.is_on))


def make_run_ring(
    config: Config, expected_cohort: float, max_cohort: int,
    dimension: int | None = None
) -> Ring:
  """The ring of a run: its width is what was asked for, or enough.

  Args:
    config: The whole config, its noise calibrated.
    expected_cohort: Clients expected in a round.
    max_cohort: Most clients of a round.
    dimension: Numbers that travel; only secure.noise needs it.

  Raises:
    ValueError: If the ring is too small.
  """
  secure = config.secure
  bits, clip_norm = secure.bits or _RING_BITS, ring_clip_norm(config)
  if secure.noise == 'none':
    return make_ring(bits, clip_norm, max_cohort,
                     entry_bound=secure.entry_bound or None,
                     rotation=secure.rotation)
  if dimension is None:
    raise ValueError(
        f"secure.noise={secure.noise} without the model's dimension: it is "
        'for single runs (fedjaxrec train); a study uses secure.noise=none.')
  # As much as the fewest survivors bring is what is asked for; all bring more.
  most = config.privacy.noise_multiplier * (
      max_cohort / secure.survivor_threshold(expected_cohort)) ** 0.5
  return make_ring(
      bits, clip_norm, max_cohort, noise_multiplier=most, dimension=dimension,
      rotation=secure.rotation)


def noise_share(config: Config, ring: Ring, expected_cohort: float) -> float:
  """Standard deviation of one client's share of the noise, in integers.

  The shares of the fewest survivors add up to the noise multiplier.
  """
  if config.secure.noise == 'none':
    return 0.0
  return (config.privacy.noise_multiplier * ring_clip_norm(config) * ring.scale
          / config.secure.survivor_threshold(expected_cohort) ** 0.5)


def _make_codec(
    config: Config, expected_cohort: float, max_cohort: int, open_rows,
    dimension: int | None
) -> Codec:
  secure = config.secure
  ring = make_run_ring(config, expected_cohort, max_cohort, dimension)
  share = noise_share(config, ring, expected_cohort)
  clip = _codec_clips(config)

  def only_open(noisy, plain):
    if open_rows is None:
      return noisy
    keep = lambda x, old: jnp.where(
        open_rows.reshape(-1, *[1] * (x.ndim - 1)), x, old)
    return jax.tree.map(keep, noisy[0], plain[0]), noisy[1]

  def encode(delta, key, round_key, row_axes):
    values, accepted = ring.encode(
        delta, key, round_key, leading_axes=(row_axes, 0), clip=clip)
    if share and secure.on_host:
      noisy = add_noise(values, jax.random.fold_in(key, 1), 1)
      values = only_open(noisy, values)
    return values, accepted

  def add_noise(values, key, num_shares):
    add = {'skellam': distributed_noise.add_skellam,
           'discrete_gaussian': distributed_noise.add_discrete_gaussian}
    return add[secure.noise](
        values, key, share, num_shares=num_shares, bits=ring.bits)

  def decode(total, round_key, reported):
    if share and not secure.on_host:
      total = only_open(
          add_shares(total, jax.random.fold_in(round_key, 1), reported), total)
    return ring.decode(total, round_key, leading_axes=(1, 0))

  def add_shares(total, key, reported):
    """The shares of all who reported, in as many draws as their number's bits.

    A table is made for 1, 2, 4, ... shares: sums of them are exact.
    """
    count = reported.astype(jnp.int32)
    for bit in range(max_cohort.bit_length()):
      total = jax.lax.cond(
          (count >> bit) & 1 == 1,
          lambda x, bit=bit: add_noise(
              x, jax.random.fold_in(key, bit), 1 << bit),
          lambda x: x, total)
    return total

  return Codec(encode, decode, checks=True,
               least=secure.survivor_threshold(expected_cohort))
