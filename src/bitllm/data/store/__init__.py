"""The store: what `prepare` writes, readable with numpy and pandas alone.

One folder holds a manifest, a table of images, a table of captions, the pictures, and for each subject the
betas (trials x voxels) with the tables of trials and of voxels.
"""

from bitllm.data.store.read import Store, SubjectData, open_store

__all__ = ["Store", "SubjectData", "open_store"]
