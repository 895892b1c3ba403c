"""The choices of the flags, as names only: what they stand for needs PyTorch, whose import takes seconds, and `--help`
should not wait for it. A test compares the two.
"""

SIZES = ("tiny", "base", "large", "fast")  # of model.py
ADDEND_ENCODINGS = ("onehot", "scalar", "binary", "embedding")
SUM_ENCODINGS = ("onehot", "binary", "scalar", "scalar-rmse", "shift")
OPTIMIZERS = ("adamw", "muon", "adam", "sgd", "plain-sgd")
SCHEDULES = ("one-cycle", "constant")
DATASETS = ("auto", "mnist", "synthetic")
