//! Reading and writing that fails once nobody wants it: one file can be so large that to look between files is too late.

use std::io::{self, Read, Write};

use solver::cancel::Cancel;

/// A reader or a writer until its token fires.
#[derive(Debug)]
pub(crate) struct Until<T> {
    inner: T,
    cancel: Cancel,
}

impl<T> Until<T> {
    pub(crate) fn new(inner: T, cancel: &Cancel) -> Self {
        Self { inner, cancel: cancel.clone() }
    }

    pub(crate) fn into_inner(self) -> T {
        self.inner
    }

    fn check(&self) -> io::Result<()> {
        // Not `Interrupted`, after which everybody tries again.
        if self.cancel.is_cancelled() { Err(io::Error::other("cancelled")) } else { Ok(()) }
    }
}

impl<R: Read> Read for Until<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        self.inner.read(buffer)
    }
}

impl<W: Write> Write for Until<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.check()?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_in_the_middle() {
        let cancel = Cancel::new();
        let mut reader = Until::new(io::repeat(0), &cancel);
        let mut writer = Until::new(io::sink(), &cancel);
        let copied = io::copy(&mut (&mut reader).take(10), &mut writer).unwrap();
        assert_eq!(copied, 10);
        cancel.cancel();
        assert_eq!(io::copy(&mut reader, &mut io::sink()).unwrap_err().to_string(), "cancelled");
        assert!(writer.write_all(b"x").is_err());
    }
}
