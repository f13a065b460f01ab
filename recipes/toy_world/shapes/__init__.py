"""The five shapes of questions: each module makes training documents, training questions and held-out questions.

`short_answer` and `multiple_choice` ask about the world's facts; `reading`, `arithmetic` and `translation` about
invented items, which `draft.held_out` assigns to training or to the test.
"""
