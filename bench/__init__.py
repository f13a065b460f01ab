"""Benchmarks of speed and memory.

- `loss.py`: the fused loss against dense logits and against its bare matrix products.
- `step.py`: whole optimizer steps against a dense, padded loop.
- `corpus.py`: cleaning of text.
- `measure.py`: how time and memory are measured.
"""
