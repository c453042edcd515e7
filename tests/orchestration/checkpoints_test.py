"""Checkpoints: what goes in comes out, or nothing does."""

import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjaxrec.orchestration.checkpoints import Best, Checkpoint, open_store

FINGERPRINT = 'of the data'
# Every type that a state could hold, and every kind of shape.
DTYPES = ('float16', 'bfloat16', 'float32', 'float64', 'int8', 'uint8', 'int32',
          'uint32', 'int64', 'bool')
SHAPES = ((), (1,), (3,), (2, 3), (2, 1, 4))


def make_checkpoint(scale=1.0):
  """A checkpoint with a leaf of each type and shape."""
  rng = np.random.default_rng(0)
  server = {
      f'{dtype} {shape}': np.asarray(
          scale * rng.integers(0, 50, shape)).astype(jnp.dtype(dtype))
      for dtype in DTYPES for shape in SHAPES}
  best = Best(
      np.int32(3), np.float32(scale / 3), {'item': np.ones((4, 2), np.float32)},
      {'bias': np.float32(-0.0)}, {'user': np.full((2, 2), np.nan, np.float32)})
  return Checkpoint(
      server, {'user': np.full((5, 2), scale / 7, np.float32)}, best,
      np.float64(scale / 3))


def save(directory, rounds, keep=9):
  """Checkpoints whose arrays are scaled by their round."""
  store = open_store(directory, keep, FINGERPRINT)
  for r in rounds:
    store.save(r, make_checkpoint(r))
  store.close()


def restore(directory, like=None, fingerprint=FINGERPRINT):
  store = open_store(directory, 9, fingerprint)
  try:
    return store.restore(make_checkpoint() if like is None else like)
  finally:
    store.close()


def assert_equal(left, right):
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right)):
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()  # Also NaN, and the sign of zero.


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  directory = tmp_path_factory.mktemp('saved') / 'checkpoints'
  save(directory, [4, 5])
  return directory


@pytest.fixture
def copy(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / 'checkpoints')


class TestRoundTrip:

  def test_every_type_and_shape_comes_back_to_the_bit(self, saved):
    round_index, found = restore(saved)
    assert round_index == 5
    assert_equal(found, make_checkpoint(5))

  def test_arrays_of_jax_are_stored_as_numpy(self, tmp_path):
    store = open_store(tmp_path / 'checkpoints', 1, FINGERPRINT)
    checkpoint = make_checkpoint()._replace(
        personal={'user': jnp.arange(6.0).reshape(2, 3)})
    store.save(1, checkpoint)
    _, found = store.restore(checkpoint)
    store.close()
    assert isinstance(found.personal['user'], np.ndarray)
    assert_equal(found, checkpoint)

  def test_what_comes_back_may_be_written_to(self, saved):
    _, found = restore(saved)
    for leaf in jax.tree.leaves(found):
      assert leaf.flags.writeable or not leaf.shape

  def test_the_shapes_to_expect_need_no_values(self, saved):
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
        if x.dtype.itemsize < 8 else x, make_checkpoint())
    assert_equal(restore(saved, like)[1], make_checkpoint(5))

  def test_an_empty_or_missing_folder_has_none_and_is_not_made(self, tmp_path):
    assert restore(tmp_path / 'none') is None
    assert not (tmp_path / 'none').exists()
    assert restore(tmp_path) is None
    assert not list(tmp_path.iterdir())

  @pytest.mark.parametrize(('keep', 'kept'), [
      (1, {'9'}), (2, {'7', '9'}), (3, {'2', '7', '9'}),
      (9, {'1', '2', '7', '9'})])
  def test_the_latest_are_kept(self, keep, kept, tmp_path):
    save(tmp_path, [1, 2, 7, 9], keep)
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert restore(tmp_path)[0] == 9

  def test_the_latest_is_the_largest_number_not_the_last_name(self, tmp_path):
    save(tmp_path, [8, 9, 10])
    assert restore(tmp_path)[0] == 10

  def test_a_store_goes_on_where_another_ended(self, copy):
    save(copy, [6], keep=2)
    assert {path.name for path in copy.iterdir()} == {'5', '6'}
    assert_equal(restore(copy)[1], make_checkpoint(6))

  def test_saving_returns_when_it_is_on_disk(self, tmp_path):
    """No thread is still at it: the folder has its final name."""
    store = open_store(tmp_path, 1, FINGERPRINT)
    store.save(1, make_checkpoint())
    assert [path.name for path in tmp_path.iterdir()] == ['1']
    shutil.copytree(tmp_path, tmp_path / 'snapshot')
    assert_equal(restore(tmp_path / 'snapshot')[1], make_checkpoint())
    store.close()

  def test_closing_leaves_no_threads_behind(self, tmp_path):
    save(tmp_path, [1])
    before = threading.active_count()
    for r in range(2, 5):
      save(tmp_path, [r])
      restore(tmp_path)
    assert threading.active_count() <= before


