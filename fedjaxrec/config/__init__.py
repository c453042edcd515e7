"""The whole configuration of a run: one frozen dataclass a stage.

Every field becomes one dotted flag (`fedjaxrec/flags.py`), and its line in the
`Attributes:` section becomes the flag's help. A config validates itself when it
is made, so a wrong value is refused before any file is read or any code is
compiled. `to_dict` and `from_dict` round-trip through `config.json`.
"""

from fedjaxrec.config.algorithms import (
    FACTORISATIONS,
    SAMPLINGS,
    DPALSConfig,
    FCFConfig,
    FedEASEConfig,
    FedMFConfig,
    IALSConfig,
)
from fedjaxrec.config.compression import (
    GRANULARITIES,
    QUANTIZERS,
    SKETCHES,
    SPARSIFIERS,
    CompressionConfig,
)
from fedjaxrec.config.data import (
    PUBLISHED_SPLITS,
    SOURCE_PREFIXES,
    SOURCES,
    SPLITS,
    DataConfig,
    SplitConfig,
    SyntheticConfig,
)
from fedjaxrec.config.evaluation import (
    PROTOCOLS,
    SELECTIONS,
    CheckpointConfig,
    EvaluationConfig,
)
from fedjaxrec.config.graph import (
    AGGREGATORS,
    CoFedRecConfig,
    FedPerGNNConfig,
)
from fedjaxrec.config.learning import (
    ALGORITHMS,
    MODELS,
    NEGATIVE_POOLS,
    OBJECTIVES,
    OPTIMIZERS,
    ROW_NORMALIZATIONS,
    SAMPLERS,
    SCHEDULES,
    TABLE_DTYPES,
    WEIGHTINGS,
    AlgorithmConfig,
    ClientConfig,
    CohortConfig,
    ModelConfig,
    ObjectiveConfig,
    ServerConfig,
)
from fedjaxrec.config.local_privacy import (
    HEAD_CHOICES,
    LOCAL_MECHANISMS,
    LocalPrivacyConfig,
)
from fedjaxrec.config.personalized import (
    SIMILARITIES,
    APFLConfig,
    DittoConfig,
    FedRAPConfig,
    FedReconConfig,
    FedRepConfig,
    GPFedRecConfig,
    MetaConfig,
    MetaMFConfig,
    PersonalizationConfig,
    PFedRecConfig,
)
from fedjaxrec.config.privacy import (
    ACCOUNTANTS,
    CLIPPINGS,
    HEAD_SOURCES,
    PRIVACY_MECHANISMS,
    PrivacyConfig,
)
from fedjaxrec.config.run import (
    PARALLEL_MODES,
    Config,
    EngineConfig,
    ParallelConfig,
    from_dict,
    to_dict,
    with_sections,
)
from fedjaxrec.config.secure import (
    DISTRIBUTED_NOISE,
    LEVELS,
    ROW_SECRECY,
    TRANSPORTS,
    SecureConfig,
)
from fedjaxrec.config.two_tower import TWO_TOWER_ALGORITHMS, TwoTowerConfig

__all__ = [
    'FACTORISATIONS', 'SAMPLINGS', 'DPALSConfig', 'FCFConfig', 'IALSConfig',
    'FedEASEConfig', 'FedMFConfig',
    'AGGREGATORS', 'CoFedRecConfig', 'FedPerGNNConfig',
    'DISTRIBUTED_NOISE', 'LEVELS', 'ROW_SECRECY', 'SecureConfig', 'TRANSPORTS',
    'NEGATIVE_POOLS', 'SIMILARITIES', 'APFLConfig',
    'DittoConfig', 'FedRAPConfig', 'FedReconConfig', 'FedRepConfig',
    'GPFedRecConfig', 'MetaConfig', 'MetaMFConfig', 'PFedRecConfig',
    'PersonalizationConfig',
    'ACCOUNTANTS', 'CLIPPINGS', 'HEAD_SOURCES', 'PRIVACY_MECHANISMS',
    'PrivacyConfig', 'HEAD_CHOICES', 'LOCAL_MECHANISMS', 'LocalPrivacyConfig',
    'ALGORITHMS', 'MODELS', 'OBJECTIVES', 'OPTIMIZERS', 'PARALLEL_MODES',
    'PROTOCOLS', 'PUBLISHED_SPLITS', 'ROW_NORMALIZATIONS', 'SAMPLERS',
    'SCHEDULES', 'SELECTIONS', 'TABLE_DTYPES',
    'GRANULARITIES', 'QUANTIZERS', 'SKETCHES', 'SPARSIFIERS',
    'SOURCES', 'SOURCE_PREFIXES', 'SPLITS', 'WEIGHTINGS',
    'AlgorithmConfig', 'CheckpointConfig', 'ClientConfig', 'CohortConfig',
    'CompressionConfig', 'Config', 'DataConfig', 'EngineConfig',
    'EvaluationConfig', 'ModelConfig', 'ObjectiveConfig', 'ParallelConfig',
    'ServerConfig', 'SplitConfig', 'SyntheticConfig', 'TWO_TOWER_ALGORITHMS',
    'TwoTowerConfig', 'from_dict', 'to_dict', 'with_sections',
]
