"""Training adapters on a pair: configuration, data, objective, trainer, runner."""
