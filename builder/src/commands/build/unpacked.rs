//! Archives that are contexts, unpacked while a build lasts.

use std::cell::RefCell;
use std::io::Read;
use std::path::PathBuf;

use store::root::Root;

use crate::context::Unpack;
use crate::failure::{Class, Failure, OrFail as _};

/// Where archives of this build are unpacked: work directories of the root, which go when the build ends.
pub(super) struct Unpacked {
    root: Root,
    held: RefCell<Vec<store::temp::WorkDir>>,
}

impl Unpacked {
    pub(super) fn new(root: Root) -> Self {
        Self { root, held: RefCell::default() }
    }
}

impl Unpack for Unpacked {
    fn unpack(&self, reader: &mut dyn Read) -> Result<PathBuf, Failure> {
        let dir = self.root.work_dir().or_fail(Class::Internal)?;
        let path = dir.path().to_owned();
        worker::source::archive::unpack(reader, &path).or_fail(Class::Dockerfile)?;
        self.held.borrow_mut().push(dir);
        Ok(path)
    }
}
