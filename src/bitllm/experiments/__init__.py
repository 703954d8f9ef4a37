"""The poster's claims as experiments on the simulated brain: ``bitllm reproduce``."""
