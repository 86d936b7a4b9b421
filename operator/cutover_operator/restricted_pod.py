"""What the pods of every workload the operator makes have in common. Pure.

Kubernetes' Pod Security Standard `restricted`, no token of the API server, and the pull secrets of the operator's images.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

USER = 65532
"""Uid and gid of the images' own user."""


def pod_fields(pull_secrets: Iterable[str]) -> dict[str, Any]:
    """The part of a PodSpec."""
    fields: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    names = [{"name": name} for name in pull_secrets]
    return {**fields, "imagePullSecrets": names} if names else fields


def container_security(*, read_only: bool = True) -> dict[str, Any]:
    """A container's securityContext; `read_only`: it writes to its volumes alone."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": read_only,
        "capabilities": {"drop": ["ALL"]},
    }
