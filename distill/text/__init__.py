"""Text rules of a corpus: pure functions of one document, independent of files, stages and other documents.

- `normalise`: one normal form for Japanese text
- `personal`: personal data replaced by placeholders
- `measures`, `quality`: what the quality rules measure, and the rules with their thresholds
- `cleaning`: all of them over batches of rows, with counts
"""
