"""Tests of the prover; a package, so that the bug zoo can be imported by name."""
