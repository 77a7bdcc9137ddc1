"""A PostgreSQL cluster of the tests' own, on loopback, that can be stopped and started again."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def programs() -> Path | None:
    """The folder of initdb and pg_ctl, which Debian does not put on PATH."""
    program = shutil.which("pg_ctl")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    return Path(program).resolve().parent if program else (debian[-1].parent if debian else None)


class Cluster:
    """Made anew; PostgreSQL refuses to run as root, so then it runs as its own user."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="ropewalk-postgresql-"))
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(self._folder, owner.pw_uid, owner.pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._run("initdb", "--auth=trust", "--username=ropewalk", "--no-sync", "--encoding=UTF8")
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), "-D", str(self._folder / "data"), *arguments]
        as_owner = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        # Into a file: the server keeps what it inherits, and a pipe would never end.
        with (self._folder / "log").open("ab") as log:
            completed = subprocess.run([*as_owner, *command], stdout=log, stderr=log, cwd="/", timeout=120, check=False)
        assert completed.returncode == 0, (self._folder / "log").read_text()

    def start(self) -> None:
        options = f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "-w", "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-w", "-m", "fast", "stop")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Away within the block, and back for the tests that follow whatever happens in it."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def create(self, name: str) -> str:
        """Address of a new, empty database."""
        import psycopg

        with psycopg.connect(
            f"host=127.0.0.1 port={self._port} user=ropewalk dbname=postgres", autocommit=True
        ) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return f"postgresql+psycopg://ropewalk@127.0.0.1:{self._port}/{name}"

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)
