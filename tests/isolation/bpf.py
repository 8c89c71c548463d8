"""An interpreter for the classic BPF that seccomp filters are written in (seccomp(2), linux/filter.h)."""

import struct

from sandboxd.isolation.seccomp import Instruction, Program

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
OTHER_ARCHITECTURES = {
    "i386": 0x40000003,
    "arm": 0x40000028,
    "riscv64": 0xC00000F3,
    "s390x": 0x80000016,
    "none": 0,
}
ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
ERRNO = 0x00050000

_LOAD, _JUMP, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x54, 0x06


def packet(number: int, architecture: int, *arguments: int) -> bytes:
    """struct seccomp_data."""
    padded = [argument % 2**64 for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    return struct.pack("=IIQ6Q", number % 2**32, architecture, 0x7F0000000000, *padded)


def run(program: Program, data: bytes) -> int:
    """What the filter returns. Fails on what the kernel's checker would refuse."""
    accumulator, position = 0, 0
    while True:
        code, if_true, if_false, value = program[position]
        position += 1
        match code:
            case 0x20:
                assert value % 4 == 0
                assert value + 4 <= len(data)
                (accumulator,) = struct.unpack_from("=I", data, value)
            case 0x54:
                accumulator &= value
            case 0x05:
                position += value
            case 0x15:
                position += if_true if accumulator == value else if_false
            case 0x35:
                position += if_true if accumulator >= value else if_false
            case 0x06:
                return value
            case _:
                raise AssertionError(f"no such instruction: {code:#x}")


def check(program: Program) -> None:
    """Every jump leads to an instruction, no path runs off the end (bpf_check_classic)."""
    assert 0 < len(program) < 4096
    last = len(program) - 1
    for position, (code, if_true, if_false, value) in enumerate(program):
        assert 0 <= if_true <= 255
        assert 0 <= if_false <= 255
        assert 0 <= value < 2**32
        if code in (_EQUAL, _AT_LEAST):
            assert position + 1 + max(if_true, if_false) <= last
        elif code == _JUMP:
            assert position + 1 + value <= last
        elif code == _RETURN:
            assert value in (ALLOW, KILL_PROCESS) or value & 0xFFFF0000 == ERRNO
        else:
            assert code in (_LOAD, _AND)
            assert position < last
    assert program[last].code == _RETURN


def dead_instructions(program: Program) -> list[Instruction]:
    """What no path leads to."""
    seen: set[int] = set()
    waiting = [0]
    while waiting:
        position = waiting.pop()
        if position in seen:
            continue
        seen.add(position)
        code, if_true, if_false, value = program[position]
        if code == _JUMP:
            waiting.append(position + 1 + value)
        elif code in (_EQUAL, _AT_LEAST):
            waiting += [position + 1 + if_true, position + 1 + if_false]
        elif code != _RETURN:
            waiting.append(position + 1)
    return [step for position, step in enumerate(program) if position not in seen]
