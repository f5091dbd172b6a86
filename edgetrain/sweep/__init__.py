"""A study whose variants Optuna proposes: which values of some keys make a metric lowest, or highest."""
