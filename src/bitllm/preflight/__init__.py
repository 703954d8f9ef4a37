"""What a recipe costs, before anything is downloaded or trained: `bitllm params`, `bitllm preflight`."""
