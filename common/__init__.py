"""What all stages share, in the order of the pipeline; independent of distillation, evaluation and recipes.

- `cli.py`, `errors.py`: commands, and errors that a user can correct. `disk.py`, `workers.py`, `heap.py`: the machine.
- `store/`: stages and their build folder. `sources/`: the hub's models and data. `provenance.py`: where text is from.
- `rows.py`, `text_files.py`, `documents.py`: rows of text, and files that hold none. `duplicates.py`, `ngrams.py`,
  `known_*.py`: overlap, and published data.
- `tokenizer.py`, `packing/`: text and conversations to packed rows. `rendering.py`: applies a chat template (that of a
  GGUF file: `eval.runtimes.llama_text`).
- `device.py`, `launch.py`: device and precision, the processes of a run. `model_shape.py`: shapes and FLOPs.
- `weights.py`, `checkpoint.py`, `attention.py`: which file holds a tensor; model folders and training state; attention
  inside each document.
- `divergences.py`, `chunk_passes.py`, `fused_linear_loss.py`, `model_loss.py`: the loss without whole logits.
- `optim.py`, `training.py`, `metrics.py`: optimizers; the step of every training loop, with the loss's denominator; its
  log. `outcome.py`: what a run achieved, and warnings.
- `gguf_header.py`: the tensors of a GGUF file.
"""
