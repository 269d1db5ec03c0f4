//! Mount points as the lowest layer.
//!
//! Most images have no `/etc/resolv.conf`, some no `/proc`. Making such mount points in every step's upper directory
//! and removing them afterwards costs more than the rest of the sandbox. So they are made once, in a directory that
//! becomes the lowest layer of the overlay: it shows where no layer of the image has anything, and never reaches a layer
//! that is made. Only what the image hides (a whiteout, a link) must still be made, see [`super::stub`].
//!
//! One directory per set of mount points, named by its digest; complete or absent, like all that is kept.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use super::plan::{Mount, Source, components};
use super::target::Kind;

/// How long after the last time the time of a directory that is used is set.
const MARK_USED: Duration = Duration::from_secs(24 * 3600);

/// The directory for these mounts in `skeletons`, made if it is missing.
pub(super) fn ensure(skeletons: &Path, mounts: &[Mount]) -> io::Result<PathBuf> {
    let points = points(mounts);
    let mut hasher = blake3::Hasher::new();
    for (path, kind) in &points {
        hasher.update(path.as_bytes());
        hasher.update(if *kind == Kind::File { b"\0f\0" } else { b"\0d\0" });
    }
    let name = &hasher.finalize().to_hex()[..32];
    let finished = skeletons.join(name);
    if let Ok(meta) = fs::metadata(&finished) {
        // Its time says that it is used: what is not for long is pruned.
        if meta.modified()?.elapsed().is_ok_and(|age| age > MARK_USED) {
            fs::File::open(&finished)?.set_modified(SystemTime::now())?;
        }
        return Ok(finished);
    }
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let temporary = skeletons.join(format!("{name}.{}.{count}.tmp", std::process::id()));
    DirBuilder::new().recursive(true).mode(0o700).create(skeletons)?;
    directory(&temporary)?;
    for (path, kind) in &points {
        add(&temporary, path, *kind)?;
    }
    match fs::rename(&temporary, &finished) {
        // Another process was faster; what it made is the same.
        Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {
            fs::remove_dir_all(&temporary)?;
        }
        result => result?,
    }
    Ok(finished)
}

/// What is certain to be mounted, sorted, each once.
fn points(mounts: &[Mount]) -> Vec<(String, Kind)> {
    let mut points: Vec<(String, Kind)> =
        ["dev", "proc", "sys"].into_iter().map(|name| (name.to_owned(), Kind::Directory)).collect();
    for mount in mounts {
        let kind = match &mount.source {
            Source::File { .. } | Source::Device { .. } => Kind::File,
            Source::Tmpfs { .. } => Kind::Directory,
            Source::Files { path, .. } if components(path).next().is_none() => Kind::Directory,
            // Only its source says what it is.
            Source::Files { .. } | Source::Host(_) => continue,
        };
        let parts: Vec<&str> = components(&mount.target).collect();
        if parts.first() != Some(&"dev") {
            points.push((parts.join("/"), kind));
        }
    }
    points.sort_by(|a, b| a.0.cmp(&b.0));
    points.dedup_by(|a, b| a.0 == b.0);
    points
}

fn add(base: &Path, path: &str, kind: Kind) -> io::Result<()> {
    let mut at = base.to_owned();
    let parts: Vec<&str> = path.split('/').collect();
    for (index, part) in parts.iter().enumerate() {
        at.push(part);
        let last = index + 1 == parts.len();
        let result = if last && kind == Kind::File {
            OpenOptions::new().write(true).create_new(true).mode(0o644).open(&at).map(drop)
        } else {
            directory(&at)
        };
        match result {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            // One mount point is a file and another lies below it; mounting will say so.
            Err(error) if error.kind() == ErrorKind::NotADirectory => return Ok(()),
            result => result?,
        }
    }
    Ok(())
}

/// A directory that everybody may enter, whatever the umask.
fn directory(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::super::Secret;
    use super::*;

    fn file(target: &str) -> Mount {
        let source = Source::File { content: Secret::new(vec![]), mode: 0o644, uid: 0, gid: 0 };
        Mount { target: target.into(), source, readonly: true }
    }

    #[test]
    fn equal_sets_share_a_directory_and_others_do_not() {
        let base = tempfile::tempdir().unwrap();
        let kept = base.path().join("skeletons");
        let hosts = ensure(&kept, &[file("/etc/hosts"), file("/dev/pipes/EOF")]).unwrap();
        assert!(
            hosts.join("etc/hosts").is_file()
                && hosts.join("proc").is_dir()
                && !hosts.join("dev/pipes").exists()
        );
        assert_eq!(ensure(&kept, &[file("/etc/hosts"), file("/etc/hosts")]).unwrap(), hosts);
        assert_ne!(ensure(&kept, &[file("/etc/resolv.conf")]).unwrap(), hosts);
        assert_eq!(fs::read_dir(&kept).unwrap().count(), 2);
    }

    #[test]
    fn a_file_above_a_mount_point_is_left_to_the_mount() {
        let base = tempfile::tempdir().unwrap();
        ensure(base.path(), &[file("/a"), file("/a/b")]).unwrap();
    }
}
