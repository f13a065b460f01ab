"""Stages that only recipes use. `python -m distill`, `instruct`, `export` and `eval` have the others.

In the order of a build. `benchmarks`: published benchmark files, and their items as questions. `user_files`: the user's
text, conversations and questions in place of the generated world. `published`: checkpoints of the hub, and the stage
that gathers the publishers' licence texts. The rehearsal's: `synthetic_tokenizer`, `random_model`, `gpu_steps`.
"""
