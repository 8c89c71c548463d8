"""Settings are read from four places, in order, and every mistake is reported at once."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxd.errors import SettingsError
from sandboxd.settings import Settings
from sandboxd.settings_loader import fields, load_settings, variable_of

NO_FILE = {"SANDBOXD_CONFIG": ""}


def config(tmp_path: Path, text: str) -> str:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return str(file)


def faults_of(
    flags: dict[str, object] | None = None,
    environ: dict[str, str] | None = None,
    config_file: str = "",
) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(flags or {}, environ or {}, config_file=config_file)
    return str(caught.value).splitlines()


def test_without_anything_set_every_value_is_the_default() -> None:
    loaded = load_settings({}, NO_FILE)

    assert loaded.settings.server == Settings().server
    assert set(loaded.origins.values()) == {"default"}
    assert list(loaded.origins) == list(fields())


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    file = config(
        tmp_path,
        '[server]\nlisten = "127.0.0.1:1"\nmax_wait_seconds = 1\nmetrics_listen = "127.0.0.1:2"',
    )
    environ = {"SANDBOXD_SERVER_LISTEN": "127.0.0.1:3", "SANDBOXD_SERVER_MAX_WAIT_SECONDS": "2.5"}

    loaded = load_settings({"server.listen": "127.0.0.1:4"}, environ, config_file=file)

    assert loaded.settings.server.listen == "127.0.0.1:4"
    assert loaded.settings.server.max_wait_seconds == 2.5
    assert loaded.settings.server.metrics_listen == "127.0.0.1:2"
    assert loaded.origins["server.listen"] == "flag --listen"
    assert (
        loaded.origins["server.max_wait_seconds"] == "environment SANDBOXD_SERVER_MAX_WAIT_SECONDS"
    )
    assert loaded.origins["server.metrics_listen"] == f"file {file}"
    assert loaded.origins["server.auth"] == "default"


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    loaded = load_settings({"server.listen": None}, NO_FILE)

    assert loaded.origins["server.listen"] == "default"


@pytest.mark.parametrize(
    ("value", "size"),
    [("128Mi", 128 * 2**20), ("1.5G", 1_500_000_000), ("4096", 4096)],
)
def test_sizes_are_quantities_in_the_environment(value: str, size: int) -> None:
    loaded = load_settings({}, NO_FILE | {"SANDBOXD_SERVER_MAX_BODY_BYTES": value})

    assert loaded.settings.server.max_body_bytes == size


def test_sizes_and_cpus_are_quantities_in_the_file(tmp_path: Path) -> None:
    file = config(tmp_path, '[limits]\nmemory_bytes = "1Gi"\ndisk_bytes = 1048576\ncpus = "500m"')

    limits = load_settings({}, {}, config_file=file).settings.limits

    assert (limits.memory_bytes, limits.disk_bytes, limits.cpus) == (2**30, 2**20, 0.5)


@pytest.mark.parametrize(("word", "value"), [("true", True), ("false", False), ("0", False)])
def test_booleans_are_words_in_the_environment(word: str, value: bool) -> None:
    loaded = load_settings({}, NO_FILE | {"SANDBOXD_ISOLATION_BEST_EFFORT": word})

    assert loaded.settings.isolation.best_effort is value


def test_url_and_key_of_the_client_have_short_variables() -> None:
    loaded = load_settings({}, NO_FILE | {"SANDBOXD_URL": "http://a", "SANDBOXD_KEY": "sbx_x"})

    assert (loaded.settings.client.url, loaded.settings.client.key) == ("http://a", "sbx_x")
    assert loaded.origins["client.url"] == "environment SANDBOXD_URL"


def test_the_full_variable_beats_the_short_one() -> None:
    environ = NO_FILE | {"SANDBOXD_CLIENT_URL": "http://full", "SANDBOXD_URL": "http://short"}

    assert load_settings({}, environ).settings.client.url == "http://full"


@pytest.mark.parametrize(
    ("url", "secret", "fault"),
    [
        ("ftp://there", "", "must be http://HOST"),
        ("https://there/hook", "", "webhooks.secret is not"),
        ("https://there/hook", "whsec_c2hvcnQ=", 'must be "whsec_" and 24 to 64 bytes'),
        ("https://there/hook", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", 'must be "whsec_"'),
    ],
)
def test_a_webhook_needs_an_address_and_a_secret(url: str, secret: str, fault: str) -> None:
    environ = {"SANDBOXD_WEBHOOKS_URL": url} | (
        {"SANDBOXD_WEBHOOKS_SECRET": secret} if secret else {}
    )
    with pytest.raises(SettingsError) as raised:
        load_settings({}, NO_FILE | environ)

    assert fault in str(raised.value)
    assert not secret or secret not in str(raised.value)


@pytest.mark.parametrize("url", ["htps://there/token", "https://[there/token", "token"])
def test_an_address_that_is_wrong_is_told_without_what_may_be_a_token(url: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings({}, NO_FILE | {"SANDBOXD_WEBHOOKS_URL": url})

    assert "webhooks.url" in str(raised.value)
    assert "token" not in str(raised.value)


def test_every_setting_can_be_set_by_its_variable() -> None:
    plain = load_settings({}, NO_FILE).settings
    for key in fields():
        section, name = key.split(".")
        value = getattr(getattr(plain, section), name)
        word = str(value).lower() if isinstance(value, bool) else str(value)
        if isinstance(value, tuple):
            word = ", ".join(value)

        loaded = load_settings({}, NO_FILE | {variable_of(key): word})

        assert loaded.settings == plain
        assert loaded.origins[key] == f"environment {variable_of(key)}"


def test_destinations_are_checked_when_they_are_read() -> None:
    words = {"ALLOW": "public, 10.0.0.0/8:5432,,db.example.com", "DENY": "198.51.100.0/24"}
    variables = {f"SANDBOXD_NETWORK_{name}": word for name, word in words.items()}

    network = load_settings({}, NO_FILE | variables).settings.network

    assert network.allow == ("public", "10.0.0.0/8:5432", "db.example.com")
    assert network.deny == ("198.51.100.0/24",)
    for name, word, reason in (
        ("ALLOW", "0.0.0.0/0", "reaches into"),
        ("ALLOW", "a b", "is neither"),
        ("DENY", "a.test", "IPv4 or IPv6"),
        ("RATE_BYTES", "1", "at least"),
        ("EGRESS", "maybe", "one of off, on"),
    ):
        with pytest.raises(SettingsError, match=reason):
            load_settings({}, NO_FILE | {f"SANDBOXD_NETWORK_{name}": word})


def test_variables_that_are_ours_but_no_settings_are_accepted() -> None:
    load_settings({}, NO_FILE | {"SANDBOXD_HOST_TESTS": "required", "SANDBOXD_DEBUG": "1"})


def test_variables_that_kubernetes_makes_of_a_service_are_accepted() -> None:
    service = {
        "SANDBOXD_SERVICE_HOST": "10.0.0.1",
        "SANDBOXD_SERVICE_PORT": "8080",
        "SANDBOXD_SERVICE_PORT_HTTP": "8080",
        "SANDBOXD_PORT": "tcp://10.0.0.1:8080",
        "SANDBOXD_PORT_8080_TCP_ADDR": "10.0.0.1",
        "SANDBOXD_METRICS_SERVICE_HOST": "10.0.0.2",
    }

    load_settings({}, NO_FILE | service)


def test_a_misspelt_variable_is_refused_and_the_near_one_named() -> None:
    (fault,) = faults_of(environ={"SANDBOXD_SERVER_LISTN": "x"})

    assert fault.startswith("SANDBOXD_SERVER_LISTN (environment): there is no such setting")
    assert "did you mean SANDBOXD_SERVER_LISTEN?" in fault


def test_a_misspelt_key_in_the_file_is_refused_and_the_near_one_named(tmp_path: Path) -> None:
    file = config(tmp_path, "[limits]\nmemory = 1")

    (fault,) = faults_of(config_file=file)

    assert fault.startswith(f"limits.memory (file {file})")
    assert "did you mean limits.memory_bytes?" in fault


def test_an_unknown_section_is_refused_and_all_sections_named(tmp_path: Path) -> None:
    (fault,) = faults_of(config_file=config(tmp_path, "[sever]\nlisten = 1"))

    assert "sever" in fault
    assert "[server], [store], [files], [isolation]" in fault


def test_a_section_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (fault,) = faults_of(config_file=config(tmp_path, "server = 1"))

    assert "write [server]" in fault


@pytest.mark.parametrize(
    ("key", "toml", "accepted"),
    [
        ("server.listen", '"8080"', "a port from 0 to 65535"),
        ("server.listen", '"host:99999"', "a port from 0 to 65535"),
        ("server.listen", '"::1:8080"', "IPv6 addresses in [brackets]"),
        ("server.listen", '"unix:relative"', "absolute"),
        ("server.listen", "8080", "a text"),
        ("server.metrics_listen", '"unix:/x"', "HOST:PORT, or empty"),
        ("server.auth", '"yes"', "true or false"),
        ("server.auth", "1", "true or false"),
        ("server.max_body_bytes", '"lots"', "128Mi"),
        ("server.max_body_bytes", "true", "128Mi"),
        ("server.max_body_bytes", "-1", "2^63"),
        ("server.max_wait_seconds", '"3"', "a number, at least 0"),
        ("server.max_wait_seconds", "-1", "a number, at least 0"),
        ("server.max_wait_seconds", "nan", "a number, at least 0"),
        ("server.max_wait_seconds", "inf", "a number, at least 0"),
        ("store.data_dir", '"relative"', "an absolute path"),
        ("isolation.id_map", '"many"', "one of auto, range, single"),
        ("scheduler.slots", "1.5", "a whole number, at least 0"),
        ("scheduler.slots", "-1", "a whole number, at least 0"),
        ("limits.cpus", '"half"', "500m"),
        ("limits.cpus", "0", "at least 0.01"),
        ("limits.memory_bytes", '"1k"', "at least 4194304"),
        ("ceilings.pids", "0", "at least 1"),
        ("client.url", '"localhost:8080"', "http://HOST:PORT"),
        ("log.format", '"xml"', "one of auto, console, json"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_its_origin_and_what_is_accepted(
    tmp_path: Path, key: str, toml: str, accepted: str
) -> None:
    section, name = key.split(".")
    file = config(tmp_path, f"[{section}]\n{name} = {toml}")

    (fault,) = faults_of(config_file=file)

    assert fault.startswith(f"{key} = ")
    assert f"(file {file})" in fault
    assert accepted in fault


def test_all_mistakes_of_all_places_are_reported_at_once(tmp_path: Path) -> None:
    file = config(tmp_path, "[server]\nlisten = 1\nnonsense = 2\n[nowhere]")

    faults = faults_of(
        {"scheduler.slots": -1}, {"SANDBOXD_LOG_LEVEL": "loud", "SANDBOXD_X": ""}, config_file=file
    )

    assert len(faults) == 6


def test_the_key_never_appears_in_a_message(tmp_path: Path) -> None:
    (fault,) = faults_of(config_file=config(tmp_path, "[client]\nkey = 123456789"))

    assert "123456789" not in fault


def test_a_file_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    (fault,) = faults_of(config_file=str(tmp_path / "absent.toml"))

    assert "absent.toml: cannot be read: No such file" in fault


def test_a_file_that_is_no_toml_is_refused_with_its_line(tmp_path: Path) -> None:
    (fault,) = faults_of(config_file=config(tmp_path, "listen: 8080"))

    assert "is not TOML" in fault
    assert "line 1" in fault


def test_the_file_is_found_in_the_users_configuration(tmp_path: Path) -> None:
    (tmp_path / ".config" / "sandboxd").mkdir(parents=True)
    (tmp_path / ".config" / "sandboxd" / "config.toml").write_text("[scheduler]\nslots = 7")

    loaded = load_settings({}, {"HOME": str(tmp_path)})

    assert loaded.settings.scheduler.slots == 7


def test_the_file_of_the_flag_beats_the_file_of_the_environment(tmp_path: Path) -> None:
    file = config(tmp_path, "[scheduler]\nslots = 3")

    loaded = load_settings({}, {"SANDBOXD_CONFIG": "/nonexistent"}, config_file=file)

    assert loaded.settings.scheduler.slots == 3


def test_no_auth_on_an_address_that_others_reach_is_refused() -> None:
    (fault,) = faults_of({"server.auth": False, "server.listen": "0.0.0.0:8080"})

    assert "server.auth is off" in fault


@pytest.mark.parametrize("listen", ["127.0.0.1:80", "[::1]:80", "localhost:80", "unix:/run/s"])
def test_no_auth_on_a_local_address_is_accepted(listen: str) -> None:
    loaded = load_settings({"server.auth": False, "server.listen": listen}, NO_FILE)

    assert loaded.origins["server.auth"] == "flag --no-auth"


def test_the_state_directory_of_systemd_is_the_data_directory() -> None:
    loaded = load_settings({}, NO_FILE | {"STATE_DIRECTORY": "/var/lib/other:/var/lib/second"})

    assert loaded.settings.store.data_dir == "/var/lib/other"


IS_SYSTEM_ACCOUNT = os.geteuid() == 0 or pwd.getpwuid(os.geteuid()).pw_dir == "/var/lib/sandboxd"


@pytest.mark.skipif(not IS_SYSTEM_ACCOUNT, reason="only root and the service's user have it")
def test_the_service_and_root_have_the_systems_data_directory_whatever_home_says() -> None:
    loaded = load_settings({}, NO_FILE | {"HOME": "/home/me"})

    assert loaded.settings.store.data_dir == "/var/lib/sandboxd"


@pytest.mark.as_root
def test_an_ordinary_user_has_a_data_directory_of_their_own() -> None:
    """By root, who can be anybody: the service's user has the system's."""
    code = "from sandboxd.settings_loader import load_settings as load\n"
    code += "home = {'HOME': '/home/me', 'SANDBOXD_CONFIG': ''}\n"
    code += "for state in {}, {'XDG_STATE_HOME': '/state'}:\n"
    code += "  print(load({}, home | state).settings.store.data_dir)"
    nobody = 65534

    said = subprocess.run(
        [sys.executable, "-c", code],
        user=nobody,
        group=nobody,
        extra_groups=[],
        env={"PYTHONPATH": os.environ["PYTHONPATH"]},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )

    assert said.stdout.split() == ["/home/me/.local/state/sandboxd", "/state/sandboxd"]
