//! File ops: COPY, ADD, WORKDIR and the like become a new layer.
//!
//! What goes where is decided by [`image::tree`]; here files are opened. Each is opened when its turn to be written
//! comes, or a little before, and its bytes must be those that were hashed: a file that changed meanwhile is an error
//! that names it.

mod ahead;
mod archive;
mod earlier;
mod owner;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use bstr::BString;
use image::DiffId;
use image::layer::write::WriteError;
use image::layer::{Data, Kind, LayerIndex, LayerWriter};
use image::tree::accounts::AccountError;
use image::tree::chmod::ChmodError;
use image::tree::pattern::PatternError;
use image::tree::resolve::{Last, resolve};
use image::tree::{self, Chmod, CopyError, Draft, DraftError, Location, Made, NewEntry, Patterns, Tree};
use rustix::io::Errno;
use solver::Cancel;
use solver::definition::Selector;
use solver::op::{self, FileAction, Unpack};
use store::{StoreError, pool};

use crate::source::local::{Directory, Missing};
use crate::until::Until;

use ahead::{Batch, Contents};
pub use earlier::Earlier;

/// An input of a file op.
#[derive(Clone, Debug)]
pub struct Input {
    /// Its files.
    pub tree: Tree,
    /// Where they are, if they are files of this host: the directory that was walked for them.
    pub directory: Option<Arc<Directory>>,
}

/// Where the bytes of layers are.
pub type OpenTar<'a> = dyn Fn(&DiffId) -> Result<File, StoreError> + 'a;

/// What besides op and inputs a layer depends on.
#[derive(Debug)]
pub struct Options {
    /// Time of what is made without a model, seconds since the epoch.
    pub created: i64,
    /// A directory for the contents of archives while they are unpacked.
    pub temporary: PathBuf,
    /// A layer that this one may be much like.
    pub earlier: Option<Earlier>,
}

/// A file op that failed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A source is not there.
    #[error("could not copy {path}: {missing}")]
    Missing {
        /// As in the op.
        path: String,
        /// Why.
        missing: Missing,
    },
    /// The files cannot be copied.
    #[error(transparent)]
    Copy(CopyError),
    /// The change cannot be made.
    #[error(transparent)]
    Draft(#[from] DraftError),
    /// `--exclude` is no pattern.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// `--chmod` is no mode.
    #[error(transparent)]
    Chmod(#[from] ChmodError),
    /// `--chown` names nobody.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// `/etc/passwd` or `/etc/group` of the base cannot be used.
    #[error("could not read {path} of the image: {problem}")]
    Accounts {
        /// Which of them.
        path: String,
        /// Why.
        problem: String,
    },
    /// A file of the context.
    #[error("could not read {} of the context: {source}", tree::path::show(.path))]
    Context {
        /// Below its root.
        path: BString,
        /// Why.
        source: Errno,
    },
    /// A layer's tar.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An archive of ADD.
    #[error("could not unpack {path}: {source}")]
    Archive {
        /// In its source.
        path: String,
        /// Why.
        source: image::layer::read::ReadError,
    },
    /// The contents of an archive of ADD.
    #[error("could not unpack {path}: {source}")]
    Spool {
        /// In its source.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The new layer.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The op reads an input that it does not have.
    #[error("internal error: a file op has no input {0}")]
    NoInput(usize),
    /// Nobody wants it any more.
    #[error("cancelled")]
    Cancelled,
}

impl From<CopyError> for FileError {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Draft(error) => Self::Draft(error),
            CopyError::Pattern(error) => Self::Pattern(error),
            error => Self::Copy(error),
        }
    }
}

/// Applies `op` to `inputs` and writes the layer that comes of it to `out`.
pub fn run<W: Write + Send>(
    op: &op::File,
    inputs: &[Input],
    open_tar: &OpenTar<'_>,
    options: &Options,
    cancel: &Cancel,
    out: W,
) -> Result<(W, LayerIndex), FileError> {
    let scratch = Input { tree: Tree::empty(), directory: None };
    let base = op.base.map_or(Ok(&scratch), |index| inputs.get(index).ok_or(FileError::NoInput(index)))?;
    let mut files = Files { inputs, open_tar, tars: HashMap::new(), spools: Vec::new() };
    let mut draft = Draft::new(&base.tree);
    for action in &op.actions {
        if cancel.is_cancelled() {
            return Err(FileError::Cancelled);
        }
        apply(action, &mut draft, base, &mut files, options)?;
    }
    let mut layer = LayerWriter::with(Until::new(out, cancel), pool::aside);
    let directories: Vec<Arc<Directory>> =
        inputs.iter().filter_map(|input| input.directory.clone()).collect();
    let mut batches = ahead::batches(draft.finish(), options.earlier.as_ref()).into_iter();
    let mut next = batches.next();
    if let Some(first) = next.as_mut().filter(|batch| batch.is_to_be_read()) {
        pool::pool().install(|| first.read(&directories, cancel));
    }
    while let Some(batch) = next {
        next = batches.next();
        let write = || write_batch(batch, &mut files, &mut layer, options, cancel);
        match next.as_mut().filter(|batch| batch.is_to_be_read()) {
            Some(next) => pool::pool().in_place_scope(|scope| {
                scope.spawn(|_| next.read(&directories, cancel));
                write()
            })?,
            None => write()?,
        }
    }
    let (out, index) = layer.finish()?;
    Ok((out.into_inner(), index))
}

