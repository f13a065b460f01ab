"""Tasks: questions, the engine that asks them and the statistics of their scores.

`items` reads published benchmark files, `question_rows` the `questions.jsonl` that tasks ask, `questions/` holds the
task files in lm-eval's own YAML. `harness` runs them on any artifact, `scores` computes averages, intervals and paired
comparisons.
"""
