//! `--chmod`: octal modes and symbolic ones (`u=rwX,go+rX`), as POSIX' chmod has them.

use std::str::FromStr;

/// A change of permission bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chmod {
    /// These bits, whatever was there: at most `0o7777`.
    Octal(u16),
    /// One change after the other.
    Symbolic(Vec<Clause>),
}

/// One change of a symbolic mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clause {
    /// Bits of the classes that are meant.
    who: u16,
    op: Op,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Add,
    Remove,
    Set,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// Bits for everyone; `x_if` is `X`: execution, if it is a directory or somebody had it before any change.
    Bits { bits: u16, x_if: bool },
    /// The bits that this class has: 6 for the user, 3 for the group, 0 for others.
    Copy { shift: u16 },
}

/// Text that is no mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid chmod parameter {0:?}: it should be octal, at most 7777, or symbolic like u=rwX,go=rX")]
pub struct ChmodError(pub String);

impl Chmod {
    /// `mode` changed.
    pub fn apply(&self, mode: u16, is_dir: bool) -> u16 {
        match self {
            Self::Octal(bits) => *bits,
            Self::Symbolic(clauses) => {
                let execute = is_dir || mode & 0o111 != 0;
                clauses.iter().fold(mode, |mode, clause| clause.apply(mode, execute))
            }
        }
    }

    /// Mode of the directories that a copy makes on the way to its destination. As in BuildKit, an octal mode is
    /// theirs, too; a symbolic one has nothing to change there.
    pub fn of_parents(chmod: Option<&Self>) -> u16 {
        match chmod {
            Some(Self::Octal(bits)) => bits & 0o777,
            Some(Self::Symbolic(_)) | None => 0o755,
        }
    }
}

impl Clause {
    fn apply(&self, mode: u16, execute: bool) -> u16 {
        let bits = match self.what {
            What::Bits { bits, x_if } => {
                let execute = if x_if && execute { 0o111 } else { 0 };
                (bits | execute) & self.who
            }
            What::Copy { shift } => (((mode >> shift) & 0o7) * 0o111) & self.who,
        };
        match self.op {
            Op::Add => mode | bits,
            Op::Remove => mode & !bits,
            Op::Set => mode & !self.who | bits,
        }
    }
}

const STICKY: u16 = 0o1000;
const OTHERS: u16 = 0o0007;

impl FromStr for Chmod {
    type Err = ChmodError;

    fn from_str(text: &str) -> Result<Self, ChmodError> {
        let bad = || ChmodError(text.to_owned());
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let octal = text.bytes().all(|byte| byte.is_ascii_digit());
            let bits = u16::from_str_radix(text, 8).ok().filter(|bits| octal && *bits <= 0o7777);
            return bits.map(Self::Octal).ok_or_else(bad);
        }
        let mut clauses = Vec::new();
        for part in text.split(',') {
            parse(part, &mut clauses).ok_or_else(bad)?;
        }
        Ok(Self::Symbolic(clauses))
    }
}

/// `[ugoa]*`, then one or more `[-+=][rwxXstugo]*`.
fn parse(text: &str, clauses: &mut Vec<Clause>) -> Option<()> {
    let ops = text.find(['+', '-', '='])?;
    let mut who = 0;
    for class in text[..ops].chars() {
        who |= match class {
            'u' => 0o4700,
            'g' => 0o2070,
            'o' => OTHERS,
            'a' => 0o6777,
            _ => return None,
        };
    }
    let mut rest = &text[ops..];
    while let Some(op) = rest.chars().next() {
        let op = match op {
            '+' => Op::Add,
            '-' => Op::Remove,
            _ => Op::Set,
        };
        rest = &rest[1..];
        let end = rest.find(['+', '-', '=']).unwrap_or(rest.len());
        what(&rest[..end], who, op, clauses)?;
        rest = &rest[end..];
    }
    Some(())
}

/// What is behind an operator: bits, and classes whose bits are copied.
fn what(text: &str, who: u16, op: Op, clauses: &mut Vec<Clause>) -> Option<()> {
    // Nobody named is everybody: there is no umask in a build.
    let everybody = if who == 0 { 0o6777 } else { who };
    let (mut bits, mut x_if, mut whose) = (0, false, everybody);
    let first = clauses.len();
    for char in text.chars() {
        let shift = match char {
            'u' => 6,
            'g' => 3,
            'o' => 0,
            'X' => {
                x_if = true;
                continue;
            }
            // As BSD has it: not for others alone, and where nobody is named it is all that is changed.
            't' if who == OTHERS => continue,
            't' => {
                bits |= STICKY;
                whose = who | STICKY;
                continue;
            }
            _ => {
                bits |= bits_of(char)?;
                continue;
            }
        };
        if bits != 0 || x_if {
            clauses.push(Clause { who: whose, op, what: What::Bits { bits, x_if } });
            (bits, x_if) = (0, false);
        }
        clauses.push(Clause { who: everybody & 0o777, op, what: What::Copy { shift } });
    }
    if bits != 0 || x_if || (op == Op::Set && clauses.len() == first) {
        clauses.push(Clause { who: whose, op, what: What::Bits { bits, x_if } });
    }
    Some(())
}

fn bits_of(char: char) -> Option<u16> {
    match char {
        'r' => Some(0o444),
        'w' => Some(0o222),
        'x' => Some(0o111),
        's' => Some(0o6000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_change_as_chmod_does() {
        for (text, mode, is_dir, want) in [
            ("755", 0o644, false, 0o755),
            ("0", 0o644, false, 0),
            ("04755", 0o644, false, 0o4755),
            ("7777", 0, true, 0o7777),
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o600, true, 0o755),
            ("u=rwX,go=rX", 0o700, false, 0o755),
            ("+x", 0o644, false, 0o755),
            ("a-w", 0o666, false, 0o444),
            ("go-rwx", 0o777, true, 0o700),
            ("g=u", 0o640, false, 0o660),
            ("o=g,g=", 0o754, false, 0o705),
            ("u+s", 0o755, false, 0o4755),
            ("g+s", 0o755, true, 0o2755),
            ("o+t", 0o777, true, 0o777),
            ("u+t", 0o777, true, 0o1777),
            ("a=rt", 0o777, true, 0o1444),
            ("+rt", 0o333, true, 0o1333),
            ("=rw", 0o1777, true, 0o1666),
            ("a-x,a+X", 0o755, false, 0o755),
            ("u=go", 0o742, false, 0o242),
            ("u+go", 0o021, false, 0o321),
            ("go=u-w", 0o770, false, 0o755),
            ("o+r,g+w,a+t,g-s,u+og", 0o2100, false, 0o1724),
            ("g=u", 0o4750, false, 0o4770),
            ("+t", 0o777, true, 0o1777),
            ("ug=rw,o=", 0o777, false, 0o660),
            ("u+r-x", 0o100, false, 0o400),
            ("=", 0o777, false, 0),
            ("go=", 0o4755, false, 0o4700),
        ] {
            assert_eq!(text.parse::<Chmod>().unwrap().apply(mode, is_dir), want, "{text} on {mode:o}");
        }
    }

    #[test]
    fn anything_else_is_an_error() {
        for text in [
            "",
            "8",
            "789",
            "10000",
            "99999999999",
            "7 ",
            "u",
            "u=q",
            "x",
            "u=rw,",
            "0x7",
            "-1z",
            "7+x",
            "+é",
        ] {
            assert!(text.parse::<Chmod>().is_err(), "{text:?}");
        }
    }
}
