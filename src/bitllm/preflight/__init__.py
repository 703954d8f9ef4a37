"""What a configuration will cost, before anything is downloaded or trained: `bitllm params`, `bitllm preflight`."""
