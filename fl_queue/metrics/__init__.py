"""
Metrics: sums that add up over clients, what they are finished into, and what a task declares of them.

A ratio cannot be averaged (the mean of two F1 scores is not the F1 score of both), so clients send sums and
counts, and only a reader divides. Keys of a ``Sums`` mapping:

    num_examples        int: samples that were evaluated
    confusion           [[int]]: rows the true class, columns the predicted one
    logit_histograms    [[int], [int]]: of a binary task, samples of class 0 and of class 1 by
                        their log-odds of class 1, in the 1,000 bins that ``BIN_EDGES`` separate
    score_histograms    the same in 1,000 equal bins over the probability: what earlier versions sent
    loss_items_sum      items that ``loss_sum`` is a sum over (tokens), if those are not the examples
    binary_report       [int]: words of a report of an evaluation (``reports``); so are
                        classes_report and regression_report
    <name>_sum          a number; ``finish`` gives its mean as <name> (``loss_sum``: ``loss``), see
                        ``identifiers.is_metric``
    <name>.<form>.<max or min>  sums of a metric in a form of ``forms``
    personal_<key>      the same of the model that is the client's own (``beside``)
    finetuned_<key>     the same of the version, fine-tuned on the client's training data
    over                {key: [clients, examples]}: in the sums of several clients alone, how many
                        of them had each key

``forms`` has the metrics that are data, ``kinds`` what a
task declares, ``choice`` the best version and the end of a run. No torch and no Redis here.
"""

from fl_queue.metrics.choice import best_version, bound, stop_holds
from fl_queue.metrics.forms import Exp, Macro, Mean, OwnMetric, Ratio, Root
from fl_queue.metrics.kinds import (
    KINDS,
    Classification,
    Declared,
    Language,
    Metric,
    MultiLabel,
    Regression,
    Segmentation,
    declared,
    names_in,
    parse_record,
)
from fl_queue.metrics.sums import (
    BESIDE,
    BESIDE_CLASSES,
    BIN_EDGES,
    LOSS_ITEMS,
    MAX_CLASSES,
    MAX_COUNT,
    MAX_KEY_LENGTH,
    MAX_KEYS,
    MAX_SUM,
    OVER,
    SCORE_BINS,
    beside,
    check,
    confusion,
    finish,
    is_form,
    is_sum,
    is_table,
    logit_histograms,
    merge,
    merge_clients,
    only_beside,
    sound,
    told_by,
)

__all__ = [
    "BESIDE",
    "BESIDE_CLASSES",
    "BIN_EDGES",
    "KINDS",
    "LOSS_ITEMS",
    "MAX_CLASSES",
    "MAX_COUNT",
    "MAX_KEYS",
    "MAX_KEY_LENGTH",
    "MAX_SUM",
    "OVER",
    "SCORE_BINS",
    "Classification",
    "Declared",
    "Exp",
    "Language",
    "Macro",
    "Mean",
    "Metric",
    "MultiLabel",
    "OwnMetric",
    "Ratio",
    "Regression",
    "Root",
    "Segmentation",
    "beside",
    "best_version",
    "bound",
    "check",
    "confusion",
    "declared",
    "finish",
    "is_form",
    "is_sum",
    "is_table",
    "logit_histograms",
    "merge",
    "merge_clients",
    "names_in",
    "only_beside",
    "parse_record",
    "sound",
    "stop_holds",
    "told_by",
]
