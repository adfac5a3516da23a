"""Benchmarks by EleutherAI's lm-evaluation-harness: its evaluator and model classes, with tasks for reasoning."""
