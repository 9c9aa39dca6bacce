"""The frozen records of a run - Fleet, Plan, Proof, Bundle, Receipt - and their one format on disk.

Also the one numpy evaluator that runs any Plan. No torch, no kernels, no pickle.
"""

from ._evaluate import Claimed, PlanRun, claims, collect, compare_claims, evaluate_plan
from ._fleet import Device, Fleet, Link, fleet_digest, format_fleet, parse_fleet, validate_fleet
from ._infer import infer_plan
from ._plan import (
    Local,
    Place,
    Placed,
    Plan,
    Rank,
    Runs,
    Track,
    bind_local,
    device_of,
    placed,
    whole,
)
from ._plan_text import format_plan, parse_plan, plan_digest
from ._proof import Counterexample, Proof, Status, Verdict, format_proof, parse_proof, proof_digest
from ._storage import cells
from ._validate import validate_plan

__all__ = [
    "Claimed",
    "Counterexample",
    "Device",
    "Fleet",
    "Link",
    "Local",
    "Place",
    "Placed",
    "Plan",
    "PlanRun",
    "Proof",
    "Rank",
    "Runs",
    "Status",
    "Track",
    "Verdict",
    "bind_local",
    "cells",
    "claims",
    "collect",
    "compare_claims",
    "device_of",
    "evaluate_plan",
    "fleet_digest",
    "format_fleet",
    "format_plan",
    "format_proof",
    "infer_plan",
    "parse_fleet",
    "parse_plan",
    "parse_proof",
    "placed",
    "plan_digest",
    "proof_digest",
    "validate_fleet",
    "validate_plan",
    "whole",
]
