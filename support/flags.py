"""The names that flags choose among, without what they name: that needs PyTorch, whose import takes seconds, and the
answer to `--help` should not. A test compares the two.
"""

SIZES = ("tiny", "base", "large", "fast")  # of model.py
ADDEND_ENCODINGS = ("onehot", "scalar", "binary", "embedding")
SUM_ENCODINGS = ("onehot", "binary", "scalar", "scalar-rmse", "shift")
OPTIMIZERS = ("adamw", "muon", "adam", "sgd", "plain-sgd")
SCHEDULES = ("one-cycle", "constant")
DATASETS = ("auto", "mnist", "synthetic")
