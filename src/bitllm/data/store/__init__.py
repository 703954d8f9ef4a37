"""The store that `prepare` writes, readable with numpy and pandas alone.

A folder with a manifest, tables of images and of captions, the images, and for each subject the betas (trials ×
voxels) with tables of trials and of voxels.
"""

from bitllm.data.store.read import Store, SubjectData, open_store

__all__ = ["Store", "SubjectData", "open_store"]