fn write_batch<W: Write + Send>(
    batch: Batch,
    files: &mut Files<'_>,
    layer: &mut LayerWriter<W>,
    options: &Options,
    cancel: &Cancel,
) -> Result<(), FileError> {
    let mut read = batch.read.into_iter();
    for NewEntry { entry, location } in batch.entries {
        if cancel.is_cancelled() {
            return Err(FileError::Cancelled);
        }
        let written = match read.next().flatten() {
            Some(Contents { bytes, expected: true }) => {
                layer.append(entry, Data::Known(&mut &bytes[..])).map_err(FileError::from)
            }
            Some(Contents { bytes, .. }) => {
                layer.append(entry, Data::Expected(&mut &bytes[..])).map_err(FileError::from)
            }
            None => files.write(layer, entry, &location, options.earlier.as_ref()),
        };
        written.map_err(|error| if cancel.is_cancelled() { FileError::Cancelled } else { error })?;
    }
    Ok(())
}

/// The bytes of `/etc/passwd` and `/etc/group` of `tree`, for [`accounts::lookup`](image::tree::accounts::lookup);
/// empty if they are not there.
pub fn account_files(tree: &Tree, open_tar: &OpenTar<'_>) -> Result<(Vec<u8>, Vec<u8>), FileError> {
    let mut files = Files { inputs: &[], open_tar, tars: HashMap::new(), spools: Vec::new() };
    Ok((owner::read(tree, "etc/passwd", &mut files)?, owner::read(tree, "etc/group", &mut files)?))
}

/// Whether every path that `selector` names is in `tree`, which is `directory`'s if it is of this host: a source that
/// is missing fails a build before anything runs that the copy would have waited for.
pub fn check_there(tree: &Tree, selector: &Selector, directory: Option<&Directory>) -> Result<(), FileError> {
    for pick in selector.picks.iter().filter(|pick| !pick.wildcard && !pick.parents) {
        if tree::copy::matches(tree, &pick.path, false, pick.follow_symlinks)?.is_empty() {
            let missing = match directory {
                Some(directory) => directory.missing(&pick.path),
                None => Missing::in_tree(tree, &pick.path),
            };
            return Err(FileError::Missing { path: pick.path.clone(), missing });
        }
    }
    Ok(())
}

/// The bytes of the regular file `path` of `tree`, whatever links lead to it; `None`: there is none.
pub fn read(
    tree: &Tree,
    path: &str,
    open_tar: &OpenTar<'_>,
    limit: u64,
) -> Result<Option<Vec<u8>>, FileError> {
    let at = resolve(tree, path.as_bytes(), Last::Follow)
        .map_err(|error| FileError::Copy(CopyError::Source(error)))?;
    let Some(inode) = tree.get(&at).and_then(|node| node.inode()) else { return Ok(None) };
    let mut files = Files { inputs: &[], open_tar, tars: HashMap::new(), spools: Vec::new() };
    let mut bytes = Vec::new();
    files
        .open(&inode.location)?
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|source| FileError::Spool { path: path.to_owned(), source })?;
    Ok(Some(bytes))
}

/// What `selector` picks, in the words of [`image::tree`].
pub fn picks(selector: &Selector) -> Vec<tree::Pick<'_>> {
    let picks = selector.picks.iter();
    let picks = picks.map(|pick| tree::Pick {
        path: &pick.path,
        wildcard: pick.wildcard,
        follow_symlinks: pick.follow_symlinks,
        exclude: &pick.exclude,
        parents: pick.parents,
    });
    picks.collect()
}

fn apply(
    action: &FileAction,
    draft: &mut Draft<'_>,
    base: &Input,
    files: &mut Files<'_>,
    options: &Options,
) -> Result<(), FileError> {
    let made = |files: &mut Files<'_>, owner: &Option<op::Owner>| -> Result<Made, FileError> {
        let owner = owner.as_ref().map(|owner| owner::resolve_owner(owner, base, files)).transpose()?;
        let (uid, gid) = owner.unwrap_or((0, 0));
        Ok(Made { uid, gid, mtime: options.created })
    };
    match action {
        FileAction::Mkdir { path, mode, owner } => draft.mkdir(path, *mode, made(files, owner)?)?,
        FileAction::Mkfile { path, data, mode, parents_mode, owner, name } => {
            draft.mkfile(path, data, (*mode, *parents_mode), name.as_deref(), made(files, owner)?)?;
        }
        FileAction::Rm { path, allow_missing } => draft.rm(path, *allow_missing)?,
        FileAction::Copy(copy) => copy_action(copy, draft, base, files, options)?,
    }
    Ok(())
}

