"""Ideas for predictors that were not tried before; benchmarks/untried_ideas.py compares them. Start with trials.py."""
