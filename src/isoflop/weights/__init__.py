"""Weights in and out: our checkpoint folders, and those of Hugging Face's families, tensor by tensor.

link.py, families.py   which tensors of theirs make which parameter of ours, one table a family, for both directions
folder.py, writer.py   folders of safetensors, read and written one tensor at a time
checkpoint.py          our own folder; hugging_face.py: theirs; load.py: a model from either
"""
