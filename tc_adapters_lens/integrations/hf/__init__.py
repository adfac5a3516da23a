"""Adapters inside stock Hugging Face models: to sample from, and written with weights and code."""
