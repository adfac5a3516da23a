"""Other tools on the same models and adapters; each needs an optional extra, and none imports another."""
