"""Attribution graphs of the circuit-tracer package, taken up by this one."""
