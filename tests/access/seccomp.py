#!/usr/bin/env python3
"""Runs a command as a container runtime would with a seccomp profile:

  seccomp.py --profile FILE.json [--user UID] [--read-only-but DIR] -- COMMAND...

No capabilities, no new privileges, the profile's filter; with --read-only-but
nothing else can be written (needs root). Understands what our profile uses of
the format: names, action, errnoRet and arguments compared with SCMP_CMP_EQ and
SCMP_CMP_MASKED_EQ. x86-64 only."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import pathlib
import re
import struct
import sys

HEADER = pathlib.Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
ARCH_X86_64 = 0xC000003E
X32_BIT = 0x40000000
RET_ALLOW, RET_ERRNO = 0x7FFF0000, 0x00050000
LD_ABS, JEQ, JGE, AND, RET = 0x20, 0x15, 0x35, 0x54, 0x06
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP = 22, 38, 24
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, ATTR_RDONLY = 442, -100, 0x8000, 1
CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 0x1000, 0x4000, 1 << 18

libc = ctypes.CDLL(None, use_errno=True)


def numbers() -> dict[str, int]:
    return {m[1]: int(m[2]) for m in re.finditer(r"#define __NR_(\w+)\s+(\d+)", HEADER.read_text())}


def instruction(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
    return struct.pack("HBBI", code, true, false, value & 0xFFFFFFFF)


def action(rule: dict, default_errno: int = 1) -> int:
    name = rule["action"]
    if name == "SCMP_ACT_ALLOW":
        return RET_ALLOW
    if name == "SCMP_ACT_ERRNO":
        return RET_ERRNO | rule.get("errnoRet", default_errno)
    raise ValueError(f"action {name}")


def compare(argument: dict) -> list[bytes]:
    """Falls through if the argument matches; the last jump of each half leaves."""
    operator, value = argument["op"], argument["value"]
    mask, wanted = {"SCMP_CMP_EQ": (0xFFFFFFFFFFFFFFFF, value), "SCMP_CMP_MASKED_EQ": (value, argument.get("valueTwo", 0))}[operator]
    code = []
    for half in (0, 1):
        at, shift = 16 + 8 * argument["index"] + 4 * half, 32 * half
        code += [instruction(LD_ABS, at), instruction(AND, mask >> shift), instruction(JEQ, wanted >> shift, 0, 255)]
    return code


def program_of(profile: dict) -> bytes:
    known = numbers()
    code = [instruction(LD_ABS, 4), instruction(JEQ, ARCH_X86_64, 1, 0), instruction(RET, RET_ERRNO | 1), instruction(LD_ABS, 0), instruction(JGE, X32_BIT, 0, 1), instruction(RET, RET_ERRNO | 1)]
    for rule in profile["syscalls"]:
        unknown = set(rule) - {"names", "action", "args", "errnoRet", "comment"}
        if unknown:
            raise ValueError(f"not understood: {unknown}")
        for name in rule["names"]:
            if name not in known:
                continue  # of another architecture
            body = [part for argument in rule.get("args", []) for part in compare(argument)]
            body.append(instruction(RET, action(rule)))
            # A comparison that fails goes to the number again, behind the body.
            for i, part in enumerate(body):
                jump_code, true, false, value = struct.unpack("HBBI", part)
                if jump_code == JEQ and false == 255:
                    body[i] = instruction(JEQ, value, 0, len(body) - i - 1)
            code += [instruction(LD_ABS, 0), instruction(JEQ, known[name], 0, len(body)), *body]
    code.append(instruction(RET, RET_ERRNO | profile.get("defaultErrnoRet", 1)))
    if profile["defaultAction"] != "SCMP_ACT_ERRNO":
        raise ValueError("the default must be to refuse")
    if len(code) > 4096:
        raise ValueError(f"{len(code)} instructions, the kernel takes 4096")
    return b"".join(code)


def check(result: int, what: str):
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def make_read_only(but: str):
    check(libc.unshare(CLONE_NEWNS), "unshare")
    check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "making mounts private")
    check(libc.mount(but.encode(), but.encode(), None, MS_BIND, None), "binding the data folder")
    set_read_only, clear = struct.pack("QQQQ", ATTR_RDONLY, 0, 0, 0), struct.pack("QQQQ", 0, ATTR_RDONLY, 0, 0)
    check(libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, set_read_only, len(set_read_only)), "making / read-only")
    check(libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, but.encode(), 0, clear, len(clear)), "making the data folder writable")
    os.chdir(os.getcwd())  # through the new mounts
    try:
        pathlib.Path(but).parent.joinpath("written").touch()
    except OSError:
        return
    raise RuntimeError("the rest is still writable")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--profile", type=pathlib.Path, required=True)
    parser.add_argument("--user", type=int)
    parser.add_argument("--read-only-but")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    program = program_of(json.loads(arguments.profile.read_text()))
    if arguments.read_only_but and os.geteuid() == 0:
        make_read_only(arguments.read_only_but)
    if os.geteuid() == 0:
        last = int(pathlib.Path("/proc/sys/kernel/cap_last_cap").read_text())
        for capability in range(last + 1):
            check(libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "dropping capabilities")
        if arguments.user is not None:
            os.setgroups([])
            os.setresgid(arguments.user, arguments.user, arguments.user)
            os.setresuid(arguments.user, arguments.user, arguments.user)
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    code = ctypes.create_string_buffer(program)
    filter_program = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    check(libc.prctl(PR_SET_SECCOMP, 2, ctypes.create_string_buffer(filter_program), 0, 0), "seccomp")
    os.execvp(arguments.command[0], arguments.command)
    return 1


if __name__ == "__main__":
    sys.exit(main())
