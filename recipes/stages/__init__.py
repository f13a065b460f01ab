"""Small stages of a recipe that are no verb of their own.

`published_model`, `licence_texts` and `benchmark_files` fetch what others published; `user_files` and
`benchmark_questions` take the place of the generated world; `random_model`, `synthetic_tokenizer` and `gpu_steps` make
up a rehearsal.
"""
