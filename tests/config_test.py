"""A config that cannot be meant is refused when it is made."""

import dataclasses
import json

import pytest

from fedjaxrec import config as config_lib
from fedjaxrec.config import (
  AlgorithmConfig,
  APFLConfig,
  CheckpointConfig,
  ClientConfig,
  CoFedRecConfig,
  CohortConfig,
  CompressionConfig,
  Config,
  DataConfig,
  DittoConfig,
  DPALSConfig,
  EngineConfig,
  EvaluationConfig,
  FCFConfig,
  FedMFConfig,
  FedPerGNNConfig,
  FedRAPConfig,
  FedReconConfig,
  FedRepConfig,
  GPFedRecConfig,
  IALSConfig,
  ModelConfig,
  ObjectiveConfig,
  ParallelConfig,
  PersonalizationConfig,
  PFedRecConfig,
  PrivacyConfig,
  SecureConfig,
  ServerConfig,
  SplitConfig,
  SyntheticConfig,
)

NAN = float('nan')
INF = float('inf')

# Class, arguments, and the `name=value` that the message must hold.
REFUSED = [
  (IALSConfig, {'unobserved_weight': -0.1}, 'ials.unobserved_weight=-0.1'),
  (IALSConfig, {'regularization': 0.0}, 'ials.regularization=0.0'),
  (IALSConfig, {'frequency_exponent': -1.0}, 'ials.frequency_exponent=-1.0'),
  (DPALSConfig, {'items_per_client': 0}, 'dpals.items_per_client=0'),
  (DPALSConfig, {'sampling': 'all'}, "dpals.sampling='all'"),
  (DPALSConfig, {'adaptive_exponent': 0.5}, 'dpals.adaptive_exponent=0.5'),
  (DPALSConfig, {'item_fraction': 0.0}, 'dpals.item_fraction=0.0'),
  (DPALSConfig, {'gramian_share': 0.0}, 'dpals.gramian_share=0.0'),
  (DPALSConfig, {'vector_share': 0.95}, 'dpals.vector_share=0.95'),
  (FCFConfig, {'alpha': -1.0}, 'fcf.alpha=-1.0'),
  (FCFConfig, {'regularization': 0.0}, 'fcf.regularization=0.0'),
  (FedMFConfig, {'learning_rate': 0.0}, 'fedmf.learning_rate=0.0'),
  (FedMFConfig, {'user_regularization': -1.0}, 'fedmf.user_regularization=-1'),
  (FedMFConfig, {'item_regularization': -1.0}, 'fedmf.item_regularization=-1'),
  (PersonalizationConfig, {'table_limit_gib': -1.0},
   'personalization.table_limit_gib=-1.0'),
  (PersonalizationConfig, {'finetune_steps': -1},
   'personalization.finetune_steps=-1'),
  (PersonalizationConfig, {'finetune_fraction': 0.0},
   'personalization.finetune_fraction=0.0'),
  (PFedRecConfig, {'lr_eta': NAN}, 'pfedrec.lr_eta=nan'),
  (GPFedRecConfig, {'similarity': 'cosine'}, "gpfedrec.similarity='cosine'"),
  (GPFedRecConfig, {'layers': 0}, 'gpfedrec.layers=0'),
  (GPFedRecConfig, {'pull': -1.0}, 'gpfedrec.pull=-1.0'),
  (FedRAPConfig, {'batch_decay': 1.5}, 'fedrap.batch_decay=1.5'),
  (FedRAPConfig, {'sparsity': -1.0}, 'fedrap.sparsity=-1.0'),
  (DittoConfig, {'pull': INF}, 'ditto.pull=inf'),
  (FedReconConfig, {'epochs': 0}, 'fedrecon.epochs=0'),
  (FedReconConfig, {'learning_rate': 0.0}, 'fedrecon.learning_rate=0.0'),
  (FedRepConfig, {'head_epochs': 0}, 'fedrep.head_epochs=0'),
  (FedPerGNNConfig, {'aggregator': 'gcn'}, "fedpergnn.aggregator='gcn'"),
  (FedPerGNNConfig, {'degree_power': -1.0}, 'fedpergnn.degree_power=-1.0'),
  (FedPerGNNConfig, {'pseudo_items': -1}, 'fedpergnn.pseudo_items=-1'),
  (CoFedRecConfig, {'lr_eta': -1.0}, 'cofedrec.lr_eta=-1.0'),
  (CoFedRecConfig, {'item_clusters': 0}, 'cofedrec.item_clusters=0'),
  (CoFedRecConfig, {'cluster_steps': 0}, 'cofedrec.cluster_steps=0'),
  (CoFedRecConfig, {'contrast': INF}, 'cofedrec.contrast=inf'),
  (CoFedRecConfig, {'temperature': 0.0}, 'cofedrec.temperature=0.0'),
  (APFLConfig, {'alpha': 1.5}, 'apfl.alpha=1.5'),
  (APFLConfig, {'alpha_rate': -1.0}, 'apfl.alpha_rate=-1.0'),
  (FedRAPConfig, {'independence': -1.0}, 'fedrap.independence=-1.0'),
  (FedReconConfig, {'final_epochs': 0}, 'fedrecon.final_epochs=0'),
  (GPFedRecConfig, {'lr_eta': -1.0}, 'gpfedrec.lr_eta=-1.0'),
  (GPFedRecConfig, {'threshold': NAN}, 'gpfedrec.threshold=nan'),
  (ObjectiveConfig, {'negative_pool': 'leaky'},
   "objective.negative_pool='leaky'"),
  (DataConfig, {'source': 'movielens'}, "data.source='movielens'"),
  (DataConfig, {'source': 'csv:'}, "data.source='csv:'"),
  (DataConfig, {'min_rating': -1.0}, 'data.min_rating=-1.0'),
  (DataConfig, {'min_rating': NAN}, 'data.min_rating=nan'),
  (DataConfig, {'min_user_interactions': 0}, 'data.min_user_interactions=0'),
  (DataConfig, {'min_item_interactions': 0}, 'data.min_item_interactions=0'),
  (DataConfig, {'user_column': ''}, "data.user_column=''"),
  (DataConfig, {'user_features': 'x.txt'}, "data.user_features='x.txt'"),
  (DataConfig, {'item_features': 'here'}, "data.item_features='here'"),
  (DataConfig, {'item_column': ''}, "data.item_column=''"),
  (SyntheticConfig, {'num_users': 0}, 'synthetic.num_users=0'),
  (SyntheticConfig, {'num_users': 10**8}, 'synthetic.num_users=100000000'),
  (SyntheticConfig, {'num_items': 1}, 'synthetic.num_items=1'),
  (SyntheticConfig, {'num_items': 10**7}, 'synthetic.num_items=10000000'),
  (SyntheticConfig, {'mean_interactions': 0.0},
   'synthetic.mean_interactions=0.0'),
  (SyntheticConfig, {'mean_interactions': 501.0},
   'synthetic.mean_interactions=501.0'),
  (SyntheticConfig, {'activity_sigma': -1.0}, 'synthetic.activity_sigma=-1.0'),
  (SyntheticConfig, {'popularity_exponent': INF},
   'synthetic.popularity_exponent=inf'),
  (SyntheticConfig, {'num_clusters': 0}, 'synthetic.num_clusters=0'),
  (SyntheticConfig, {'latent_dim': 0}, 'synthetic.latent_dim=0'),
  (SyntheticConfig, {'concentration': 1.5}, 'synthetic.concentration=1.5'),
  (SplitConfig, {'name': 'random'}, "split.name='random'"),
  (SplitConfig, {'validation_fraction': 0.0}, 'split.validation_fraction=0.0'),
  (SplitConfig, {'test_fraction': 1.0}, 'split.test_fraction=1.0'),
  (SplitConfig, {'fold_in_fraction': NAN}, 'split.fold_in_fraction=nan'),
  (SplitConfig, {'validation_fraction': 0.5, 'test_fraction': 0.5},
   'split.validation_fraction=0.5'),
  (ModelConfig, {'name': 'svd'}, "model.name='svd'"),
  (ModelConfig, {'dim': 0}, 'model.dim=0'),
  (ModelConfig, {'init_scale': 0.0}, 'model.init_scale=0.0'),
  (ModelConfig, {'hidden': ()}, 'model.hidden=()'),
  (ModelConfig, {'hidden': (8, 0)}, 'model.hidden=(8, 0)'),
  (config_lib.TwoTowerConfig, {'user_hidden': (8, 0)},
   'two_tower.user_hidden=(8, 0)'),
  (config_lib.TwoTowerConfig, {'item_hidden': (0,)},
   'two_tower.item_hidden=(0,)'),
  (config_lib.TwoTowerConfig, {'spreadout': -1.0}, 'two_tower.spreadout=-1.0'),
  (AlgorithmConfig, {'name': 'fed'}, "algorithm.name='fed'"),
  (ObjectiveConfig, {'name': 'mse'}, "objective.name='mse'"),
  (ObjectiveConfig, {'l2': -0.1}, 'objective.l2=-0.1'),
  (ObjectiveConfig, {'num_negatives': -1}, 'objective.num_negatives=-1'),
  (ObjectiveConfig, {'num_negatives': 0}, 'objective.num_negatives=0'),
  (ClientConfig, {'optimizer': 'lion'}, "client.optimizer='lion'"),
  (ClientConfig, {'schedule': 'step'}, "client.schedule='step'"),
  (ClientConfig, {'learning_rate': 0.0}, 'client.learning_rate=0.0'),
  (ClientConfig, {'learning_rate': INF}, 'client.learning_rate=inf'),
  (ClientConfig, {'item_learning_rate': -1.0},
   'client.item_learning_rate=-1.0'),
  (ClientConfig, {'epochs': 0}, 'client.epochs=0'),
  (ClientConfig, {'steps': -1}, 'client.steps=-1'),
  (ClientConfig, {'batch_size': 0}, 'client.batch_size=0'),
  (ClientConfig, {'proximal_mu': -1.0}, 'client.proximal_mu=-1.0'),
  (ClientConfig, {'final_fraction': 0.0}, 'client.final_fraction=0.0'),
  (ClientConfig, {'momentum': 1.0}, 'client.momentum=1.0'),
  (ServerConfig, {'optimizer': 'lion'}, "server.optimizer='lion'"),
  (ServerConfig, {'row_normalization': 'max'},
   "server.row_normalization='max'"),
  (ServerConfig, {'schedule': 'step'}, "server.schedule='step'"),
  (ServerConfig, {'learning_rate': 0.0}, 'server.learning_rate=0.0'),
  (ServerConfig, {'eps': 0.0}, 'server.eps=0.0'),
  (ServerConfig, {'final_fraction': 0.0}, 'server.final_fraction=0.0'),
  (ClientConfig, {'item_optimizer': 'lion'}, "client.item_optimizer='lion'"),
  (ServerConfig, {'momentum': -0.1}, 'server.momentum=-0.1'),
  (ServerConfig, {'b1': 1.0}, 'server.b1=1.0'),
  (ServerConfig, {'b2': NAN}, 'server.b2=nan'),
  (CohortConfig, {'size': -1}, 'cohort.size=-1'),
  (CohortConfig, {'cap': -1}, 'cohort.cap=-1'),
  (CohortConfig, {'cap': 50}, 'cohort.cap=50'),
  (CohortConfig, {'sampler': 'all'}, "cohort.sampler='all'"),
  (CohortConfig, {'weighting': 'size'}, "cohort.weighting='size'"),
  (CohortConfig, {'sampler': 'weighted'}, "cohort.sampler='weighted'"),
  (CohortConfig, {'weights_path': 'w.npy'}, "cohort.weights_path='w.npy'"),
  (CompressionConfig, {'sparsify': 'topk'}, "compression.sparsify='topk'"),
  (CompressionConfig, {'granularity': 'columns'},
   "compression.granularity='columns'"),
  (CompressionConfig, {'fraction': 0.0}, 'compression.fraction=0.0'),
  (CompressionConfig, {'fraction': NAN}, 'compression.fraction=nan'),
  (CompressionConfig, {'threshold': 0.0}, 'compression.threshold=0.0'),
  (CompressionConfig, {'quantize': 'int8'}, "compression.quantize='int8'"),
  (CompressionConfig, {'bits': 1}, 'compression.bits=1'),
  (CompressionConfig, {'bits': 17}, 'compression.bits=17'),
  (CompressionConfig, {'rotate': True}, 'compression.rotate=True'),
  (CompressionConfig,
   {'rotate': True, 'quantize': 'qsgd', 'sparsify': 'top_k'},
   'compression.sparsify=top_k'),
  (CompressionConfig, {'sketch': 'svd'}, "compression.sketch='svd'"),
  (CompressionConfig, {'sketch': 'low_rank', 'sparsify': 'top_k'},
   'compression.sketch=low_rank'),
  (CompressionConfig, {'rank': 0}, 'compression.rank=0'),
  (CompressionConfig, {'error_feedback': True},
   'compression.error_feedback=True'),
  (CompressionConfig, {'error_feedback_limit_gib': 0.0},
   'compression.error_feedback_limit_gib=0.0'),
  (PrivacyConfig, {'epsilon': -1.0}, 'privacy.epsilon=-1.0'),
  (PrivacyConfig, {'epsilon': NAN}, 'privacy.epsilon=nan'),
  (PrivacyConfig, {'epsilon': 8.0}, 'privacy.l2_clip_norm=0.0'),
  (PrivacyConfig, {'epsilon': 8.0, 'l2_clip_norm': 1.0, 'delta': 1.0},
   'privacy.delta=1.0'),
  (PrivacyConfig, {'delta': 1e-5}, 'privacy.delta=1e-05'),
  (PrivacyConfig, {'l2_clip_norm': INF}, 'privacy.l2_clip_norm=inf'),
  (PrivacyConfig, {'item_clip_norm': 1.0}, 'privacy.item_clip_norm=1.0'),
  (PrivacyConfig, {'item_clip_norm': 1.0, 'shared_clip_norm': 1.0,
                   'l2_clip_norm': 1.0}, 'privacy.l2_clip_norm=1.0'),
  (PrivacyConfig, {'epsilon': 8.0, 'l2_clip_norm': 1.0,
                   'noise_multiplier': 1.0}, 'privacy.noise_multiplier=1.0'),
  (PrivacyConfig, {'noise_multiplier': -1.0}, 'privacy.noise_multiplier=-1.0'),
  (PrivacyConfig, {'mechanism': 'laplace'}, "privacy.mechanism='laplace'"),
  (PrivacyConfig, {'mechanism': 'blt'}, 'privacy.mechanism=blt'),
  (PrivacyConfig, {'bands': 0}, 'privacy.bands=0'),
  (PrivacyConfig, {'buffers': 0}, 'privacy.buffers=0'),
  (PrivacyConfig, {'epsilon': 8.0, 'l2_clip_norm': 1.0, 'min_separation': 9},
   'privacy.min_separation=9'),
  (PrivacyConfig, {'deployment_cohort': -1}, 'privacy.deployment_cohort=-1'),
  (PrivacyConfig, {'clipping': 'median'}, "privacy.clipping='median'"),
  (PrivacyConfig, {'epsilon': 8.0, 'l2_clip_norm': 1.0, 'mechanism': 'blt',
                   'clipping': 'adaptive'}, "privacy.clipping='adaptive'"),
  (PrivacyConfig, {'epsilon': 8.0, 'item_clip_norm': 1.0,
                   'shared_clip_norm': 1.0, 'clipping': 'adaptive'},
   "privacy.clipping='adaptive'"),
  (PrivacyConfig, {'target_quantile': 1.0}, 'privacy.target_quantile=1.0'),
  (PrivacyConfig, {'clip_learning_rate': 0.0},
   'privacy.clip_learning_rate=0.0'),
  (PrivacyConfig, {'epsilon': 8.0, 'l2_clip_norm': 1.0,
                   'bit_noise_stddev': 5.0}, 'privacy.bit_noise_stddev=5.0'),
  (PrivacyConfig, {'release_counts': True}, 'privacy.release_counts=True'),
  (PrivacyConfig, {'count_share': 0.0}, 'privacy.count_share=0.0'),
  (PrivacyConfig, {'count_clip_norm': 0.0}, 'privacy.count_clip_norm=0.0'),
  (PrivacyConfig, {'head_items': -1}, 'privacy.head_items=-1'),
  (PrivacyConfig, {'head_source': 'guess'}, "privacy.head_source='guess'"),
  (PrivacyConfig, {'epsilon': 8.0, 'l2_clip_norm': 1.0,
                   'head_source': 'private'}, 'privacy.head_items=0'),
  (PrivacyConfig, {'noise_multiplier': 1.0, 'l2_clip_norm': 1.0,
                   'head_items': 9, 'head_source': 'private'},
   'privacy.epsilon=0'),
  (PrivacyConfig, {'head_epsilon_share': NAN},
   'privacy.head_epsilon_share=nan'),
  (CohortConfig, {'groups': 3}, 'cohort.groups=3'),
  (PrivacyConfig, {'accountant': 'moments'}, "privacy.accountant='moments'"),
  (SecureConfig, {'level': 'trust'}, "secure.level='trust'"),
  (SecureConfig, {'bits': 7}, 'secure.bits=7'),
  (SecureConfig, {'level': 'he', 'bits': 32}, 'secure.bits=32'),
  (SecureConfig, {'l2_clip_norm': -1.0}, 'secure.l2_clip_norm=-1.0'),
  (SecureConfig, {'entry_bound': -1.0}, 'secure.entry_bound=-1.0'),
  (SecureConfig, {'rows': 'sparse'}, "secure.rows='sparse'"),
  (SecureConfig, {'rows': 'union'}, 'secure.rows=union'),
  (SecureConfig, {'level': 'ideal', 'rows': 'union', 'noise': 'skellam'},
   'secure.rows=union'),
  (SecureConfig, {'noise': 'laplace'}, "secure.noise='laplace'"),
  (SecureConfig, {'dropout': 0.5}, 'secure.dropout=0.5'),
  (SecureConfig, {'num_neighbors': -1}, 'secure.num_neighbors=-1'),
  (SecureConfig, {'threshold': 3}, 'secure.threshold=3'),
  (SecureConfig, {'min_survivors': 1}, 'secure.min_survivors=1'),
  (SecureConfig, {'num_servers': 1}, 'secure.num_servers=1'),
  (SecureConfig, {'norm_check': True}, 'secure.norm_check=true'),
  (SecureConfig, {'transport': 'udp'}, "secure.transport='udp'"),
  (EngineConfig, {'block_size': -1}, 'engine.block_size=-1'),
  (EngineConfig, {'num_size_classes': -1}, 'engine.num_size_classes=-1'),
  (EngineConfig, {'rounds_per_call': -1}, 'engine.rounds_per_call=-1'),
  (EngineConfig, {'data': 'disk'}, "engine.data='disk'"),
  (ModelConfig, {'table_dtype': 'float16'}, "model.table_dtype='float16'"),
  (SyntheticConfig, {'seed': -2}, 'synthetic.seed=-2'),
  (ParallelConfig, {'coordinator': 'node1'}, "parallel.coordinator='node1'"),
  (ParallelConfig, {'num_processes': 2}, 'parallel.num_processes=2'),
  (ParallelConfig, {'coordinator': 'node1:12355', 'num_processes': 2,
                    'process_id': 2}, 'parallel.process_id=2'),
  (ParallelConfig, {'join_timeout_s': 0}, 'parallel.join_timeout_s=0'),
  (ParallelConfig, {'mode': 'jit'}, "parallel.mode='jit'"),
  (ParallelConfig, {'num_devices': -1}, 'parallel.num_devices=-1'),
  (EvaluationConfig, {'protocol': 'sampled'}, "evaluation.protocol='sampled'"),
  (EvaluationConfig, {'selection': 'first'}, "evaluation.selection='first'"),
  (EvaluationConfig, {'ks': ()}, 'evaluation.ks=()'),
  (EvaluationConfig, {'ks': (0, 10)}, 'evaluation.ks=(0, 10)'),
  (EvaluationConfig, {'ks': (10, 10)}, 'evaluation.ks=(10, 10)'),
  (EvaluationConfig, {'every': -1}, 'evaluation.every=-1'),
  (EvaluationConfig, {'batch_size': 0}, 'evaluation.batch_size=0'),
  (EvaluationConfig, {'bootstrap_samples': 99},
   'evaluation.bootstrap_samples=99'),
  (EvaluationConfig, {'num_groups': 0}, 'evaluation.num_groups=0'),
  (EvaluationConfig, {'local_only_rounds': -1},
   'evaluation.local_only_rounds=-1'),
  (EvaluationConfig, {'fold_in_rounds': 0}, 'evaluation.fold_in_rounds=0'),
  (CheckpointConfig, {'every': -1}, 'checkpoint.every=-1'),
  (CheckpointConfig, {'keep': 0}, 'checkpoint.keep=0'),
  (Config, {'rounds': 0}, 'rounds=0'),
  (Config, {'seed': -1}, 'seed=-1'),
  (Config, {'seed': 2**31}, 'seed=2147483648'),
  (Config, {'data': DataConfig(source='ncf')}, 'data.source=ncf'),
  (Config, {'server': ServerConfig(row_normalization='sum'),
            'cohort': CohortConfig(weighting='examples')},
   "server.row_normalization='sum'"),
  (Config, {'split': SplitConfig(name='published')}, 'split.name=published'),
]


