"""Text below the help: examples of each command, and below the list of commands the exit statuses."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": (
        "bitllm demo --out demo",
        "bitllm demo --data.signal 0 --out demo-no-signal",
        "bitllm demo --recipe haxby --data.haxby FOLDER --out haxby",
    ),
    "reproduce": (
        "bitllm reproduce interface",
        "bitllm reproduce interface --quick --out quick",
    ),
    "simulate": ("bitllm simulate release --preset demo --seed 0",),
    "prepare nsd": (
        "bitllm prepare nsd release store",
        "bitllm prepare nsd NSD store --sessions -3 --workers 4",
        "bitllm prepare nsd NSD imagined --imagery imagined --captions imagery.json",
    ),
    "join": ("bitllm join nsd bold5000 --out both",),
    "split": (
        "bitllm split store split.json",
        "bitllm split store split-subj05.json --preset leave-one-subject-out --held-out subj05",
    ),
    "prepare mindeye": ("bitllm prepare mindeye webdataset_avg_split store --nsd NSD --captions coco.json",),
    "prepare mindeye2": ("bitllm prepare mindeye2 mindeye2 store --nsd NSD --captions captions.json",),
    "prepare mindllm": ("bitllm prepare mindllm data store --nsd NSD --captions captions.json",),
    "prepare algonauts": ("bitllm prepare algonauts algonauts_2023 store --surfaces fsaverage/surf",),
    "prepare glmsingle": (
        "bitllm prepare glmsingle TYPED_FITHRF_GLMDENOISE_RR.hdf5 store --subject sub-01 --trials trials.tsv "
        "--places mask.nii.gz --captions captions.json",
    ),
    "prepare bold5000": (
        "bitllm prepare bold5000 BOLD5000 store --captions captions_train2014.json --rois ds001499/derivatives/spm "
        "--roi EarlyVis+LOC+OPA+PPA+RSC",
    ),
    "prepare mosaic": (
        "bitllm prepare mosaic sub-01_NSD.hdf5 sub-01_BOLD5000.hdf5 store --captions captions_train2014.json "
        "captions_val2014.json --grayordinates 91k.dscalar.nii --surfaces tpl-fsLR --labels glasser.dlabel.nii",
    ),
    "prepare table": ("bitllm prepare table header.yaml store",),
    "tasks": (
        "bitllm tasks store --derive",
        "bitllm tasks store vqa-v2 v2_OpenEnded_mscoco_train2014_questions.json v2_mscoco_train2014_annotations.json",
        "bitllm tasks store table questions.csv --license CC-BY-4.0",
    ),
    "prepare haxby": (
        "bitllm prepare haxby nilearn_data/haxby2001 store --subjects subj1",
        "bitllm prepare haxby haxby store --download",
    ),
    "inspect": ("bitllm inspect store", "bitllm inspect store --verify"),
    "audit": (
        "bitllm audit store",
        "bitllm audit store demo",
        "bitllm audit nsd-store bold5000-store",
        "bitllm audit demo --privacy",
    ),
    "embed": ("bitllm embed store --clip openai/clip-vit-large-patch14",),
    "train": (
        "bitllm train demo align --out runs/demo",
        "bitllm train poster all --data.store nsd-store --out runs/nsd",
    ),
    "score": (
        "bitllm score demo/captions/rft.jsonl",
        "bitllm score captions.json --references references.json --per-image each.parquet",
    ),
    "evaluate": (
        "bitllm evaluate demo",
        "bitllm evaluate demo --systems rft --rois floc-places,prf-visualrois:V1v --out demo/rft-regions",
    ),
    "ask": (
        'bitllm ask demo --image 123 "Is there a dog?" "How many?"',
        'bitllm ask demo --subject subj08 --image 123 --system sft --json "What color is the car?"',
    ),
    "explore": ("bitllm explore demo demo/store",),
    "report": ("bitllm report demo --out report.html", "bitllm report demo demo-seed1 --out both.html"),
    "export": ("bitllm export demo model", "bitllm export demo/sft model --whole"),
    "params": ("bitllm params poster",),
    "preflight": ("bitllm preflight poster --limit-gb 16",),
}

EXIT_STATUSES = """Exit status: 0 done; 1 audit found a leak; 2 an error in the input, in one line; 130 interrupted,
143 asked to end: the same command resumes. --debug shows the traceback."""


def under_help(command: str | None) -> str:
    """Text below the help of a command, or of the list of commands."""
    if command is None:
        first = "\n  ".join(EXAMPLES[name][0] for name in ("demo", "report", "explore"))
        return f"First steps:\n  {first}\n\n{EXIT_STATUSES}"
    return "Example:\n  " + "\n  ".join(EXAMPLES.get(command, ()))
