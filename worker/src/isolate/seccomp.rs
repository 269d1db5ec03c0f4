//! The system call filter: the rules of Docker's default profile for its default capabilities, as a BPF program.
//!
//! | call | answer |
//! |---|---|
//! | in [`syscalls::ALWAYS`] | allowed |
//! | `clone` without `CLONE_NEW*` | allowed; else `EPERM` |
//! | `clone3` | `ENOSYS`: its flags are in memory, out of a filter's sight, and libraries fall back to `clone` |
//! | `socket` | allowed, but for the families ALG (a kernel attack surface) and VSOCK (leads to the hypervisor): `EPERM` |
//! | `personality` with a value that changes nothing dangerous | allowed; else `EPERM` |
//! | newer than the table | `ENOSYS`, so that libraries fall back to what they did before |
//! | any other | `EPERM` |
//!
//! 32-bit x86 programs have their own numbers and the same rules. The x32 ABI is answered `ENOSYS`, as by a kernel
//! without it; so is every other architecture.

use std::sync::OnceLock;

use super::syscalls::{self, Syscall};
use crate::sys::seccomp::Instruction;

/// The filter for this machine's architecture.
pub fn default_filter() -> &'static [Instruction] {
    static FILTER: OnceLock<Vec<Instruction>> = OnceLock::new();
    FILTER.get_or_init(|| program(NATIVE))
}

/// An architecture that programs can run as.
struct Architecture {
    /// `AUDIT_ARCH_*`.
    audit: u32,
    /// Its number of a call.
    number: fn(&Syscall) -> Option<u32>,
    /// Calls from here on are another ABI's.
    foreign_from: Option<u32>,
}

const X86_64: Architecture = Architecture {
    audit: 0xC000_003E,
    number: |call| call.x86_64,
    // __X32_SYSCALL_BIT
    foreign_from: Some(0x4000_0000),
};
const I386: Architecture = Architecture { audit: 0x4000_0003, number: |call| call.i386, foreign_from: None };
const AARCH64: Architecture =
    Architecture { audit: 0xC000_00B7, number: |call| call.aarch64, foreign_from: None };

const NATIVE: &[Architecture] = if cfg!(target_arch = "aarch64") { &[AARCH64] } else { &[X86_64, I386] };

fn program(architectures: &[Architecture]) -> Vec<Instruction> {
    let mut code = vec![load(offset::ARCH)];
    for architecture in architectures {
        let section = section(architecture);
        // The section is longer than a conditional jump reaches.
        code.push(jump(JEQ, architecture.audit, 1, 0));
        code.push(skip(section.len()));
        code.extend(section);
    }
    code.push(ret(NO_SUCH_CALL));
    code
}

/// All of one architecture; every path ends in a return.
fn section(architecture: &Architecture) -> Vec<Instruction> {
    let mut code = vec![load(offset::NUMBER)];
    if let Some(first) = architecture.foreign_from {
        code.extend([jump(JGE, first, 0, 1), ret(NO_SUCH_CALL)]);
    }
    code.extend([jump(JGT, syscalls::NEWEST, 0, 1), ret(NO_SUCH_CALL)]);
    let mut allowed: Vec<u32> = syscalls::ALWAYS.iter().filter_map(architecture.number).collect();
    for call in syscalls::SPECIAL {
        let Some(number) = (architecture.number)(call) else { continue };
        match rule(call.name) {
            None => allowed.push(number),
            Some(rule) => {
                code.push(jump(
                    JEQ,
                    number,
                    0,
                    u8::try_from(rule.len()).expect("rules are a few instructions"),
                ));
                code.extend(rule);
            }
        }
    }
    allowed.sort_unstable();
    code.extend(search(&ranges(&allowed)));
    code
}

/// What decides about a call by its arguments. `None`: allowed whatever they are.
fn rule(name: &str) -> Option<Vec<Instruction>> {
    Some(match name {
        "clone" => {
            vec![load(offset::ARGUMENT_0), jump(JSET, CLONE_NEW_ANY, 0, 1), ret(REFUSED), ret(ALLOW)]
        }
        "clone3" => vec![ret(NO_SUCH_CALL)],
        "socket" => vec![
            load(offset::ARGUMENT_0),
            jump(JEQ, libc::AF_ALG as u32, 1, 0),
            jump(JEQ, libc::AF_VSOCK as u32, 0, 1),
            ret(REFUSED),
            ret(ALLOW),
        ],
        "personality" => {
            // PER_LINUX, PER_LINUX32, each with UNAME26, and "tell me what it is".
            let harmless = [0, 8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF];
            let mut code = vec![load(offset::ARGUMENT_0)];
            for (index, value) in harmless.into_iter().enumerate() {
                let to_allow = harmless.len() - index;
                code.push(jump(JEQ, value, to_allow as u8, 0));
            }
            code.extend([ret(REFUSED), ret(ALLOW)]);
            code
        }
        "arch_prctl" | "chroot" | "modify_ldt" => return None,
        _ => unreachable!("{name} is in the table of special calls and has no rule"),
    })
}

/// Runs of numbers, first and last, from sorted ones.
fn ranges(numbers: &[u32]) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if number <= *last + 1 => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    ranges
}

