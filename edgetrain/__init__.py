"""EdgeTrain: train, cost, export and report models that end up on a device."""

__version__ = "0.1.0"
