//! Cache mounts that travel (`mounts=true`): see `docs/formats/cache.md`.
//!
//! A mount goes as the tar of its directory, cut into chunks where its content says ([`chunk`]), so that what did not
//! change is cut as before; chunks go in packs ([`pack`]) of some megabytes, each a blob. [`index`] says which chunks make
//! up the tar. [`save`] makes all that of directories of this host, [`load`] makes a directory of it.

pub(crate) mod chunk;
pub(crate) mod index;
pub(crate) mod load;
pub(crate) mod pack;
pub(crate) mod save;
