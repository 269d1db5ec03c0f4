//! The Mounter seam: layers of the store become lower directories of an overlayfs, in one of two ways.
//!
//! In place ([`super::erofs`]) where the kernel can, else in directories ([`super::dirs`]). Either way a layer is
//! prepared once, by whichever process needs it first, and what is prepared is a cache: it may be removed when no build
//! has a lease on the layer, and what a crash of the machine may have damaged is made anew.
//!
//! ```text
//! layers/<alg>/<hex>.erofs            the image, carries its own checksum
//! layers/<alg>/<hex>.<settled>.erofs  the same for a layer whose implied directories were filled in from below
//! mounts/<hex>[.<settled>]/files/     the layer as a directory, or the upper directory that it was made of
//! mounts/<hex>[.<settled>]/epoch      when it was written: bytes of another epoch may be lost
//! ```
//!
//! A step may be shown other modification times than a layer has ([`Times`]); then `<settled>` names them as well.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bstr::BString;
use image::layer::settle::settle;
use image::layer::{Data, Entry, Kind, LayerIndex, LayerWriter};
use image::{ChainId, ContentDigest, DiffId};
use rayon::prelude::*;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_fd, fsmount, fsopen,
};
use store::lock::KeyLock;
use store::timing::{self, Of};
use store::{Root, StoreError};

use super::dirs::{self, ExtractError};
use super::erofs::{self, InPlaceError};
use crate::diff::Marks;
use crate::exec::plan::Lower;
use crate::inside;

