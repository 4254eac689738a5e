"""Recipes: a YAML file says what to train, prune, distil, quantize and export."""

from kpipe.recipe.check import load_recipe, parse_recipe
from kpipe.recipe.schema import DataSource, Head, Recipe

__all__ = ["DataSource", "Head", "Recipe", "load_recipe", "parse_recipe"]
