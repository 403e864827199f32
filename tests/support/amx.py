"""AMX in software: a signal handler that executes the tile instructions of bfloat16 on CPUs which lack them.

Such a CPU answers them with SIGILL. The handler decodes the instruction, does what Intel's manual says (Software
Developer's Manual, volume 2: LDTILECFG, TILELOADD, TILEZERO, TDPBF16PS, TILESTORED, TILERELEASE), and resumes after
it. What the manual forbids ends the process with SIGILL, and so does any other instruction.
"""

import ctypes
import mmap
import signal

import numba
import numpy as np
from numba.core import types

from gpt2.kernels.engine.simd import matrix

_TILES, _TILE_BYTES, _ROW_BYTES, _MOST_ROWS = 8, 1024, 64, 16
# Each thread has a slot: its id, whether its tiles are configured, how many instructions were executed, columns in
# bytes and rows of each tile, all int64; then the tiles.
_SLOTS, _SLOT_BYTES, _HEADER = 1024, 16384, 4096
_OWNER, _CONFIGURED, _EXECUTED, _COLUMNS, _ROWS = 0, 1, 2, 3, 3 + _TILES
_memory = mmap.mmap(-1, _SLOTS * _SLOT_BYTES)
_slots = np.frombuffer(_memory, np.int64).reshape(_SLOTS, -1)
_SLOTS_ADDRESS = _slots.ctypes.data

# Where ucontext_t has the registers, in the order of their numbers in instructions (sys/ucontext.h), and RIP.
_GREGS = 40
_REGISTERS = (13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7)
_RIP = 16

_libc = ctypes.CDLL(None)
_thread_id = _libc.gettid
_thread_id.argtypes, _thread_id.restype = [], ctypes.c_int
_set_handler = _libc.signal
_set_handler.argtypes, _set_handler.restype = [ctypes.c_int, ctypes.c_size_t], ctypes.c_size_t


@numba.njit
def _bytes_at(address, count):
    return matrix(np.uint8(0), address, count, 1, count)[0]