fn copy_action(
    action: &op::Copy,
    draft: &mut Draft<'_>,
    base: &Input,
    files: &mut Files<'_>,
    options: &Options,
) -> Result<(), FileError> {
    let from = files.inputs.get(action.input).ok_or(FileError::NoInput(action.input))?;
    let exclude = Patterns::new(&action.exclude)?;
    let chmod: Option<Chmod> = action.mode.as_deref().map(str::parse).transpose()?;
    let owner = action.owner.as_ref().map(|owner| owner::resolve_owner(owner, base, files)).transpose()?;
    let copy = tree::Copy {
        source: &action.source,
        destination: &action.destination,
        wildcard: action.wildcard,
        allow_empty: action.allow_empty,
        follow_symlinks: action.follow_symlinks,
        contents_only: action.contents_only,
        parents: action.parents.as_deref(),
        exclude: &exclude,
        owner,
        chmod: chmod.as_ref(),
        follow_destination: action.follow_destination,
        created: options.created,
    };
    let sources = tree::copy::sources(&from.tree, &copy).map_err(|error| match error {
        CopyError::NotFound(path) => {
            let missing = match &from.directory {
                Some(directory) => directory.missing(&path),
                None => Missing::in_tree(&from.tree, &path),
            };
            FileError::Missing { path, missing }
        }
        error => error.into(),
    })?;
    for source in &sources {
        if action.unpack == Unpack::IfArchive
            && let Some(node) = from.tree.get(&source.resolved)
            && let Some(inode) = node.inode().filter(|inode| inode.size > 0)
        {
            let name = tree::path::show(&source.path);
            if let Some(entries) = archive::read(&name, &inode, files, options)? {
                draft.unpack(entries, &copy)?;
                continue;
            }
        }
        draft.copy(&from.tree, source, &copy)?;
    }
    Ok(())
}

/// Opens what locations mean.
pub(crate) struct Files<'a> {
    inputs: &'a [Input],
    open_tar: &'a OpenTar<'a>,
    tars: HashMap<DiffId, Arc<File>>,
    /// Contents of archives.
    spools: Vec<Arc<File>>,
}

impl Files<'_> {
    fn write<W: Write + Send>(
        &mut self,
        layer: &mut LayerWriter<W>,
        entry: image::layer::Entry,
        location: &Location,
        earlier: Option<&Earlier>,
    ) -> Result<(), FileError> {
        let is_file = matches!(entry.kind, Kind::File { size: 1.., .. });
        match location {
            Location::Inline(bytes) if is_file => layer.append(entry, Data::Known(&mut &bytes[..]))?,
            Location::Layer { .. } | Location::Spool { .. } if is_file => {
                layer.append(entry, Data::Known(&mut self.open(location)?))?;
            }
            Location::Host { .. } if is_file => {
                if let Some(mut bytes) = earlier.and_then(|earlier| earlier.bytes(&entry)) {
                    return Ok(layer.append(entry, Data::Known(&mut bytes))?);
                }
                layer.append(entry, Data::Expected(&mut self.open(location)?))?;
            }
            _ => layer.append(entry, Data::None)?,
        }
        Ok(())
    }

    /// A reader of the bytes at `location`.
    pub(crate) fn open(&mut self, location: &Location) -> Result<Bytes, FileError> {
        match location {
            Location::None => Ok(Bytes::Inline(io::Cursor::new(Vec::new()))),
            Location::Inline(bytes) => Ok(Bytes::Inline(io::Cursor::new(bytes.to_vec()))),
            Location::Layer { layer, offset, size } => {
                let tar = match self.tars.get(layer) {
                    Some(tar) => tar.clone(),
                    None => {
                        let tar = Arc::new((self.open_tar)(layer)?);
                        self.tars.insert(*layer, tar.clone());
                        tar
                    }
                };
                Ok(Bytes::Range { file: tar, at: *offset, left: *size })
            }
            Location::Spool { spool, offset, size } => {
                Ok(Bytes::Range { file: self.spools[*spool].clone(), at: *offset, left: *size })
            }
            Location::Host { directory, path } => {
                let known = self.inputs.iter().filter_map(|input| input.directory.as_ref());
                let directory = known.into_iter().find(|known| known.id() == *directory);
                let directory = directory.expect("a tree of the host comes with its directory");
                let file = directory
                    .open_file(path)
                    .map_err(|source| FileError::Context { path: path.clone(), source })?;
                Ok(Bytes::File(file))
            }
        }
    }
}

/// A reader of a file's bytes.
#[derive(Debug)]
pub(crate) enum Bytes {
    File(File),
    Inline(io::Cursor<Vec<u8>>),
    Range { file: Arc<File>, at: u64, left: u64 },
}

impl Read for Bytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Inline(bytes) => bytes.read(buffer),
            Self::Range { file, at, left } => {
                let most = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                let read = file.read_at(&mut buffer[..most], *at)?;
                *at += read as u64;
                *left -= read as u64;
                Ok(read)
            }
        }
    }
}

#[cfg(test)]
mod tests;
