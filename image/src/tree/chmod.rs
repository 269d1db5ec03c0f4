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

/// One `[ugoa]*[-+=][rwxXst]*` or `[ugoa]*[-+=][ugo]`.
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
    /// Bits for everyone; `x_if` is `X`: execution, if it is a directory or somebody has it already.
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
            Self::Symbolic(clauses) => clauses.iter().fold(mode, |mode, clause| clause.apply(mode, is_dir)),
        }
    }
}

impl Clause {
    fn apply(&self, mode: u16, is_dir: bool) -> u16 {
        let bits = match self.what {
            What::Bits { bits, x_if } => {
                let execute = if x_if && (is_dir || mode & 0o111 != 0) { 0o111 } else { 0 };
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
            clauses.extend(parse(part).ok_or_else(bad)?);
        }
        Ok(Self::Symbolic(clauses))
    }
}

/// `who` and one or more `op what`.
fn parse(text: &str) -> Option<Vec<Clause>> {
    let ops = text.find(['+', '-', '='])?;
    let mut who = 0;
    for class in text[..ops].chars() {
        who |= match class {
            'u' => 0o4700,
            'g' => 0o2070,
            'o' => 0o1007,
            'a' => 0o7777,
            _ => return None,
        };
    }
    // Nobody named is everybody: there is no umask in a build. The sticky bit goes with others.
    if ops == 0 {
        who = 0o7777;
    }
    let mut clauses = Vec::new();
    let mut rest = &text[ops..];
    while let Some(op) = rest.chars().next() {
        let op = match op {
            '+' => Op::Add,
            '-' => Op::Remove,
            _ => Op::Set,
        };
        rest = &rest[1..];
        let end = rest.find(['+', '-', '=']).unwrap_or(rest.len());
        clauses.push(Clause { who, op, what: what(&rest[..end])? });
        rest = &rest[end..];
    }
    Some(clauses)
}

fn what(text: &str) -> Option<What> {
    match text {
        "u" => return Some(What::Copy { shift: 6 }),
        "g" => return Some(What::Copy { shift: 3 }),
        "o" => return Some(What::Copy { shift: 0 }),
        _ => {}
    }
    let (mut bits, mut x_if) = (0, false);
    for char in text.chars() {
        bits |= match char {
            'r' => 0o444,
            'w' => 0o222,
            'x' => 0o111,
            's' => 0o6000,
            't' => 0o1000,
            'X' => {
                x_if = true;
                0
            }
            _ => return None,
        };
    }
    Some(What::Bits { bits, x_if })
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
            ("o+t", 0o777, true, 0o1777),
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
