"""Language models behind an OpenAI-compatible endpoint as judges, by the openai client."""
