"""Conversations and a base checkpoint to a chat checkpoint.

- `conversations/`: published conversations to screened, packed rows.
- `train.py`: the training loop; `train_cli.py`, `__main__.py`: its commands.
"""
