"""Studies: recipes run with one thing changed, and figures of the results.

- `compare.py`: several methods from one student and teacher (`make compare`); `student_t.py` has its intervals.
- `run_curves.py`: a training run's curves, for the study and for the figures.
- `figures.py`: the article's figures (`make figures`); `figure_curves.py` computes them, `figure_panels.py` draws them.
"""
