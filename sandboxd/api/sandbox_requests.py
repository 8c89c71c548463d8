"""What requests about sandboxes must satisfy beyond their types, and the values that they become."""

import signal
from typing import Any

import msgspec

from sandboxd.api.conversion import read_struct
from sandboxd.api.sandbox_schemas import (
    ConnectRequest,
    ExecRequest,
    SandboxPatch,
    SandboxRequest,
    SignalRequest,
)
from sandboxd.api.validate import Check, invalid, job_spec_of
from sandboxd.errors import Fault, Invalid
from sandboxd.isolation.spec import TerminalSize
from sandboxd.jobs import JobSpec
from sandboxd.quotas.limits import NOTHING_ASKED, Limits, LimitsAsked
from sandboxd.sandbox_values import SandboxPlan
from sandboxd.sandboxes.execs import ExecSpec
from sandboxd.settings import ImagesSettings, SandboxSettings

_LEAST_SECONDS = 0.001
_SHARED = ("image", "pull", "env", "workdir", "user", "labels")


def sandbox_plan_of(
    value: object,
    *,
    defaults: Limits,
    ceilings: Limits,
    check: Check,
    settings: SandboxSettings,
    own_ceilings: LimitsAsked = NOTHING_ASKED,
    images: ImagesSettings = ImagesSettings(),  # noqa: B008 (a value)
) -> SandboxPlan:
    """The sandbox that a parsed request body asks for. Raises Invalid with every fault at once."""
    request, faults = read_struct(value, SandboxRequest)
    if not isinstance(value, dict):
        raise invalid(faults)
    alike = {name: value[name] for name in _SHARED if name in value}
    alike |= {"image": request.image, "command": ["true"], "limits": value.get("limits", {})}
    spec = _as_job(alike, faults, defaults, ceilings, check, own_ceilings, images)
    idle_seconds = _seconds("idle_seconds", request.idle_seconds, settings, faults)
    ttl_seconds = _seconds("ttl_seconds", request.ttl_seconds, settings, faults)
    if faults or spec is None:
        raise invalid(faults)
    return SandboxPlan(
        image=spec.image,
        pull=spec.pull,
        env=spec.env,
        workdir=spec.workdir,
        user=spec.user,
        limits=spec.limits,
        labels=spec.labels,
        idle_seconds=idle_seconds,
        ttl_seconds=ttl_seconds,
    )


def patch_of(
    value: object,
    plan: SandboxPlan,
    *,
    ceilings: Limits,
    settings: SandboxSettings,
    own_ceilings: LimitsAsked = NOTHING_ASKED,
) -> dict[str, Any]:
    """The arguments for LiveSandbox.change. Raises Invalid with every fault at once."""
    patch, faults = read_struct(value, SandboxPatch)
    if not isinstance(value, dict):
        raise invalid(faults)
    alike = {"image": "host", "command": ["true"], "limits": value.get("limits", {})}
    spec = _as_job(alike, faults, plan.limits, ceilings, _nothing, own_ceilings)
    changes: dict[str, Any] = {
        name: None
        if getattr(patch, name) is None
        else _seconds(name, getattr(patch, name), settings, faults)
        for name in ("idle_seconds", "ttl_seconds")
    }
    if faults or spec is None:
        raise invalid(faults)
    return {"limits": spec.limits, **changes}


def exec_spec_of(
    value: object, plan: SandboxPlan, *, ceilings: Limits, own_ceilings: LimitsAsked = NOTHING_ASKED
) -> ExecSpec:
    """The command that a parsed request body asks for. Raises Invalid with every fault at once."""
    request, faults = read_struct(value, ExecRequest)
    if not isinstance(value, dict):
        raise invalid(faults)
    alike = {"image": "host"}
    names = ("command", "args", "stdin", "env", "workdir", "limits")
    alike |= {name: value[name] for name in names if name in value}
    spec = _as_job(alike, faults, plan.limits, ceilings, _nothing, own_ceilings)
    if faults or spec is None:
        raise invalid(faults)
    return ExecSpec(
        command=(*request.command, *request.args),
        env=spec.env,
        workdir=spec.workdir,
        stdin=spec.stdin,
        limits=spec.limits,
    )


def connected_spec_of(
    value: object, plan: SandboxPlan, *, ceilings: Limits, own_ceilings: LimitsAsked = NOTHING_ASKED
) -> ExecSpec:
    """The command that the first message of a socket asks for. Raises Invalid with every fault at once."""
    request, faults = read_struct(value, ConnectRequest)
    if not isinstance(value, dict):
        raise invalid(faults)
    alike = {"image": "host"}
    alike |= {name: value[name] for name in ("command", "env", "workdir") if name in value}
    spec = _as_job(alike, faults, plan.limits, ceilings, _nothing, own_ceilings)
    wall_seconds = plan.ttl_seconds if request.wall_seconds is None else request.wall_seconds
    if not _LEAST_SECONDS <= wall_seconds <= plan.ttl_seconds:
        detail = f"{wall_seconds} is not from {_LEAST_SECONDS} to {plan.ttl_seconds}"
        faults.append(Fault("/wall_seconds", detail))
    if faults or spec is None:
        raise invalid(faults)
    terminal = request.terminal
    return ExecSpec(
        command=spec.command,
        env=spec.env,
        workdir=spec.workdir,
        limits=msgspec.structs.replace(spec.limits, wall_seconds=wall_seconds),
        terminal=TerminalSize(terminal.rows, terminal.columns) if terminal else None,
    )


def signal_of(value: object) -> signal.Signals:
    """The signal that a request names. Raises Invalid."""
    request, faults = read_struct(value, SignalRequest)
    number = signal_named(request.signal)
    if number is None and not faults:
        faults.append(Fault("/signal", 'is not the name of a signal such as "SIGTERM"'))
    if faults or number is None:
        raise invalid(faults)
    return number


def signal_named(name: str) -> signal.Signals | None:
    """`SIGTERM` or `TERM` as a signal."""
    word = name.upper()
    return signal.Signals.__members__.get(word if word.startswith("SIG") else f"SIG{word}")


def _as_job(
    alike: dict[str, Any],
    faults: list[Fault],
    defaults: Limits,
    ceilings: Limits,
    check: Check,
    own_ceilings: LimitsAsked,
    images: ImagesSettings = ImagesSettings(),  # noqa: B008 (a value)
) -> JobSpec | None:
    """What a job must satisfy, a sandbox and a command in it must, too: in the same places, with the same words."""
    try:
        return job_spec_of(
            alike,
            defaults=defaults,
            ceilings=ceilings,
            check=check,
            own_ceilings=own_ceilings,
            images=images,
        )
    except Invalid as error:
        faults.extend(error.faults)
        return None


def _nothing(_: JobSpec) -> list[Fault]:
    return []


def _seconds(
    name: str, wish: float | None, settings: SandboxSettings, faults: list[Fault]
) -> float:
    most: float = getattr(settings, f"most_{name}")
    if wish is None:
        return min(float(getattr(settings, name)), most)
    if not _LEAST_SECONDS <= wish <= most:
        faults.append(Fault(f"/{name}", f"{wish} is not from {_LEAST_SECONDS} to {most}"))
    return float(wish)
