"""From a chat checkpoint to the files that a phone loads (GGUF, Core ML), and to a release with its cards.

`python -m export gguf CHECKPOINT --out DIR` and `python -m export coreml CHECKPOINT --out DIR` run one stage by itself.

`model_folder` reads a Hugging Face folder. `gguf` is one stage: `vocabulary` and `gguf_file` write F16 (vectors F32).
For the others `gguf` names the encoding, llama.cpp's quantiser, called in `eval.runtimes.llama_engine`, chooses each
tensor's type, and `gguf` lists those that differ from the encoding's own.
`coreml` is another, with the model in `coreml_model`. `licences` has the licence that a file names and the duties of
users; publishers' texts come from `recipes.stages.published`, that of Apache-2.0 from `card/templates`. `release` is
the stage `dist`, which places them, gathers everything, and reads it back; `card` is its model card; `upload` sends a
release to the hub. Independent of how the checkpoint was trained.
"""