/// Binary search for the number that is loaded: allowed if it is in a range.
fn search(ranges: &[(u32, u32)]) -> Vec<Instruction> {
    match ranges {
        [] => vec![ret(REFUSED)],
        [(first, last)] => {
            vec![jump(JGE, *first, 0, 2), jump(JGT, *last, 1, 0), ret(ALLOW), ret(REFUSED)]
        }
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let below = search(low);
            let mut code = match u8::try_from(below.len()) {
                Ok(length) => vec![jump(JGE, high[0].0, length, 0)],
                Err(_) => vec![jump(JGE, high[0].0, 0, 1), skip(below.len())],
            };
            code.extend(below);
            code.extend(search(high));
            code
        }
    }
}

/// Where things are in `struct seccomp_data`. Arguments are 64 bits; the kernel looks at the low half of those that
/// rules look at.
mod offset {
    pub(super) const NUMBER: u32 = 0;
    pub(super) const ARCH: u32 = 4;
    pub(super) const ARGUMENT_0: u32 = if cfg!(target_endian = "little") { 16 } else { 20 };
}

/// CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
const CLONE_NEW_ANY: u32 = 0x7E02_0000;

const ALLOW: u32 = 0x7FFF_0000;
const ERRNO: u32 = 0x0005_0000;
const REFUSED: u32 = ERRNO | libc::EPERM as u32;
const NO_SUCH_CALL: u32 = ERRNO | libc::ENOSYS as u32;

const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const JSET: u16 = 0x45;

const fn load(offset: u32) -> Instruction {
    Instruction { code: 0x20, jt: 0, jf: 0, k: offset }
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

fn skip(instructions: usize) -> Instruction {
    Instruction { code: 0x05, jt: 0, jf: 0, k: instructions as u32 }
}

const fn ret(value: u32) -> Instruction {
    Instruction { code: 0x06, jt: 0, jf: 0, k: value }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel does.
    fn answer(program: &[Instruction], arch: u32, number: u32, argument: u32) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            let taken = match code {
                0x20 => {
                    loaded = match k {
                        offset::NUMBER => number,
                        offset::ARCH => arch,
                        offset::ARGUMENT_0 => argument,
                        _ => panic!("loads {k}"),
                    };
                    continue;
                }
                0x06 => return k,
                0x05 => {
                    at += k as usize;
                    continue;
                }
                JEQ => loaded == k,
                JGT => loaded > k,
                JGE => loaded >= k,
                JSET => loaded & k != 0,
                _ => panic!("operation {code}"),
            };
            at += usize::from(if taken { jt } else { jf });
        }
    }

    fn everything() -> Vec<Instruction> {
        program(&[X86_64, I386, AARCH64])
    }

    #[test]
    fn a_call_is_allowed_exactly_if_the_table_says_so() {
        let program = everything();
        for architecture in [X86_64, I386, AARCH64] {
            let allowed: Vec<u32> = syscalls::ALWAYS
                .iter()
                .chain(syscalls::SPECIAL.iter().filter(|call| rule(call.name).is_none()))
                .filter_map(architecture.number)
                .collect();
            let special: Vec<u32> = syscalls::SPECIAL.iter().filter_map(architecture.number).collect();
            for number in 0..=syscalls::NEWEST {
                let want = if allowed.contains(&number) { ALLOW } else { REFUSED };
                if allowed.contains(&number) || !special.contains(&number) {
                    assert_eq!(answer(&program, architecture.audit, number, 0), want, "{number}");
                }
            }
        }
    }

    #[test]
    fn arguments_decide_where_the_rule_says_so() {
        let program = everything();
        let (clone, clone3, socket, personality) = (56, 435, 41, 135);
        for (number, argument, want) in [
            (clone, 0x11, ALLOW),
            (clone, 0x3D_0F00, ALLOW),
            (clone, 0x1000_0000, REFUSED),
            (clone, 0x0002_0011, REFUSED),
            (clone, 0x0200_0000, REFUSED),
            (clone3, 0, NO_SUCH_CALL),
            (socket, 1, ALLOW),
            (socket, 2, ALLOW),
            (socket, 16, ALLOW),
            (socket, 38, REFUSED),
            (socket, 40, REFUSED),
            (personality, 0, ALLOW),
            (personality, 8, ALLOW),
            (personality, 0x2_0000, ALLOW),
            (personality, 0x2_0008, ALLOW),
            (personality, u32::MAX, ALLOW),
            (personality, 0x004_0000, REFUSED),
        ] {
            assert_eq!(answer(&program, X86_64.audit, number, argument), want, "{number} {argument:#x}");
        }
    }

    #[test]
    fn what_the_table_does_not_know_does_not_exist() {
        let program = everything();
        for architecture in [X86_64, I386, AARCH64] {
            for number in [syscalls::NEWEST + 1, 1000, 0x4000_0000, 0x4000_0001, u32::MAX] {
                assert_eq!(answer(&program, architecture.audit, number, 0), NO_SUCH_CALL);
            }
        }
        assert_eq!(answer(&program, 0x4000_0028, 1, 0), NO_SUCH_CALL, "32-bit ARM");
    }

    #[test]
    fn the_kernel_takes_a_program_of_this_length() {
        assert!(program(&[X86_64, I386]).len() < 1000, "{}", program(&[X86_64, I386]).len());
    }
}
