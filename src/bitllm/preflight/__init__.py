"""Cost of a recipe, before anything is downloaded or trained: `bitllm params` and `bitllm preflight`."""
