"""MEASUREMENT: artifacts to numbers. Independent of the packages that make artifacts, which may import this one.

`decontamination` finds benchmark items in training text. `runtimes` opens an artifact, whatever its format; `tasks` and
`fidelity` measure it, `phones` predicts its memory on iPhones, `evaluation` is the stage that measures all artifacts of
a build, and `report` the one that describes them. `chat` talks to an artifact, and `__main__` is the command.
"""