@pytest.mark.parametrize(('cls', 'arguments', 'message'), REFUSED)
def test_a_value_that_cannot_be_meant_is_refused(cls, arguments, message):
  with pytest.raises(ValueError) as error:
    cls(**arguments)
  assert message in str(error.value)
  assert str(error.value).endswith('.')


def test_every_number_and_every_choice_has_a_refusal():
  """A new field without validation, or without its row above, shows here."""
  free = {  # Any value is meant.
    'data.path', 'data.cache_dir', 'data.rating_column',
    'data.timestamp_column', 'server.lazy_rows', 'evaluation.local_only',
    'fedrap.rising', 'objective.repeated_negatives',
    'fedpergnn.spare_target',
    'two_tower.personal_vector',
  }
  refused = {field for _, arguments, _ in REFUSED for field in arguments}
  for section in dataclasses.fields(Config):
    if not dataclasses.is_dataclass(section.type):
      assert section.name in refused
      continue
    tested = {field for cls, arguments, _ in REFUSED if cls is section.type
              for field in arguments}
    for field in dataclasses.fields(section.type):
      name = f'{section.name}.{field.name}'
      assert name in free or field.name in tested, name


def test_choices_in_help_are_the_choices_accepted():
  for cls, field, choices in [
      (SplitConfig, 'name', config_lib.SPLITS),
      (ModelConfig, 'name', config_lib.MODELS),
      (AlgorithmConfig, 'name', config_lib.ALGORITHMS),
      (ObjectiveConfig, 'name', config_lib.OBJECTIVES),
      (ClientConfig, 'optimizer', config_lib.OPTIMIZERS),
      (ServerConfig, 'optimizer', config_lib.OPTIMIZERS),
      (CompressionConfig, 'sparsify', config_lib.SPARSIFIERS),
      (CompressionConfig, 'granularity', config_lib.GRANULARITIES),
      (CompressionConfig, 'quantize', config_lib.QUANTIZERS),
      (CompressionConfig, 'sketch', config_lib.SKETCHES),
      (ServerConfig, 'row_normalization', config_lib.ROW_NORMALIZATIONS),
      (ParallelConfig, 'mode', config_lib.PARALLEL_MODES),
      (EvaluationConfig, 'protocol', config_lib.PROTOCOLS),
      (EvaluationConfig, 'selection', config_lib.SELECTIONS),
  ]:
    for choice in choices:
      assert choice in (cls.__doc__ or ''), (cls, choice)
      if choice != 'published':
        assert getattr(cls(**{field: choice}), field) == choice


def test_a_config_survives_json():
  config = Config(
      rounds=3, model=ModelConfig(hidden=(8, 4), dim=5),
      cohort=CohortConfig(sampler='weighted', weights_path='w.npy'),
      data=DataConfig(source='csv:a.csv'))
  text = json.dumps(config_lib.to_dict(config))
  assert config_lib.from_dict(json.loads(text)) == config


def test_a_missing_field_takes_its_default_and_an_unknown_one_is_named():
  assert config_lib.from_dict({'rounds': 3}) == Config(rounds=3)
  with pytest.raises(ValueError, match="no field 'round'"):
    config_lib.from_dict({'round': 3})
  with pytest.raises(ValueError, match="ModelConfig has no field 'dims'"):
    config_lib.from_dict({'model': {'dims': 3}})
  with pytest.raises(ValueError, match='model.dim=0'):
    config_lib.from_dict({'model': {'dim': 0}})


def test_a_config_cannot_be_changed():
  with pytest.raises(dataclasses.FrozenInstanceError):
    Config().rounds = 3  # type: ignore[misc]