def files_of_a_checkpoint(directory):
  return sorted(str(path.relative_to(directory))
                for path in directory.rglob('*') if path.is_file())


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 0x15
  path.write_bytes(content)


def cut(path):
  content = path.read_bytes()
  path.write_bytes(content[:len(content) // 2])


def remove(path):
  path.unlink()


# Files that Orbax leaves beside what it reads: names of its versions and
# handlers, marks for other file systems, and the parts that its final array
# file was put together from.
UNREAD = ('_CHECKPOINT_METADATA', 'commit_success.txt', 'ocdbt.process_0')


# Orbax's threads outlive the event loop in which they failed.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
class TestDamage:

  # The files' names are random: found out when the test runs.
  @pytest.mark.parametrize('damage', [flip, cut, remove])
  def test_every_file_is_whole_or_named(self, damage, saved, tmp_path):
    """Of each file: the checkpoint is refused, or it did not need the file."""
    refused, unread = [], []
    for number, file in enumerate(files_of_a_checkpoint(saved / '5')):
      folder = tmp_path / str(number)
      shutil.copytree(saved, folder)
      before = (folder / '5' / file).read_bytes()
      damage(folder / '5' / file)
      if damage is not remove and (folder / '5' / file).read_bytes() == before:
        assert not before  # An empty file has nothing to cut.
        continue
      try:
        round_index, found = restore(folder)
      except ValueError as error:
        assert f'checkpoint={folder / "5"} is damaged' in str(error)
        assert '--overwrite' in str(error) and f'delete {folder / "5"}' in str(
            error)
        refused.append(file)
      else:
        # Never another checkpoint in its place, and never a part of it.
        assert round_index == 5
        assert_equal(found, make_checkpoint(5))
        unread.append(file)
    assert all(any(part in file for part in UNREAD) for file in unread), unread
    # What holds the numbers, what describes them, and their digest.
    assert 'meta/metadata' in refused and 'arrays/_METADATA' in refused
    assert any(file.startswith('arrays/d/') for file in refused)

  def test_any_byte_of_the_numbers_is_guarded(self, saved, tmp_path):
    """One byte in a hundred, all through the file that holds the arrays."""
    copy = shutil.copytree(saved, tmp_path / 'checkpoints')
    path, = (copy / '5' / 'arrays' / 'd').iterdir()
    whole = path.read_bytes()
    places = np.random.default_rng(0).choice(
        len(whole), len(whole) // 100 + 1, replace=False)
    for place in places:
      content = bytearray(whole)
      content[place] ^= 0x40
      path.write_bytes(content)
      try:
        _, found = restore(copy)
      except ValueError as error:
        assert 'is damaged' in str(error)
      else:  # A byte that nobody reads.
        assert_equal(found, make_checkpoint(5))
    path.write_bytes(whole)
    assert_equal(restore(copy)[1], make_checkpoint(5))

  def test_arrays_of_another_checkpoint_are_refused(self, copy):
    """They are whole, but the digest is not theirs."""
    shutil.rmtree(copy / '5' / 'arrays')
    shutil.copytree(copy / '4' / 'arrays', copy / '5' / 'arrays')
    with pytest.raises(ValueError, match='do not match its digest'):
      restore(copy)

  def test_an_earlier_one_is_read_when_the_damaged_one_is_deleted(self, copy):
    flip(copy / '5' / 'meta' / 'metadata')
    with pytest.raises(ValueError, match='5 is damaged'):
      restore(copy)
    shutil.rmtree(copy / '5')
    round_index, found = restore(copy)
    assert round_index == 4
    assert_equal(found, make_checkpoint(4))

  def test_an_unfinished_one_is_none(self, copy):
    """What a killed process leaves has no number for a name."""
    (copy / '5').rename(copy / '5.orbax-checkpoint-tmp')
    assert restore(copy)[0] == 4
    save(copy, [5])
    assert_equal(restore(copy)[1], make_checkpoint(5))


class TestRefused:

  @pytest.mark.parametrize('change', [
      lambda c: c._replace(personal={'user': np.zeros((6, 2), np.float32)}),
      lambda c: c._replace(personal={'user': np.zeros((5, 2), np.float16)}),
      lambda c: c._replace(personal={}),
      lambda c: c._replace(train_s=np.zeros(1)),
  ])
  def test_other_shapes_are_refused(self, change, saved):
    with pytest.raises(ValueError, match=(
        r'checkpoint=.*5 was written for other shapes.*--overwrite')):
      restore(saved, change(make_checkpoint()))

  def test_other_data_is_refused(self, saved):
    with pytest.raises(ValueError, match=(
        'checkpoint=.*5 was made on data with the fingerprint of the data, '
        'and the data has another now.*--overwrite')):
      restore(saved, fingerprint='another')
