"""What the COCO caption tools run in Java: the Penn-Treebank tokenizer, METEOR and SPICE (extra ``[eval]``)."""
