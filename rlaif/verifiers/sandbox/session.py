"""The other end of a guest: sends it one job, reads what it says, and trusts none of it.

A process that has run a candidate's code is the candidate. Every question carries a fresh random number that the reply
must carry back; a byte that was not asked for, or that is no message, is an attempt to be counted as something else
("cheat"). Time runs from the moment the process is started for this job.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from rlaif.types import RewardReason
from rlaif.verifiers.sandbox import values
from rlaif.verifiers.sandbox.base import Ending, Launcher, Limits, Process, SandboxError

Message = dict[str, Any]
_CHUNK = 1 << 16
_PLACE_SECONDS = 60.0  # one who holds a place and waits for another must not do so for ever


class Ended(Exception):
    """The program is over before it answered, by its own doing. ``reason`` is what a verdict says."""

    def __init__(self, reason: RewardReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: RewardReason = reason
        self.detail = detail


@dataclass
class Guest:
    """One process with one job."""

    process: Process
    limits: Limits
    deadline: float  # of the running loop's clock
    unread: bytearray

    async def send(self, message: Message) -> None:
        """Raises Ended."""
        try:
            async with asyncio.timeout_at(self.deadline):
                await self.process.send(values.dumps(message))
        except TimeoutError:
            raise self._late() from None
        except BrokenPipeError:
            raise await self.ending() from None

    async def read(self) -> Message:
        """The next message. Raises Ended."""
        try:
            async with asyncio.timeout_at(self.deadline):
                while (end := self.unread.find(b"\n")) < 0:
                    if len(self.unread) > self.limits.reply_bytes:
                        raise Ended("resource", f"an answer of more than {self.limits.reply_bytes >> 20} MB")
                    chunk = await self.process.receive(_CHUNK)
                    if not chunk:
                        raise await self.ending()
                    self.unread += chunk
        except TimeoutError:
            raise self._late() from None
        line = bytes(self.unread[:end])
        del self.unread[: end + 1]
        return _message(line)

    async def ask(self, question: Message) -> Message:
        """Send a question and read its answer. Raises Ended; "cheat" for one given before it was asked."""
        if self.unread:
            raise Ended("cheat", "it answered on the result channel before it was asked")
        nonce = secrets.token_hex(8)
        await self.send({**question, "nonce": nonce})
        reply = await self.read()
        if reply.pop("nonce", None) != nonce:
            raise Ended("cheat", "it wrote to the result channel itself")
        return reply

    async def ending(self) -> Ended:
        """How the process ended, once its channel is closed."""
        try:
            async with asyncio.timeout_at(self.deadline + 1):
                return ended(await self.process.wait(), self.limits)
        except TimeoutError:
            return self._late()

    def _late(self) -> Ended:
        return Ended("timeout", f"not done in {self.limits.seconds:.3g} s")


def _message(line: bytes) -> Message:
    try:
        message = values.loads(line)
    except values.Malformed:
        message = None
    if not isinstance(message, dict):
        raise Ended("cheat", "it wrote something to the result channel that is no message")
    return message


def ended(ending: Ending, limits: Limits) -> Ended:
    """What an ending means when an answer was due."""
    match ending.how:
        case "timeout":
            return Ended("timeout", f"not done in {limits.seconds:.3g} s")
        case "resource":
            return Ended("resource", "it used more memory, output or files than it may")
        case "killed":
            return Ended("crashed", f"ended by signal {ending.code}")
        case "exited":
            return Ended("crashed", f"the process ended itself (exit code {ending.code})")


@asynccontextmanager
async def open_guest(launcher: Launcher, limits: Limits, job: Message) -> AsyncIterator[Guest]:
    """A process that does ``job``; killed on leaving. Raises SandboxError when none can be started."""
    try:
        async with asyncio.timeout(_PLACE_SECONDS):
            process = await launcher.launch(limits)
    except TimeoutError:
        raise SandboxError(f"no place for another process in {_PLACE_SECONDS:.0f} s") from None
    try:
        guest = Guest(process, limits, asyncio.get_running_loop().time() + limits.seconds, bytearray())
        await guest.send(job)
        yield guest
    finally:
        await process.aclose()


# ------------------------------------------------------------------------------------------- a candidate's session


class Session:
    """A candidate's program, defined and ready to be asked."""

    def __init__(self, guest: Guest, outline: Message) -> None:
        self.guest = guest
        self.outline = outline

    async def ask(self, question: Message) -> Message:
        """One operation of the guest's (see guest.OPERATIONS). The reply has exactly one of ``value`` (encoded),
        ``raised`` (with ``with`` and ``text``) or ``end`` (op "next" only), and ``args`` where the call changed them.
        Raises Ended."""
        reply = await self.guest.ask(question)
        if "too_large" in reply:
            raise Ended("resource", f"it returned {str(reply['too_large'])[:100]}")
        if "exit" in reply:
            raise Ended("crashed", f"it ended the program ({str(reply['exit'])[:200]})")
        kept: Message = {key: reply[key] for key in ("value", "raised", "with", "text", "args", "end") if key in reply}
        if len(kept.keys() & {"value", "raised", "end"}) != 1 or ("end" in kept and question["op"] != "next"):
            raise Ended("cheat", "it wrote to the result channel itself")
        if not isinstance(kept.get("args", []), list) or not isinstance(kept.get("raised", []), list):
            raise Ended("cheat", "it wrote to the result channel itself")
        if "raised" in kept:
            kept = {"with": [], "text": ""} | kept
        return kept


@asynccontextmanager
async def open_session(launcher: Launcher, limits: Limits, sources: Sequence[str]) -> AsyncIterator[Session]:
    """A process in which the first of ``sources`` that is Python has been run. Raises SandboxError, and Ended where
    none is Python ("unparseable") or running it ended in an error ("crashed")."""
    nonce = secrets.token_hex(8)
    async with open_guest(launcher, limits, {"do": "session", "sources": list(sources), "nonce": nonce}) as guest:
        outline = await read_outline(guest)
        # No standard input: a program that asks for some gets the end of file.
        await guest.process.write_stdin(b"")
        reply = await guest.read()
        if reply.get("nonce") != nonce:
            raise Ended("cheat", "it wrote to the result channel itself")
        if "loaded" not in reply:
            raise Ended("crashed", str(reply.get("text", reply.get("exit", "")))[:300])
        yield Session(guest, outline)


async def read_outline(guest: Guest) -> Message:
    """What the guest found in the program's text, before it ran. Raises Ended ("unparseable")."""
    first = await guest.read()
    if "invalid" in first:
        raise Ended("unparseable", f"the code is not Python ({str(first['invalid'])[:200]})")
    outline: Message = first.get("outline", {})
    return outline
