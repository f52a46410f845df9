"""
A linear classifier of scikit-learn: each site continues the fit from the mean of all sites.

A task for ``run.task = "linear:Digits"``; ``linear.toml`` is its config.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier

from fl_queue.metrics import confusion
from fl_queue.tasks import ArrayTask, ClientData, Rows

CLASSES = np.arange(10)


def restored(arrays, **options):
    """Make a classifier with these weights, which ``partial_fit`` starts from."""
    model = SGDClassifier(loss="log_loss", **options)
    model.classes_, model.coef_, model.intercept_ = CLASSES, arrays["coef"], arrays["intercept"]
    model.t_, model.n_features_in_ = 1.0, arrays["coef"].shape[1]
    return model


class Digits(ArrayTask):
    """1,797 digits of 8 x 8 pixels, which scikit-learn brings with it."""

    def initial_arrays(self):
        """Return the arrays of version 0."""
        return {"coef": np.zeros((10, 64)), "intercept": np.zeros(10)}

    def client_data(self, context):
        """Split the rows over the run's clients."""
        # Read the site's own file of context.data_dir here.
        x, y = load_digits(return_X_y=True)
        train, validation = self.split(y, context)
        return ClientData(Rows(x[train] / 16, y[train]), Rows(x[validation] / 16, y[validation]))

    def fit(self, arrays, rows, context):
        """Train from a version."""
        model = restored(
            arrays,
            learning_rate="constant",
            eta0=context.learning_rate,
            random_state=context.seed_for("fit") % 2**32,
        )
        for _ in range(context.epochs):
            # All classes are named, as a site may lack one.
            model.partial_fit(*rows, classes=CLASSES)
        return {"coef": model.coef_, "intercept": model.intercept_}

    def score(self, arrays, rows, context):
        """Evaluate a version, as sums."""
        x, y = rows
        return {
            "num_examples": len(y),
            "confusion": confusion(y, restored(arrays).predict(x), classes=10),
        }
