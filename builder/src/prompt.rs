//! Questions to the person at the terminal.

use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::failure::{Class, Failure};

/// Asks for a line on standard input, which is a terminal.
pub(crate) fn line(question: &str) -> Result<String, Failure> {
    ask(question)?;
    let mut text = String::new();
    io::stdin().read_line(&mut text).map_err(|error| failed(&error))?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

/// The same without showing what is typed. Ctrl-C gives up, with the terminal as it was.
pub(crate) fn password(question: &str) -> Result<String, Failure> {
    ask(question)?;
    let stdin = io::stdin();
    let typed = {
        // Signals are read as bytes: a process that is killed by one could not put the terminal right.
        let hidden = Hidden::new(stdin.as_fd()).map_err(|error| failed(&error))?;
        edit(|| {
            let mut byte = [0];
            let n = rustix::io::read(hidden.terminal, &mut byte)?;
            Ok((n == 1).then_some(byte[0]))
        })
    };
    // The line's end was not shown either.
    ask("\n")?;
    match typed.map_err(|error| failed(&error))? {
        Some(bytes) => String::from_utf8(bytes).map_err(|_| Failure::usage("the password is not UTF-8")),
        None => Err(Failure::new(Class::Cancelled, "cancelled")),
    }
}

/// Collects a line from single bytes, with the editing that the terminal would do. `None`: given up.
fn edit(mut next: impl FnMut() -> io::Result<Option<u8>>) -> io::Result<Option<Vec<u8>>> {
    let mut line: Vec<u8> = Vec::new();
    loop {
        let byte = match next() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            byte => byte?,
        };
        match byte {
            None | Some(b'\n' | b'\r' | 0x04) => return Ok(Some(line)),
            Some(0x03 | 0x1c) => return Ok(None),
            Some(0x7f | 0x08) => {
                // A whole character, not its last byte.
                while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
            }
            Some(0x15) => line.clear(),
            Some(byte) => line.push(byte),
        }
    }
}

/// A terminal that shows nothing and makes no signals, until dropped.
struct Hidden<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> Hidden<'a> {
    fn new(terminal: BorrowedFd<'a>) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        tcsetattr(terminal, OptionalActions::Flush, &hidden)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        // A terminal that has gone needs no restoring.
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

/// On standard error: standard output may be read by a program.
fn ask(text: &str) -> Result<(), Failure> {
    let mut err = io::stderr().lock();
    err.write_all(text.as_bytes()).and_then(|()| err.flush()).map_err(|error| failed(&error))
}

fn failed(error: &io::Error) -> Failure {
    Failure::new(Class::Host, format!("could not ask at the terminal: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_can_be_corrected() {
        for (typed, line) in [
            ("secret\nmore", Some("secret")),
            ("secret\r", Some("secret")),
            ("secref\x7ft", Some("secret")),
            ("sé\x7fecret\n", Some("secret")),
            ("wrong\x15secret\x04", Some("secret")),
            ("\x7f\n", Some("")),
            ("sec\x03", None),
        ] {
            let mut bytes = typed.bytes();
            let read = edit(|| Ok(bytes.next())).unwrap();
            assert_eq!(read.map(|bytes| String::from_utf8(bytes).unwrap()).as_deref(), line, "{typed:?}");
        }
    }
}
