//! Finds what a build reads: the Dockerfile's text, the context, and its ignore file.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use frontend::request::MainContext;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::failure::{Class, Failure, OrFail as _};
use crate::request::{ContextSource, DockerfileSource};

/// The largest Dockerfile that is read, bytes. Far more than anybody writes; a wrong path should not fill memory.
const MAX_DOCKERFILE: u64 = 64 << 20;

/// What a build reads.
#[derive(Debug)]
pub(crate) struct Context {
    /// The Dockerfile's bytes.
    pub(crate) text: Vec<u8>,
    /// Its name in messages.
    pub(crate) name: String,
    /// What the frontend is told about the main context.
    pub(crate) main: MainContext,
    /// The main context's directory on this host.
    pub(crate) directory: Option<PathBuf>,
    /// Patterns of the ignore file with their lines.
    pub(crate) ignore: Vec<(usize, String)>,
    /// The ignore file's name in messages.
    pub(crate) ignore_file: String,
}

/// Where archives are unpacked to.
pub(crate) trait Unpack {
    /// Unpacks the tar archive that `reader` gives, compressed or not, into a new directory that lives as long as the
    /// build.
    fn unpack(&self, reader: &mut dyn Read) -> Result<PathBuf, Failure>;
}

impl Context {
    /// Reads the Dockerfile and looks at the context; nothing else of it is read here.
    pub(crate) fn load(
        context: &ContextSource,
        dockerfile: &DockerfileSource,
        unpack: &dyn Unpack,
    ) -> Result<Self, Failure> {
        match context {
            ContextSource::Directory(path) => Self::directory(path, dockerfile),
            ContextSource::Stdin => Self::stdin(dockerfile, unpack),
            ContextSource::Remote(url) => Err(Failure::new(
                Class::Host,
                format!("could not load context {url}: remote contexts are not supported yet"),
            )),
        }
    }

    fn directory(path: &Path, dockerfile: &DockerfileSource) -> Result<Self, Failure> {
        let directory = path.canonicalize().map_err(|error| {
            Failure::new(Class::Dockerfile, format!("could not open context {}: {error}", path.display()))
        })?;
        if !directory.is_dir() {
            let message = format!("could not open context {}: it is not a directory", path.display());
            return Err(Failure::new(Class::Dockerfile, message)
                .hint("give the directory, and the Dockerfile with -f"));
        }
        let mut own_ignore = None;
        let (text, name) = match dockerfile {
            DockerfileSource::Default => {
                let (file, name) = open_default(&directory)?;
                own_ignore = Some(directory.join(format!("{name}.dockerignore")));
                (read_text(file, &name)?, name)
            }
            DockerfileSource::Path(path) => {
                let file = File::open(path).map_err(|error| no_dockerfile(path, &error))?;
                let mut ignore = path.clone().into_os_string();
                ignore.push(".dockerignore");
                own_ignore = Some(ignore.into());
                let shown = path
                    .file_name()
                    .map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into());
                (read_text(file, &shown)?, shown)
            }
            DockerfileSource::Stdin => (read_text(io::stdin(), "standard input")?, "Dockerfile".to_owned()),
            DockerfileSource::Remote(url) => {
                return Err(Failure::new(Class::Host, format!("could not read {url}: not supported yet")));
            }
        };
        let (ignore, ignore_file) = read_ignore(own_ignore.as_deref(), &directory)?;
        Ok(Self { text, name, main: MainContext::Local, directory: Some(directory), ignore, ignore_file })
    }

    fn stdin(dockerfile: &DockerfileSource, unpack: &dyn Unpack) -> Result<Self, Failure> {
        let mut start = vec![0; 1024];
        let mut stdin = io::stdin().lock();
        let n = read_full(&mut stdin, &mut start).or_fail(Class::Internal)?;
        start.truncate(n);
        let mut all = start.chain(stdin);
        if !is_archive(all.get_ref().0) {
            if *dockerfile != DockerfileSource::Default {
                return Err(Failure::usage(
                    "-f was given, but standard input is a Dockerfile and not an archive",
                ));
            }
            return Ok(Self {
                text: read_text(all, "standard input")?,
                name: "Dockerfile".to_owned(),
                main: MainContext::Empty,
                directory: None,
                ignore: Vec::new(),
                ignore_file: String::new(),
            });
        }
        let directory = unpack.unpack(&mut all)?;
        let (file, name) = match dockerfile {
            DockerfileSource::Default => open_default(&directory)?,
            DockerfileSource::Path(path) => {
                let file = open_inside(&directory, path).map_err(|error| no_dockerfile(path, &error))?;
                (file, path.display().to_string())
            }
            DockerfileSource::Stdin | DockerfileSource::Remote(_) => {
                return Err(Failure::usage("an archive on standard input needs its Dockerfile inside"));
            }
        };
        let text = read_text(file, &name)?;
        let own = directory.join(format!("{name}.dockerignore"));
        let (ignore, ignore_file) = read_ignore(Some(&own), &directory)?;
        Ok(Self { text, name, main: MainContext::Local, directory: Some(directory), ignore, ignore_file })
    }
}

