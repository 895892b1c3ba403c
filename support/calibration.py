"""How far the probability of an answer is from the share of such answers that are right."""

import torch

BINS = 15  # of the confidences


def calibration(confidence, right):
    """(mean confidence, accuracy, share) of the bins that hold pairs, and the expected calibration error.

    The confidence, the largest probability, is cut into BINS equal bins; the error is the mean distance of accuracy and
    confidence over the bins, weighted by their pairs (C. Guo et al., arXiv 1706.04599).
    """
    bins = (confidence.nan_to_num(0) * BINS).long().clamp(max=BINS - 1)
    counts = torch.bincount(bins, minlength=BINS).double()
    sums = [torch.bincount(bins, values.double(), minlength=BINS) for values in (confidence, right)]
    there = counts > 0
    confidences, accuracies = (values[there] / counts[there] for values in sums)
    share = counts[there] / counts.sum()
    return confidences, accuracies, share, ((accuracies - confidences).abs() * share).sum().item()
