"""A terminal for tests: a process in a pseudo-terminal, and the screen that its output draws."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence

_SEQUENCE = re.compile(r"\x1b\[(?P<private>\??)(?P<numbers>[\d;]*)(?P<final>[A-Za-z])")


class Screen:
    """What a person sees: the few control sequences that are used here, any other is an error.

    Attributes:
        rows: the lines of the screen and of what has scrolled off it, without trailing blanks.
        cursor: whether it is shown.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._lines = [""]
        self._row = self._column = 0
        self.cursor = True

    def feed(self, text: str) -> None:
        """Draw; ``text`` must not end within a control sequence."""
        position = 0
        while position < len(text):
            if text[position] == "\x1b":
                match = _SEQUENCE.match(text, position)
                assert match, repr(text[position : position + 20])
                self._control(match)
                position = match.end()
            else:
                self._put(text[position])
                position += 1

    def _put(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._move_to(self._row + 1)
        else:
            if self._column == self.width:
                self._move_to(self._row + 1)
                self._column = 0
            line = self._lines[self._row].ljust(self._column)
            self._lines[self._row] = line[: self._column] + character + line[self._column + 1 :]
            self._column += 1

    def _move_to(self, row: int) -> None:
        top = max(0, len(self._lines) - self.height)
        self._row = max(top, row)
        self._lines += [""] * (self._row + 1 - len(self._lines))

    def _control(self, match: re.Match[str]) -> None:
        numbers, final = match["numbers"], match["final"]
        if match["private"]:
            assert numbers == "25", match[0]
            self.cursor = final == "h"
        elif final == "A":
            self._move_to(self._row - int(numbers or 1))
        elif final == "K":
            assert numbers == "2", match[0]
            self._lines[self._row] = ""
        else:
            assert final == "m", match[0]

    @property
    def rows(self) -> list[str]:
        return [line.rstrip() for line in self._lines]


class TerminalProcess:
    """A process whose output goes to a pseudo-terminal."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], width: int = 100, height: int = 24
    ) -> None:
        self._master, slave = pty.openpty()
        self.resize(width, height)
        self.before = termios.tcgetattr(slave)
        self._slave = slave
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**environment, "TERM": "xterm"},
            start_new_session=True,
            # its controlling terminal, so that Ctrl-C in it is a signal
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.output = ""
        self._undecoded = b""
        self.size = width, height

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.size = width, height

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def read_until(self, condition: Callable[[TerminalProcess], bool], seconds: float = 60) -> None:
        """Read what it writes until ``condition`` holds."""
        deadline = time.monotonic() + seconds
        while not condition(self):
            assert time.monotonic() < deadline, "\n".join(self.screen().rows)
            if select.select([self._master], [], [], 0.05)[0]:
                self._undecoded += os.read(self._master, 65536)
                whole = self._undecoded.decode(errors="ignore")
                if whole.encode() == self._undecoded:
                    self.output, self._undecoded = self.output + whole, b""

    def finish(self) -> int:
        """Read to its end; returns the exit code."""
        self.read_until(lambda process: process.process.poll() is not None)
        while select.select([self._master], [], [], 0.2)[0]:
            self.output += os.read(self._master, 65536).decode()
        return self.process.returncode

    @property
    def after(self) -> list[object]:
        return termios.tcgetattr(self._slave)

    def screen(self) -> Screen:
        """What all of its output has drawn, up to the last whole control sequence."""
        screen = Screen(*self.size)
        screen.feed(re.sub(r"\x1b(\[[\d;?]*)?$", "", self.output))
        return screen
