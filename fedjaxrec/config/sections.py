"""What the help says about each section of the config, in its order."""

SECTIONS = {
  '': 'The run',
  'data': 'Data: which interactions, and where they come from',
  'synthetic': 'The made-up population of --data.source=synthetic',
  'split': 'Training, validation and test sets',
  'model': 'The recommender',
  'two_tower': 'Towers of features: --model.name=two_tower',
  'algorithm': 'The federated algorithm',
  'ials': 'Alternating least squares: --algorithm.name=ials and dpals',
  'dpals': 'What private alternating least squares adds',
  'fcf': 'Federated collaborative filtering: --algorithm.name=fcf',
  'fedmf': 'Gradients of explicit ratings: --algorithm.name=fedmf',
  'fedease': 'Federated EASE, an item-item model: --algorithm.name=fedease',
  'personalization': 'What clients keep beside the model',
  'pfedrec': 'PFedRec: --algorithm.name=pfedrec',
  'gpfedrec': 'GPFedRec: --algorithm.name=gpfedrec',
  'fedrap': 'FedRAP: --algorithm.name=fedrap',
  'fedrecon': 'FedRecon: --algorithm.name=fedrecon',
  'ditto': 'Ditto: --algorithm.name=ditto',
  'fedrep': 'FedRep: --algorithm.name=fedrep',
  'apfl': 'APFL: --algorithm.name=apfl',
  'meta': 'Meta-learning: --algorithm.name=reptile, fomaml and perfedavg',
  'metamf': 'MetaMF: --algorithm.name=metamf',
  'fedpergnn': 'FedPerGNN: --algorithm.name=fedpergnn',
  'cofedrec': 'CoFedRec: --algorithm.name=cofedrec',
  'objective': 'What a client minimises',
  'client': 'Training on the device, within one round',
  'server': "The server's step",
  'cohort': 'Who trains in a round',
  'compression': 'How an upload is made smaller',
  'privacy': 'Central differential privacy: the budget, and how it is kept',
  'local_privacy': 'Local differential privacy: noise before anything is sent',
  'secure': 'How updates are summed unseen',
  'evaluation': 'What the recommendations are worth',
  'checkpoint': 'What survives an interruption',
  'engine': 'Performance only: results do not depend on these',
  'parallel': 'Which devices and hosts share the work',
}
# What the short help lists; of the other sections it says what they are, and of
# the algorithms' own the names.
UNFOLDED = {'', 'data', 'split', 'model', 'algorithm', 'objective', 'client',
             'server', 'cohort', 'evaluation', 'sweep'}
# Settings of one algorithm each.
OF_ALGORITHMS = (
  'ials', 'dpals', 'fcf', 'fedmf', 'fedease', 'pfedrec', 'gpfedrec', 'fedrap',
  'fedrecon', 'ditto', 'fedrep', 'apfl', 'meta', 'metamf', 'fedpergnn',
  'cofedrec')
