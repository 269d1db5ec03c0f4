//! Finds what a build reads: the Dockerfile's text, the context, and its ignore file.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use frontend::download;
use frontend::request::MainContext;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use solver::op::{Source, redacted};

use crate::failure::{Class, Failure, OrFail as _};
use crate::remote::{Fetcher, context_source, file_source};
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
    /// Where the main context is from, if it is from elsewhere.
    pub(crate) source: Option<Source>,
    /// The main context's directory on this host.
    pub(crate) directory: Option<PathBuf>,
    /// Patterns of the ignore file with their lines.
    pub(crate) ignore: Vec<(usize, String)>,
    /// The ignore file's name in messages.
    pub(crate) ignore_file: String,
    /// What tells it from other contexts.
    pub(crate) origin: String,
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
        keep_git_dir: bool,
        unpack: &dyn Unpack,
        fetcher: &Fetcher<'_>,
    ) -> Result<Self, Failure> {
        match context {
            ContextSource::Directory(path) => Self::directory(path, dockerfile, fetcher),
            ContextSource::Stdin => Self::stdin(dockerfile, unpack),
            ContextSource::Remote(url) => {
                let source = context_source(url, keep_git_dir)?;
                let mut context = Self::remote(url, source.clone(), dockerfile, unpack, fetcher)?;
                context.source = Some(source);
                context.origin = redacted(url);
                Ok(context)
            }
        }
    }

    fn directory(path: &Path, dockerfile: &DockerfileSource, fetcher: &Fetcher<'_>) -> Result<Self, Failure> {
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
                own_ignore = Some(OwnIgnore::Inside(format!("{name}.dockerignore")));
                (read_text(file, &name)?, name)
            }
            DockerfileSource::Path(path) => {
                let mut ignore = path.clone().into_os_string();
                ignore.push(".dockerignore");
                own_ignore = Some(OwnIgnore::Beside(ignore.into()));
                read_path(path)?
            }
            DockerfileSource::Stdin => (read_text(io::stdin(), "standard input")?, "Dockerfile".to_owned()),
            DockerfileSource::Remote(url) => read_url(url, fetcher)?,
        };
        let (ignore, ignore_file) = read_ignore(own_ignore, &directory)?;
        Ok(Self { ignore, ignore_file, ..Self::local(text, name, directory) })
    }

    fn stdin(dockerfile: &DockerfileSource, unpack: &dyn Unpack) -> Result<Self, Failure> {
        let mut stdin = io::stdin().lock();
        let start = beginning(&mut stdin).or_fail(Class::Internal)?;
        if is_archive(start.get_ref()) {
            let directory = unpack.unpack(&mut start.chain(stdin))?;
            return match dockerfile {
                DockerfileSource::Default => Self::archive(None, directory),
                DockerfileSource::Path(path) => Self::archive(Some(path), directory),
                DockerfileSource::Stdin | DockerfileSource::Remote(_) => {
                    Err(Failure::usage("an archive on standard input needs its Dockerfile inside"))
                }
            };
        }
        if *dockerfile != DockerfileSource::Default {
            let message = "-f was given, but standard input is a Dockerfile and not an archive";
            return Err(Failure::usage(message));
        }
        let text = read_text(start.chain(stdin), "standard input")?;
        Ok(Self { main: MainContext::Empty, ..Self::bare(text, "Dockerfile".to_owned()) })
    }

    /// An archive or a file on the web, or a git repository. Ignore files are for local directories: what is elsewhere
    /// was picked by whoever put it there.
    fn remote(
        url: &str,
        source: Source,
        dockerfile: &DockerfileSource,
        unpack: &dyn Unpack,
        fetcher: &Fetcher<'_>,
    ) -> Result<Self, Failure> {
        let fetched = fetcher.fetch(&source)?;
        // A path is one in the context, if it is not absolute.
        let (inside, own) = match dockerfile {
            DockerfileSource::Default => (None, None),
            DockerfileSource::Path(path) if path.is_absolute() => (None, Some(read_path(path)?)),
            DockerfileSource::Path(path) => (Some(path.as_path()), None),
            DockerfileSource::Stdin => {
                (None, Some((read_text(io::stdin(), "standard input")?, "Dockerfile".to_owned())))
            }
            DockerfileSource::Remote(url) => (None, Some(read_url(url, fetcher)?)),
        };
        if let Source::Http { .. } = source {
            let mut file = fetched.file()?;
            let start = beginning(&mut file).or_fail(Class::Host)?;
            if is_archive(start.get_ref()) {
                let directory = unpack.unpack(&mut start.chain(file))?;
                return match own {
                    Some((text, name)) => Ok(Self::local(text, name, directory)),
                    None => Self::archive(inside, directory),
                };
            }
            if inside.is_some() {
                let message = format!("-f was given, but {url} is a Dockerfile and not an archive");
                return Err(Failure::usage(message));
            }
            let (text, name) = match own {
                Some(own) => own,
                None => (read_text(start.chain(file), url)?, "Dockerfile".to_owned()),
            };
            return Ok(Self { main: MainContext::Source(source), ..Self::bare(text, name) });
        }
        if let Some((text, name)) = own {
            return Ok(Self { main: MainContext::Source(source), ..Self::bare(text, name) });
        }
        let given = inside.map(|path| path.to_string_lossy().into_owned());
        let names = given.map_or_else(|| DEFAULT_NAMES.map(str::to_owned).to_vec(), |name| vec![name]);
        for name in &names {
            if let Some(text) = fetched.read(name, MAX_DOCKERFILE + 1)? {
                let text = read_text(&text[..], name)?;
                return Ok(Self { main: MainContext::Source(source), ..Self::bare(text, name.clone()) });
            }
        }
        let message = format!("could not read Dockerfile {} of {url}: there is no such file", names[0]);
        Err(Failure::new(Class::Dockerfile, message).hint("give its path in the context with -f"))
    }

    /// An unpacked archive, with its Dockerfile in it.
    fn archive(dockerfile: Option<&Path>, directory: PathBuf) -> Result<Self, Failure> {
        let (file, name) = match dockerfile {
            None => open_default(&directory)?,
            Some(path) => {
                let file = open_inside(&directory, path).map_err(|error| no_dockerfile(path, &error))?;
                (file, path.display().to_string())
            }
        };
        Ok(Self { origin: "archive".to_owned(), ..Self::local(read_text(file, &name)?, name, directory) })
    }

    fn local(text: Vec<u8>, name: String, directory: PathBuf) -> Self {
        let origin = directory.display().to_string();
        Self { main: MainContext::Local, directory: Some(directory), origin, ..Self::bare(text, name) }
    }

    fn bare(text: Vec<u8>, name: String) -> Self {
        Self {
            text,
            name,
            main: MainContext::Empty,
            source: None,
            directory: None,
            ignore: Vec::new(),
            ignore_file: String::new(),
            origin: String::new(),
        }
    }
}

