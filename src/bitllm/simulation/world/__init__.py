"""The stimuli: scenes, their pictures and their captions."""
