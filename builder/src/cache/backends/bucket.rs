//! A place that keeps objects by name: one that OpenDAL knows, or the cache service of GitHub Actions.

use std::io::Write as _;
use std::path::Path;

use bytes::Bytes;
use store::pool;
use store::registry::Client;
use store::temp::TempFile;
use worker::error::WorkerError;

use super::actions::Actions;
#[cfg(feature = "object")]
use super::opendal;
use crate::cache::CacheError;
use crate::cache::options::{Objects, Service};

/// Bytes that are gathered before they are written to a file.
const GATHERED: usize = 1 << 20;

/// Objects by name.
#[derive(Clone, Debug)]
pub(crate) enum Bucket {
    #[cfg(feature = "object")]
    OpenDal(::opendal::Operator),
    Actions(Actions),
}

impl Bucket {
    /// Nothing is asked yet.
    pub(crate) fn open(objects: &Objects, client: &Client) -> Result<Self, CacheError> {
        match objects.service {
            Service::Gha => Ok(Self::Actions(Actions::open(objects, client)?)),
            #[cfg(feature = "object")]
            _ => Ok(Self::OpenDal(opendal::operator(objects)?)),
            #[cfg(not(feature = "object"))]
            service => Err(CacheError::NotBuilt(service.name())),
        }
    }

    /// Whether there is an object of this length.
    #[cfg_attr(not(feature = "object"), expect(unused_variables, reason = "only OpenDAL tells lengths"))]
    pub(crate) async fn has(&self, path: &str, size: u64) -> Result<bool, CacheError> {
        match self {
            #[cfg(feature = "object")]
            Self::OpenDal(operator) => Ok(opendal::size(operator, path).await? == Some(size)),
            // It does not say how long an entry is, but has none that is not complete.
            Self::Actions(actions) => Ok(actions.has(path).await?),
        }
    }

    /// An object of no more than `limit` bytes, or the beginning of a longer one; `None`: it is not there.
    pub(crate) async fn read(&self, path: &str, limit: u64) -> Result<Option<Bytes>, CacheError> {
        match self {
            #[cfg(feature = "object")]
            Self::OpenDal(operator) => opendal::read(operator, path, limit).await,
            Self::Actions(actions) => Ok(actions.read(path, limit).await?),
        }
    }

    /// What was last written with [`Bucket::replace`].
    pub(crate) async fn read_replaced(&self, path: &str, limit: u64) -> Result<Option<Bytes>, CacheError> {
        match self {
            #[cfg(feature = "object")]
            Self::OpenDal(operator) => opendal::read(operator, path, limit).await,
            Self::Actions(actions) => Ok(actions.newest(path, limit).await?),
        }
    }

    /// Writes the bytes of an object to a file. `None`: it is not there.
    pub(crate) async fn fetch(
        &self,
        path: &str,
        size: u64,
        to: TempFile,
    ) -> Result<Option<TempFile>, CacheError> {
        let mut file = Gathering { file: Some(to), bytes: Vec::new() };
        let is_there = match self {
            #[cfg(feature = "object")]
            Self::OpenDal(operator) => {
                opendal::stream(operator, path, size, async |bytes| file.take(Some(bytes)).await).await?
            }
            Self::Actions(actions) => {
                actions.stream(path, size, async |bytes| file.take(bytes).await).await?
            }
        };
        file.write().await?;
        Ok(file.file.filter(|_| is_there))
    }

    /// Writes a file as an object. `false`: it was there already.
    pub(crate) async fn put(&self, path: &str, from: &Path, size: u64) -> Result<bool, CacheError> {
        match self {
            #[cfg(feature = "object")]
            Self::OpenDal(operator) => opendal::put(operator, path, from, size).await.map(|()| true),
            Self::Actions(actions) => actions.put(path, from, size).await,
        }
    }

    /// Writes an object in the place of what is there.
    pub(crate) async fn replace(&self, path: &str, bytes: Bytes) -> Result<(), CacheError> {
        match self {
            #[cfg(feature = "object")]
            Self::OpenDal(operator) => opendal::replace(operator, path, bytes).await,
            Self::Actions(actions) => Ok(actions.replace(path, bytes).await?),
        }
    }
}

/// A file that is written a good deal at a time, by jobs of the pool.
struct Gathering {
    /// There unless a job has it.
    file: Option<TempFile>,
    bytes: Vec<u8>,
}

impl Gathering {
    /// `None`: all begins again.
    async fn take(&mut self, bytes: Option<Bytes>) -> Result<(), CacheError> {
        match bytes {
            Some(bytes) => {
                self.bytes.extend_from_slice(&bytes);
                if self.bytes.len() >= GATHERED { self.write().await } else { Ok(()) }
            }
            None => {
                self.bytes.clear();
                self.job(|file| {
                    file.file().set_len(0)?;
                    std::io::Seek::rewind(&mut file.file())
                })
                .await
            }
        }
    }

    async fn write(&mut self) -> Result<(), CacheError> {
        let bytes = std::mem::take(&mut self.bytes);
        self.job(move |file| file.write_all(&bytes)).await
    }

    async fn job(
        &mut self,
        job: impl FnOnce(&mut TempFile) -> std::io::Result<()> + Send + 'static,
    ) -> Result<(), CacheError> {
        let mut file = self.file.take().expect("it is given back, or what it is for has failed");
        let done = pool::spawn(move || {
            let done = job(&mut file);
            done.map_err(|source| WorkerError::Io { path: file.path().to_owned(), source }).map(|()| file)
        });
        self.file = Some(done.await??);
        Ok(())
    }
}
