"""The base LLM, and checkpoints that load exactly or not at all."""
