//! A layer: one immutable tar file and its index.
//!
//! [`read::index_tar`] takes a stranger's tar and yields the index; [`write::LayerWriter`] makes a tar and its index
//! from entries. Both agree: what the writer writes, the reader reads back as the same index.

pub mod entry;
pub mod index;
pub mod whiteout;

mod aside;
mod header;
mod pax;

pub mod archive;
pub mod read;
pub mod write;

pub mod settle;

pub use archive::{TarEntry, TarKind, TarReader};
pub use aside::Spawn;
pub use entry::{Entry, Kind};
pub use index::LayerIndex;
pub use read::index_tar;
pub use write::{Data, LayerWriter};