/// What a Dockerfile is called, the first that is there.
const DEFAULT_NAMES: [&str; 2] = ["Dockerfile", "dockerfile"];

/// Reads the Dockerfile `path` of this host, and says what it is called.
fn read_path(path: &Path) -> Result<(Vec<u8>, String), Failure> {
    let file = File::open(path).map_err(|error| no_dockerfile(path, &error))?;
    let name = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into());
    Ok((read_text(file, &name)?, name))
}

/// Reads the Dockerfile at `url`, and says what it is called.
fn read_url(url: &str, fetcher: &Fetcher<'_>) -> Result<(Vec<u8>, String), Failure> {
    let name = download::file_name(url).unwrap_or_else(|| "Dockerfile".to_owned());
    let file = fetcher.fetch(&file_source(url))?.file()?;
    Ok((read_text(file, url)?, name))
}

/// `Dockerfile`, or else `dockerfile`, in a context.
fn open_default(directory: &Path) -> Result<(File, String), Failure> {
    let mut first = None;
    for name in DEFAULT_NAMES {
        match open_inside(directory, Path::new(name)) {
            Ok(file) => return Ok((file, name.to_owned())),
            Err(error) => first = first.or(Some(error)),
        }
    }
    let error = first.expect("two names were tried");
    Err(no_dockerfile(&directory.join("Dockerfile"), &error))
}

/// An ignore file that belongs to one Dockerfile.
enum OwnIgnore {
    /// Its name in the context: links do not lead out of it.
    Inside(String),
    /// Beside a Dockerfile that the user named.
    Beside(PathBuf),
}

/// Opens a regular file below `directory`: links that lead out of it lead nowhere.
fn open_inside(directory: &Path, path: &Path) -> io::Result<File> {
    let dir = rustix::fs::open(directory, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    regular(rustix::fs::openat2(dir, path, READ, Mode::empty(), resolve)?.into())
}

/// Opens a regular file.
fn open(path: &Path) -> io::Result<File> {
    regular(rustix::fs::open(path, READ, Mode::empty())?.into())
}

/// Without waiting for somebody to write to a pipe.
const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
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
fn read_ignore(own: Option<OwnIgnore>, directory: &Path) -> Result<(Vec<(usize, String)>, String), Failure> {
    let own = own.map(|own| match own {
        OwnIgnore::Inside(name) => (open_inside(directory, Path::new(&name)), PathBuf::from(name)),
        OwnIgnore::Beside(path) => (open(&path), path),
    });
    let context = Path::new(".dockerignore");
    let shared = std::iter::once_with(|| (open_inside(directory, context), context.to_owned()));
    for (file, path) in own.into_iter().chain(shared) {
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        match file {
            Ok(file) => return Ok((frontend::ignore::parse(&read_text(file, &name)?), name)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => {
                let message = format!("could not read {}: {error}", path.display());
                return Err(Failure::new(Class::Dockerfile, message));
            }
        }
    }
    Ok((Vec::new(), ".dockerignore".to_owned()))
}

/// As much as it takes to tell an archive from a Dockerfile.
fn beginning(reader: &mut impl Read) -> io::Result<io::Cursor<Vec<u8>>> {
    let mut start = Vec::new();
    reader.take(1024).read_to_end(&mut start)?;
    Ok(io::Cursor::new(start))
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

    #[test]
    fn ignore_files_are_read_inside_the_context_and_never_waited_for() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (own, shared) = (dir.path().join("Dockerfile.dockerignore"), dir.path().join(".dockerignore"));
        let read = || read_ignore(Some(OwnIgnore::Inside("Dockerfile.dockerignore".into())), dir.path());
        assert_eq!(read().unwrap(), (vec![], ".dockerignore".to_owned()));
        std::fs::write(&shared, "a\n").unwrap();
        assert_eq!(read().unwrap(), (vec![(1, "a".to_owned())], ".dockerignore".to_owned()));
        std::fs::write(outside.path().join("secret"), "b\n").unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), &own).unwrap();
        assert_eq!(read().unwrap().1, ".dockerignore");
        let beside = read_ignore(Some(OwnIgnore::Beside(own.clone())), dir.path()).unwrap();
        assert_eq!(beside, (vec![(1, "b".to_owned())], "Dockerfile.dockerignore".to_owned()));
        std::fs::remove_file(&shared).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &shared,
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(read().is_err());
    }
}