/// `Dockerfile`, or else `dockerfile`, in a context.
fn open_default(directory: &Path) -> Result<(File, String), Failure> {
    let mut first = None;
    for name in ["Dockerfile", "dockerfile"] {
        match open_inside(directory, Path::new(name)) {
            Ok(file) => return Ok((file, name.to_owned())),
            Err(error) => first = first.or(Some(error)),
        }
    }
    let error = first.expect("two names were tried");
    Err(no_dockerfile(&directory.join("Dockerfile"), &error))
}

/// Opens a file below `directory`: links that lead out of it lead nowhere.
fn open_inside(directory: &Path, path: &Path) -> io::Result<File> {
    let dir = rustix::fs::open(directory, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat2(
        dir,
        path,
        flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?;
    Ok(fd.into())
}

fn no_dockerfile(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Class::Dockerfile, format!("could not read Dockerfile {}: {error}", path.display()))
        .hint("give its path with -f")
}

fn read_text(reader: impl Read, name: &str) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    reader
        .take(MAX_DOCKERFILE + 1)
        .read_to_end(&mut text)
        .map_err(|error| Failure::new(Class::Dockerfile, format!("could not read {name}: {error}")))?;
    if text.len() as u64 > MAX_DOCKERFILE {
        return Err(Failure::new(
            Class::Dockerfile,
            format!("{name} is larger than 64 MiB: is it a Dockerfile?"),
        ));
    }
    Ok(text)
}

/// The ignore file beside the Dockerfile, or else the context's.
fn read_ignore(own: Option<&Path>, directory: &Path) -> Result<(Vec<(usize, String)>, String), Failure> {
    let context = directory.join(".dockerignore");
    for path in own.into_iter().chain([context.as_path()]) {
        match std::fs::read(path) {
            Ok(text) => {
                let name =
                    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
                return Ok((frontend::ignore::parse(&text), name));
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => {
                let message = format!("could not read {}: {error}", path.display());
                return Err(Failure::new(Class::Dockerfile, message));
            }
        }
    }
    Ok((Vec::new(), ".dockerignore".to_owned()))
}

fn read_full(reader: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < buf.len() {
        match reader.read(&mut buf[n..])? {
            0 => break,
            more => n += more,
        }
    }
    Ok(n)
}

/// Whether `start` begins a tar archive, plain or compressed with gzip, bzip2, xz or zstd.
fn is_archive(start: &[u8]) -> bool {
    const MAGIC: [&[u8]; 4] = [b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    if MAGIC.iter().any(|magic| start.starts_with(magic)) {
        return true;
    }
    // A tar header's checksum is the sum of its bytes with the checksum's own field as spaces.
    let Some(header) = start.get(..512) else { return false };
    let field = String::from_utf8_lossy(&header[148..156]);
    let stored = u64::from_str_radix(field.trim_matches(|c: char| c == ' ' || c == '\0'), 8);
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(i, &b)| if (148..156).contains(&i) { 32 } else { u64::from(b) })
        .sum();
    stored == Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_told_from_dockerfiles() {
        assert!(is_archive(b"\x1f\x8b\x08\0"));
        assert!(!is_archive(b"FROM scratch\n"));
        assert!(!is_archive(&[b' '; 512]));
        let mut header = [0u8; 512];
        header[..3].copy_from_slice(b"a/b");
        header[148..156].copy_from_slice(b"        ");
        let sum: u64 = header.iter().map(|&b| u64::from(b)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        assert!(is_archive(&header));
    }

    #[test]
    fn the_dockerfile_is_found_and_never_outside() {
        let dir = tempfile::tempdir().unwrap();
        assert!(open_default(dir.path()).is_err());
        std::fs::write(dir.path().join("dockerfile"), "FROM scratch").unwrap();
        assert_eq!(open_default(dir.path()).unwrap().1, "dockerfile");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("Dockerfile")).unwrap();
        assert_eq!(open_default(dir.path()).unwrap().1, "dockerfile");
    }
}
