"""The judge of pruning: `make pareto` measures pruned, dense and other engines' models, and draws both fronts."""
