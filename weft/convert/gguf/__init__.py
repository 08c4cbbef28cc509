"""GGUF, the file of llama.cpp: read strictly, written plainly.

read    the header, checked against the file's size before anything is allocated
types   blocks of quantised numbers <-> float32
llama   metadata and tensors of llama-like models <-> the ecosystem's config.json and names
write   a file from metadata and tensors
"""
