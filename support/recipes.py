"""Recipes: the defaults of train.py that go with a size of the network. A flag on the command line overrides them."""

RECIPES = {
    "tiny": dict(optimizer="muon", learning_rate=0.04, weight_decay=0.05, precision="float32"),
    "large": dict(epochs=20, augment=1.0, val_size=0),  # none held out: the last epoch is kept
    "fast": dict(
        epochs=1,
        val_size=0,  # a single epoch leaves nothing to choose
        batch_size=320,
        learning_rate=0.03,
        weight_decay=0.3,
        addends_per_image=4,
        label_smoothing=0.15,
        augment=0.0,
        averaging_eta=0.0,
    ),
}
