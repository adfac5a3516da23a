"""Models: pairs, their conversion to one hooked model, and the adapters that attach to it."""
