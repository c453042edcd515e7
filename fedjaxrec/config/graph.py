"""Algorithms on graphs and clusters: FedPerGNN's ego graphs, and CoFedRec."""

import dataclasses

from fedjaxrec.config.rules import above, at_least, check_types, one_of

AGGREGATORS = ('lightgcn', 'attention')


@dataclasses.dataclass(frozen=True, kw_only=True)
class FedPerGNNConfig:
  """FedPerGNN: propagation on a client's own graph, with pseudo-items.

  Attributes:
    aggregator: What a client's items add to its vector: lightgcn (their sum
      over a power of their number) or attention (their mean by learnt weights,
      as in a GAT).
    degree_power: lightgcn only: the sum is divided by the number of items to
      this power; 1 is the mean, 0.5 LightGCN's root without the items' own
      degrees, which a client does not know.
    spare_target: In training an interaction is predicted without itself in the
      graph, as it must be later; false: with it, as LightGCN is published.
    pseudo_items: Items without an interaction whose made-up deltas a client
      uploads beside those of its own, the same ones in every round; at most
      half of those that it has not. 0: none.
  """
  aggregator: str = 'lightgcn'
  degree_power: float = 0.5
  spare_target: bool = True
  pseudo_items: int = 100

  def __post_init__(self):
    check_types(self, 'fedpergnn')
    one_of('fedpergnn.aggregator', self.aggregator, AGGREGATORS)
    at_least('fedpergnn.degree_power', self.degree_power, 0)
    at_least('fedpergnn.pseudo_items', self.pseudo_items, 0)
    if self.aggregator == 'attention' and self.degree_power != 0.5:
      raise ValueError(
          f'fedpergnn.degree_power={self.degree_power} with fedpergnn.'
          'aggregator=attention, whose mean has learnt weights; leave it at '
          '0.5, or use fedpergnn.aggregator=lightgcn.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoFedRecConfig:
  """CoFedRec: the server clusters items, and clients by one cluster of them.

  Attributes:
    lr_eta: As pfedrec.lr_eta.
    item_clusters: Clusters of the items.
    cluster_steps: Steps of Lloyd's algorithm in a round.
    contrast: Weight of the supervised contrastive loss, whose classes are the
      server's clusters of the items; 0: none.
    temperature: Of that loss.
  """
  lr_eta: float = 80.0
  item_clusters: int = 30
  cluster_steps: int = 10
  contrast: float = 0.005
  temperature: float = 0.1

  def __post_init__(self):
    check_types(self, 'cofedrec')
    at_least('cofedrec.lr_eta', self.lr_eta, 0)
    at_least('cofedrec.item_clusters', self.item_clusters, 1)
    at_least('cofedrec.cluster_steps', self.cluster_steps, 1)
    at_least('cofedrec.contrast', self.contrast, 0)
    above('cofedrec.temperature', self.temperature, 0)
