"""Evaluation: tasks, typed outcomes and statistics, and the audit of results, whoever wrote them."""
