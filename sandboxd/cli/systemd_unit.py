"""The texts of the systemd units that `sandboxd setup` writes.

Hardening stops where it would take away what rootless sandboxes need. Not used, and why:
`NoNewPrivileges`, `SystemCallFilter`, `RestrictNamespaces`, `RestrictAddressFamilies`, `LockPersonality`, `MemoryDenyWriteExecute`,
`RestrictSUIDSGID`, `PrivateDevices`, `ProtectClock`, `ProtectKernelModules` (each sets no_new_privs for a service that is not root, and then
newuidmap is powerless); `ProtectKernelTunables`, `ProtectKernelLogs`, `ProtectProc`, `ProcSubset` (they mount over parts of
/proc, and the kernel then refuses a fresh /proc in a user namespace); `ProtectControlGroups` (cgroups are ours).
The unit for a person's own systemd has none of it: there each of these needs a user namespace around the service.
Source: systemd.exec(5).
"""

_ALIKE = """\
# The cgroup v2 subtree is ours: limits of jobs are set in it.
Delegate=yes
TasksMax=infinity
LimitNOFILE=65536
# The service ends its own jobs; what is left after the time-out is killed.
KillMode=mixed
TimeoutStopSec=60
Restart=on-failure
RestartSec=1
UMask=0077
"""

_TEMPLATE = """\
# Written by `sandboxd setup`; changes go into a drop-in (systemctl edit sandboxd).
[Unit]
Description=sandboxd: runs untrusted commands in rootless sandboxes
After=network.target

[Service]
Type=exec
User={user}
# Root, once per boot: delegated cgroup v1 directories do not outlive the machine.
ExecStartPre=+{program} setup --user {user}
ExecStart={program} serve
StateDirectory={user}
StateDirectoryMode=0700
{alike}
# What newuidmap, set-uid root, needs to write an id map; the service has none, and sandboxes have their namespace's.
CapabilityBoundingSet=CAP_SETUID CAP_SETGID CAP_DAC_OVERRIDE CAP_SYS_ADMIN
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes

[Install]
WantedBy=multi-user.target
"""

_DELEGATION = """\
# Written by `sandboxd setup`: what systemd hands on of its own accord is cpu, memory and pids.
[Service]
Delegate=cpu cpuset io memory pids
"""

_USER_TEMPLATE = """\
# Written by `sandboxd setup`; changes go into a drop-in (systemctl --user edit sandboxd).
[Unit]
Description=sandboxd: runs untrusted commands in rootless sandboxes

[Service]
Type=exec
ExecStart={program} serve
{alike}
[Install]
WantedBy=default.target
"""


def unit_text(user: str, program: str) -> str:
    """`sandboxd.service` for this user and this path of the `sandboxd` command."""
    return _TEMPLATE.format(user=user, program=program, alike=_ALIKE)


def delegation_text() -> str:
    """A drop-in for the `user@UID.service` of a person: rates of disks and CPU sets need more than it delegates."""
    return _DELEGATION


def user_unit_text(program: str) -> str:
    """`sandboxd.service` for the systemd of whichever person starts it."""
    return _USER_TEMPLATE.format(program=program, alike=_ALIKE)
