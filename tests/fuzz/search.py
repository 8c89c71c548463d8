"""Search for inputs that break a target, led by coverage: `make fuzz SECONDS=60`.

    python tests/fuzz/search.py SECONDS [TARGET…]

It begins with the seeds, and for archives with the whole corpus of hostile ones.

Each target gets so many seconds and a process of its own, which ends at a finding and prints its bytes. What was learned on
the way is not kept: a finding becomes a seed or a test.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.append(str(Path(__file__).parents[1] / "images"))

if sys.argv[1] == "--one":
    with atheris.instrument_imports(include=["sandboxd", "tarfile"], enable_loader_override=False):
        import fuzz_targets
else:
    import fuzz_targets
from fuzz_seeds import seeds_of
from hostile_archives import archives


def search(name: str, seconds: str, directory: Path) -> None:
    """Never returns: libFuzzer ends the process."""
    corpus = directory / "corpus"
    corpus.mkdir()
    hostile = list(archives().values()) if name in ("archive", "layer") else []
    for number, seed in enumerate(seeds_of(name) + hostile):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [f"-max_total_time={seconds}", f"-max_len={fuzz_targets.MOST_BYTES}", "-timeout=20"]
    options += ["-rss_limit_mb=1500", f"-artifact_prefix={directory}/", "-print_final_stats=1"]
    atheris.Setup([name, *options, "-verbosity=0", str(corpus)], fuzz_targets.TARGETS[name])
    atheris.Fuzz()


def search_all(seconds: str, names: list[str]) -> list[str]:
    """The targets that broke."""
    broken = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="sandboxd-fuzz-") as directory:
            words = [sys.executable, __file__, "--one", name, seconds, directory]
            ended = subprocess.run(words, capture_output=True, check=False)
            report = ended.stderr.decode(errors="replace")
            figures = dict(re.findall(r"stat::(\w+):\s+(\d+)", report))
            print(f"{name}: {figures.get('number_of_executed_units', '?')} inputs", flush=True)
            if ended.returncode != 0:
                broken.append(name)
                print(report[-4000:])
                for path in Path(directory).glob("*-*"):
                    print(f"{path.name}: {path.read_bytes()[:2000]!r}")
    return broken


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        search(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    elif broken := search_all(sys.argv[1], sys.argv[2:] or list(fuzz_targets.TARGETS)):
        sys.exit(f"broken: {', '.join(broken)}")
