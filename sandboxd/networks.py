"""The networks of jobs: what a job may ask for within the operator's settings, and what is written down of it."""

import ipaddress
from collections.abc import Callable

from sandboxd.errors import Fault, SandboxFailed
from sandboxd.isolation.destinations import Bounds, Destination, parse_destination, texts
from sandboxd.isolation.egress import Allowance, Connection, Egress
from sandboxd.isolation.firewall import Traffic
from sandboxd.isolation.sandbox import Sandbox
from sandboxd.isolation.spec import NetworkMode
from sandboxd.jobs import Denied, Network
from sandboxd.settings import NetworkSettings


class Networks:
    """Says what this host and its operator allow, and connects what runs."""

    def __init__(self, settings: NetworkSettings) -> None:
        self._egress: Egress | None = None
        self._lacking = "the operator has not turned egress on (network.egress)"
        if settings.egress == "on":
            try:
                self._egress = Egress(bounds_of(settings))
            except SandboxFailed as error:
                self._lacking = f"this host has no egress: {error}"

    @property
    def modes(self) -> list[NetworkMode]:
        """What a job may ask for."""
        return [NetworkMode.NONE] if self._egress is None else list(NetworkMode)

    def check(self, network: Network) -> list[Fault]:
        """What a job asks for and does not get."""
        if network.mode is NetworkMode.NONE:
            return []
        if self._egress is None:
            return [Fault("/network/mode", self._lacking)]
        faults = []
        for index, text in enumerate(network.allow or ()):
            try:
                why = self._egress.bounds.forbidden(parse_destination(text))
            except ValueError:
                continue  # Told already, with the rest of what is no destination.
            if why is not None:
                faults.append(Fault(f"/network/allow/{index}", why))
        return faults

    async def connect(
        self,
        network: Network,
        sandbox: Sandbox,
        adopt: Callable[[int], None],
        *,
        most_bytes: int,
        on_used_up: Callable[[], None],
    ) -> Connection | None:
        """Connect a sandbox that has run nothing yet; None where it has no network. Raises SandboxFailed.

        It may receive and send `most_bytes` together; `on_used_up` is called when it wanted more.
        What was allowed when the job was accepted may not be any more: the settings in force now count.
        """
        if network.mode is NetworkMode.NONE:
            return None
        faults = self.check(network)
        if self._egress is None or faults:
            raise SandboxFailed("connect network", "; ".join(fault.detail for fault in faults))
        allowance = Allowance(most_bytes, on_used_up)
        destinations = self._destinations(self._egress, network)
        return await self._egress.open(sandbox, destinations, allowance, adopt)

    @staticmethod
    def enforcement(network: Network) -> dict[str, str]:
        """What enforces the limits that only a job with a network has."""
        return {} if network.mode is NetworkMode.NONE else {"network_bytes": "nftables"}

    def record(self, network: Network) -> dict[str, object]:
        """What bounds the network, for the job's record."""
        if network.mode is NetworkMode.NONE or self._egress is None:
            return {}
        bounds = self._egress.bounds
        return {
            "network": {
                "allow": texts(self._destinations(self._egress, network)),
                "deny": [str(each) for each in bounds.deny],
                "rate_bytes": bounds.rate_bytes,
                "firewall": "nftables",
                "stack": "pasta",
            }
        }

    @staticmethod
    def _destinations(egress: Egress, network: Network) -> tuple[Destination, ...]:
        if network.allow is None:
            return egress.bounds.allow
        return tuple(map(parse_destination, network.allow))


def bounds_of(settings: NetworkSettings) -> Bounds:
    """The operator's settings, which the loader has checked."""
    return Bounds(
        allow=tuple(map(parse_destination, settings.allow)),
        deny=tuple(map(ipaddress.ip_network, settings.deny)),
        rate_bytes=settings.rate_bytes,
    )


def denied_of(traffic: Traffic) -> tuple[Denied, ...]:
    """What was refused, as the record has it."""
    return tuple(
        Denied(
            kind="network",
            host=refusal.host,
            protocol=refusal.protocol,
            port=refusal.port,
            count=refusal.packets,
        )
        for refusal in traffic.refused
    )
