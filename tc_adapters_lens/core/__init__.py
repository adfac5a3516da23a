"""Pure functions on tensors: losses and statistics. No I/O, no logging, no state."""
