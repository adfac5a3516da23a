"""Features: where each one fires and what it promotes, collected in one pass and kept in a store."""
