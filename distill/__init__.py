"""Text and a teacher to a base checkpoint, in the order of the pipeline.

- `train_tokenizer.py`: a byte-level BPE tokenizer. `text/`, `corpus/`: text to clean, packed rows.
- `initial.py`: an untrained model. `train.py`: the training loop; `train_cli.py`, `__main__.py`: its commands.
- `methods.py`: the methods by name; `objectives.py`: their losses; `taid.py`: TAID's target, as `tilt` adds it to the
  student's logits (`common.divergences` takes the softmax), and `next_state`, which moves its t; `taid_kernel.py`:
  target and loss in one kernel on a GPU.
- `controllers.py`: one interface to such rules, called by `train.py` after each step. `teacher.py`: the frozen teacher.
- `on_policy.py`: batches that the student generates itself.
"""
