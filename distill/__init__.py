"""Text and a teacher to a base checkpoint: corpus, tokenizer, teacher signal, objectives, the training loop."""
