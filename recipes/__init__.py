"""Recipes: which stages are built, in which order, with which numbers. In the order in which to read them:

- `recipe`: the pipeline on one page, `Recipe`, `build`; a stage is added by a line in `STAGES` and one in
  `pipeline`. `checks`: what a recipe must satisfy.
- `mini`, `tinyswallow`, `qwen3`, `japanese_teacher`, `rehearsal`: the recipes, which are numbers; what they leave out
  is the default of a stage's config. `*_choices.toml`: source or reason of the numbers that a reader may ask about;
  `resizing`: a recipe in another size.
- `toy_world`: the generated text, conversations and questions; `stages`: other stages that only recipes use.
- `__main__`: the command; `loading`: from a name or a Python file to a recipe.
- `resolve`: from names of the hub to files, before a build (`common.sources` decides which); `plan`: what a build
  costs; `preflight`: what this machine lacks for it.
- `publish`: the finished files in `dist/<recipe>`; `inspect`: `make inspect`, the rows that training reads.
- `fingerprints`: whether the code of a stage has changed, for developers of this product.
"""
