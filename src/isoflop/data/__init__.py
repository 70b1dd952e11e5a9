"""Corpora to token shards, tokenizers, and the deterministic, resumable batch stream.

spec         what to prepare: `Data`
corpus       where the documents come from: the standard library, a folder, a file
readers      text, JSON lines and Parquet, compressed or not, as streams of documents
tokenizer    bytes or byte pairs; token 0 ends a document in both
tokenizer_file  other models' tokenizers, from their tokenizer.json; tame says what one may ask for
plain_json   JSON from strangers
prepare      spec -> `train.bin`, `valid.bin`, `dataset.json`; killed anywhere, it starts clean
dataset      what was prepared, memory-mapped
permutation  a shuffle of any size without storing it
stream       window number -> tokens, a pure function
"""
