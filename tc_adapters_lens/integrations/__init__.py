"""Other tools on the same models and adapters, most of them by an optional extra; none imports another."""
