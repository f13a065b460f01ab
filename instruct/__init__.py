"""A base checkpoint and conversations to a chat checkpoint: rendered ids with loss masks, the training loop."""
