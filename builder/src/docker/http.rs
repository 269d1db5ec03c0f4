//! As much HTTP/1.1 (RFC 9112) as Docker's socket needs: one request a connection, a body in chunks either way.

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A connection on which nothing was said yet.
pub(super) struct Connection {
    writer: Box<dyn Write + Send>,
    reader: Box<dyn Read + Send>,
}

/// What came back.
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) body: Box<dyn Read>,
}

/// The longest line of a header, bytes.
const MAX_LINE: u64 = 16 << 10;

impl Connection {
    pub(super) fn unix(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        Ok(Self { reader: Box::new(stream.try_clone()?), writer: Box::new(stream) })
    }

    pub(super) fn tcp(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        Ok(Self { reader: Box::new(stream.try_clone()?), writer: Box::new(stream) })
    }

    pub(super) fn get(mut self, path: &str) -> io::Result<Response> {
        write!(self.writer, "GET {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n")?;
        self.writer.flush()?;
        response(self.reader)
    }

    /// Begins to send an archive.
    pub(super) fn post(mut self, path: &str) -> io::Result<Upload> {
        write!(
            self.writer,
            "POST {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Type: application/x-tar\r\n\
             Transfer-Encoding: chunked\r\n\r\n"
        )?;
        let writer = BufWriter::with_capacity(1 << 17, Chunks(self.writer));
        Ok(Upload { writer, reader: self.reader })
    }
}

/// A request that is being sent.
pub(super) struct Upload {
    writer: BufWriter<Chunks>,
    reader: Box<dyn Read + Send>,
}

impl Upload {
    /// Ends it and reads what comes back.
    pub(super) fn finish(mut self) -> io::Result<Response> {
        let sent = self.writer.flush().and_then(|()| {
            let out = &mut self.writer.get_mut().0;
            out.write_all(b"0\r\n\r\n")?;
            out.flush()
        });
        // Who has closed may have said why.
        let response = response(self.reader);
        match (sent, response) {
            (_, Ok(response)) => Ok(response),
            (Err(error), Err(_)) | (Ok(()), Err(error)) => Err(error),
        }
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Each write is a chunk.
struct Chunks(Box<dyn Write + Send>);

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A chunk of nothing would be the end.
        if !bytes.is_empty() {
            write!(self.0, "{:x}\r\n", bytes.len())?;
            self.0.write_all(bytes)?;
            self.0.write_all(b"\r\n")?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn response(reader: Box<dyn Read + Send>) -> io::Result<Response> {
    let mut reader = BufReader::new(reader);
    let status = line(&mut reader)?;
    let status =
        status.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| invalid(&status))?;
    let (mut chunked, mut length) = (false, None);
    loop {
        let line = line(&mut reader)?;
        if line.is_empty() {
            break;
        }
        let Some((name, value)) = line.split_once(':') else { return Err(invalid(&line)) };
        match name.to_ascii_lowercase().as_str() {
            "transfer-encoding" => chunked = value.trim().eq_ignore_ascii_case("chunked"),
            "content-length" => length = value.trim().parse::<u64>().ok(),
            _ => {}
        }
    }
    let body: Box<dyn Read> = match (chunked, length) {
        (true, _) => Box::new(Unchunked { reader, left: 0, began: false, ended: false }),
        (false, Some(length)) => Box::new(reader.take(length)),
        (false, None) => Box::new(reader),
    };
    Ok(Response { status, body })
}

/// The body in chunks that comes from `reader`.
struct Unchunked<R> {
    reader: R,
    left: u64,
    began: bool,
    ended: bool,
}

impl<R: BufRead> Read for Unchunked<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.ended || out.is_empty() {
            return Ok(0);
        }
        if self.left == 0 {
            if self.began && !line(&mut self.reader)?.is_empty() {
                return Err(invalid("the end of a chunk"));
            }
            self.began = true;
            let size = line(&mut self.reader)?;
            let size = size.split(';').next().unwrap_or_default().trim();
            self.left = u64::from_str_radix(size, 16).map_err(|_| invalid(size))?;
            if self.left == 0 {
                self.ended = true;
                return Ok(0);
            }
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(out.len());
        let n = self.reader.read(&mut out[..most])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.take(MAX_LINE).read_line(&mut line)?;
    if !line.ends_with('\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not HTTP: {what:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &'static str) -> io::Result<(u16, String)> {
        let Response { status, mut body } = response(Box::new(text.as_bytes()))?;
        let mut all = String::new();
        body.read_to_string(&mut all)?;
        Ok((status, all))
    }

    #[test]
    fn bodies_end_where_their_headers_say() {
        let cases = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi, there", (200, "hi")),
            ("HTTP/1.1 404 Not Found\r\n\r\nall", (404, "all")),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n1;x\r\n!\r\n0\r\n\r\n",
                (200, "hi!"),
            ),
        ];
        for (text, (status, body)) in cases {
            assert_eq!(read(text).unwrap(), (status, body.to_owned()), "{text}");
        }
        for bad in [
            "",
            "HTTP/1.1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno header\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhi",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
