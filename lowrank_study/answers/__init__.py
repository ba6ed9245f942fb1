"""Answers to the questions of a study, computed from ended runs.

Each question has one module:

    scores, learning_rates       test score against rank; the rates that validation chose
    sufficient_rank              the smallest rank that keeps up with full fine-tuning
    functional_rank              the smallest rank that an update can be truncated to
    controls                     the same measures on noise, weight decay and shuffled labels

`truncated_runs` and `measured_controls` are the jobs that compute the last two for a sweep.
`statistics` has the intervals, `paired_scores` the pairs of runs, `tables` the tidy tables.
"""
