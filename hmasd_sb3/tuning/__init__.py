"""Searching for hyperparameters with Optuna: what is searched, what a trial is worth, and many workers on one study.

Needs the extra ``tuning``.
"""
