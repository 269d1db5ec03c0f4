//! The EROFS image of a layer: metadata only, the files' bytes stay in the layer's tar.
//!
//! The kernel mounts both together and so has the layer without unpacking it. The tar is the image's second device; a
//! tar's data starts at a multiple of 512 bytes, so the image has blocks of 512. Nobody but the kernel reads the image;
//! the kernel is also what checks the writer: `worker` mounts what it wrote and reads everything back.

pub mod write;

mod format;

pub use write::{ErofsError, image, is_intact};
