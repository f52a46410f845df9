"""
``make fuzz MINUTES=10``: the targets under coverage-guided fuzzing, one after the other.

Needs the extra ``fuzz`` (atheris). Inputs that reach new code are kept under ``.fuzz/<target>``, so that a
later run goes on from them; an input that ends in anything but a documented error, takes longer than
``SLOW_S``, or more memory than ``MEMORY_BYTES`` is written beside them. Make it a file of
``tests/fuzz/cases``, named for what it is, mend the code, and the suite holds it.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / ".fuzz"
#: Beyond what the process has once everything is imported. No input is longer than 64 KiB.
MEMORY_BYTES = 256 << 20
MAX_INPUT = 1 << 16
SLOW_S = 5
_STATUS = re.compile(r"#(\d+).*cov: (\d+) ft: (\d+) corp: (\d+)")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="all targets together")
    parser.add_argument("--only", default="", help="one target")
    parser.add_argument("--seed", type=int, default=0, help="0: another one each time")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    given, rest = parser.parse_known_args()
    if given.child:
        return fuzz(given.child, rest)
    from tests.fuzz.targets import TARGETS

    if given.only and given.only not in TARGETS:
        parser.error(f"--only: {given.only} is not one of {', '.join(TARGETS)}")
    wanted = [given.only] if given.only else list(TARGETS)
    found = [session(name, given.minutes / len(wanted), given.seed) for name in wanted]
    return int(not all(found))


def session(name: str, minutes: float, seed: int) -> bool:
    """Fuzz one target in a process of its own and print the result; true if nothing was found."""
    corpus, crashes = FOLDER / name, FOLDER / f"{name}-found"
    corpus.mkdir(parents=True, exist_ok=True)
    crashes.mkdir(exist_ok=True)
    known = set(crashes.iterdir())
    command = [
        *(sys.executable, "-m", "tests.fuzz.run", "--child", name, str(corpus)),
        *(f"-artifact_prefix={crashes}/", f"-max_total_time={max(1, round(60 * minutes))}"),
        *(f"-max_len={MAX_INPUT}", f"-timeout={SLOW_S}", f"-dict={dictionary()}"),
        *(f"-seed={seed}", "-print_final_stats=1", "-rss_limit_mb=4096"),
    ]
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)  # fmt: skip
    text = done.stdout.decode(errors="replace")
    (FOLDER / f"{name}.log").write_text(text)
    steps = [tuple(map(int, match.groups())) for match in _STATUS.finditer(text)]
    first, last = (steps[0], steps[-1]) if steps else ((0,) * 4, (0,) * 4)
    fresh = sorted(set(crashes.iterdir()) - known)
    print(
        f"{name:12} {(time.monotonic() - began) / 60:6.1f} min {last[0]:10} executions"
        f"  edges {first[1]} -> {last[1]}  features {first[2]} -> {last[2]}  corpus {last[3]}"
        f"  found {len(fresh)}",
        flush=True,
    )
    for path in fresh:
        print(f"  {path.relative_to(ROOT)}", flush=True)
    if done.returncode and not fresh:
        print(f"  ended with {done.returncode}; see {FOLDER / name}.log", flush=True)
    return not fresh and not done.returncode


def dictionary() -> Path:
    """A file of the formats' words, as libFuzzer reads it."""
    from tests.fuzz.targets import WORDS

    path = FOLDER / "words"
    path.write_text("".join(f'"{word}"\n' for word in WORDS))
    return path


def fuzz(name: str, options: list[str]) -> int:
    """The child: never returns but by libFuzzer's end."""
    # The loops in numpy: what is instrumented cannot be compiled, and the bytes are the same.
    sys.modules["numba"] = None  # type: ignore[assignment]
    import atheris

    with atheris.instrument_imports(include=["fl_queue"]):
        from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    corpus = Path(options[0])
    for number, seed in enumerate(target.seeds()):
        assert target(seed) or name == "job", f"seed {number} of {name} is refused"
        (corpus / f"seed-{number}").write_bytes(seed)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

    def one_input(data: bytes) -> None:
        try:
            target(data)  # Its result is for tests: libFuzzer takes none.
        except BaseException:
            # As libFuzzer would, but its alarm may end the process before it has.
            name = f"crash-{hashlib.sha1(data).hexdigest()}"
            (FOLDER / f"{corpus.name}-found" / name).write_bytes(data)
            raise

    atheris.Setup([sys.argv[0], *options], one_input)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
