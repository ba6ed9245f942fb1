"""GSM-Symbolic in many languages: problems with worked answers, generated from templates.

`expressions` evaluates what templates compute, `templates` reads a template and renders it,
`drawing` draws new values, `problems` makes the rows of a task's splits.
"""
