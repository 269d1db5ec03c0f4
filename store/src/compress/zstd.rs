//! zstd on all cores: one frame, made by the library's own threads.
//!
//! With at least one worker the library cuts the input into jobs whose size depends on the level alone, so that the
//! bytes do not depend on the number of workers; with none it takes another path that gives other bytes.

use std::io::{self, Read, Write};

use super::read_full;
use crate::pool;

/// Compresses all of `reader` into `sink`.
pub fn compress(reader: &mut impl Read, level: i32, sink: &mut impl Write) -> io::Result<()> {
    let mut encoder = zstd::Encoder::new(sink, level)?;
    encoder.multithread(u32::try_from(pool::threads()).unwrap_or(1).max(1))?;
    encoder.include_checksum(true)?;
    // Writes of one size: how the input arrived must not matter.
    let mut block = vec![0; 1 << 20];
    loop {
        let len = read_full(reader, &mut block)?;
        if len == 0 {
            break;
        }
        encoder.write_all(&block[..len])?;
    }
    encoder.finish()?;
    Ok(())
}