/// Why layers could not be made ready for mounting.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The store does not have what is needed, or could not keep it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer could not be mounted in place.
    #[error(transparent)]
    InPlace(#[from] InPlaceError),
    /// A layer could not be extracted.
    #[error(transparent)]
    Extract(#[from] ExtractError),
    /// A file beside the layer could not be made.
    #[error("could not {action} {}: {source}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Modification times that are shown in place of those in layers, by layer and path.
pub type Times = HashMap<DiffId, HashMap<BString, i64>>;

/// Makes layers ready for overlayfs.
pub trait Mounter: fmt::Debug + Send + Sync {
    /// The lower layers of an overlayfs that shows `layers`, bottom first as these are; fewer where some show nothing.
    /// The layers must be in the store and leased as long as the result is used.
    fn lowers(&self, layers: &[DiffId], times: &Times) -> Result<Vec<Lower>, MountError>;

    /// Whether [`Mounter::lowers`] has next to nothing to do: all are ready, or all but the top one, which was adopted.
    fn is_quick(&self, layers: &[DiffId]) -> bool;

    /// Takes the upper directory that `layer` was made of in place of the layer, so that the next step need not wait for
    /// anything. It is moved and must be on the root's file system; if it is not taken, it stays where it is.
    fn adopt(&self, layer: &DiffId, upper: &Path) -> Result<(), MountError>;
}

/// The mounter that this host allows, and why it is not the fast one, if so.
#[derive(Debug, Clone)]
pub struct Choice {
    /// To be used.
    pub mounter: Arc<dyn Mounter>,
    /// What keeps layers from being mounted in place.
    pub obstacle: Option<String>,
}

/// Finds out what works here. Costs a few mounts: done when a step has to run, not before.
pub fn choose(root: &Root, marks: Marks) -> Choice {
    match probe(root, marks) {
        Ok(()) => Choice { mounter: Arc::new(InPlace::new(root.clone())), obstacle: None },
        Err(obstacle) => {
            Choice { mounter: Arc::new(Directories::new(root.clone(), marks)), obstacle: Some(obstacle) }
        }
    }
}

/// Mounts a layer of one file on the root's own file system, puts an overlayfs on it and reads the file.
///
/// Trying is the only way to know: it takes a kernel version, options, a file system that can be read from below, and
/// room below the limit of stacked file systems.
fn probe(root: &Root, marks: Marks) -> Result<(), String> {
    if marks == Marks::User {
        return Err("EROFS cannot be mounted in a user namespace".to_owned());
    }
    let text = |error: &dyn fmt::Display| error.to_string();
    let work = root.work_dir().map_err(|error| text(&error))?;
    let file = |name: &str| {
        File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(work.path().join(name))
            .map_err(|error| text(&error))
    };
    let mut layer = LayerWriter::new(file("tar")?);
    let content = b"probe";
    let entry = Entry {
        path: "file".into(),
        kind: Kind::File { size: content.len() as u64, offset: 0, content: ContentDigest([0; 32]) },
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: 0,
        xattrs: std::collections::BTreeMap::new(),
    };
    layer.append(entry, Data::New(&mut &content[..])).map_err(|error| text(&error))?;
    let (tar, index) = layer.finish().map_err(|error| text(&error))?;
    let mut image = file("erofs")?;
    image
        .write_all(&image::erofs::image(&index).map_err(|error| text(&error))?)
        .map_err(|error| text(&error))?;
    let mount = erofs::mount(index.diff_id(), &image, &tar).map_err(|error| text(&error))?;

    let overlay = || -> Result<Vec<u8>, Errno> {
        let context = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        // Two, since one alone is no overlay; also the same one twice would be refused.
        let empty = rustix::fs::open(work.path(), rustix::fs::OFlags::PATH, Mode::empty())?;
        fsconfig_set_fd(&context, c"lowerdir+", mount.as_fd())?;
        fsconfig_set_fd(&context, c"lowerdir+", empty.as_fd())?;
        fsconfig_create(&context)?;
        let merged = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        let fd = inside::open(merged.as_fd(), b"file", rustix::fs::OFlags::RDONLY, Mode::empty())?;
        let mut buffer = vec![0; 16];
        let n = rustix::io::read(&fd, &mut buffer)?;
        buffer.truncate(n);
        Ok(buffer)
    };
    match overlay() {
        Ok(bytes) if bytes == content => Ok(()),
        Ok(_) => Err("a layer mounted in place reads back other bytes".to_owned()),
        Err(error) => Err(format!("overlayfs does not take a layer that is mounted in place: {error}")),
    }
}

/// Layers as directories.
#[derive(Debug)]
pub struct Directories {
    root: Root,
    marks: Marks,
    ready: Ready,
}

/// Layers mounted in place; those made of an upper directory are served from that as long as it is there.
#[derive(Debug)]
pub struct InPlace {
    root: Root,
    directories: Directories,
    ready: Ready,
}

impl Directories {
    /// Layers of `root`, for an overlayfs that keeps its marks where `marks` says.
    pub fn new(root: Root, marks: Marks) -> Self {
        Self { root, marks, ready: Ready::default() }
    }

    fn path(&self, layer: &Settled) -> PathBuf {
        let path = self.root.layers().mount_path(&layer.index.diff_id());
        match &layer.suffix {
            Some(suffix) => path.with_extension(suffix),
            None => path,
        }
    }

    /// The layer's directory, if it is there and whole.
    fn existing(&self, path: &Path) -> Option<PathBuf> {
        let epoch = fs::read(path.join("epoch")).ok()?;
        (epoch == self.root.epoch().bytes()).then(|| path.join("files"))
    }

    /// Locks those of `layers` that are to be made. All processes do so in the same order, so none waits for one that
    /// waits for it.
    fn lock(&self, layers: &[&Settled]) -> Result<Vec<KeyLock>, MountError> {
        let paths: BTreeSet<PathBuf> = layers.iter().map(|layer| self.path(layer)).collect();
        let missing = paths.iter().filter(|path| self.existing(path).is_none());
        missing.map(|path| self.lock_path(path)).collect()
    }

    fn lock_path(&self, path: &Path) -> Result<KeyLock, MountError> {
        Ok(self.root.locks().lock_blocking(path.as_os_str().as_encoded_bytes())?)
    }

    /// The caller has the lock, if it has to be made.
    fn prepare(&self, layer: &Settled) -> Result<Lower, MountError> {
        let path = self.path(layer);
        if let Some(files) = self.existing(&path) {
            return Ok(Lower::Directory(files));
        }
        let work = self.root.work_dir()?;
        let files = work.path().join("files");
        fs::create_dir(&files).map_err(failed("make", &files))?;
        let into = File::open(&files).map_err(failed("open", &files))?;
        // Not what the umask leaves of it.
        rustix::fs::fchmod(&into, Mode::from_raw_mode(0o755))
            .map_err(|error| failed("open", &files)(error.into()))?;
        let tar = self.root.layers().open_tar(&layer.index.diff_id())?;
        let unpack = timing::phase("unpack", Of::Layer(layer.index.diff_id()));
        store::pool::pool().install(|| dirs::extract(&layer.index, &tar, into.as_fd(), self.marks))?;
        unpack.end();
        self.publish(work.path(), &path)?;
        Ok(Lower::Directory(path.join("files")))
    }

    /// Marks a prepared directory as whole and puts it in its place.
    fn publish(&self, work: &Path, path: &Path) -> Result<(), MountError> {
        let epoch = work.join("epoch");
        fs::write(&epoch, self.root.epoch().bytes()).map_err(failed("write", &epoch))?;
        if path.exists() {
            // Of an earlier epoch: nobody who is alive uses it.
            self.root.remove(path)?;
        }
        fs::rename(work, path).map_err(failed("make", path))
    }
}

impl Mounter for Directories {
    fn lowers(&self, layers: &[DiffId], times: &Times) -> Result<Vec<Lower>, MountError> {
        self.ready.lowers(
            &self.root,
            layers,
            times,
            |missing| self.lock(missing),
            |layer| self.prepare(layer),
        )
    }

    fn is_quick(&self, layers: &[DiffId]) -> bool {
        self.ready.has_all_but_adopted(&self.root, layers)
    }

    fn adopt(&self, layer: &DiffId, upper: &Path) -> Result<(), MountError> {
        let path = self.root.layers().mount_path(layer);
        let _lock = self.lock_path(&path)?;
        if self.existing(&path).is_some() {
            return Ok(());
        }
        let work = self.root.work_dir()?;
        let files = work.path().join("files");
        fs::rename(upper, &files).map_err(failed("move", upper))?;
        self.publish(work.path(), &path).inspect_err(|_| {
            // It is still what the caller has; if even this fails, the layer's tar has the same.
            let _ = fs::rename(&files, upper);
        })
    }
}

impl InPlace {
    /// Layers of `root`, for an overlayfs that root mounts.
    pub fn new(root: Root) -> Self {
        let directories = Directories::new(root.clone(), Marks::Trusted);
        Self { root, directories, ready: Ready::default() }
    }

    fn prepare(&self, layer: &Settled) -> Result<Lower, MountError> {
        if let Some(files) = self.directories.existing(&self.directories.path(layer)) {
            return Ok(Lower::Directory(files));
        }
        let diff_id = layer.index.diff_id();
        let path = self.root.layers().erofs_path(&diff_id);
        let path = match &layer.suffix {
            Some(suffix) => path.with_extension(format!("{suffix}.erofs")),
            None => path,
        };
        let tar = self.root.layers().open_tar(&diff_id)?;
        let image = match File::open(&path) {
            Ok(file) if fs::read(&path).is_ok_and(|bytes| image::erofs::is_intact(&bytes)) => file,
            _ => self.make_image(layer, &path)?,
        };
        Ok(Lower::Mount(Arc::new(erofs::mount(diff_id, &image, &tar)?)))
    }

    fn make_image(&self, layer: &Settled, path: &Path) -> Result<File, MountError> {
        let _phase = timing::phase("index", Of::Layer(layer.index.diff_id()));
        let bytes = image::erofs::image(&layer.index)
            .map_err(|source| InPlaceError::Image { layer: layer.index.diff_id(), source })?;
        let mut file = self.root.temp_file()?;
        file.write_all(&bytes).map_err(failed("write", path))?;
        file.rename(path).map_err(failed("make", path))
    }
}

impl Mounter for InPlace {
    fn lowers(&self, layers: &[DiffId], times: &Times) -> Result<Vec<Lower>, MountError> {
        // Two that make the same index make the same bytes.
        self.ready.lowers(&self.root, layers, times, |_| Ok(Vec::new()), |layer| self.prepare(layer))
    }

    fn is_quick(&self, layers: &[DiffId]) -> bool {
        self.ready.has_all_but_adopted(&self.root, layers)
    }

    fn adopt(&self, layer: &DiffId, upper: &Path) -> Result<(), MountError> {
        self.directories.adopt(layer, upper)
    }
}

/// A layer as it stands on those below it.
struct Settled {
    index: Arc<LayerIndex>,
    // Tells it from the same layer on others; `None` where they make no difference.
    suffix: Option<String>,
}

impl Settled {
    /// The same with other times.
    fn at(self, times: &HashMap<BString, i64>) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.suffix.unwrap_or_default().as_bytes());
        let mut entries = self.index.entries().to_vec();
        for entry in &mut entries {
            if let Some(mtime) = times.get(&entry.path) {
                entry.mtime = *mtime;
                hasher.update(&entry.path).update(b"\0").update(&mtime.to_le_bytes());
            }
        }
        let index = LayerIndex::new(entries, self.index.diff_id(), self.index.tar_size())
            .expect("an index with other times is an index");
        Self { index: Arc::new(index), suffix: Some(hasher.finalize().to_hex()[..16].to_owned()) }
    }
}

