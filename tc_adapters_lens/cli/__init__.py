"""The command line: `tc-adapters VERB`, one module per verb."""
