"""From a chat checkpoint to the files that a phone loads: GGUF (llama.cpp) and Core ML.

`python -m export gguf CHECKPOINT --out DIR` and `python -m export coreml CHECKPOINT --out DIR` run one stage by itself.
The stages read a Hugging Face folder and know nothing of how it was trained.
"""
