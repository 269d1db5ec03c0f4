//! Layers mounted in place: the kernel reads the tar through an EROFS image of its index.
//!
//! Linux 6.12 and later mount EROFS from files, without loop devices; the image names the tar as its second device. A
//! mount is attached nowhere: whoever holds its descriptor has it, and with the last descriptor it is gone, whatever
//! ended the process. Overlayfs takes such descriptors as lower layers (Linux 6.15).
//!
//! The image is made beside the tar, once, in less time than a directory of the tree takes to list.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use image::erofs::ErofsError;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};

use crate::inside;

/// Why a layer could not be mounted in place.
#[derive(Debug, thiserror::Error)]
pub enum InPlaceError {
    /// EROFS cannot hold the layer.
    #[error("layer {layer}: {source}")]
    Image {
        /// The layer.
        layer: image::DiffId,
        /// Why not.
        source: ErofsError,
    },
    /// The kernel refused.
    #[error("could not mount layer {layer} in place ({action}): {source}{}", said(log))]
    Kernel {
        /// The layer.
        layer: image::DiffId,
        /// What was asked of it.
        action: &'static str,
        /// Its answer.
        source: Errno,
        /// What it said to that.
        log: String,
    },
}

fn said(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!(": {log}") }
}

/// Mounts the layer whose EROFS image and tar these files are. The files can be closed and removed afterwards.
pub fn mount(layer: image::DiffId, image: &File, tar: &File) -> Result<OwnedFd, InPlaceError> {
    let fail = |action, context: Option<&OwnedFd>| {
        let log = context.map(messages).unwrap_or_default();
        move |source| InPlaceError::Kernel { layer, action, source, log }
    };
    let context = fsopen(c"erofs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(fail("open file system", None))?;
    // By descriptor: options are at most 255 bytes long.
    for (option, file) in [(c"source", image), (c"device", tar)] {
        let path = CString::new(inside::proc_path(file.as_fd())).expect("no NUL in it");
        fsconfig_set_string(&context, option, &path).map_err(fail("set option", Some(&context)))?;
    }
    fsconfig_set_flag(&context, c"ro").map_err(fail("set option", Some(&context)))?;
    fsconfig_create(&context).map_err(fail("create", Some(&context)))?;
    // What is executed or opened is judged by the overlay's flags; nobody has business with devices here.
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(fail("mount", Some(&context)))
}

/// What the kernel has to say about a failure: lines with a letter for their level.
fn messages(context: &OwnedFd) -> String {
    let mut log = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(n @ 1..) = rustix::io::read(context, &mut buffer) {
        let line = String::from_utf8_lossy(&buffer[..n]);
        log.push(line.split_once(' ').map_or(&*line, |(_, text)| text).trim().to_owned());
    }
    log.join("; ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{Read, Seek, Write};

    use bstr::ByteSlice;
    use image::ContentDigest;
    use image::layer::{Data, Entry, Kind, LayerIndex, LayerWriter};
    use rustix::fs::{Mode, OFlags};

    use super::*;
    use crate::diff::{Marks, Options, scan};

    /// Pseudo-random numbers: the same on each run.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, end: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % end
        }

        fn bytes(&mut self, length: u64) -> Vec<u8> {
            (0..length).map(|_| self.below(256) as u8).collect()
        }

        /// A name with any byte that a name may have.
        fn name(&mut self) -> Vec<u8> {
            let length = [1, 2, 5, 12, 60, 254][self.below(6) as usize];
            let name =
                self.bytes(length).into_iter().map(|byte| if matches!(byte, 0 | b'/') { b'_' } else { byte });
            [b"n", &name.collect::<Vec<u8>>()[..]].concat()
        }
    }

    /// A tree with a bit of everything: deep, wide, with odd names, sizes around block borders, links and attributes.
    fn odd_tree(dice: &mut Dice) -> BTreeMap<Vec<u8>, (Entry, Vec<u8>)> {
        let mut directories: Vec<Vec<u8>> = vec![b"".to_vec()];
        let mut entries = BTreeMap::new();
        for number in 0..400 {
            let dir = directories[dice.below(directories.len() as u64) as usize].clone();
            if dir.len() > 3000 {
                continue;
            }
            let path = if dir.is_empty() { dice.name() } else { [&dir[..], b"/", &dice.name()].concat() };
            let key = |path: &[u8]| {
                path.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect::<Vec<u8>>()
            };
            if entries.contains_key(&key(&path)) {
                continue;
            }
            let mut bytes = Vec::new();
            let device = |dice: &mut Dice| (1 + dice.below(4095) as u32, dice.below(1 << 20) as u32);
            let kind = match dice.below(12) {
                0..=2 => {
                    directories.push(path.clone());
                    Kind::Directory { opaque: dice.below(4) == 0, implied: false }
                }
                3 => {
                    let length = [1, 3, 100, 430, 449, 512, 600, 4000][dice.below(8) as usize];
                    Kind::Symlink { target: dice.bytes(length).replace([0], "_").into() }
                }
                4 => match device(dice) {
                    (major, minor) if number % 2 == 0 => Kind::CharDevice { major, minor },
                    (major, minor) => Kind::BlockDevice { major, minor },
                },
                5 => Kind::Fifo,
                6 => Kind::Whiteout,
                _ => {
                    let size = [0, 1, 511, 512, 513, 4096, 70_000][dice.below(7) as usize];
                    bytes = dice.bytes(size);
                    Kind::File { size, offset: 0, content: ContentDigest::of(&bytes) }
                }
            };
            let mut xattrs = BTreeMap::new();
            let is_file = matches!(kind, Kind::File { .. } | Kind::Directory { .. });
            for _ in 0..dice.below(4) {
                let name =
                    [["trusted.", "user."][usize::from(is_file)], &format!("x{}", dice.below(50))].concat();
                let length = [0, 1, 30, 900, 5000][dice.below(5) as usize];
                xattrs.insert(name.into(), dice.bytes(length).into());
            }
            let entry = Entry {
                path: path.clone().into(),
                kind,
                mode: dice.below(0o10000) as u16,
                uid: dice.below(1 << 31) as u32,
                gid: dice.below(70_000) as u32,
                mtime: [-1, 0, 1_700_000_000, 5_000_000_000][dice.below(4) as usize],
                xattrs,
            };
            entries.insert(key(&path), (entry, bytes));
        }
        entries
    }

    fn layer(entries: BTreeMap<Vec<u8>, (Entry, Vec<u8>)>, dice: &mut Dice) -> (File, LayerIndex) {
        let mut writer = LayerWriter::new(tempfile::tempfile().unwrap());
        let mut files = Vec::new();
        for (mut entry, bytes) in entries.into_values() {
            if matches!(entry.kind, Kind::File { .. }) {
                // Some become further names of files before them.
                if !files.is_empty() && dice.below(5) == 0 {
                    let target: &bstr::BString = &files[dice.below(files.len() as u64) as usize];
                    entry.kind = Kind::Hardlink { target: target.clone() };
                    writer.append(entry, Data::None).unwrap();
                    continue;
                }
                files.push(entry.path.clone());
                writer.append(entry, Data::Expected(&mut &bytes[..])).unwrap();
            } else {
                writer.append(entry, Data::None).unwrap();
            }
        }
        writer.finish().unwrap()
    }

    fn image_file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    /// `None` where the kernel has no EROFS for files, or this is not root.
    fn mounted(tar: &File, index: &LayerIndex) -> Option<OwnedFd> {
        let image = image_file(&image::erofs::image(index).unwrap());
        match mount(index.diff_id(), &image, tar) {
            Ok(mount) => Some(mount),
            Err(InPlaceError::Kernel { action: "open file system", .. }) => None,
            Err(InPlaceError::Kernel { source: Errno::NOTBLK | Errno::PERM, .. }) => None,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn the_kernel_reads_back_every_entry() {
        for seed in 0..8 {
            let mut dice = Dice(seed);
            let tree = odd_tree(&mut dice);
            let (tar, index) = layer(tree, &mut dice);
            let Some(mount) = mounted(&tar, &index) else { return };
            let options = Options { marks: Marks::Trusted, lower: None };
            let seen = scan(mount.as_fd(), &options).unwrap();
            let mut wanted = index.entries()[1..].to_vec();
            let offsets: Vec<(u64, ContentDigest)> = wanted
                .iter_mut()
                .filter_map(|entry| match &mut entry.kind {
                    Kind::File { offset, content, .. } => {
                        let was = (*offset, *content);
                        (*offset, *content) = (0, ContentDigest([0; 32]));
                        Some(was)
                    }
                    _ => None,
                })
                .collect();
            assert_eq!(seen.len(), wanted.len());
            for (seen, wanted) in seen.iter().zip(&wanted) {
                assert_eq!(seen, wanted, "seed {seed}");
            }
            let files = wanted.iter().filter(|entry| matches!(entry.kind, Kind::File { .. }));
            for (entry, (_, content)) in files.zip(offsets) {
                let fd = inside::open(mount.as_fd(), &entry.path, OFlags::RDONLY, Mode::empty()).unwrap();
                let mut bytes = Vec::new();
                File::from(fd).read_to_end(&mut bytes).unwrap();
                assert_eq!(ContentDigest::of(&bytes), content, "{:?}", entry.path);
            }
            // Looked up by name, too: lists and look-ups take different ways through a directory.
            for entry in &wanted {
                inside::open(mount.as_fd(), &entry.path, OFlags::PATH, Mode::empty()).unwrap();
                let missing = [&entry.path[..], b"~"].concat();
                assert!(inside::open(mount.as_fd(), &missing, OFlags::PATH, Mode::empty()).is_err());
            }
        }
    }

    #[test]
    fn an_empty_layer_can_be_mounted() {
        let (tar, index) = LayerWriter::new(tempfile::tempfile().unwrap()).finish().unwrap();
        let Some(mount) = mounted(&tar, &index) else { return };
        let dir = inside::open_dir(mount.as_fd(), b"").unwrap();
        assert!(inside::list(dir.as_fd()).unwrap().is_empty());
    }

    #[test]
    fn the_kernels_reason_is_in_the_error() {
        let (tar, index) = LayerWriter::new(tempfile::tempfile().unwrap()).finish().unwrap();
        let error = mount(index.diff_id(), &image_file(&[0; 4096]), &tar).unwrap_err().to_string();
        assert!(error.as_bytes().contains_str("could not mount layer"), "{error}");
    }
}