/// What this process has prepared, by the chain of layers up to it.
#[derive(Debug, Default)]
struct Ready {
    // `None`: it shows nothing there.
    lowers: Mutex<HashMap<ChainId, Option<Lower>>>,
}

impl Ready {
    fn has_all_but_adopted(&self, root: &Root, layers: &[DiffId]) -> bool {
        let Some((top, below)) = layers.split_last() else { return true };
        let ready = self.lowers.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever made a layer ready made all below it ready.
        ChainId::of(below).is_none_or(|chain| ready.contains_key(&chain))
            && root.layers().mount_path(top).exists()
    }

    fn lowers(
        &self,
        root: &Root,
        layers: &[DiffId],
        times: &Times,
        lock: impl Fn(&[&Settled]) -> Result<Vec<KeyLock>, MountError>,
        prepare: impl Fn(&Settled) -> Result<Lower, MountError> + Sync,
    ) -> Result<Vec<Lower>, MountError> {
        let chains: Vec<ChainId> = ChainId::each(layers).collect();
        let known: Vec<Option<Option<Lower>>> = {
            let ready = self.lowers.lock().unwrap_or_else(PoisonError::into_inner);
            let known =
                |(layer, chain)| if times.contains_key(layer) { None } else { ready.get(chain).cloned() };
            layers.iter().zip(&chains).map(known).collect()
        };
        // Overlayfs refuses a directory that is there twice. All that the lower of two equal layers has, the upper one
        // has as well.
        let is_last = |at: usize| !layers[at + 1..].contains(&layers[at]);
        let shown = |lowers: Vec<Option<Lower>>| {
            lowers
                .into_iter()
                .enumerate()
                .filter(|(at, _)| is_last(*at))
                .filter_map(|(_, lower)| lower)
                .collect()
        };
        if known.iter().all(Option::is_some) {
            return Ok(shown(known.into_iter().flatten().collect()));
        }
        let mut below: Vec<Arc<LayerIndex>> = Vec::with_capacity(layers.len());
        let mut settled = Vec::with_capacity(layers.len());
        for layer in layers {
            let index = root.layers().index(layer)?;
            let layer = match settle(&index, &below) {
                Some(index) => {
                    let suffix = index.content().hex()[..16].to_owned();
                    Settled { index: Arc::new(index), suffix: Some(suffix) }
                }
                None => Settled { index, suffix: None },
            };
            below.push(layer.index.clone());
            settled.push(match times.get(&layer.index.diff_id()) {
                Some(times) => layer.at(times),
                None => layer,
            });
        }
        let missing: Vec<&Settled> =
            settled.iter().zip(&known).filter(|(_, known)| known.is_none()).map(|(layer, _)| layer).collect();
        let _locks = lock(&missing)?;
        let ready = |(known, layer): (Option<Option<Lower>>, &Settled)| match known {
            Some(known) => Ok(known),
            None if layer.index.is_empty() => Ok(None),
            None => prepare(layer).map(Some),
        };
        let lowers: Vec<Option<Lower>> = match missing.len() {
            // The pool's threads need not be woken for it.
            ..=1 => known.into_iter().zip(&settled).map(ready).collect::<Result<_, _>>()?,
            _ => store::pool::pool()
                .install(|| known.into_par_iter().zip(&settled).map(ready).collect::<Result<_, _>>())?,
        };
        let mut ready = self.lowers.lock().unwrap_or_else(PoisonError::into_inner);
        let plain =
            layers.iter().zip(chains).zip(&lowers).filter(|((layer, _), _)| !times.contains_key(layer));
        ready.extend(plain.map(|((_, chain), lower)| (chain, lower.clone())));
        Ok(shown(lowers))
    }
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> MountError + 'a {
    move |source| MountError::File { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::MetadataExt;

    use rustix::fs::OFlags;
    use rustix::mount::fsconfig_set_string;

    use super::*;

    fn entry(path: &str, kind: Kind, mode: u16) -> Entry {
        let xattrs = std::collections::BTreeMap::new();
        Entry { path: path.into(), kind, mode, uid: 0, gid: 0, mtime: 1, xattrs }
    }

    fn store_layer(root: &Root, entries: &[(&str, Kind, u16, &str)]) -> DiffId {
        let mut layer = LayerWriter::new(root.layers().create().unwrap());
        for (path, kind, mode, text) in entries {
            let mut bytes = text.as_bytes();
            match kind {
                Kind::File { .. } => {
                    let kind =
                        Kind::File { size: text.len() as u64, offset: 0, content: ContentDigest([0; 32]) };
                    layer.append(entry(path, kind, *mode), Data::New(&mut bytes)).unwrap();
                }
                kind => layer.append(entry(path, kind.clone(), *mode), Data::None).unwrap(),
            }
        }
        let (layer, index) = layer.finish().unwrap();
        layer.commit(index.clone()).unwrap();
        index.diff_id()
    }

    fn overlay(lowers: &[Lower]) -> OwnedFd {
        let context = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        for lower in lowers.iter().rev() {
            match lower {
                Lower::Directory(path) => {
                    let fd = rustix::fs::open(path, OFlags::PATH, Mode::empty()).unwrap();
                    fsconfig_set_string(&context, c"lowerdir+", inside::proc_path(fd.as_fd())).unwrap();
                }
                Lower::Mount(mount) => fsconfig_set_fd(&context, c"lowerdir+", mount.as_fd()).unwrap(),
            }
        }
        fsconfig_create(&context).unwrap();
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap()
    }

    fn open(tree: &OwnedFd, path: &str) -> Result<File, Errno> {
        inside::open(tree.as_fd(), path.as_bytes(), OFlags::RDONLY, Mode::empty()).map(File::from)
    }

    fn read(tree: &OwnedFd, path: &str) -> String {
        let mut text = String::new();
        open(tree, path).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// What every mounter must do; the store is made anew for each.
    fn conforms(make: impl Fn(Root) -> Box<dyn Mounter>) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(&dir.path().join("root")).unwrap();
        let file = || Kind::File { size: 0, offset: 0, content: ContentDigest([0; 32]) };
        let directory = |opaque| Kind::Directory { opaque, implied: false };
        let base = store_layer(
            &root,
            &[
                ("gone", file(), 0o644, "x"),
                ("hidden", directory(false), 0o755, ""),
                ("hidden/below", file(), 0o644, "x"),
                ("tmp", directory(false), 0o1777, ""),
                ("tmp/kept", file(), 0o600, "kept"),
            ],
        );
        let nothing = store_layer(&root, &[]);
        let top = store_layer(
            &root,
            &[
                ("gone", Kind::Whiteout, 0, ""),
                ("hidden", directory(true), 0o700, ""),
                ("hidden/new", file(), 0o644, "new"),
                // The tar does not say what `tmp` is.
                ("tmp/more", file(), 0o640, "more"),
            ],
        );
        let mounter = make(root.clone());
        let chain = [nothing, base, nothing, top, base, top];
        for mounter in [&mounter, &mounter, &make(root.clone())] {
            let lowers = mounter.lowers(&chain, &Times::new()).unwrap();
            assert_eq!(lowers.len(), 2);
            let tree = overlay(&lowers);
            assert_eq!(open(&tree, "gone").unwrap_err(), Errno::NOENT);
            assert_eq!(open(&tree, "hidden/below").unwrap_err(), Errno::NOENT);
            assert_eq!(read(&tree, "hidden/new"), "new");
            assert_eq!(read(&tree, "tmp/kept"), "kept");
            assert_eq!(read(&tree, "tmp/more"), "more");
            assert_eq!(open(&tree, "tmp").unwrap().metadata().unwrap().mode() & 0o7777, 0o1777);
            assert_eq!(open(&tree, "tmp/more").unwrap().metadata().unwrap().mode() & 0o7777, 0o640);
        }
        assert!(make(root.clone()).lowers(&[], &Times::new()).unwrap().is_empty());

        // An upper directory takes the place of its layer.
        let made = store_layer(&root, &[("from-tar", file(), 0o644, "")]);
        let work = root.work_dir().unwrap();
        let upper = work.path().join("upper");
        fs::create_dir(&upper).unwrap();
        fs::write(upper.join("from-upper"), "").unwrap();
        mounter.adopt(&made, &upper).unwrap();
        assert!(!upper.exists());
        let Lower::Directory(path) = &mounter.lowers(&[base, made], &Times::new()).unwrap()[1] else {
            panic!("it was adopted")
        };
        assert!(path.join("from-upper").exists());
        // After a crash it is not trusted.
        fs::write(path.parent().unwrap().join("epoch"), "another").unwrap();
        let tree = overlay(&make(root.clone()).lowers(&[base, made], &Times::new()).unwrap());
        open(&tree, "from-tar").unwrap();
        assert_eq!(open(&tree, "from-upper").unwrap_err(), Errno::NOENT);

        let unknown = DiffId(image::Digest::of(b"unknown"));
        assert!(
            matches!(mounter.lowers(&[unknown], &Times::new()), Err(MountError::Store(error)) if error.is_missing())
        );
    }

    #[test]
    fn directories_conform() {
        if rustix::process::geteuid().is_root() {
            conforms(|root| Box::new(Directories::new(root, Marks::Trusted)));
        }
    }

    #[test]
    fn layers_in_place_conform() {
        let dir = tempfile::tempdir().unwrap();
        let choice = choose(&Root::open(&dir.path().join("root")).unwrap(), Marks::Trusted);
        if choice.obstacle.is_none() {
            conforms(|root| Box::new(InPlace::new(root)));
        }
    }

    #[test]
    fn a_damaged_image_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(&dir.path().join("root")).unwrap();
        if choose(&root, Marks::Trusted).obstacle.is_some() {
            return;
        }
        let layer = store_layer(&root, &[("a", Kind::Fifo, 0o600, "")]);
        InPlace::new(root.clone()).lowers(&[layer], &Times::new()).unwrap();
        let path = root.layers().erofs_path(&layer);
        let mut bytes = fs::read(&path).unwrap();
        let whole = bytes.clone();
        bytes[1600] ^= 1;
        fs::write(&path, &bytes).unwrap();
        InPlace::new(root.clone()).lowers(&[layer], &Times::new()).unwrap();
        assert!(fs::read(&path).unwrap() == whole);
    }

    #[test]
    fn the_obstacle_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let choice = choose(&Root::open(&dir.path().join("root")).unwrap(), Marks::User);
        assert_eq!(choice.obstacle.as_deref(), Some("EROFS cannot be mounted in a user namespace"));
    }
}
