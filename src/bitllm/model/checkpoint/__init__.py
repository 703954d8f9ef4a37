"""Where weights come from and go to: the base LLM, and checkpoints that load exactly or not at all."""
