"""Helpers for the tests of the operators: tolerances by dtype, error measures, hard inputs, poisoned memory."""