@numba.njit
def _tile(slot_address, tile):
    """Returns a tile's 32-bit elements (16,16)."""
    return matrix(np.int32(0), slot_address + _HEADER + tile * _TILE_BYTES, _ROW_BYTES, _MOST_ROWS, _ROW_BYTES // 4)


@numba.njit
def _configure(slot, slot_address, layout):
    """LDTILECFG; returns whether the layout is valid."""
    if layout[0] != 1 or layout[1] != 0:  # palette, first row
        return False
    for tile in range(_TILES):
        columns, rows = layout[16 + 2 * tile] + 256 * layout[17 + 2 * tile], layout[48 + tile]
        if not (0 < columns <= _ROW_BYTES and 0 < rows <= _MOST_ROWS):
            return False
        slot[_COLUMNS + tile], slot[_ROWS + tile] = columns, rows
        _tile(slot_address, tile)[:] = 0
    slot[_CONFIGURED] = 1
    return True


@numba.njit
def _move(slot, slot_address, tile, address, stride, stores):
    """TILELOADD, or TILESTORED if `stores`."""
    rows, columns = slot[_ROWS + tile], slot[_COLUMNS + tile] // 4
    numbers, memory = _tile(slot_address, tile), matrix(np.int32(0), address, stride, rows, columns)
    if stores:
        memory[:] = numbers[:rows, :columns]
    else:
        numbers[:] = 0
        numbers[:rows, :columns] = memory


@numba.njit
def _wide(pair, half):
    """Returns the first or second bfloat16 of a pair as float32; denormals are zeros."""
    bits = np.int32(pair & -65536 if half else pair << 16)
    normal = np.int32(bits if bits & 0x7F800000 else 0)
    return normal.view(np.float32)


@numba.njit
def _multiply(slot, slot_address, total, a, b):
    """TDPBF16PS: total += a @ b; returns whether the tiles may be multiplied."""
    rows, pairs, columns = slot[_ROWS + total], slot[_COLUMNS + a] // 4, slot[_COLUMNS + total] // 4
    if total in (a, b) or a == b:
        return False
    if slot[_ROWS + a] != rows or slot[_ROWS + b] != pairs or slot[_COLUMNS + b] // 4 != columns:
        return False
    sums, a, b = _tile(slot_address, total), _tile(slot_address, a), _tile(slot_address, b)
    for m in range(rows):
        for n in range(columns):
            even, odd = np.float32(0), np.float32(0)
            for k in range(pairs):  # the products are exact: a fused multiply-add gives the same
                even += _wide(a[m, k], 0) * _wide(b[k, n], 0)
                odd += _wide(a[m, k], 1) * _wide(b[k, n], 1)
            sums[m, n] = np.float32(np.int32(sums[m, n]).view(np.float32) + (even + odd)).view(np.int32)
    return True


@numba.njit
def _operand(code, registers, extend):
    """Decodes a memory operand from its ModRM byte on; returns (address, stride, bytes), or no bytes if not known."""
    mode, base, size, stride = code[0] >> 6, code[0] & 7, 1, 0
    if base == 4:  # an SIB byte follows
        scale, index, base = code[1] >> 6, (code[1] >> 3 & 7) | (extend >> 1 & 1) << 3, code[1] & 7
        stride = registers[_REGISTERS[index], 0] << scale if index != 4 else 0
        size = 2
    if mode == 0 and base == 5:
        if size == 2:
            return 0, 0, 0
        following = registers[_RIP, 0] + 9  # of the instruction: 4 bytes, ModRM, displacement
        return following + matrix(np.int32(0), registers[_RIP, 0] + 5, 4, 1, 1)[0, 0], 0, 5
    address = registers[_REGISTERS[base | (extend & 1) << 3], 0]
    if mode == 1:
        address += np.int8(code[size])
        size += 1
    elif mode == 2:
        address += matrix(np.int32(0), registers[_RIP, 0] + 4 + size, 4, 1, 1)[0, 0]
        size += 4
    return address, stride, size


@numba.njit
def _execute(registers, slot, slot_address):
    """Executes the instruction at RIP; returns its length in bytes, or 0 if it is none of AMX's or is not allowed."""
    code = _bytes_at(registers[_RIP, 0], 16)
    prefix, opcode = code[2] & 3, code[3]
    if code[0] != 0xC4 or code[1] & 31 != 2 or code[2] & 0x84 != 0:  # three-byte VEX, map 0F38, W0, 128 bits
        return 0
    extend, other = ~code[1] >> 5 & 7, ~code[2] >> 3 & 15
    tile, second, of_registers = code[4] >> 3 & 7, code[4] & 7, code[4] >> 6 == 3
    if of_registers:
        if opcode == 0x49 and prefix == 0 and code[4] == 0xC0:  # TILERELEASE
            slot[_CONFIGURED] = 0
            return 5
        if not slot[_CONFIGURED]:
            return 0
        if opcode == 0x49 and prefix == 3 and second == 0:  # TILEZERO
            _tile(slot_address, tile)[:] = 0
            return 5
        if opcode == 0x5C and prefix == 2 and other < _TILES and _multiply(slot, slot_address, tile, second, other):
            return 5
        return 0
    address, stride, size = _operand(code[4:], registers, extend)
    if size == 0 or other != 0:
        return 0
    if opcode == 0x49 and prefix == 0 and tile == 0:  # LDTILECFG
        return 4 + size if _configure(slot, slot_address, _bytes_at(address, 64)) else 0
    if opcode == 0x4B and prefix != 0 and second == 4 and slot[_CONFIGURED]:  # TILELOADDT1, TILESTORED, TILELOADD
        _move(slot, slot_address, tile, address, stride, prefix == 2)
        return 4 + size
    return 0


@numba.cfunc(types.void(types.int32, types.int64, types.int64), error_model="numpy")
def _handle(number, information, context):
    registers = matrix(np.int64(0), context + _GREGS, 8, 23, 1)
    thread = _thread_id()
    slot_address = _SLOTS_ADDRESS + thread % _SLOTS * _SLOT_BYTES
    slot = matrix(np.int64(0), slot_address, _HEADER, 1, _HEADER // 8)[0]
    length = 0
    if slot[_OWNER] == 0 or slot[_OWNER] == thread:
        slot[_OWNER] = thread
        length = _execute(registers, slot, slot_address)
    if length == 0:
        _set_handler(number, 0)  # the instruction raises the signal again, and ends the process
        return
    slot[_EXECUTED] += 1
    registers[_RIP, 0] += length


class _Action(ctypes.Structure):
    """Glibc's struct sigaction."""

    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint64 * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


def install():
    """Installs the handler, for all threads of this process."""
    with_information = 4  # SA_SIGINFO
    action = _Action(handler=_handle.address, flags=with_information)
    if _libc.sigaction(signal.SIGILL, ctypes.byref(action), None):
        raise OSError("sigaction failed")


def executed():
    """Returns how many instructions were emulated, by thread: a list of those that executed any."""
    return [int(count) for count in _slots[:, _EXECUTED] if count]


def configured():
    """Returns how many threads have not released their tiles."""
    return int(_slots[:, _CONFIGURED].sum())
