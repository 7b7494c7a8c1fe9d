"""Strata: depth up-scaling experiments as one declarative workflow.

Modules import one way: errors <- config, plan, tensors <- recipe, families, store <- checkpoint <- sources,
initialize, merge, evaluate <- report, cli.
"""

__version__ = "0.1.0"
